"""Fidelity against drift: five images of a thing taught to the scene model by textual inversion, DreamBooth with and without prior images, LoRA, and networks that start from the inverted row.

Run: `python benchmarks/personalise.py [--only inversion] [--seed 1]`. Each run adds a line to `benchmarks/results/personalise.jsonl`; runs that are there
already are left out, so that it can be stopped and started again. A run takes about a minute of one core. Lesson 34 shows the results."""
import argparse,copy,json,time,warnings
from functools import partial
from pathlib import Path
import torch
from miniai.data import BACKGROUNDS,COLOURS,SEEN,SHAPES,SIZES,caption,random_scenes
from miniai.latents import load_reader
from miniai.lora import add_lora,all_layers,attention_layers,lora_params
from miniai.personalise import PriorCB,ShapeJudge,add_word,concept_captions,draw_things,dreambooth,fish,invert,left_half,measure,prior_examples,random_row
from miniai.stable import StableDiffusion

out = Path(__file__).parent/'results/personalise.jsonl'
places = [('large', 'white'), ('small', 'grey'), ('large', 'black'), ('small', 'white'), ('large', 'grey')]
more = [*places, ('small', 'black'), ('small', 'grey'), ('large', 'white'), ('large', 'black'), ('small', 'white')]
white = [(s, 'white') for s,_ in places]
things = dict(moon=(SHAPES['moon'], 'purple'), fish=(fish, 'orange'))
arrows = [f'a {s} {c} arrow on a {g} background' for s in SIZES for c in COLOURS for g in BACKGROUNDS]
drawn,spared = {},[]           # prior images and their CPU seconds, by number of scenes and seed: drawn once in a process; seconds spared by that


def with_inversion(pipe, thing='fish', where=places, said=None, **kw):
    "The row of the word, learned; nothing else."
    sdf,colour = things[thing]
    said = said or concept_captions('<it>', where)
    return len(invert(pipe, '<it>', draw_things(sdf, colour, where), said, like='circle' if thing=='moon' else 'arrow', **kw))


def own_images(pipe, scenes, seed):
    "Prior examples: what the pipeline draws for arrows and for `scenes` ordinary captions."
    key = scenes,seed
    if key in drawn: spared.append(drawn[key][1])
    else:
        start = time.process_time()
        kept = arrows+[caption(s) for s in random_scenes(scenes, seed=77, pairs=SEEN)]
        drawn[key] = prior_examples(pipe, kept, seed=seed),time.process_time()-start
    return drawn[key][0]


def with_net(pipe, where=places, prior=None, scenes=92, rank=None, layers=attention_layers, name='<it> arrow', said=None, inverted=False, text=False, seed=0, **kw):
    "DreamBooth on the fish; `prior` is the weight of what the pipeline drew itself, `rank` that of a LoRA; `inverted`: the word starts as a row that was searched for."
    if prior is not None: kw = dict(bs=8, prior=PriorCB(own_images(pipe, scenes, seed), prior)) | kw
    if inverted: with_inversion(pipe, where=where, seed=seed)
    else: add_word(pipe, '<it>', random_row(pipe, seed))
    torch.manual_seed(seed)
    if rank is not None:
        add_lora(pipe.unet, rank, where=layers)
        kw['params'] = list(lora_params(pipe.unet))
    if text: kw['params'] = [*pipe.unet.parameters(), *pipe.text.parameters()]
    n = sum(p.numel() for p in kw.get('params') or pipe.unet.parameters())
    dreambooth(pipe, draw_things(*things['fish'], where), said or concept_captions(name, where), seed=seed, **kw)
    pipe.text.eval()
    return n+128*inverted


