"""Faults of training under way, of measures and of the tokenizer that were found once: each is held by a test here."""
import collections,contextlib,copy,io,itertools,math,os,random,subprocess,sys,textwrap,time,warnings
from functools import partial
from pathlib import Path
import numpy as np,pytest,torch,torch.nn.functional as F
from torch import nn,optim
from torch.utils import data as td
from miniai.accel import AccelerateCB,AccumulateCB,ClipCB,LossScaler,MixedPrecisionCB
from miniai.checkpoint import CheckpointCB,load_checkpoint,save_checkpoint
from miniai.learner import Callback,CancelBatch,CancelEpoch,CancelFit,Learner,MetricsCB,MomentumLearner,SingleBatchCB,TrainLearner
from miniai.loaders import BatchLoader,DataLoaders
from miniai.optim import AdamW,BatchSchedCB,EpochSchedCB,OneCycle,RecorderCB
from miniai.training import DataLoader,Dataset

gen = torch.Generator().manual_seed(0)
X,Y = torch.randn(40, 3, generator=gen),torch.randn(40, 1, generator=gen)


class Stop(Callback):
    "Ends the fit by an error after `n` training batches."
    order = 100
    def __init__(self, n): self.n,self.left = n,n
    def state_dict(self): return {}
    def load_state_dict(self, s): pass
    def before_fit(self, learn): self.left = self.n
    def after_batch(self, learn):
        self.left -= learn.training
        if self.left==0: raise KeyboardInterrupt


class Seen(Callback):
    "Keeps the batches of a run."
    order = 90
    def before_fit(self, learn): self.batches = []
    def after_predict(self, learn):
        if learn.training: self.batches.append((learn.epoch, learn.iter, learn.inputs[0].detach().clone()))
    def state_dict(self): return dict(batches=[list(o) for o in self.batches])
    def load_state_dict(self, s): self.batches = [tuple(o) for o in s['batches']]


def dropout_net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(.3), nn.Linear(8, 1))


def resumed(folder, make_dls, stop, n_epochs=3, every=2, make=dropout_net, cls=TrainLearner, cbs=lambda: [], opt_func=partial(optim.SGD, momentum=.9),
            valid=False, **kw):
    "`(undisturbed, resumed)`: learners of a run in one go, and of one that was stopped after `stop` batches."
    def run(name, *more):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        learn = cls(make(), make_dls(), lr=.05, cbs=[Seen(), *cbs(), CheckpointCB(folder/name, every), *more], opt_func=opt_func, **kw)
        with contextlib.suppress(KeyboardInterrupt): learn.fit(n_epochs, valid=valid)
        return learn
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')
        whole = run('whole', Stop(10**6))
        for n in (stop if isinstance(stop, tuple) else (stop,)): run('stopped', Stop(n))
        random.seed(5), np.random.seed(5), torch.manual_seed(5)
        return whole,run('stopped', Stop(10**6))


def check_same(a, b):
    for k,v in a.model.state_dict().items(): assert torch.equal(v, b.model.state_dict()[k]), k
    for (e,i,x),(e2,i2,x2) in zip(a.cbs[0].batches, b.cbs[0].batches, strict=True): assert (e, i)==(e2, i2) and torch.equal(x, x2)
    rows = [[{k: v for k,v in o.items() if k!='seconds'} for o in l.history] for l in (a, b)]
    assert rows[0]==rows[1]


# ------------------------------------------------------------------ loaders

class Rows(td.Dataset):
    def __len__(self): return len(X)
    def __getitem__(self, i): return X[i],Y[i]

class CountingSampler:
    "Another order in every epoch, by a count of its own."
    def __init__(self): self.epoch = 0
    def __len__(self): return len(X)
    def __iter__(self):
        self.epoch += 1
        return iter(torch.randperm(len(X), generator=torch.Generator().manual_seed(self.epoch)).tolist())

class PythonSampler(CountingSampler):
    def __init__(self): self.rng = random.Random(3)
    def __iter__(self): return iter(self.rng.sample(range(len(X)), len(X)))

class Stream(td.IterableDataset):
    def __init__(self): self.rng = np.random.default_rng(3)
    def __iter__(self): return ((X[i], Y[i]) for i in self.rng.permutation(len(X)))

def torch_dl(**kw): return td.DataLoader(Rows(), **{'batch_size': 8, **kw})
def hidden_generator():
    g = torch.Generator().manual_seed(4)
    return lambda x, y: (x + .1*torch.randn(x.shape, generator=g), y)

loaders = dict(
    ours=lambda: DataLoader(Dataset(X, Y), bs=8, shuffle=True, seed=3), ours_unseeded=lambda: DataLoader(Dataset(X, Y), bs=8, shuffle=True),
    ours_workers=lambda: DataLoader(Dataset(X, Y), bs=8, shuffle=True, seed=3, n_workers=2),
    batch=lambda: BatchLoader(X, Y, bs=8, shuffle=True), batch_generator=lambda: BatchLoader(X, Y, bs=8, shuffle=True, generator=torch.Generator().manual_seed(2)),
    batch_tfm=lambda: BatchLoader(X, Y, bs=8, shuffle=True, tfm=hidden_generator()),
    torch=lambda: torch_dl(shuffle=True), torch_generator=lambda: torch_dl(shuffle=True, generator=torch.Generator().manual_seed(2)),
    torch_sampler=lambda: torch_dl(sampler=td.RandomSampler(Rows(), generator=torch.Generator().manual_seed(2))),
    torch_replacement=lambda: torch_dl(sampler=td.RandomSampler(Rows(), replacement=True, num_samples=40, generator=torch.Generator().manual_seed(2))),
    torch_batch_sampler=lambda: td.DataLoader(Rows(), batch_sampler=td.BatchSampler(td.RandomSampler(Rows(), generator=torch.Generator().manual_seed(2)), 8, False)),
    weighted=lambda: torch_dl(sampler=td.WeightedRandomSampler(torch.rand(40, generator=torch.Generator().manual_seed(3)), 40, generator=torch.Generator().manual_seed(2))),
    torch_workers=lambda: torch_dl(shuffle=True, num_workers=1, generator=torch.Generator().manual_seed(2)),
    counting=lambda: torch_dl(sampler=CountingSampler()), python_rng=lambda: torch_dl(sampler=PythonSampler()),
    stream=lambda: td.DataLoader(Stream(), batch_size=8), partial=lambda: torch_dl(sampler=CountingSampler(), collate_fn=partial(td.default_collate)),
)

@pytest.mark.parametrize('stop', (5, (7, 8)), ids=str)
@pytest.mark.parametrize('name', loaders)
def test_resumed_run_is_the_undisturbed_one(name, stop, tmp_path):
    def dls(): return DataLoaders(loaders[name](), None)
    check_same(*resumed(tmp_path, dls, stop))


@pytest.mark.parametrize('train', (lambda: td.DataLoader(Rows(), 8, sampler=itertools.cycle(range(40))), lambda: iter([(X, Y)])))
def test_iterators_are_refused(train, tmp_path):
    dls = DataLoaders(train(), None)
    with pytest.raises(TypeError, match=r'dls\.train.*iterator .* cannot be saved'): TrainLearner(dropout_net(), dls, cbs=[CheckpointCB(tmp_path)]).fit(1, valid=False)


