"""What every net, sampler and pipeline of the package keeps, those of later lessons too: a class or sampler that is exported and not
listed here fails the first test."""
import copy,importlib,inspect,json,random
from functools import partial
from types import SimpleNamespace
import numpy as np, pytest, torch, torch.nn.functional as F
from torch import nn
from common import exports,order,root

def lesson_modules(): return sorted((m for m in order if m and not m.startswith('checks')), key=order.get)

def exported(test):
    "`module.name` of all exports that `test(name, object)` holds for."
    mods = {m: importlib.import_module(f'miniai.{m}') for m in lesson_modules()}
    return {f'{m}.{n}': getattr(mod, n) for m,mod in mods.items() for n in exports(m) if test(n, getattr(mod, n))}

nets = exported(lambda n, o: isinstance(o, type) and issubclass(o, nn.Module))
nets.pop('personalise.TextualInversion')                    # holds the nets of a pipeline without owning them: test_personalise.py
nets.pop('segmentation.ClickTraining')                    # plays a random game: test_segmentation.py
nets.pop('vit.DINO')                                        # two nets, of which one takes no gradient: test_vit.py
nets.pop('video.VideoBlock')                                # frames of several clips in one axis: test_video.py
samplers = exported(lambda n, o: inspect.isfunction(o) and n.startswith('sample_'))

# How to make a small one, and the arguments of a batch of n. `rows=False`: what comes out is no batch (losses)

def image(c=1, s=16): return lambda n, g: (torch.randn(n, c, s, s, generator=g),)
def levels(make): return lambda n, g: (*make(n, g), torch.randn(n, generator=g))
def with_more(make, more): return lambda n, g: (*make(n, g), more(n, g))
def states(l=6, d=16): return lambda n, g: torch.randn(n, l, d, generator=g)
def ids(v=30, l=6): return lambda n, g: torch.cat([torch.randint(1, v-1, (n, l-1), generator=g), torch.full((n, 1), v-1)], 1)
def clicks(n, g): return torch.randint(1, 8, (n, 3, 2), generator=g)/8,torch.randint(2, (n, 3), generator=g)
def classes(k=10): return lambda n, g: torch.randint(k, (n,), generator=g)

def mlp(*sizes): return nn.Sequential(*[o for a,b in zip(sizes, sizes[1:]) for o in (nn.Linear(a, b), nn.SiLU())][:-1])
def get(path):
    m,n = path.split('.')
    return getattr(importlib.import_module(f'miniai.{m}'), n)
def group(n): return nn.GroupNorm(4, n)