both = dict(prior=1., lr=6e-4, steps=150)                                   # what all with a prior have, unless they say otherwise
pivot = both | dict(name='<it>', inverted=True)
thick = dict(rank=16, lr=.003, layers=all_layers)
runs = {
    'before': ('fish', lambda p, seed: add_word(p, '<it>', random_row(p, seed))*0),
    'inversion, moon': ('moon', partial(with_inversion, thing='moon')),
    'inversion, fish': ('fish alone', with_inversion),
    'DreamBooth': ('fish', with_net),
    'DreamBooth, prior': ('fish', partial(with_net, **both)),
    'inversion, moon, all on white, unsaid': ('moon', partial(with_inversion, thing='moon', where=white, said=['a <it>']*5)),
    'inversion, moon, 1 image': ('moon', partial(with_inversion, thing='moon', where=places[:1])),
    'inversion, moon, 30 steps': ('moon', partial(with_inversion, thing='moon', steps=30)),
    'DreamBooth, all on white, unsaid': ('fish', partial(with_net, where=white, said=['a <it> arrow']*5)),
    **{f'LoRA, rank {r}, rate {lr:g}': ('fish', partial(with_net, rank=r, lr=lr)) for r,lr in ((4, .003), (4, .01))},
    **{f'LoRA on all layers, rank {r}, rate 0.003': ('fish', partial(with_net, **thick | dict(rank=r))) for r in (1, 4, 16)},
    'LoRA on all layers, rank 16, rate 0.003, prior': ('fish', partial(with_net, **both | thick)),
    'DreamBooth, prior, no class': ('fish alone', partial(with_net, **both, name='<it>')),
    'inverted row, DreamBooth, prior': ('fish alone', partial(with_net, **pivot)),
    **{f'DreamBooth, {k} image{"s"*(k>1)}': ('brief', partial(with_net, where=more[:k])) for k in (1, 2, 10)},
    **{f'DreamBooth, {k} steps': ('brief', partial(with_net, steps=k)) for k in (30, 240)},
    'inverted row, LoRA, prior': ('fish alone', partial(with_net, **pivot | thick)),
    'inverted row, DreamBooth, prior, rate 3e-4': ('fish alone', partial(with_net, **pivot | dict(lr=3e-4))),
    'inverted row, DreamBooth, prior, weight 3': ('fish alone', partial(with_net, **pivot | dict(prior=3.))),
}


def score(pipe, kind, judge, reader):
    "All that is measured of one pipeline; only fidelity and drift for `kind` 'brief'."
    word,thing = '<it> arrow' if kind in ('fish','brief') else '<it>',('moon', 'purple') if kind=='moon' else ('fish', 'orange')
    row = measure(pipe, word, thing, judge, reader, random_scenes(64, seed=21, pairs=SEEN), n=36)[1]
    if kind=='brief': return row
    colours = [o for o in COLOURS if o not in ('orange','blue')]
    x = pipe([f'a {s} {c} arrow on a {g} background' for c in colours for s in SIZES for g in BACKGROUNDS], steps=12, seed=500)
    row['arrows'] = sum(s=='arrow' for s,_ in judge.read(x))/len(x)
    x = pipe(f'a large {word} left of a large blue ring on a white background', n=24, steps=12, seed=300)
    ring = [s.relation=='left of' and s.things[1][1:]==('blue','ring') for s in reader.read(x.float()/127.5-1)]
    row['beside'] = sum(a==thing and b for a,b in zip(judge.read(left_half(x)), ring))/24
    x = pipe(f'a {word}', n=24, steps=12, seed=900)
    row['white'] = sum(s.background=='white' for s in reader.read(x.float()/127.5-1))/24
    return row


def main(only, seed):
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    done = [json.loads(o) for o in out.read_text().splitlines()] if out.exists() else []
    done = {o['run'] for o in done if o['seed']==seed}
    todo = {k: v for k,v in runs.items() if k not in done and (k==only if only in runs else k.startswith(only))}
    base,reader = StableDiffusion.load(),load_reader()
    judge = ShapeJudge({'fish': fish, **SHAPES})
    for name,(kind,teach) in todo.items():
        pipe,start = copy.deepcopy(base),time.process_time()
        spared.clear()
        n = teach(pipe, seed=seed)
        row = dict(run=name, seed=seed, trained=n, seconds=round(time.process_time()-start+sum(spared)))
        row |= {k: round(v, 3) for k,v in score(pipe, kind, judge, reader).items()}
        print(row, flush=True)
        with out.open('a') as f: f.write(json.dumps(row)+'\n')


if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--only', default='', help='only the run of this name, or all whose names begin so')
    p.add_argument('--seed', type=int, default=0, help='of the training: order, captions, noise, first numbers, prior images')
    o = p.parse_args()
    main(o.only, o.seed)
