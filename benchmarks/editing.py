"""Edits of drawn scenes, whose exact result is known: image-to-image at several strengths, DiffEdit with the mask it finds, and with the true one.

`python editing.py --n 240` takes some minutes; each finished part of 40 scenes is kept in the given `--log`, and a run that was stopped goes on from there.
The result is `results/editing.jsonl`, one row for each way to edit."""
import torch
from miniai.data import caption
from miniai.editing import diff_edit,edit_mask,mask_iou,scene_edits,score_edits
from miniai.latents import load_reader
from miniai.stable import StableDiffusion
from common import run_in_parts

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


if __name__=='__main__': run_in_parts('editing', __doc__, 240, lambda: (StableDiffusion.load(), load_reader()), part, mean)