recipes = {
    'autoencoder.Autoencoder': (lambda: get('autoencoder.Autoencoder')(nn.Conv2d(1, 4, 3, 2, 1), nn.ConvTranspose2d(4, 1, 4, 2, 1)), image()),
    'init.GeneralRelu': (lambda: get('init.GeneralRelu')(.1, .2), image()),
    'init.LayerNorm': (lambda: get('init.LayerNorm')(4), image(4)),
    'init.BatchNorm': (lambda: get('init.BatchNorm')(4), image(4)),
    'resnet.ResBlock': (lambda: get('resnet.ResBlock')(4, 8, stride=2), image(4)),
    'resnet.PoolBlock': (lambda: get('resnet.PoolBlock')(4, 8, stride=2), image(4)),
    'augment.Dropout': (lambda: get('augment.Dropout')(.5), image()),
    'augment.ChannelDropout': (lambda: get('augment.ChannelDropout')(.5), image(4)),
    'ddpm.SmallUNet': (lambda: get('ddpm.SmallUNet')((8,16)), levels(image())),
    'fid.FeatureNet': (lambda: get('fid.FeatureNet')(nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.SiLU(), nn.Linear(16, 10))),
                  lambda n, g: (2*torch.rand(n, 1, 28, 28, generator=g)-1,)),
    'noise_level.LevelNet': (lambda: get('noise_level.LevelNet')(8), image()),
    'unet.EmbResBlock': (lambda: get('unet.EmbResBlock')(4, 8, 6), with_more(image(4), lambda n, g: torch.randn(n, 6, generator=g))),
    'unet.UpConv': (lambda: get('unet.UpConv')(4), with_more(image(4), lambda n, g: (32, 32))),
    'unet.UNet': (lambda: get('unet.UNet')((8,16), n_emb=16), levels(image())),
    'superres.Residual': (lambda: get('superres.Residual')(nn.Conv2d(1, 1, 3, padding=1)), image()),
    'superres.PerceptualLoss': (lambda: get('superres.PerceptualLoss')(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), ('1',)),
                                with_more(image(), lambda n, g: torch.randn(n, 1, 16, 16, generator=g))),
    'attention.MultiHeadAttention': (lambda: get('attention.MultiHeadAttention')(16, 4), lambda n, g: (states()(n, g),)),
    'attention.FeedForward': (lambda: get('attention.FeedForward')(16, gated=True), lambda n, g: (states()(n, g),)),
    'attention.TransformerBlock': (lambda: get('attention.TransformerBlock')(16, 4, 8), lambda n, g: (states()(n, g), states(3, 8)(n, g))),
    'attention.SpatialTransformer': (lambda: get('attention.SpatialTransformer')(16, 4, 8, norm=group), with_more(image(16, 8), states(3, 8))),
    'attention.DiTBlock': (lambda: get('attention.DiTBlock')(16, 4, 8), lambda n, g: (states()(n, g), torch.randn(n, 8, generator=g))),
    'attention.DiT': (lambda: get('attention.DiT')(1, 16, n_blocks=2, n_heads=2, n_emb=16), levels(image())),
    'guidance.ClassUNet': (lambda: get('guidance.ClassUNet')((8,16), n_emb=16), with_more(levels(image()), classes())),
    'vae.VAE': (lambda: get('vae.VAE')(nn.Sequential(nn.Flatten(), nn.Linear(256, 8)), nn.Sequential(nn.Linear(4, 256), nn.Unflatten(1, (1,16,16)))), image()),
    'vae.Codec': (lambda: get('vae.Codec')((8,16), nz=4), image(3)),
    'clip.TextTransformer': (lambda: get('clip.TextTransformer')(30, 8, 16, 4, 2), lambda n, g: (ids()(n, g),)),
    'clip.ImageEncoder': (lambda: get('clip.ImageEncoder')(8, (4,8,8,16)), image(3, 32)),
    'clip.CLIP': (lambda: get('clip.small_clip')(30, 8, 16, 4, 1, (4,8,8,16), 8), with_more(image(3, 32), ids())),
    'bert.BertBlock': (lambda: get('bert.BertBlock')(16, 4), lambda n, g: (states()(n, g),)),
    'bert.Bert': (lambda: get('bert.Bert')(30, 8, 16, 4, 2), lambda n, g: (ids()(n, g),)),
    'bert.MaskedBert': (lambda: get('bert.MaskedBert')(get('bert.Bert')(30, 8, 16, 4, 2)), lambda n, g: (ids()(n, g),)),
    'flow.TextDiTBlock': (lambda: get('flow.TextDiTBlock')(16, 4), lambda n, g: (states()(n, g), states()(n, g), torch.randn(n, 6, 16, generator=g))),
    'flow.TextDiT': (lambda: get('flow.TextDiT')(4, 8, 16, 2, 2, n_text=16), with_more(levels(image(4, 8)), states())),
    'judges.SameConv': (lambda: get('judges.SameConv')(3, 4, 3, 2), image(3)),
    'judges.InvertedResidual': (lambda: get('judges.InvertedResidual')(4, 4), image(4)),
    'judges.EfficientNetLite': (lambda: get('judges.EfficientNetLite')(5, ((3,1,1,8,1), (3,2,6,8,1))), image(3, 32)),
    'judges.EmojiJudge': (lambda: get('judges.EmojiJudge')((4,8,8,16), 8), image(3, 32)),
    'published.QuickFeedForward': (lambda: get('published.QuickFeedForward')(16), lambda n, g: (states()(n, g),)),
    'published.CLIPText': (lambda: get('published.CLIPText')(30, 8, 16, 4, 2), lambda n, g: (ids()(n, g),)),
    'published.PublishedBlock': (lambda: get('published.PublishedBlock')(8, 16, 6, partial(nn.GroupNorm, 4), 8, {16: 4}),
                                 with_more(image(8, 8), lambda n, g: (torch.randn(n, 6, generator=g), states(3, 8)(n, g)))),
    'published.PublishedUNet': (lambda: get('published.PublishedUNet')((16,32), (True,False), (4,4), n_text=16, groups=8), with_more(levels(image(4, 8)), states())),
    'published.DoubleConv': (lambda: get('published.DoubleConv')(4), with_more(image(4), lambda n, g: (32, 32))),
    'published.PlaceAttention': (lambda: get('published.PlaceAttention')(16, group), image(16, 8)),
    'published.HalfConv': (lambda: get('published.HalfConv')(4), image(4)),
    'published.PublishedCodec': (lambda: get('published.PublishedCodec')((8,16), groups=4), image(3)),
    'lora.LoRA': (lambda: get('lora.LoRA')(nn.Linear(8, 6), 2), lambda n, g: (torch.randn(n, 8, generator=g),)),
    'captioning.FeatureMap': (lambda: get('captioning.FeatureMap')((4,8,8,16)), image(3, 32)),
    'captioning.Captioner': (lambda: get('captioning.Captioner')(30, 8, 16, 4, 1, (4,8,8,16)), with_more(image(3, 32), ids())),
    'gan.MappingNetwork': (lambda: get('gan.MappingNetwork')(8, 6, 10), lambda n, g: (torch.randn(n, 8, generator=g), classes()(n, g))),
    'gan.ModulatedConv': (lambda: get('gan.ModulatedConv')(4, 8, 6), with_more(image(4), lambda n, g: torch.randn(n, 6, generator=g))),
    'gan.StyleBlock': (lambda: get('gan.StyleBlock')(4, 8, 6), lambda n, g: (torch.randn(n, 4, 16, 16, generator=g), torch.randn(n, 6, generator=g), torch.randn(n, 1, 16, 16, generator=g))),
    'responsible.FlatDenoiser': (lambda: get('responsible.FlatDenoiser')((1,8,8), 10, 16), lambda n, g: (torch.randn(n, 1, 8, 8, generator=g), torch.rand(n, generator=g)+.1, classes()(n, g))),
    'gan.StyleGenerator': (lambda: get('gan.StyleGenerator')(8, 6, (4,4)), lambda n, g: (torch.randn(n, 8, generator=g), classes()(n, g))),
    'gan.Discriminator': (lambda: get('gan.Discriminator')((4,8), 16), with_more(image(1, 28), classes())),
    'vit.RotaryAttention': (lambda: get('vit.RotaryAttention')(16, 2), lambda n, g: (states(10)(n, g),)),
    'vit.ViTBlock': (lambda: get('vit.ViTBlock')(16, 4, layer_scale=1.), lambda n, g: (states()(n, g),)),
    'vit.ViT': (lambda: get('vit.ViT')(16, 4, n=16, depth=2, n_heads=2, n_out=5), image(3)),
    'vit.CompactTransformer': (lambda: get('vit.CompactTransformer')(16, 4, n=16, depth=2, n_heads=2, n_out=5), image(3)),
    'vit.DINOHead': (lambda: get('vit.DINOHead')(16, 8, 12, 6), lambda n, g: (torch.randn(n, 16, generator=g),)),
    'latents.TextBlock': (lambda: get('latents.TextBlock')(8, 16, 6, group, 8, 4),
                          with_more(image(8, 8), lambda n, g: (torch.randn(n, 6, generator=g), states(3, 8)(n, g)))),
    'latents.TextUNet': (lambda: get('latents.TextUNet')((8,16), 4, 16, n_emb=16, norm=group), with_more(levels(image(4, 8)), states())),
    'latents.LatentDiffusion': (lambda: get('latents.LatentDiffusion')(get('latents.TextUNet')((8,16), 4, 16, n_emb=16, norm=group),
                                get('clip.TextTransformer')(30, 8, 16, 4, 1)), with_more(levels(image(4, 8)), ids())),
    'detection.DenseDetector': (lambda: get('detection.DenseDetector')(5, (4,8)), image(3)),
    'detection.PlacedAttention': (lambda: get('detection.PlacedAttention')(16, 4), lambda n, g: (states()(n, g), states()(n, g))),
    'detection.DETRBlock': (lambda: get('detection.DETRBlock')(16, 4, cross=True), lambda n, g: (states()(n, g), states()(n, g), states(4)(n, g), states(4)(n, g))),
    'detection.DETR': (lambda: get('detection.DETR')(5, 8, 2, 1, 2, 3, nfs=(4,8)), image(3)),
    'segmentation.ChannelNorm': (lambda: get('segmentation.ChannelNorm')(4), image(4)),
    'segmentation.FeaturePyramid': (lambda: get('segmentation.FeaturePyramid')(8, (4,8,8)), image(3, 32)),
    'segmentation.PromptEncoder': (lambda: get('segmentation.PromptEncoder')(8), clicks),
    'segmentation.NarrowAttention': (lambda: get('segmentation.NarrowAttention')(16, 4, 8), lambda n, g: (states(3)(n, g), states()(n, g), states()(n, g))),
    'segmentation.TwoWayBlock': (lambda: get('segmentation.TwoWayBlock')(16, 4, 32), lambda n, g: tuple(states(l)(n, g) for l in (3, 9, 3, 9))),
    'segmentation.MaskDecoder': (lambda: get('segmentation.MaskDecoder')(16, 4, 2, 16), lambda n, g: (*image(16, 4)(n, g), states(16)(n, g), states(3)(n, g))),
    'segmentation.PromptSegmenter': (lambda: get('segmentation.PromptSegmenter')(16, (4,8,8), n_ff=16), lambda n, g: (*image(3, 32)(n, g), *clicks(n, g))),
    'segmentation.RelativeAttention': (lambda: get('segmentation.RelativeAttention')(16, 2, 3), lambda n, g: (torch.randn(n, 3, 3, 16, generator=g),)),
    'segmentation.WindowBlock': (lambda: get('segmentation.WindowBlock')(16, 2, 32, 5, 2), lambda n, g: (torch.randn(n, 5, 5, 16, generator=g),)),
    'segmentation.SAMEncoder': (lambda: get('segmentation.SAMEncoder')(16, 4, 16, 2, 2, 32, 3, (1,), 8), image(3)),
    'latents.Reader': (lambda: get('latents.Reader')((4,8,8,16)), image(3, 32)),
    'video.ThingReader': (lambda: get('video.ThingReader')((4,8)), image(3)),
    'video.WordUNet': (lambda: get('video.WordUNet')((8,16), n_emb=16), with_more(levels(image(3)), lambda n, g: torch.rand(n, 24, generator=g))),
    'video.TemporalConv': (lambda: get('video.TemporalConv')(8), lambda n, g: (torch.randn(n, 3, 8, 4, 4, generator=g),)),
    'video.TemporalAttention': (lambda: get('video.TemporalAttention')(8), lambda n, g: (torch.randn(n, 3, 8, 4, 4, generator=g),)),
    'video.FramePlaces': (lambda: get('video.FramePlaces')(8, 6), lambda n, g: (torch.randn(n, 3, 8, 4, 4, generator=g), torch.randn(n, 3, 6, generator=g))),
    'video.VideoUNet': (lambda: get('video.VideoUNet')((8,16), n_emb=16), lambda n, g: (torch.randn(n, 3, 3, 16, 16, generator=g),
                        torch.tensor([-1.6, .1, .3]).repeat(n, 1), torch.rand(n, 24, generator=g))),
    'autoregressive.ImageGPT': (lambda: get('autoregressive.ImageGPT')(16, 9, 5, 2, 16, 2, 2),
                                with_more(lambda n, g: (ids(16, 8)(n, g),), lambda n, g: torch.randint(5, (n, 2), generator=g))),
    'autoregressive.VectorQuantizer': (lambda: get('autoregressive.VectorQuantizer')(1, 4), image(4)),   # one code: rounding changes no choice
    'autoregressive.VQCodec': (lambda: get('autoregressive.VQCodec')(1, 4, (8,16)), image(3)),
}
methods = dict(FeatureNet='features')                                # what is called, where it is not the net itself
loss_like = {'superres.PerceptualLoss'}                           # a number for the whole batch
fixed = {'fid.FeatureNet', 'superres.PerceptualLoss'}                  # take no gradients by design
refuse_none = {'fid.FeatureNet', 'superres.PerceptualLoss'}           # a FID or a loss of no images says nothing
draws_itself = {'vae.VAE', 'vae.Codec', 'published.PublishedCodec', 'gan.StyleGenerator'}                           # `forward` draws from the distribution of the latents

