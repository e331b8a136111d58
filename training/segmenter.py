"""The segmenter of lesson 41: a `PromptSegmenter` for drawn shapes, their parts, and emoji on photographs."""
import torch,zlib
from functools import partial
from torch.optim import AdamW
from common import arguments,curve,in_parts,info,little,train
from miniai.data import get_data
from miniai.ddpm import save_weights
from miniai.emoji import load_emoji
from miniai.optim import BatchSchedCB,OneCycle
from miniai.resnet import AutocastCB
from miniai.segmentation import ClickTraining,PromptSegmenter,mask_loss,paste_objects,pick_masks

def grounds():
    "Nine tenths of the emoji, by name, and the photographs of CIFAR-10; None where there is no data."
    emoji = load_emoji(n_drawn=1)
    if emoji.source=='drawn': return None,None
    return emoji.x[torch.tensor([zlib.crc32(o.encode())%10>0 for o in emoji.names])],get_data('cifar10').x_train

def main():
    args = arguments('segmenter', n=10_000, epochs=8)
    n,config,lr = little(args, args.n),dict(n=64, nfs=[16,32,64,80,80]),2e-3
    stickers,photos = (None,None) if args.few else grounds()
    data = in_parts(args, 'images', max(1, n//1000), lambda i: paste_objects(min(n, 1000), 41_000+i, stickers, photos)[:2])
    torch.manual_seed(0)
    net = PromptSegmenter(**config).to(memory_format=torch.channels_last)
    cbs,opt = [AutocastCB(n_inp=2), BatchSchedCB(partial(OneCycle, max_lr=lr, pct_start=.1))],partial(AdamW, weight_decay=1e-2)
    bs = 8 if args.few else 24
    losses,minutes = train(args, 'clicks', ClickTraining(net), data, mask_loss, lr, cbs, opt, args.epochs, bs, 0, pick_masks)
    save_weights(net.eval(), args.folder/f'{args.name}.safetensors', bits=8, config=config, notebook='41_segmentation',
                 data=f'{n:,} images of drawn shapes, and of emoji on photographs',
                 seed=0, images=bs*len(losses), minutes=minutes, curve=curve(losses, bs), **info(args))

if __name__=='__main__': main()
