"""Whole images of Stable Diffusion 1.5, 2.x and 1.5 for inpainting at their published sizes with random weights: diffusers writes a folder, then its pipeline and
ours read it and draw from the same noise, in float32. Largest difference, CPU seconds and memory of each image. A row that results/published_image.jsonl has is not
made again. Needs diffusers, transformers, open_clip's list of words, 14 GB of memory, 15 GB of disk (`--work`), and about forty minutes of one core.

`python published_image.py --only DDIM` makes the rows whose names begin so; `--small` tries everything with small nets and writes into `--work` alone."""
import argparse,copy,ctypes,gc,json,shutil,tempfile,time,warnings
from pathlib import Path
import diffusers,torch,torch.nn.functional as F
from diffusers.models import attention_processor as processors
from torch.nn.attention import SDPBackend,sdpa_kernel
from transformers import CLIPTextConfig,CLIPTextModel,CLIPTokenizer
from miniai.attention import FeedForward
from miniai.ddim import sample_ddim
from miniai.ddpm import randn_for
from miniai.karras import sample_dpmpp_2m,sample_euler,sample_euler_ancestral,sample_heun,sample_lms
from miniai.published import PublishedDiffusion,_write_tokenizer,load_published
from miniai.single_file import clip_tokenizer,save_single_file
from common import RESULTS,write
from published import status

prompt,other_prompt,guidance,seed = 'a photo of an astronaut riding a horse','a bowl of soup, oil on canvas',7.5,5
samplers = dict(DDIM=sample_ddim, DPMSolverMultistep=sample_dpmpp_2m, EulerAncestralDiscrete=sample_euler_ancestral, HeunDiscrete=sample_heun,
                LMSDiscrete=sample_lms, EulerDiscrete=sample_euler)
# Rows by model, the most important first: name and what is special
rows_of = {
    'version 1': {'DDIM': {}, 'DDIM, another prompt': dict(words=other_prompt), 'DDIM, GELU for quick GELU': dict(gelu=True), 'DPMSolverMultistep': {},
                  'DDIM, twice the size': dict(larger=2), 'EulerAncestralDiscrete': {}},
    'version 2': {'DDIM, version 2, velocity': {}},
    'inpainting': {'DDIM, inpainting, 9 channels': dict(hole=True)},
    'single file': {'DDIM, from a single file': {}},
    'version 1 again': {'HeunDiscrete': {}, 'EulerDiscrete, Karras': dict(karras=True), 'LMSDiscrete': {}, 'DDIM, attention in slices': dict(sliced=True)}}
faults = 'DDIM, another prompt','DDIM, GELU for quick GELU'                 # ours differs on purpose


# ---- a model with random weights, as diffusers writes it

@torch.no_grad()
def fill(net):
    "Random weights that keep the size of what goes through, so that time and words matter: standard deviation 1/sqrt(numbers that are added)."
    for k,p in net.named_parameters():
        if p.ndim>1: p.normal_(0, p[0].numel()**-.5)
        else: p.normal_(float(k.endswith('weight')), .1)                   # norms; all others are biases
    return net.eval().requires_grad_(False)