# ------------------------------------------------------------------ learners, callbacks, metrics

def plain_dls(bs=8): return DataLoaders(BatchLoader(X, Y, bs=bs, shuffle=True), BatchLoader(X, Y, bs=20))

class Own(TrainLearner):
    "Gradients that live on, without `extra_state`."
    @torch.no_grad()
    def zero_grad(self):
        for p in self.model.parameters():
            if p.grad is not None: p.grad *= .5

class TopK:
    def __init__(self): self.reset()
    def reset(self): self.right,self.n,self.names = 0,0,set()
    def update(self, preds, y): self.right,self.n = self.right+((preds-y).abs()<.5).sum(),self.n+np.int64(len(y))
    def compute(self): return np.float32(self.right/self.n)

@pytest.mark.parametrize('stop', (5, 7))
@pytest.mark.parametrize('case', ('momentum','own','metrics','numpy','accumulate','half','adamw','no_length'))
def test_resumed_learners(case, stop, tmp_path):
    kw = dict(momentum=dict(cls=MomentumLearner, opt_func=optim.SGD), own=dict(cls=Own, opt_func=optim.SGD),
              metrics=dict(cbs=lambda: [MetricsCB(top=TopK())], valid=True),
              numpy=dict(cbs=lambda: [RecorderCB(a=lambda l: np.float32(1), b=lambda l: np.bool_(True)), ClipCB(np.float32(1))]),
              accumulate=dict(cbs=lambda: [AccumulateCB(3), BatchSchedCB(partial(OneCycle, max_lr=.1))]),
              half=dict(cls=Learner, cbs=lambda: [MixedPrecisionCB(), EpochSchedCB(lambda o, total_steps: optim.lr_scheduler.CosineAnnealingLR(o, total_steps))]),
              adamw=dict(opt_func=AdamW, cbs=lambda: [MetricsCB()], valid=True),
              no_length=dict())[case]
    make = loaders['stream'] if case=='no_length' else None
    dls = (lambda: DataLoaders(make(), None)) if make else plain_dls
    check_same(*resumed(tmp_path, dls, stop, **kw))


# ------------------------------------------------------------------ another training is refused

def start(folder, stop=10**6, model=None, dls=None, lr=.05, loss_func=F.mse_loss, opt_func=partial(optim.SGD, momentum=.9), cbs=(), n_epochs=2, every=1,
          learn=None, **kw):
    learn = learn or TrainLearner(model or dropout_net(), dls or plain_dls(), loss_func, lr, opt_func=opt_func)
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(KeyboardInterrupt):
        learn.fit(n_epochs, cbs=[*cbs, CheckpointCB(folder, every), Stop(stop)], **{'valid': False, **kw})
    learn.printed = out.getvalue()
    return learn

def weighted(p, y): return 2*F.mse_loss(p, y)
def noisy(x, y): return x+0,y

others = dict(
    lr=dict(lr=.5), fit_lr=dict(), n_epochs=dict(n_epochs=3), valid=dict(valid=True), optimizer=dict(opt_func=AdamW), momentum=dict(opt_func=partial(optim.SGD, momentum=.8)),
    decay=dict(opt_func=partial(optim.SGD, momentum=.9, weight_decay=.1)), loss=dict(loss_func=F.l1_loss), own_loss=dict(loss_func=weighted), lambda_loss=dict(loss_func=lambda p, y: F.mse_loss(p, y)),
    dropout=dict(model=nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(.5), nn.Linear(8, 1))),
    activation=dict(model=nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Dropout(.3), nn.Linear(8, 1))),
    width=dict(model=nn.Sequential(nn.Linear(3, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Dropout(.3), nn.Linear(9, 1))),
    bs=dict(dls=plain_dls(4)), bs_same_batches=dict(dls=DataLoaders(BatchLoader(X[:36], Y[:36], bs=8, shuffle=True), None)),
    labels=dict(dls=DataLoaders(BatchLoader(X, Y+1, bs=8, shuffle=True), None)), one_row=dict(dls=DataLoaders(BatchLoader(torch.cat([X[:20], X[:1], X[21:]]), Y, bs=8, shuffle=True), None)),
    order=dict(dls=DataLoaders(BatchLoader(X, Y, bs=8), None)), tfm=dict(dls=DataLoaders(BatchLoader(X, Y, bs=8, shuffle=True, tfm=noisy), None)),
    clip=dict(cbs=[ClipCB(1.)]), group=dict(cbs=[AccumulateCB(2)]), metrics=dict(cbs=[MetricsCB()]))
del others['fit_lr']

@pytest.mark.parametrize('name', others)
def test_other_trainings_are_refused(name, tmp_path):
    start(tmp_path, 2)
    with pytest.raises(ValueError, match='is of another training: .* was .* and is'): start(tmp_path, **others[name])
    with pytest.raises(ValueError, match='is of another training'): start(tmp_path, **others[name])          # nor the second time
    assert 'goes on from epoch0000-batch000001' in start(tmp_path).printed


def test_settings_of_callbacks_are_compared(tmp_path):
    def run(c, sched): return start(tmp_path, 2, cbs=[ClipCB(c), BatchSchedCB(partial(OneCycle, max_lr=sched))])
    run(1., .1)
    for args,name in (((2., .1), 'max_norm'), ((1., .2), 'sched_func')):
        with pytest.raises(ValueError, match=name): run(*args)
    run(1., .1)


def test_weights_that_would_be_lost(tmp_path):
    learn = start(tmp_path)
    start(tmp_path, learn=learn)                                       # the same weights: nothing to lose
    learn.fit(1, valid=False)
    kept = learn.model.state_dict()['0.weight'].clone()
    with pytest.raises(ValueError, match='this Learner was trained since'): start(tmp_path, learn=learn)
    assert torch.equal(kept, learn.model.state_dict()['0.weight'])
    other = start(tmp_path/'b', 3)
    assert 'goes on from' in start(tmp_path/'b', learn=other).printed      # stopped, and on with the same Learner


def test_checkpoint_of_another_program(tmp_path):
    save_checkpoint(tmp_path/'epoch0000-batch000001', dict(model={}, epoch=0))
    with pytest.raises(ValueError, match="of another version of miniai.*lacks.*'random'"): start(tmp_path)


@pytest.mark.parametrize('first,second', ((False, True), (True, False), (True, True)))
def test_compiled_nets(first, second, tmp_path):
    def net(c): return torch.compile(dropout_net(), backend='eager') if c else dropout_net()
    whole = start(tmp_path/'a', model=dropout_net())
    start(tmp_path/'b', 3, model=net(first))
    learn = start(tmp_path/'b', model=net(second))
    assert 'goes on' in learn.printed
    names = load_checkpoint(sorted((tmp_path/'b').glob('epoch*'))[-1])['model']
    assert set(names)==set(whole.model.state_dict())
    assert all(torch.equal(a, b) for a,b in zip(whole.model.parameters(), learn.model.parameters()))


