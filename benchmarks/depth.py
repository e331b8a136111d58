"""Do more layers hurt? Plain nets of 8 and 28 convolutions, and 28 with shortcuts, trained to the end of a cycle, three seeds each.

Run: `python benchmarks/depth.py [--seeds 1 2 3] [--nets ...]`. Each run adds a line to `benchmarks/results/depth.jsonl`; runs that are there
already are left out, so that it can be stopped and started again. A run takes about a minute on two cores. Lesson 13 shows the results."""
import argparse,json,time,torch,torch.nn.functional as F
from functools import partial
from pathlib import Path
from torch import nn
from miniai.conv import conv,def_device
from miniai.data import get_data
from miniai.init import Normalize
from miniai.learner import DeviceCB,Learner,MetricsCB,TrainCB
from miniai.loaders import DataLoaders
from miniai.optim import BatchSchedCB,OneCycle
from miniai.resnet import ResBlock
from miniai.training import accuracy

out = Path(__file__).parent/'results/depth.jsonl'

def plain(ni, nf):
    "Two convolutions of stride 1, each with batch norm and ReLU: lesson 13."
    return nn.Sequential(*[conv(i, nf, stride=1, norm=nn.BatchNorm2d) for i in (ni, nf)])

def stack(n_blocks, block, nf=16):
    "A net of `2+2*n_blocks` convolutions: lesson 13."
    stem = conv(1, nf, 5, norm=nn.BatchNorm2d), conv(nf, nf, norm=nn.BatchNorm2d)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(nf, 10)
    return nn.Sequential(*stem, *[block(nf, nf) for _ in range(n_blocks)], *head)

nets = {'8, plain': (3, plain), '28, plain': (13, plain), '28, shortcuts': (13, ResBlock), '42, plain': (20, plain), '42, shortcuts': (20, ResBlock)}

def run(net, seed, n=10_000, n_epochs=10, bs=64, lr=3e-3):
    "Train one net; its loss and accuracy on the training images and its accuracy on the test images, in evaluation mode."
    data = get_data('fashion_mnist')
    norm = Normalize(data.x_train.float().mean(), data.x_train.float().std())
    torch.manual_seed(seed)
    train = data.x_train[:n],data.y_train[:n]
    dls = DataLoaders.from_tensors(train, (data.x_valid, data.y_valid), bs=bs, tfm=norm, generator=torch.Generator().manual_seed(seed), device=def_device)
    learn = Learner(stack(*nets[net]), dls, F.cross_entropy, lr, [DeviceCB(), TrainCB(), BatchSchedCB(partial(OneCycle, max_lr=lr))], torch.optim.Adam)
    start = time.perf_counter()
    learn.fit(n_epochs, valid=False)
    took = time.perf_counter()-start
    res = dict(net=net, seed=seed, images=n, epochs=n_epochs)
    for name,xy in dict(train=train, test=(data.x_valid, data.y_valid)).items():
        dls = DataLoaders.from_tensors(xy, xy, bs=bs, tfm=norm, device=def_device)
        judge = Learner(learn.model, dls, F.cross_entropy, cbs=[DeviceCB(), TrainCB(), MetricsCB(accuracy)])
        judge.log = lambda *args: None
        judge.fit(1, train=False)
        res |= {f'{name} loss': round(judge.history[-1]['valid_loss'], 4), f'{name} accuracy': round(judge.history[-1]['valid_accuracy'], 4)}
    return res | dict(minutes=round(took/60, 1))

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--seeds', type=int, nargs='+', default=[1, 2, 3])
    p.add_argument('--nets', nargs='+', default=list(nets)[:3])
    args = p.parse_args()
    for seed in args.seeds:
        for net in args.nets:
            done = [json.loads(o) for o in out.read_text().splitlines()] if out.exists() else []
            if any((o['net'], o['seed'])==(net, seed) for o in done): continue
            res = run(net, seed)
            print(res, flush=True)
            with out.open('a') as f: f.write(json.dumps(res)+'\n')
