"""The comparisons of lesson 38: transformers and a convolutional net on 1%, 10% and 100% of the data, DINO with a part left out, and a step beside that of transformers' ViT.

Run: `python benchmarks/vit.py fractions`, `... collapse`, `... step`. A run of the first two adds a line to `benchmarks/results/vit.jsonl`, and runs that are
there already are left out, so that it can be stopped and started again. The third writes `benchmarks/results/vit.md`. Lesson 38 shows the results."""
import argparse,json,time
import torch,torch.nn.functional as F
from functools import partial
from pathlib import Path
from torch.optim import AdamW
from miniai.augment import Augment,random_crop,random_flip
from miniai.data import get_data
from miniai.emoji import on_background
from miniai.init import BatchTransformCB,Normalize
from miniai.learner import Learner
from miniai.loaders import DataLoaders
from miniai.optim import BatchSchedCB,OneCycle,RecorderCB
from miniai.resnet import AutocastCB,resnet
from miniai.vit import CompactTransformer,DINO,TeacherCB,ViT,conv_stem,draw_stickers,knn_predict,multi_crop
from common import compare,write
out = Path(__file__).parent/'results/vit.jsonl'
# fraction of the training images -> epochs
epochs = {.01: 20, .1: 4, 1.: 1}
small = dict(size=32, patch=8, n=64, depth=4, n_heads=4, mult=2, n_out=10)
nets = {'ViT': lambda ni: ViT(ni=ni, **small), 'compact transformer': lambda ni: CompactTransformer(ni=ni, **small),
        'compact transformer, augmented': lambda ni: CompactTransformer(ni=ni, **small),
        'convolutional net': lambda ni: resnet((16,32,64,64), ni, 10, stem_ks=3, stem_stride=2)}


def stored():
    "The runs that are there."
    return [json.loads(o) for o in out.read_text().splitlines()] if out.exists() else []


def add(row):
    print(row, flush=True)
    with out.open('a') as f: f.write(json.dumps(row)+'\n')


def images(name):
    "`((x, y), (x_valid, y_valid))` at 32 pixels, floats of mean 0 and deviation 1; 5,000 of the test images."
    data = get_data(name)
    norm = Normalize(data.x_train.float().mean().item(), data.x_train.float().std().item())
    pad = (32-data.x_train.shape[3])//2
    def ready(x): return F.pad(norm(x)[0], (pad,)*4, mode='replicate') if pad else norm(x)[0]
    return (data.x_train,data.y_train),(ready(data.x_valid[:5000]),data.y_valid[:5000]),ready


def fit(net, x, y, n_epochs, seed, augmented, bs=64, lr=2e-3):
    "Train `net`; its CPU seconds."
    torch.manual_seed(seed)
    dls = DataLoaders.from_tensors((x, y), (x[:bs], y[:bs]), bs=bs, drop_last=True, generator=torch.Generator().manual_seed(seed))
    cbs = [AutocastCB(), BatchSchedCB(partial(OneCycle, max_lr=lr))]
    if augmented: cbs.insert(0, BatchTransformCB(Augment(partial(random_crop, pad=4), random_flip)))
    start = time.process_time()
    Learner(net, dls, F.cross_entropy, lr, cbs, partial(AdamW, weight_decay=.05)).fit(n_epochs, valid=False)
    return time.process_time()-start


def fractions(names=('cifar10','fashion_mnist'), seeds=(1,2,3), amounts=tuple(epochs)):
    for name in names:
        (x,y),(xv,yv),ready = images(name)
        for seed in seeds:
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
            for f in amounts:
                rows = order[:round(f*len(x))]
                for kind,make in nets.items():
                    row = dict(part='fractions', data=name, net=kind, fraction=f, seed=seed)
                    if any(all(o.get(k)==v for k,v in row.items()) for o in stored()): continue
                    torch.manual_seed(seed)
                    net = make(x.shape[1])
                    secs = fit(net, ready(x[rows]), y[rows], epochs[f], seed, 'augmented' in kind)
                    net.eval()
                    with torch.no_grad(): right = torch.cat([net(o).argmax(1) for o in xv.split(500)])==yv
                    add(row | dict(epochs=epochs[f], parameters=sum(p.numel() for p in net.parameters()), accuracy=round(right.float().mean().item(), 4),
                                   seconds=round(secs, 1)))


