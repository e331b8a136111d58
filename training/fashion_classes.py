"""The garments of lesson 24 by class: `fashion_unet` with a table of classes, trained on with images and their labels.

Stored is the change of the weights, in low rank, and the table. `--mean` and `--std` are those of the logarithm of the noise levels."""
import torch
import torch.nn.functional as F
from functools import partial
from torch import nn
from torch.optim import AdamW
from common import LowRank,arguments,curve,info,little,train
from miniai.data import get_data
from miniai.ddpm import EMACB,load_weights,save_weights
from miniai.distill import Change
from miniai.guidance import ClassUNet,CondCB
from miniai.init import Normalize
from miniai.karras import KarrasCB
from miniai.optim import BatchSchedCB,OneCycle
from miniai.resnet import AutocastCB

def main():
    args = arguments('fashion_classes', epochs=8, epochs_low=1, mean=-.6, std=1.4, lr=4e-4, rank=20)
    data,bs,(w,teacher) = get_data('fashion_mnist'),8 if args.few else 128,load_weights('fashion_unet')
    x,y = (o[:little(args, len(o))] for o in (data.x_train, data.y_train))
    norm,config = Normalize(127.5, 127.5),teacher['config']
    torch.manual_seed(0)
    net = ClassUNet(config['nfs'], norm=partial(nn.GroupNorm, config['groups']), patch=config['patch'], n_classes=len(data.names))
    net.load_state_dict(w, strict=False)
    net = net.to(memory_format=torch.channels_last)
    before = {k: v.clone() for k,v in net.state_dict().items()}
    def prepare(x, y): return *norm(x),y
    def stage(name, net, table, lr, epochs, seed):
        def two_rates(params, lr):
            "The table has everything to learn, the weights know garments."
            return AdamW([dict(params=[p for p in params if p is table]), dict(params=[p for p in params if p is not table])], lr=lr)
        ema,task = EMACB(.9995 if name=='classes' else .998),KarrasCB(teacher['sigma_data'], args.mean, args.std)
        cbs = [CondCB(task, empty=len(data.names)), AutocastCB(n_inp=3), BatchSchedCB(partial(OneCycle, max_lr=[30*lr, lr], pct_start=.05)), ema]
        return ema,*train(args, name, net, (x, y), F.mse_loss, lr, cbs, two_rates, epochs, bs, seed, prepare)
    ema,losses,minutes = stage('classes', net, net.classes.weight, args.lr, args.epochs, 0)
    change = Change.between(before, ema.model.state_dict(), args.rank)
    net.load_state_dict(before)
    low = LowRank(net, change.w)                             # what the cut has lost, the factors learn again
    table = next(v for k,v in low.change.items() if k.startswith('classes'))
    ema,more,minutes_low = stage('factors', low, table, .3*args.lr, args.epochs_low, 1)
    losses = torch.cat([losses, more])
    save_weights(Change(ema.model.tensors()), args.folder/f'{args.name}.safetensors', bits=8, rank=args.rank, teacher='fashion_unet',
                 n_classes=len(data.names), notebook='24_guidance', data=f'{data.source}: fashion_mnist', seed=0, images=len(losses)*bs,
                 minutes=round(minutes+minutes_low, 1), curve=curve(losses, bs), **info(args))

if __name__=='__main__': main()
