"""Faults of ddpm, ddim, schedules, karras and fid that were found once: each test holds the right value."""
import copy,json,math,os,re,time
from functools import partial
from unittest import mock
import numpy as np, pytest, torch
from torch import nn
from miniai.ddim import invert_ddim,leading_times,sample_ddim,slerp,trailing_times
from miniai.ddpm import (DDPMCB,EMACB,EpsDenoiser,replace_file,c_noise,generate,linear_schedule,load_denoiser,load_weights,noisify,
                         randn_for,sample_ddpm,save_weights)
from miniai.karras import (KarrasCB,KarrasDenoiser,karras_sigmas,precondition,sample_dpmpp_2m,sample_euler,sample_euler_ancestral,sample_heun,
                           sample_lms)
from miniai.schedules import ContinuousSchedule,VDenoiser,cosine_abar,cosine_schedule,predictions,scaled_linear_schedule,v_target

def shrink(x, sigma, cond=None): return torch.tanh(x/(1+sigma*sigma))

sigmas = linear_schedule().sigmas(6)
draws = {'ddpm': sample_ddpm, 'ddim eta .3': partial(sample_ddim, eta=.3), 'ddim eta 1': partial(sample_ddim, eta=1.),
         'ancestral': sample_euler_ancestral, 'keywords only': lambda d, x, s, **kw: sample_ddpm(d, x, s, **kw)}
quiet = {'ddim': sample_ddim, 'euler': sample_euler, 'heun': sample_heun, 'lms': sample_lms, '2m': sample_dpmpp_2m}
by_sampler = pytest.mark.parametrize('name', [*draws, *quiet])
def sampler(name): return (draws | quiet)[name]
def make(n, name, **kw): return generate(shrink, sigmas, n, sampler(name), shape=(2,3,4), **kw)

# Noise