by_net = pytest.mark.parametrize('name', sorted(nets))

def test_every_net_and_sampler_is_listed():
    assert set(nets)==set(recipes), set(nets)^set(recipes)
    assert set(samplers)==set(steps), set(samplers)^set(steps)

def wake(net):
    "A fresh net may answer zero by design: move all parameters a little."
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters(): p.add_(.05*torch.randn(p.shape, generator=g))
    return net

def make(name):
    torch.manual_seed(0)
    return wake(recipes[name][0]())

def batch(name, n, seed=3): return recipes[name][1](n, torch.Generator().manual_seed(seed))

def tensors(x):
    "The tensors in what a net gave."
    if isinstance(x, torch.Tensor): return [x]
    if isinstance(x, dict): return [t for v in x.values() for t in tensors(v)]
    return [t for v in x for t in tensors(v)] if isinstance(x, (tuple,list)) else []

def run(net, args):
    torch.manual_seed(5)
    return tensors(getattr(net, methods.get(type(net).__name__, '__call__'))(*args))

def rows(args, i): # One row of a batch, tuples of tensors too; what is no tensor stays
    return tuple(o[i:i+1] if isinstance(o, torch.Tensor) else tuple(p[i:i+1] for p in o) if isinstance(o, tuple) and isinstance(o[0], torch.Tensor) else o for o in args)

