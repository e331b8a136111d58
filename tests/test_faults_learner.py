"The Learner, its finder, optimizers and residual blocks on inputs that once gave a wrong answer without a word."
import collections,contextlib,copy,math,random,sys,warnings
from collections import namedtuple
from functools import partial
import matplotlib
matplotlib.use('agg')
import numpy as np,pytest,torch,torch.nn.functional as F
from torch import nn,optim
from miniai import learner as L
from miniai.augment import Augment,BatchTransformCB,capture_preds,random_flip
from miniai.learner import Callback,CancelFit,LRFinderCB,MetricsCB,MomentumLearner,NaNStopCB,ProgressCB,TrainLearner,EpochMetric
from miniai.loaders import BatchLoader,DataLoaders
from miniai.optim import Adam,AdamW,BatchSchedCB,CosineSched,EpochSchedCB,Momentum,OneCycle,RecorderCB,RMSProp,ewa
from miniai.resnet import PoolBlock,ResBlock
from miniai.training import accuracy
from common import python

def rows(n=40, seed=0):
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))
    return x, x.sum(1, keepdim=True)+.1*x[:,:1]**2

def tiny(cbs=(), cls=TrainLearner, model=None, bs=8, **kwargs):
    torch.manual_seed(1)
    dl = BatchLoader(*rows(), bs=bs)
    learn = cls(model or nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)), DataLoaders(dl, dl), cbs=cbs, **kwargs)
    learn.log = lambda *args: None
    return learn

# ---- the finder, against a second description of its rule

def medians(losses):
    n = len([o for o in losses if np.isfinite(o)])
    return [float(np.median(losses[max(0, i-3):min(n, i+4)])) for i in range(n)]

def noise(losses): return np.abs(np.diff(losses)).mean()*math.sqrt(math.pi)/2 if len(losses)>1 else 0.

def stop_at(losses, max_mult):
    "How many losses are seen, and was it an explosion?"
    for n in range(1, len(losses)+1):
        if not math.isfinite(losses[n-1]): return n,True
        if n<30: continue
        sevens = [float(np.median(losses[i:i+7])) for i in range(n-6)]
        low = min(sevens)
        rise = max(min((max_mult-1)*abs(low), sevens[0]-low), 4*noise(losses[:n-7]))
        if sevens[-1]>low+rise: return n,True
    return len(losses),False

def rule(losses, lrs, exploded):
    m = medians(losses)
    if len(m)<len(losses): m = m[:-3] or m[:1]
    low = min(m)
    near = 2*1.2533*noise(losses[:max(m.index(low)+1, len(m)-7)])/math.sqrt(7)
    fell = len(m)>=14 and m[min(3, len(m)-1)]-low>2*near
    if not exploded and not fell: return lrs[0]
    good = [i for i,o in enumerate(m) if o<=low+near]
    return max(lrs[0], lrs[good[-1] if exploded else good[0]]/10)

def series(seed):
    "Losses of a run with a fall, an explosion and noise; some shifted, some flat, some endless."
    g = np.random.default_rng(seed)
    n = int(g.integers(6, 140))
    t = np.arange(n)
    fall,blow = g.uniform(0, 3)/(1+np.exp(-(t-g.uniform(.2, .8)*n)/5)),np.exp((t-g.uniform(.5, 1.4)*n)/3)
    loss = g.uniform(-2, 4) - fall + np.minimum(blow, 1e6) + g.uniform(0, .8)*g.standard_normal(n)
    if seed%5==0: loss[-1] = math.inf
    return loss.tolist()

def found(losses, max_mult=3., gamma=1.2):
    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.p,self.i = nn.Parameter(torch.zeros(())),0
        def forward(self, x): return self.p*0
    feed = iter(losses)
    def loss_func(p, *y): return p*0+next(feed)
    learn = TrainLearner(One(), DataLoaders([(torch.zeros(1, 1), torch.zeros(1, 1))], None), loss_func)
    finder = LRFinderCB(gamma, max_mult, len(losses))
    learn.model = learn.model.double()
    learn.fit(len(losses), valid=False, cbs=[finder], lr=1e-5)
    return finder

