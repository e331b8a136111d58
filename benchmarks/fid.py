"""FID against the number of network calls: the stored network of lesson 15 in the samplers of lesson 20, up to three sets of pictures each.

Hours on two cores. Each finished row is a line of results/fid.jsonl and is not made again, unless the weights have changed; the table tells
which seeds it has."""
import argparse,json
from pathlib import Path
from statistics import mean,stdev
import torch
from miniai.conv import def_device
from miniai.data import get_data
from miniai.ddpm import generate,load_denoiser,load_weights
from miniai.fid import load_feature_net
from miniai.karras import karras_sigmas,sample_dpmpp_2m,sample_euler,sample_euler_ancestral,sample_heun,sample_lms
from common import write

results = Path(__file__).parent/'results'/'fid.jsonl'
samplers = {'Euler': sample_euler, 'ancestral Euler': sample_euler_ancestral, 'Heun': sample_heun, 'LMS': sample_lms, 'DPM-Solver++(2M)': sample_dpmpp_2m}
n = 2048


def done(weights):
    "The rows that were made with the weights of this sha256."
    rows = [json.loads(o) for o in results.read_text().splitlines()] if results.exists() else []
    return [o for o in rows if o['weights']==weights[:8]]


def keep(row):
    with results.open('a') as f: f.write(json.dumps(row)+'\n')
    print(row, flush=True)


def run(denoise, ruler, name, calls, seed):
    "FID and the smallest share of a class, of `n` pictures; Heun takes one call less than asked for if that is even."
    steps = (calls+1)//2 if name=='Heun' else calls
    with torch.autocast(torch.device(def_device).type, torch.bfloat16):
        x = generate(denoise, karras_sigmas(steps, .02, 80.), n, sampler=samplers[name], seed=seed*n, device=def_device)     # image i has the seed seed*n+i: no set shares one
    return dict(sampler=name, calls=2*steps-1 if name=='Heun' else steps, seed=seed, fid=round(ruler.fid(x), 3), least=round(ruler.class_fractions(x).min().item(), 4))


def floor(ruler, seed):
    "FID of as many test pictures."
    data = get_data('fashion_mnist')
    if data.source=='drawn': return
    chosen = torch.randperm(len(data.x_valid), generator=torch.Generator().manual_seed(seed))[:n]
    x = data.x_valid[chosen].float()/127.5-1
    return dict(sampler='real test pictures', calls=0, seed=seed, fid=round(ruler.fid(x), 3), least=round(ruler.class_fractions(x).min().item(), 4))


def report(rows):
    base = mean(o['fid'] for o in rows if not o['calls'])
    table = []
    for key in sorted({(o['calls'], o['sampler']) for o in rows}):
        same = [o for o in rows if (o['calls'], o['sampler'])==key]
        fids = [o['fid'] for o in same]
        spread = f' ± {stdev(fids):.2f}' if len(fids)>1 else ''
        table.append({'calls': key[0] or '', 'pictures': key[1], 'seeds': len(fids), 'FID': f'{mean(fids):.2f}{spread}',
                      'times the floor': f'{mean(fids)/base:.0f}', 'rarest class': f"{min(o['least'] for o in same):.1%}"})
    write('fid', table, 'FID against the number of network calls', ('torch',), (
        f'{n:,} pictures each of the network `fashion_ddpm`, on the noise levels `karras_sigmas(n, .02, 80.)`; the network works in bfloat16. The ruler of lesson 17, against the statistics of the 60,000 '
        'training pictures of Fashion-MNIST; the floor is the first row. Mean and standard deviation over the seeds; a row of one seed has no deviation of its own, '
        'and by those of the other rows its FID is good to about 0.3, more where it is above 10.',))


def main(names, calls, seeds, threads):
    if threads: torch.set_num_threads(threads)
    weights = load_weights('fashion_ddpm')[1]['sha256']
    denoise,ruler = load_denoiser(),load_feature_net()
    denoise.model.to(def_device)
    finished = {(o['sampler'], o['calls'], o['seed']) for o in done(weights)}
    for s in seeds:
        row = floor(ruler, s) if ('real test pictures', 0, s) not in finished else None
        if row: keep(dict(weights=weights[:8], **row))
    for c in calls:
        for s in seeds:
            for k in names:
                if (k, 2*((c+1)//2)-1 if k=='Heun' else c, s) not in finished: keep(dict(weights=weights[:8], **run(denoise, ruler, k, c, s)))
    report(done(weights))


if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--names', nargs='*', default=list(samplers), choices=list(samplers))
    p.add_argument('--calls', type=int, nargs='*', default=[10, 20, 50, 100])
    p.add_argument('--seeds', type=int, nargs='*', default=[1, 2, 3])
    p.add_argument('--threads', type=int)
    main(**vars(p.parse_args()))
