"""Why DETR starts slowly: 200 batches as in lesson 40 with both suspected reasons taken away, by hand, alone and together.

*Fixed hands*: each object belongs to the query whose point in the image is nearest (no point twice), whatever the network says, so that no object
ever changes hands. *Narrow eyes*: what a query attends to is weighted by a bell of width 0.2 around its point, before any training. Both use the
same eight points. Run: `python benchmarks/detection_start.py [--seeds 0 1 2]`. Each run adds a line to `results/detection_start.jsonl`; runs that
are there are left out. A run takes half a minute of one core. Lesson 40 shows the table."""
import argparse,itertools,json
from functools import partial
from pathlib import Path
import torch, torch.nn.functional as F
from torch.optim import AdamW
from miniai import detection as d
from miniai.learner import DeviceCB,Learner
from miniai.loaders import DataLoaders
from miniai.optim import BatchSchedCB,OneCycle
from miniai.resnet import AutocastCB
from common import write

out = Path(__file__).parent/'results/detection_start.jsonl'
points = torch.cartesian_prod(torch.tensor([.3,.7]), torch.tensor([.2,.4,.6,.8])).flip(1)      # (8,2), x and y
match_by_cost = d.match_objects

def match_by_place(logits, boxes, true_boxes, labels):
    "`match_objects` with the distance to the queries' points as the cost."
    far = torch.cdist(points.expand(len(labels), -1, -1), d.to_centres(true_boxes)[...,:2]).double()
    pairs = []
    for i,there in enumerate(labels>=0):
        objects = there.nonzero()[:,0]
        a,o = d._best_pairs(far[i][:,objects])
        pairs.append(torch.stack([torch.full_like(a, i), a, objects[o]]))
    return torch.cat(pairs, 1).unbind()

class Narrow(d.PlacedAttention):
    "Attention of eight queries on a square of places, each within a bell around its point."
    def forward(self, x, place, cond=None, cond_place=None, maps=False):
        (wk,wv),(bk,bv) = self.kv.weight.chunk(2),self.kv.bias.chunk(2)
        qkv = self.q(x+place),F.linear(cond+cond_place, wk, bk),F.linear(cond, wv, bv)
        q,k,v = [o.unflatten(-1, (self.n_heads,-1)).transpose(1, 2) for o in qkv]
        side = int(k.shape[2]**.5)
        bell = -(torch.cdist(points, d.places(side, side))/.2)**2/2
        w = (q@k.transpose(2, 3)/q.shape[-1]**.5+bell).softmax(-1)
        return w if maps else self.out((w@v).transpose(1, 2).flatten(2))

def mirrored(x, boxes, labels):
    x,k = x.float()/127.5-1,torch.rand(len(x))<.5
    x[k] = x[k].flip(3)
    return x,torch.stack([1-boxes[...,2], boxes[...,1], 1-boxes[...,0], boxes[...,3]], -1).where(k[:,None,None], boxes),labels

@torch.no_grad()
def places_seen(net, x):
    "exp(entropy) of the attention in the last block of the decoder, mean over all queries."
    h,place = net.look(x.float()/127.5-1)
    q = torch.zeros_like(net.queries).expand(len(x), -1, -1)
    for block in net.decoder:
        w = block.cross(block.norm1(q+block.attend(q, net.queries)), net.queries, h, place, maps=True)
        q = block(q, net.queries, h, place)
    w = w.mean(1).clamp(min=1e-12)
    return (-w*w.log()).sum(-1).exp().mean().item()

def run(fixed, narrow, seed, n_steps=200, bs=32, lr=1e-3):
    "Train one net as the lesson does."
    data = [o[torch.arange(n_steps*bs)%3200] for o in d.draw_objects(3200, seed=2)]
    torch.manual_seed(seed)
    net = d.DETR()
    if narrow:
        for block in net.decoder: block.cross.__class__ = Narrow
    dls = DataLoaders.from_tensors(data, [o[:bs] for o in data], bs=bs, tfm=mirrored)
    cbs = [DeviceCB(), AutocastCB(), BatchSchedCB(partial(OneCycle, max_lr=lr))]
    d.match_objects = match_by_place if fixed else match_by_cost
    Learner(net.to(memory_format=torch.channels_last), dls, d.set_loss, lr, cbs, AdamW).fit(1, valid=False)
    d.match_objects = match_by_cost
    x,boxes,labels = d.draw_objects(300, seed=1)
    ap = sum(d.average_precision(net.eval().detect(x), boxes, labels).values())/10
    with torch.no_grad(): kind,box = (o[:,-1] for o in net(x.float()/127.5-1))
    i,a,o = match_by_cost(kind, box, boxes, labels)
    iou = d.box_iou(d.to_corners(box[i,a])[:,None], boxes[i,o][:,None])[:,0,0]
    right = kind[i,a,:-1].argmax(1)==labels[i,o]
    return dict(fixed=fixed, narrow=narrow, seed=seed, ap50=round(ap, 4), places=round(places_seen(net, x), 1), iou=round(iou.mean().item(), 4),
                close=round((iou>=.5).float().mean().item(), 4), right=round(right.float().mean().item(), 4))

def table(rows):
    def mean(k, **kw):
        return sum(o[k] for o in rows if kw.items()<=o.items())/len({o['seed'] for o in rows})
    cases = [dict(fixed=f, narrow=n) for f,n in itertools.product((False,True), repeat=2)]
    write('detection_start', [{'matching': 'fixed by place' if c['fixed'] else 'by cost, as in DETR', 'attention': 'narrow from the start' if c['narrow'] else 'as in DETR',
                               'places attended to, of 64': f"{mean('places', **c):.0f}", 'mean IoU': f"{mean('iou', **c):.2f}", 'IoU of 0.5 or more': f"{mean('close', **c):.0%}",
                               'kind right': f"{mean('right', **c):.0%}", 'AP50': f"{mean('ap50', **c):.2f}"} for c in cases],
          'DETR after 200 batches of 32, with two handicaps taken away', ('torch',), (f"Seeds: {sorted({o['seed'] for o in rows})}; measured on 300 images. IoU and kind are those of the answer that the matching by cost gives to each object.",), where='Drawn shapes')

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seeds', type=int, nargs='+', default=[0])
    def read(): return [json.loads(o) for o in out.read_text().splitlines()] if out.exists() else []
    for seed in p.parse_args().seeds:
        for fixed,narrow in ((True,True), (False,False), (True,False), (False,True)):
            if any((o['fixed'], o['narrow'], o['seed'])==(fixed, narrow, seed) for o in read()): continue
            res = run(fixed, narrow, seed)
            print(res, flush=True)
            with out.open('a') as f: f.write(json.dumps(res)+'\n')
    table(read())
