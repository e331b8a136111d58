"""Faults of lessons 03 to 05 and their right values: losses, optimizer, collation, workers, the random state of loaders, images."""
import functools,io,pickle,random
import numpy as np, pytest, torch
from contextlib import redirect_stdout
from PIL import Image
from torch.utils import data as torch_data
from miniai import backprop as b, loaders as l, training as t

few = t.Dataset(torch.arange(40).reshape(20, 2), torch.arange(20))
def gen(seed=1): return torch.Generator().manual_seed(seed)
def order(batches): return [torch.as_tensor(o[1] if isinstance(o, (tuple,list)) else o).tolist() for o in batches]
def ours(seed, n): return t.DataLoader(few, 3, shuffle=True, seed=seed, n_workers=n)
def on_device(seed, n):
    dl = torch_data.DataLoader(few, 3, shuffle=True, generator=gen(seed), num_workers=n)
    return l._OnDevice(dl, 'cpu')
def in_memory(seed, n): return l.BatchLoader(*few[:], bs=3, shuffle=True, generator=gen(seed))
def from_tensors(seed, n): return l.DataLoaders.from_tensors(few[:], few[:], bs=3, generator=gen(seed)).train
def own_sampler(seed, n): return t.DataLoader(few, batch_sampler=t.BatchSampler(t.RandomSampler(few, seed), 3), n_workers=n)

@pytest.mark.parametrize('n', (0,2))
@pytest.mark.parametrize('make', (ours,on_device,in_memory,from_tensors,own_sampler))
def test_a_restored_loader_goes_on(make, n):
    first,second = make(1, n),make(2, n)
    zero = order(first)
    state = first.state_dict()
    one,two = order(first),order(first)
    assert zero!=one!=two
    second.load_state_dict({k: v.clone() for k,v in state.items()})
    assert (order(second), order(second))==(one, two)
    second.load_state_dict(state)
    it = iter(second)
    for _ in range(4): next(it)
    assert order(it)==one[4:] and order(second)==two

def test_workers_draw_the_same_after_a_restore():
    class Dice:
        def __len__(self): return 4
        def __getitem__(self, i): return torch.rand(()).item(),np.random.rand(),random.random()
    def rolls(dl): return [[x.item() for x in o] for o in dl]
    dl = t.DataLoader(Dice(), 1, n_workers=2, seed=1)
    rolls(dl)
    state = dl.state_dict()
    one = rolls(dl)
    other = t.DataLoader(Dice(), 1, n_workers=2, seed=2)
    other.load_state_dict(state)
    assert rolls(other)==one!=rolls(other)

def test_samplers_restore():
    a,c = t.RandomSampler(range(50), 1),t.RandomSampler(range(50), 2)
    list(a)
    c.load_state_dict(a.state_dict())
    assert list(a)==list(c)
    assert t.SequentialSampler('abc').state_dict()=={}

def test_generators_are_found_wherever_they_are():
    g = gen()
    def drawing():
        inner = g
        return lambda items: (inner, items)
    class Transform:
        def __init__(self): self.g = gen(3)
        def __call__(self, items): return items
    cases = {'generator': dict(generator=g), 'collate_fn.keywords.g': dict(collate_fn=functools.partial(len, g=gen(2))),
             'collate_fn.inner': dict(collate_fn=drawing()), 'collate_fn.g': dict(collate_fn=Transform()),
             'collate_fn.__self__.g': dict(collate_fn=Transform().__call__), 'dataset.0': dict(dataset=[gen(4), 1])}
    for path,kw in cases.items():
        dl = torch_data.DataLoader(**{'dataset': range(8), **kw})
        assert path in t.find_generators(dl), (path, list(t.find_generators(dl)))
    assert len(t.find_generators(torch_data.DataLoader(range(8), shuffle=True, generator=g)))==1     # each once
    o = Transform()
    o.me = o
    assert list(t.find_generators(o))==['g']                                                         # a circle
    for rng in (np.random.default_rng(0), np.random.RandomState(0), random.Random(0)):
        o.rng = rng
        with pytest.raises(TypeError, match='collate_fn.rng: expected a torch.Generator'): t.DataLoader(few, collate_fn=o).state_dict()
    o.rng = random.shuffle                                # Python's own random state is saved with the training
    assert list(t.find_generators(o))==['g']

