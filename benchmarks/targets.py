"""Four targets, one start: the network of lesson 15, fine-tuned to predict the noise, the image, the velocity or the flow.

Run: `python benchmarks/targets.py [--seeds 1 2 3] [--targets noise ...] [--images 5120]`. Each run adds a line to `benchmarks/results/targets.jsonl`;
runs that are there already are left out, so that it can be stopped and started again. A run takes about a minute on two cores. Lesson 19 shows the results."""
import argparse,copy,json,time,torch,torch.nn.functional as F
from functools import partial
from pathlib import Path
from torch import optim
from miniai.conv import def_device
from miniai.data import get_data
from miniai.ddim import sample_ddim
from miniai.ddpm import DDPMCB,EMACB,EpsDenoiser,eps_target,generate,linear_schedule,load_denoiser
from miniai.fid import load_feature_net
from miniai.init import Normalize
from miniai.learner import DeviceCB,Learner
from miniai.loaders import BatchLoader,DataLoaders
from miniai.optim import BatchSchedCB,OneCycle
from miniai.resnet import AutocastCB,autocast
from miniai.schedules import ContinuousSchedule,FlowCB,FlowDenoiser,VDenoiser,X0Denoiser,cosine_abar,flow_abar,v_target,x0_target

out = Path(__file__).parent/'results/targets.jsonl'
cosine,line = ContinuousSchedule(cosine_abar),ContinuousSchedule(flow_abar, (.005, .99))
# The image is too far from the noise for the old last layer: it begins with zeros, and with larger steps
tasks = {'noise': (DDPMCB(cosine, eps_target), EpsDenoiser, {}), 'image': (DDPMCB(cosine, x0_target), X0Denoiser, dict(lr=3e-3, new_head=True)),
         'velocity': (DDPMCB(cosine, v_target), VDenoiser, {}), 'flow': (FlowCB(), FlowDenoiser, {})}

def tune(cb, x, seed, bs=32, lr=1e-3, new_head=False):
    "The stored network after a short training on the task `cb`, its weights averaged: lesson 19."
    torch.manual_seed(seed)
    dl = BatchLoader(x, bs=bs, shuffle=True, tfm=Normalize(127.5, 127.5))
    ema = EMACB(.98)
    net = copy.deepcopy(load_denoiser().model).requires_grad_(True)
    if new_head:
        for p in net.head.parameters(): torch.nn.init.zeros_(p)
    cbs = [DeviceCB(torch.device(def_device)), AutocastCB(n_inp=2), cb, BatchSchedCB(partial(OneCycle, max_lr=lr, pct_start=.1)), ema]
    Learner(net, DataLoaders(dl, None), F.mse_loss, lr, cbs, partial(optim.AdamW, betas=(.9, .99))).fit(valid=False)
    return ema.model

def fid_of(denoise, sigmas, n):
    "FID of `n` images in the steps of DDIM along `sigmas`."
    with autocast():
        x = generate(denoise, sigmas, n, sampler=sample_ddim, seed=10_000, device=def_device)
    return round(load_feature_net().fid(x), 3)

def run(target, seed, images, n=1024):
    "Fine-tune to one target; FID with 20 steps of DDIM along the times of the line."
    start = time.perf_counter()
    if target=='stored':
        denoise,levels = load_denoiser(),linear_schedule().sigmas(20)
        denoise.model.to(def_device)
    else:
        cb,wrap,kw = tasks[target]
        denoise,levels = wrap(tune(cb, get_data('fashion_mnist').x_train[:images], seed, **kw)),line.sigmas(20)
    took = time.perf_counter()-start
    return dict(target=target, seed=seed, images=images, drawn=n, FID=fid_of(denoise, levels, n), seconds=round(took))

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--seeds', type=int, nargs='+', default=[1, 2, 3])
    p.add_argument('--targets', nargs='+', default=list(tasks))
    p.add_argument('--images', type=int, default=5120)
    args = p.parse_args()
    for seed in args.seeds:
        for target in args.targets:
            done = [json.loads(o) for o in out.read_text().splitlines()] if out.exists() else []
            if any((o['target'], o['seed'], o['images'])==(target, seed, args.images) for o in done): continue
            res = run(target, seed, args.images)
            with out.open('a') as f: f.write(json.dumps(res)+'\n')
            print(res, flush=True)
