"Convolutions, hooks and initial weights on inputs that once gave a wrong answer without a word."
import math,warnings
import pytest,torch
from torch import nn
from torch.nn import functional as F
from miniai.checks.core import same
from miniai.conv import cnn,conv,conv2d,conv_size,receptive_field

def seen(net, n=44):
    "Side of the square of pixels on which the middle output of `net` depends, by its gradient."
    x = torch.rand(1, 4, n, n, dtype=torch.float64, requires_grad=True)
    y = net.double().eval()(x)
    g, = torch.autograd.grad(y[0, 0, y.shape[2]//2, y.shape[3]//2], x)             # one channel: a softmax adds up to one
    rows = g.abs().amax((0,1,3)).nonzero().flatten()
    return (rows.max()-rows.min()+1).item()

def positive(net):
    "Weights above zero, so that nothing cancels."
    for p in net.parameters(): p.data.uniform_(.5, 1)
    return net

class Pad(nn.Sequential):
    "A Sequential that does something else."
    def forward(self, x): return x+super().forward(x).mean((2,3), keepdim=True)

class Masked(nn.Conv2d):
    def forward(self, x): return super().forward(x)+x.mean()

counted = dict(
    unshuffle=[nn.PixelUnshuffle(2), nn.Conv2d(16, 1, 3)], unshuffle_later=[nn.Conv2d(4, 4, 3), nn.PixelUnshuffle(3), nn.Conv2d(36, 2, 3)],
    strides=[nn.Conv2d(4, 2, 5, 2), nn.ReLU(), nn.Conv2d(2, 2, 3, dilation=2)], pooling=[nn.AvgPool2d(3, 2), nn.Conv2d(4, 1, 3)],
    lp=[nn.LPPool2d(2, 3), nn.Conv2d(4, 1, 2)], lp_stride=[nn.LPPool2d(2, 2, stride=1), nn.Conv2d(4, 1, 3)],
    norm=[nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(), nn.Dropout(.5), nn.Conv2d(4, 1, 3)],
    running=[nn.InstanceNorm2d(4, track_running_stats=True), nn.Conv2d(4, 1, 3)], shuffle=[nn.ChannelShuffle(2), nn.Conv2d(4, 1, 3)],
    softmax=[nn.Softmax(1), nn.Conv2d(4, 1, 3)], softmax2d=[nn.Conv2d(4, 2, 3), nn.Softmax2d()], glu=[nn.GLU(1), nn.Conv2d(2, 1, 3)],
    pad=[nn.ZeroPad2d(2), nn.Conv2d(4, 1, 5)], nested=[nn.Sequential(nn.Conv2d(4, 3, 3), nn.Identity()), nn.Conv2d(3, 1, 3, groups=1)],
    same=[nn.Conv2d(4, 1, 3, padding='same'), nn.PReLU()], spectral=[nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 1, 3))])

@pytest.mark.parametrize('name', counted)
def test_receptive_field_is_the_gradients(name):
    torch.manual_seed(0)
    net = nn.Sequential(*counted[name])
    if name not in ('softmax2d','spectral'): positive(net)
    assert receptive_field(net)==seen(net)

refused = [nn.GroupNorm(2, 4), nn.LayerNorm(3), nn.InstanceNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False), nn.RMSNorm(3),
           nn.Linear(3, 3), nn.Softmax(-1), nn.GLU(), nn.Softmax(2), nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(2), nn.Upsample(scale_factor=2),
           nn.UpsamplingNearest2d(scale_factor=2), nn.PixelShuffle(2), nn.ConvTranspose2d(4, 4, 3), nn.MaxUnpool2d(2), nn.Fold((4,4), 2),
           nn.Unfold(2), nn.FractionalMaxPool2d(2, output_size=3), nn.MultiheadAttention(4, 1), nn.TransformerEncoderLayer(4, 1),
           nn.LSTM(4, 4), nn.Bilinear(2, 2, 2), nn.ModuleList(), Pad(nn.ReLU()), Masked(4, 4, 3), nn.LocalResponseNorm(2)]

@pytest.mark.parametrize('layer', refused, ids=lambda o: type(o).__name__)
def test_receptive_field_refuses_what_mixes_places_by_name(layer):
    with pytest.raises(ValueError, match=f'got {type(layer).__name__}'): receptive_field(nn.Sequential(nn.Conv2d(4, 4, 3), layer))