_global = gen(5)
def test_a_global_generator_is_found():
    def collate(items): return torch.randperm(len(items), generator=_global)
    assert list(t.find_generators(collate))==['_global']

def test_a_wrong_state_leaves_the_loader_as_it_was():
    a = ours(1, 0)
    before = a.state_dict()
    bad = {k: torch.zeros(3, dtype=torch.uint8) if k=='generator' else gen(9).get_state() for k in before}
    with pytest.raises(ValueError, match='generator'): a.load_state_dict(bad)
    with pytest.raises(ValueError, match='expected generators'): a.load_state_dict({})
    assert all(torch.equal(v, before[k]) for k,v in a.state_dict().items())

def test_length_is_asked_for_by_calling():
    class Stream(torch_data.IterableDataset):
        def __iter__(self): yield from range(5)
    class NotYet:
        def __len__(self): raise NotImplementedError
    assert [t.length(o) for o in (ours(1, 0), [1,2], iter([1]), torch_data.DataLoader(Stream()), NotYet())]==[7,2,None,None,None]

def test_classes_out_of_range():
    z = torch.randn(4, 3)
    for y in ([0,1,2,-1], [0,1,2,3], [-100,0,0,0]):
        for f in (t.cross_entropy, t.nll, t.accuracy):
            with pytest.raises(ValueError, match='classes from 0 to 2'): f(z, torch.tensor(y))
    for f in (t.cross_entropy, t.nll, t.accuracy): f(z, torch.tensor([0,1,2,2]))

def test_sgd_refuses_what_gets_no_gradient():
    w = torch.randn(3, requires_grad=True)
    for bad,word in (([w*.1], 'computed'), ([torch.randn(3)], 'require'), ([w,w], 'twice'), ([], 'at least one')):
        with pytest.raises(ValueError, match=word): t.SGD(bad, .1)
    kept = w*2
    kept.retain_grad()
    t.SGD([kept], .1)                                     # it does get a gradient
    frozen = torch.randn(3)
    t.SGD([w,frozen], .1)

def test_a_module_cannot_hold_its_parent():
    m = t.Sequential(t.Sequential(t.Linear(2, 2)))
    with pytest.raises(ValueError, match='already holds'): m[0][0].parent = m
    with pytest.raises(ValueError, match='already holds'): m.append(m)
    assert len(m.parameters())==2 and repr(m) and m.eval() is m

def test_collate_of_mixed_or_missing_items():
    with pytest.raises(ValueError, match='at least one'): t.collate([])
    for items in ([1,'a'], [1,None], [(1,2),None], ['a',1], [torch.ones(1),1], [None], [dict(a=1),(1,)], [(1,2),'ab'], [object()]):
        with pytest.raises(TypeError, match='collate: expected'): t.collate(items)
    assert torch.equal(t.collate([1, 2.5, True]), torch.tensor([1, 2.5, 1]))
    assert t.collate([np.float64(1), 2.]).dtype==torch.float64

@pytest.mark.parametrize('n', (0,1))
@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_sparse_items(n):
    for make in (torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr):
        dl = t.DataLoader([make(torch.eye(2))]*3, 1, n_workers=n, collate_fn=list)
        assert all(torch.equal(o[0].to_dense(), torch.eye(2)) for o in dl)

def test_worker_has_one_thread_and_ends_with_us():
    class Threads:
        def __len__(self): return 2
        def __getitem__(self, i): return torch.get_num_threads()
    n = torch.get_num_threads()
    torch.set_num_threads(2)
    try: assert next(iter(t.DataLoader(Threads(), 1, n_workers=1))).item()==1
    finally: torch.set_num_threads(n)
    dl = t.DataLoader(Threads(), 1)
    w = t._Worker(0, Threads(), t.collate, 0, dl.context)
    w.ask([0]).answer()
    w.conn.close()                                        # as when our process dies
    w.process.join(10)
    assert w.process.exitcode==0
    w = t._Worker(0, Threads(), t.collate, 0, dl.context)
    w.end()
    assert w.conn.closed

