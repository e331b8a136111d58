"The judge of emoji: the same thing in two styles is a pair; a second small net tells the styles. One name in twenty is kept from both, to see what they make of those."
import torch,torch.nn.functional as F
from functools import partial
from torch.optim import AdamW
from common import arguments,curve,info,little,train
from miniai.augment import random_crop,random_flip
from miniai.clip import clip_loss
from miniai.ddpm import save_weights
from miniai.emoji import EMOJI_STYLES,load_emoji,on_background
from miniai.init import Normalize
from miniai.judges import EmojiJudge
from miniai.optim import BatchSchedCB,OneCycle
from miniai.resnet import AutocastCB

to_float = Normalize(127.5, 127.5)

def moved(x):
    "Each image turned by up to 8 degrees, scaled by up to a seventh and moved by up to 4 pixels; white comes in from outside."
    n = len(x)
    def rand(most): return (2*torch.rand(n)-1)*most
    angle,scale = rand(.14),1+rand(.14)
    c,s = angle.cos()*scale,angle.sin()*scale
    grid = torch.stack([torch.stack([c, -s, rand(.125)], 1), torch.stack([s, c, rand(.125)], 1)], 1)
    return 1-F.grid_sample(1-x, F.affine_grid(grid, list(x.shape), align_corners=False), align_corners=False)

def worn(x, blur=1., noise=.15, shade=.1):
    "Half of the images a little blurred, half a little noisy, all a little lighter or darker."
    def rand(): return torch.rand(len(x), 1, 1, 1)
    soft = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode='bilinear')
    x = x.lerp(soft, blur*(2*rand()-1).clamp(min=0))
    x = x + noise*(2*rand()-1).clamp(min=0)*torch.randn_like(x)
    return x*(1-shade*rand()) + shade*(rand()-.5)

def groups(emoji):
    "Rows of images by name: `{name: indices}`."
    res = {}
    for i,o in enumerate(emoji.names): res.setdefault(o, []).append(i)
    return res

def keep_out(names):
    "One name in twenty, at random."
    gen = torch.Generator().manual_seed(5)
    return {names[i] for i in torch.randperm(len(names), generator=gen)[:len(names)//20]}

def style_labels(emoji):
    "A number for the style of each row; drawn scenes have none, so any number stands in."
    known = list(EMOJI_STYLES)
    return torch.tensor([known.index(o) if o in known else i%len(known) for i,o in enumerate(emoji.styles)])

def main():
    args = arguments('emoji_judge', epochs=45, style_epochs=40)
    emoji = load_emoji(n_drawn=400)
    x,styles,by_name = on_background(emoji.x),style_labels(emoji),groups(emoji)
    out = keep_out(sorted(by_name))
    three = torch.tensor([(v*3)[:3] for k,v in by_name.items() if k not in out])[:little(args, len(by_name))]
    torch.manual_seed(0)
    config,lr,bs = dict(nfs=[16,32,64,96], n_out=128, style_nfs=[16,32,64]),4e-3,8 if args.few else 128
    net = EmojiJudge(**config).to(memory_format=torch.channels_last)
    def fit(stage, part, tensors, loss, epochs, tfm):
        cbs,opt = [AutocastCB(), BatchSchedCB(partial(OneCycle, max_lr=lr))],partial(AdamW, weight_decay=.05)
        return train(args, stage, part, tensors, loss, lr, cbs, opt, epochs, bs, 0, tfm)
    def one(rows):
        "Images and the numbers of their styles; mirrored, moved and spoiled, but only a little: styles are fine detail."
        return worn(random_crop(random_flip(to_float(x[rows])[0]), 4), .5, .06),styles[rows]
    def pairs(rows):
        "Two images of each name, which may be one and the same, each spoiled in its own way."
        i = rows.gather(1, torch.randint(3, (len(rows), 2))).flatten()
        return worn(moved(to_float(x[i])[0])),rows[:,0]
    def pair_loss(out, y):
        v = F.normalize(out, dim=1)
        return clip_loss(v[::2], v[1::2], 20.)
    known = torch.tensor([i for i,o in enumerate(emoji.names) if o not in out])[:little(args, len(emoji))]
    style_losses,minutes = fit('style', net.style, (known,), F.cross_entropy, args.style_epochs, one)
    losses,more = fit('pairs', net.what, (three,), pair_loss, args.epochs, pairs)
    net.cpu().eval()
    kept = [i for i,o in enumerate(emoji.names) if o in out]
    with torch.no_grad(): right = (net(to_float(x[kept])[0])[1].argmax(1)==styles[kept]).float().mean().item()
    save_weights(net, args.folder/'emoji_judge.safetensors', config=config, notebook='30x_judges', seed=0, images=2*bs*len(losses), style_images=bs*len(style_losses),
                 minutes=round(minutes+more, 1), data=f'{emoji.source}: emoji of {len(three):,} names without skin tones, on white; {len(out)} names kept out',
                 kept_out=sorted(out), metrics=dict(style_accuracy=round(right, 4), of=f'{len(kept)} images of the names that were kept out'),
                 curve=curve(losses, 2*bs), style_curve=curve(style_losses, bs), **info(args))

if __name__=='__main__': main()
