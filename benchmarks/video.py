"""How often clips of the stored video model are what was asked for, and how smooth their motion is, at three guidance scales and three seeds.

Run: `python benchmarks/video.py`. Each run adds a line to `benchmarks/results/video.jsonl`; runs that are there already are left out. A run takes
a quarter of a minute of one core. Lesson 43 shows the results."""
import json
from pathlib import Path
import torch
from miniai.video import MOTIONS,centre_of_mass,draw_moving,generate_video,jitter,load_thing_reader,load_video,moving_caption,random_moving

out = Path(__file__).parent/'results/video.jsonl'
n,scales,seeds = 24,(1, 1.5, 2),(1, 2, 3)


def score(x, things, reader):
    "Fractions that are right, and the jitter, also for each motion by itself."
    read,shake = reader.read(x),jitter(centre_of_mass(x))
    row = {k: sum(getattr(a, k)==getattr(b, k) for a,b in zip(read, things))/n for k in ('size', 'colour', 'shape', 'motion')}
    row['thing'] = sum(a[:3]==b[:3] for a,b in zip(read, things))/n
    row['both'] = sum(a==b for a,b in zip(read, things))/n
    row['jitter'] = shake.mean().item()
    for m in MOTIONS: row[m] = shake[[o.motion==m for o in things]].mean().item()
    return {k: round(v, 4) for k,v in row.items()}


def main():
    torch.set_num_threads(1)
    done = [json.loads(l) for l in out.read_text(encoding='utf-8').splitlines()] if out.exists() else []
    known,denoise,reader = {(o['clips'], o['seed']) for o in done},load_video(),load_thing_reader()
    for seed in seeds:
        things = random_moving(n, 500+seed)
        captions = [moving_caption(o) for o in things]
        runs = {'real': lambda: draw_moving(things, 500+seed).float()/127.5-1}
        runs |= {f'scale {s}': lambda s=s: generate_video(denoise, captions, scale=s, seed=1000*seed) for s in scales}
        for name,f in runs.items():
            if (name, seed) in known: continue
            row = dict(clips=name, seed=seed)|score(f(), things, reader)
            with out.open('a', encoding='utf-8') as o: o.write(json.dumps(row)+'\n')
            print(row, flush=True)


if __name__=='__main__': main()