def test_defaults_of_the_loader():
    assert [len(o) for o in t.DataLoader(range(130))]==[64,64,2]
    assert next(iter(t.DataLoader(range(130)))).tolist()==list(range(64))
    assert len(t.BatchSampler(range(10), 4))==3
    assert [len(o) for o in t.get_dls(few, few, 1)]==[20,10]
    assert t.DataLoader(few).n_workers==0                 # none makes a process unasked

def test_account_of_a_failure():
    class Broken:
        def __len__(self): return 3
        def __getitem__(self, i):
            if i==2: raise KeyError('no such file')
            return i
    account = pickle.loads(t._answer(Broken(), [0,2], t.collate))[1]
    assert account.startswith('item 2 failed:') and 'no such file' in account
    def bad_collate(items): raise RuntimeError('cannot stack')
    assert pickle.loads(t._answer(Broken(), [0,1], bad_collate))[1].startswith('the batch of items [0, 1] failed:')

def test_repr_of_modules():
    assert repr(t.ReLU())==t.Module.__repr__(t.ReLU())=='ReLU()' and repr(t.Sequential(t.ReLU()))=='Sequential(\n  (0): ReLU()\n)'

def test_an_epoch_trains_in_training_mode():
    m,ds = t.Sequential(t.Linear(2, 3)),t.Dataset(torch.randn(5, 2), torch.randint(0, 3, (5,)))
    m.eval()
    t._train_epoch(m, t.cross_entropy, t.SGD(m.parameters(), 1e-3), t.DataLoader(ds, 2), 'cpu')
    assert m.training and m[0].training

def test_fit_trains_in_training_mode_and_reports():
    seen = []
    class Noted(t.Linear):
        def forward(self, x):
            seen.append(self.training)
            return super().forward(x)
    m,ds = Noted(2, 3),t.Dataset(torch.randn(5, 2), torch.randint(0, 3, (5,)))
    out = io.StringIO()
    with redirect_stdout(out): rows = t.fit(2, m.eval(), t.cross_entropy, t.SGD(m.parameters(), 1e-12), *t.get_dls(ds, ds, 4))
    assert seen==2*[True,True,False] and out.getvalue().startswith('epoch  train_loss')
    assert 0<=rows[0]['seconds']<60
    assert abs(rows[0]['train_loss']-rows[0]['valid_loss'])<1e-5        # by rows: batches of 4 and 1, and of 5

def test_numeric_grad_trusts_nobody():
    x = torch.tensor([[1.,-2.],[3.,.5]])
    for f in (lambda z: z.mul_(2).sum(), lambda z: z.add_(z).sum(), lambda z: z.clone().mul_(2).sum()):
        assert torch.allclose(b.numeric_grad(f, x), torch.full((2,2), 2.).double())
    assert torch.equal(x, torch.tensor([[1.,-2.],[3.,.5]]))
    for bad in (torch.tensor([1j]), 1j):
        with pytest.raises(TypeError, match='real'): b.numeric_grad(lambda z: z.abs().sum(), bad)
    for h in (0, -1, float('nan'), float('inf')):
        with pytest.raises(ValueError, match='h must be positive'): b.numeric_grad(torch.sum, x, h)

def test_var_at_the_corner_and_the_callers_gradient():
    x = torch.tensor([-1.,0.,1.])
    v,w = b.Var(x),x.clone().requires_grad_()
    v.relu().sum().backward(); w.relu().sum().backward()
    assert torch.equal(v.grad, w.grad)
    g,v = torch.ones(3),b.Var(x)
    v.backward(g)
    g.zero_()
    assert torch.equal(v.grad, torch.ones(3))
    empty = b.Var(torch.zeros(3, 0)).mean(0)
    assert empty.value.shape==(0,)

def shown(im, **kwargs):
    import matplotlib.pyplot as plt
    fig,ax = plt.subplots()
    res = l.show_image(im, ax=ax, **kwargs).images[0]
    plt.close(fig)
    return res