ways = {'whole': {}, 'no centring': dict(centre=1.), 'no sharpening': dict(t_teacher=.1)}


def on_grounds(x, seed, size=24):
    "Stickers, each on a ground of its own, floats in [-1,1]."
    ground = (torch.rand(len(x), 3, 1, 1, generator=torch.Generator().manual_seed(seed))*255).byte()
    x = on_background(x, ground.expand(-1, 3, *x.shape[2:])).float()/127.5-1
    return F.interpolate(x, (size,size), mode='bilinear', antialias=True)


def collapse(seeds=(1,2,3), n_epochs=2, bs=32):
    (x,_,colours),(asked,_,wanted) = draw_stickers(1600, 0),draw_stickers(1000, 2)
    known,asked = on_grounds(x, 1),on_grounds(asked, 2)
    for seed in seeds:
        for way,change in ways.items():
            row = dict(part='collapse', way=way, seed=seed)
            if any(all(o.get(k)==v for k,v in row.items()) for o in stored()): continue
            torch.manual_seed(seed)
            dino = DINO(ViT(24, n=64, depth=2, n_heads=4, mult=2, stem=conv_stem), 64, 64, t_teacher=change.get('t_teacher', .04))
            dls = DataLoaders.from_tensors((x,), (x[:bs],), bs=bs, drop_last=True, tfm=multi_crop, generator=torch.Generator().manual_seed(seed))
            def entropy(learn):
                p = learn.model.targets(learn.preds[1])
                return -(p*p.clamp(min=1e-9).log()).sum(1).mean()
            rec = RecorderCB(entropy=entropy)
            start = time.process_time()
            Learner(dino, dls, dino.loss, 1e-3, [AutocastCB(n_inp=2), TeacherCB(.97, change.get('centre', .9)), rec], AdamW).fit(n_epochs, valid=False)
            secs,net = time.process_time()-start,dino.teacher[0].eval()
            with torch.no_grad(): a,b = net(known),net(asked)
            right = (knn_predict(a-a.mean(0), colours, b-a.mean(0))==wanted).float().mean().item()
            curve = [round(o, 3) for o in rec.numbers('entropy')[::5].tolist()]
            add(row | dict(knn=round(right, 4), entropy=curve, seconds=round(secs, 1)))


def step(rounds=5, bs=4):
    from transformers import ViTConfig,ViTForImageClassification
    theirs = ViTForImageClassification(ViTConfig(hidden_size=192, num_hidden_layers=6, num_attention_heads=3, intermediate_size=768, num_labels=10)).train()
    ours = ViT(224, 16, n=192, depth=6, n_heads=3, n_out=10, eps=1e-12)
    x,y = torch.randn(bs, 3, 224, 224),torch.arange(bs)
    def one(net, call):
        opt = AdamW(net.parameters(), lr=1e-4)
        def f():
            opt.zero_grad()
            F.cross_entropy(call(net), y).backward()
            opt.step()
        return f
    fns = {'transformers': one(theirs, lambda m: m(x).logits), 'miniai': one(ours, lambda m: m(x))}
    rows = compare('training step, 224 pixels, 6 blocks of 192', fns, rounds)
    write('vit', [dict(what=r['name'], program=r['label'], seconds=f"{r['median']:.3f}", range=f"{r['lo']:.3f} to {r['hi']:.3f}",
                       time=f"{1/r['ratio']:.2f}") for r in rows], 'A training step of a vision transformer', ('torch','transformers'),
          ['`time` is relative to transformers: the median over the rounds.'])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('part', choices=['fractions','collapse','step'])
    p.add_argument('--data', nargs='*', default=['cifar10','fashion_mnist'])
    p.add_argument('--seeds', nargs='*', type=int, default=[1,2,3])
    p.add_argument('--amounts', nargs='*', type=float, default=list(epochs))
    args = p.parse_args()
    torch.set_num_threads(1)
    if args.part=='fractions': fractions(args.data, args.seeds, args.amounts)
    elif args.part=='collapse': collapse(args.seeds)
    else: step()


if __name__=='__main__': main()