@by_sampler
@pytest.mark.parametrize('bs', [1, 2, 7])
def test_an_image_depends_on_its_seed_alone(name, bs):
    whole = make(7, name, seed=3)
    torch.testing.assert_close(make(7, name, seed=3, bs=bs), whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(make(3, name, seed=[9, 3, 5], bs=bs), whole[[6, 0, 2]], rtol=0, atol=1e-6)
    torch.testing.assert_close(make(1, name, seed=7), whole[4:5], rtol=0, atol=1e-6)
    state = torch.get_rng_state()
    make(2, name)
    assert torch.equal(torch.get_rng_state(), state)            # nobody else's numbers are drawn

@pytest.mark.parametrize('name', draws)
def test_fresh_noise_is_not_the_first_noise_again(name):
    seen = []
    def zero(x, sigma): return torch.zeros_like(x)
    start = []
    def note(denoise, x, s, generator=None):
        start.append(x/float(s[0]))
        return sampler(name)(denoise, x, s, cb=lambda i, x, d: seen.append(x), generator=generator)
    generate(zero, torch.tensor([2., 1., 0.]).double(), 50, note, shape=(1,16,16))
    x,first = seen[0],start[0]
    keep = (x*first).mean()/first.square().mean()
    fresh = x-keep*first                                        # what the step added
    assert fresh.std()>.2 if name!='ddim eta .3' else fresh.std()>.1
    expected = dict(ddpm=.5, ancestral=.5).get(name)            # 2*(1/2)**2 of the old noise stays
    if expected: assert abs(keep-expected)<.05
    for shift in (0, 1): assert abs((fresh.roll(shift, 0)*first).mean())<5*fresh.std()/len(first.flatten())**.5

def test_noise_is_the_same_for_all_dtypes_and_rounded():
    def gens(): return [torch.Generator().manual_seed(i) for i in range(4)]
    want = randn_for(torch.zeros(4, 3, 5), gens())
    for dtype in (torch.float16, torch.bfloat16):
        got = randn_for(torch.zeros(4, 3, 5, dtype=dtype), gens())
        assert got.dtype==dtype and torch.equal(got, want.to(dtype))
    assert randn_for(torch.zeros(0, 3), []).shape==(0,3)
    with pytest.raises(ValueError, match='generator: expected one per image, 4, got 3'): randn_for(torch.zeros(4, 3), gens()[:3])

@pytest.mark.parametrize('seed', [2**64, -2**63-1, 1.5, None, 'a', True, [1, 2], [1.5, 2, 3], [None, 1, 2]])
def test_seeds_out_of_range(seed):
    with pytest.raises(ValueError, match='seed: expected a whole number'): make(3, 'ddim', seed=seed)

def test_seeds_of_numpy_and_at_the_end_of_the_range():
    assert torch.equal(make(2, 'ddpm', seed=np.int64(3)), make(2, 'ddpm', seed=3))
    assert torch.equal(make(2, 'ddpm', seed=[np.int64(3), 4]), make(2, 'ddpm', seed=range(3, 5)))
    assert torch.equal(make(2, 'ddpm', seed=2**64-1)[1:], make(1, 'ddpm', seed=0))        # counts on at 0
    with pytest.raises(TypeError, match='generator: expected none'): make(2, 'ddpm', generator=torch.Generator())

# Whole numbers

@pytest.mark.parametrize('bad', [2.5, 0, -1, True, None, '3', torch.tensor([1, 2]), float('nan')])
@pytest.mark.parametrize('f', [
    karras_sigmas, linear_schedule, scaled_linear_schedule, cosine_schedule, partial(leading_times, 10), partial(trailing_times, 10),
    ContinuousSchedule(cosine_abar).times, ContinuousSchedule(cosine_abar).sigmas, partial(generate, shrink, sigmas),
    lambda n: generate(shrink, sigmas, 2, bs=n), lambda n: sample_lms(shrink, torch.ones(1, 1, 2, 2), sigmas, order=n)])
def test_numbers_that_are_not_whole(f, bad):
    with pytest.raises(ValueError, match='expected a whole number'): f(bad)

@pytest.mark.parametrize('bad', [2.5, 0, -1, True, '3', 1001])
def test_times_of_a_table(bad):
    for f in (linear_schedule().times, linear_schedule().sigmas, partial(leading_times, 1000), partial(trailing_times, 1000)):
        with pytest.raises(ValueError, match='n: expected a whole number, from 1 to 1000'): f(bad)

def test_whole_numbers_of_numpy():
    assert torch.equal(karras_sigmas(np.int32(4)), karras_sigmas(4)) and len(linear_schedule(np.int64(7)))==7
    assert torch.equal(linear_schedule().times(torch.tensor(3)), linear_schedule().times(3))

# Numbers that are not finite

@by_sampler
@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_samplers_refuse_what_is_not_finite(name, bad):
    def spoilt(x, sigma): return torch.where(torch.arange(len(x)).reshape(-1, 1, 1, 1)==1, bad, shrink(x, sigma))
    with pytest.raises(FloatingPointError, match='denoise: expected finite numbers, but 1 of 4 images .* first 1'):
        generate(spoilt, sigmas, 4, sampler(name), shape=(1,4,4))
    kw = dict(generator=torch.Generator())
    with pytest.raises(FloatingPointError): sampler(name)(spoilt, torch.ones(4, 1, 4, 4), sigmas, **kw)
    with pytest.raises(FloatingPointError): sampler(name)(shrink, torch.full((4, 1, 4, 4), bad)*0, sigmas, **kw)

def test_generate_refuses_what_a_foreign_sampler_gives():
    with pytest.raises(FloatingPointError): generate(shrink, sigmas, 2, lambda d, x, s, generator: x/0)
    with pytest.raises(FloatingPointError): invert_ddim(lambda x, s: x/0, torch.ones(2, 1, 4, 4), sigmas)

@pytest.mark.parametrize('bad', [[], [1.], [2., 1.], [1., 2., 0.], [1., 1., 0.], [float('nan'), 1., 0.], [float('inf'), 1., 0.], [1., -1.], [[1., 0.]]])
def test_bad_levels(bad):
    for f in (sample_ddpm, sample_euler, sample_heun, sample_lms, sample_dpmpp_2m, sample_euler_ancestral):
        with pytest.raises(ValueError, match='sigmas: expected'): f(shrink, torch.ones(1, 1, 2, 2), bad)

@pytest.mark.parametrize('bad', [dict(sigma_min=0.), dict(sigma_min=-1.), dict(sigma_min=80.), dict(sigma_max=math.inf), dict(rho=0.), dict(rho=math.inf), dict(rho=.001), dict(rho=1e16), dict(rho=math.nan)])
def test_bounds_of_karras_levels(bad):
    with pytest.raises(ValueError, match=next(iter(bad))): karras_sigmas(4, **bad)

def test_karras_levels_are_those_of_the_paper():
    levels = karras_sigmas(3)
    torch.testing.assert_close(levels, torch.tensor([80, ((80**(1/7)+.002**(1/7))/2)**7, .002, 0], dtype=torch.float64))

# Shares and half precision

@pytest.mark.parametrize('abar', [-.1, 1.1, float('nan'), torch.tensor([.5, 1.5])])
def test_shares_outside(abar):
    x = torch.randn(2, 1, 4, 4)
    with pytest.raises(ValueError, match=r'abar: expected numbers in \[0,1\]'): noisify(x, abar)
    with pytest.raises(ValueError, match=r'abar: expected numbers in \[0,1\]'): predictions(x, abar, v=x)
    if not isinstance(abar, torch.Tensor):
        with pytest.raises(ValueError, match=r't: expected times in \[0,1\]'): cosine_abar(abar)
        with pytest.raises(ValueError, match=r't: expected times in \[0,1\]'): ContinuousSchedule(cosine_abar).abar(abar)

def test_noise_of_each_time_in_half_precision():
    abar = linear_schedule().abar(torch.arange(1000))
    zero,eps = torch.zeros(1000, 1, 8, 8),torch.randn(1000, 1, 8, 8)
    for dtype in (torch.bfloat16, torch.float16):
        got,_ = noisify(zero.to(dtype), abar, eps.to(dtype))
        want = noisify(zero.double(), abar, eps.to(dtype).double())[0]
        torch.testing.assert_close(got.double(), want, rtol=.01, atol=1e-4)
    x,one = torch.zeros(1, 1, 1, 1).double(),torch.ones(1, 1, 1, 1).double()
    assert abs(noisify(x, .9999999, one)[0].item()/1e-7**.5-1)<1e-8            # a number is float64
    with pytest.raises(TypeError, match='x_0: expected floats'): noisify(torch.ones(2, 1, 4, 4, dtype=torch.uint8), .5)

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_targets_in_half_precision(dtype):
    class Batch: pass
    sched,errors = linear_schedule(),{}
    x_0 = torch.rand(1000, 1, 4, 4).mul(2).sub(1).to(dtype)
    sched.draw = lambda n: torch.arange(n)
    for wide in (False, True):
        learn = Batch()
        learn.batch = (x_0.double() if wide else x_0,)
        torch.manual_seed(3)
        eps = torch.randn(1000, 1, 4, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
        with mock.patch('torch.randn_like', lambda x: eps.to(x)): DDPMCB(sched, v_target).before_batch(learn)
        errors[wide] = learn.batch[2]
    assert errors[False].dtype==dtype
    torch.testing.assert_close(errors[False].double(), errors[True], rtol=.02, atol=.02)

def test_karras_target_of_weak_noise_in_half_precision():
    class Batch: pass
    learn,x_0 = Batch(),torch.rand(64, 1, 8, 8).to(torch.bfloat16)
    learn.batch = (x_0,)
    KarrasCB(.5, mean=-6., std=0.).before_batch(learn)                       # noise of .0025, below bfloat16's grain at 1
    assert learn.batch[2].dtype==torch.bfloat16 and abs(learn.batch[2].float().std()-1)<.05

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_denoisers_at_levels_whose_square_is_too_large(dtype):
    def net(x, c): return .3*torch.tanh(x)+.1*c.reshape(-1, 1, 1, 1)
    x = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))*300
    for D in (EpsDenoiser, VDenoiser, lambda f: KarrasDenoiser(f, .5)):
        want,got = D(net)(x.to(dtype).double(), 300.),D(net)(x.to(dtype), 300.)
        assert got.dtype==dtype
        torch.testing.assert_close(got.double(), want, rtol=.02, atol=4.)     # the grain at 300 is 2
    scales = precondition(torch.tensor([.002, 1., 300.]).to(dtype), .5)
    for a,b in zip(scales, precondition(torch.tensor([.002, 1., 300.]).to(dtype).double(), .5)):
        torch.testing.assert_close(a.double(), b, rtol=.01, atol=1e-6)