@pytest.mark.parametrize('max_mult', [1.5, 3.])
def test_finder_follows_its_rule(max_mult):
    for seed in range(60):
        losses = series(seed)
        finder = found(losses, max_mult)
        n,exploded = stop_at(losses, max_mult)
        assert (len(finder.losses), finder.exploded)==(n, exploded), seed
        assert finder.lrs==pytest.approx([1e-5*1.2**i for i in range(n)])
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            assert finder.suggest()==pytest.approx(rule(finder.losses, finder.lrs, exploded)), seed
        assert finder.smooth()[:len(medians(finder.losses))]==pytest.approx(medians(finder.losses))
        assert len(finder.smooth())==n

def noisy(bs, seed, loss=F.mse_loss, opt_func=optim.SGD, shuffle=True, easy=False, **kwargs):
    torch.manual_seed(seed)
    x = torch.randn(512, 8)
    y = x@torch.randn(8, 1)+torch.randn(512, 1)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    if easy:
        with torch.no_grad(): y[:bs] = net(x[:bs])
    dl = BatchLoader(x, y, bs=bs, shuffle=shuffle)
    return TrainLearner(net, DataLoaders(dl, None), loss, opt_func=opt_func).lr_find(plot=False, **kwargs)

@pytest.mark.parametrize('bs', [4, 8, 16, 64])
def test_noisy_losses(bs):
    assert all(1e-3<noisy(bs, seed)<1e-1 for seed in range(5))

def test_losses_of_any_sign_an_easy_first_batch_and_weights():
    plain = noisy(16, 0)
    for shift in (-6., -1., -100., 50.): assert noisy(16, 0, lambda p, y: F.mse_loss(p, y)+shift)==pytest.approx(plain, rel=.5)
    assert 1e-3<noisy(16, 0, easy=True, shuffle=False)<1e-1
    g = torch.Generator().manual_seed(0)
    assert 1e-3<noisy(16, 0, lambda p, y: F.mse_loss(p, y)*torch.exp(torch.randn((), generator=g)))<1e-1
    assert 1e-4<noisy(16, 0, lambda p, y: -F.cosine_similarity(p.T, y.T).mean())<1            # bounded: never explodes

def test_a_trained_net_keeps_a_small_rate():
    g = torch.Generator().manual_seed(0)
    y = torch.randint(10, (4000,), generator=g)
    x = torch.randn(10, 20, generator=g)[y] + 1.2*torch.randn(4000, 20, generator=g)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 10))
    learn = TrainLearner(net, DataLoaders.from_tensors((x, y), (x, y), bs=32), F.cross_entropy, 3e-3, opt_func=optim.AdamW)
    learn.fit(4, valid=False)
    for seed in range(4):
        torch.manual_seed(seed)
        assert 1e-5<learn.lr_find(plot=False)<3e-2

def test_nothing_seen_is_a_warning():
    for kwargs in (dict(loss=lambda p, y: (p*0).sum()+1.), dict(max_iter=10)):
        with pytest.warns(UserWarning, match='neither fell nor exploded'): assert noisy(16, 0, **kwargs)==1e-5
    for bad in (dict(gamma=1.), dict(max_mult=1.), dict(max_iter=0)):
        with pytest.raises(ValueError, match=next(iter(bad))): LRFinderCB(**bad)

# ---- and no trace of it

class Restless(nn.Module):
    "Changes itself in every way that a module can."
    def __init__(self):
        super().__init__()
        self.lin,self.drop = nn.Linear(3, 1),nn.Dropout(.2)
        self.register_buffer('grows', torch.zeros(0, 3))
        self.register_buffer('count', torch.zeros(()), persistent=False)
        self.calls,self.kept,self.loose = 0,[],torch.zeros(3)
    def forward(self, x):
        self.grows,self.calls = torch.cat([self.grows, x.detach()]),self.calls+1
        self.count += 1
        self.loose.add_(1)
        self.kept.append(self.calls)
        self.new = x
        return self.lin(self.drop(x)*random.random()*np.random.rand()+self.grows.mean()*0)

class Scaler:
    def __init__(self): self.scale,self.seen = 2.,[1]

class HalfCB(Callback):
    "As half precision does it: a scale in an object of the callback."
    def __init__(self, g): self.scaler,self.g,self.total = Scaler(),g,torch.zeros(2)
    def after_backward(self, learn):
        self.scaler.scale *= 2
        self.scaler.seen.append(torch.rand((), generator=self.g))
        self.total += 1

