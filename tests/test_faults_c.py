"Convolutions, hooks and initial weights on inputs that once gave a wrong answer without a word."
import math,re,warnings
import pytest,torch
from torch import nn
from torch.nn import functional as F
from miniai.checks.core import same
from miniai.conv import cnn,conv,conv2d,conv_size,receptive_field

def seen(net, n=44):
    "Side of the square of pixels on which the middle output of `net` depends, by its gradient."
    x = torch.rand(1, 4, n, n, dtype=torch.float64, requires_grad=True)
    y = net.double().eval()(x)
    g, = torch.autograd.grad(y[..., y.shape[2]//2, y.shape[3]//2].sum(), x)
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