# ------------------------------------------------------------------ what cannot be saved, or where

class Odd(Callback):
    def __init__(self, x): self.x = x
    def state_dict(self): return dict(x=self.x)
    def load_state_dict(self, s): self.x = s['x']

class OddMetric:
    def __init__(self): self.model = object()
    def reset(self): pass
    def update(self, *o): pass
    def compute(self): return 1.

@pytest.mark.parametrize('cb', (Odd(open), Odd(np.datetime64('2020')), Odd(collections.Counter('ab')), Odd(torch.eye(2).to_sparse()),
                                Odd(np.array(['a'])), MetricsCB(odd=OddMetric()), Odd(1j)), ids=str)
def test_refused_before_the_first_batch(cb, tmp_path):
    model = dropout_net()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(TypeError, match=r'(state\.callbacks\.Odd\.x: expected tensors, arrays|metrics: odd\.model is a object, which cannot be saved)'):
        start(tmp_path, model=model, cbs=[cb], every=None)
    assert all(torch.equal(a, b) for a,b in zip(before, model.parameters()))
    assert not [o for o in tmp_path.iterdir() if o.name!='.lock']


good = [np.float32(1.5), np.int64(3), np.bool_(True), np.arange(6.).reshape(2, 3)[::-1], np.array(2, np.uint16), Path('/a/b'), {1, 2}, frozenset('a'), {3: (1, [2])},
        torch.tensor(1j, dtype=torch.complex64).conj(), torch.zeros(2, dtype=torch.float8_e4m3fn), math.inf, 2**200, '\ud800', collections.OrderedDict(a=1)]
@pytest.mark.parametrize('x', good, ids=repr)
def test_saved_and_read(x, tmp_path):
    back = load_checkpoint(save_checkpoint(tmp_path/'c', dict(x=x)))
    assert list(back)==['x']
    back = back['x']
    if isinstance(x, torch.Tensor): assert back.dtype==x.dtype and torch.equal(back.to(torch.complex64), x.to(torch.complex64))
    elif isinstance(x, np.ndarray): assert type(back)==type(x) and back.dtype==x.dtype and back.shape==x.shape and (back==x).all()
    else: assert back==x and type(back) in (type(x), bool, int, float, dict)


def test_callbacks_without_state_are_named(tmp_path):
    class CountCB(Callback):
        def before_fit(self, learn): self.count = 0
        def after_batch(self, learn): self.count += 1
    with pytest.warns(UserWarning, match='CountCB has no state_dict, so what it keeps in count is not saved'): start(tmp_path, cbs=[CountCB()])


@pytest.mark.skipif(os.name!='posix' or os.geteuid()==0 and not Path('/proc/self').exists(), reason='needs POSIX')
def test_folder_that_cannot_be_written(tmp_path):
    folder = Path('/proc/self/runs') if os.geteuid()==0 else tmp_path/'no'
    if os.geteuid(): (folder.mkdir(), folder.chmod(0o555))
    seen = Seen()
    with pytest.raises(OSError): start(folder, cbs=[seen], every=None)
    assert not getattr(seen, 'batches', [])


# ------------------------------------------------------------------ folders

def names(path): return sorted(o.name for o in path.iterdir())

def test_nothing_but_a_checkpoint_is_replaced(tmp_path):
    for name,files in dict(mine=['notes.txt'], hub=['model.safetensors'], full=['model.safetensors','sha256.json','state.json','train.py']).items():
        (tmp_path/name).mkdir()
        for f in files: (tmp_path/name/f).write_text('work')
        with pytest.raises(FileExistsError, match='holds something else than a checkpoint'): save_checkpoint(tmp_path/name, dict(a=1))
        assert names(tmp_path/name)==files
    (tmp_path/'file').write_text('work')
    with pytest.raises(FileExistsError): save_checkpoint(tmp_path/'file', dict(a=1))
    assert names(tmp_path)==['file','full','hub','mine'] and (tmp_path/'file').read_text()=='work'


def test_links_are_followed(tmp_path):
    save_checkpoint(tmp_path/'real', dict(a=1))
    (tmp_path/'link').symlink_to(tmp_path/'real')
    save_checkpoint(tmp_path/'link', dict(a=2))
    assert (tmp_path/'link').is_symlink() and load_checkpoint(tmp_path/'real')==load_checkpoint(tmp_path/'link')==dict(a=2)
    assert names(tmp_path)==['link','real']


@pytest.mark.parametrize('at', (1, 2))
@pytest.mark.parametrize('then', ('load','save'))
def test_killed_between_the_renames(at, then, tmp_path):
    path = tmp_path/'best'
    save_checkpoint(path, dict(a=1, x=torch.ones(3)))
    code = f'''
        import os,torch
        from pathlib import Path
        from miniai.checkpoint import save_checkpoint
        rename,n = Path.rename,[0]
        def killed(self, to):
            n[0] += 1
            if n[0]=={at}: os._exit(9)
            return rename(self, to)
        Path.rename = killed
        save_checkpoint({str(path)!r}, dict(a=2, x=torch.zeros(3)))'''
    assert subprocess.run([sys.executable, '-c', textwrap.dedent(code)]).returncode==9
    assert load_checkpoint(path)['a']==at                      # before the first rename the old one, then the new one
    if then=='save': save_checkpoint(path, dict(a=3))
    if then=='save': assert load_checkpoint(path)==dict(a=3) and names(tmp_path)==['best']


def test_failed_saves_leave_nothing(tmp_path, monkeypatch):
    path = tmp_path/'best'
    save_checkpoint(path, dict(a=1))
    with pytest.raises(TypeError): save_checkpoint(path, dict(a=print))
    import miniai.checkpoint as checkpoint
    def full(*args): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(checkpoint, '_to_disk', full)
    with pytest.raises(OSError): save_checkpoint(path, dict(a=2))
    monkeypatch.undo()
    rename = Path.rename
    def second(self, to):
        if self.name=='.tmp-best': raise OSError('no')
        return rename(self, to)
    monkeypatch.setattr(Path, 'rename', second)
    with pytest.raises(OSError): save_checkpoint(path, dict(a=2))
    monkeypatch.undo()
    assert names(tmp_path)==['best'] and load_checkpoint(path)==dict(a=1)


def test_a_killed_run_is_put_in_order_and_strangers_stay(tmp_path):
    start(tmp_path, 3)
    last = sorted(tmp_path.glob('epoch*'))[-1]
    for o in ('.tmp-mine', '.tmp-epoch0000-batch000099'): (tmp_path/o).mkdir()
    (tmp_path/'.tmp-mine'/'a.txt').write_text('work')
    last.rename(tmp_path/f'.tmp-{last.name}')
    (tmp_path/'epoch0000-batch000001').mkdir(exist_ok=True)
    (tmp_path/'epoch0000-batch000001'/'notes.txt').write_text('work')
    learn = start(tmp_path)
    assert f'goes on from {last.name}' in learn.printed
    assert (tmp_path/'.tmp-mine'/'a.txt').exists() and (tmp_path/'epoch0000-batch000001'/'notes.txt').exists()
    assert not list(tmp_path.glob('.tmp-*epoch*'))


