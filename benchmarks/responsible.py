"""What lesson 45 says with more runs than it has time for: a bias from the data to the drawings and back, over five seeds; copying by the size of the training set,
over three seeds; whether the stored models of lessons 28, 30 and 36 copied what they learnt from; and which colours the model of lesson 28 prefers
for each of ten shapes, without guidance and with it.

Run: `python benchmarks/responsible.py [--only bias]`. Each run adds a line to `benchmarks/results/responsible.jsonl`; runs that are there already are left
out, so that it can be stopped and started again. At the end it writes `benchmarks/results/responsible.md`. About fifteen minutes of one core."""
import argparse,importlib,json,random,statistics,time
from pathlib import Path
import torch
import torch.nn.functional as F
from miniai.data import COLOURS,SEEN,SHAPES,caption,draw_masks,draw_scenes,get_data,random_scenes
from miniai.guidance import generate_guided
from miniai.karras import karras_sigmas
from miniai.responsible import copy_test,fit_flat
from common import processor

out = Path(__file__).parent/'results/responsible.jsonl'
names,size = ('star','moon','ring','cross'),16


def world(n, orange, seed):
    "Images of four shapes, their classes, and which are blue; `orange` is the fraction for each shape."
    gen = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 4, (n,), generator=gen)
    blue = torch.rand(n, generator=gen)>=torch.tensor(orange)[y]
    kinds = torch.tensor([list(SHAPES).index(k) for k in names])[y]
    mask = draw_masks(kinds, .3*torch.rand(n, 2, generator=gen)-.15, .6+.2*torch.rand(n, generator=gen), .4*torch.rand(n, generator=gen)-.2, size)
    ink = torch.tensor([COLOURS['orange'], COLOURS['blue']]).float()[blue.long()][...,None,None]
    return (240+(ink-240)*mask[:,None])/127.5-1,y,blue


def is_blue(x): return x[:,2].mean((1,2))>x[:,0].mean((1,2))


def shape_judge():
    "A linear map from how colourful each pixel is to the shape, by least squares."
    def flat(x): return F.pad((x.amax(1)-x.amin(1)).flatten(1), (0, 1), value=1.)
    x,y,_ = world(4000, [.5]*4, 50)
    a = flat(x)
    w = torch.linalg.solve(a.T@a+10*torch.eye(a.shape[1]), a.T@F.one_hot(y, 4).float())
    return lambda x: (flat(x)@w).argmax(1)


def paint(net, y, scale, seed, shape):
    return generate_guided(net, y, torch.tensor([net.n_classes]), scale, karras_sigmas(12, .1, 40.), shape=shape, seed=seed)


def repair(w, method): return dict(weights=w) if method=='weights of the loss' else dict(probs=w) if method=='balanced sampling' else {}


def told(x, y, blue, method):
    "Images, classes and their number: the shape, or the shape and the colour, which dice choose when it is drawn."
    return (x, 2*y+blue, 8) if method==by_dice else (x, y, 4)


def bias(n, method, seed):
    "A bias in the data, and what is drawn, with and without a repair."
    x,y,blue = world(n, [.8, .2, .5, .5], 1000*seed)
    group = 2*y+blue
    w = (n/8/torch.bincount(group, minlength=8).clamp(min=1).float())[group]
    start = time.process_time()
    net = fit_flat(*told(x, y, blue, method), seed=seed, **repair(w, method))
    row,judge,asked = dict(secs=time.process_time()-start),shape_judge(),torch.arange(2000)%4
    dice = torch.rand(2000, generator=torch.Generator().manual_seed(3000*seed))<.5
    row['data'] = (~blue)[y==0].float().mean().item()
    row['effective'] = (w.sum()**2/w.square().sum()).item()
    for scale in (1., 2., 4.):
        images = paint(net, 2*asked+dice if method==by_dice else asked, scale, 5000*seed, (3,size,size))
        drawn,right = is_blue(images),judge(images)==asked
        row |= {f'orange stars, {scale:g}': (~drawn)[asked==0].float().mean().item(), f'shape, {scale:g}': right.float().mean().item(),
                f'shape of blue stars, {scale:g}': right[(asked==0)&drawn].float().mean().item()}
    return row


