"""Edits by a click: the mask of lesson 41 at a click on the thing, grown by so many pixels, and drawn anew as lesson 42 does it. The scenes are those of editing.py.

`python editor.py --n 160` takes some minutes; each finished part of 40 scenes is kept in the given `--log`, and a run that was stopped goes on from there.
The result is `results/editor.jsonl`, one row for each way to choose the region.

`python editor.py example` asks how often the page's first example is right and without a flaw: 20 drawings, with the seeds from 0 on, of a thing replaced and of all but a thing replaced.
The result is `results/editor_example.jsonl`."""
import json,sys
import numpy as np,torch,torch.nn.functional as F
from miniai import app
from miniai.app import draw_region,grow_mask
from miniai.data import Scene,Thing,caption,draw_scenes
from miniai.editing import scene_edits,score_edits
from miniai.latents import load_reader
from miniai.segmentation import load_segmenter
from miniai.stable import StableDiffusion
from common import RESULTS,run_in_parts

grows = 0,1,2,4,8


def middle(mask):
    "A pixel `(x, y)` deep inside a mask."
    while (less := ~grow_mask(~mask, 1)).any(): mask = less
    y,x = np.nonzero(mask)
    return int(x[len(x)//2]),int(y[len(y)//2])


def box(mask):
    "The smallest rectangle around a mask."
    y,x = np.nonzero(mask)
    out = np.zeros_like(mask)
    if len(y): out[y.min():y.max()+1,x.min():x.max()+1] = True
    return out


def things(edits):
    "The mask of the thing before the edit: what its colour changes in the drawing without noise, within the true mask of the edit."
    for x,m in zip(edits.before, edits.mask):
        x,m = x.permute(1, 2, 0).numpy().astype(int),m.numpy()
        around = np.median(x[grow_mask(m, 2)&~m], 0)
        there = m&(np.abs(x-around).max(-1)>60)
        yield there if there.any() else m


def part(pipe, segmenter, reader, n, seed):
    "Scores of `n` edits by each way, a dict by name."
    edits = scene_edits(n, seed)
    images,true = [x.permute(1, 2, 0).numpy() for x in edits.before],list(things(edits))
    clicked = []
    for x,m in zip(images, true):
        segmenter.set_image(x)
        clicked.append(segmenter.predict(np.array([middle(m)]), np.array([1]))[0][0])
    iou = float(np.mean([(a&b).sum()/(a|b).sum() for a,b in zip(clicked, true)]))
    ways = {f'a click, grown by {r}': [grow_mask(m, r) for m in clicked] for r in grows}
    ways['a click, box around it, grown by 2'] = [grow_mask(box(m), 2) for m in clicked]
    ways['true mask of the thing, grown by 4'] = [grow_mask(m, 4) for m in true]
    rows = {}
    for name,regions in ways.items():
        out = [draw_region(pipe, x, m, prompt=caption(s), steps=12) if m.any() else x for x,m,s in zip(images, regions, edits.target)]
        x = torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2).contiguous()
        shape = [a.things[i][1]!=b.things[i][1] for a,b in zip(edits.source, edits.target) for i in range(len(a.things)) if a.things[i]!=b.things[i]]
        found,said = reader.right(x.float()/127.5-1, edits.target)
        right = (found|~said)[:,:8].all(1).float()
        by_kind = [right[torch.tensor(shape)==k].mean().item() for k in (False, True)]
        region = np.mean([m.mean() for m in regions])
        rows[name] = score_edits(reader, x, edits)._asdict() | dict(iou=iou, colour=by_kind[0], shape=by_kind[1], region=100*float(region))
    return rows


def mean(parts, n=40):
    "The parts' means, one row for each way."
    rows = []
    for name in parts[0]:
        row = {'edit by': name, 'scenes': n*len(parts)}
        for k in ('right', 'colour', 'shape', 'changed', 'region', 'iou'): row[k] = round(sum(p[name][k] for p in parts)/len(parts), 3)
        rows.append(row)
    return rows


def example(n=20):
    "How often the reader finds all words of a drawing right, and no flaw either."
    pipe,segmenter,reader,seeing = StableDiffusion.load(),load_segmenter(),load_reader(),app._seeing
    rows = []
    def ask(name, image, mask, target, **kw):
        out = [draw_region(pipe, image, mask, prompt=caption(target), seed=i, **kw) for i in range(n)]
        x = F.avg_pool2d(torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2).float(), len(image)//64)/127.5-1
        found,said = reader.right(x, [target]*n)
        fine = found|~said
        rows.append(dict(edit=name, seeds=n, right=fine[:,:8].all(1).float().mean().item(), whole=fine.all(1).float().mean().item()))
        print(rows[-1], flush=True)
    ring = Scene((Thing('large', 'blue', 'ring'),), '', 'white')
    for shape in ('heart', 'moon'):
        scene = Scene((Thing('large', 'red', shape),), '', 'white')
        image = draw_scenes([scene], 128, seed=1)[0].permute(1, 2, 0).numpy()
        there = np.abs(image.astype(int)-image[0,0]).max(-1)>60
        segmenter.set_image(image)
        mask = segmenter.predict(np.array([middle(there)]), np.array([1]))[0][0]
        for part in (16, 8):
            grow = 128//part
            ask(f'{shape} to ring, grown by 1/{part} of the side', image, grow_mask(mask, grow), ring, soft=grow//4)
        for name,f in (('its latent cells', lambda pipe, mask: pipe), ('its pixels', seeing)):
            app._seeing = f
            ask(f'all but the {shape}, of which the network sees {name}', image, ~mask, scene._replace(background='black'))
        app._seeing = seeing
    (RESULTS/'editor_example.jsonl').write_text(''.join(json.dumps(o)+'\n' for o in rows))


if __name__=='__main__':
    if sys.argv[1:]==['example']: example()
    else: run_in_parts('editor', __doc__, 160, lambda: (StableDiffusion.load(), load_segmenter(), load_reader()), part, mean)