def everything(learn, cb, gens):
    m = learn.model
    state = [p.detach().clone() for p in m.parameters()]+[None if p.grad is None else p.grad.clone() for p in m.parameters()]
    state += [m.grows.clone(), m.count.clone(), m.calls, list(m.kept), m.loose.clone(), sorted(vars(m)), [o.training for o in m.modules()]]
    state += [p.requires_grad for p in m.parameters()]
    state += [torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate(), *(g.get_state() for g in gens)]
    state += [cb.scaler.scale, list(cb.scaler.seen), cb.total.clone(), copy.deepcopy(learn.opt.state_dict()), list(learn.history), sorted(vars(learn))]
    return state

def equal(a, b):
    if isinstance(a, torch.Tensor): return isinstance(b, torch.Tensor) and a.shape==b.shape and torch.equal(a, b)
    if isinstance(a, np.ndarray): return (a==b).all()
    if isinstance(a, dict): return a.keys()==b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list,tuple)): return len(a)==len(b) and all(map(equal, a, b))
    return a==b

def restless():
    gens = [torch.Generator().manual_seed(i) for i in range(3)]
    x,y = rows()
    dl = BatchLoader(x, y, bs=8, shuffle=True, generator=gens[0], tfm=lambda a, b: (a+torch.rand((), generator=gens[1]), b))
    torch.manual_seed(0)
    cb = HalfCB(gens[2])
    learn = TrainLearner(Restless(), DataLoaders(dl, dl), lr=.01, cbs=[cb, MetricsCB()], opt_func=optim.Adam)
    learn.log = lambda *args: None
    learn.fit()
    learn.model.lin.train()
    return learn,cb,gens

class Stop(Callback):
    def __init__(self, e): self.e = e
    def after_step(self, learn):
        if learn.iter==2: raise self.e

@pytest.mark.parametrize('error', [None, KeyboardInterrupt(), KeyError('mine'), CancelFit()])
def test_lr_find_leaves_no_trace(error):
    learn,cb,gens = restless()
    before,dls = everything(learn, cb, gens),learn.dls
    if error: learn.cbs.append(Stop(error))
    with warnings.catch_warnings(), contextlib.suppress(KeyboardInterrupt, KeyError):
        warnings.simplefilter('ignore')
        learn.lr_find(plot=False)
    if error: learn.cbs.pop()
    assert learn.dls is dls and equal(everything(learn, cb, gens), before)

def test_lr_find_with_torchs_loader_and_other_generators():
    x,y = rows()
    rng,py = np.random.default_rng(0),random.Random(0)
    ds = torch.utils.data.TensorDataset(x, y)
    g = torch.Generator().manual_seed(3)
    def draw(batch): return torch.stack([o[0] for o in batch])+rng.random()+py.random(), torch.stack([o[1] for o in batch])
    dl = torch.utils.data.DataLoader(ds, 8, sampler=torch.utils.data.RandomSampler(ds, generator=g), collate_fn=draw)
    flip = Augment(partial(random_flip, generator=(g2 := torch.Generator().manual_seed(4))))
    learn = TrainLearner(nn.Linear(3, 1), DataLoaders(dl, None), cbs=[BatchTransformCB(lambda *b: b), type('Holds', (Callback,), dict(tfm=None))()])
    learn.cbs[1].tfm = flip
    def states(): return [g.get_state(), g2.get_state(), rng.bit_generator.state, py.getstate(), torch.get_rng_state()]
    before = states()
    learn.lr_find(plot=False)
    g2.set_state(before[1])
    assert equal(states(), before)

class Inject:
    "KeyboardInterrupt at the k-th line of learner.py that is run."
    def __init__(self, k): self.k,self.n = k,0
    def __call__(self, frame, event, arg):
        if frame.f_code.co_filename!=L.__file__: return None
        if event=='line':
            self.n += 1
            if self.n==self.k: raise KeyboardInterrupt
        return self

def interrupted(f, k):
    "Run `f`, interrupted at line `k`; returns how many lines were run."
    inject,old = Inject(k),sys.gettrace()
    sys.settrace(inject)
    try: f()
    except KeyboardInterrupt: pass
    finally: sys.settrace(old)
    return inject.n

class Sched(Callback):
    def after_step(self, learn): learn.opt.param_groups[0].update(lr=1e-9, initial_lr=1.)

