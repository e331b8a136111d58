"""The segmenter of lesson 41: a `PromptSegmenter` for drawn shapes, their parts, and emoji on photographs.
`--start FILE` goes on with the weights of an earlier run."""
import torch,zlib
from functools import partial
from torch.optim import AdamW
from common import arguments,curve,in_parts,info,little,train
from miniai.data import get_data
from miniai.ddpm import load_weights,save_weights
from miniai.emoji import load_emoji
from miniai.optim import BatchSchedCB,OneCycle
from miniai.resnet import AutocastCB
from miniai.segmentation import ClickTraining,PromptSegmenter,mask_loss,masked_objects,pick_masks

def grounds():
    "Nine tenths of the emoji, by name, and the photographs of CIFAR-10; None where there is no data."
    emoji = load_emoji(n_drawn=1)
    if emoji.source=='drawn': return None,None
    return emoji.x[torch.tensor([zlib.crc32(o.encode())%10>0 for o in emoji.names])],get_data('cifar10').x_train

def main():
    args = arguments('segmenter', n=10_000, epochs=8, lr=2e-3, seed=0, start='')
    n,config = little(args, args.n),dict(n=64, nfs=[16,32,64,80,80])
    stickers,photos = (None,None) if args.few else grounds()
    data = in_parts(args, 'images', max(1, n//1000), lambda i: masked_objects(min(n, 1000), 41_000+i, stickers, photos)[:2])
    torch.manual_seed(args.seed)
    net = PromptSegmenter(**config).to(memory_format=torch.channels_last)
    before = dict(images=0, minutes=0, runs=[]) | (load_weights(args.start, net)[1] if args.start else {})
    cbs,opt = [AutocastCB(n_inp=2), BatchSchedCB(partial(OneCycle, max_lr=args.lr, pct_start=.1))],partial(AdamW, weight_decay=1e-2)
    bs = 8 if args.few else 24
    losses,minutes = train(args, 'clicks', ClickTraining(net), data, mask_loss, args.lr, cbs, opt, args.epochs, bs, args.seed, pick_masks)
    made = info(args, images=bs*len(losses)+before['images'], minutes=round(minutes+before['minutes'], 1))
    runs = before['runs']+[dict(command=made['command'], curve=curve(losses, bs))]
    save_weights(net.eval(), args.folder/f'{args.name}.safetensors', bits=8, config=config, notebook='41_segmentation',
                 data=f'{n:,} images of drawn shapes, and of emoji on photographs', runs=runs, **made)

if __name__=='__main__': main()
