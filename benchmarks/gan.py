"""Two tables of lesson 36: the tricks of GANs on a ring of 25 Gaussians, and VAE, GAN and diffusion by quality, coverage and speed.

Each finished row is a line of results/gan.jsonl and is not made again; `python gan.py --part ring` makes the first table alone. Three seeds each."""
import argparse,json,time
from functools import partial
from pathlib import Path
import torch
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
from miniai.resnet import AutocastCB,autocast
from miniai.unet import load_unet
from miniai.vae import VAE,VAELoss
from common import write

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
    'relativistic, R1 and R2, falling rates': dict(loss=relativistic, penalty=partial(r1_r2, gamma=.1), fall=True),
    'the basis, falling rates': dict(fall=True),
    '250 points, the basis': dict(n_points=250), '250 points, noise on what D sees': dict(n_points=250, augment=jitter),
    'relativistic, R1 and R2, equal rates': dict(loss=relativistic, penalty=partial(r1_r2, gamma=.1), lr=slow),
    'three steps of D': dict(n_d=3), 'relativistic, R1 and R2, three steps of D': dict(loss=relativistic, penalty=partial(r1_r2, gamma=.1), n_d=3)}


def ring(seed, loss=non_saturating, lr=fast, init=None, clip=None, n_d=1, fall=False, n_points=None, n_steps=600, bs=128, **kw):
    "Modes found and fraction of good points, of the last weights and of their average."
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

def layer(ni, nf, stride): return conv(ni, nf, stride=stride, act=nn.SiLU, norm=nn.BatchNorm2d)


def train_vae(x, seed):
    "The VAE of lesson 25, one epoch."
    torch.manual_seed(seed)
    encoder = nn.Sequential(layer(1, 16, 2), layer(16, 32, 2), nn.Flatten(), nn.Linear(32*7*7, 256), nn.SiLU(), nn.Linear(256, 32))
    decoder = nn.Sequential(nn.Linear(16, 256), nn.SiLU(), nn.Linear(256, 32*7*7), nn.Unflatten(1, (32, 7, 7)), nn.BatchNorm2d(32), nn.SiLU(), layer(32, 64, 1),
                            nn.PixelShuffle(2), nn.Conv2d(16, 4, 3, padding=1), nn.PixelShuffle(2))
    model,norm = VAE(encoder, decoder),Normalize(127.5, 127.5)
    def pair(x): return norm(x)[0],norm(x)[0]
    dls = DataLoaders.from_tensors((x,), (x[:64],), bs=64, drop_last=True, tfm=pair, generator=torch.Generator().manual_seed(seed))
    Learner(model, dls, VAELoss(beta=1.), 5e-3, [AutocastCB(), BatchSchedCB(partial(OneCycle, max_lr=5e-3))], AdamW).fit(1, valid=False)
    return model.eval()


def diffusion(denoise, levels, sampler):
    def draw(n, seed): return generate(denoise, levels, n, sampler=sampler, seed=seed*2048)
    return draw


def generators(x):
    "{(name, NFE): (function of a seed that prepares `draw(n, seed)`, n)}; `n` images for recall, the FID of 2,048 where they are quick."
    def vae(seed):
        model = train_vae(x, seed)
        return lambda n, seed: model.decode(torch.randn(n, 16, generator=torch.Generator().manual_seed(seed))).clamp(-1, 1)
    def gan(seed):
        g = load_gan()
        return lambda n, seed: g.draw(torch.arange(n)%10, generator=torch.Generator().manual_seed(seed))
    few,levels = load_few('fashion_few')
    unet = load_unet()
    res = {('VAE of 25', 1): vae, ('GAN', 1): gan}
    for k in (1, 2, 4): res['student of 31', k] = lambda seed, k=k: diffusion(few, levels[k], sample_euler)
    for k in (4, 10, 20, 50): res['diffusion of 21', k] = lambda seed, k=k: diffusion(unet, karras_sigmas(k, .02, 80.), sample_dpmpp_2m)
    return res


