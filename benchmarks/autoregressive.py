"""What lesson 37 measures with three seeds: knobs of the drawing, guidance, and the order of the pixels.

Run: `python benchmarks/autoregressive.py [--only order]`. Each run adds a line to `benchmarks/results/autoregressive.jsonl`; runs that are there already
are left out, so that it can be stopped and started again. A run takes some seconds of one core."""
import argparse,json
from functools import partial
from pathlib import Path
import torch
import torch.nn.functional as F
from torch.optim import AdamW
from miniai.autoregressive import ImageGPT,Palette,generate_tokens,load_pixels,next_token_loss,token_bits
from miniai.data import get_data
from miniai.fid import load_feature_net,precision_recall
from miniai.learner import Learner
from miniai.loaders import DataLoaders
from miniai.optim import BatchSchedCB,OneCycle
from miniai.resnet import AutocastCB

out = Path(__file__).parent/'results/autoregressive.jsonl'
n_images = 400
knobs = {'T = 1.2': dict(temperature=1.2), 'as it is': {}, 'T = 0.8': dict(temperature=.8), 'top-p, 0.95': dict(top_p=.95), 'top-p, 0.8': dict(top_p=.8)}
scales = {f'scale {s:g}': s for s in (1., 1.5, 2.5)}


def spiral(n):
    "Places of an n by n image from the centre outwards."
    y = x = (n-1)//2
    dy,dx,steps,seen = 0,1,1,[(y, x)]
    while len(seen)<n*n:
        for _ in range(2):
            for _ in range(steps):
                y,x = y+dy,x+dx
                if 0<=y<n and 0<=x<n: seen.append((y, x))
            dy,dx = dx,-dy
        steps += 1
    return torch.tensor([y*n+x for y,x in seen])


def orders(n):
    "Four orders of the pixels of an n by n image."
    rows = torch.arange(n*n)
    return {'row by row': rows, 'column by column': rows.view(n, n).T.flatten(), 'from the centre outwards': spiral(n),
            'at random': torch.randperm(n*n, generator=torch.Generator().manual_seed(0))}


def order_bits(t, tv, seed, bs=16, lr=3e-3):
    "Bits per pixel on the test set after one pass over the training tokens."
    torch.manual_seed(seed)
    net = ImageGPT(length=t.shape[1], n=64, n_heads=2, depth=3)
    dls = DataLoaders.from_tensors((t, t), (tv[:bs], tv[:bs]), bs=bs, drop_last=True, generator=torch.Generator().manual_seed(seed))
    Learner(net, dls, next_token_loss, lr, [AutocastCB(), BatchSchedCB(partial(OneCycle, max_lr=lr, pct_start=.1))], AdamW).fit(1, valid=False)
    return token_bits(net.eval(), tv).mean().item()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--only', help='sampling, guidance or order')
    args = p.parse_args()
    torch.set_num_threads(1)
    done = {(r['what'], r['setting'], r['seed']) for r in map(json.loads, out.read_text().splitlines())} if out.exists() else set()
    data,(gpt,palette),judge = get_data('fashion_mnist'),load_pixels(),load_feature_net()
    def small(x, k=2): return F.avg_pool2d(x.float()/127.5-1, k)
    def large(t): return F.interpolate(palette.from_tokens(t), scale_factor=2)
    def save(what, setting, seed, **numbers):
        with out.open('a') as f: f.write(json.dumps(dict(what=what, setting=setting, seed=seed, **{k: round(v, 4) for k,v in numbers.items()}))+'\n')
        print(what, setting, seed, numbers, flush=True)
    def wanted(what, setting, seed): return args.only in (None, what) and (what, setting, seed) not in done
    if args.only!='order':
        real = judge.features(large(palette.to_tokens(small(data.x_train[:5000]))))
        ruler = judge.against(real)
        held = palette.to_tokens(small(data.x_valid))
    def quality(x):
        f = ruler.features(x)
        precision,recall = precision_recall(f, real[:3000])
        return dict(FID=ruler.fid(f), precision=precision, recall=recall)
    for seed in range(3):
        if wanted('sampling', 'real test images', seed): save('sampling', 'real test images', seed, **quality(large(held[n_images*seed:n_images*(seed+1)])))
        for name,kw in knobs.items():
            if wanted('sampling', name, seed): save('sampling', name, seed, **quality(large(generate_tokens(gpt, n_images, seed=seed, **kw))))
        y = torch.arange(n_images)%10
        for name,s in scales.items():
            if not wanted('guidance', name, seed): continue
            x = large(generate_tokens(gpt, n_images, y, s, seed=seed))
            save('guidance', name, seed, right=(judge.classes(x)==y).float().mean().item(), **quality(x))
        if seed==0 and wanted('guidance', 'real test images', 0):
            x = large(held[:n_images])
            save('guidance', 'real test images', 0, right=(judge.classes(x)==data.y_valid[:n_images]).float().mean().item(), **quality(x))
        four = Palette(palette.levels)
        t,tv = four.to_tokens(small(data.x_train[:3200], 4)),four.to_tokens(small(data.x_valid[:1000], 4))
        for name,o in orders(7).items():
            if wanted('order', name, seed): save('order', name, seed, **{'bits per pixel': order_bits(t[:,o], tv[:,o], seed)})


if __name__=='__main__': main()
