"Right values of faults once found in unet, superres, attention and guidance, and of their like."
import math
from functools import partial
from types import SimpleNamespace
import numpy as np,pytest,torch
import torch.nn.functional as F
from torch import nn
from miniai.attention import MultiHeadAttention,SpatialTransformer,TransformerBlock
from miniai.attention import attention,attention_weights,sinusoidal_positions
from miniai.checks.core import same
from miniai.ddpm import DDPMCB,SmallUNet,generate,linear_schedule,sample_ddpm
from miniai.guidance import AutoGuidedDenoiser,ClassUNet,CondCB,GuidedDenoiser,generate_guided
from miniai.karras import karras_sigmas,sample_euler,sample_euler_ancestral
from miniai.superres import Degrade,PerceptualLoss,Residual,psnr,sharpness
from miniai.unet import EmbResBlock,UNet,UpConv,_scale_shift,timestep_embedding

def fails(text): return pytest.raises((ValueError,TypeError), match=text)

# attention
@pytest.mark.parametrize('size', [1., 40., 300.])
def test_attention_in_float16_is_that_of_float32(size):
    torch.manual_seed(1)
    q,k,v = (size*torch.randn(2, 5, 128)).half(),(size*torch.randn(2, 6, 128)).half(),torch.randn(2, 6, 3).half()
    same(attention(q, k, v), attention(q.float(), k.float(), v.float()).half(), eps=4e-3, dtype=True)
    same(attention(q, k, v), F.scaled_dot_product_attention(q, k, v), eps=4e-3, dtype=True)
    assert attention_weights(q, k, causal=True).isfinite().all()

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_maps_in_half_precision_are_finite_and_agree_with_forward(dtype):
    torch.manual_seed(1)
    m,x = MultiHeadAttention(256, 2).requires_grad_(False),20*torch.randn(2, 5, 256)
    for p in m.parameters(): nn.init.normal_(p)
    q,k,v = (o.to(dtype) for o in m._heads(x, None))
    m.to(dtype)
    w = attention_weights(q, k)
    assert w.isfinite().all() and w.dtype==dtype
    same(w.float().sum(-1), torch.ones(2, 2, 5), eps=.02)
    assert m.maps(x.to(dtype)).isfinite().all()

def test_masks_must_fit():
    m,x,words = MultiHeadAttention(8, 2, 6),torch.randn(2, 5, 8),torch.randn(2, 4, 6)
    for shape in ((3,1,1,4), (2,3,5,4), (1,2,2,5,4), (2,1,5,5)):
        for f in (m, m.maps):
            with fails(r'mask: expected a shape that fits \(2, 2, 5, 4\), got'): f(x, words, torch.ones(shape).bool())
    for shape in ((4,), (5,4), (2,1,1,4), (1,2,5,4), ()):
        assert m(x, words, torch.ones(shape).bool()).shape==x.shape
    for bad in ([[True]*4], np.ones((5,4), bool), torch.ones(5, 4)):
        with fails('mask: expected a bool tensor'): m(x, words, bad)
    with fails('cond: expected 2 rows, as in x, got 3'): m(x, torch.randn(3, 4, 6))
    with fails(r'x: expected the shape \(n,l,8\), got \(2, 5, 7\)'): m(x[...,:7], words)
    with fails('n_heads: expected a divisor'): MultiHeadAttention(8, 0)
    with fails('length: expected a whole number'): sinusoidal_positions(2.5, 4)
    with fails('length: expected a whole number'): sinusoidal_positions(-1, 4)

def test_a_batch_of_two_is_two_singles_in_every_block():
    torch.manual_seed(1)
    x,words,maps = torch.randn(2, 5, 8),torch.randn(2, 4, 6),torch.randn(2, 8, 3, 3)
    block,spatial = TransformerBlock(8, 2, 6),SpatialTransformer(8, 2, 6, partial(nn.GroupNorm, 2))
    nn.init.normal_(spatial.back.weight)
    for f,a in ((block, x), (spatial, maps)):
        same(torch.cat([f(a[i:i+1], words[i:i+1]) for i in range(2)]), f(a, words), eps=1e-5)

