"""The denoiser of lesson 21: a `UNet` with the preconditioning of lesson 20 on Fashion-MNIST, averaged over its training.

`--net diffusers` trains the `UNet2DModel` of diffusers in the same layout on the same batches; its weights stay in the folder of the checkpoints.
`--start FILE` begins with the weights of an earlier run of this script; `--mean` and `--std` are those of the logarithm of the noise levels."""
import torch
import torch.nn.functional as F
from functools import partial
from torch import nn
from torch.optim import AdamW
from common import arguments,curve,info,little,train
from miniai.data import get_data
from miniai.ddpm import EMACB,load_weights,save_weights
from miniai.init import Normalize
from miniai.karras import KarrasCB
from miniai.optim import BatchSchedCB,OneCycle
from miniai.resnet import AutocastCB
from miniai.unet import UNet

class Diffusers(nn.Module):
    "diffusers' `UNet2DModel`, with our noise levels as its times 0 to 1000 and squares of pixels as channels."
    def __init__(self, nfs, groups, patch):
        from diffusers import UNet2DModel
        super().__init__()
        n,self.patch = len(nfs),patch
        self.net = UNet2DModel(None, patch**2, patch**2, block_out_channels=nfs, layers_per_block=1, norm_num_groups=groups, resnet_time_scale_shift='scale_shift',
                               down_block_types=['DownBlock2D']*n, up_block_types=['UpBlock2D']*n, add_attention=False)
    def forward(self, x, c):
        x = F.pad(x, (2, 2, 2, 2), mode='reflect')       # 32 pixels, which can be halved three times
        y = self.net(F.pixel_unshuffle(x, self.patch), (c+1.6)*1000/2.7, return_dict=False)[0]
        return F.pixel_shuffle(y, self.patch)[...,2:-2,2:-2]

def make(net, nfs, groups, patch):
    "Our net, or that of diffusers."
    if net=='diffusers': return Diffusers(nfs, groups, patch)
    return UNet(nfs, norm=partial(nn.GroupNorm, groups), patch=patch)

def main():
    args = arguments('fashion_unet', net='miniai', start='', epochs=20, mean=-1.2, std=1.2)
    data,bs,lr = get_data('fashion_mnist'),128,1e-3
    if args.few: bs = 8
    x,norm = data.x_train[:little(args, len(data.x_train))],Normalize(127.5, 127.5)
    config,sigma_data = dict(nfs=[64,96,128], groups=8, patch=2),round(norm(x)[0].std().item(), 4)
    torch.manual_seed(0)
    net,ema = make(args.net, **config).to(memory_format=torch.channels_last),EMACB(.9995)
    before = dict(images=0, minutes=0, runs=[]) | (load_weights(args.start, net)[1] if args.start else {})
    cbs = [KarrasCB(sigma_data, args.mean, args.std), AutocastCB(n_inp=2), BatchSchedCB(partial(OneCycle, max_lr=lr, pct_start=.05)), ema]
    losses,minutes = train(args, args.net, net, (x,), F.mse_loss, lr, cbs, AdamW, args.epochs, bs, 0, norm)
    name = args.name if args.net=='miniai' else f'{args.name}_{args.net}'
    made = info(args, images=len(losses)*bs+before['images'], minutes=round(minutes+before['minutes'], 1))
    runs = before['runs']+[dict(command=made['command'], curve=curve(losses, bs))]
    save_weights(ema.model, args.folder/f'{name}.safetensors', config=config, sigma_data=sigma_data, notebook='21_unet',
                 data=f'{data.source}: fashion_mnist', seed=0, runs=runs, **made)

if __name__=='__main__': main()