def test_damaged_checkpoints_are_kept(tmp_path):
    for _ in range(2):
        start(tmp_path, 3)
        last = sorted(tmp_path.glob('epoch*-batch??????'))[-1]
        (last/'state.json').write_text('{')
        (tmp_path/f'{last.name}.damaged').mkdir(exist_ok=True)
        (tmp_path/f'{last.name}.damaged'/'mine').write_text('work')
        with pytest.warns(UserWarning, match='set aside as'): learn = start(tmp_path, 1)
        assert 'goes on from' in learn.printed
        assert (tmp_path/f'{last.name}.damaged'/'mine').exists() and (tmp_path/f'{last.name}.damaged1').exists()
        break


def test_a_second_run_in_the_folder(tmp_path):
    class Inner(Callback):
        def after_batch(self, learn):
            if learn.iter==1:
                with pytest.raises(RuntimeError, match='another run of this process uses'): start(tmp_path)
    start(tmp_path, cbs=[Inner()])
    code = f'''
        import sys,time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_faults_checkpoints import *
        class Wait(Callback):
            def after_batch(self, learn):
                print('running', flush=True)
                time.sleep(60)
        start(Path({str(tmp_path/"b")!r}), cbs=[Wait()])'''
    code = textwrap.dedent(code).replace('contextlib.redirect_stdout', 'contextlib.nullcontext')
    code = code.replace("print('running', flush=True)", "print('running', file=sys.__stdout__, flush=True)")
    p = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    assert p.stdout.readline().strip()=='running'
    with pytest.raises(RuntimeError, match=fr'another run \(process {p.pid} on .*\) uses'): start(tmp_path/'b')
    p.kill()
    p.wait()
    start(tmp_path/'b')                                               # the lock went with the process


# ------------------------------------------------------------------ mixed precision, accumulation, clipping

class Bad(Callback):
    order = -5
    def __init__(self, how): self.how = how
    def after_loss(self, learn):
        if self.how in ('nan','inf'): learn.loss = learn.loss*float(self.how)
    def after_backward(self, learn):
        if self.how=='grad': learn.model[0].bias.grad[0] = math.nan

@pytest.mark.parametrize('how', ('nan','inf','grad','forward'))
def test_half_precision_without_an_end(how):
    model = nn.Sequential(nn.Linear(3, 1))
    if how=='forward': nn.init.constant_(model[0].weight, 1e6)
    before = model[0].weight.clone()
    cb = MixedPrecisionCB()
    learn = Learner(model, plain_dls(), cbs=[cb, Bad(how)], lr=.01)
    with pytest.raises(FloatingPointError, match='not finite at any scale: 3. steps in a row .* epoch 5, batch'): learn.fit(300, valid=False)
    assert cb.skipped<40 and torch.equal(before, model[0].weight)

def test_scales_that_start_far_off():
    cb = MixedPrecisionCB(scaler=LossScaler(2.**100))
    Learner(nn.Linear(3, 1), plain_dls(), cbs=[cb], lr=.01).fit(30, valid=False)
    assert 60<cb.skipped<100
    s = LossScaler(1e-30)
    for _ in range(300): s.update(False)
    assert s.scale>0
    s.unscale([torch.ones(1, requires_grad=True)])

def test_no_parameters_and_no_gradients():
    class Echo(nn.Module):
        def forward(self, x): return x[:,:1]
    Learner(Echo(), plain_dls(), cbs=[MixedPrecisionCB()]).fit(1, train=False)
    cb = ClipCB(1.)
    cb.after_backward(Learner(Echo(), None))
    assert cb.norm.item()==0


class Cancel(Callback):
    order = -20
    def __init__(self, what, event, *at): self.what,self.at = what,at
    def before_batch(self, learn):
        if learn.iter in self.at: raise self.what

class Steps(Callback):
    order = 50
    def before_fit(self, learn): self.at,self.w = [],[]
    def after_step(self, learn):
        self.at.append(learn.iter)
        self.w.append(learn.model.weight.detach().clone())

def accumulated(n, cbs=(), dls=None, n_epochs=1):
    torch.manual_seed(1)
    steps = Steps()
    learn = TrainLearner(nn.Linear(3, 1), dls or DataLoaders(BatchLoader(X[:30], Y[:30], bs=4), None), lr=.1, cbs=[AccumulateCB(n), *cbs, steps])
    learn.fit(n_epochs, valid=False)
    return learn,steps

@pytest.mark.parametrize('what', (CancelBatch,CancelEpoch,CancelFit))
def test_the_last_group_makes_its_step(what):
    "30 rows in batches of 4: the last batch of 2 rows is cancelled, and 8 rows wait."
    learn,steps = accumulated(4, [Cancel(what, 'before_batch', 6, 7)])
    assert len(steps.at)==2 and steps.at[0]==3
    torch.manual_seed(1)
    model = nn.Linear(3, 1)
    opt = optim.SGD(model.parameters(), lr=.1)
    for rows in (slice(0, 16), slice(16, 24)):
        opt.zero_grad()
        F.mse_loss(model(X[rows]), Y[rows]).backward()
        opt.step()
    assert (model.weight-learn.model.weight).abs().max()<1e-6

def test_single_batches_and_wrong_lengths():
    assert accumulated(4, [SingleBatchCB()])[1].at==[0]
    class Liar(BatchLoader):
        def __len__(self): return 99
        def __iter__(self): return iter([(X[i:i+4], Y[i:i+4]) for i in range(0, 24, 4)])
    assert len(accumulated(4, dls=DataLoaders(Liar(X, Y, bs=4), None))[1].at)==2
    empty = [(X[:0], Y[:0]), (X[:4], Y[:4]), (X[4:8], Y[4:8])]
    learn,steps = accumulated(3, dls=DataLoaders(empty, None))
    assert len(steps.at)==1 and learn.model.weight.isfinite().all()
    with pytest.raises(TypeError, match='dls.train: expected a loader with a length'):
        accumulated(2, dls=DataLoaders(td.DataLoader(Stream(), batch_size=4), None))

def test_rows_are_those_of_the_predictions():
    "A batch that begins with something else than rows: weights of classes."
    class First(TrainLearner):
        n_inp = 2
    class Net(nn.Module):
        def __init__(self): super().__init__(); self.lin = nn.Linear(3, 1, bias=False); nn.init.constant_(self.lin.weight, .5)
        def forward(self, w, x): return self.lin(x)
    rows = [(torch.ones(3), X[:8], Y[:8]), (torch.ones(3), X[8:10], Y[8:10])]
    def run(batches, *cbs):
        learn = First(Net(), DataLoaders(batches, None), lr=.1, cbs=list(cbs))
        learn.fit(1, valid=False)
        return learn.model.lin.weight
    assert (run(rows, AccumulateCB(2))-run([(torch.ones(3), X[:10], Y[:10])])).abs().max()<1e-6


# ------------------------------------------------------------------ the ruler

from miniai import fid

@pytest.fixture(scope='module')
def ruler(): return fid.load_feature_net()