def test_slerp_of_opposite_noises():
    a = torch.randn(3, 1, 8, 8)
    for b in (-a, torch.cat([a[:2], -2*a[2:]])):
        with pytest.raises(ValueError, match='a, b: expected no pair of opposite'): slerp(a, b, .5)
    with pytest.raises(ValueError, match='share: expected finite'): slerp(a, a.flip(0), float('nan'))
    b = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(slerp(a.half(), b.half(), .4).float(), slerp(a, b, .4), rtol=0, atol=.01)

# Weights

def test_weights_of_a_compiled_net(tmp_path):
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), torch.compile(nn.Linear(4, 2), backend='eager'))
    for i,o in enumerate((torch.compile(net, backend='eager'), net)):
        path = tmp_path/f'{i}.safetensors'
        save_weights(o, path)
        assert not any('_orig_mod' in k for k in load_weights(path)[0])
        plain = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        for into in (plain, torch.compile(copy.deepcopy(plain), backend='eager')):
            load_weights(path, into)
            torch.testing.assert_close(into.eval()(torch.ones(2, 3)), net.eval()(torch.ones(2, 3)), rtol=0, atol=.01)

def test_average_of_a_compiled_net():
    class Learn: phases = ['train']
    def averaged(compiled):
        torch.manual_seed(0)
        learn,cb = Learn(),EMACB(.5)
        net = nn.Linear(2, 2)
        learn.model = torch.compile(net, backend='eager') if compiled else net
        cb.before_fit(learn)
        with torch.no_grad(): net.weight.add_(1)
        cb.after_step(learn)
        return cb
    a,b = averaged(True),averaged(False)
    assert list(a.state_dict()['model'])==['weight', 'bias'] and torch.equal(a.model.weight, b.model.weight)
    b.load_state_dict(dict(n=3, model={f'_orig_mod.{k}': v+1 for k,v in a.state_dict()['model'].items()}))      # of an older version
    assert b.n==3 and torch.equal(b.model.weight, a.model.weight+1)

