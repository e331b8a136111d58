"""Fidelity against drift: five images of a thing taught to the scene model by textual inversion, DreamBooth with and without prior images, and LoRA.

Run: `python benchmarks/personalise.py [--only inversion]`. Each run adds a line to `benchmarks/results/personalise.jsonl`; runs that are there
already are left out, so that it can be stopped and started again. A run takes half a minute of one core. Lesson 34 shows the results."""
import argparse,copy,json,time,warnings
from pathlib import Path
import torch
from miniai.data import BACKGROUNDS,COLOURS,SEEN,SHAPES,SIZES,caption,random_scenes
from miniai.latents import load_reader
from miniai.lora import add_lora,all_layers,attention_layers,lora_params
from miniai.personalise import PriorCB,ShapeJudge,add_word,concept_captions,draw_things,dreambooth,fish,invert,left_half,measure,prior_examples,random_row
from miniai.stable import StableDiffusion

out = Path(__file__).parent/'results/personalise.jsonl'
places = [('large', 'white'), ('small', 'grey'), ('large', 'black'), ('small', 'white'), ('large', 'grey')]
things = dict(moon=(SHAPES['moon'], 'purple'), fish=(fish, 'orange'))
kept = [f'a {s} {c} arrow on a {g} background' for s in SIZES for c in COLOURS for g in BACKGROUNDS]+[caption(s) for s in random_scenes(92, seed=77, pairs=SEEN)]


def with_inversion(pipe, thing, where=places, **kw):
    sdf,colour = things[thing]
    return invert(pipe, '<it>', draw_things(sdf, colour, where), concept_captions('<it>', where), like='circle' if thing=='moon' else 'arrow', **kw)


def with_net(pipe, where=places, prior=None, rank=None, layers=attention_layers, name='<it> arrow', said=None, **kw):
    "DreamBooth on the fish; `prior` is the weight of what the pipeline drew itself, `rank` that of a LoRA."
    if prior is not None: kw['prior'] = PriorCB(prior_examples(pipe, kept), prior)
    if prior is not None: kw['bs'] = 8
    add_word(pipe, '<it>', random_row(pipe))
    if rank is not None:
        add_lora(pipe.unet, rank, where=layers)
        kw['params'] = list(lora_params(pipe.unet))
    n = sum(p.numel() for p in kw.get('params') or pipe.unet.parameters())
    dreambooth(pipe, draw_things(*things['fish'], where), said or concept_captions(name, where), **kw)
    return n


white = [(s, 'white') for s,_ in places]
runs = {
    'before': ('fish', lambda p: add_word(p, '<it>', random_row(p))*0),
    'inversion, moon': ('moon', lambda p: with_inversion(p, 'moon')),
    'inversion, fish': ('fish alone', lambda p: with_inversion(p, 'fish')),
    'DreamBooth': ('fish', lambda p: with_net(p)),
    'DreamBooth, prior': ('fish', lambda p: with_net(p, prior=1., lr=6e-4, steps=150)),
    'inversion, moon, all on white, unsaid': ('moon', lambda p: invert(p, '<it>', draw_things(*things['moon'], white), ['a <it>']*5, like='circle')),
    'inversion, moon, 1 image': ('moon', lambda p: with_inversion(p, 'moon', where=places[:1])),
    'inversion, moon, 30 steps': ('moon', lambda p: with_inversion(p, 'moon', steps=30)),
    'DreamBooth, all on white, unsaid': ('fish', lambda p: with_net(p, where=white, said=['a <it> arrow']*5)),
    **{f'LoRA, rank {r}, rate {lr:g}': ('fish', lambda p, r=r, lr=lr: with_net(p, rank=r, lr=lr)) for r,lr in ((4, .003), (4, .01))},
    **{f'LoRA on all layers, rank {r}, rate {lr:g}': ('fish', lambda p, r=r, lr=lr: with_net(p, rank=r, lr=lr, layers=all_layers)) for r,lr in ((1, .003), (4, .003), (16, .003))},
    'LoRA on all layers, rank 16, rate 0.003, prior': ('fish', lambda p: with_net(p, rank=16, lr=.003, prior=1., steps=150, layers=all_layers)),
    'DreamBooth, prior, no class in the caption': ('fish alone', lambda p: with_net(p, prior=1., lr=6e-4, steps=150, name='<it>')),
    'DreamBooth, prior, weight 0.3': ('fish', lambda p: with_net(p, prior=.3, lr=6e-4, steps=150)),
}


def score(pipe, kind, judge, reader):
    "All that is measured of one pipeline."
    word,thing = '<it> arrow' if kind=='fish' else '<it>',('moon', 'purple') if kind=='moon' else ('fish', 'orange')
    row = measure(pipe, word, thing, judge, reader, random_scenes(64, seed=21, pairs=SEEN), n=36)[1]
    colours = [o for o in COLOURS if o not in ('orange','blue')]
    x = pipe([f'a {s} {c} arrow on a {g} background' for c in colours for s in SIZES for g in BACKGROUNDS], steps=12, seed=500)
    row['arrows'] = sum(s=='arrow' for s,_ in judge.read(x))/len(x)
    x = pipe(f'a large {word} left of a large blue ring on a white background', n=24, steps=12, seed=300)
    ring = [s.relation=='left of' and s.things[1][1:]==('blue','ring') for s in reader.read(x.float()/127.5-1)]
    row['beside'] = sum(a==thing and b for a,b in zip(judge.read(left_half(x)), ring))/24
    x = pipe(f'a {word}', n=24, steps=12, seed=900)
    row['white'] = sum(s.background=='white' for s in reader.read(x.float()/127.5-1))/24
    return row


def main(only):
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    done = {json.loads(o)['run'] for o in out.read_text().splitlines()} if out.exists() else set()
    todo = {k: v for k,v in runs.items() if k not in done and k.startswith(only)}
    base,reader = StableDiffusion.load(),load_reader()
    judge = ShapeJudge({'fish': fish, **SHAPES})
    for name,(kind,teach) in todo.items():
        pipe,start = copy.deepcopy(base),time.process_time()
        n = teach(pipe)
        row = dict(run=name, trained=n if isinstance(n, int) else n.numel(), seconds=round(time.process_time()-start))
        row |= {k: round(v, 3) for k,v in score(pipe, kind, judge, reader).items()}
        print(row, flush=True)
        with out.open('a') as f: f.write(json.dumps(row)+'\n')


if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--only', default='', help='only runs whose name begins so')
    main(p.parse_args().only)