@pytest.mark.parametrize('call', ('fid','kid','classes','class_fractions','features','against'))
def test_pictures_of_another_range_or_size(call, ruler):
    f,good = getattr(ruler, call),2*torch.rand(40, 1, 28, 28, generator=gen)-1
    bad = {r'in \[-1,1\], .* to 1': (good+1)/2, 'from .* to 25[45]': 127.5*(good+1), r'\(40, 1, 32, 32\)': F.pad(good, (2, 2, 2, 2)), r'\(40, 28, 28\)': good[:,0], r'\(40, 3, 28, 28\)': good.expand(-1, 3, -1, -1),
           r'\(0, 1, 28, 28\)': good[:0], 'uint8': (127*good+127).byte(), 'finite numbers': torch.where(good>.9, torch.nan, good), 'finite': torch.where(good>.9, torch.inf, good)}
    for text,x in bad.items():
        with pytest.raises(ValueError, match=f'x: expected .*{text}'): f(x)
    assert f(good) is not None

def test_large_features():
    a,b = torch.randn(2, 50, 4, dtype=torch.float64, generator=gen)
    small = fid.frechet_distance(fid.stats(a), fid.stats(b))
    assert abs(fid.frechet_distance(fid.stats(1e100*a), fid.stats(1e100*b))/1e200-small)<1e-6*small
    with pytest.raises(ValueError, match='feats: expected numbers whose squares are finite'): fid.stats(1e200*a)
    with pytest.raises(ValueError, match='too large for their sixth powers'): fid.kid(1e60*a, b)
    for n in (0, 1):
        with pytest.raises(ValueError, match='n_subsets: expected a whole number, 2 or more'): fid.kid_subsets(a, b, n, 10)


# ------------------------------------------------------------------ tokenizer and CLIP

from miniai.clip import Tokenizer,clip_loss,recall_at

def slow_pieces(tok, w):
    *first,last = [chr(o) for o in w.encode()]
    parts = [*first, last+'</w>']
    while len(parts)>1:
        pair = min(zip(parts, parts[1:]), key=lambda o: tok.rank.get(o, len(tok.rank)))
        if pair not in tok.rank: break
        new,i = [],0
        while i<len(parts):
            n = 2 if tuple(parts[i:i+2])==pair else 1
            new.append(''.join(parts[i:i+n]))
            i += n
        parts = new
    return parts

def test_joins_are_those_of_the_slow_loop():
    "Random lists of joins over two letters: overlaps, and pieces that come about in several ways."
    rnd = random.Random(0)
    for _ in range(60):
        known,merges = ['a','b','a</w>','b</w>'],[]
        for _ in range(12):
            pair = rnd.choice([o for o in known if not o.endswith('</w>')]),rnd.choice(known)
            if pair in merges: continue
            merges.append(pair)
            known.append(''.join(pair))
        tok = Tokenizer(merges)
        for _ in range(20):
            w = ''.join(rnd.choices('ab', k=rnd.randint(1, 25)))
            assert [tok.pieces[i] for i in tok._word(w)]==[tok.pieces[tok.vocab[o]] for o in slow_pieces(tok, w)], (merges, w)

def test_long_words_and_a_bounded_memory():
    tok = Tokenizer.train(['abcabcabd abab cabcab']*3, 50)
    for w in ('abcab'*4000, '!?.'*6000, 'é'*8000):
        start = time.process_time()
        assert tok.decode(tok.encode(w))==w and time.process_time()-start<4
    assert max(map(len, tok.cache))<=64
    limit = len(tok.cache)
    for i in range(3000): tok.encode(f'w{"abcd"[i%4]}'*(i%20+1))
    assert len(tok.cache)<limit+200

def test_tokenizer_refuses():
    tok = Tokenizer([])
    for x in (None, 3, b'a', 1.5):
        with pytest.raises(TypeError, match='texts: expected a str'): tok(x)
    with pytest.raises(TypeError, match='text: expected a str, got NoneType'): tok(['a', None])
    for n in (2, 2.5, 'a'):
        with pytest.raises(ValueError, match='n_ctx: expected 3 or more'): Tokenizer([], n_ctx=n)

def test_no_pairs_and_nan():
    with pytest.raises(ValueError, match='n of 1 or more'): clip_loss(torch.zeros(0, 4), torch.zeros(0, 4), 1.)
    with pytest.raises(ValueError, match='sims: expected'): recall_at(torch.zeros(0, 0))
    with pytest.raises(ValueError, match='sims: expected finite'): recall_at(torch.full((2, 2), math.nan))


# ------------------------------------------------------------------ solutions

def test_write_safely_looks_where_the_temporary_stands():
    import shutil,tempfile
    from miniai.checks.checkpoint import check
    def write_safely(path, data):
        with tempfile.NamedTemporaryFile(delete=False) as f: f.write(data)
        shutil.move(f.name, path)
    passed,text = check.report(write_safely)
    assert not passed and 'stood in another folder' in text
    def write_safely(path, data):
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as f: f.write(data)
        os.replace(f.name, path)
    assert check.passes(write_safely)

def test_a_group_of_batches_that_is_cut_short_is_clipped_like_any_other():
    class Cut(Callback):
        order = 100
        def after_batch(self, learn):
            if learn.iter==1: raise CancelEpoch
    net = nn.Linear(3, 1, bias=False)
    before,clip = net.weight.detach().clone(),ClipCB(1e-3)
    TrainLearner(net, DataLoaders(BatchLoader(X, Y, bs=8), None), F.mse_loss, .5, [clip, AccumulateCB(4), Cut()], optim.SGD).fit(1, valid=False)
    assert clip.norm>.01
    torch.testing.assert_close((net.weight-before).norm().item(), .5*1e-3, rtol=1e-2, atol=0)

def test_accumulation_has_a_state_before_the_first_fit():
    assert AccumulateCB(2).state_dict()==dict(count=0, first=None, total=0., grads=[], left=[])


# ------------------------------------------------------------------ several processes
def test_the_whole_batch_carries_no_graph():
    "What each process hands to the metrics: its rows in their place, zeros for the others, and no gradient."
    class Second:
        process_index,num_processes = 1,2
        def reduce(self, x, how): return x
    class Part: rows = 3
    cb = AccelerateCB.__new__(AccelerateCB)
    cb.accelerator = Second()
    t = torch.tensor([[7.,8.]], requires_grad=True)
    whole = cb._whole(Part(), t)
    assert whole.tolist()==[[0,0],[0,0],[7,8]] and not whole.requires_grad
    ids = torch.tensor([1,2])
    assert cb._whole(Part(), ids) is ids                    # whole numbers are left as they are

def test_accelerate_in_one_process_trains_like_anybody():
    def trained(*cbs, kind=Learner):
        torch.manual_seed(0)
        net = nn.Linear(3, 1)
        kind(net, DataLoaders(BatchLoader(X, Y, bs=8), None), F.mse_loss, .1, list(cbs), optim.SGD).fit(2, valid=False)
        return net.weight.detach()
    torch.testing.assert_close(trained(AccelerateCB()), trained(kind=TrainLearner))     # gradients of old steps are forgotten