class Wraps(Callback):
    def before_fit(self, learn):
        step = learn.step
        learn.step = lambda: step()
    def cleanup_fit(self, learn): vars(learn).pop('step', None)

@pytest.mark.parametrize('what', ['fit', 'lr_find'])
def test_ctrl_c_at_any_line(what):
    def run(learn):
        if what=='fit': learn.fit(1)
        else: learn.lr_find(plot=False, max_iter=2)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        made = tiny([MetricsCB(), Sched(), Wraps()], bs=20)
        made.fit()
        n = interrupted(partial(run, copy.deepcopy(made)), -1)
        for k in range(1, n+1, 3 if what=='fit' else 23):
            learn = copy.deepcopy(made)
            weights,groups = copy.deepcopy(learn.model.state_dict()),copy.deepcopy(learn.opt.state_dict()['param_groups'])
            rng = torch.get_rng_state()
            interrupted(partial(run, learn), k)
            assert learn._on is None and len(learn.cbs)==3 and 'step' not in vars(learn) and not learn.model.training, k
            assert learn.opt.state_dict()['param_groups']==groups, k
            if what!='fit': assert equal(dict(learn.model.state_dict()), dict(weights)) and torch.equal(rng, torch.get_rng_state()), k
            learn.fit()

# ---- the loop

def test_validation_has_no_gradients_and_cleanups_keep_the_order():
    seen = []
    class Look(Callback):
        def __init__(self, name, order): self.name,self.order = name,order
        def after_predict(self, learn): seen.append((learn.phase, torch.is_grad_enabled(), learn.preds.requires_grad))
        def cleanup_epoch(self, learn): seen.append(self.name)
    tiny([Look('second', 2), Look('first', 1)], bs=40).fit()
    assert seen==[('train', True, True)]*2+['first','second']+[('valid', False, False)]*2+['first','second']

@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
def test_nan_stop(bad):
    learn = tiny([NaNStopCB()], loss_func=lambda p, y: p.sum()*0+bad)
    with pytest.raises(FloatingPointError, match='in epoch 0, train batch 0'): learn.fit()

def test_rows_are_counted_by_the_predictions():
    x,y = rows(10)
    weights = torch.tensor([1., 2., 3.])
    batches = [(weights, x[:8], y[:8]), (weights, x[8:], y[8:])]
    class Net(nn.Linear):
        def forward(self, w, x): return super().forward(x)
    class Two(TrainLearner): n_inp = 2
    torch.manual_seed(0)
    learn = Two(Net(3, 1), DataLoaders(None, batches), cbs=[MetricsCB()])
    learn.log = lambda *args: None
    learn.fit(train=False)
    with torch.no_grad(): assert learn.history[0]['valid_loss']==pytest.approx(F.mse_loss(learn.model(weights, x), y).item())

def test_two_metrics_callbacks_are_refused():
    with pytest.raises(ValueError, match='two MetricsCB'): tiny([MetricsCB()]).fit(cbs=[MetricsCB(mae=accuracy)])

Pair = namedtuple('Pair', 'out more')
@pytest.mark.parametrize('wrap', [lambda o: (o, o), lambda o: [o, dict(a=o)], lambda o: dict(out=o), lambda o: Pair(o, (o,))])
def test_copy_after_a_fit(wrap):
    class Net(nn.Linear):
        def forward(self, x): return wrap(super().forward(x))
    def first(p): return p if isinstance(p, torch.Tensor) else first(next(iter(p.values() if isinstance(p, dict) else p)))
    learn = tiny(model=Net(3, 1), loss_func=lambda p, y: F.mse_loss(first(p), y))
    learn.fit(valid=False)
    other = copy.deepcopy(learn)
    assert type(learn.preds)==type(wrap(torch.ones(1))) and not first(learn.preds).requires_grad
    for o in (learn, other): o.fit()
    assert equal(dict(learn.model.state_dict()), dict(other.model.state_dict()))

def test_metrics_do_not_keep_graphs_or_views():
    whole = EpochMetric(lambda p, t: p['a'][0].sum())
    buffer,w = torch.zeros(3),torch.ones(3, requires_grad=True)
    for i in (1., 2.):
        buffer.fill_(i)
        whole.update(dict(a=(buffer*1,)) if i==1 else dict(a=(buffer,)), buffer)
    buffer.fill_(9.)
    assert whole.compute()==9.
    whole.update(dict(a=(w*2,)), w)
    assert not whole.parts[-1][0]['a'][0].requires_grad

