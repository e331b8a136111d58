"""Lesson 33's posters from more seeds: LoRAs of two ranks.

Run: `python benchmarks/lora.py [--seeds 1 2]`. Each run adds a line to `benchmarks/results/lora.jsonl`; runs that are there already are left out. A run takes less
than half a minute of one core."""
import argparse,copy,json
from functools import partial
from pathlib import Path
import torch,torch.nn.functional as F
from torch.optim import AdamW
from miniai.data import SEEN,caption,draw_scenes,random_scenes
from miniai.guidance import CondCB
from miniai.karras import KarrasCB
from miniai.latents import load_reader
from miniai.learner import DeviceCB,Learner
from miniai.loaders import DataLoaders
from miniai.lora import add_lora
from miniai.optim import BatchSchedCB,OneCycle
from miniai.resnet import AutocastCB
from miniai.stable import StableDiffusion

out = Path(__file__).parent/'results/lora.jsonl'


def poster(scene, k):
    "The scene in two inks on white paper."
    inks = ('orange','blue') if k%2 else ('blue','orange')
    return scene._replace(things=tuple(t._replace(colour=c) for t,c in zip(scene.things, inks)), background='white')


def silent(scene):
    "The scene without a word about colours."
    return scene._replace(things=tuple(t._replace(colour='') for t in scene.things), background='')


posters = [poster(s, k) for k,s in enumerate(random_scenes(24, seed=1))]
images,captions = draw_scenes(posters, 64, seed=7),[caption(silent(s)) for s in posters]
scenes = random_scenes(32, seed=105, pairs=SEEN)
prompts,named = [caption(silent(s)) for s in scenes],[caption(s) for s in scenes]


def tune(pipe, net, n_steps, lr, bs=16, seed=0):
    "Train what is free in `net` on the posters, as lesson 33 does."
    z,states,empty = pipe.latents(images),pipe.states(captions),pipe.states('')
    torch.manual_seed(seed)
    k = torch.randint(len(z), (n_steps*bs,))
    dls = DataLoaders.from_tensors((z[k], states[k]), (z[:8], states[:8]), bs=bs)
    cbs = [DeviceCB(), CondCB(KarrasCB(1., mean=.2, std=1.4), empty[0]), AutocastCB(n_inp=3), BatchSchedCB(partial(OneCycle, max_lr=lr))]
    Learner(net.train(), dls, F.mse_loss, lr, cbs, AdamW).fit(1, valid=False)
    return net.eval()


def floats(x): return x.float()/127.5-1


def in_style(seen): return sum(s.background=='white' and all(t.colour in ('orange','blue') for t in s.things) for s in seen)/len(seen)


class Judge:
    "The four numbers of lesson 33."
    def __init__(self):
        self.pipe,self.reader = StableDiffusion.load(),load_reader()
        self.reference = floats(self.pipe(named, steps=12))

    def __call__(self, pipe):
        x,y = floats(pipe(prompts, steps=12)),floats(pipe(named, steps=12))
        return {'in the style': in_style(self.reader.read(x)), 'content right': self.reader.score(x, [silent(s) for s in scenes]).whole,
                'named colours right': self.reader.score(y, scenes).whole, 'drift': (y-self.reference).abs().mean().item()}


def with_lora(judge, rank, seed):
    pipe = copy.deepcopy(judge.pipe)
    torch.manual_seed(seed)
    add_lora(pipe.unet, rank=rank)
    tune(judge.pipe, pipe.unet, 100, 6e-3, seed=seed)
    return judge(pipe)


runs = {f'LoRA, rank {r}': partial(with_lora, rank=r) for r in (4, 16)}


def main(seeds):
    torch.set_num_threads(1)
    done = [json.loads(o) for o in out.read_text().splitlines()] if out.exists() else []
    done = {(o['run'], o['seed']) for o in done}
    judge = Judge()
    for name,f in runs.items():
        for seed in seeds:
            if (name, seed) in done: continue
            row = dict(run=name, seed=seed) | {k: round(v, 4) for k,v in f(judge, seed=seed).items()}
            print(row, flush=True)
            with out.open('a') as o: o.write(json.dumps(row)+'\n')


if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--seeds', type=int, nargs='+', default=[1, 2])
    main(p.parse_args().seeds)
