"""Edits of drawn scenes, whose exact result is known: image-to-image at several strengths, DiffEdit with the mask it finds, and with the true one. Then Imagic on six of them, and edits of emoji.

`python editing.py --n 240` takes some minutes; each finished part of 40 scenes is kept in the given `--log`, and a run that was stopped goes on from there.
The result is `results/editing.jsonl`, one row for each way to edit. `python editing.py imagic` and `python editing.py emoji` take a minute or two
and write `results/editing_imagic.jsonl` and `results/editing_emoji.jsonl`; the emoji must be in MINIAI_DATA."""
import json,os,sys
import torch
from miniai.data import caption
from miniai.editing import SceneEdits,diff_edit,edit_mask,imagic,mask_iou,scene_edits,score_edits
from miniai.emoji import load_emoji,on_background
from miniai.flow import STYLE_WORDS,EmojiDiffusion
from miniai.judges import judge_features,load_emoji_judge,retrieval,same_pictures
from miniai.latents import load_reader
from miniai.stable import StableDiffusion
from common import RESULTS,run_in_parts

strengths = .4,.5,.6,.7,.8


def part(pipe, reader, n, seed):
    "Scores of `n` edits by each way, a dict by name."
    edits = scene_edits(n, seed)
    a,b = ([caption(s) for s in o] for o in (edits.source, edits.target))
    found,rows = edit_mask(pipe, edits.before, a, b),{}
    masks = {'inversion, no mask': torch.ones_like(found), 'DiffEdit': found, 'DiffEdit, true mask': edits.mask}
    ious = {k: mask_iou(v, edits.mask).mean().item() for k,v in masks.items()}
    images = {'codec alone': lambda: pipe.pictures(pipe.latents(edits.before))}
    for k in strengths: images[f'image-to-image, {k}'] = lambda k=k: pipe(b, init=edits.before, strength=k, steps=20)
    for name,mask in masks.items(): images[name] = lambda mask=mask: diff_edit(pipe, edits.before, a, b, mask=mask)
    for name,f in images.items(): rows[name] = score_edits(reader, f(), edits)._asdict() | dict(iou=ious.get(name))
    return rows


def mean(parts):
    "The parts' means, one row for each way."
    rows = []
    for name in parts[0]:
        row = {'edit by': name, 'scenes': 40*len(parts)}
        for k in ('right', 'whole', 'changed', 'kept', 'both', 'iou'):
            found = [p[name][k] for p in parts]
            row[k] = '' if None in found else round(sum(found)/len(found), 3)
        rows.append(row)
    return rows


def imagic_rows(n=6, weights=(.4, .6, .8, 1.)):
    "Imagic on the first `n` of lesson 35's 24 scenes, beside DiffEdit and image-to-image on the same."
    pipe,reader = StableDiffusion.load(),load_reader()
    edits = SceneEdits(*(o[:n] for o in scene_edits(24, seed=7)))
    a,b = ([caption(s) for s in o] for o in (edits.source, edits.target))
    images = {'image-to-image, 0.4': pipe(b, init=edits.before, strength=.4, steps=20), 'DiffEdit': diff_edit(pipe, edits.before, a, b)}
    learned = [imagic(pipe, x, to) for x,to in zip(edits.before, b)]
    for w in weights: images[f'Imagic, weight {w:g}'] = torch.cat([o.pipe(o.between(w), steps=15, guidance=1.5) for o in learned])
    return [{'edit by': k, 'scenes': n, **{f: round(v, 3) for f,v in score_edits(reader, x, edits)._asdict().items()}} for k,x in images.items()]


colours = [('red heart', 'blue heart'), ('yellow heart', 'purple heart'), ('purple heart', 'red heart'), ('red circle', 'green circle'), ('blue circle', 'red circle'),
           ('brown circle', 'blue circle'), ('red square', 'green square'), ('yellow square', 'purple square'), ('blue book', 'green book'), ('red apple', 'green apple')]
objects = [('dog face', 'cat face'), ('pig face', 'mouse face'), ('rabbit face', 'tiger face'), ('grinning face', 'crying face'), ('robot', 'alien'),
           ('peach', 'pear'), ('banana', 'carrot'), ('hammer', 'axe'), ('bus', 'ambulance'), ('hamburger', 'pizza')]


def emoji_rows(ways=()):
    "Twenty edits of emoji, the styles in turn, by all ways or by some; the truth of a mask is where the old emoji or the new one is."
    emoji,artist,judge = load_emoji(),EmojiDiffusion.load(),load_emoji_judge()
    if emoji.source!='folder': raise SystemExit('emoji: expected the emoji in MINIAI_DATA')
    at = {(n,s): i for i,(n,s) in enumerate(zip(emoji.names, emoji.styles))}
    styles = [('noto','twemoji','fluent')[i%3] for i in range(len(colours+objects))]
    old,new = ([at[pair[k],s] for pair,s in zip(colours+objects, styles)] for k in (0, 1))
    a,b = ([f'{emoji.names[i]}, {STYLE_WORDS[emoji.styles[i]]}' for i in o] for o in (old, new))
    given,truth = on_background(emoji.x[old]),(emoji.x[old,3]>127)|(emoji.x[new,3]>127)
    found = edit_mask(artist, given, a, b)
    images = {'nothing': lambda: given, 'image-to-image, 0.65': lambda: artist(b, init=given, strength=.65, steps=20, guidance=4.)}
    for k in (.65, .9): images[f'DiffEdit, {k}'] = lambda k=k: diff_edit(artist, given, a, b, mask=found, strength=k)
    images['the true emoji'] = lambda: on_background(emoji.x[new])
    iou,real = mask_iou(found, truth),on_background(emoji.x).float()/127.5-1
    search = {}
    for s in set(styles):
        rows = [i for i,o in enumerate(emoji.styles) if o==s]
        search[s] = judge_features(judge, real[rows]),[emoji.names[i] for i in rows],same_pictures(real[rows])
    table = []
    for name,f in images.items():
        if ways and name not in ways: continue
        x = f()
        drawn = judge_features(judge, x.float()/127.5-1)
        def ranks(of): return torch.tensor([retrieval(drawn[j:j+1], [emoji.names[i]], *search[styles[j]]).ranks.item() for j,i in enumerate(of)])
        new_rank,old_rank,moved = ranks(new),ranks(old),(x.int()-given.int()).abs().amax(1)>64
        for kind,part in (('colour', slice(0, 10)), ('object', slice(10, 20))):
            row = {'edit by': name, 'edits of': kind, 'emoji': 10, 'right': (new_rank[part]==1), 'among 5': new_rank[part]<=5, 'still the old': old_rank[part]==1,
                   'changed': 100*(moved&~truth)[part].sum((1, 2))/(~truth)[part].sum((1, 2))}
            table.append({k: round(v.float().mean().item(), 3) if isinstance(v, torch.Tensor) else v for k,v in row.items()}
                         | dict(iou=round(iou[part].mean().item(), 3) if 'DiffEdit' in name else ''))
    for row in table: print(row)
    return table


if __name__=='__main__':
    torch.set_num_threads(1)
    others = dict(imagic=imagic_rows, emoji=emoji_rows)
    if len(sys.argv)==2 and sys.argv[1] in others:
        temp = RESULTS/f'editing_{sys.argv[1]}.tmp'
        temp.write_text(''.join(json.dumps(r)+'\n' for r in others[sys.argv[1]]()))
        os.replace(temp, RESULTS/f'editing_{sys.argv[1]}.jsonl')
    else: run_in_parts('editing', __doc__, 240, lambda: (StableDiffusion.load(), load_reader()), part, mean)
