"One call of every exported name, from the package, in a process that no notebook ever touched."
import importlib
import matplotlib
matplotlib.use('agg')
import pytest,torch
from torch import nn
from common import exports,order,python

torch.manual_seed(0)
x,y = torch.rand(40, 1, 8, 8),torch.arange(40)%10

def call_data():
    from miniai import data as d
    p = d.pixel_grid(28)
    for name,sdf in d.SHAPES.items(): assert sdf(p).shape==(28,28), name
    assert d.circle(p, .5).min()<0<d.segment(p, (0,0), (1,1)).max()
    assert d.polygon(p, [(-1,-1), (1,-1), (0,1)]).shape==(28,28)
    assert d.place(p, torch.zeros(2,2), torch.ones(2), torch.zeros(2)).shape==(2,28,28,2)
    assert 0<d.coverage(d.circle(p), 2/28).mean()<1
    assert d.draw_masks(torch.arange(10), torch.zeros(10,2), torch.ones(10), torch.zeros(10)).shape==(10,28,28)
    scenes = d.random_scenes(4)
    assert isinstance(scenes[0], d.Scene) and isinstance(scenes[0].things[0], d.Thing)
    assert d.draw_scenes(scenes, 64).shape==(4,3,64,64)
    thing = scenes[0].things[0]
    assert thing.size in d.SIZES and thing.colour in d.COLOURS and scenes[0].background in d.BACKGROUNDS
    assert scenes[0].relation in ('',*d.RELATIONS) and d.caption(scenes[0]).startswith('a ')
    assert d.hub_answers('no-such/name', timeout=1) is False
    assert d.draw_shapes(5)[0].dtype==torch.uint8
    data = d.get_data('fashion_mnist')
    assert isinstance(data, d.ImageData) and data.x_train.shape==(60_000,1,28,28) and len(data.names)==10
    dd = d.get_dataset('fashion_mnist')
    part = dd['test'].select(range(20))
    assert torch.equal(d.decode(part)[0], data.x_valid[:20])

def call_matmul():
    from miniai.matmul import matmul,matmul_cuda,seconds
    a,b = torch.randn(33, 20),torch.randn(20, 7)
    torch.testing.assert_close(matmul(a, b), a@b)
    assert seconds(matmul, a, b, n=1)>0
    if torch.cuda.is_available(): torch.testing.assert_close(matmul_cuda(a.to('cuda'), b.to('cuda')).cpu(), a@b)
    else:
        with pytest.raises(RuntimeError, match='NUMBA_ENABLE_CUDASIM'): matmul_cuda(a, b)
        code = 'import torch; from miniai.matmul import matmul_cuda as f; a,b=torch.rand(5,3),torch.rand(3,4); torch.testing.assert_close(f(a, b, tile=2), a@b)'
        run = python('-c', code, env={'NUMBA_ENABLE_CUDASIM': '1'})
        assert run.returncode==0, run.stderr

def call_clustering():
    from miniai import clustering as c
    gen = torch.Generator().manual_seed(0)
    pts,labels = c.gaussian_blobs(torch.tensor([[0.,0.], [9.,9.]]), n=30, generator=gen)
    assert c.sq_dists(pts, pts[:3]).shape==(60,3)
    for shifted in (c.mean_shift(pts, 2.), c.mean_shift_near(pts, 2.)):
        found,modes = c.group_points(shifted, 1.)
        assert len(modes)==2 and found.equal(labels)
    centers,found = c.kmeans(pts, 2, generator=gen)
    assert centers.shape==(2,2) and len(found.unique())==2

def call_backprop():
    from miniai.backprop import Var,numeric_grad
    w = torch.randn(3, 2, dtype=torch.float64)
    v = Var(w)
    loss = ((Var(torch.ones(4, 3, dtype=torch.float64))@v).relu()**2).mean()
    loss.backward()
    g = numeric_grad(lambda w: (torch.ones(4, 3, dtype=torch.float64)@w).relu().pow(2).mean(), w)
    torch.testing.assert_close(v.grad, g, rtol=1e-6, atol=1e-8)