# unet
def test_scale_shift_keeps_the_eps_and_the_hooks_of_its_norm():
    h,(a,b) = torch.randn(3, 8, 4, 4),torch.randn(2, 3, 8)
    norm = nn.GroupNorm(2, 8, eps=.5)
    want = norm(h)*(1+a[...,None,None]) + b[...,None,None]
    same(_scale_shift(norm, h, a, b), want, eps=1e-5)
    class Twice(nn.GroupNorm):
        def forward(self, x): return 2*super().forward(x)
    norm = Twice(2, 8)
    same(_scale_shift(norm, h, a, b), norm(h)*(1+a[...,None,None]) + b[...,None,None], eps=1e-5)

def test_unet_names_what_does_not_fit():
    block,x = EmbResBlock(8, 8, 10),torch.randn(2, 8, 5, 5)
    with fails(r'emb: expected the shape \(2, 10\), got \(1, 10\)'): block(x, torch.randn(1, 10))
    with fails('size: expected twice'): UpConv(4)(torch.randn(1, 4, 3, 3), (7, 6))
    with fails('size: expected twice'): UpConv(4)(torch.randn(1, 4, 3, 3), (6,))
    with fails('c: expected one noise level per image, '): UNet((8,))(torch.randn(2, 1, 5, 5), None)
    with fails('x: expected floats of the shape'): UNet((8,))(torch.zeros(2, 1, 5, 5).byte(), torch.zeros(2))
    with fails('c: expected a tensor'): timestep_embedding(None, 8)
    with fails('0 < min_freq'): timestep_embedding(torch.zeros(2), 8, max_freq=math.inf)
    with fails('nfs: expected'): UNet((8, 0))
    torch.manual_seed(1)
    net = UNet((8,16), norm=partial(nn.GroupNorm, 4)).eval()
    for p in net.parameters(): nn.init.normal_(p, std=.1)
    x,c = torch.randn(2, 1, 9, 6),torch.tensor([-1., .5])
    with torch.no_grad():
        same(torch.cat([net(x[i:i+1], c[i:i+1]) for i in range(2)]), net(x, c), eps=1e-5)
        assert (net(x, c)-net(x, c.flip(0))).abs().amax((1,2,3)).min()>1e-4

# superres
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_psnr_widens_before_it_subtracts(dtype):
    x = torch.full((1, 1, 2, 2), 2**-13, dtype=dtype)          # its square is zero in float16
    same(psnr(x, 0*x), 20*math.log10(2**14), eps=1e-3)

def test_psnr_of_bytes_and_of_what_has_none():
    a,b = torch.tensor([250, 3]).byte().view(1, 1, 1, 2),torch.tensor([3, 250]).byte().view(1, 1, 1, 2)
    same(psnr(a, b, peak=255), 20*math.log10(255/247), eps=1e-4)
    same(psnr(a, b, peak=np.float32(255)), psnr(b, a, peak=255), eps=0)
    for peak in (0, -2, math.nan, math.inf):
        with fails('peak: expected'): psnr(a.float(), b.float(), peak)
    for k in (1, 2, 1.):
        with fails('peak: expected 255'): psnr(a, b, k)
    for f in (psnr, sharpness):
        for name,args in (('x', (a/math.nan, b.float())), ('target', (a.float(), b/math.inf*math.inf))):
            with fails(f'{name}: expected finite numbers'): f(*args)
        with fails('not empty'): f(a[:0].float(), a[:0].float())

def test_sharpness_needs_detail_to_compare_with():
    torch.manual_seed(1)
    for target in (torch.full((2, 3, 16, 16), .3), torch.rand(2, 3, 1, 1), torch.rand(1, 1, 2, 2), torch.zeros(1, 1, 16, 16),
                   torch.full((2, 1, 16, 16), 1e6), torch.full((1, 1, 16, 16), 7).byte()):
        with fails('target: expected detail above'): sharpness(target, target)
    faint = .5+1e-4*torch.randn(1, 1, 16, 16)
    same(sharpness(faint, faint), 1., eps=1e-6)
    same(sharpness(.5+(faint-.5)/2, faint), .25, eps=1e-3)

def test_degrade_and_residual_name_what_does_not_fit():
    x = torch.rand(2, 3, 8, 8)*2-1
    with fails('noise: expected'): Degrade(noise=math.nan)
    with fails('factor: expected'): Degrade(factor=True)
    with fails('factor: expected'): Degrade(factor=2.)
    with fails('mode: expected'): Degrade(mode='linear')
    with fails('bytes, got torch.int64'): Degrade()(x.long())
    assert Degrade(factor=np.int64(2), noise=np.float32(.1))(x)[0].shape==x.shape
    assert [o.dtype for o in Degrade()(x.double())]==[torch.float64]*2
    with fails('net: expected'): Residual(nn.Conv2d(3, 1, 3, padding=1))(x)