def test_rates_where_the_learners_is_0():
    def two(params, lr): return optim.SGD([dict(params=[p], lr=o) for p,o in zip(params, (lr, .3))], lr=lr)
    learn = tiny(model=nn.Linear(3, 1), lr=0., opt_func=two)
    rates = []
    class Look(Callback):
        def before_fit(self, learn): rates.append([g['lr'] for g in learn.opt.param_groups])
    learn.fit(lr=.1, cbs=[Look()])
    assert rates==[[.1, .3]] and [g['lr'] for g in learn.opt.param_groups]==[0., .3]
    learn = tiny(model=nn.Linear(3, 1), lr=.1, opt_func=lambda params, lr: optim.SGD([dict(params=[p], lr=o) for p,o in zip(params, (lr, 0.))], lr=lr))
    learn.fit(lr=.2, cbs=[Look()])
    assert rates[-1]==[.2, 0.]

# ---- what a checkpoint keeps

class TopK:
    def __init__(self, k): self.k = k
    def reset(self): self.right = self.n = 0
    def update(self, p, y):
        self.right += (p>y).sum()
        self.n += len(y)
    def compute(self): return np.float32(self.right/self.n)

def test_metrics_state():
    def half(cb, n, start=0):
        for i in range(start, n): cb.loss.add(torch.tensor(float(i)), i+1), [m.update(torch.full((2, 1), i-1.), torch.zeros(2, 1)) for m in list(cb.metrics.values())[1:]]
    def make():
        cb = MetricsCB(F.mse_loss, TopK(3), all=EpochMetric(lambda p, y: (p*2-y).sum()))
        cb._reset()
        return cb
    whole,first,second = make(),make(),make()
    half(whole, 5), half(first, 3)
    first.row,first.open = {'train_loss': 1.},True
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    half(second, 5, 3), half(first, 4, 3)           # going on here does not change what was loaded there
    assert (second.row, second.open)==({'train_loss': 1.}, True)
    assert [m.compute() for m in second.metrics.values()]==[m.compute() for m in whole.metrics.values()]
    assert type(L._number(TopK.compute(second.metrics['topk']))) is float
    class Odd(TopK):
        def reset(self): self.gen = (i for i in range(3))
    odd = MetricsCB(Odd(1))
    odd._reset()
    with pytest.raises(TypeError, match='metrics: odd.gen is a generator'): odd.state_dict()

def test_momentum_learner_keeps_its_velocity():
    whole = tiny(cls=MomentumLearner, mom=.9, lr=.01)
    whole.fit(2)
    first = tiny(cls=MomentumLearner, mom=.9, lr=.01)
    first.fit()
    second = tiny(cls=MomentumLearner, mom=.9, lr=.01)
    second.model.load_state_dict(first.model.state_dict())
    second.load_extra_state(first.extra_state())
    first.fit()                                              # its gradients are no longer those that were loaded
    second.fit()
    assert equal(dict(whole.model.state_dict()), dict(second.model.state_dict()))

def test_recorder_and_schedules_keep_their_state():
    def make():
        cbs = [RecorderCB(loss=lambda learn: learn.loss, n=lambda learn: np.float32(learn.iter)), BatchSchedCB(partial(OneCycle, max_lr=.1)), EpochSchedCB(CosineSched)]
        tiny(cbs, opt_func=optim.Adam).fit(2)
        return cbs
    a,b = make(),make()
    a[0].values['loss'].append(torch.tensor(5.))
    a[1].left = 7
    for o,p in zip(a, b): p.load_state_dict(copy.deepcopy(o.state_dict()))
    assert equal(a[0].values, b[0].values) and type(b[0].values['n'][0]) is float and b[1].left==7
    assert [o.sched.state_dict() for o in a[1:]]==[o.sched.state_dict() for o in b[1:]]

# ---- bars

program = '''
import sys,torch
from torch import nn
from miniai.learner import MetricsCB,ProgressCB,TrainLearner
from miniai.loaders import BatchLoader,DataLoaders
if len(sys.argv)>1: sys.stdout.isatty = lambda: True
x = torch.randn(64, 3)
dl = BatchLoader(x, x[:,:1], bs=16)
TrainLearner(nn.Linear(3, 1), DataLoaders(dl, dl), cbs=[MetricsCB(), ProgressCB(plot=True)]).fit(2)
'''