@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_tied_layers(tmp_path, dtype):
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).to(dtype)
    net[1].weight = net[0].weight
    save_weights(net, tmp_path/'a.safetensors')
    w,_ = load_weights(tmp_path/'a.safetensors')
    assert torch.equal(w['0.weight'], w['1.weight']) and torch.equal(w['0.weight'], net[0].weight.detach().half().float())

def rewrite(path, w, **info):
    "A weights file that says of itself that it is sound."
    import hashlib
    from safetensors.torch import save
    path.write_bytes(save(w) if isinstance(w, dict) else w)
    path.with_suffix('.json').write_text(json.dumps(info | dict(sha256=hashlib.sha256(path.read_bytes()).hexdigest())))

def test_weights_that_no_net_should_get(tmp_path):
    path,net = tmp_path/'a.safetensors',nn.Linear(2, 2)
    good = {k: v.clone() for k,v in net.state_dict().items()}
    for bad in (float('nan'), float('inf')):
        rewrite(path, good | dict(bias=torch.tensor([1., bad])))
        with pytest.raises(ValueError, match='expected finite numbers, bias has'): load_weights(path)
    rewrite(path, good | dict(bias=torch.tensor([1, 2], dtype=torch.int32)))
    with pytest.raises(ValueError, match=r'does not fit the model: bias is \(2,\) of int32 in the file and \(2,\) in the model'): load_weights(path, net)
    rewrite(path, b'no tensors at all')
    with pytest.raises(ValueError, match='is no safetensors file'): load_weights(path)
    for text in ('{', '[]', '5', 'null', ''):
        path.with_suffix('.json').write_text(text)
        with pytest.raises(ValueError, match='a.json'): load_weights(path)
    rewrite(path, good, config=5)
    with pytest.raises(ValueError, match='path: expected the model'): load_denoiser(path)
    rewrite(path, good, config=dict(layers=3))
    with pytest.raises(ValueError, match='`config` of .* does not fit: .*layers'): load_denoiser(path)
    torch.testing.assert_close(dict(net.state_dict()), good)                 # and nothing was loaded

