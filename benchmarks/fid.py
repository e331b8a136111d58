"""FID and KID of generated garments against the number of network evaluations (NFE): the stored networks in the samplers of lesson 20, three sets of images each.

Hours on two cores. Each finished row is a line of results/fid.jsonl and is not made again, unless the weights have changed; the table tells
which seeds it has. The rows of the board of garments, miniai/boards.json, are among them."""
import argparse,json,os
from functools import cache
from pathlib import Path
from statistics import mean,stdev
import torch
from miniai.conv import def_device
from miniai.data import get_data
from miniai.ddim import sample_ddim,trailing_times
from miniai.ddpm import generate,linear_schedule,load_denoiser,load_weights
from miniai.distill import load_few
from miniai.fid import load_feature_net
from miniai.guidance import AutoGuidedDenoiser
from miniai.karras import karras_sigmas,sample_dpmpp_2m,sample_euler,sample_euler_ancestral,sample_heun,sample_lms
from miniai.resnet import autocast
from miniai.unet import load_unet
from common import write

here = Path(__file__).parent
results,board = here/'results'/'fid.jsonl',here.parent/'miniai'/'boards.json'
samplers = {'DDIM': sample_ddim, 'Euler': sample_euler, 'ancestral Euler': sample_euler_ancestral, 'Heun': sample_heun, 'LMS': sample_lms, 'DPM-Solver++(2M)': sample_dpmpp_2m,
            'Heun, even times': sample_heun, 'DPM-Solver++(2M), even times': sample_dpmpp_2m, 'DPM-Solver++(2M), few low levels': sample_dpmpp_2m}
# Autoguidance: the better net, the worse one and the scale, by name
guided = {f'fashion_unet, away from fashion_ddpm by {w}': ('fashion_unet', 'fashion_ddpm', w) for w in (1.25,)}
loaders = dict(fashion_ddpm=load_denoiser, fashion_unet=load_unet, fashion_few=lambda: load_few('fashion_few')[0])
loaders |= {k: lambda a=a,b=b,w=w: AutoGuidedDenoiser(loaders[a](), loaders[b](), w) for k,(a,b,w) in guided.items()}
n,nfes,few = 2048,(10, 20, 50, 100),(1, 2, 4)
# (lesson, what it is, weights, sampler, NFE); DDIM is Euler's method on other noise levels, see `levels`
recipes = [('15', 'noise, DDPM', 'fashion_ddpm', 'ancestral Euler', nfes), ('18', 'DDIM', 'fashion_ddpm', 'DDIM', nfes),
           ('20', 'DPM-Solver++', 'fashion_ddpm', 'DPM-Solver++(2M)', nfes), ('21', 'UNet, preconditioned', 'fashion_unet', 'DPM-Solver++(2M)', nfes),
           ('21', 'the same with fresh noise', 'fashion_unet', 'ancestral Euler', nfes),
           ('21', 'the same, fewer low levels', 'fashion_unet', 'DPM-Solver++(2M), few low levels', (10, 20)),
           ('24', 'the UNet of 21, autoguided', next(iter(guided)), 'DPM-Solver++(2M)', nfes), ('24', 'the same with fresh noise', next(iter(guided)), 'ancestral Euler', nfes),
           ('31', 'UNet of 21, few steps', 'fashion_unet', 'DPM-Solver++(2M)', few), ('31', 'its student', 'fashion_few', 'Euler', few)]
# (lesson, what it is, name in results/gan.jsonl, stored weights or None): one evaluation each
single = [('36', 'VAE of 25', 'VAE of 25', None), ('36', 'GAN', 'GAN', 'fashion_gan')]


def lines(): return [json.loads(o) for o in results.read_text().splitlines()] if results.exists() else []


@cache
def sha(name):
    "The beginning of the sha256 of today's weights; of two nets with the scale between them."
    if name in guided: return '{}+{}*{}'.format(*map(sha, guided[name][:2]), guided[name][2])
    return load_weights(name)[1]['sha256'][:8]


def done(name):
    "The rows that were made with today's weights `name`, or by no network; of two with the same sampler, NFE and seed the later one."
    return list({(o['sampler'], o['calls'], o['seed']): o for o in lines() if o['weights']==sha(name) or not o['calls']}.values())


def keep(row):
    with results.open('a') as f: f.write(json.dumps(row)+'\n')
    print(row, flush=True)


def measure(net, x): return dict(fid=round(net.fid(x), 3), kid=round(net.kid(x), 5), least=round(net.class_fractions(x).min().item(), 4))


def levels(weights, name, steps):
    "Noise levels of a row: the student's own, those of evenly spaced (trailing) times for DDIM as lesson 18 uses it and where the name says so, Karras' for all others."
    if weights=='fashion_few': return load_few(weights)[1][steps]
    if name=='DDIM' or name.endswith('even times'): return torch.cat([linear_schedule().sigma(trailing_times(1000, steps)), torch.zeros(1)])
    if name.endswith('few low levels'): return karras_sigmas(steps, .05, 80., 3.)      # chosen among some twenty on 1,024 other images
    return karras_sigmas(steps, .02, 80.)