def test_no_bar_in_a_file_and_none_wider_than_the_terminal():
    plain = python('-c', program).stdout
    assert [o.split()[0] for o in plain.splitlines()]==['epoch','0','1'] and '\r' not in plain
    for columns in (20, 58):
        shown = python('-c', program, 'terminal', env=dict(COLUMNS=str(columns), PYTHONIOENCODING='utf-8')).stdout
        lines = [o for line in shown.split('\n') for o in line.split('\r')]
        assert all(len(o)<=columns for o in lines if '|' in o or 'Epoch' in o) and any('Epo' in o for o in lines)

def test_a_bar_knows_how_many_batches_there_are(monkeypatch):
    monkeypatch.setattr(L, '_bars_seen', lambda: True)
    progress,totals = ProgressCB(),[]
    class Look(Callback):
        def after_batch(self, learn): totals.append(progress.child.total)
    tiny([progress, Look()]).fit(1)
    assert totals==[5]*10                    # 40 rows by eight, twice

# ---- optimizers

@pytest.mark.parametrize('cls', [Momentum, RMSProp, Adam, AdamW])
def test_what_cannot_be_moved_is_refused(cls):
    w = torch.randn(3, requires_grad=True)
    with pytest.raises(ValueError, match='was computed from others'): cls([w*.1])
    with pytest.raises(TypeError, match='expected float tensors'): cls([torch.arange(3)])
    for bad in ([dict(lr=.1)], [dict(params=[w]), w]):
        with pytest.raises(ValueError, match="expected a dict with 'params'"): cls(bad)
    kept = w*.1
    kept.retain_grad()
    cls([kept])

@pytest.mark.parametrize('ours,theirs', [(Momentum, optim.SGD), (RMSProp, optim.RMSprop), (Adam, optim.Adam), (AdamW, optim.AdamW)])
def test_complex_parameters(ours, theirs):
    torch.manual_seed(0)
    ps = [torch.randn(3, dtype=torch.complex128).requires_grad_() for _ in range(2)]
    with torch.no_grad(): ps[1].copy_(ps[0])
    opts = ours([ps[0]], lr=.1),theirs([ps[1]], lr=.1)
    for i in range(6):
        for p,o in zip(ps, opts):
            o.zero_grad()
            ((p-1-2j).abs()**2).sum().backward()
            o.step()
        if i==2:
            saved = opts[0].state_dict()
            opts = ours([ps[0]], lr=.1),opts[1]
            opts[0].load_state_dict(saved)
    torch.testing.assert_close(*ps, rtol=0, atol=1e-12)

def test_states_that_do_not_fit():
    p,q = torch.zeros(3, requires_grad=True),torch.zeros(1, requires_grad=True)
    opt = Adam([p])
    p.grad = torch.ones(3)
    opt.step()
    with pytest.raises(ValueError, match='expected the shape'): Adam([q]).load_state_dict(opt.state_dict())
    with pytest.raises(ValueError, match='state and param_groups'): opt.load_state_dict({})
    with pytest.raises(ValueError, match='expected that of a OneCycle'): OneCycle(opt, .1, 9).load_state_dict(CosineSched(opt, 9).state_dict())
    with pytest.raises(ValueError, match='max_lr'): OneCycle(opt, math.inf, 9)
    with pytest.raises(ValueError, match='div_factor'): OneCycle(opt, .1, 9, final_div_factor=0.)

def test_averages_of_whole_numbers():
    assert ewa(torch.tensor([1, 2, 3]), .5).tolist()==pytest.approx([1, 5/3, 17/7])
    assert ewa([1, 2, 3], .5, debias=False).tolist()==pytest.approx([.5, 1.25, 2.125])
    with pytest.raises(ValueError, match='x: expected values in order'): ewa(torch.tensor(1.), .5)

def test_loaders_without_a_length():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self): yield from zip(*rows(20))
    learn = tiny()
    learn.dls = DataLoaders(torch.utils.data.DataLoader(Stream(), 5), None)
    with pytest.raises(TypeError, match='dls.train: expected a loader with a length'): learn.fit(valid=False, cbs=[BatchSchedCB(CosineSched)])
    learn.fit(valid=False, cbs=[EpochSchedCB(CosineSched), ProgressCB()])