def test_bad_weights_leave_the_old_file(tmp_path):
    path,net = tmp_path/'a.safetensors',nn.Linear(2, 2)
    save_weights(net, path)
    before = path.read_bytes()
    class Odd(nn.Linear):
        def get_extra_state(self): return 'text'
    spoilt = nn.Linear(2, 2)
    nn.init.constant_(spoilt.bias, float('nan'))
    for bad,info in ((spoilt, {}), (Odd(2, 2), {}), (net, dict(sched=linear_schedule()))):
        with pytest.raises((ValueError,TypeError)): save_weights(bad, path, **info)
    path.with_suffix('.json').unlink()
    path.with_suffix('.json').mkdir()
    with pytest.raises(OSError): save_weights(nn.Linear(2, 2), path)
    assert path.read_bytes()==before and sorted(o.name for o in tmp_path.iterdir())==['a.json', 'a.safetensors']

def test_a_link_is_followed(tmp_path):
    real,link = tmp_path/'real',tmp_path/'link'
    real.mkdir()
    link.mkdir()
    save_weights(nn.Linear(2, 2), real/'w.safetensors')
    (link/'a.safetensors').symlink_to(real/'w.safetensors')
    net = nn.Linear(2, 2)
    save_weights(net, link/'a.safetensors')
    assert (link/'a.safetensors').is_symlink() and sorted(o.name for o in real.iterdir())==['w.json', 'w.safetensors']
    torch.testing.assert_close(load_weights(link/'a.safetensors')[0]['bias'], net.bias.detach(), rtol=0, atol=.001)
    new = tmp_path/'dangling.safetensors'
    new.symlink_to(real/'new.safetensors')
    save_weights(net, new)
    assert (real/'new.safetensors').is_file() and new.is_symlink()

def test_temporary_files_and_modes(tmp_path):
    path = tmp_path/'a[1].bin'
    old,young,other = (tmp_path/f'.{o}.tmp' for o in ('a[1].bin.0123abcd', 'a[1].bin.0123abce', 'a[1].bin.mine'))
    for o in (old, young, other): o.write_text('x')
    os.utime(old, (time.time()-7200,)*2)
    replace_file(path, lambda tmp: tmp.write_text('new'))
    assert not old.exists() and young.exists() and other.exists()           # what a killed process left goes, nothing else
    os.chmod(path, 0o640)
    gone = tmp_path/'.a[1].bin.0123abcf.tmp'
    gone.symlink_to(tmp_path/'nothing')                                     # as if another process had just renamed it
    replace_file(path, lambda tmp: tmp.write_text('newer'))
    gone.unlink()
    assert path.stat().st_mode&0o777==0o640 and path.read_text()=='newer'
    def fail(tmp):
        tmp.write_text('half')
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): replace_file(path, fail)
    assert path.read_text()=='newer' and len(list(tmp_path.iterdir()))==3
    with pytest.raises(IsADirectoryError): replace_file(tmp_path, lambda tmp: tmp.write_text('x'))

def test_bad_scales():
    for bad in (0., -1., float('nan'), float('inf')):
        for f in (partial(precondition, 1.), partial(KarrasDenoiser, shrink), KarrasCB):
            with pytest.raises(ValueError, match='sigma_data: expected a number above 0'): f(bad)
    with pytest.raises(ValueError, match='mean: expected a finite number'): KarrasCB(.5, mean=float('nan'))
    assert c_noise(torch.tensor([1.])).item()==0.

@pytest.mark.parametrize('eta,n', [(0., 0), (.5, 5), (1., 5)])
def test_ddim_draws_no_noise_that_it_does_not_use(eta, n):
    assert len(sigmas)==7
    with mock.patch('miniai.ddim.randn_for', wraps=randn_for) as f: sample_ddim(shrink, torch.ones(2, 1, 4, 4), sigmas, eta=eta)
    assert f.call_count==n

# Measures

def test_neighbours_that_reach_a_ball_are_three():
    from miniai.fid import precision_recall
    gen = torch.Generator().manual_seed(0)
    a,b = torch.randn(40, 2, generator=gen),torch.randn(60, 2, generator=gen)+1
    assert precision_recall(a, b)==precision_recall(a, b, k=3)!=precision_recall(a, b, k=4)

def _features(n, d, seed): return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)@torch.randn(d, d, generator=torch.Generator().manual_seed(9), dtype=torch.float64)+seed