def moved(args, dtype): # Floats in another dtype
    def one(o): return o.to(dtype) if isinstance(o, torch.Tensor) and o.is_floating_point() else tuple(map(one, o)) if isinstance(o, tuple) else o
    return tuple(map(one, args))

@by_net
def test_same_seed_same_bits(name):
    a,b = (run(make(name).eval(), batch(name, 2)) for _ in range(2))
    assert len(a)==len(b) and all(torch.equal(u, v) for u,v in zip(a, b))

@by_net
def test_a_batch_of_two_is_two_singles(name):
    if name in loss_like or name in draws_itself: pytest.skip('a number for the batch, or a draw of its own')
    net,args = make(name).eval(),batch(name, 2)
    both = run(net, args)
    for i in range(2):
        for b,s in zip(both, run(net, rows(args, i))):
            if b.ndim: torch.testing.assert_close(b[i:i+1], s, rtol=1e-4, atol=1e-5)

@by_net
def test_no_images_are_an_empty_batch(name):
    "A batch of none gives none, in the shape of all others, or is refused by name."
    def none(o): return o[:0] if isinstance(o, torch.Tensor) else tuple(map(none, o)) if isinstance(o, tuple) and isinstance(o[0], torch.Tensor) else o
    net,args = make(name).eval(),batch(name, 2)
    if name in refuse_none:
        with pytest.raises(ValueError, match='x.*: expected'): run(net, none(args))
    else: assert [o.shape for o in run(net, tuple(map(none, args)))]==[o[:0].shape if o.ndim else o.shape for o in run(net, args)]

@pytest.mark.parametrize('make', [lambda: get('ddpm.SmallUNet')((8,16), patch=2), lambda: get('unet.UNet')((8,16), n_emb=16, patch=2, norm=group)])
def test_no_images_for_a_net_of_squares(make):
    assert make()(torch.zeros(0, 1, 16, 16), torch.zeros(0)).shape==(0,1,16,16)

@by_net
def test_encoding_does_not_depend_on_neighbours(name):
    if name not in draws_itself-{'gan.StyleGenerator'}: pytest.skip('has no distribution')
    net,args = make(name).eval(),batch(name, 2)
    for i in range(2): torch.testing.assert_close(net.encode(args[0])[0][i:i+1], net.encode(args[0][i:i+1])[0], rtol=1e-4, atol=1e-5)

