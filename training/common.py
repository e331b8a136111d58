"""What the scripts of this folder share: their arguments, a training that goes on after it was killed, and the files that it leaves.

Each script makes one stored set of weights (`miniai/weights/NAME.safetensors` and the JSON beside it) by the functions of the lessons:

    python training/scene_codec.py                # into ~/.cache/miniai/training/scene_codec; run it again to go on
    python training/scene_codec.py --few 3        # three steps of each stage on little data: does it run?
    python training/scene_codec.py --folder miniai/weights --work /tmp/codec        # put the result in its place
"""
import argparse,os,platform,time,torch
from pathlib import Path
from torch import nn
from torch.func import functional_call
from miniai.checkpoint import CheckpointCB
from miniai.conv import def_device
from miniai.learner import Callback,CancelFit,DeviceCB,Learner
from miniai.loaders import DataLoaders
from miniai.optim import RecorderCB

def arguments(
    name, # Of the script and of the weights
    **amounts, # Numbers of rows and epochs of the full run, by name, such as `n_scenes=80_000`
): # Namespace with `few`, `folder`, `work`, `threads` and the `amounts`
    "Read the command line."
    p = argparse.ArgumentParser(description=f'Make the weights {name}. Run again after an interruption, it goes on where it was.')
    p.add_argument('--few', type=int, help='so many steps of each stage, on little data')
    p.add_argument('--work', type=Path, default=Path(f'~/.cache/miniai/training/{name}'), help='folder of the checkpoints')
    p.add_argument('--folder', type=Path, help='folder of the result; the folder of the checkpoints if not given')
    p.add_argument('--threads', type=int, default=1, help='of torch')
    for k,v in amounts.items(): p.add_argument(f"--{k.replace('_', '-')}", type=type(v), default=v, help=f'{v!r} if not given')
    args = p.parse_args()
    args.name,args.work = name,args.work.expanduser()
    args.folder = (args.folder or args.work).expanduser()
    torch.set_num_threads(args.threads)
    return args

class StepsCB(Callback):
    "Ends the fit after so many batches."
    in_lr_find = False
    def __init__(self, n): self.n,self.done = n,0
    def after_batch(self, learn):
        self.done += 1
        if self.done>=self.n: raise CancelFit

class TimeCB(Callback):
    "The minutes that the training took, also over several runs."
    in_lr_find = False
    def __init__(self): self.before,self.start = 0.,time.time()
    def before_fit(self, learn): self.start = time.time()
    def minutes(self): return self.before+(time.time()-self.start)/60
    def state_dict(self): return dict(minutes=self.minutes())
    def load_state_dict(self, state): self.before,self.start = state['minutes'],time.time()

def train(
    args, # What `arguments` returned
    stage, # Name of this part of the training, which gets a folder of its own
    model, # `nn.Module`, trained in place
    tensors, # Tuple of training tensors of equal length
    loss, # Loss function of the Learner
    lr, # Highest learning rate
    cbs, # More callbacks
    opt_func, # Makes the optimizer
    n_epochs, # Of the full run
    bs=64, # Rows of a batch
    seed=1, # Of order and noise
    tfm=None, # Of a batch, see `BatchLoader`
    every=200, # Batches from one checkpoint to the next
): # `(losses of all batches, minutes)`
    "One stage: a `Learner` with checkpoints, from which it goes on; a stage that is done is not done again."
    torch.manual_seed(seed)
    gen,clock,record = torch.Generator().manual_seed(seed),TimeCB(),RecorderCB(loss=lambda learn: learn.loss)
    dls = DataLoaders.from_tensors(tensors, [o[:bs] for o in tensors], bs=bs, drop_last=True, tfm=tfm, generator=gen)
    cbs = [DeviceCB(), *cbs, clock, record]
    if args.few: cbs.append(StepsCB(args.few))
    else: cbs.append(CheckpointCB(args.work/stage, every=every))
    print(f'{args.name}, {stage}: {n_epochs} epochs of {len(dls.train)} batches on {def_device}', flush=True)
    Learner(model, dls, loss, lr, cbs, opt_func).fit(n_epochs, valid=False)
    return record.numbers('loss'),round(clock.minutes(), 1)

def in_parts(
    args, # What `arguments` returned
    stage, # Name of the folder that keeps them
    n, # Parts
    make, # `make(i)` gives part i, a tuple of tensors
): # Tuple of tensors, all parts in one
    "Tensors that take long to make, part by part; a part that is there is not made again."
    folder,parts = args.work/stage,[]
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        file = folder/f'{i:03d}.pt'
        if not file.exists():
            torch.save(make(i), file.with_suffix('.tmp'))
            os.replace(file.with_suffix('.tmp'), file)
            print(f'{args.name}, {stage}: part {i+1} of {n}', flush=True)
        parts.append(torch.load(file, weights_only=True))
    return tuple(torch.cat(o) for o in zip(*parts))

class LowRank(nn.Module):
    "A net whose weights are those of `net` plus a change in factors; only the change is trained."
    def __init__(self,
        net, # `nn.Module`; its weights do not move
        change, # Tensors by name, as a `Change` has them: `name`, or `name.a` and `name.b`
    ):
        super().__init__()
        self.net = net.requires_grad_(False)
        names = {k.replace('.', '/') for k,_ in net.named_parameters()}
        other = [k for k in change if k.replace('.', '/') not in names and k[:-2].replace('.', '/') not in names]
        if other: raise ValueError(f"change: expected parameters of net, got {other[0]}, which is none")
        self.change = nn.ParameterDict({k.replace('.', '/'): nn.Parameter(v.clone()) for k,v in change.items()})
    def tensors(self): return {k.replace('/', '.'): v.detach() for k,v in self.change.items()}
    def forward(self, *args):
        w = {}
        for k,own in self.net.named_parameters():
            key = k.replace('.', '/')
            if key in self.change: v = self.change[key]
            elif {key+'/a', key+'/b'}<=set(self.change): v = self.change[key+'/a']@self.change[key+'/b']
            else: continue
            w[k] = own+v.view_as(own)
        return functional_call(self.net, w, args)

def curve(losses, bs, n=100):
    "Pairs (images seen, mean loss), about `n` of them, for the JSON."
    size = max(1, len(losses)//n)
    return [[bs*size*(i+1), round(o.mean().item(), 4)] for i,o in enumerate(losses[:len(losses)//size*size].split(size))]

def info(args, **more):
    "What the JSON beside the weights says of where they come from."
    amounts = {k: v for k,v in vars(args).items() if k not in ('few','work','folder','threads','name') and v not in (None, '')}
    command = ' '.join([f'python training/{args.name}.py', *(f"--{k.replace('_', '-')} {v}" for k,v in amounts.items())])
    return dict(script=f'training/{args.name}.py', command=command, hardware=platform.processor() or platform.machine(),
                torch=torch.__version__, device=str(def_device), threads=args.threads, **more)

def little(args, n, least=64):
    "Rows to take: `n`, or few with `--few`."
    return min(n, least) if args.few else n