def test_the_fid_is_that_of_scipy():
    from scipy.linalg import sqrtm
    from miniai.fid import frechet_distance,stats
    a,b = _features(40, 6, 1),_features(50, 6, 2)*1.5
    want = ((a.mean(0)-b.mean(0))**2).sum() + a.T.cov().trace() + b.T.cov().trace() - 2*sqrtm((a.T.cov()@b.T.cov()).numpy()).real.trace()
    assert frechet_distance(stats(a), stats(b))==pytest.approx(float(want), rel=1e-6)
    assert frechet_distance(stats(a), stats(a))==pytest.approx(0, abs=1e-6*float(want))

def test_the_kid_is_that_of_three_means():
    from miniai.fid import kid
    a,b = _features(12, 5, 1),_features(9, 5, 2)
    def k(f, g): return (f@g/5+1)**3
    def within(x): return sum(k(f, g) for i,f in enumerate(x) for j,g in enumerate(x) if i!=j)/(len(x)*(len(x)-1))
    want = within(a) + within(b) - 2*sum(k(f, g) for f in a for g in b)/(len(a)*len(b))
    assert float(kid(a, b))==pytest.approx(float(want), rel=1e-8)

def test_precision_and_recall_by_loops_and_the_largest_k():
    from miniai.fid import precision_recall
    a,b = _features(8, 3, 1),_features(7, 3, 2)
    def covered(points, centres, k):
        def dist(f, g): return float((f-g).norm())
        radii = [sorted(dist(c, o) for j,o in enumerate(centres) if j!=i)[k-1] for i,c in enumerate(centres)]
        return sum(any(dist(p, c)<=r for c,r in zip(centres, radii)) for p in points)/len(points)
    for k in (1, 3, 6):
        precision,recall = precision_recall(a, b, k=k)
        assert (float(precision),float(recall))==pytest.approx((covered(a, b, k), covered(b, a, k)))
    with pytest.raises(ValueError, match='k'): precision_recall(a, b, k=7)

def test_average_of_weights_with_two_names_and_of_complex_ones():
    from miniai.learner import Callback,TrainLearner
    from miniai.loaders import BatchLoader,DataLoaders
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a,self.b,self.w = nn.Linear(2, 2),nn.Linear(2, 2),nn.Parameter(torch.ones(2, dtype=torch.complex64))
            self.b.weight = self.a.weight
        def forward(self, x): return (self.b(self.a(x))*self.w).real
    torch.manual_seed(0)
    learn,ema,seen = TrainLearner(Net(), DataLoaders(BatchLoader(torch.randn(40, 2), torch.randn(40, 2), bs=4), None), lr=.1),EMACB(.9),[]
    class Keep(Callback):
        order = -50
        def after_step(self, learn): seen.append({k: p.detach().clone() for k,p in learn.model.named_parameters()})
    first = {k: p.detach().clone() for k,p in learn.model.named_parameters()}
    learn.fit(1, valid=False, cbs=[ema, Keep()])
    for i,o in enumerate(seen, 1):
        d = min(.9, i/(i+9))
        first = {k: d*v+(1-d)*o[k] for k,v in first.items()}
    for k,p in ema.model.named_parameters(): torch.testing.assert_close(p, first[k], atol=1e-5, rtol=1e-5)
    assert not torch.equal(ema.model.w, learn.model.w)

# Weights, once more

def test_killed_between_the_two_renames(tmp_path):
    "The new weights with the old JSON: the new JSON waits beside them, and is found."
    from common import python
    path = tmp_path/'w.safetensors'
    save_weights(nn.Linear(2, 2), path, v=1)
    code = ("import os,sys\nfrom torch import nn\nfrom miniai.ddpm import save_weights\nreplace,n = os.replace,[0]\n"
            "def killed(a, b):\n    n[0] += 1\n    if n[0]==2: os._exit(9)\n    replace(a, b)\nos.replace = killed\nsave_weights(nn.Linear(2, 2), sys.argv[1], v=2)")
    assert python('-c', code, str(path), env={'PYTHONPATH': os.environ.get('PYTHONPATH', '')}).returncode==9
    assert len(list(tmp_path.iterdir()))==3 and load_weights(path)[1]['v']==2
    raw = path.read_bytes()
    path.write_bytes(raw[:-1]+b'?')
    with pytest.raises(ValueError, match='is damaged: its sha256 is not the one in w.json'): load_weights(path)
    path.write_bytes(raw)
    save_weights(nn.Linear(2, 2), path, v=3)
    assert load_weights(path)[1]['v']==3