def rare(n, method, seed):
    "Are the blue stars that are drawn nearer to those few of the data than to as many others?"
    x,y,blue = world(n, [.8, .2, .5, .5], 1000*seed)
    few = (y==0)&blue
    w = (n/8/torch.bincount(2*y+blue, minlength=8).clamp(min=1).float())[2*y+blue]
    star = torch.full((1000,), int(method==by_dice))                              # class 1 is "blue star" where the colour is said
    drawn = paint(fit_flat(*told(x, y, blue, method), seed=seed, **repair(w, method)), star, 1., 9000*seed, (3,size,size))
    drawn = drawn[is_blue(drawn)].flatten(1)
    x_new,y_new,blue_new = world(6*n, [.8, .2, .5, .5], 1000*seed+500)
    others = x_new[(y_new==0)&blue_new].flatten(1)
    k = int(few.sum())
    tests = [copy_test(drawn, x[few].flatten(1), o) for o in others[:5*k].split(k)]           # against five other sets
    return {'blue stars': k, 'drawn': len(drawn), 'nearer to the training images': sum(t.fraction for t in tests)/len(tests)}


def overfit(n, seed):
    "A small model of `n` garments; is what it draws nearer to them than to `n` others?"
    data = get_data('fashion_mnist')
    k = torch.randperm(len(data.x_train), generator=torch.Generator().manual_seed(seed))
    x = data.x_train[k[:3*n]].float()/127.5-1
    net = fit_flat(x[:n], torch.zeros(n, dtype=torch.int64), 1, steps=2000, seed=seed)
    drawn = paint(net, torch.zeros(500, dtype=torch.int64), 1., 7000*seed, (1,28,28))
    a,b,c = (o.flatten(1) for o in (x[:n], x[n:2*n], x[2*n:]))
    d = (drawn.flatten(1)-a[torch.cdist(drawn.flatten(1), a).argmin(1)]).norm(dim=1)         # cdist itself rounds small ones
    return {'nearer to the training images': copy_test(drawn.flatten(1), a, b).fraction, 'real ones': copy_test(c[:500], a, b).fraction,
            'distance': d.median().item(), 'distance of real ones': torch.cdist(c[:500], a).amin(1).median().item()}


