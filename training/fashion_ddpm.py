"The denoiser of lesson 15: a `SmallUNet` that predicts the noise on Fashion-MNIST, averaged over its training."
import torch.nn.functional as F
from functools import partial
from torch.optim import AdamW
from common import arguments,curve,info,little,train
from miniai.data import get_data
from miniai.ddpm import DDPMCB,EMACB,SmallUNet,linear_schedule,save_weights
from miniai.init import Normalize
from miniai.optim import BatchSchedCB,OneCycle
from miniai.resnet import AutocastCB
import torch

def main():
    args = arguments('fashion_ddpm', epochs=32)
    data,bs,lr = get_data('fashion_mnist'),128,2e-3
    if args.few: bs = 8
    x,norm = data.x_train[:little(args, len(data.x_train))],Normalize(127.5, 127.5)
    torch.manual_seed(0)
    config = dict(nfs=[64,96,128], patch=2)
    net,ema = SmallUNet(**config).to(memory_format=torch.channels_last),EMACB(.9995)
    cbs = [DDPMCB(linear_schedule()), AutocastCB(n_inp=2), BatchSchedCB(partial(OneCycle, max_lr=lr, pct_start=.05)), ema]
    losses,minutes = train(args, 'all', net, (x,), F.mse_loss, lr, cbs, AdamW, args.epochs, bs, 0, norm)
    save_weights(ema.model, args.folder/'fashion_ddpm.safetensors', config=config, notebook='15_ddpm', data=f'{data.source}: fashion_mnist',
                 seed=0, pictures=len(losses)*bs, minutes=minutes, curve=curve(losses, bs), **info(args))

if __name__=='__main__': main()
