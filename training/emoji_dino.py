"The vision transformer of lesson 38, which learns from emoji without labels: DINO, on four of five names; the others are held out for the k-NN."
import torch,torch.nn.functional as F
from torch.optim import AdamW
from common import arguments,curve,info,little,train
from miniai.ddpm import save_weights
from miniai.emoji import load_emoji,on_background
from miniai.resnet import AutocastCB
from miniai.vit import DINO,TeacherCB,ViT,conv_stem,hold_out_names,knn_predict,multi_crop

def features(f, emoji, size=24, bs=256):
    "Features of all emoji on white, by `f` of images in [-1,1]."
    with torch.no_grad():
        return torch.cat([f(F.interpolate(on_background(o).float()/127.5-1, (size,size), mode='bilinear', antialias=True)) for o in emoji.x.split(bs)])

def scores(feats, emoji, held):
    "Held out: fraction in the right group by the neighbours of known names, and whose nearest of another style has the same name."
    groups,names,styles = (torch.tensor([sorted(set(o)).index(v) for v in o]) for o in (emoji.groups, emoji.names, emoji.styles))
    feats = F.normalize(feats-feats[~held].mean(0), dim=1)
    group = (knn_predict(feats[~held], groups[~held], feats[held])==groups[held]).float().mean().item()
    f,n,s = feats[held],names[held],styles[held]
    other = s[:,None]!=s if len(s.unique())>1 else ~torch.eye(len(s), dtype=torch.bool)
    right = n[(f@f.T).masked_fill(~other, -2.).argmax(1)]==n
    has = ((n[:,None]==n)&other).any(1)
    return dict(group=group, same_name=right[has].float().mean().item())

def main():
    args = arguments('emoji_dino', epochs=22)
    emoji = load_emoji()
    emoji = emoji.rows([i for i,o in enumerate(emoji.groups) if o!='components'])
    held = hold_out_names(emoji.names)
    x,bs,lr = emoji.x[~held],8 if args.few else 64,1e-3
    torch.manual_seed(0)
    config = dict(size=24, n=64, depth=3, n_heads=4, mult=2)
    dino = DINO(ViT(stem=conv_stem, **config), config['n'])
    cbs = [AutocastCB(n_inp=2), TeacherCB()]                 # at a constant rate: a run may end after any epoch
    losses,minutes = train(args, 'all', dino, (x[:little(args, len(x))],), dino.loss, lr, cbs, AdamW, args.epochs, bs, 0, multi_crop, every=35)
    net = dino.cpu().eval().teacher[0]
    save_weights(net, args.folder/'emoji_dino.safetensors', bits=8, config=config, notebook='38_vit',
                 data=f'{len(x):,} emoji of 64 pixels without labels; every fifth name is held out', seed=0, images=bs*len(losses), minutes=minutes,
                 metrics=dict(scores(features(net, emoji), emoji, held), pixels=scores(features(lambda o: o.flatten(1), emoji), emoji, held)),
                 curve=curve(losses, bs), **info(args))

if __name__=='__main__': main()