def gan(n, seed):
    "The generator of lesson 36: `n` garments against all 60,000 training images and half of the test images; the other half are innocent."
    data,net = get_data('fashion_mnist'),importlib.import_module('miniai.gan').load_gan()
    torch.manual_seed(seed)
    with torch.no_grad(): drawn = torch.cat([net(torch.randn(500, net.nz), torch.arange(500)%10) for _ in range(n//500)])
    def flat(x): return F.avg_pool2d(x, 2).flatten(1)
    a,test = flat(data.x_train.float()/127.5-1),flat(data.x_valid.float()/127.5-1)
    held,row = test[::2],{}
    for k,o in (('drawn', flat(drawn)), ('real', test[1::2])):
        got = [copy_test(p, a, held) for p in o.split(1000)]
        row |= {f'nearest was trained on, {k}': sum(g.fraction for g in got)/len(got), f'n, {k}': len(o), 'expected': got[0].expected}
    return row


def emoji(kind, n, seed):
    "The transformer of lesson 30: what it draws without words, and for seen and held-out pairs of a name and a style."
    flow,em,judges = (importlib.import_module(f'miniai.{o}') for o in ('flow','emoji','judges'))
    table = em.load_emoji()
    split,x,judge = flow.split_emoji(table),em.on_background(table.x).float()/127.5-1,judges.load_emoji_judge()
    train,held = list(split.train),list(split.pairs)
    rng = random.Random(seed)
    rows = {'seen': lambda: rng.sample(train, n), 'held out': lambda: rng.sample(held, min(n, len(held))), 'real, held out': lambda: held, 'no words': lambda: [0]*n}[kind]()
    if kind=='real, held out': drawn = x[rows]
    else:
        artist = flow.EmojiDiffusion.load()
        prompts = ['' if kind=='no words' else f'{table.names[i]}, {flow.STYLE_WORDS[table.styles[i]]}' for i in rows]
        drawn = artist(prompts, steps=16, guidance=1. if kind=='no words' else 3., seed=1000*seed).float()/127.5-1
    features,row = judges.judge_features(judge, x),dict(n=len(rows))
    spaces = {'pixels': (judges.pixel_vectors(x), judges.pixel_vectors(drawn)), 'features': (features, judges.judge_features(judge, drawn))}
    for space,(real,made) in spaces.items():
        near = judges.copies(made, real[train])
        row |= {f'copies, {space}': near.fraction(), f'median ratio, {space}': near.ratio.median().item()}
        if kind!='real, held out': row[f'nearest was trained on, {space}'] = copy_test(made, real[train], real[held]).fraction
        if kind=='seen': row[f'nearest is what was asked for, {space}'] = sum(train[j]==i for i,j in zip(rows, near.nearest.tolist()))/len(rows)
    row['expected'] = len(train)/(len(train)+len(held))
    moved = torch.stack([judges.copies(judges.pixel_vectors(drawn.roll((i, j), (2, 3))), judges.pixel_vectors(x)[train]).ratio for i in (-2, 0, 2) for j in (-2, 0, 2)])
    row['copies, moved by up to two pixels'] = (moved.amin(0)<=.3).double().mean().item()
    return row


def training_scenes(n): return random_scenes(n, 70, SEEN, (True,))                   # the first of stage 5 of training/scene_unet.py


def scene_images(scenes, seed):
    "Images, uint8, as the training drew them: `scene_latents` of lesson 27, with `seed` 70 in stage 5."
    return torch.cat([draw_scenes(scenes[i:i+256], 64, seed+i) for i in range(0, len(scenes), 256)])


def scene_copies(n, n_drawn, seed):
    """The pipeline of lesson 28 on captions that it was trained with, the first `n_drawn` of `n`: is a drawing nearer to training scenes than to as many that it has never seen, with
    the same words but other places and turns? Scenes of two things, whose captions hardly ever come twice; the training's own, drawn anew from its seeds."""
    stable,latents = (importlib.import_module(f'miniai.{o}') for o in ('stable','latents'))
    scenes = training_scenes(n)
    train,held,fresh = (scene_images(scenes, o) for o in (70, 7_000_000, 8_000_000))
    pipe,reader = stable.StableDiffusion.load(),latents.load_reader()
    made = torch.cat([pipe([caption(s) for s in scenes[i:i+64]], steps=8, guidance=4., seed=[seed+i+k for k in range(64)]) for i in range(0, n_drawn, 64)])
    recoded = torch.cat([pipe.codec.to_pictures(pipe.codec.to_latents(o.float()/127.5-1)) for o in train[:n_drawn].split(256)])
    body = torch.nn.Sequential(*list(reader.net.children())[:-1])
    reader.net = body
    def features(x):
        with torch.no_grad(): return torch.cat([reader(o).flatten(1) for o in x.split(256)])
    spaces,row = {'pixels': lambda x: F.avg_pool2d(x, 2).flatten(1), 'features': features},dict(n=n_drawn, training=n)
    for space,f in spaces.items():
        a,b = f(train.float()/127.5-1),f(held.float()/127.5-1)
        for who,x in (('drawn', made.float()/127.5-1), ('drawn by the program', fresh[:n_drawn].float()/127.5-1), ('copies through the codec', recoded)):
            v = f(x)
            got,own = copy_test(v, a, b),[(v-o[:n_drawn]).square().sum(1) for o in (a, b)]
            row |= {f'{who}, {space}': got.fraction, f'{who}, {space}, the scene of its caption': (own[0]<own[1]).double().mean().item()}
    return row


def amplify(shape, n, seed):
    "Colours, as indices into `COLOURS`, of `n` drawings of a shape whose colour is left open, without guidance and with it, from the same noise."
    stable,latents = (importlib.import_module(f'miniai.{o}') for o in ('stable','latents'))
    pipe,reader,row = stable.StableDiffusion.load(),latents.load_reader(),{}
    for g in (1., 4.):
        x = pipe(f'a {shape} on a white background', n=n, steps=8, guidance=g, seed=seed)
        row[f'colours, {g:g}'] = [list(COLOURS).index(s.things[0].colour) for s in reader.read(x.float()/127.5-1)]
    return row


by_dice = 'colour by dice'
methods = 'as it is','weights of the loss','balanced sampling',by_dice
runs = {f'bias: {n} images, {m}, seed {s}': (bias, n, m, s) for n in (6000, 240) for m in methods for s in range(5)}
runs |= {f'overfit: {n} garments, seed {s}': (overfit, n, s) for n in (16, 64, 256, 1024, 4096, 16384) for s in range(3)}
runs |= {f'rare: {n} images, {m}, seed {s}': (rare, n, m, s) for n in (6000, 240) for m in methods for s in range(3)}
runs |= {'scenes: 1024 captions of the training': (scene_copies, 2048, 1024, 50_000)}
runs |= {f'amplify: {k}': (amplify, k, 96, 20_000) for k in SHAPES}
runs |= {'gan: 10000 garments': (gan, 10_000, 0)}
runs |= {f'emoji: {k}': (emoji, k, 192, 1) for k in ('real, held out', 'no words', 'seen', 'held out')}


def report(found):
    "The Markdown page."
    def cells(*o): return '| '+' | '.join(o)+' |'
    def said(v): return f'{statistics.mean(v):.2f}'+(f' ({min(v):.2f} to {max(v):.2f})' if len(v)>1 else '')
    def table(head, rows): return '\n'.join([cells(*head), cells(*['---']*len(head)), *(cells(*o) for o in rows)])
    def some(start): return [v for k,v in found.items() if k.startswith(start)]
    parts = [f'# Responsible: lesson 45\n\n{processor()}, one core, torch {torch.__version__}. Mean and range over the seeds.']
    keys = ['data','orange stars, 1','orange stars, 2','orange stars, 4','shape, 1','shape of blue stars, 1','effective']
    rows = [(str(n), m, *(said([o[k] for o in v]) for k in keys)) for n in (6000, 240) for m in methods if (v := some(f'bias: {n} images, {m},'))]
    parts += ['## From data to drawings\n', table(['images','repair','orange among the stars of the data','drawn, guidance 1','2','4','shape right','shape of blue stars right','effective images'], rows),
              '\n800 batches of 64; five seeds; 500 stars each.']
    keys = ['blue stars','nearer to the training images']
    rows = [(str(n), m, *(said([o[k] for o in v]) for k in keys)) for n in (6000, 240) for m in methods if (v := some(f'rare: {n} images, {m},'))]
    parts += ['## Are the rare ones copied?\n', table(['images','repair','blue stars in the data','drawn blue stars that are nearer to these than to as many others'], rows),
              '\n800 batches of 64; three seeds. Without copying the last column is 0.5.']
    keys = ['nearer to the training images','real ones','distance','distance of real ones']
    rows = [(str(n), *(said([o[k] for o in v]) for k in keys)) for n in (16, 64, 256, 1024, 4096, 16384) if (v := some(f'overfit: {n} garments'))]
    parts += ['## Copying by the size of the training set\n', table(['garments',*keys], rows), '\n2,000 batches of 64; three seeds; 500 drawings each. Without copying the first column is 0.5.']
    parts += ['## Colours that nobody asked for\n', table(['shape','guidance',*COLOURS], [(k.split(': ')[1], g, *(str(v[f'colours, {g}'].count(i)) for i in range(len(COLOURS))))
              for k,v in found.items() if k.startswith('amplify') for g in '14']), '\nDrawings for "a SHAPE on a white background" by the model of lesson 28, by their colour, as the reader of lesson 27 sees it.']
    for kind,title in (('scenes','Drawn scenes, the model of lesson 28'), ('gan','Fashion-MNIST, the generator of lesson 36'), ('emoji','Emoji, the transformer of lesson 30')):
        for k,v in found.items():
            if k.startswith(kind): parts.append(f'## {title}: {k.split(": ")[1]}\n\n'+table(['measured','value'], [(a, f'{b:.4g}') for a,b in v.items()]))
    out.with_suffix('.md').write_text('\n'.join(parts)+'\n', encoding='utf-8')


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--only', default='', help='Runs whose name begins with this')
    args = p.parse_args()
    torch.set_num_threads(1)
    found = {o['name']: o['found'] for o in map(json.loads, out.read_text().splitlines())} if out.exists() else {}
    for name,(f,*rest) in runs.items():
        if name in found or not name.startswith(args.only): continue
        found[name] = {k: round(v, 5) if isinstance(v, float) else v for k,v in f(*rest).items()}
        print(name, found[name], flush=True)
        with out.open('a') as o: o.write(json.dumps(dict(name=name, found=found[name]))+'\n')
    report(found)


if __name__=='__main__': main()