def call_training():
    from miniai import training as t
    scores = torch.randn(40, 10)
    torch.testing.assert_close(t.cross_entropy(scores, y), nn.functional.cross_entropy(scores, y))
    torch.testing.assert_close(t.nll(t.log_softmax(scores), y), t.cross_entropy(scores, y))
    assert 0<=t.accuracy(scores, y)<=1
    assert list(t.SequentialSampler(x))==list(range(40)) and sorted(t.RandomSampler(x))==list(range(40))
    assert len(list(t.BatchSampler(t.SequentialSampler(x), 16, drop_last=True)))==2
    assert t.collate([(1, dict(a=2.)), (3, dict(a=4.))])[1]['a'].tolist()==[2, 4]
    ds = t.Dataset(x.flatten(1), y)
    assert [len(b[1]) for b in t.DataLoader(ds, bs=16, shuffle=True, n_workers=2)]==[16, 16, 8]
    class Bad:
        def __len__(self): return 3
        def __getitem__(self, i): return 1/0
    with pytest.raises(t.WorkerError, match='ZeroDivisionError'): list(t.DataLoader(Bad(), n_workers=1))
    model = t.Sequential(t.Linear(64, 16), t.ReLU(), t.Linear(16, 10))
    assert isinstance(model, t.Module) and isinstance(model, t.ModuleList) and len(model.parameters())==4
    train_dl,valid_dl = t.get_dls(ds, ds, bs=16)
    records = t.fit(2, model, t.cross_entropy, t.SGD(model.parameters(), lr=.1), train_dl, valid_dl)
    assert records[1]['train_loss']<records[0]['train_loss']

def call_loaders():
    import matplotlib.pyplot as plt
    from datasets import Dataset,DatasetDict
    from miniai import loaders as l
    assert l.show_image(x[0]) is not None
    l.subplots(2, 2), l.get_grid(5)
    plt.close('all')
    l.show_images(list(x[:5]))
    assert len(plt.get_fignums())==1
    plt.close('all')
    assert l.inplace(lambda d: d.update(a=1))({})=={'a': 1}
    rows = [dict(a=1, b=2.), dict(a=3, b=4.)]
    assert [o.tolist() for o in l.collate_dict('a', 'b')(rows)]==[[1, 3], [2, 4]]
    ds = Dataset.from_list(rows)
    dls = l.DataLoaders.from_dd(DatasetDict(train=ds, test=ds), bs=2)
    assert [len(b) for b in (next(iter(dls.train)), next(iter(dls.valid)))]==[2, 2]
    dl = l.BatchLoader(x, y, bs=16, shuffle=True)
    assert len(dl)==3 and sorted(torch.cat([yb for _,yb in dl]).tolist())==sorted(y.tolist())

def call_core():
    from miniai.checks import core as c
    assert c.describe(3)=='3' and c.difference([1.], [2.]) and len(c.dims(2))==2
    check = c.Checker(double=c.Exercise(c.compare(lambda a: 2*a, lambda: (torch.randn(3),)), 'add it to itself'))
    def double(a): return a+a
    def wrong(a): return a*a
    wrong.__name__ = 'double'
    def stub(a): ...
    assert c.is_stub(stub) and not c.is_stub(double)
    c.test_exercise(check, double, wrong)

calls = {'checks.core': call_core, **{m: globals()[f'call_{m}'] for m in order if m and '.' not in m}}

@pytest.mark.parametrize('module', sorted(calls))
def test_calls(module):
    torch.manual_seed(0)
    calls[module]()

@pytest.mark.parametrize('module', sorted(calls))
def test_no_export_is_forgotten(module):
    "Every exported name occurs in its module's call."
    code = calls[module].__code__
    names = set(code.co_names)|set(code.co_varnames)|{n for c in code.co_consts if hasattr(c, 'co_names') for n in c.co_names}
    imported = {n for c in code.co_consts if isinstance(c, tuple) for n in c}
    assert not [o for o in exports(module) if o not in names|imported]

@pytest.mark.parametrize('module', sorted(m for m in order if m.startswith('checks.') and m!='checks.core'))
def test_checkers_refuse_the_stub(module, capsys):
    check = importlib.import_module(f'miniai.{module}').check
    for name in check.exercises:
        def stub(*args): ...
        stub.__name__ = name
        assert check(stub) is None and 'not written yet' in capsys.readouterr().out
        def raises(*args, **kwargs): raise KeyError('oops')
        raises.__name__ = name
        assert not check.passes(raises)