def run(denoise, net, weights, name, nfe, seed):
    "FID, KID and the smallest fraction of a class, of `n` images; Heun takes one evaluation less than asked for if that is even; autoguidance takes two per step."
    steps = nfe//2 if weights in guided else (nfe+1)//2 if name.startswith('Heun') else nfe
    with autocast():
        x = generate(denoise, levels(weights, name, steps), n, sampler=samplers[name], seed=seed*n, device=def_device)     # image i has the seed seed*n+i: no set shares one
    return dict(sampler=name, calls=2*steps-1 if name.startswith('Heun') else nfe, seed=seed, **measure(net, x))


def floor(net, seed):
    "FID and KID of as many test images."
    data = get_data('fashion_mnist')
    if data.source=='drawn': return
    chosen = torch.randperm(len(data.x_valid), generator=torch.Generator().manual_seed(seed))[:n]
    return dict(sampler='real test images', calls=0, seed=seed, **measure(net, data.x_valid[chosen].float()/127.5-1))


def spread(values, scale=1):
    return f"{scale*mean(values):.2f}" + (f" ± {scale*stdev(values):.2f}" if len(values)>1 else '')


def report():
    table = []
    for name in loaders:
        rows = done(name)
        for key in sorted({(o['calls'], o['sampler']) for o in rows}):
            if not key[0] and table: continue                      # real images once, not once per network
            same = [o for o in rows if (o['calls'], o['sampler'])==key]
            kids = [o['kid'] for o in same if 'kid' in o]
            table.append({'network': name if key[0] else '', 'NFE': key[0] or '', 'images': key[1], 'seeds': len(same), 'FID': spread([o['fid'] for o in same]),
                          'KID x 1000': spread(kids, 1000) if kids else '', 'rarest class': f"{min(o['least'] for o in same):.1%}"})
    write('fid', table, 'FID and KID against the number of network evaluations', ('torch',), (
        f'{n:,} images each, on the noise levels `karras_sigmas(n, .02, 80.)` (DDIM, and where the name says so: those of evenly spaced times, as in lesson 18; few low levels: `karras_sigmas(n, .05, 80., 3.)`); the network works in bfloat16 where the processor has it. The feature network of lesson 17, against the statistics of the 60,000 '
        'training images of Fashion-MNIST; the floor is the row of real test images. Mean and standard deviation over the seeds; a row of one seed has no deviation of its own, '
        'and by those of the other rows its FID is good to about 0.3, more where it is above 10.',), where='All stored sets, whatever the processor')


def one_step():
    "Rows of networks that draw in one evaluation, from results/gan.jsonl; their KID was not measured."
    res,stored = [],[json.loads(o) for o in (results.parent/'gan.jsonl').read_text().splitlines()]
    for lesson,recipe,name,weights in single:
        same = [o for o in stored if (o['part'], o['name'])==('triangle', name) and o['weights']==(weights and sha(weights))]
        same.sort(key=lambda o: o['seed'])
        if same: res.append(dict(lesson=lesson, recipe=recipe, fid={'1': [o['fid'] for o in same]}, kid={}, least={'1': [o['least'] for o in same]}))
    return res


def rows():
    "The rows of the board of garments, from the stored results alone."
    res = []
    for lesson,recipe,name,sampler,nfes in recipes:
        same = [o for o in done(name) if o['sampler']==sampler and 'kid' in o]
        by = {k: [o for o in same if o['calls']==k] for k in nfes}
        if not any(by.values()): continue
        res.append(dict(lesson=lesson, recipe=recipe, **{k: {str(nfe): [o[k] for o in sorted(v, key=lambda o: o['seed'])] for nfe,v in by.items() if v} for k in ('fid','kid','least')}))
    return res+one_step()


def save_board():
    boards = json.loads(board.read_text(encoding='utf-8'))
    if not rows(): return
    boards['garments'] = rows()
    temp = board.with_suffix('.tmp')
    temp.write_text(json.dumps(boards, indent=1)+'\n', encoding='utf-8')
    os.replace(temp, board)


def main(weights, names, nfe, seeds, threads):
    if threads: torch.set_num_threads(threads)
    net = load_feature_net()
    for name in weights:
        denoise = loaders[name]()
        for o in (denoise.good, denoise.bad) if name in guided else (denoise,): o.model.to(def_device)
        def finished(*key): return any((o['sampler'], o['calls'], o['seed'])==key and 'kid' in o for o in done(name))
        for s in seeds:
            row = None if finished('real test images', 0, s) else floor(net, s)
            if row: keep(dict(weights=sha(name), **row))
        student = name=='fashion_few'                                  # knows its own levels alone, for Euler's method
        for c in [o for o in nfe if o in few] if student else nfe:
            for s in seeds:
                for k in ['Euler'] if student else names:
                    if not finished(k, 2*((c+1)//2)-1 if k.startswith('Heun') else c, s): keep(dict(weights=sha(name), **run(denoise, net, name, k, c, s)))
    report()
    save_board()


if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--weights', nargs='*', default=list(loaders), choices=list(loaders))
    p.add_argument('--names', nargs='*', default=list(samplers), choices=list(samplers))
    p.add_argument('--nfe', type=int, nargs='*', default=list(few+nfes))
    p.add_argument('--seeds', type=int, nargs='*', default=[1, 2, 3])
    p.add_argument('--threads', type=int)
    main(**vars(p.parse_args()))