@by_net
def test_gradient_reaches_every_parameter(name):
    if name in fixed: pytest.skip('takes no gradients')
    net = make(name).train()
    if not list(net.parameters()): pytest.skip('has no parameters')
    sum(o.float().pow(2).sum() + o.float().sum() for o in run(net, batch(name, 4)) if o.is_floating_point()).backward()
    missing = [k for k,p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missing
    assert all(p.grad.isfinite().all() for p in net.parameters())

@by_net
def test_weights_come_back(name, tmp_path):
    from miniai.ddpm import load_weights,save_weights
    net = make(name).eval()
    if not net.state_dict(): pytest.skip('has no state')
    save_weights(net, tmp_path/'net.safetensors', why='a test')
    other = recipes[name][0]()
    _,info = load_weights(tmp_path/'net.safetensors', other)
    assert info['why']=='a test'
    half = copy.deepcopy(net).half().float()
    for (k,a),b in zip(half.state_dict().items(), other.state_dict().values()): assert torch.equal(a, b), k

@by_net
@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_moves_to_other_dtypes(name, dtype):
    net,args = make(name).eval(),batch(name, 2)
    want = run(net, args)
    got = run(copy.deepcopy(net).to(dtype), moved(args, dtype))
    for a,b in zip(want, got):
        if name in draws_itself and dtype==torch.float64: continue           # draws other numbers in another dtype
        if a.is_floating_point(): torch.testing.assert_close(a.double(), b.double(), rtol=.2 if dtype==torch.bfloat16 else 1e-3,
                                                            atol=.2*a.abs().max().item() if dtype==torch.bfloat16 else 1e-4)

@by_net
def test_moves_to_other_devices(name):
    "The meta device stands for any other: no tensor may stay behind on the CPU."
    if name in loss_like|{'fid.FeatureNet','clip.TextTransformer','clip.CLIP','latents.LatentDiffusion','guidance.ClassUNet','autoregressive.ImageGPT'}|draws_itself: pytest.skip('asks values, which meta tensors lack')
    def one(o): return o.to('meta') if isinstance(o, torch.Tensor) else tuple(map(one, o)) if isinstance(o, tuple) else o
    out = tensors(make(name).eval().to('meta')(*map(one, batch(name, 2))))
    assert all(o.device.type=='meta' for o in out)

@by_net
def test_leaves_mode_and_inputs_alone(name):
    net,args = make(name).eval(),batch(name, 2)
    before = [o.clone() for o in tensors(args)]
    state = torch.get_rng_state(),random.getstate(),np.random.get_state()[1].copy()
    with torch.no_grad(): run(net, args) if name in draws_itself else getattr(net, methods.get(type(net).__name__, '__call__'))(*args)
    assert not net.training and not any(m.training for m in net.modules())
    assert all(torch.equal(a, b) for a,b in zip(before, tensors(args)))
    if name not in draws_itself: assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate()==state[1] and (np.random.get_state()[1]==state[2]).all()

# Samplers: what more they are given

steps = {'ddpm.sample_ddpm': {}, 'ddim.sample_ddim': dict(eta=1.), 'karras.sample_euler': {}, 'karras.sample_euler_ancestral': {},
         'karras.sample_heun': {}, 'karras.sample_lms': {}, 'karras.sample_dpmpp_2m': {}}
by_sampler = pytest.mark.parametrize('name', sorted(samplers))
levels_down = torch.tensor([9., 3., 1., .3, 0.], dtype=torch.float64)

def toy(x, sigma, cond=None):
    "The exact answer for data of deviation 0.5, bent a little so that it is not linear."
    s = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, *[1]*(x.ndim-1))
    return torch.tanh(x*.25/(.25+s*s))

def draw(name, seeds, **kw):
    gens = [torch.Generator().manual_seed(s) for s in seeds]
    x = torch.cat([torch.zeros(0, 1, 4, 4)] + [torch.randn(1, 1, 4, 4, generator=g) for g in gens])*9
    f = samplers[name]
    if 'generator' in inspect.signature(f).parameters: kw['generator'] = gens
    return f(toy, x, levels_down, **steps[name], **kw)