@pytest.mark.parametrize('opt', [AdamW, partial(optim.SGD, momentum=.9)])
@pytest.mark.parametrize('n', [4, 10, 99])                          # within the fit, at its end, and one that is complete
def test_the_fit_after_a_resumed_one(tmp_path, opt, n):
    "A schedule's last rate and momentum do not stay in the optimizer."
    def learner():
        torch.manual_seed(0)
        return TrainLearner(nn.Linear(3, 1), DataLoaders(BatchLoader(X, Y, bs=8, shuffle=True), None), lr=.05, opt_func=opt)
    def fit(learn, *more): learn.fit(2, valid=False, cbs=[BatchSchedCB(partial(OneCycle, max_lr=.05)), CheckpointCB(tmp_path/'a', every=1), *more])
    whole = learner()
    whole.fit(2, valid=False, cbs=[BatchSchedCB(partial(OneCycle, max_lr=.05)), CheckpointCB(tmp_path/'b')])
    with contextlib.suppress(KeyboardInterrupt): fit(learner(), Stop(n))
    again = learner()
    fit(again, Stop(99))
    for o in (whole, again):
        torch.manual_seed(5)
        o.fit(1, valid=False)
    def settings(o): return [{k: v for k,v in g.items() if k!='params'} for g in o.opt.param_groups]
    assert settings(whole)==settings(again) and whole.opt.param_groups[0]['lr']==.05
    assert torch.equal(whole.model.weight, again.model.weight)