@pytest.mark.parametrize('text', ['{"name": "mine"}', '[]', 'no JSON'])
def test_a_json_of_somebody_else_stays(tmp_path, text):
    (tmp_path/'package.json').write_text(text)
    with pytest.raises(FileExistsError, match='path: .*package.json is no JSON of `save_weights`'): save_weights(nn.Linear(2, 2), tmp_path/'package.safetensors')
    assert (tmp_path/'package.json').read_text()==text and len(list(tmp_path.iterdir()))==1

@pytest.mark.skipif(os.name!='posix', reason='HOME')
def test_homes_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_weights(nn.Linear(2, 2), '~nobody.safetensors')
    replace_file('~nobody.txt', lambda tmp: tmp.write_text('x'))
    assert load_weights('~nobody.safetensors') and sorted(o.name for o in tmp_path.iterdir())==['~nobody.json', '~nobody.safetensors', '~nobody.txt']

def test_matrices_without_numbers_in_eight_bits(tmp_path):
    for shape in ((0, 3), (3, 0)):
        import warnings
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            net = nn.Linear(*shape)
        save_weights(net, tmp_path/'a.safetensors', bits=8)
        w,_ = load_weights(tmp_path/'a.safetensors', net)
        assert w['weight'].shape==net.weight.shape

def test_an_average_before_its_first_fit():
    cb = EMACB()
    assert cb.state_dict()==dict(n=0, model={})
    EMACB().load_state_dict(cb.state_dict())
    with pytest.raises(ValueError, match='state_dict: expected no average before'): cb.load_state_dict(dict(n=1, model=nn.Linear(1, 1).state_dict()))

@pytest.mark.parametrize('kw', [dict(beta_min=-.1), dict(beta_max=-.1), dict(beta_min=0.), dict(beta_max=1.), dict(beta_min=math.nan)])
def test_fractions_with_a_root(kw):
    with pytest.raises(ValueError, match=rf'{next(iter(kw))}: expected a number in \(0,1\)'): scaled_linear_schedule(9, **kw)

def test_seeds_count_by_their_lowest_32_bits():
    "As the docs say: that is how torch's generator on the CPU takes them."
    a,b,c = (make(1, 'ddim', seed=o) for o in (5, 5+2**32, 6))
    assert a.equal(b) and not a.equal(c)

# Few steps

from types import SimpleNamespace
from miniai.distill import ConsistencyCB,JumpCB,plan_jumps

class Zero(nn.Module):
    def forward(self, x, c, cond=None): return x*0

def targets(dtype, **kw):
    x = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))*.5
    x = x.bfloat16().to(dtype)
    learn = SimpleNamespace(model=Zero(), batch=x, training=True)
    draw = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    torch.manual_seed(2)
    with mock.patch('torch.randn_like', lambda x: draw.to(x)): ConsistencyCB(.5, 10, **kw).before_batch(learn)
    assert all(o.dtype==dtype for o in learn.batch)
    return learn.batch

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('mean', [-5., -1., 2.])
def test_consistency_in_half_precision(dtype, mean):
    for a,b in zip(targets(torch.float32, mean=mean, std=0.), targets(dtype, mean=mean, std=0.)): torch.testing.assert_close(b.float(), a, rtol=.02, atol=.02)

@pytest.mark.parametrize('kw', [dict(sigma_data=-1.), dict(std=-1.), dict(least=0), dict(least=math.nan), dict(mean=math.inf), dict(sigma_data=0.), dict(every=1.5)])
def test_consistency_needs_levels(kw):
    with pytest.raises(ValueError, match=f'{next(iter(kw))}: expected'): ConsistencyCB(**dict(sigma_data=.5, every=3) | kw)

