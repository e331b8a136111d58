"The captioner of lesson 39: it starts from the image encoder of lesson 26's CLIP, and reads scenes that CLIP has not seen."
import torch
import torch.nn.functional as F
from functools import partial
from torch.optim import AdamW
from common import arguments,curve,in_parts,info,little,train
from miniai.captioning import Captioner,caption_score,references
from miniai.clip import load_clip
from miniai.data import SEEN,UNSEEN,random_scenes
from miniai.ddpm import save_weights
from miniai.optim import BatchSchedCB,OneCycle
from miniai.resnet import AutocastCB
from scenes import draw,to_float

def part(i, n, tok):
    "`n` scenes: images in bytes, and the ids of their captions, told from either side, (n,2,l)."
    scenes = random_scenes(n, 3900+i, SEEN)
    both = [(r[0],r[-1]) for r in map(references, scenes)]
    return draw(scenes, 3900+i),torch.stack([tok([b[j] for b in both])[:,:18] for j in (0,1)], 1)

def batch(x, ids, end):
    "Images moved by up to two pixels; one of the two captions, its words and the words to predict."
    n,(dy,dx) = len(x),torch.randint(5, (2,)).tolist()
    x = F.pad(to_float(x)[0], (2,2,2,2), mode='replicate')[:,:,dy:dy+64,dx:dx+64]
    y = ids[torch.arange(n),torch.randint(2, (n,))]
    y = y[:,:(y!=end).sum(1).max()+1]
    return x,y[:,:-1],y[:,1:].masked_fill(y[:,:-1]==end, -100)

def measure(net, tok, n, seed, pairs):
    "Exact captions and right attributes of `n` new scenes."
    scenes = random_scenes(n, seed, pairs)
    return caption_score(net.write(to_float(draw(scenes, seed))[0], tok), scenes)

def loss(preds, y): return F.cross_entropy(preds.flatten(0, 1), y.flatten())

def main():
    args = arguments('scene_captioner', n_scenes=30_000, epochs=4)
    bs,lr = 8 if args.few else 128,2e-3
    clip,tok = load_clip()
    size = little(args, 2000)
    data = in_parts(args, 'scenes', little(args, args.n_scenes)//size, lambda i: part(i, size, tok))
    torch.manual_seed(0)
    config = dict(n_vocab=len(tok), n=96, depth=2, nfs=[16,32,64,96])
    net = Captioner(**config).to(memory_format=torch.channels_last)
    net.image.copy_from(clip.image)
    cbs = [AutocastCB(n_inp=2), BatchSchedCB(partial(OneCycle, max_lr=lr))]
    losses,minutes = train(args, 'all', net, data, loss, lr, cbs, partial(AdamW, weight_decay=.05), args.epochs, bs, 0, partial(batch, end=tok.end))
    net.cpu().eval()
    seen,unseen = (measure(net, tok, little(args, n), seed, pairs) for n,seed,pairs in ((1000, 55, SEEN), (200, 56, UNSEEN)))
    save_weights(net, args.folder/'scene_captioner.safetensors', bits=8, config=config, merges=tok.merges, size=64, bs=bs, notebook='39_captioning', seed=0,
                 data=f'{len(data[0]):,} drawn scenes of 64 pixels, seen pairs only, other ones than the CLIP of lesson 26 had; each told from either side',
                 start='the image encoder of scene_clip', metrics=dict(exact=seen.exact, attributes=seen.attributes, exact_unseen_pairs=unseen.exact,
                 attributes_unseen_pairs=unseen.attributes, of='1,000 scenes of seen pairs and 200 of unseen ones'), pictures=bs*len(losses), minutes=minutes, curve=curve(losses, bs), **info(args))

if __name__=='__main__': main()