# ---- blocks

@pytest.mark.parametrize('block', [ResBlock, PoolBlock])
@pytest.mark.parametrize('norm', [nn.BatchNorm2d, None, nn.InstanceNorm2d, nn.Identity, partial(nn.BatchNorm2d, affine=False),
    partial(nn.GroupNorm, 2, affine=False), lambda n: nn.Sequential(nn.BatchNorm2d(n), nn.Dropout2d(.1))])
def test_blocks_start_as_their_shortcut(block, norm):
    b,x = block(4, 4, norm=norm, act=None),torch.randn(2, 4, 6, 6)
    for mode in (True, False): assert torch.equal(b.train(mode)(x).detach(), x)
    (b.train()(x)-1).square().sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum()>0 for p in b.parameters())
    assert block(4, 8, stride=2, norm=norm)(x).shape==(2, 8, 3, 3)

def test_capture_preds_puts_back_after_an_error():
    learn = tiny()
    learn.fit()
    before = dict(vars(learn))
    with pytest.raises(ValueError, match='no batch'): capture_preds(learn, [])
    assert vars(learn)==before

def test_get_preds_changes_nothing():
    learn = tiny([MetricsCB()])
    learn.fit()
    learn.model[1].train()                    # a mode of its own
    modes,before,state = [m.training for m in learn.model.modules()],dict(vars(learn)),torch.get_rng_state()
    weights = copy.deepcopy(learn.model.state_dict())
    preds,targets = learn.get_preds()
    x,y = rows()
    with torch.no_grad(): assert torch.allclose(preds, copy.deepcopy(learn.model).eval()(x), atol=1e-6)
    assert torch.equal(targets, y) and torch.equal(preds, learn.get_preds([(x,)])[0]) and torch.equal(preds, learn.get_preds([x])[0])
    assert learn.get_preds([(x,)])[1]==() and not preds.requires_grad
    with pytest.raises(ValueError, match='no batch'): learn.get_preds([])
    assert vars(learn).keys()==before.keys() and all(vars(learn)[k] is v for k,v in before.items())
    assert [m.training for m in learn.model.modules()]==modes and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, weights[k]) for k,v in learn.model.state_dict().items())
    assert len(learn.history)==1

def test_get_preds_copies_batches_and_refuses_a_fit_within():
    buffer = torch.zeros(2, 3)
    class Same:
        def __iter__(self):
            for i in range(2): yield buffer.fill_(i), buffer
    learn = tiny()
    assert learn.get_preds(Same())[1].tolist()==[[0.]*3]*2+[[1.]*3]*2
    class Inner(Callback):
        def after_batch(self, learn): learn.get_preds()
    with pytest.raises(RuntimeError, match='in a fit'): learn.fit(cbs=[Inner()])

def test_get_preds_restores_after_an_interruption():
    class Stop(Callback):
        def after_predict(self, learn): raise KeyboardInterrupt
    learn = tiny()
    learn.model.train()
    before = dict(vars(learn))
    with pytest.raises(KeyboardInterrupt): learn.get_preds(cbs=Stop())
    assert vars(learn).keys()==before.keys() and all(vars(learn)[k] is v for k,v in before.items()) and learn.model[1].training
    assert learn.get_preds()[0].shape==(40, 1)

# ---- dicts with methods of their own, and settings that are no numbers

class Out(dict):
    "Like the answers of transformers: entries that are attributes too."
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.__dict__ = self
class Linked(collections.OrderedDict):
    def __setitem__(self, k, v):
        super().__setitem__(k, v)
        super().__setattr__(k, v)

