"""The small training of lesson 30 (coloured emoji, a third of them held out) with other times and other nets, at equal images; writes results/coloured.md.

A row is measured on what was held out: the PSNR to the real image, and how many are nearer to the right one of the 99 real images than to any other.
`python coloured.py --seeds 3 --images 30000` sets the number of trainings and their length."""
import argparse,re,statistics,time
import torch
import torch.nn.functional as F
from functools import partial
from torch.optim import AdamW
from miniai.accel import ClipCB
from miniai.bert import load_minilm
from miniai.ddpm import EMACB,c_noise,clean_images,noisify
from miniai.emoji import load_emoji,on_background
from miniai.flow import STYLE_WORDS,StatesTable,TextDiT,emoji_captions,split_emoji,word_states
from miniai.karras import karras_sigmas
from miniai.latents import CaptionCB,LatentDiffusion,TextUNet,generate_latents
from miniai.learner import Callback,Learner
from miniai.loaders import DataLoaders
from miniai.optim import BatchSchedCB,OneCycle
from miniai.resnet import AutocastCB,autocast
from miniai.schedules import FlowCB,FlowDenoiser,flow_target
from miniai.superres import psnr
from miniai.vae import load_codec
from common import write

pattern = re.compile(r'^(red|orange|yellow|green|blue|light blue|purple|brown|black|white|grey|pink) (heart|circle|square|book|apple)$')


class UniformFlowCB(Callback):
    "`FlowCB` with times that are uniform from 0 to 1."
    order = 10
    def before_batch(self, learn):
        x_0 = clean_images(learn)
        t = torch.rand(len(x_0), dtype=torch.float64).clamp(1e-4, 1-1e-4)
        sigma = t/(1-t)
        x_t,eps = noisify(x_0, 1/(1+sigma**2))
        learn.batch = x_t,c_noise(sigma).to(x_0),flow_target(x_0, eps, None)


def small_dit(): return TextDiT(n=128, n_blocks=4, n_heads=2)
def small_unet(): return TextUNet((32,64), nz=8, n_text=384)
ways = {'transformer, logit-normal times': (small_dit, FlowCB), 'transformer, uniform times': (small_dit, UniformFlowCB),
        'UNet, logit-normal times': (small_unet, FlowCB)}


def train(net, task, z, ids, table, n_images, seed, lr=2e-3, bs=64):
    torch.manual_seed(seed)
    again = -(-8*bs//len(z))
    z,ids = z.repeat(again, 1, 1, 1),ids.repeat(again, 1, 1)
    dls = DataLoaders.from_tensors((z, ids), (z[:bs], ids[:bs]), bs=bs, drop_last=True, generator=torch.Generator().manual_seed(seed))
    ema = EMACB(.99)
    cbs = [CaptionCB(task(), torch.tensor([0])), AutocastCB(n_inp=3), ClipCB(1.), BatchSchedCB(partial(OneCycle, max_lr=lr, pct_start=.05, base_momentum=None)), ema]
    Learner(LatentDiffusion(net, table), dls, F.mse_loss, lr, cbs, partial(AdamW, betas=(.9, .99), weight_decay=.01)).fit(round(n_images/len(z)), valid=False)
    return ema.model.unet.eval()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--images', type=int, default=30_000)
    args = p.parse_args()
    torch.set_num_threads(1)
    emoji,codec,encoder = load_emoji(),load_codec('emoji_codec'),load_minilm()
    if emoji.source!='folder': raise SystemExit('coloured: expected the emoji in MINIAI_DATA')
    train_rows = set(split_emoji(emoji).train)
    coloured = [i for i,o in enumerate(emoji.names) if pattern.match(o)]
    seen,unseen = [i for i in coloured if i in train_rows],[i for i in coloured if i not in train_rows]
    captions = [emoji_captions(emoji.names[i], (), emoji.styles[i]) for i in seen]
    table = StatesTable(encoder, [o for c in captions for o in c])
    ids = torch.stack([table.ids(c) for c in captions])
    z = codec.to_latents(on_background(emoji.x[seen]).float()/127.5-1)
    all_real = (on_background(emoji.x[coloured]).float()/127.5-1).flatten(1)
    real,right = all_real[[coloured.index(i) for i in unseen]],torch.tensor([coloured.index(i) for i in unseen])
    cond,empty = word_states(encoder, [f'{emoji.names[i]}, {STYLE_WORDS[emoji.styles[i]]}' for i in unseen]),word_states(encoder, '')
    rows = []
    for name,(make,task) in ways.items():
        found,secs = [],[]
        for seed in range(1, args.seeds+1):
            torch.manual_seed(seed)
            net,start = make(),time.process_time()
            net = train(net, task, z, ids, table, args.images, seed)
            secs.append(time.process_time()-start)
            with autocast('cpu'), torch.no_grad():
                drawn = generate_latents(FlowDenoiser(net), cond, empty, 2., karras_sigmas(20, .02, 80.), shape=(8,16,16), seed=seed)
            x = codec.to_pictures(drawn.float()).flatten(1)
            found.append((psnr(x.view(-1, 3, 64, 64), real.view(-1, 3, 64, 64)).item(), (torch.cdist(x, all_real).argmin(1)==right).float().mean().item()))
            print(name, seed, found[-1], round(secs[-1]), flush=True)
        def said(k, digits): return f'{statistics.mean(o[k] for o in found):.{digits}f} ({", ".join(f"{o[k]:.{digits}f}" for o in found)})'
        rows.append({'net and times': name, 'parameters': f'{sum(p.numel() for p in net.parameters()):,}', 'PSNR, dB': said(0, 1), 'right one nearest': said(1, 2),
                     'CPU seconds': round(statistics.median(secs))})
    write('coloured', rows, 'Coloured emoji that were held out: nets and times at equal images', ('torch',), [
        f'{args.images:,} images each, batches of 64, guidance 2, 20 steps of DPM-Solver++(2M); mean and each of {args.seeds} seeds. {len(seen)} images to learn from, {len(unseen)} held out.'])


if __name__=='__main__': main()
