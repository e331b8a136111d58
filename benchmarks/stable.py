"""Words to images: our pipeline and the parts of diffusers in the same layout, random weights: seconds a guided step and an image, and peak memory.

Needs diffusers, a development requirement. `python stable.py --threads 2 --rounds 9` sets torch's threads and the rounds. Both sides get the same text
states and noise; each image is a batch of two predictions a step, 30 steps of DPM-Solver++(2M) at Karras's levels, then the decoder."""
import argparse,gc,importlib,os,subprocess,sys,warnings
from contextlib import nullcontext
import torch
from torch import nn
from miniai.clip import TextTransformer,Tokenizer
from miniai.latents import TextUNet
from miniai.stable import StableDiffusion
from miniai.vae import Codec
from common import compare,write

steps,scale,groups = 30,4.,8
unet = dict(nfs=(96,112), nz=8, n_text=128, depth=1, n_emb=128, n_heads=4)
codec = dict(nfs=(48,64,96), nz=8, depth=1, patch=2)
prompt = 'a small red star above a large blue ring'


class Ours:
    "The pipeline, fresh weights."
    def __init__(self):
        tokenizer = Tokenizer.train([prompt]*2, 90)
        self.pipe = StableDiffusion(tokenizer, TextTransformer(len(tokenizer)), TextUNet(**unet), Codec(**codec))
        self.states = self.pipe.states([prompt, ''])
        self.nets = self.pipe.unet,self.pipe.codec

    def image(self, n, amp): return self.pipe(self.states[:1], n=n, steps=steps, guidance=scale, amp=amp)

    def step(self, x, amp):
        told,empty = self.states.split(1)
        both = torch.cat([empty.expand(len(x), -1, -1), told.expand(len(x), -1, -1)])
        with torch.no_grad(), cast(amp):
            a,b = self.pipe.denoise(torch.cat([x, x]), 1., both).chunk(2)
            return a + scale*(b-a)


class Plain(nn.Module):
    "The place of the two blocks that diffusers has between encoder and decoder, and we have not."
    def forward(self, x, *args): return x


class Theirs:
    "`UNet2DConditionModel`, `AutoencoderKL` and `DPMSolverMultistepScheduler`, put together as in `StableDiffusionPipeline`."
    def __init__(self):
        d = importlib.import_module('diffusers')
        nfs,zfs = unet['nfs'],codec['nfs']
        self.unet = d.UNet2DConditionModel(
            8, 8, 8, block_out_channels=nfs, layers_per_block=unet['depth'], cross_attention_dim=unet['n_text'], attention_head_dim=unet['n_heads'],
            norm_num_groups=groups, resnet_time_scale_shift='scale_shift', use_linear_projection=True, time_embedding_dim=unet['n_emb'],
            down_block_types=['CrossAttnDownBlock2D']*len(nfs), up_block_types=['CrossAttnUpBlock2D']*len(nfs))
        self.vae = d.AutoencoderKL(12, 12, ['DownEncoderBlock2D']*3, ['UpDecoderBlock2D']*3, zfs, codec['depth'], latent_channels=8, norm_num_groups=groups,
                                   mid_block_add_attention=False, use_quant_conv=False, use_post_quant_conv=False)
        self.vae.encoder.mid_block = self.vae.decoder.mid_block = Plain()
        self.scheduler = d.DPMSolverMultistepScheduler(use_karras_sigmas=True)
        self.nets = self.unet,self.vae
        for o in self.nets: o.eval().requires_grad_(False)
        self.states = torch.randn(2, 24, 128, generator=torch.Generator().manual_seed(0))

    def guided(self, x, t):
        told,empty = (o.expand(len(x), -1, -1) for o in self.states.split(1))
        a,b = self.unet(torch.cat([x, x]), t, torch.cat([empty, told]), return_dict=False)[0].chunk(2)
        return a + scale*(b-a)

    def step(self, x, amp):
        with torch.no_grad(), cast(amp): return self.guided(x, 500)

    def image(self, n, amp):
        self.scheduler.set_timesteps(steps)
        x = torch.randn(n, 8, 8, 8, generator=torch.Generator().manual_seed(0))*self.scheduler.init_noise_sigma
        with torch.no_grad(), cast(amp):
            for t in self.scheduler.timesteps:
                x = self.scheduler.step(self.guided(self.scheduler.scale_model_input(x, t), t).float(), t, x, return_dict=False)[0]
            pixels = torch.pixel_shuffle(self.vae.decode(x, return_dict=False)[0], codec['patch']).float()
        return ((pixels.clamp(-1, 1)+1)*127.5).round().byte()