def test_receptive_field_of_odd_arguments():
    assert receptive_field(nn.Conv2d(1, 1, 5))==5 and receptive_field(cnn())==65
    assert receptive_field(nn.Sequential(nn.Conv2d(1, 1, 3), nn.GroupNorm(1, 1)), alone=[nn.GroupNorm])==3
    with pytest.raises(ValueError, match='Conv1d after Flatten'): receptive_field([nn.Conv2d(4, 1, 3), nn.Flatten(2), nn.Conv1d(1, 1, 3)])
    for bad in ([(3,0,1)], [(0,1,1)], [(3,1)], [(3,1,1.5)], [3], ['abc']):
        with pytest.raises(ValueError, match=r'\(ks,stride,dilation\)'): receptive_field(bad)

def test_settings_of_convolutions():
    import numpy as np
    assert conv_size(np.int64(28), 3, 2, 1)==14 and type(conv_size(np.int64(28), 3, 2, 1)) is int
    x,w = torch.randn(2, 3, 9, 8).double(),torch.randn(4, 3, 3, 3).double()
    same(conv2d(x, w, stride=np.int64(2), padding=(np.int64(1), 0)), F.conv2d(x, w, stride=2, padding=(1,0)), eps=1e-12)
    for ks in (0, 2, 4, 2.5, -1):
        with pytest.raises(ValueError, match='ks: expected an odd number'): conv(1, 2, ks)

def rms(x): return x.detach().square().mean().sqrt().item()

@pytest.mark.parametrize('dim,ks,stride,groups', [(1,4,2,1), (1,5,3,2), (2,4,2,1), (2,3,2,4), (2,2,2,1), (2,3,1,1), (3,2,2,1)])
@pytest.mark.parametrize('leak', [0., .2])
def test_transposed_convolutions_keep_the_size(dim, ks, stride, groups, leak):
    from miniai.init import init_weights
    torch.manual_seed(0)
    m = getattr(nn, f'ConvTranspose{dim}d')(64, 64, ks, stride, groups=groups).apply(lambda m: init_weights(m, leak))
    y = m(torch.randn(32 if dim<3 else 8, 64, *[{1: 60, 2: 14, 3: 8}[dim]]*dim))
    inside = y[(..., *[slice(2*ks, y.shape[-1]-2*ks-(y.shape[-1]-4*ks)%stride)]*dim)]          # whole periods of the stride
    same(rms(F.leaky_relu(inside, leak)), 1., eps=.08)
    assert not m.bias.any()

