"""Our UNet and its peers: seconds a training step and a sampling step, and peak memory, at equal layout and parameters.

Needs diffusers, a development requirement; `pip install denoising-diffusion-pytorch` adds lucidrains' Unet, which has no such layout and stands for itself.
`python unet.py --threads 2 --rounds 9` sets torch's threads and the rounds."""
import argparse,gc,importlib,os,subprocess,sys,warnings
from contextlib import nullcontext
from functools import partial
from importlib.metadata import PackageNotFoundError,version
import torch
from torch import nn,optim
import torch.nn.functional as F
from miniai.unet import UNet
from common import compare,write

bs,size,groups = 64,32,8
layouts = {'32-64-96, depth 1': ((32,64,96), 1), '64-128-192, depth 2': ((64,128,192), 2)}
lucidrains = 'denoising-diffusion-pytorch'


def ours(nfs, depth): return UNet(nfs, depth=depth, n_emb=4*nfs[0], norm=partial(nn.GroupNorm, groups))


def diffusers(nfs, depth):
    n = len(nfs)
    net = importlib.import_module('diffusers').UNet2DModel(
        size, 1, 1, block_out_channels=nfs, layers_per_block=depth, norm_num_groups=groups, resnet_time_scale_shift='scale_shift',
        down_block_types=['DownBlock2D']*n, up_block_types=['UpBlock2D']*n, add_attention=False)
    return Sample(net)


class Sample(nn.Module):
    "The tensor out of what diffusers' net returns."
    def __init__(self, net):
        super().__init__()
        self.net = net
    def forward(self, x, c): return self.net(x, c, return_dict=False)[0]


class Small(nn.Conv2d):
    "A net for the first use of everything."
    def forward(self, x, c): return super().forward(x)


def denoising_diffusion_pytorch(nfs, depth):
    Unet = importlib.import_module('denoising_diffusion_pytorch').Unet
    return Unet(nfs[0], dim_mults=tuple(n//nfs[0] for n in nfs), channels=1, resnet_block_groups=groups)


peers = {'diffusers': diffusers, 'miniai': ours, lucidrains: denoising_diffusion_pytorch}


def has(package):
    try: return bool(version(package))
    except PackageNotFoundError: return False


def make(peer, layout):
    "A net in training mode and one batch: images, levels (steps, for those who take steps), targets."
    torch.manual_seed(1)
    net = peers[peer](*layouts[layout])
    c = torch.rand(bs) if peer=='miniai' else torch.randint(1000, (bs,))
    return net,torch.randn(bs, 1, size, size),c,torch.randn(bs, 1, size, size)


def training_step(net, x, c, y, amp):
    opt = optim.AdamW(net.parameters(), lr=1e-4)
    def step():
        with torch.autocast('cpu', torch.bfloat16) if amp else nullcontext(): pred = net(x, c)
        F.mse_loss(pred.float(), y).backward()
        opt.step()
        opt.zero_grad()
    return step


def sampling_step(net, x, c, y, amp):
    def step():
        with torch.no_grad(), torch.autocast('cpu', torch.bfloat16) if amp else nullcontext(): net(x, c)
    return step


tasks = {'training step': training_step, 'sampling step': sampling_step}


def status(key):
    "A line of /proc/self/status, in MB. Not `ru_maxrss`, in which a child process inherits the peak of its parent."
    return next(int(o.split()[1]) for o in open('/proc/self/status') if o.startswith(key+':'))/2**10


def memory(peer, layout, task, amp, threads):
    "Peak memory in MB above that of the imports, from a process of its own."
    args = [sys.executable, __file__, '--memory', peer, layout, task, str(int(amp)), '--threads', str(threads)]
    env = {**os.environ, 'MALLOC_MMAP_THRESHOLD_': '65536', 'MALLOC_TRIM_THRESHOLD_': '65536'}      # what is freed is given back at once
    return float(subprocess.run(args, check=True, capture_output=True, text=True, env=env).stdout.split()[-1])


def measure_memory(peer, layout, task, amp):
    "What `memory` runs: the net, then three steps; prints MB."
    importlib.import_module('diffusers' if peer=='diffusers' else 'miniai.unet' if peer=='miniai' else 'denoising_diffusion_pytorch')
    if peer=='diffusers': getattr(sys.modules['diffusers'], 'UNet2DModel')       # diffusers imports when asked
    for f in tasks.values(): f(Small(1, 1, 3, padding=1), torch.randn(1, 1, 8, 8), None, torch.randn(1, 1, 8, 8), amp)()    # what torch imports when first used
    gc.collect()
    with open('/proc/self/clear_refs', 'w') as f: f.write('5')                    # the peak of the imports is forgotten
    before = status('VmRSS')
    args = make(peer, layout)
    args[0].train(task=='training step')
    step = tasks[task](*args, amp)
    for _ in range(3): step()
    print(status('VmHWM')-before)


def rows_of(layout, amp, rounds, threads):
    "One row a peer and task."
    made = {k: make(k, layout) for k in peers if k!=lucidrains or has(k)}
    counts = {k: sum(p.numel() for p in o[0].parameters()) for k,o in made.items()}
    if abs(counts['miniai']/counts['diffusers']-1)>.01: raise RuntimeError(f'the parameters differ: {counts}')
    rows = []
    for task,f in tasks.items():
        for o in made.values(): o[0].train(task=='training step')
        times = compare(task, {k: f(*o, amp) for k,o in made.items()}, rounds)
        mb = {k: memory(k, layout, task, amp, threads) for k in made}
        for r in times:
            k = r['label']
            rows.append({'layout': layout, 'numbers': 'bfloat16' if amp else 'float32', 'task': task, 'net': k, 'parameters': f'{counts[k]:,}',
                         'seconds': f"{r['median']:.3f}", 'of diffusers': f"{1/r['ratio']:.2f}", 'peak MB': f'{mb[k]:.0f}',
                         'of diffusers ': f"{mb[k]/mb['diffusers']:.2f}"})
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--threads', type=int, default=1, help="torch's threads")
    parser.add_argument('--rounds', type=int, default=7, help='measured rounds, in each of which every net runs once')
    parser.add_argument('--layouts', type=int, default=len(layouts), help='how many of the layouts, the small one first')
    parser.add_argument('--memory', nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory:
        peer,layout,task,amp = args.memory
        return measure_memory(peer, layout, task, bool(int(amp)))
    warnings.filterwarnings('ignore')
    rows = [r for layout in list(layouts)[:args.layouts] for amp in (False, True) for r in rows_of(layout, amp, args.rounds, args.threads)]
    third = [f"{lucidrains}'s Unet has attention, and two blocks a level whatever the depth: it is measured as it is."]
    if not has(lucidrains):
        third = [f"{lucidrains} is not installed here, so its Unet is not measured; with it installed this script does."]
        rows.append({**dict.fromkeys(rows[0], '-'), 'net': lucidrains, 'parameters': 'not installed'})
    write('unet', rows, 'A UNet without attention: ours beside those of other libraries', ['torch', 'diffusers', *[k for k in [lucidrains] if has(k)]], (
        f'Batches of {bs} images of 1x{size}x{size}, {args.threads} thread{"s"[:args.threads>1]}; GroupNorm with {groups} groups; medians of {args.rounds} rounds, the nets in turn; "of diffusers" is the median of the ratios of each round.',
        'A training step is forward, backward and AdamW; a sampling step is a forward pass without gradients. Peak memory is that of a process of its own, above what it held after the imports; freed memory goes back to the system at once.',
        *third))


if __name__=='__main__': main()
