"""The garments of lesson 31 in one, two or four network evaluations: a copy of `fashion_unet` learns to jump along the paths of its teacher.

First the paths, from noise by twelve evaluations of DPM-Solver++(2M); then the jumps. Stored is the change of the weights, in low rank."""
import copy,torch
import torch.nn.functional as F
from functools import partial
from common import LowRank,arguments,curve,in_parts,info,train
from miniai.ddpm import EMACB,save_weights
from miniai.distill import Change,JumpCB,plan_jumps,trajectories
from miniai.accel import ClipCB
from miniai.karras import karras_sigmas
from miniai.optim import AdamW,BatchSchedCB,OneCycle
from miniai.resnet import AutocastCB,autocast
from miniai.unet import load_unet

plans = {4: (80., 4, 6, 8), 2: (50., 7), 1: (30.,)}

def main():
    args = arguments('fashion_few', n_parts=8, epochs=3, epochs_low=1, bs=64, lr=5e-4, rank=20)
    size,bs = (64, 8) if args.few else (1024, args.bs)
    teacher,sigmas = load_unet(),karras_sigmas(12, .02, 80.)
    def paths(i):
        gen = torch.Generator().manual_seed(10**6+i)          # far from the seeds that are measured
        x = torch.randn(size, 1, 28, 28, generator=gen)*80
        with autocast('cpu'):
            parts = [trajectories(teacher, o.to(memory_format=torch.channels_last), sigmas) for o in x.split(128)]
        return torch.cat(parts),
    states, = in_parts(args, 'paths', 1 if args.few else args.n_parts, paths)
    jumps,levels = plan_jumps(sigmas, plans)
    net = copy.deepcopy(teacher.model).train().requires_grad_(True)
    def stage(name, net, lr, epochs, seed):
        ema = EMACB(.995 if name=='jumps' else .98)
        cbs = [JumpCB(sigmas, jumps, teacher.sigma_data), AutocastCB(n_inp=2), ClipCB(1.),
               BatchSchedCB(partial(OneCycle, max_lr=lr, pct_start=.05, base_momentum=None)), ema]
        return ema,*train(args, name, net, (states,), F.mse_loss, lr, cbs, AdamW, epochs, bs, seed)
    ema,losses,minutes = stage('jumps', net, args.lr, args.epochs, 0)
    change = Change.between(teacher.model.state_dict(), ema.model.state_dict(), args.rank)
    # what the cut has lost, the factors learn again
    ema,more,minutes_low = stage('factors', LowRank(teacher.model, change.w), .6*args.lr, args.epochs_low, 1)
    change,losses,minutes = Change(ema.model.tensors()),torch.cat([losses, more]),round(minutes+minutes_low, 1)
    save_weights(change, args.folder/'fashion_few.safetensors', bits=8, rank=args.rank, teacher='fashion_unet', levels={k: v.tolist() for k,v in levels.items()},
                 notebook='31_few_steps', data=f'{len(states):,} paths of fashion_unet, 12 evaluations each', seed=0, images=len(losses)*bs,
                 minutes=minutes, curve=curve(losses, bs), **info(args))

if __name__=='__main__': main()