def test_perceptual_loss_sees_what_a_layer_gave_out():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3))
    a,b = torch.randn(2, 2, 3, 8, 8)
    loss = PerceptualLoss(net, '0')
    same(loss.features(a)[0], net[0](a), eps=1e-6)
    assert net[1].inplace and net[0].weight.requires_grad
    b.requires_grad_()
    a.requires_grad_()
    loss.distances(a, b).sum().backward()
    assert b.grad is None and a.grad.abs().max()>0              # no gradient to the target
    same(PerceptualLoss(net, ['0','2'], np.float32(.5)).weights, torch.tensor([.5, .5]), eps=0)
    with fails('weights: expected finite'): PerceptualLoss(net, '0', math.nan)
    for p in net.parameters(): nn.init.zeros_(p)
    assert PerceptualLoss(net, '2')(a, b).isfinite()             # features without length

# guidance
@pytest.mark.parametrize('sampler', [sample_ddpm, sample_euler, sample_euler_ancestral])
def test_a_guided_picture_does_not_depend_on_its_neighbours(sampler):
    torch.manual_seed(1)
    net = ClassUNet((4,8), n_classes=3, norm=partial(nn.GroupNorm, 2)).eval()
    for p in net.parameters(): nn.init.normal_(p, std=.4)
    def denoise(x, sigma, cond): return net(x/(1+sigma**2)**.5, torch.zeros(len(x)), cond)
    cond,none,kw = torch.tensor([0, 1, 2, 0, 1]),torch.tensor([3]),dict(shape=(1,8,8))
    made = partial(generate_guided, denoise, uncond=none, scale=2., sigmas=karras_sigmas(4), sampler=sampler, **kw)
    whole = made(cond=cond, seed=5)
    assert (whole[0]-whole[3]).abs().max()>1e-3                  # one class, two noises
    for bs in (1, 2, 3): same(made(cond=cond, seed=5, bs=bs), whole, eps=1e-5)
    same(made(cond=cond[2:3], seed=7), whole[2:3], eps=1e-5)
    same(made(cond=cond.flip(0), seed=[9, 8, 7, 6, 5]).flip(0), whole, eps=1e-5)
    one = generate(lambda x, s: denoise(x, s, cond), karras_sigmas(4), 5, sampler, seed=5, **kw)
    same(made(cond=cond, seed=5, scale=1), one, eps=1e-5)

def test_class_numbers_are_never_counted_from_the_end():
    net,x,c = ClassUNet((4,8), n_classes=3),torch.randn(2, 1, 8, 8),torch.zeros(2)
    for bad in ([-1, 0], [0, 4], [-4, -4]):
        with fails('cond: expected classes from 0 to 3'): net(x, c, torch.tensor(bad))
    for bad in (torch.zeros(2), torch.zeros(2, dtype=torch.int32), torch.zeros(2, 1).long(), [0, 1], 1):
        with fails(r'cond: expected one class per image, \(2,\) int64'): net(x, c, bad)
    for bad in (0, -1, 2.5, True, None):
        with fails('n_classes: expected a whole number'): ClassUNet(n_classes=bad)

def test_guide_takes_numbers_and_names_the_rest():
    def denoise(x, sigma, cond): return x*cond.view(-1, 1, 1, 1).float() + torch.as_tensor(sigma).float().reshape(-1, 1, 1, 1)
    a,b,x = torch.tensor([1, 2]),torch.tensor([5]),torch.ones(2, 1, 1, 1)
    want = (5+3*(a-5)).float().view(2, 1, 1, 1)+.5
    for scale in (3, 3., np.float32(3), np.float64(3), np.int64(3), torch.tensor(3)):
        for sigma in (.5, torch.tensor(.5), torch.tensor([.5]), torch.tensor([.5, .5])):
            same(GuidedDenoiser(denoise, a, b, scale)(x, sigma), want, eps=1e-5)
    for scale in (None, '3', True, -1e-9, math.nan, math.inf, [3], torch.ones(2)):
        with fails('scale: expected a number, 0 or more, got'): GuidedDenoiser(denoise, a, b, scale)
    for bad in (None, 3, [1, 2], torch.tensor(1), a[:0]):
        with fails('cond: expected a tensor with one row per image'): GuidedDenoiser(denoise, bad, b, 2)
        with fails('uncond: expected a tensor with one row per image'): GuidedDenoiser(denoise, a, bad, 2)
    with fails('cond: expected finite numbers'): GuidedDenoiser(denoise, torch.full((2,), math.nan), torch.zeros(1), 2)
    for bad in (0, -1, 2.5, None):
        with fails('bs: expected a whole number'): generate_guided(denoise, a, b, 2, karras_sigmas(2), bs=bad, shape=(1,1,1))
    with pytest.raises(FloatingPointError):
        generate_guided(denoise, a, b, 1e38, karras_sigmas(3), shape=(1,1,1))