@by_sampler
def test_sampler_gives_the_same_image_alone_and_in_company(name):
    both = draw(name, [3, 8, 1])
    assert torch.equal(both, draw(name, [3, 8, 1]))
    for i,s in enumerate([3, 8, 1]): torch.testing.assert_close(both[i:i+1], draw(name, [s]), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(both[0], both[1])

@by_sampler
def test_sampler_sees_every_step_and_leaves_its_input(name):
    seen = []
    x = torch.randn(2, 1, 4, 4)*9
    before,state = x.clone(),torch.get_rng_state()
    kw = dict(generator=torch.Generator().manual_seed(0)) if 'generator' in inspect.signature(samplers[name]).parameters else {}
    out = samplers[name](toy, x, levels_down, cb=lambda i, x, denoised: seen.append((i, x.shape, denoised.shape)), **steps[name], **kw)
    assert seen==[(i, x.shape, x.shape) for i in range(4)] and torch.equal(x, before)
    assert out.shape==x.shape and out.dtype==x.dtype and not out.requires_grad and torch.equal(torch.get_rng_state(), state)

@by_sampler
def test_sampler_of_no_images(name): assert draw(name, []).shape==(0,1,4,4)

@by_sampler
def test_sampler_refuses_numbers_that_are_not_finite(name):
    with pytest.raises((ValueError,FloatingPointError)):
        samplers[name](lambda x, s, cond=None: x*float('nan'), torch.randn(2, 1, 4, 4)*9, levels_down, **steps[name])

# Pipelines

@pytest.fixture(scope='module')
def pipe():
    from miniai.stable import StableDiffusion
    return StableDiffusion.load()

def test_pipeline_same_bits_alone_and_in_company(pipe):
    kw = dict(steps=2, amp=False, guidance=2.)
    both = pipe(['a red star','a blue ring'], seed=[4, 9], **kw)
    assert torch.equal(both, pipe(['a red star','a blue ring'], seed=[4, 9], **kw))
    for p,s,want in zip(('a red star','a blue ring'), (4, 9), both):
        assert (pipe(p, seed=s, **kw)[0].int()-want.int()).abs().max()<=1

@pytest.mark.parametrize('name', sorted(samplers))
def test_pipeline_with_every_sampler(pipe, name):
    kw = dict(steps=2, amp=False, guidance=2., sampler=samplers[name])
    both = pipe('a red star', n=2, seed=4, **kw)
    assert (pipe('a red star', seed=5, **kw)[0].int()-both[1].int()).abs().max()<=1

def test_pipeline_round_trip_and_state(pipe, tmp_path):
    from miniai.stable import StableDiffusion
    state = torch.get_rng_state()
    want = pipe('a red star', seed=1, steps=2, amp=False)
    pipe.save(tmp_path/'p')
    assert torch.equal(StableDiffusion.load(tmp_path/'p')('a red star', seed=1, steps=2, amp=False), want)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m.training for net in (pipe.text, pipe.unet, pipe.codec) for m in net.modules())

# Callbacks: a training that was stopped and goes on leaves each of them as one in one go does

def karras(): return get('karras.KarrasCB')(.5)
def pixels(*shape): return lambda: (torch.randn(24, *shape, generator=torch.Generator().manual_seed(4)),)
def numbered(*shape): return lambda: (*pixels(1, 16, 16)(), torch.arange(24*max(1, int(np.prod(shape)))).view(24, *shape)%5)
def sched(): return get('ddpm.linear_schedule')(10)
def dino(): return get('vit.DINO')(nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 3, 4)
def jumps():
    sigmas = torch.tensor([9., 1., 0.], dtype=torch.float64)
    return get('distill.JumpCB')(sigmas, get('distill.plan_jumps')(sigmas, {1: (9.,)})[0], .5)

class AnyNet(nn.Module):
    "Takes any number of arguments, and uses the first."
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, bias=False), nn.BatchNorm2d(1), nn.SiLU())
    def forward(self, x, *rest): return self.body(x.flatten(0, -4)).view_as(x)

def any_loss(preds, *targets): return (preds[0] if isinstance(preds, tuple) else preds).float().square().mean()

# name: how to make it in a folder; more where it needs it: `data`, `net`, `n_inp`; `apart`: attributes that may differ, each with its reason
callbacks = exported(lambda n, o: isinstance(o, type) and issubclass(o, get('learner.Callback')) and o is not get('learner.Callback'))
cb_recipes = {
    'accel.AccelerateCB': (lambda d: get('accel.AccelerateCB')(cpu=True), {}),
    'accel.AccumulateCB': (lambda d: get('accel.AccumulateCB')(4), {}),
    'accel.ClipCB': (lambda d: get('accel.ClipCB')(.1), {}),
    'accel.MixedPrecisionCB': (lambda d: get('accel.MixedPrecisionCB')(scaler=get('accel.LossScaler')(2.**120)), {}),
    'ddpm.DDPMCB': (lambda d: get('ddpm.DDPMCB')(sched()), {}),
    'ddpm.EMACB': (lambda d: get('ddpm.EMACB')(.9), {}),
    'distill.ConsistencyCB': (lambda d: get('distill.ConsistencyCB')(.5, 3), {}),
    'distill.JumpCB': (lambda d: jumps(), dict(data=pixels(3, 1, 16, 16))),
    'guidance.CondCB': (lambda d: get('guidance.CondCB')(karras(), 5), dict(data=numbered())),
    'latents.CaptionCB': (lambda d: get('latents.CaptionCB')(karras(), torch.zeros(3).long()), dict(data=numbered(2, 3))),
    'hooks.ActivationStatsCB': (lambda d: get('hooks.ActivationStatsCB')(nn.SiLU), dict(apart={'rows': 'it watches, and may come and go'})),
    'init.BatchTransformCB': (lambda d: get('init.BatchTransformCB')(lambda x, *y: (x*2, *y)), {}),
    'karras.KarrasCB': (lambda d: karras(), {}),
    'learner.DeviceCB': (lambda d: get('learner.DeviceCB')('cpu'), {}),
    'learner.LRFinderCB': (lambda d: get('learner.LRFinderCB')(1.01), {}),
    'learner.MetricsCB': (lambda d: get('learner.MetricsCB')(), dict(apart={'start': 'a time'})),
    'learner.NaNStopCB': (lambda d: get('learner.NaNStopCB')(), {}),
    'learner.ProgressCB': (lambda d: get('learner.ProgressCB')(), {}),
    'learner.SingleBatchCB': (lambda d: get('learner.SingleBatchCB')(), {}),
    'learner.TrainCB': (lambda d: get('learner.TrainCB')(), {}),
    'noise_level.LevelCB': (lambda d: get('noise_level.LevelCB')(sched()), {}),
    'optim.BatchSchedCB': (lambda d: get('optim.BatchSchedCB')(partial(get('optim.OneCycle'), max_lr=.1)), {}),
    'optim.EpochSchedCB': (lambda d: get('optim.EpochSchedCB')(partial(get('optim.OneCycle'), max_lr=.1)), {}),
    'optim.RecorderCB': (lambda d: get('optim.RecorderCB')(), {}),
    'personalise.PriorCB': (lambda d: get('personalise.PriorCB')(numbered(2, 3)()), dict(data=numbered(2, 3))),
    'resnet.AutocastCB': (lambda d: get('resnet.AutocastCB')(), {}),
    'schedules.FlowCB': (lambda d: get('schedules.FlowCB')(), {}),
    'serving.RunCardCB': (lambda d: get('serving.RunCardCB')(d/'card.json'), dict(apart=dict(start='a time', cpu='a time', card='looked at below'))),
    'serving.TensorBoardCB': (lambda d: get('serving.TensorBoardCB')(d/'events'), {}),
    'video.VideoCB': (lambda d: get('video.VideoCB')(.5), dict(data=pixels(2, 1, 16, 16))),
    'vit.TeacherCB': (lambda d: get('vit.TeacherCB')(), dict(data=lambda: 2*pixels(1, 16, 16)(), net=dino, n_inp=2)),
}
no_resume = {'checkpoint.CheckpointCB': 'it is what goes on', 'serving.TrackioCB': 'its run is a new one, with all rows: test_serving.py'}

