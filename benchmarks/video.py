"""How often clips of the stored video model are what was asked for, and how smooth their motion is, at five guidance scales and three seeds; the chosen scale once more with three other seeds. And how long a thing stays the same thing in stories of 29 frames.

Run: `python benchmarks/video.py`. Each run adds a line to `benchmarks/results/video.jsonl`, and one of stories to `video_stories.jsonl`; runs that
are there already are left out. A run takes some seconds of one core. Lesson 43 shows the results."""
import json
from pathlib import Path
import torch
from miniai.video import MOTIONS,centre_of_mass,draw_moving,generate_video,jitter,load_thing_reader,load_video,moving_caption,random_moving

out = Path(__file__).parent/'results/video.jsonl'
stories = Path(__file__).parent/'results/video_stories.jsonl'
n,scales,seeds = 24,(1, 1.25, 1.4, 1.5, 2),(1, 2, 3)
chosen,others = 1.25,(4, 5, 6)          # the scale that these runs speak for, and seeds that had no say in it


def score(x, things, reader):
    "Fractions that are right, and the jitter, also for each motion by itself."
    read,shake = reader.read(x),jitter(centre_of_mass(x))
    row = {k: sum(getattr(a, k)==getattr(b, k) for a,b in zip(read, things))/n for k in ('size', 'colour', 'shape', 'motion')}
    row['thing'] = sum(a[:3]==b[:3] for a,b in zip(read, things))/n
    row['both'] = sum(a==b for a,b in zip(read, things))/n
    row['jitter'] = shake.mean().item()
    for m in MOTIONS: row[m] = shake[[o.motion==m for o in things]].mean().item()
    return {k: round(v, 4) for k,v in row.items()}


def story(denoise, things, motions, seed, k=1):
    "A clip for each motion in turn, for each of the things; each clip begins with the last `k` frames of the one before."
    x = None
    for i,m in enumerate(motions):
        captions = [moving_caption(o._replace(motion=m)) for o in things]
        new = generate_video(denoise, captions, None if x is None else x[:,-k:], seed=seed+1000*i)
        x = new if x is None else torch.cat([x, new[:,k:]], 1)
    return x


def drift(denoise, reader):
    "Fractions of 24 stories in which a single frame still shows the right thing, frame by frame; shapes that can be seen to turn."
    motions = 'moves left','moves right','turns','moves left'
    things = random_moving(n, 600, ('triangle', 'star', 'cross', 'bar'))
    row = dict(stories=n, motions=motions)
    for name,x in (('drawn by the net', story(denoise, things, motions, 7000)), ('real', draw_moving(things, 600, 29).float()/127.5-1)):
        read = [reader.read(x[:,i:i+1]) for i in range(x.shape[1])]
        row[name] = {k: [sum(getattr(a, k)==getattr(b, k) for a,b in zip(r, things)) for r in read] for k in ('size', 'colour', 'shape')}
        row[name]['thing'] = [sum(a[:3]==b[:3] for a,b in zip(r, things)) for r in read]
    return row


def main():
    torch.set_num_threads(1)
    done = [json.loads(l) for l in out.read_text(encoding='utf-8').splitlines()] if out.exists() else []
    known,denoise,reader = {(o['clips'], o['seed']) for o in done},load_video(),load_thing_reader()
    for seed in (*seeds, *others):
        things = random_moving(n, 500+seed)
        captions = [moving_caption(o) for o in things]
        runs = {'real': lambda: draw_moving(things, 500+seed).float()/127.5-1}
        runs |= {f'scale {s}': lambda s=s: generate_video(denoise, captions, scale=s, seed=1000*seed) for s in (scales if seed in seeds else [chosen])}
        if seed in others: runs = {f'{k}, other seeds': f for k,f in runs.items()}
        for name,f in runs.items():
            if (name, seed) in known: continue
            row = dict(clips=name, seed=seed)|score(f(), things, reader)
            with out.open('a', encoding='utf-8') as o: o.write(json.dumps(row)+'\n')
            print(row, flush=True)
    if not stories.exists(): stories.write_text(json.dumps(drift(denoise, reader))+'\n', encoding='utf-8')


if __name__=='__main__': main()