def make(folder, kind, small):
    "Write a model with the shapes of Stable Diffusion 1.5, of 2.x, or of 1.5 for inpainting."
    v2 = kind=='version 2'
    nfs,code,n,blocks = ((32,64,64,64), (32,64,64,64), 128 if v2 else 64, 2) if small else ((320,640,1280,1280), (128,256,512,512), *((1024,23) if v2 else (768,12)))
    torch.manual_seed(0)
    with torch.device('meta'):
        unet = diffusers.UNet2DConditionModel(sample_size=64, in_channels=9 if kind=='inpainting' else 4, block_out_channels=nfs, cross_attention_dim=n,
            attention_head_dim=([1,2,2,2] if small else [5,10,20,20]) if v2 else 8, use_linear_projection=v2)
    text = CLIPTextModel(CLIPTextConfig(vocab_size=49408, hidden_size=n, intermediate_size=4*n, num_hidden_layers=blocks, num_attention_heads=n//64,
        hidden_act='gelu' if v2 else 'quick_gelu', bos_token_id=49406, eos_token_id=49407))
    vae = diffusers.AutoencoderKL(block_out_channels=code, layers_per_block=2, down_block_types=['DownEncoderBlock2D']*4, up_block_types=['UpDecoderBlock2D']*4)
    unet.to_empty(device='cpu')
    for o in (unet, text, vae): fill(o)
    vae.decoder.conv_out.weight.mul_(.5)                                   # values within [-1,1]
    vae.quant_conv.weight[4:],vae.quant_conv.bias[4:] = 0.,-25.            # latents that do not scatter
    _write_tokenizer(folder/'words', clip_tokenizer(version=2 if v2 else 1))
    sched = diffusers.DDIMScheduler(beta_start=.00085, beta_end=.012, beta_schedule='scaled_linear', clip_sample=False, steps_offset=1,
        prediction_type='v_prediction' if v2 else 'epsilon')
    pipe = diffusers.StableDiffusionInpaintPipeline if kind=='inpainting' else diffusers.StableDiffusionPipeline
    pipe(unet=unet, vae=vae, text_encoder=text, tokenizer=CLIPTokenizer.from_pretrained(folder/'words'), scheduler=sched, safety_checker=None, feature_extractor=None,
         requires_safety_checker=False).save_pretrained(folder/'model')


def opened(work, kind, pixels, small):
    "The two pipelines of a model, theirs and ours; its folder is made if it is not there."
    kind = kind.removesuffix(' again')
    folder = work/('version 1' if kind=='single file' else kind)
    if not (folder/'model').exists():
        folder.mkdir(exist_ok=True)
        make(folder, kind, small)
    if kind=='single file':
        file = work/'one.safetensors'
        if not file.exists(): save_single_file(load_published(folder/'model', size=pixels), file)
        theirs = diffusers.StableDiffusionPipeline.from_single_file(str(file), config=str(folder/'model'), safety_checker=None, local_files_only=True)
        ours = load_published(file, size=pixels)
    else:
        theirs = diffusers.DiffusionPipeline.from_pretrained(folder/'model', safety_checker=None)
        ours = load_published(folder/'model', size=pixels)
    theirs.set_progress_bar_config(disable=True)
    for net in (theirs.unet, theirs.vae, theirs.text_encoder):             # as ours: every page of the files is in memory now
        for p in net.parameters(): p.sum()
    return theirs,ours


# ---- an image

