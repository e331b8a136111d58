"""The captioner of emoji of lesson 39: a decoder that reads the frozen encoder of the `EmojiJudge`. Of the names that the judge has never seen, half are
read in two styles and kept out in the third; the others are kept out altogether."""
import torch
import torch.nn.functional as F
from functools import partial
from torch import nn
from torch.optim import AdamW
from common import arguments,curve,info,little,train
from miniai.captioning import Captioner
from miniai.clip import Tokenizer
from miniai.ddpm import load_weights,save_weights
from miniai.emoji import load_emoji,on_background
from miniai.init import Normalize
from miniai.judges import load_emoji_judge
from miniai.optim import BatchSchedCB,OneCycle
from miniai.resnet import AutocastCB

to_float = Normalize(127.5, 127.5)

class Decoder(nn.Module):
    "The captioner from its places on: `(features, ids)` to scores."
    def __init__(self, net):
        super().__init__()
        self.net = net
    def forward(self, f, ids): return self.net.decode(ids, self.net.into(f))

def split(emoji, kept):
    "Rows to learn from, rows of known names in a style kept out, and rows of names kept out."
    kept = [o for o in sorted(set(kept)) if o in set(emoji.names)] or sorted(set(emoji.names))[:10]
    gen = torch.Generator().manual_seed(39)
    order = torch.randperm(len(kept), generator=gen).tolist()
    new_style,new_name,style,thing = {},set(),[],[]
    for k,j in enumerate(order):
        rows = [i for i,o in enumerate(emoji.names) if o==kept[j]]
        if k%2 and len(rows)>1: new_style[kept[j]] = rows[torch.randint(len(rows), (), generator=gen)]
        else: new_name.add(kept[j])
    style = sorted(new_style.values())
    thing = [i for i,o in enumerate(emoji.names) if o in new_name]
    out = {*style, *thing}
    return [i for i in range(len(emoji)) if i not in out],style,thing

def batch(f, ids, end):
    "Half of the places, at random; the words, and the words to predict."
    y = ids[:,:(ids!=end).sum(1).max()+1].long()
    f = f[:,torch.randperm(f.shape[1])[:f.shape[1]//2]].float()
    return f,y[:,:-1],y[:,1:].masked_fill(y[:,:-1]==end, -100)

def loss(preds, y): return F.cross_entropy(preds.flatten(0, 1), y.flatten(), label_smoothing=.05)

def main():
    args = arguments('emoji_captioner', epochs=20)
    bs,lr = 8 if args.few else 64,3e-3
    emoji,judge = load_emoji(n_drawn=400),load_emoji_judge()
    rows,style,thing = split(emoji, load_weights('emoji_judge')[1]['kept_out'])
    tok = Tokenizer.train(sorted({emoji.names[i] for i in rows}), 1200)
    x,rows = on_background(emoji.x),rows[:little(args, len(rows))]
    torch.manual_seed(0)
    # 256 bytes, also at the end of a word, 1,200 joins and two marks; drawn scenes have fewer words
    config = dict(n_vocab=1714, n=96, depth=2, nfs=[16,32,64,96])
    net = Captioner(**config)
    net.image.copy_from(judge.what).eval().requires_grad_(False)
    with torch.no_grad(): f = torch.cat([net.image(to_float(o)[0]).half() for o in x[rows].split(256)])
    cbs,tfm = [AutocastCB(n_inp=2), BatchSchedCB(partial(OneCycle, max_lr=lr))],partial(batch, end=tok.end)
    ids = tok([emoji.names[i] for i in rows])
    losses,minutes = train(args, 'all', Decoder(net), (f,ids), loss, lr, cbs, partial(AdamW, weight_decay=.05), args.epochs, bs, 0, tfm)
    net.cpu().eval()
    def exact(rows):
        texts = net.write(to_float(x[rows])[0], tok)
        return sum(t==tok.decode(tok.encode(emoji.names[i])) for t,i in zip(texts, rows))/len(rows)
    style,thing = (o[:little(args, len(o))] for o in (style, thing))
    save_weights(net, args.folder/'emoji_captioner.safetensors', bits=8, config=config, merges=tok.merges, size=64, bs=bs, notebook='39_captioning', seed=0,
                 data=f'{emoji.source}: {len(rows):,} emoji without skin tones, on white', start='the encoder of emoji_judge, frozen',
                 new_style=[[emoji.names[i], emoji.styles[i]] for i in style], kept_out=sorted({emoji.names[i] for i in thing}),
                 metrics=dict(exact_new_style=round(exact(style), 4), exact_new_name=round(exact(thing), 4),
                 of=f'{len(style)} images of names read in other styles, {len(thing)} images of names never read'),
                 images=bs*len(losses), minutes=minutes, curve=curve(losses, bs), **info(args))

if __name__=='__main__': main()
