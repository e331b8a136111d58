"""Two tables of lesson 36: the tricks of GANs on a ring of 25 Gaussians, and VAE, GAN and diffusion by quality, coverage and speed.

Each finished row is a line of results/gan.jsonl and is not made again; `python gan.py --part ring` makes the first table alone. Three seeds each."""
import argparse,json,math,time
from functools import partial
from pathlib import Path
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import AdamW
from miniai.conv import conv
from miniai.data import get_data
from miniai.ddpm import generate,load_weights
from miniai.distill import load_few
from miniai.fid import load_feature_net,precision_recall
from miniai.gan import GAN,GANLoss,bce_d,clip_weights,count_modes,gaussian_ring,load_gan,minimax,non_saturating,r1_r2,relativistic,wasserstein,wgan_gp
from miniai.init import Normalize
from miniai.karras import karras_sigmas,sample_dpmpp_2m,sample_euler
from miniai.learner import Learner
from miniai.loaders import DataLoaders
from miniai.optim import BatchSchedCB,OneCycle
from miniai.resnet import AutocastCB
from miniai.unet import load_unet
from miniai.vae import VAE,VAELoss
from common import processor,write

results = Path(__file__).parent/'results'/'gan.jsonl'


def lines(): return [json.loads(o) for o in results.read_text().splitlines()] if results.exists() else []


def keep(row):
    with results.open('a') as f: f.write(json.dumps(row)+'\n')
    print(row, flush=True)


# the ring

def mlp(ni, no, nh=64):
    return nn.Sequential(nn.Linear(ni, nh), nn.LeakyReLU(.2), nn.Linear(nh, nh), nn.LeakyReLU(.2), nn.Linear(nh, nh), nn.LeakyReLU(.2), nn.Linear(nh, no))


def gaussian_init(net):
    "Weights of standard deviation 0.02, as DCGAN has them (arXiv:1511.06434)."
    for m in net.modules():
        if isinstance(m, nn.Linear):
            nn.init.normal_(m.weight, std=.02)
            nn.init.zeros_(m.bias)


def jitter(x): return x+.1*torch.randn_like(x)


fast,slow = (4e-3,1e-3),(1e-3,1e-3)
smoothed,flipped = GANLoss(partial(bce_d, smooth=.1), non_saturating.g),GANLoss(partial(bce_d, flip=.05), non_saturating.g)

variants = {
    'exchanged labels (the basis)': {}, 'minimax': dict(loss=minimax), 'equal learning rates': dict(lr=slow), 'smoothed labels, 0.9': dict(loss=smoothed),
    'flipped labels, 5%': dict(loss=flipped), 'Gaussian initial weights': dict(init=gaussian_init), 'noise on what D sees': dict(augment=jitter),
    'Wasserstein, clipped': dict(loss=wasserstein, clip=.1, n_d=3), 'Wasserstein, gradient penalty': dict(loss=wasserstein, penalty=partial(wgan_gp, weight=1.), n_d=3),
    'relativistic': dict(loss=relativistic), 'relativistic, R1 and R2': dict(loss=relativistic, penalty=partial(r1_r2, gamma=.1)),
    'the same, falling rates': dict(loss=relativistic, penalty=partial(r1_r2, gamma=.1), fall=True),
    'the basis, falling rates': dict(fall=True),
    '250 points, the basis': dict(n_points=250), '250 points, noise on what D sees': dict(n_points=250, augment=jitter)}


def ring(seed, loss=non_saturating, lr=fast, init=None, clip=None, n_d=1, fall=False, n_points=None, n_steps=600, bs=128, **kw):
    "Heaps found and fraction of good points, of the last weights and of their average."
    torch.manual_seed(seed)
    g,d = mlp(8, 2),nn.Sequential(mlp(2, 1), nn.Flatten(0))
    if init: init(g),init(d)
    gan,fixed = GAN(g, d, 8, loss, lr, ema=.99, **kw),gaussian_ring(n_points) if n_points else None
    def batch(): return gaussian_ring(bs) if fixed is None else fixed[torch.randint(n_points, (bs,))]
    for i in range(n_steps):
        if fall:
            for opt,rate in zip((gan.opt_g, gan.opt_d), lr): opt.param_groups[0]['lr'] = rate*(1-i/n_steps)
        for _ in range(n_d):
            fake = gan.fakes(bs)
            real = gan.step_d(batch(), fake)
            if clip: clip_weights(gan.d, clip)
        gan.step_g(fake, real)
    with torch.no_grad():
        z = torch.randn(5000, 8)
        a,b = count_modes(gan.g(z)),count_modes(gan.average(z))
    return dict(found=a.found, good=round(a.good, 3), found_ema=b.found, good_ema=round(b.good, 3))


def rings(seeds):
    done = {(o['name'], o['seed']) for o in lines() if o['part']=='ring'}
    for seed in seeds:
        for name,kw in variants.items():
            if (name, seed) in done: continue
            start = time.process_time()
            row = ring(seed, **kw)
            keep(dict(part='ring', name=name, seed=seed, **row, seconds=round(time.process_time()-start, 1)))


# the triangle


if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--part', nargs='*', default=['ring','triangle'])
    p.add_argument('--seeds', type=int, nargs='*', default=[1, 2, 3])
    args = p.parse_args()
    torch.set_num_threads(1)
    if 'ring' in args.part: rings(args.seeds)