def test_accumulation_leaves_a_momentum_in_the_gradients_alone():
    def train(bs, *cbs):
        torch.manual_seed(0)
        learn = MomentumLearner(nn.Linear(3, 1), DataLoaders(BatchLoader(X, Y, bs=bs), None), lr=.05)
        learn.fit(3, valid=False, cbs=cbs)
        return learn.model.weight.detach()
    torch.testing.assert_close(train(8), train(2, AccumulateCB(4)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(train(40), train(8, AccumulateCB(5)), atol=1e-5, rtol=1e-5)

@pytest.mark.parametrize('n', [3, 6])                               # within a group
def test_accumulation_with_momentum_goes_on(tmp_path, n):
    def fit(folder, *more):
        torch.manual_seed(0)
        learn = MomentumLearner(nn.Linear(3, 1), DataLoaders(BatchLoader(X, Y, bs=4), None), lr=.05)
        learn.fit(2, valid=False, cbs=[AccumulateCB(4), CheckpointCB(tmp_path/folder, every=1), *more])
        return learn.model.weight.detach()
    with contextlib.suppress(KeyboardInterrupt): fit('a', Stop(n))
    assert torch.equal(fit('a', Stop(99)), fit('b', Stop(99)))

def test_marks_that_no_text_could_hold():
    from miniai.clip import Tokenizer
    for bad in (('<START>','<END>'), ('<s>','<S>'), ('a  b','<end>')):
        with pytest.raises(ValueError, match='marks: expected two names that differ, in small letters'): Tokenizer([], 24, bad)
    tok = Tokenizer([], 24, ('<a>','<a><b>'))
    assert tok.encode('<a><b>')==[tok.end] and tok.encode('<a>')==[tok.start]

def test_predictions_that_cannot_be_joined():
    from miniai.learner import concat_batches
    with pytest.raises(TypeError, match='parts: expected tensors, .* got NoneType'): concat_batches([dict(a=torch.ones(1), b=[torch.ones(1), None])]*2)

def test_calibration_of_predictions_with_a_gradient():
    from miniai.augment import calibration
    p = torch.tensor([[.8,.2],[.3,.7]], requires_grad=True)
    assert not any(isinstance(o, torch.Tensor) and o.requires_grad for o in calibration(p, torch.tensor([0, 1])))

@pytest.mark.parametrize('n', [2.5, '2', True, 0])
def test_measures_want_whole_numbers(n):
    a,b = torch.randn(2, 50, 4, dtype=torch.float64, generator=gen)
    for name,f in (('size', lambda: fid.kid_subsets(a, b, size=n)), ('n_subsets', lambda: fid.kid_subsets(a, b, n, 10)), ('bs', lambda: fid.kid(a, b, bs=n)),
                   ('n_points', lambda: fid.fid_infinity(a, fid.stats(b), n))):
        with pytest.raises(ValueError, match=f'{name}: expected a whole number'): f()

@pytest.mark.parametrize('model', ['unet', None, [1, 2], torch.ones(2), 3., {}])
def test_anything_may_be_called_model(tmp_path, model):
    save_checkpoint(tmp_path/'c', dict(model=model, epoch=3))
    state = load_checkpoint(tmp_path/'c')
    assert state['epoch']==3 and (state['model'].equal(model) if isinstance(model, torch.Tensor) else state['model']==model)


# ------------------------------------------------------------------ callbacks inside of callbacks

from miniai.ddpm import DDPMCB,EMACB,linear_schedule
from miniai.distill import ConsistencyCB,Jump,JumpCB
from miniai.guidance import ClassUNet,CondCB
from miniai.latents import CaptionCB
from miniai.personalise import PriorCB

def cond_fit(folder, task, stop=10**6):
    torch.manual_seed(0)
    x,y = torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(3)),torch.arange(24)%3
    from miniai.learner import TrainCB
    dls = DataLoaders.from_tensors((x, y), (x[:8], y[:8]), bs=4, generator=torch.Generator().manual_seed(1))
    cb = CheckpointCB(folder, every=1)
    learn = Learner(ClassUNet((8,), 3, n_emb=16, norm=None), dls, F.mse_loss, .01, [TrainCB(3), CondCB(task, 3), cb, Stop(stop)])
    with contextlib.suppress(KeyboardInterrupt), contextlib.redirect_stdout(io.StringIO()): learn.fit(2)
    return learn.model,cb

def test_what_is_inside_a_callback_goes_on(tmp_path):
    whole,task = ConsistencyCB(.5, 3),ConsistencyCB(.5, 3)
    a,_ = cond_fit(tmp_path/'a', whole)
    cond_fit(tmp_path/'b', ConsistencyCB(.5, 3), 8)
    with pytest.raises(ValueError, match='CondCB.task.sigma_data was 0.5 and is 0.9'): cond_fit(tmp_path/'b', ConsistencyCB(.9, 3))
    with pytest.raises(ValueError, match='CondCB.task.every was 3 and is 30'): cond_fit(tmp_path/'b', ConsistencyCB(.5, 30))
    b,_ = cond_fit(tmp_path/'b', task)
    assert task.n==whole.n==12
    for p,q in zip(a.parameters(), b.parameters(), strict=True): assert p.equal(q)

def test_what_is_inside_and_cannot_be_saved_is_named(tmp_path):
    class Counts(DDPMCB):
        n = 0
        def before_batch(self, learn):
            super().before_batch(learn)
            self.n += 1
    Counts.__module__ = '__main__'
    with pytest.warns(UserWarning, match='CondCB.task has no state_dict, so what it keeps in n is not saved'): cond_fit(tmp_path, Counts(linear_schedule(9)))

def old(folder, change):
    "The newest checkpoint as an earlier version wrote it."
    path = max(o for o in folder.iterdir() if o.name.startswith('epoch'))
    state = load_checkpoint(path)
    del state['all_settings']
    change(state)
    save_checkpoint(path, state)

def test_checkpoints_that_compared_less(tmp_path):
    "Those of an earlier version go on, unless they lack a state."
    def forget(s):
        s['about'] = {k: v for k,v in s['about'].items() if not k.startswith('MixedPrecisionCB.scaler.')}
        s['callbacks']['MixedPrecisionCB']['scaler'] |= dict(growth=2., backoff=.5, interval=2000)
    cbs = lambda interval=2000: [MixedPrecisionCB(scaler=LossScaler(interval=interval))]
    def run(interval=2000, stop=10**6):
        learn = Learner(dropout_net(), plain_dls(), F.mse_loss, .05, cbs(interval))
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(KeyboardInterrupt):
            learn.fit(2, valid=False, cbs=[CheckpointCB(tmp_path/'a', 1), Stop(stop)])
        return out.getvalue()
    run(stop=3)
    with pytest.raises(ValueError, match='MixedPrecisionCB.scaler.interval was 2000 and is 5'): run(5)
    old(tmp_path/'a', forget)
    assert 'goes on from' in run(stop=2)
    with pytest.raises(ValueError, match='MixedPrecisionCB.scaler.interval was 2000 and is 5'): run(5)      # and from then on it is known
    def forget(s):
        s['about'] = {k: v for k,v in s['about'].items() if not k.startswith('CondCB.task.')} | dict(callbacks='CondCB, Stop, TrainCB')
        del s['callbacks']['CondCB.task']
    cond_fit(tmp_path/'b', ConsistencyCB(.5, 3), 3)
    old(tmp_path/'b', forget)
    with pytest.raises(ValueError, match='callbacks was CondCB, Stop, TrainCB and is CondCB, CondCB.task, Stop, TrainCB'): cond_fit(tmp_path/'b', ConsistencyCB(.5, 3))
    cond_fit(tmp_path/'c', DDPMCB(linear_schedule(9)), 3)
    old(tmp_path/'c', lambda s: None)
    cond_fit(tmp_path/'c', DDPMCB(linear_schedule(9)))

def test_a_scaler_keeps_its_settings():
    a,b = LossScaler(2.**8, interval=7),LossScaler(growth=4., backoff=.25, interval=3)
    a.update(True)
    assert a.state_dict()==dict(scale=256., good=1)
    b.load_state_dict(a.state_dict())
    assert vars(b)==dict(scale=256., growth=4., backoff=.25, interval=3, good=1)
    b.load_state_dict(dict(scale=8., growth=2., backoff=.5, interval=9, good=2))                    # of an earlier version
    assert vars(b)==dict(scale=8., growth=4., backoff=.25, interval=3, good=2)

def callbacks():
    "All classes of callbacks in the package."
    import importlib,pkgutil,miniai
    for m in pkgutil.iter_modules(miniai.__path__, 'miniai.'):
        if m.name!='miniai.__main__': importlib.import_module(m.name)
    todo,found = [Callback],[]
    while todo:
        todo += todo.pop().__subclasses__()
        found += [o for o in todo[-99:] if o.__module__.startswith('miniai.') and o not in found]
    return found

def test_every_setting_of_a_callback_is_kept_under_its_name():
    "A checkpoint compares what a constructor was given, so an attribute must hold it."
    import ast,inspect,textwrap
    from miniai.checkpoint import _free
    lacks,cbs = [],[o for o in callbacks() if o.__init__ is not object.__init__]
    for cls in cbs:
        kept = set()
        for o in cls.__mro__:
            if '__init__' not in vars(o) or o is object: continue
            tree = ast.parse(textwrap.dedent(inspect.getsource(o.__init__)))
            kept |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
        names = list(inspect.signature(cls.__init__).parameters)
        lacks += [f'{cls.__name__}.{k}' for k in names if k not in _free and not {k, f'_{k}'} & kept]
    assert len(cbs)>30 and {*lacks}<={'MetricsCB.named'}                    # these are compared among `metrics`, see below

class OfMany(Callback):
    def __init__(self, cbs): self.cbs = cbs
    def before_fit(self, learn):
        for o in self.cbs: o.before_fit(learn)

class Odd:
    def __init__(self, size): self.size = size

class Late(Callback):
    "Has a state only once a fit has begun."
    def __init__(self, size): self.size = size
    def before_fit(self, learn): self.n = 1
    def state_dict(self): return dict(n=self.n)
    def load_state_dict(self, s): self.n = s['n']

def test_a_state_that_is_not_there_before_the_fit(tmp_path):
    def run(size, stop=10**6): return start(tmp_path, stop, cbs=[OfMany([Late(size)])]).printed
    OfMany.__module__ = 'miniai.mine'
    try:
        run(1, 2)
        with pytest.raises(ValueError, match='OfMany.cbs.0.size was 1 and is 2'): run(2)
        assert 'goes on from' in run(1)
    finally: OfMany.__module__ = __name__

def test_callbacks_in_a_list_take_part():
    from types import SimpleNamespace
    from miniai.checkpoint import _stateful
    a,b = EMACB(),ConsistencyCB(.5, 3)
    assert _stateful(SimpleNamespace(cbs=[OfMany([ClipCB(1.), a]), OfMany(dict(x=CondCB(b, 3)))]))=={'OfMany.cbs.1': a, 'OfMany 2.cbs.x.task': b}

def test_settings_with_attributes_of_another_name(tmp_path):
    from importlib.util import find_spec
    from miniai.checkpoint import _settings
    def about(cb):
        out = {}
        _settings(cb, 'cb', out, state=False)
        return out
    def plan(level): return JumpCB([80., 5., 0.], [Jump(level, 0, 2)], .5)
    ids = torch.zeros(2, 3, dtype=torch.int64)
    def twice(p, y): return 2*F.l1_loss(p, y)
    pairs = [(plan(80.), plan(70.)), (PriorCB((torch.ones(2, 4), ids)), PriorCB((torch.zeros(2, 4), ids))), (MetricsCB(near=F.l1_loss), MetricsCB(near=twice)),
             (OfMany([EMACB(.9), ClipCB(1.)]), OfMany([EMACB(.9), ClipCB(2.)])), (OfMany(dict(a=Odd(1))), OfMany(dict(b=Odd(1)))), (OfMany(dict(a=Odd(1))), OfMany(dict(a=Odd(2)))),
             (CondCB(EMACB(.9), 3), CondCB(EMACB(.8), 3)), (CaptionCB(ConsistencyCB(.5, 3), 3), CaptionCB(ConsistencyCB(.5, 4), 3))]
    if find_spec('accelerate'): pairs.append((AccelerateCB(cpu=True), AccelerateCB(cpu=True, gradient_accumulation_steps=1)))
    for a,b in pairs: assert about(a)!=about(b) and about(a)==about(copy.copy(a)), about(a)

# ------------------------------------------------------------------ texts and files

from miniai.bert import WordPiece,load_minilm

def test_ids_that_are_no_pieces():
    tok = WordPiece(['[PAD]','[UNK]','[CLS]','[SEP]','[MASK]','a','##b'])
    assert tok.decode([2, 5, 6, 3, 0])=='ab'
    for bad in (-1, 7):
        with pytest.raises(ValueError, match=f'ids: expected 0 to 6, got {bad}'): tok.decode([5, bad])

def test_one_text_is_no_list_to_learn_from():
    with pytest.raises(TypeError, match='texts: expected several str, got a single one'): Tokenizer.train('ab ab', 5)

@pytest.mark.skipif(os.name!='posix', reason='HOME')
def test_home_is_understood_in_reading_and_writing(tmp_path, monkeypatch):
    import gzip
    from miniai.judges import load_efficientnet
    monkeypatch.setenv('HOME', str(tmp_path))
    Tokenizer([]).save('~/t.json')
    assert Tokenizer.load('~/t.json').n_ctx==24
    with pytest.raises(ValueError, match='is no vocabulary'): Tokenizer.load((tmp_path/'x').write_text('{') and '~/x')
    (tmp_path/'clip.gz').write_bytes(gzip.compress(b'nothing'))
    with pytest.raises(ValueError, match="expected CLIP's file"): Tokenizer.from_clip('~/clip.gz')
    (tmp_path/'vocab.txt').write_text('\n'.join(['[PAD]','[UNK]','[CLS]','[SEP]','[MASK]','a']))
    assert WordPiece('~/vocab.txt').encode('a')==[5]
    for name,f in (('model.safetensors', load_minilm), ('efficientnet-lite0-57934424.pth', load_efficientnet)):
        (tmp_path/name).write_text('x')
        with pytest.raises(ValueError, match='is not the published file'): f('~')
    monkeypatch.chdir(tmp_path)
    save_checkpoint('~nobody-of-this-name', dict(a=1))                       # no such home: the name itself, as in a shell
    assert load_checkpoint('~nobody-of-this-name')==dict(a=1) and load_checkpoint('~/~nobody-of-this-name')==dict(a=1)

@pytest.mark.skipif(os.name!='posix', reason='HOME')
def test_a_home_of_nobody_is_a_name_like_any_other(tmp_path, monkeypatch):
    from importlib.util import find_spec
    from miniai import hub,lora,personalise,responsible,segmentation,serving,single_file
    from miniai.checks.progress import progress_file
    monkeypatch.chdir(tmp_path)
    home = tmp_path/'~nobody-such'
    home.mkdir()
    personalise.save_concept('~nobody-such/c.safetensors', '<it>', torch.ones(4))
    assert personalise._read_concept('~nobody-such/c.safetensors')[0]=='<it>'
    (home/'x.json').write_text('{"minutes": 6}')
    assert responsible.training_energy('~nobody-such', watts=10)==[dict(weights='x', minutes=6., wh=1.)]
    assert responsible.emoji_credits(folder='~nobody-such')==[] and lora._file('~nobody-such/w.safetensors')==Path('~nobody-such/w.safetensors')
    serving.Registry('~nobody-such/r')
    serving.Journal('~nobody-such/j').close()
    assert sorted(o.name for o in home.iterdir())==['c.safetensors', 'j', 'r', 'x.json'] and serving._weights_file('~nobody-such/w.safetensors')
    assert serving.git_state('~nobody-such')==serving.git_state(home) and serving.serve_main(['--port', '0', '--registry', '~nobody-such/s'])==2
    for o in (serving.RunCardCB('~nobody-such/k').path, serving.TensorBoardCB('~nobody-such/k').folder): assert o==Path('~nobody-such/k')
    for f in (segmentation.load_sam, single_file.read_header, single_file.load_single_file, single_file.clip_tokenizer):
        with pytest.raises(FileNotFoundError, match='there is no .*~nobody-such/n'): f('~nobody-such/n')
    monkeypatch.setenv('MINIAI_PROGRESS', '~nobody-such/p')
    assert progress_file()==Path('~nobody-such/p')
    if find_spec('huggingface_hub'):
        from huggingface_hub import constants
        monkeypatch.setattr(constants, 'HF_HUB_CACHE', '~nobody-such/h')
        monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
        with pytest.raises(OSError, match='not complete in the cache ~nobody-such/h'): hub.hub_folder('a/b')

def test_classes_and_logits_out_of_range():
    from miniai.augment import calibration,confident_mistakes,fit_temperature
    g = torch.Generator().manual_seed(0)
    z,y = torch.randn(500, 4, generator=g, dtype=torch.float64)*2,torch.randint(4, (500,), generator=g)
    T = fit_temperature(z, y)
    assert all(fit_temperature(z+c, y)==pytest.approx(T, rel=1e-9) for c in (-2e4, 2e4)) and fit_temperature(z, y.int())==T
    for bad in (math.inf, math.nan):
        with pytest.raises(ValueError, match='logits: expected a finite number'): fit_temperature(z.index_fill(0, torch.tensor([3]), bad), y)
    with pytest.raises(ValueError, match='logits: expected a finite number'): fit_temperature(z.index_fill(0, torch.tensor([3]), -math.inf), y)
    for f in (lambda y: fit_temperature(z, y), lambda y: calibration(z.softmax(1), y), lambda y: confident_mistakes(z.softmax(1), y)):
        for bad in (y-1, y+1, y+99):
            with pytest.raises(ValueError, match='y: expected classes from 0 to 3, got'): f(bad)
        for bad in (y.float(), y>1):
            with pytest.raises(TypeError, match='y: expected class numbers, int64, got'): f(bad)

def test_counts_of_batches_and_steps_are_whole():
    for bad in (2.5, 0, True, '2'):
        with pytest.raises(ValueError, match='^n: expected a whole number'): AccumulateCB(bad)
        with pytest.raises(ValueError, match='^interval: expected a whole number'): LossScaler(interval=bad)
    assert AccumulateCB(np.int64(2)).n==2

@pytest.mark.parametrize('kind', [CancelFit, CancelEpoch])
@pytest.mark.parametrize('event,order', [('before_fit',0), ('before_fit',-9), ('before_epoch',0), ('before_epoch',-9)])
def test_a_fit_cancelled_before_it_begins_makes_no_step(kind, event, order):
    if (kind,event)==(CancelEpoch,'before_fit'): return
    class Interrupt(Callback):
        def after_batch(self, learn):
            if learn.iter==1: raise KeyboardInterrupt
    class Cancel(Callback): pass
    def cancel(self, learn): raise kind
    setattr(Cancel, event, cancel)
    Cancel.order = order
    torch.manual_seed(0)
    learn = TrainLearner(nn.Linear(3, 1), DataLoaders(BatchLoader(X, Y, bs=4), None), F.mse_loss, .1, [AccumulateCB(4)], optim.SGD)
    with contextlib.suppress(KeyboardInterrupt): learn.fit(1, valid=False, cbs=Interrupt())
    before = learn.model.weight.detach().clone()
    learn.fit(1, valid=False, cbs=Cancel())
    assert torch.equal(learn.model.weight, before)
    learn.fit(1, valid=False)
    assert not torch.equal(learn.model.weight, before)