def picture(pixels):
    "An image with edges and colours, uint8, and the mask of a hole in it."
    x = torch.linspace(0, 1, pixels)
    x = torch.stack([x[None].expand(pixels, -1), x[:,None].expand(-1, pixels), ((x[None]-.5)**2+(x[:,None]-.5)**2<.1).float()])
    mask = torch.zeros(pixels, pixels, dtype=torch.bool)
    mask[pixels//4:3*pixels//4,pixels//8:pixels//2] = True
    return (x*255).byte(),mask


def draw_theirs(pipe, sched, pixels, steps, hole=False, **kw):
    "An image in [0,1] of their pipeline with the scheduler `sched`."
    pipe.scheduler = sched
    if hole:
        x,mask = picture(pixels)
        kw |= dict(image=x[None]/255, mask_image=mask[None,None].float(), strength=1.)
    return pipe(prompt, num_inference_steps=steps, height=pixels, width=pixels, guidance_scale=guidance, generator=[torch.Generator().manual_seed(seed)],
                output_type='pt', **kw).images


def draw_ours(pipe, sched, sampler, words=prompt, hole=False, karras=False):
    "The same of ours, at the noise levels and from the noise of `sched`, after it was used."
    times = sched.timesteps.unique().flip(0).long()                        # Heun has most of them twice
    sigmas = sched.sigmas.double() if karras else F.pad(pipe.unet.sched.sigma(times), (0, 1))
    gens = [torch.Generator().manual_seed(seed)]
    x = randn_for(torch.empty(1, *pipe.shape), gens)*(float(not karras)+sigmas[0]**2).sqrt().float()
    init,mask = picture(pipe.size) if hole else (None,None)
    denoise = pipe.denoiser(pipe.states(words), pipe.states(''), guidance, None, init[None] if hole else None, mask)
    return (pipe.codec.to_pictures(sampler(denoise, x, sigmas, generator=gens))+1)/2


def measured(f):
    "`f()`, its CPU seconds, and by how many MiB it raised the memory of the process."
    gc.collect()
    ctypes.CDLL('libc.so.6').malloc_trim(0)
    before,start = status('VmRSS'),time.process_time()
    with open('/proc/self/clear_refs', 'w') as o: o.write('5')             # the peak until now is forgotten
    with torch.no_grad(): out = f()
    return out,time.process_time()-start,(status('VmHWM')-before)//1024


def with_gelu(pipe):
    "Ours with the exact GELU in the text encoder, one of the silent mistakes of lesson 32."
    text = copy.deepcopy(pipe.text)
    for o in text.blocks: o.ff.__class__ = FeedForward
    return PublishedDiffusion(pipe.tokenizer, text, pipe.unet, pipe.codec, size=pipe.size)


def draw(work, theirs, ours, name, pixels, steps, words=prompt, gelu=False, larger=1, karras=False, sliced=False, hole=False):
    "One row: both images, or for a fault theirs as they drew it before."
    kind = name.split(',')[0]
    make_sched = getattr(diffusers, f'{kind}Scheduler')
    sched = make_sched.from_config(dict(theirs.scheduler.config) | dict(set_alpha_to_one=True, use_karras_sigmas=karras, timestep_spacing='linspace' if karras else 'leading'))
    pixels *= larger
    if larger>1: ours = PublishedDiffusion(ours.tokenizer, ours.text, ours.unet, ours.codec, size=pixels)
    if gelu: ours = with_gelu(ours)
    if sliced: theirs.enable_attention_slicing(1)
    kept = work/'DDIM.pt'
    if name in faults and kept.exists():
        a,t_a,m_a = torch.load(kept)
        sched.set_timesteps(steps)
    else: a,t_a,m_a = measured(lambda: draw_theirs(theirs, sched, pixels, steps, hole))
    if name=='DDIM': torch.save((a, t_a, m_a), kept)
    if sliced: theirs.disable_attention_slicing()
    b,t_b,m_b = measured(lambda: draw_ours(ours, sched, samplers[kind], words, hole, karras))
    gap = (a.double()-b.double()).abs()
    return dict(image=name, pixels=pixels, largest=gap.max().item(), squares=gap.square().mean().item(), their_s=round(t_a, 1), our_s=round(t_b, 1), their_mib=m_a,
                our_mib=m_b, spread=round(a.std().item(), 3), clamped=round(((a<=0)|(a>=1)).float().mean().item(), 3))


# ---- attention written out, in slices, and fused

def attention_rows(theirs, ours, pixels):
    "One step of the UNet in several ways: difference from theirs with fused attention, seconds, memory."
    side = pixels//8
    torch.manual_seed(1)
    x,c,t = torch.randn(1, 4, side, side),ours.states([prompt]),torch.tensor([500])
    s = (ours.unet.sched.sigma(t).log()/4).float()
    def ask_theirs(): return theirs.unet(x, t, c).sample
    def ask_ours(): return ours.unet(x, s, c)
    def written_out():
        with sdpa_kernel(SDPBackend.MATH): return ask_ours()
    ways = [('theirs', 'fused', ask_theirs, lambda: theirs.unet.set_attn_processor(processors.AttnProcessor2_0())),
            ('theirs', 'written out', ask_theirs, lambda: theirs.unet.set_attn_processor(processors.AttnProcessor())),
            ('theirs', 'in slices, a head at a time', ask_theirs, lambda: theirs.unet.set_attention_slice('max')),
            ('miniai', 'fused', ask_ours, lambda: None), ('miniai', 'written out', written_out, lambda: None)]
    exact = None
    for by,how,ask,prepare in ways:
        prepare()
        out,secs,mib = measured(ask)
        exact = out if exact is None else exact
        yield dict(attention=how, by=by, pixels=pixels, largest=((out-exact).abs().max()/exact.abs().max()).item(), s=round(secs, 1), mib=mib)
    theirs.unet.set_attn_processor(processors.AttnProcessor2_0())


# ---- all rows

def report(rows):
    "The table of images, and below it that of attention, into results/published_image.md."
    def line(o): return {'image': o['image'], 'pixels': o['pixels'], 'largest difference': f"{o['largest']:.1e}", 'mean squared': f"{o['squares']:.1e}",
        'CPU seconds, theirs': o['their_s'], 'ours': o['our_s'], 'MiB beyond the weights, theirs': o['their_mib'], 'ours ': o['our_mib'],
        "spread of the image's values": o['spread'], 'of them at 0 or 1': o['clamped']}
    images,steps = [o for o in rows if 'image' in o],[o for o in rows if 'attention' in o]
    more = ['', 'One evaluation of the UNet for one image, relative difference from the first line:', '',
            '| attention | by | pixels | largest difference | CPU seconds | MiB beyond the weights |', '| --- | --- | --- | --- | --- | --- |',
            *(f"| {o['attention']} | {o['by']} | {o['pixels']} | {o['largest']:.1e} | {o['s']} | {o['mib']} |" for o in steps)] if steps else []
    write('published_image', [line(o) for o in images], 'Whole images at the published sizes: our pipeline beside that of diffusers', ('torch','diffusers','transformers'), [
        f'Random weights, written by diffusers and read by both from the same files; float32, 10 guided steps (guidance {guidance}) from the same noise, '
        f'{torch.get_num_threads()} thread. Differences of values in [0,1]. In the rows with another prompt, and with the wrong activation in the text encoder, ours is '
        'made to differ: they show what the comparison would notice. Memory is what drawing adds to the resident size of the process that holds both models.', *more])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--threads', type=int, default=1)
    p.add_argument('--only', default='', help='rows whose names begin so')
    p.add_argument('--small', action='store_true', help='small nets; the results go into the folder of the models')
    p.add_argument('--work', type=Path, help='folder for the models, which is kept; a temporary one if not given')
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter('ignore')
    diffusers.utils.logging.disable_progress_bar()
    work = args.work or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    file = (work if args.small else RESULTS)/'published_image.jsonl'
    rows,pixels,steps = [json.loads(o) for o in file.read_text().splitlines()] if file.exists() else [],64 if args.small else 256,10
    def keep(row):
        rows.append(row)
        with file.open('a') as f: f.write(json.dumps(row)+'\n')
        print(row, flush=True)
    try:
        for model,wanted in rows_of.items():
            todo = {k: v for k,v in wanted.items() if k.startswith(args.only) and k not in {o.get('image') for o in rows}}
            steps_todo = model=='version 1' and 'attention'.startswith(args.only) and not any('attention' in o for o in rows)
            if not todo and not steps_todo: continue
            theirs,ours = opened(work, model, pixels, args.small)
            for name,kw in todo.items(): keep(draw(work, theirs, ours, name, pixels, steps, **kw))
            for o in list(attention_rows(theirs, ours, 2*pixels)) if steps_todo else []: keep(o)
            del theirs,ours
            gc.collect()
    finally:
        if args.work is None: shutil.rmtree(work)
    if not args.small: report(rows)


if __name__=='__main__': main()