def test_lsuv_reaches_every_layer_or_says_so():
    from miniai.init import GeneralRelu,lsuv
    torch.manual_seed(0)
    net = nn.Sequential(nn.ConvTranspose2d(3, 8, 4, 2), GeneralRelu(.1, .4), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 2, 3)).double()
    x = 2+3*torch.randn(16, 3, 6, 6).double()
    rows = lsuv(net, x)
    assert [r['layer'] for r in rows]==['0','2','4'] and all(abs(r['std']-1)<=.01 and abs(r['mean'])<=.01 for r in rows)
    same([net[0](x).mean().item(), net[0](x).std(correction=0).item()], [rows[0]['mean'], rows[0]['std']], eps=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        lsuv(net, x)                                                              # all were seen: no word
    net.spare = nn.Linear(3, 3)
    before = net.spare.weight.clone()
    net.forward = lambda x: net[0](x)
    with pytest.warns(UserWarning, match=r"left \['2', '4', 'spare'\] as they were"): lsuv(net, x)
    assert net.spare.weight.equal(before)

def test_norms_with_another_eps_and_settings_out_of_range():
    from miniai.init import BatchNorm,LayerNorm,Normalize,init_weights,lsuv
    x = .1*torch.randn(8, 6, 5, 4).double()
    for ours,ref in ((LayerNorm(6, .1), nn.GroupNorm(1, 6, eps=.1)), (BatchNorm(6, eps=.1), nn.BatchNorm2d(6, eps=.1))):
        ours,ref = ours.double(),ref.double()
        same(ours(x).detach(), ref(x).detach(), eps=1e-10)
        same(ours.eval()(x+1).detach(), ref.eval()(x+1).detach(), eps=1e-10)
    for make,name in ((lambda v: BatchNorm(3, mom=v), 'mom'), (lambda v: BatchNorm(3, eps=v), 'eps'), (lambda v: LayerNorm(3, v), 'eps'),
                      (lambda v: BatchNorm(v), 'nf'), (lambda v: LayerNorm(v), 'nf')):
        for bad in (-1, math.nan, math.inf):
            with pytest.raises(ValueError, match=f'{name}: expected'): make(bad)
    for args,name in (((math.nan, 1.), 'mean'), ((-math.inf, 1.), 'mean'), ((0., math.inf), 'std'), ((0., math.nan), 'std'), ((0., -1.), 'std'),
                      (([], 1.), 'mean'), ((0., [[1.]]), 'std'), (([0., math.nan], 1.), 'mean')):
        with pytest.raises(ValueError, match=f'{name}: expected'): Normalize(*args)
    with pytest.raises(ValueError, match='leak'): init_weights(nn.Linear(2, 2), math.inf)
    for kw in (dict(tol=0.), dict(tol=math.nan), dict(max_iter=0), dict(max_iter=2.5)):
        with pytest.raises(ValueError, match='tol, max_iter: expected'): lsuv(nn.Linear(2, 2), torch.randn(4, 2), **kw)

def test_batches_are_transformed_where_asked():
    from miniai.init import BatchTransformCB
    from miniai.learner import DeviceCB
    assert DeviceCB.order<BatchTransformCB.order<0

def test_transposed_convolution_is_torchs_or_an_error():
    import random
    from miniai.autoencoder import Autoencoder,autoencoder,conv_transpose2d
    rnd = random.Random(0)
    for _ in range(200):
        ks,(s,p,o) = (rnd.randint(1,4),rnd.randint(1,4)),(rnd.randint(1,3),rnd.randint(0,3),rnd.randint(0,2))
        x,w = torch.randn(rnd.randint(1,2), 2, rnd.randint(1,5), rnd.randint(1,5)).double(),torch.randn(2, 3, *ks).double()
        try: want = F.conv_transpose2d(x, w, None, s, p, o)
        except RuntimeError: want = None
        if want is not None: same(conv_transpose2d(x, w, None, s, p, o), want, eps=1e-12)
        else:
            with pytest.raises(ValueError, match='padding'): conv_transpose2d(x, w, None, s, p, o)
    for kw in (dict(stride=0), dict(stride=1.5), dict(padding=-1), dict(output_padding=-1), dict(stride=(2,1))):
        with pytest.raises(ValueError, match=f'{[*kw][0]}: expected'): conv_transpose2d(x, w, **kw)
    for bad in (0, -2, 1.5):
        with pytest.raises(ValueError, match='factor'): Autoencoder(nn.Identity(), nn.Identity(), bad)
    acts = [type(m) for m in autoencoder(act=nn.Tanh).modules() if type(m).__module__.endswith('activation')]
    assert acts==[nn.Tanh]*6+[nn.Sigmoid]

def test_activations_count_the_training_pass_alone():
    from miniai.hooks import ActivationStatsCB
    from miniai.learner import Callback,Learner,TrainCB
    from miniai.loaders import DataLoaders
    class Again(Callback):
        "Runs the model once more after the prediction, as a metric or an augmentation may."
        def after_loss(self, learn): learn.model(learn.batch[0])
    x,y = torch.rand(16, 1, 28, 28),torch.randint(10, (16,))
    stats = ActivationStatsCB()
    learn = Learner(cnn(), DataLoaders.from_tensors((x, y), (x, y), bs=4), F.cross_entropy, .1, [TrainCB(), stats, Again()])
    learn.log = lambda *args: None
    learn.fit(2)
    assert {k: len(v) for k,v in stats.rows.items()}=={f'{i}.1 ReLU': 8 for i in range(4)}
    for kw,name in ((dict(bins=0), 'bins'), (dict(bins=2.5), 'bins'), (dict(lims=(1,1)), 'lims'), (dict(lims=(0,math.inf)), 'lims'),
                    (dict(lims=(math.nan,1)), 'lims')):
        with pytest.raises(ValueError, match=f'{name}: expected'): ActivationStatsCB(**kw)

def test_checkers_refuse_what_they_once_passed():
    from miniai.checks.hooks import check as hooks
    from miniai.checks.init import check as init
    from miniai.checks.conv import check as convs
    def group_norm(x, groups, eps=1e-5):
        h = x.reshape(len(x), groups, -1)
        return ((h-h.mean(-1, keepdim=True))/(h.std(-1, correction=0, keepdim=True)+eps)).reshape(x.shape)
    def separable(ni, nf, ks=3, stride=1):
        return nn.Sequential(nn.Conv2d(ni, ni, ks, padding=ks//2, groups=ni, bias=False), nn.Conv2d(ni, nf, 1, stride))
    def silence(model, m, unit, xb):
        model.eval()
        def zero(m, i, o):
            o = o.clone()
            o[:,unit] = 0
            return o
        with m.register_forward_hook(zero): return model(xb)
    def capture(model, m, xb):
        kept = []
        with m.register_forward_hook(lambda m, i, o: kept.append(o.detach())): model.eval()(xb)
        return kept[0]
    def always_dead(outs): return (torch.cat(outs)<=0).transpose(0, 1).flatten(1).all(1).float().mean()
    for check,f in ((init, group_norm), (convs, separable), (hooks, silence), (hooks, capture), (hooks, always_dead)):
        passed,text = check.report(f)
        assert not passed and 'raised' not in text, text

@pytest.mark.parametrize('name', ('stride','padding','dilation'))
@pytest.mark.parametrize('bad', ((1,2,3), (1,), (1.5,1), (1,-1), 'ab', (1,None)))
def test_pairs_of_conv2d_are_two_whole_numbers(name, bad):
    with pytest.raises(ValueError, match=f'^{name}: expected'): conv2d(torch.rand(1, 1, 8, 8), torch.rand(1, 1, 3, 3), **{name: bad})

def test_checkers_pass_right_answers_of_another_type():
    from miniai.checks.autoencoder import check as codec
    from miniai.checks.backprop import check as backprop
    from miniai.checks.clustering import check as groups
    from miniai.checks.conv import check as convs
    from miniai.checks.core import difference
    from miniai.checks.resnet import check as res
    def n_paths(n, k): return float(math.comb(n, k))
    def layer_cost(ni, nf, ks, stride, groups, size):
        h = math.ceil(size/stride)
        return nf*ni/groups*ks*ks+nf, h*h*nf*ni/groups*ks*ks
    def flat_step(): return torch.tensor([.5,.5,5.])
    def predicted_grads(): return torch.tensor([3.,5.,7.]),torch.tensor([6.,10.,14.])
    def overlaps(n, ks, stride): return F.conv_transpose1d(torch.ones(1, 1, n), torch.ones(1, 1, ks), stride=stride)[0,0]
    for check,f in ((res, n_paths), (convs, layer_cost), (groups, flat_step), (backprop, predicted_grads), (codec, overlaps)):
        passed,text = check.report(f)
        assert passed, text
    for got,want in ((225.5, 225), (True, 1), (1., True), (torch.tensor([True]), [1]), (torch.ones(2, 1), [1,1]), (torch.ones(2), [1]), ('1', 1)):
        assert difference(got, want), (got, want)

def test_weights_that_are_computed_cannot_be_drawn():
    from miniai.init import init_weights
    for f in (nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm):
        with pytest.raises(ValueError, match='m: expected a weight to draw'): nn.Sequential(f(nn.Linear(3, 3))).apply(init_weights)
    m = nn.Linear(3, 3)
    before = m.weight.detach().clone()
    init_weights(m)
    assert not torch.equal(before, m.weight)

def test_tables_show_what_is_true():
    from miniai.resnet import Table
    assert repr(Table([dict(a=True, b=1), dict(a=False, b=1000)])).split()==['a','b','True','1','False','1,000']

# Operations

def operations(net, *xb, **kw):
    "What PyTorch counts in linear layers, and what in products of two activations; without its fast path, of which it counts nothing."
    from torch.utils.flop_counter import FlopCounterMode
    with FlopCounterMode(display=False) as c: net(*xb, **kw)
    ops = {str(k): v for k,v in c.get_flop_counts()['Global'].items()}
    products = sum(v for k,v in ops.items() if 'bmm' in k or 'attention' in k)
    return sum(ops.values())-products,products

@pytest.mark.parametrize('kw', [{}, dict(batch_first=True), dict(bias=False), dict(kdim=12, vdim=20), dict(add_bias_kv=True, add_zero_attn=True)])
def test_operations_of_attention_as_pytorch_has_it(kw):
    from miniai.resnet import flops
    net = nn.MultiheadAttention(16, 2, **kw)
    n,s = (3, 7) if 'batch_first' in kw else (7, 3)
    q,k,v = torch.randn(3 if n==3 else 5, 5 if n==3 else 3, 16),torch.randn(n, s, kw.get('kdim', 16)),torch.randn(n, s, kw.get('vdim', 16))
    linear,products = operations(net, q, k, v)
    assert flops(net, q, k, v)==linear>0<products
    if not kw: assert flops(net, q[:,0], k[:,0], v[:,0])==linear/3                     # without an axis for the batch
    if 'kdim' not in kw: assert flops(net, q, q, q)==operations(net, q, q, q)[0]          # evaluation takes a fast path of one call
    outer = nn.ModuleList([nn.MultiheadAttention(16, 2, **kw)])
    outer.forward = lambda a, b, c: outer[0](a, key=b, value=c)
    with pytest.warns(UserWarning, match='left out an nn.MultiheadAttention that is called by keywords'): assert flops(outer, q, k, v)==0

def test_operations_of_layers_made_of_attention():
    from miniai.resnet import flops,summary
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    x = torch.randn(3, 5, 16)
    for net,xb in ((layer, (x,)), (nn.TransformerEncoder(layer, 2), (x,)), (nn.TransformerDecoderLayer(16, 2, 32, batch_first=True), (x, x[:,:2]))):
        assert flops(net, *xb)==operations(net, *xb)[0]>0
        assert summary(net, *xb, depth=None)[-1]['MFLOPs']*1e6==pytest.approx(flops(net, *xb))