def test_the_dropped_condition_is_what_was_asked_for():
    def told(empty, cond, p=1.):
        learn = SimpleNamespace(batch=(torch.randn(4, 1, 2, 2), cond), training=True)
        CondCB(DDPMCB(linear_schedule()), empty, p).before_batch(learn)
        return learn.batch[2]
    y = torch.arange(4)
    for empty in (10, np.int64(10), torch.tensor(10), 10.): assert told(empty, y).tolist()==[10]*4
    assert told(10, y, np.float32(0)).tolist()==y.tolist()
    for empty in (9.5, torch.tensor(9.5)):
        with fails('empty: expected a number of type torch.int64'): told(empty, y)
    with fails('empty: expected a number of type torch.uint8'): told(300, y.byte())
    for empty in (None, 'none', [10]):
        with fails('empty: expected a number or a tensor'): told(empty, y)
    with fails('empty: expected finite'): told(math.nan, torch.randn(4, 3))
    with fails('batch: expected conditions for 4 images, got 3'): told(10, y[:3])
    for p in (None, '.1', -.1, 1.1, math.nan, True):
        with fails('p: expected a number, from 0 to 1'): told(10, y, p)

@pytest.mark.parametrize('make', [lambda: UNet((4,8), n_emb=16, patch=2), lambda: SmallUNet((4,8), patch=2), lambda: ClassUNet((4,8), n_emb=16, patch=2)])
def test_a_patch_must_divide_the_image(make):
    net = make()
    with fails('x: expected height and width divisible by 2'): net(torch.randn(2, 1, 7, 8), torch.zeros(2))
    assert net(torch.randn(2, 1, 6, 10), torch.zeros(2)).shape==(2,1,6,10)


def test_autoguidance():
    asked = []
    def net(v): return lambda x, sigma, cond=0.: asked.append(v) or x*0 + v*torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, 1, 1, 1) + cond
    x = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    for sigma in (2., torch.tensor(2.), torch.tensor([1., 2., 3.])):
        s = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, 1, 1, 1)
        for scale,nets in ((0, [1]), (1., [2]), (.5, [1,2]), (2.5, [1,2])):
            asked.clear()
            got = AutoGuidedDenoiser(net(2), net(1), scale)(x, sigma)
            assert sorted(asked)==nets and got.dtype==x.dtype and torch.allclose(got, ((1+scale)*s).expand_as(x))
            assert torch.allclose(AutoGuidedDenoiser(net(2), net(1), scale)(x, sigma, 5.), got+5)
    for scale in (-1, math.nan, math.inf, None, '2', True):
        with fails('scale: expected'): AutoGuidedDenoiser(net(2), net(1), scale)

@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('p', [0., .5, 1.])
def test_a_teacher_is_asked_under_the_condition_that_the_student_gets(training, p):
    from miniai.distill import ConsistencyCB
    asked = []
    class Net(nn.Module):
        def forward(self, x, c, cond=None):
            asked.append(cond)
            return x*0
    y = torch.arange(40)%10
    learn = SimpleNamespace(model=Net(), batch=(torch.randn(40, 1, 4, 4), y), training=training)
    task = ConsistencyCB(.5, 3)
    CondCB(task, 10, p).before_batch(learn)
    x,c,cond,target = learn.batch
    assert len(asked)==1 and asked[0].equal(cond) and task.cond is None
    assert cond.equal(y) if not training or p==0 else (cond==10).sum()==40 if p==1 else 0<(cond==10).sum()<40
    learn.batch = torch.randn(4, 1, 4, 4)                                # and without one there is none
    task.before_batch(learn)
    assert asked[1] is None and len(learn.batch)==3

@pytest.mark.parametrize('n_emb', [20, 8, 0, -16, 16.5])
def test_embeddings_of_another_length(n_emb):
    from miniai.attention import DiT
    with fails('n_emb: expected a multiple of 8 from 16 on'): DiT(n=16, n_blocks=1, n_emb=n_emb)
