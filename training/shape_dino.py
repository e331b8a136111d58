"The vision transformer of lesson 38, which learns without labels what drawn stickers on any ground are: DINO."
import torch,torch.nn.functional as F
from torch.optim import AdamW
from common import arguments,curve,info,little,train
from miniai.ddpm import save_weights
from miniai.emoji import on_background
from miniai.resnet import AutocastCB
from miniai.vit import DINO,TeacherCB,ViT,conv_stem,draw_stickers,knn_predict,multi_crop

def on_grounds(x, seed, size=24):
    "Stickers, each on a ground of its own, floats in [-1,1]."
    ground = (torch.rand(len(x), 3, 1, 1, generator=torch.Generator().manual_seed(seed))*255).byte()
    x = on_background(x, ground.expand(-1, 3, *x.shape[2:])).float()/127.5-1
    return F.interpolate(x, (size,size), mode='bilinear', antialias=True)

def score(f, n=2000):
    "k-NN accuracies of the features that `f` gives of `n` new stickers, with 4,000 whose shape and colour are known."
    (a,*known),(b,*asked) = draw_stickers(4000, 1),draw_stickers(n, 2)
    with torch.no_grad(): fa,fb = f(on_grounds(a, 1)),f(on_grounds(b, 2))
    return {k: (knn_predict(fa-fa.mean(0), y, fb-fa.mean(0))==z).float().mean().item() for k,y,z in zip(('shape','colour'), known, asked)}

def main():
    args = arguments('shape_dino', stickers=4480, epochs=8)
    x,bs = draw_stickers(little(args, args.stickers))[0],8 if args.few else 64
    torch.manual_seed(0)
    config = dict(size=24, n=64, depth=3, n_heads=4, mult=2)
    dino = DINO(ViT(stem=conv_stem, **config), config['n'], 64)
    cbs = [AutocastCB(n_inp=2), TeacherCB(.98)]              # at a constant rate: a run may end after any epoch
    losses,minutes = train(args, 'all', dino, (x,), dino.loss, 1e-3, cbs, AdamW, args.epochs, bs, 0, multi_crop, every=35)
    net = dino.cpu().eval().teacher[0]
    save_weights(net, args.folder/'shape_dino.safetensors', bits=8, config=config, notebook='38_vit', data=f'{len(x):,} drawn stickers without labels',
                 seed=0, images=bs*len(losses), minutes=minutes, metrics=dict(knn=score(net), pixels=score(lambda o: o.flatten(1)), of='2,000 new stickers'),
                 curve=curve(losses, bs), **info(args))

if __name__=='__main__': main()