def test_images_enter_by_one_door(tmp_path):
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)*40
    turned = Image.Exif()
    turned[0x112] = 6
    Image.fromarray(grey).save(tmp_path/'a.png', exif=turned)
    for im in (tmp_path/'a.png', str(tmp_path/'a.png'), (tmp_path/'a.png').read_bytes(), Image.open(tmp_path/'a.png')):
        assert (shown(im).get_array().data==np.rot90(grey, -1)).all()
    hidden = Image.new('RGBA', (3, 2), (200, 0, 0, 0))
    for mode in ('RGBA', 'RGBa'): assert (shown(hidden.convert(mode)).get_array().data==255).all()
    assert (shown(Image.new('LA', (3, 2), (7, 0))).get_array().data==255).all()
    palette = Image.new('P', (3, 2), 0)
    palette.putpalette([200, 0, 0])
    palette.info['transparency'] = 0
    assert (shown(palette).get_array().data==255).all()
    deep = Image.fromarray(np.array([[0, 257*100, 65535]], dtype=np.uint16))
    assert shown(deep).get_array().data.tolist()==[[0, 100, 255]] and shown(deep).get_clim()==(0, 255)
    floats = np.array([[-4., 0., 5.]], dtype=np.float32)
    assert shown(Image.fromarray(floats)).get_clim()==shown(floats).get_clim()==(-4, 5)
    with pytest.raises(ValueError, match='^im cannot be read'): l.show_image(b'no image')

def test_limits():
    assert l._limits(np.array([.2, 6.]))==(.2, 6)
    assert l._limits(np.array([0., 1.]))==(0, 1)
    assert l._limits(np.array([-.1, 1.]))==(-.1, 1)
    assert l._limits(np.array([], dtype=np.float32))==(0, 1)
    assert l._limits(np.zeros(3, dtype=np.uint8))==(0, 255)
    rgb = torch.tensor([0., 2., 4.]).reshape(3, 1, 1)
    assert shown(rgb).get_array().data.tolist()==[[[0, .5, 1]]]

def test_rows_want_floats_or_a_scale():
    im = torch.full((1, 2, 2), 200, dtype=torch.uint8)
    with pytest.raises(TypeError, match="'a'"): l.show_rows(dict(a=[im]))
    ax = l.show_rows(dict(a=[im]), vmin=0, vmax=255)
    assert abs(ax.images[0].get_array()[0,0]-200/255)<1e-6
    with pytest.raises(ValueError, match='less than vmax'): l.show_rows(dict(a=[im/255]), vmin=1, vmax=1)

def test_batch_loader_asks_its_arguments():
    x = torch.arange(6)
    for kw,word in (dict(bs=0), '1 or more'),(dict(bs=2.5), 'whole number'),(dict(bs=7, drop_last=True), 'at most 6'):
        with pytest.raises(ValueError, match=word): l.BatchLoader(x, **kw)
    with pytest.raises(TypeError, match='torch.Generator'): l.BatchLoader(x, bs=2, generator=3)
    assert [o[0].tolist() for o in l.BatchLoader(x, bs=np.int64(4))]==[[0,1,2,3],[4,5]]
    with pytest.raises(ValueError, match='at least one'): l.collate_dict('a')([])

def test_the_sheet_of_rows():
    import matplotlib.pyplot as plt
    x = torch.zeros(1, 4, 8)
    ax = l.show_rows(dict(a=[x]*3, b=[x+.5]*2), 'all', titles='xyz', size=.5)
    sheet = ax.images[0].get_array()
    assert sheet.shape==(9, 26) and sheet[0,0]==.5 and sheet[5,0]==.75 and sheet[4,0]==1 and sheet[0,8]==1 and sheet[8,25]==1
    assert ax.get_yticks().tolist()==[2, 7] and [o.get_text() for o in ax.get_yticklabels()]==['a','b']
    assert ax.get_xticks().tolist()==[4, 13, 22] and [o.get_text() for o in ax.get_xticklabels()]==['x','y','z']
    assert np.allclose(ax.figure.get_size_inches(), (.5*3+1.2, .5*2*4/8+.5)) and ax.figure.get_suptitle()=='all'
    plain = l.show_rows(dict(a=[x-2]))
    assert (plain.images[0].get_array()==0).all() and plain.get_xticks().size==0
    assert not any(o.get_visible() for o in ax.spines.values())
    plt.close('all')

