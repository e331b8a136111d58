"""The scenes of lesson 31 in one, two or four network evaluations: a copy of `scene_unet` learns to jump along the *guided* paths of its teacher,
so that neither steps nor a second prediction are needed.

First the paths, from noise by twelve guided evaluations of DPM-Solver++(2M); then the jumps. Stored is the change of the weights, in low rank."""
import copy,torch
import torch.nn.functional as F
from functools import partial
from torch.optim import AdamW
from common import LowRank,arguments,curve,in_parts,info,train
from miniai.accel import ClipCB
from miniai.data import SEEN,random_scenes
from miniai.ddpm import EMACB,save_weights
from miniai.distill import Change,JumpCB,plan_jumps,trajectories
from miniai.guidance import GuidedDenoiser
from miniai.karras import KarrasDenoiser,karras_sigmas
from miniai.latents import LatentDiffusion,caption_variants,load_text,load_text_unet,text_states
from miniai.optim import BatchSchedCB,OneCycle
from miniai.resnet import AutocastCB,autocast

plans = {4: (40., 3, 5, 7), 2: (28., 6), 1: (20.,)}

def main():
    args = arguments('scene_few', n_parts=4, guidance=2., epochs=4, epochs_low=0, bs=64, lr=5e-4, rank=13)
    size,bs = (64, 8) if args.few else (1024, args.bs)
    (tok,text),teacher,sigmas = load_text(),load_text_unet(),karras_sigmas(12, .02, 20.)
    empty = text_states('', tok, text)
    def paths(i):
        gen,two = torch.Generator().manual_seed(2*10**6+i),round(.65*size)
        scenes = random_scenes(two, 10**5+i, SEEN, (True,))+random_scenes(size-two, 2*10**5+i, SEEN, (False,))
        ids = caption_variants(scenes, tok, 1, seed=10**4+i, rephrased=4)
        ids = ids[torch.arange(size),torch.randint(ids.shape[1], (size,), generator=gen)]
        x,states = torch.randn(size, 8, 8, 8, generator=gen)*20,[]
        with autocast('cpu'), torch.no_grad():
            for a,b in zip(x.split(128), ids.split(128)):
                guided = GuidedDenoiser(KarrasDenoiser(teacher, 1.), text(b).float(), empty, args.guidance)
                states.append(trajectories(guided, a, sigmas))
        return torch.cat(states),ids
    states,ids = in_parts(args, 'paths', 1 if args.few else args.n_parts, paths)
    jumps,levels = plan_jumps(sigmas, plans)
    text.requires_grad_(False)
    def stage(name, net, lr, epochs, seed):
        ema = EMACB(.995 if name=='jumps' else .98)
        cbs = [JumpCB(sigmas, jumps, 1.), AutocastCB(n_inp=3), ClipCB(1.),
               BatchSchedCB(partial(OneCycle, max_lr=lr, pct_start=.05, base_momentum=None)), ema]
        opt = partial(AdamW, betas=(.9, .99))
        return ema,*train(args, name, LatentDiffusion(net, text), (states, ids), F.mse_loss, lr, cbs, opt, epochs, bs, seed)
    ema,losses,minutes = stage('jumps', copy.deepcopy(teacher).train().requires_grad_(True), args.lr, args.epochs, 0)
    change = Change.between(teacher.state_dict(), ema.model.unet.state_dict(), args.rank)
    if args.epochs_low:                                       # what the cut has lost, the factors can learn again
        ema,more,minutes_low = stage('factors', LowRank(teacher, change.w), args.lr, args.epochs_low, 1)
        change,losses,minutes = Change(ema.model.unet.tensors()),torch.cat([losses, more]),round(minutes+minutes_low, 1)
    save_weights(change, args.folder/'scene_few.safetensors', bits=8, rank=args.rank, teacher='scene_unet', levels={k: v.tolist() for k,v in levels.items()},
                 notebook='31_few_steps', data=f'{len(states):,} guided paths of scene_unet, 12 steps each', seed=0, images=len(losses)*bs,
                 minutes=minutes, curve=curve(losses, bs), **info(args))

if __name__=='__main__': main()