def plain_value(x):
    "What a callback keeps in an attribute, as numbers and texts; None where it is a thing of its own."
    if isinstance(x, torch.Tensor): return str(x.dtype),x.tolist()
    if x is None or isinstance(x, (bool,int,float,str)): return x
    if isinstance(x, dict): return {k: plain_value(v) for k,v in x.items()}
    if isinstance(x, (list,tuple)): return [plain_value(o) for o in x]
    return plain_value(dict(x.state_dict())) if hasattr(x, 'state_dict') and not isinstance(x, type) else None

def fit_with(name, folder, stop):
    "A fit of two epochs with this callback, stopped by an error after so many training batches; `(callback, history)`."
    from miniai.checkpoint import CheckpointCB
    from miniai.learner import Callback,Learner,MetricsCB,TrainCB
    from miniai.loaders import DataLoaders
    class Stop(Callback):
        order = 900
        def after_batch(self, learn):
            self.left -= learn.training
            if not self.left: raise KeyboardInterrupt
        def state_dict(self): return {}
        def load_state_dict(self, state): pass
    make,more = cb_recipes[name]
    torch.manual_seed(0)
    data,net,stopper = more.get('data', pixels(1, 16, 16))(),more.get('net', AnyNet)(),Stop()
    cb,stopper.left = make(folder),stop
    cbs = [cb] + [CheckpointCB(folder/'checkpoints', every=1), stopper] + [MetricsCB()]*(not isinstance(cb, MetricsCB))
    if not isinstance(cb, TrainCB): cbs.insert(0, TrainCB(more.get('n_inp', 1)))
    dls = DataLoaders.from_tensors(data, tuple(o[:8] for o in data), bs=4, generator=torch.Generator().manual_seed(1))
    learn = Learner(net, dls, any_loss, .01, cbs)
    try: learn.fit(2)
    except KeyboardInterrupt: pass
    return cb,[{k: v for k,v in o.items() if k!='seconds'} for o in learn.history]

def test_every_callback_is_listed():
    assert set(callbacks)==set(cb_recipes)|set(no_resume), set(callbacks)^(set(cb_recipes)|set(no_resume))

@pytest.mark.parametrize('name', sorted(cb_recipes))
def test_a_callback_goes_on_where_it_was(name, tmp_path):
    if name=='accel.AccelerateCB': pytest.importorskip('accelerate')
    if name=='serving.TensorBoardCB': pytest.importorskip('tensorboard')
    whole,history = fit_with(name, tmp_path/'whole', 10**6)
    fit_with(name, tmp_path/'part', 2 if name=='learner.SingleBatchCB' else 9)                       # in the second epoch
    for folder in ('part', 'whole'):                                                # of the whole nothing is left to do
        cb,again = fit_with(name, tmp_path/folder, 10**6)
        assert repr(again)==repr(history)
        for k,v in vars(whole).items():
            if folder=='whole' or k in cb_recipes[name][1].get('apart', {}): continue
            assert repr(plain_value(vars(cb)[k]))==repr(plain_value(v)), f"{name}.{k} is lost: it needs a state_dict"
        if hasattr(cb, 'state_dict') and name!='serving.RunCardCB':
            assert repr(plain_value(cb.state_dict()))==repr(plain_value(whole.state_dict()))
        if name=='serving.RunCardCB':
            card = json.loads((tmp_path/folder/'card.json').read_text())
            assert len(card['curve'])==2 and card['state']=='finished' and (folder=='part' or card['began']==whole.card['began'])
            assert folder=='part' or card['seconds']>=whole.card['curve'][1]['seconds']
        if name=='serving.TensorBoardCB':
            from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
            events = EventAccumulator(str(tmp_path/folder/'events'))
            events.Reload()
            assert [o.step for o in events.Scalars('train/loss')]==[6, 12]