def test_jumps_of_these_trajectories():
    levels = karras_sigmas(6, .02)
    cb = JumpCB(levels, plan_jumps(levels, {1: (90.,)})[0], .5)
    paths = torch.randn(7, 7, 1, 4, 4)
    for batch in (paths, (paths,), [paths]):
        learn = SimpleNamespace(batch=batch, training=True)
        cb.before_batch(learn)
        assert [o.shape for o in learn.batch]==[(7,1,4,4), (7,), (7,1,4,4)]
    for bad in (torch.randn(4, 13, 1, 4, 4), torch.randn(4, 6, 1, 4, 4), torch.randn(7, 1, 4, 4)):
        with pytest.raises(ValueError, match=r'batch: expected trajectories \(n,7,c,h,w\)'): cb.before_batch(SimpleNamespace(batch=(bad,), training=True))

@pytest.mark.parametrize('plan', [{1: (0.,)}, {2: (1., 2)}, {1: (math.inf,)}, {1: (math.nan,)}, {1: (-1.,)}])
def test_levels_of_a_plan_descend(plan):
    with pytest.raises(ValueError, match='plans: expected a first level above'): plan_jumps(karras_sigmas(6, .02), plan)

def averaging(net, ema, *cbs, **kw):
    from miniai.learner import Learner,TrainCB
    from miniai.loaders import BatchLoader,DataLoaders
    first = [] if any(isinstance(cb, TrainCB) for cb in cbs) else [TrainCB()]
    g = torch.Generator().manual_seed(0)
    return Learner(net, DataLoaders(BatchLoader(torch.randn(40, 2, generator=g), torch.randn(40, 2, generator=g), bs=8), None), lr=.1, cbs=[*first, *cbs, ema], **kw)

def test_an_average_belongs_to_one_net():
    ema,net = EMACB(.5),nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    learn = averaging(net, ema)
    for o in (learn, learn, copy.deepcopy(learn)): o.fit(1, valid=False)
    assert ema.n==10
    learn.model = torch.compile(net, backend='eager')         # the same weights
    learn.fit(1, valid=False)
    assert ema.n==15
    def refused(what):
        learn.model,learn.opt = what,None
        with pytest.raises(RuntimeError, match='other parameters than those that EMACB averages'): learn.fit(1, valid=False)
    refused(copy.deepcopy(net))
    refused(nn.Sequential(*net, nn.Linear(2, 2)))
    net.append(nn.Linear(2, 2))
    refused(net)
    ema.model = None
    learn.fit(1, valid=False)
    assert ema.n==5 and len(ema.model)==3

def test_hooks_that_watch_a_net_do_not_watch_its_average():
    from miniai.hooks import ActivationStatsCB
    ema = EMACB(.5)
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    net[0].register_forward_hook(lambda m, i, o: o+1)         # a part of the net
    averaging(net, ema, ActivationStatsCB()).fit(1, valid=False)
    assert [len(m._forward_hooks) for m in ema.model]==[1,0]==[len(m._forward_hooks) for m in net]

def test_an_average_leaves_out_the_steps_that_half_precision_leaves_out():
    from miniai.accel import LossScaler,MixedPrecisionCB
    from miniai.learner import Callback
    class Spoil(Callback):
        order = -5
        def after_backward(self, learn):
            if learn.iter in (1,2): learn.model.weight.grad[0,0] = torch.inf
    ema,cb,net = EMACB(.9),MixedPrecisionCB(scaler=LossScaler(2.)),nn.Linear(2, 2)
    learn = averaging(net, ema, cb, Spoil())
    learn.fit(1, valid=False)
    assert cb.skipped==2 and ema.n==3 and not hasattr(learn, 'stepped')

# Copies

def test_a_copy_is_at_distance_0():
    "What looks for copies finds the nearest by `torch.cdist`, which rounds, and measures the distance by differences."
    from common import cells,nbs,source
    src, = [source(c) for c in cells(nbs/'15_ddpm.ipynb') if 'def nearest(x)' in source(c)]
    lines = src[src.index('def nearest'):].split('\n\n')[0]
    known = dict(torch=torch, train_images=torch.rand(300, 1, 28, 28, generator=torch.Generator().manual_seed(0))*2-1)
    exec(lines, known)
    assert known['nearest'](known['train_images'][:100]).eq(0).all()
    wrong = [(f.name, line) for f in (*nbs.glob('*.ipynb'), *nbs.glob('appendix/*.ipynb')) for c in cells(f) for line in source(c).splitlines()
             if re.search(r'(distance|far|nearest)\S*\s*=\s*torch\.cdist\(', line) and not re.search('compute_mode|argmin', line)]
    assert wrong==[]
