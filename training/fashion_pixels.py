"The transformer of lesson 37 that writes garments pixel by pixel: 14 by 14 pixels in 16 levels of grey, with a class or without."
import torch
import torch.nn.functional as F
from functools import partial
from torch.optim import AdamW
from common import arguments,curve,info,little,train
from miniai.autoregressive import ImageGPT,Palette,next_token_loss
from miniai.clustering import kmeans
from miniai.data import get_data
from miniai.ddpm import EMACB,save_weights
from miniai.init import Normalize
from miniai.learner import Callback,CancelFit
from miniai.optim import BatchSchedCB,OneCycle
from miniai.resnet import AutocastCB

def small(x): # Bytes (n,1,28,28) -> floats (n,1,14,14) in [-1,1], each the mean of four pixels
    return F.avg_pool2d(Normalize(127.5, 127.5)(x)[0], 2)

def greys(x, k=16): # The levels of lesson 37: k-means on the pixels of 500 images, from dark to light
    return kmeans(x[:500].reshape(-1, 1), k, restarts=2, generator=torch.Generator().manual_seed(0))[0].sort(0)[0]

def batch(tokens, y): # Drops a class in ten
    return tokens,torch.where(torch.rand(len(y))<.1, 10, y),tokens

class StopCB(Callback):
    "Ends the training after so many batches, before its schedule does; the average of the weights is good by then."
    def __init__(self, ema, stop): self.ema,self.stop = ema,stop
    def after_batch(self, learn):
        if self.ema.n>=self.stop: raise CancelFit

def main():
    args = arguments('fashion_pixels', n_images=40_000, stop=1000, lr=3e-3)
    data,bs = get_data('fashion_mnist'),8 if args.few else 16
    x = small(data.x_train)
    palette = Palette(greys(x))
    rows = torch.arange(little(args, args.n_images))%len(x)
    tokens,config = palette.to_tokens(x)[rows],dict(n_tokens=16, length=196, n_cond=11, cond_length=1, n=64, n_heads=2, depth=4)
    torch.manual_seed(0)
    net,ema = ImageGPT(**config),EMACB(.998)
    cbs = [AutocastCB(n_inp=2), BatchSchedCB(partial(OneCycle, max_lr=args.lr, pct_start=.1)), ema, StopCB(ema, args.stop)]
    losses,minutes = train(args, 'all', net, (tokens, data.y_train[rows]), next_token_loss, args.lr, cbs, partial(AdamW, weight_decay=.05),
                           1, bs, 0, batch, every=100)
    save_weights(ema.model, args.folder/'fashion_pixels.safetensors', bits=8, config=config, levels=[round(o, 5) for o in palette.levels[:,0].tolist()],
                 notebook='37_autoregressive', data=f'{data.source}: fashion_mnist, 14 by 14 pixels in 16 levels', seed=0, images=len(losses)*bs,
                 minutes=minutes, curve=curve(losses, bs), **info(args))

if __name__=='__main__': main()