def test_a_checkpoint_from_before_a_callback_had_a_state(tmp_path, monkeypatch):
    with monkeypatch.context() as m:
        m.delattr(callbacks['distill.ConsistencyCB'], 'state_dict')
        fit_with('distill.ConsistencyCB', tmp_path, 9)
    with pytest.warns(UserWarning, match='of ConsistencyCB nothing was saved; it begins anew'):
        cb,history = fit_with('distill.ConsistencyCB', tmp_path, 10**6)
    assert len(history)==2 and cb.n==12-8

def test_recorders_hide_no_error_of_another_callback(tmp_path):
    "A fit that fails before it began leaves the recorders nothing to end."
    from miniai.learner import Callback,Learner,TrainCB
    dls = SimpleNamespace(valid=[torch.zeros(1, 1)])
    class Fails(Callback):
        order = -99
        def before_fit(self, learn): raise ValueError('mine')
    for name in ('serving.RunCardCB', 'serving.TensorBoardCB', 'serving.TrackioCB'):
        with pytest.raises(ValueError, match='mine'): Learner(nn.Linear(1, 1), dls, cbs=[TrainCB(), Fails(), get(name)(tmp_path/'x')]).fit(1, train=False)

# Files of an earlier day: what was written then is read for ever. `python tests/test_contract.py` writes new ones, for a new version only.

kept = root/'tests'/'kept'

class Toy(nn.Module):
    "The model of the kept checkpoint. A bias before BatchNorm has no gradient but rounding, and Adam makes whole steps of that: none here."
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    def forward(self, x): return self.body(x)

def toy_learner(folder, n_epochs=3):
    "A small training with optimizer, schedule, metrics and checkpoints."
    from miniai.checkpoint import CheckpointCB
    from miniai.learner import MetricsCB,TrainLearner
    from miniai.loaders import DataLoaders
    from miniai.optim import AdamW,BatchSchedCB,OneCycle
    g = torch.Generator().manual_seed(0)
    x = torch.randn(48, 4, generator=g)
    y = x.sum(1, keepdim=True)
    torch.manual_seed(1)
    dls = DataLoaders.from_tensors((x[:32], y[:32]), (x[32:], y[32:]), bs=8, generator=torch.Generator().manual_seed(2))
    cbs = [MetricsCB(), BatchSchedCB(partial(OneCycle, max_lr=.05)), CheckpointCB(folder)]
    return TrainLearner(Toy(), dls, F.mse_loss, .05, cbs, AdamW)

def kept_versions(): return sorted(o for o in kept.iterdir()) if kept.is_dir() else []

def test_something_is_kept(): assert kept_versions()

@pytest.mark.parametrize('folder', kept_versions(), ids=lambda f: f.name)
def test_old_weights_are_read(folder):
    from miniai.ddpm import load_weights
    net = Toy().eval()
    _,info = load_weights(folder/'toy.safetensors', net)
    torch.testing.assert_close(net(torch.ones(1, 4)).item(), info['answer'], rtol=1e-3, atol=1e-3)

@pytest.mark.parametrize('folder', kept_versions(), ids=lambda f: f.name)
def test_old_checkpoint_goes_on(folder, tmp_path):
    "A training that an earlier version stopped in the second of three epochs ends where it would have ended."
    import shutil
    shutil.copytree(folder/'checkpoints', tmp_path/'c')
    learn = toy_learner(tmp_path/'c')
    learn.fit(3)
    want = json.loads((folder/'answer.json').read_text(encoding='utf-8'))
    assert len(learn.history)==3
    torch.testing.assert_close(learn.model.eval()(torch.ones(1, 4)).item(), want['answer'], rtol=1e-4, atol=1e-5)

def keep():
    "Write the checkpoint of a training stopped in the second of three epochs, where it would have ended, and weights."
    import shutil,tempfile
    from pathlib import Path
    from miniai import __version__
    from miniai.ddpm import save_weights
    from miniai.learner import Callback,CancelFit
    class Stop(Callback):
        order = 900
        def after_epoch(self, learn):
            if learn.epoch==1 and learn.phase=='valid': raise CancelFit
    folder = kept/__version__
    if folder.exists(): raise SystemExit(f'{folder} exists; files of a version are written once')
    with tempfile.TemporaryDirectory() as d:
        whole = toy_learner(Path(d)/'whole')
        whole.fit(3)
        part = toy_learner(Path(d)/'part')
        part.fit(3, cbs=[Stop()])
        newest = sorted((Path(d)/'part').glob('epoch*'))[-1]
        shutil.copytree(newest, folder/'checkpoints'/newest.name)
    answer = whole.model.eval()(torch.ones(1, 4)).item()
    (folder/'answer.json').write_text(json.dumps(dict(answer=answer))+'\n', encoding='utf-8')
    save_weights(whole.model, folder/'toy.safetensors', answer=answer)

if __name__=='__main__': keep()