@pytest.mark.parametrize('kind', [Out, Linked])
def test_predictions_keep_their_class(kind):
    from miniai.accel import MixedPrecisionCB
    from miniai.conv import map_nested
    from miniai.resnet import AutocastCB
    class Net(nn.Linear):
        def forward(self, x): return kind(logits=super().forward(x))
    def loss(p, y): return F.mse_loss(p.logits, y)
    for cb in (MixedPrecisionCB(torch.bfloat16), AutocastCB(), L.TrainCB()):
        learn = tiny([cb, MetricsCB(mse=loss, whole=EpochMetric(lambda p, y: p.logits.dtype==torch.float32))], L.Learner, Net(3, 1), loss_func=loss)
        learn.fit(1)
        assert learn.history[-1]['valid_whole']==1. and learn.history[-1]['valid_mse']==pytest.approx(learn.history[-1]['valid_loss'])
        preds,_ = learn.get_preds()
        assert type(preds) is kind and preds.logits is preds['logits'] and preds.logits.shape==(40,1)
        assert not learn.preds.logits.requires_grad and learn.preds.logits.dtype==torch.float32
    old = kind(a=torch.ones(2), b=[torch.ones(1)])
    new = map_nested(old, lambda t: t+1)
    assert type(new) is kind and new.a.tolist()==[2,2] and new['b'][0]==2 and old.a.tolist()==[1,1]

def test_joined_batches_keep_their_named_tuples():
    Pair = namedtuple('Pair', 'a b')
    whole = L.concat_batches([Pair(torch.ones(2), [torch.zeros(1)])]*2)
    assert type(whole) is Pair and whole.a.shape==(4,) and whole.b[0].shape==(2,)

def test_rates_and_counts_that_are_none():
    learn = tiny()
    before = copy.deepcopy(learn.model.state_dict())
    for bad in (math.nan, -1, math.inf, '1'):
        with pytest.raises(ValueError, match='^lr: expected a number, 0 or more'): learn.fit(lr=bad)
        with pytest.raises((ValueError,TypeError)): learn.lr_find(start=bad, plot=False)
    with pytest.raises(ValueError, match='^lr: expected'): tiny(lr=math.nan).fit()
    for bad in (0, math.nan, -1, math.inf):
        with pytest.raises(ValueError, match='^start: expected a number above 0'): learn.lr_find(start=bad, plot=False)
    for bad in (1.5, True):
        with pytest.raises(ValueError, match='^n_epochs: expected a whole number'): learn.fit(bad)
        with pytest.raises(ValueError, match='^max_iter: expected a whole number'): learn.lr_find(max_iter=bad)
    with pytest.raises(ValueError, match='^gamma: expected'): LRFinderCB(gamma=math.inf)
    assert equal(before, dict(learn.model.state_dict())) and learn._on is None
    for good in (0, torch.tensor(.1), np.float32(.1)): learn.fit(lr=good)

@pytest.mark.parametrize('theirs,ours', [(partial(optim.SGD, momentum=.9), partial(Momentum, momentum=.9)), (optim.Adam, Adam), (optim.RMSprop, RMSProp)])
def test_state_of_torchs_optimizers_is_refused(theirs, ours):
    p = nn.Parameter(torch.ones(2))
    a,o = theirs([p], lr=.1),ours([p], lr=.1)
    p.grad = torch.ones(2)
    a.step()
    with pytest.raises(ValueError, match='is it that of another optimizer'): o.load_state_dict(a.state_dict())
    assert not o.state

def test_what_torchs_schedules_add_to_a_group_is_read():
    p = nn.Parameter(torch.ones(2))
    a,o = Momentum([p], momentum=.9),Momentum([p], momentum=.9)
    a.param_groups[0] |= dict(initial_lr=.1, max_lr=.2, min_lr=0., base_momentum=.8, max_momentum=.9)
    o.load_state_dict(a.state_dict())
    assert o.param_groups[0]['initial_lr']==.1

def test_averages_in_half_precision_move_on():
    for dtype in (torch.bfloat16, torch.float16):
        x = torch.full((5000,), 2.25, dtype=dtype)
        got = ewa(x, .999)
        assert got.dtype==dtype and torch.equal(got, x)
        torch.testing.assert_close(ewa(x, .99, debias=False), ewa(x.double(), .99, debias=False).to(dtype))

def test_a_field_that_gives_no_number_is_named():
    rec = RecorderCB(weights=lambda learn: learn.model[0].bias, pair=lambda learn: (1, 2), one=lambda learn: learn.model[2].bias)
    tiny([rec]).fit(valid=False)
    assert len(rec.values['weights'])==5 and rec.numbers('one').shape==(5,)
    with pytest.raises(ValueError, match=r'fields: expected that weights gives one number, got the shape \(4,\)'): rec.numbers('weights')
    with pytest.raises(ValueError, match='fields: expected that pair gives one number, got tuple'): rec.numbers('pair')