sides = {'diffusers': Theirs, 'miniai': Ours}


def cast(amp): return torch.autocast('cpu', torch.bfloat16) if amp else nullcontext()


def count(o): return [sum(p.numel() for p in net.parameters()) for net in o.nets]


def status(key):
    "A line of /proc/self/status, in MB."
    return next(int(o.split()[1]) for o in open('/proc/self/status') if o.startswith(key+':'))/2**10


def memory(side, n, amp, threads):
    "Peak memory in MB above that of the imports, from a process of its own."
    args = [sys.executable, __file__, '--memory', side, str(n), str(int(amp)), '--threads', str(threads)]
    env = {**os.environ, 'MALLOC_MMAP_THRESHOLD_': '65536', 'MALLOC_TRIM_THRESHOLD_': '65536'}      # what is freed is given back at once
    return float(subprocess.run(args, check=True, capture_output=True, text=True, env=env).stdout.split()[-1])


def measure_memory(side, n, amp):
    "What `memory` runs: the nets, then one drawing; prints MB."
    if side=='diffusers':
        d = importlib.import_module('diffusers')
        for k in ('UNet2DConditionModel', 'AutoencoderKL', 'DPMSolverMultistepScheduler'): getattr(d, k)       # diffusers imports when asked
    with torch.no_grad(), cast(amp): nn.Conv2d(1, 1, 3)(torch.randn(1, 1, 8, 8))                            # what torch imports when first used
    gc.collect()
    with open('/proc/self/clear_refs', 'w') as f: f.write('5')                                             # the peak of the imports is forgotten
    before = status('VmRSS')
    sides[side]().image(n, amp)
    print(status('VmHWM')-before)


def rows_of(made, amp, rounds, threads):
    "One row a task and side."
    x = {n: torch.randn(n, 8, 8, 8) for n in (1, 4)}
    tasks = {'guided step, 1 image': lambda o: o.step(x[1], amp), 'guided step, 4 images': lambda o: o.step(x[4], amp),
             '1 image': lambda o: o.image(1, amp), '4 images': lambda o: o.image(4, amp)}
    rows = []
    for task,f in tasks.items():
        times = compare(task, {k: lambda o=o: f(o) for k,o in made.items()}, rounds)
        mb = {k: memory(k, int(task[0]), amp, threads) for k in made} if task[0].isdigit() else {}
        for r in times:
            k = r['label']
            rows.append({'numbers': 'bfloat16' if amp else 'float32', 'task': task, 'by': k, 'seconds': f"{r['median']:.4f}",
                         'of diffusers': f"{1/r['ratio']:.2f}", 'peak MB': f'{mb[k]:.0f}' if mb else '-',
                         'of diffusers ': f"{mb[k]/mb['diffusers']:.2f}" if mb else '-'})
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--threads', type=int, default=2, help="torch's threads")
    parser.add_argument('--rounds', type=int, default=7, help='measured rounds, in each of which both sides run once')
    parser.add_argument('--memory', nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    warnings.filterwarnings('ignore')
    if args.memory: return measure_memory(args.memory[0], int(args.memory[1]), bool(int(args.memory[2])))
    made = {k: f() for k,f in sides.items()}
    counts = {k: count(o) for k,o in made.items()}
    for a,b in zip(*counts.values()):
        if abs(a/b-1)>.01: raise RuntimeError(f'the parameters differ: {counts}')
    rows = [r for amp in (False, True) for r in rows_of(made, amp, args.rounds, args.threads)]
    u,v = counts['miniai']
    write('stable', rows, 'Words to images: our pipeline beside the parts of diffusers', ['torch', 'diffusers'], (
        f'{args.threads} thread{"s"[:args.threads>1]}; medians of {args.rounds} rounds, both sides in turn; "of diffusers" is the median of the ratios of each round.',
        f'UNet of {u:,} parameters on both sides, codec of {v:,}; random weights; images of 64x64 pixels, latents of 8x8x8, text states of 24x128.',
        f'A guided step is two predictions in one batch. An image is {steps} of them with the steps of DPM-Solver++(2M), and the decoder; text states are ready on both sides.',
        "diffusers' codec is without its two middle blocks, which ours has not. Peak memory is that of a process of its own that makes the nets and draws once, above its imports."))


if __name__=='__main__': main()
