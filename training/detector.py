"""The detector of lesson 40: a `DETR` for drawn shapes that cover each other.

`--net dense` trains the lesson's `DenseDetector` on the same batches instead, for benchmarks/detection.py; its weights stay in the folder of
the checkpoints."""
import torch
from functools import partial
from torch.optim import AdamW
from common import arguments,curve,in_parts,info,little,train
from miniai.ddpm import save_weights
from miniai.detection import DETR,DenseDetector,dense_loss,draw_objects,set_loss
from miniai.optim import BatchSchedCB,OneCycle
from miniai.resnet import AutocastCB

def flipped(x, boxes, labels):
    "Floats in [-1,1], half of them mirrored from left to right, boxes with them; colours in any order."
    x,k = x[:,torch.randperm(3)].float()/127.5-1,torch.rand(len(x))<.5
    x[k],other = x[k].flip(3),boxes[...,[2,1,0,3]]*boxes.new_tensor([-1,1,-1,1])+boxes.new_tensor([1,0,1,0])
    return x,other.where(k[:,None,None], boxes),labels

def main():
    args = arguments('detector', net='detr', n=40_000, epochs=10)
    n,dense = little(args, args.n),args.net=='dense'
    config,lr = (dict(nfs=[32,64,96]),2e-3) if dense else (dict(n=96, n_enc=1, n_dec=3, n_queries=8, nfs=[32,64,96,96]),1e-3)
    data = in_parts(args, 'objects', max(1, n//2000), lambda i: draw_objects(min(n, 2000), seed=40_000+i))
    torch.manual_seed(0)
    net = (DenseDetector if dense else DETR)(**config).to(memory_format=torch.channels_last)
    cbs,opt = [AutocastCB(), BatchSchedCB(partial(OneCycle, max_lr=lr, pct_start=.1))],partial(AdamW, weight_decay=1e-4)
    bs = 8 if args.few else 64
    losses,minutes = train(args, args.net, net, data, dense_loss if dense else set_loss, lr, cbs, opt, args.epochs, bs, 0, flipped)
    name = f'{args.name}_dense' if dense else args.name
    save_weights(net.eval(), args.folder/f'{name}.safetensors', bits=8, config=config, notebook='40_detection',
                 data=f'{n:,} drawn images of up to four shapes',
                 seed=0, images=bs*len(losses), minutes=minutes, curve=curve(losses, bs), **info(args))

if __name__=='__main__': main()