def known(name, nfe, seed):
    "FID and rarest class of a diffusion model, from results/fid.jsonl (2,048 images)."
    weights,sampler = {'student of 31': ('fashion_few','Euler'), 'diffusion of 21': ('fashion_unet','DPM-Solver++(2M)')}[name]
    now = load_weights(weights)[1]['sha256'][:8]
    rows = [json.loads(o) for o in (results.parent/'fid.jsonl').read_text().splitlines()]
    rows = [o for o in rows if (o['weights'], o['sampler'], o['calls'], o['seed'])==(now, sampler, nfe, seed) and 'kid' in o]
    return (rows[-1]['fid'], rows[-1]['least']) if rows else (None, None)


@torch.no_grad()
def triangle(seeds, nfes, names, n=500):
    data,net,gan = get_data('fashion_mnist'),load_feature_net(),load_weights('fashion_gan')[1]['sha256'][:8]
    def key(o): return o['name'],o['nfe'],o['seed'],o.get('weights')
    done = {key(o) for o in lines() if o['part']=='triangle'}
    made = generators(data.x_train)
    for seed in seeds:
        chosen = torch.randperm(len(data.x_valid), generator=torch.Generator().manual_seed(seed))[:n]
        real = net.features(data.x_valid[chosen].float()/127.5-1)
        for (name,nfe),prepare in made.items():
            weights = gan if name=='GAN' else None
            if nfe not in nfes or names and name.split(' ')[0] not in names or (name, nfe, seed, weights) in done: continue
            with torch.enable_grad(): draw = prepare(seed)
            with autocast('cpu'):
                draw(50, 0)
                start = time.process_time()
                x = draw(n, seed).float()
                speed = n/(time.process_time()-start)
                if nfe==1 and name!='student of 31':
                    x = draw(2048, seed).float()
                    fid,least = net.fid(x),net.class_fractions(x).min().item()
                else: fid,least = known(name, nfe, seed)
            precision,recall = precision_recall(net.features(x[:n] if nfe>1 else x[torch.randperm(len(x))[:n]]), real)
            keep(dict(part='triangle', name=name, nfe=nfe, seed=seed, weights=weights, fid=fid and round(fid, 2), least=least and round(least, 4), precision=round(precision, 3),
                      recall=round(recall, 3), per_second=round(speed, 1)))


def report():
    "results/gan.md, both tables."
    def said(rows, k, digits):
        v = [o[k] for o in rows if o[k] is not None]
        return ', '.join(f'{o:.{digits}f}' for o in v) or 'not measured'
    now,table = load_weights('fashion_gan')[1]['sha256'][:8],[]
    for part in ('ring','triangle'):
        rows = [o for o in lines() if o['part']==part and o.get('weights') in (None, now)]
        for name,nfe in dict.fromkeys((o['name'], o.get('nfe')) for o in rows):
            same = sorted((o for o in rows if (o['name'], o.get('nfe'))==(name, nfe)), key=lambda o: o['seed'])
            if part=='ring':
                text = f"modes {said(same, 'found', 0)} (averaged weights {said(same, 'found_ema', 0)}); good {said(same, 'good', 2)} ({said(same, 'good_ema', 2)})"
            else:
                text = f"FID {said(same, 'fid', 1)}; precision {said(same, 'precision', 2)}; recall {said(same, 'recall', 2)}; images per CPU second {said(same, 'per_second', 0)}"
            table.append({'part': part, 'what': name+(f', {nfe} NFE' if nfe else ''), 'three seeds': text})
    write('gan', table, 'GANs: tricks on a ring, and the triangle', ('torch',), (
        'The ring: 600 steps of 128 points, 5,000 points counted. The triangle: FID of 2,048 images against the statistics of the training set (those of the diffusion models from '
        'results/fid.jsonl), precision and recall of 500 images and 500 test images with k = 3. The seeds of the VAE are those of its training, the others those of the noise.',))


if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--part', nargs='*', default=['ring','triangle'])
    p.add_argument('--seeds', type=int, nargs='*', default=[1, 2, 3])
    p.add_argument('--nfes', type=int, nargs='*', default=[1, 2, 4, 10, 20, 50])
    p.add_argument('--names', nargs='*', choices=['VAE','GAN','student','diffusion'], help='which generators; all if not given')
    args = p.parse_args()
    torch.set_num_threads(1)
    if 'ring' in args.part: rings(args.seeds)
    if 'triangle' in args.part: triangle(args.seeds, args.nfes, args.names)
    report()