def test_forms_of_an_image():
    last = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    for im in (torch.tensor(last).permute(2, 0, 1), last, Image.fromarray(last)):
        assert np.allclose(shown(im).get_array().data, last/255)
    four = torch.rand(4, 5, 6)
    assert shown(four).get_array().shape==(5, 6, 4)
    assert shown(torch.full((2, 2), 7.)).get_array().data.tolist()==[[7, 7], [7, 7]]
    assert shown(torch.full((3, 2, 2), 7.)).get_array().data.tolist()==[[[0, 0, 0]]*2]*2      # no division by zero
    for bad in (torch.zeros(2, 9, 9), torch.zeros(4), np.zeros((5, 4, 4, 3))):
        with pytest.raises(ValueError, match='expected one image'): l.show_image(bad)

def test_defaults_of_data_loaders():
    x = torch.arange(200)
    dls = l.DataLoaders.from_tensors((x,), (x,))
    assert [len(o) for o, in dls.train]==[64,64,64,8] and [len(o) for o, in dls.valid]==[128,72]
    assert torch.equal(torch.cat([o for o, in dls.valid]), x)
    assert not torch.equal(torch.cat([o for o, in dls.train]), x)
    rows = [dict(a=i) for i in range(100)]
    dls = l.DataLoaders.from_dd(dict(train=rows, test=rows), collate=l.collate_dict('a'), device='cpu')
    assert [len(o) for o, in dls.train]==[64,36] and torch.cat([o for o, in dls.valid]).tolist()==list(range(100))
    assert torch.cat([o for o, in dls.train]).tolist()!=list(range(100))

def test_linear_and_loss_against_torch():
    torch.manual_seed(0)
    m = t.Linear(5, 3)
    assert m.weight.abs().max()<=5**-.5 and m.bias.requires_grad and t.Linear(5, 3, bias=False).bias is None
    z,y = torch.randn(6, 4, dtype=torch.float64)*100,torch.randint(4, (6,))
    assert torch.allclose(t.cross_entropy(z, y), torch.nn.functional.cross_entropy(z, y))
    assert t.accuracy(torch.eye(4), torch.tensor([0,1,2,0]))==.75
    assert not t.Module().eval().training and t.Module().eval().train().training

def test_division_where_the_square_of_the_divisor_overflows():
    for dtype,v in ((torch.float32, [50.,49.,48.]), (torch.float64, [400.,399.,398.]), (torch.float16, [6.,5.,4.])):
        z,w = torch.tensor(v, dtype=dtype),torch.tensor([1,0,0])
        ours,theirs = b.Var(z),z.clone().requires_grad_()
        for o in (ours, theirs):
            e = o.exp()
            ((e/e.sum())*w).sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad)
    for a in (1e30, np.full(1, 1e30, np.float32), torch.full((1,), 1e30)):
        v = b.Var([1e30])
        (a/v).sum().backward()
        assert v.grad.item()==pytest.approx(-1e-30)

def test_a_list_of_modules_grows_after_one_was_deleted():
    m = t.Sequential(t.Linear(2, 3), t.ReLU(), t.Linear(3, 4))
    delattr(m, '0')
    m.append(new := t.Linear(4, 5))
    assert [type(o).__name__ for o in m]==['ReLU','Linear','Linear'] and m[-1] is new and list(m._modules)==['1','2','3']
    m.extra = t.ReLU()                                        # a name that is no number
    assert m.append(last := t.ReLU())[-1] is last and len(m)==5

def test_counts_are_whole_numbers():
    for bad in (True, 1.5, 0, '2'):
        for f in (lambda: t.BatchSampler(range(4), bad), lambda: t.DataLoader(few, bad), lambda: t.get_dls(few, few, bad),
                  lambda: l.BatchLoader(torch.ones(4), bs=bad)):
            with pytest.raises(ValueError, match='^bs: expected a whole number, 1 or more'): f()
        if bad!=0:
            with pytest.raises(ValueError, match='^n_workers: expected a whole number, 0 or more'): t.DataLoader(few, n_workers=bad)
    assert len(t.DataLoader(few, np.int64(5), n_workers=np.int64(0)))==4

def test_one_tensor_is_no_tuple_of_tensors():
    x = torch.rand(100, 2)
    for args,name in (((x, (x,)), 'train'), (((x,), x), 'valid')):
        with pytest.raises(TypeError, match=f'^{name}: expected a tuple of tensors, got one tensor'): l.DataLoaders.from_tensors(*args)
