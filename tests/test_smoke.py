"One call of every exported name, from the package, in a process that no notebook ever touched."
import importlib
from types import SimpleNamespace
import matplotlib
matplotlib.use('agg')
import pytest,torch
from torch import nn
from common import exports,order,python

torch.manual_seed(0)
x,y = torch.rand(40, 1, 8, 8),torch.arange(40)%10

def call_board():
    from miniai import board as b
    assert len(b.load_board())>=8 and isinstance(b.show_board('accuracy', '09'), b.Board)
    with pytest.raises(ValueError, match='upto'): b.show_board('accuracy', 9)

def call_data():
    from PIL.Image import fromarray
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
    assert len(d.SEEN)+len(d.UNSEEN)==60 and 'background' not in d.caption(d.drop_words(scenes, 1.)[0])
    thing = scenes[0].things[0]
    assert thing.size in d.SIZES and thing.colour in d.COLOURS and scenes[0].background in d.BACKGROUNDS
    assert scenes[0].relation in ('',*d.RELATIONS) and d.caption(scenes[0]).startswith('a ')
    assert d.hub_answers('no-such/name', timeout=1) is False
    assert d.open_image(fromarray(x[0,0,:4,:5].mul(255).byte().numpy()), 'L').size==(5,4)
    assert d.check_finite(x, 'x') is x and list(d.quiet_bar(range(3)))==[0,1,2] and d.seconds(sorted, [2,1], n=1)>=0 and d.bar_seen() in (True,False)
    assert d.draw_shapes(5)[0].dtype==torch.uint8 and d.whole_number('n', 3)==3 and d.finite_number('x', 2)==2.
    data = d.get_data('fashion_mnist')
    assert isinstance(data, d.ImageData) and data.x_train.shape==(24_000 if data.source=='drawn' else 60_000,1,28,28) and len(data.names)==10
    dd = d.get_dataset('fashion_mnist')
    part = dd['test'].select(range(20))
    assert torch.equal(d.decode(part)[0], data.x_valid[:20])

def call_matmul():
    from miniai.matmul import matmul,matmul_cuda
    a,b = torch.randn(33, 20),torch.randn(20, 7)
    torch.testing.assert_close(matmul(a, b), a@b)
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
    dl = t.DataLoader(ds, bs=16, shuffle=True)
    state = t.loader_state(dl)
    assert list(state)==list(t.find_generators(dl)) and t.length(dl)==3 and t.length(iter(dl)) is None
    first = [b[1].tolist() for b in dl]
    t.load_loader_state(dl, state)
    assert [b[1].tolist() for b in dl]==first
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
    l.show_rows(dict(some=x[:5], fewer=x[:2]), vmin=0)
    assert len(plt.get_fignums())==2
    plt.close('all')
    assert l.inplace(lambda d: d.update(a=1))({})=={'a': 1}
    rows = [dict(a=1, b=2.), dict(a=3, b=4.)]
    assert [o.tolist() for o in l.collate_dict('a', 'b')(rows)]==[[1, 3], [2, 4]]
    ds = Dataset.from_list(rows)
    dls = l.DataLoaders.from_dd(DatasetDict(train=ds, test=ds), bs=2)
    assert [len(b) for b in (next(iter(dls.train)), next(iter(dls.valid)))]==[2, 2]
    dl = l.BatchLoader(x, y, bs=16, shuffle=True)
    assert len(dl)==3 and sorted(torch.cat([yb for _,yb in dl]).tolist())==sorted(y.tolist())

def call_conv():
    from miniai import conv as c
    assert c.conv_size(28, 3, stride=2, padding=1)==14 and c.receptive_field([(3,1,1)]*2)==5
    xb = c.to_device(dict(x=x.float(), y=(y, 'name')), c.def_device)
    assert c.to_cpu([xb['x'].bfloat16()])[0].dtype==torch.float32
    assert c.map_nested((x, [dict(a=y)]), len)==(len(x), [dict(a=len(y))])
    assert c.conv2d(x.float(), torch.ones(2, 1, 3, 3), padding=1).shape==(len(x), 2, *x.shape[2:])
    assert c.conv(1, 4)(x.float()).shape==(len(x), 4, x.shape[2]//2, x.shape[3]//2) and c.cnn((4,8))(x.float()).shape==(len(x), 10)

def call_autoencoder():
    from miniai import autoencoder as a
    z = torch.randn(2, 3, 4, 4)
    assert a.deconv(3, 5)(z).shape==(2, 5, 8, 8)
    assert a.conv_transpose2d(z, torch.ones(3, 2, 3, 3)).shape==(2, 2, 6, 6)
    model = a.autoencoder(nfs=(4,8))
    assert isinstance(model, a.Autoencoder) and model(x.float()).shape==x.shape

def dls(bs=16):
    from miniai.loaders import DataLoaders
    pictures = x.float()/255
    return DataLoaders.from_tensors((pictures, y), (pictures, y), bs=bs)

def linear(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(x[0].numel(), 10))

def call_learner():
    import torch.nn.functional as F
    from miniai import learner as l
    class Skip(l.Callback):
        def before_batch(self, learn):
            if learn.iter==1: raise l.CancelBatch()
        def before_epoch(self, learn):
            if learn.epoch==1: raise l.CancelEpoch()
        def after_epoch(self, learn):
            if learn.epoch==2: raise l.CancelFit()
    metrics = l.MetricsCB(share=l.MeanMetric(lambda p, y: (p.argmax(1)==y).float().mean()), n=l.EpochMetric(lambda p, y: len(p)))
    learn = l.Learner(linear(), dls(), F.cross_entropy, lr=.01, cbs=[l.TrainCB(), l.DeviceCB('cpu'), metrics, l.NaNStopCB()])
    learn.fit(1, cbs=[l.ProgressCB()])
    assert learn.history[0]['valid_n']==len(x)
    learn.fit(3, cbs=[Skip()])
    learn.fit(1, cbs=[l.SingleBatchCB()])
    learn.fit(1, valid=False, cbs=[l.LRFinderCB()])
    assert learn.lr_find(plot=False)>0
    for cls in (l.TrainLearner, l.MomentumLearner): cls(linear(), dls(), F.cross_entropy).fit(1)
    assert l.split_batch((x, y))[1]==(y,)
    preds,targets = learn.get_preds()
    assert preds.shape==(len(x), 10) and (targets==y).all()
    assert l.batch_rows(dict(x=x, y=y))==len(x)
    assert (l.concat_batches([l.to_cpu_copy((x, y))]*2)[1]==y.repeat(2)).all()

def call_hooks():
    import torch.nn.functional as F
    import matplotlib.pyplot as plt
    from miniai import hooks as h,learner as l
    model,seen = torch.nn.Sequential(linear(), torch.nn.ReLU()),[]
    with h.Hook(model[1], lambda hook,m,i,o: seen.append(1)), h.Hooks(model, lambda hook,m,i,o: seen.append(2)): model(x.float())
    assert sorted(seen)==[1, 2, 2]
    stats = h.ActivationStatsCB()
    l.Learner(model, dls(), F.cross_entropy, cbs=[l.TrainCB(), stats]).fit(1)
    stats.plot_stats(), stats.plot_hists(), stats.plot_dead()
    plt.close('all')

def call_init():
    from miniai import init as i,learner as l
    import torch.nn.functional as F
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), i.BatchNorm(4), i.LayerNorm(4), i.GeneralRelu(.1, .4, 6.), torch.nn.Flatten(),
                                torch.nn.LazyLinear(10))
    model(x.float())
    model.apply(i.init_weights)
    assert len(i.lsuv(model, x.float()/255))==2
    norm = i.Normalize(x.float().mean().item(), x.float().std().item())
    assert abs(norm(x)[0].mean().item())<1e-3
    l.Learner(model, dls(), F.cross_entropy, cbs=[l.TrainCB(), i.BatchTransformCB(norm)]).fit(1)

def call_optim():
    import torch.nn.functional as F
    import matplotlib.pyplot as plt
    from functools import partial
    from miniai import learner as l,optim as o
    assert o.ewa(torch.ones(3), .9).tolist()==[1, 1, 1]
    recorder = o.RecorderCB()
    for opt in (o.Momentum, o.RMSProp, o.Adam, o.AdamW):
        assert issubclass(opt, o.Optimizer)
        mom = {} if opt is o.RMSProp else dict(base_momentum=.85)
        sched = o.BatchSchedCB(partial(o.OneCycle, max_lr=.01, **mom))
        l.Learner(linear(), dls(), F.cross_entropy, lr=.01, cbs=[l.TrainCB(), sched, recorder], opt_func=opt).fit(1)
    l.Learner(linear(), dls(), F.cross_entropy, cbs=[l.TrainCB(), o.EpochSchedCB(o.CosineSched)]).fit(2)
    recorder.plot()
    plt.close('all')

def call_resnet():
    import torch.nn.functional as F
    from miniai import learner as l,resnet as r
    model = r.resnet((4,8,8))
    table = r.summary(model, x[:4].float())
    assert isinstance(table, r.Table) and r.flops(model, x[:4].float())>0
    model.train()[0].eval()
    with r.evaluating(model): assert not any(m.training for m in model.modules()) and not torch.is_grad_enabled()
    assert model.training and not model[0].training
    for block in (r.ResBlock, r.PoolBlock): assert block(4, 8, stride=2)(torch.randn(2, 4, 8, 8)).shape==(2, 8, 4, 4)
    l.Learner(model, dls(), F.cross_entropy, cbs=[r.AutocastCB()]).fit(1)
    with r.autocast(): assert torch.is_autocast_enabled(str(r.def_device))==r.fast_bf16()

def call_augment():
    import torch.nn.functional as F
    import matplotlib.pyplot as plt
    from miniai import augment as a,learner as l
    aug = a.Augment(a.random_flip, a.random_crop, a.random_erase, a.random_copy, a.hflip, lambda o: a.shift(o, 1, 0))
    assert aug(x.float(), y)[0].shape==x.shape
    learn = l.Learner(torch.nn.Sequential(a.ChannelDropout(), a.Dropout(), linear()), dls(), F.cross_entropy, cbs=[l.TrainCB()])
    preds,targets = a.capture_preds(learn)
    assert preds.shape==(len(x), 10) and a.tta(learn)[0].shape==preds.shape and a.average_probs(preds, preds).shape==preds.shape
    cal = a.calibration(preds.softmax(1), targets)
    assert isinstance(cal, a.Calibration) and a.fit_temperature(preds, targets)>0
    a.plot_calibration(cal)
    plt.close('all')
    assert len(a.confident_mistakes(preds.softmax(1), targets))<=16
    from miniai.data import ImageData
    small = ImageData(x.mul(255).byte(), y, x.mul(255).byte(), y, tuple('abcdefghij'), 'drawn')
    assert a.capture_preds(a.challenge(small, 1, n=32, device='cpu'))[0].shape==(len(x), 10)

def call_ddpm():
    import tempfile
    from pathlib import Path
    from miniai import ddpm as d,learner as l
    sched = d.linear_schedule(20)
    assert isinstance(sched, d.Schedule)
    x_t,eps = d.noisify(x, sched.abar(sched.draw(len(x))))
    assert x_t.shape==eps.shape==x.shape and torch.equal(d.eps_target(x, eps, None), eps)
    assert d.randn_for(x, torch.Generator()).shape==x.shape
    assert d.per_image(torch.ones(len(x)), x).shape==(len(x),1,1,1)==d.noise_levels(2., x).shape
    a,s = d.signal_and_noise(.36, x)
    assert abs(a.item()-.6)<1e-6 and abs(s.item()-.8)<1e-6 and d.finite_images(x) is x and d.check_sigmas([1., 0.]).dtype==torch.float64
    with pytest.raises(FloatingPointError): d.finite_images(x/0)
    assert torch.equal(d.ask_network(lambda x,c: x, x, 3.)[1], x/10**.5) and torch.equal(d.clean_images(SimpleNamespace(batch=(x, y))), x)
    d.check_images(x, 1, 2), d.check_levels(torch.zeros(3), 3)
    assert torch.equal(d.space_to_depth(x, 2), nn.functional.pixel_unshuffle(x, 2)) and d.space_to_depth(x[:0], 2).shape==(0,4,4,4)
    with pytest.raises(ValueError, match='c: expected one noise level per image'): d.check_levels(torch.zeros(3), 2)
    net,ema = d.SmallUNet((4,8)),d.EMACB()
    l.Learner(net, dls(), lr=1e-3, cbs=[l.TrainCB(n_inp=2), d.DDPMCB(sched), ema]).fit(1)
    denoise = d.EpsDenoiser(ema.model)
    assert d.c_noise(sched.sigma(torch.arange(20))).abs().max()<2
    pictures = d.generate(denoise, sched.sigmas(4), 3, sampler=d.sample_ddpm, shape=(1,8,8))
    assert pictures.shape==(3,1,8,8) and pictures.abs().max()<=1
    with tempfile.TemporaryDirectory() as folder:
        d.save_weights(net.eval(), Path(folder)/'net.safetensors', config=dict(nfs=[4,8]))
        w,info = d.load_weights(Path(folder)/'net.safetensors', d.SmallUNet((4,8)))
        assert info['config']['nfs']==[4,8]
        d.fill_weights(net, w, Path('net.safetensors'))
        with pytest.raises(ValueError, match='does not fit'): d.fill_weights(net, {}, Path('net.safetensors'))
        d.replace_file(Path(folder)/'a.txt', lambda tmp: tmp.write_text('b'))
        assert (Path(folder)/'a.txt').read_text()=='b'
    assert d.load_denoiser()(torch.randn(2, 1, 28, 28), 1.).shape==(2,1,28,28)
    assert not d.load_model(d.SmallUNet, 'fashion_ddpm').training

def call_accel():
    import torch.nn.functional as F
    from miniai import accel as a,learner as l
    def fit(cb, *cbs): l.Learner(linear(), dls(), F.cross_entropy, cbs=[cb, *cbs]).fit(1)
    fit(a.MixedPrecisionCB(scaler=a.LossScaler(2.**8)), a.ClipCB(1.), a.AccumulateCB(2))
    fit(a.AccelerateCB(cpu=True))

def call_checkpoint():
    import tempfile
    import torch.nn.functional as F
    from pathlib import Path
    from miniai import checkpoint as c,learner as l
    with tempfile.TemporaryDirectory() as folder:
        l.Learner(linear(), dls(), F.cross_entropy, cbs=[l.TrainCB(), c.CheckpointCB(folder)]).fit(1)
        newest = max(Path(folder).iterdir())
        assert c.load_checkpoint(newest)['epoch']==1
        c.save_checkpoint(newest, dict(model={}))
        (newest/'state.json').write_text('{}')
        with pytest.raises(c.DamagedCheckpoint): c.load_checkpoint(newest)

def call_fid():
    from miniai import fid as f
    gen = torch.Generator().manual_seed(0)
    feats = torch.randn(400, 6, generator=gen).double()
    a,b = f.stats(feats[:200]),f.stats(feats[200:])
    assert isinstance(a, f.Stats) and 0<f.frechet_distance(a, b)<2
    precision,recall = f.precision_recall(feats[:200], feats[200:], k=2)
    assert .5<precision<=1 and .5<recall<=1
    assert abs(f.kid(feats[:200], feats[200:]))<.5 and len(f.kid_subsets(feats[:200], feats[200:], 3, 50))==2
    assert f.fid_infinity(feats[:200], b, generator=gen) is not None
    ruler = f.load_feature_net()
    assert isinstance(ruler, f.FeatureNet) and ruler.fid(torch.rand(300, 1, 28, 28)*2-1)>1

def call_matrix_root():
    from miniai.matrix_root import sqrtm
    a = torch.tensor([[2., 1], [1, 2]], dtype=torch.float64)
    torch.testing.assert_close(sqrtm(a)@sqrtm(a), a)

def point(x, sigma, cond=None): return x/(1+torch.as_tensor(sigma).reshape(-1, 1, 1, 1)**2)       # the best denoiser of standard normal data

def levels(n=5): return torch.tensor([*torch.linspace(3, .1, n).tolist(), 0.], dtype=torch.float64)

def call_ddim():
    from miniai import ddim as d
    noise = torch.randn(2, 1, 4, 4)*3
    assert d.sample_ddim(point, noise, levels(), eta=.5).shape==noise.shape
    assert d.invert_ddim(point, torch.randn(2, 1, 4, 4), levels()).shape==noise.shape
    assert d.slerp(noise, noise.flip(0), .5).shape==noise.shape
    assert len(d.leading_times(1000, 10))==len(d.trailing_times(1000, 10))==10

def call_schedules():
    from miniai import learner as l,schedules as s
    from miniai.ddpm import SmallUNet
    for sched in (s.scaled_linear_schedule(), s.cosine_schedule(), s.ContinuousSchedule(s.cosine_abar)): assert len(sched.sigmas(5))==6
    abar,eps = torch.full((40,1,1,1), .5),torch.randn_like(x)
    v = s.v_target(x, eps, abar)
    assert s.x0_target(x, eps, abar) is x
    res = s.predictions(abar.sqrt()*x+(1-abar).sqrt()*eps, abar, v=v)
    assert isinstance(res, s.Prediction)
    torch.testing.assert_close(res.x_0, x, atol=1e-5, rtol=1e-5)
    def net(x, c): return torch.zeros_like(x)
    for D in (s.X0Denoiser, s.VDenoiser, s.FlowDenoiser): assert D(net)(x, 2.).shape==x.shape
    torch.testing.assert_close(s.flow_target(x, eps, abar), res.flow, atol=1e-5, rtol=1e-5)
    assert s.flow_abar(torch.tensor(.5), shift=3.)==.1
    flow = SmallUNet((4,8))
    l.Learner(flow, dls(), lr=1e-3, cbs=[l.TrainCB(n_inp=2), s.FlowCB(shift=3.)]).fit(1)
    assert s.FlowDenoiser(flow.eval())(x, 2.).shape==x.shape

def call_noise_level():
    from miniai import learner as l,noise_level as n,schedules as s
    level = n.LevelNet(8)
    l.Learner(level, dls(), lr=1e-3, cbs=[l.TrainCB(), n.LevelCB(s.cosine_schedule())]).fit(1)
    assert n.BlindDenoiser(point, level.eval())(x).shape==x.shape

def call_karras():
    from miniai import karras as k,learner as l
    from miniai.ddpm import SmallUNet
    noise = torch.randn(2, 1, 4, 4)*3
    for f in (k.sample_euler, k.sample_euler_ancestral, k.sample_heun, k.sample_lms, k.sample_dpmpp_2m): assert f(point, noise, levels()).shape==noise.shape
    assert len(k.karras_sigmas(7))==8 and len(k.precondition(torch.ones(1), .5))>=3
    net = SmallUNet((4,8))
    l.Learner(net, dls(), lr=1e-3, cbs=[l.TrainCB(n_inp=2), k.KarrasCB(.5)]).fit(1)
    assert k.KarrasDenoiser(net.eval(), .5)(noise, 3.).shape==noise.shape

def call_unet():
    from miniai import unet as u
    c = torch.rand(2)
    assert u.timestep_embedding(c, 8).shape==(2,8)
    assert u.EmbResBlock(4, 8, 8)(torch.randn(2, 4, 5, 5), torch.randn(2, 8)).shape==(2,8,5,5)
    assert u.UpConv(4)(torch.randn(2, 4, 3, 3), (5,5)).shape==(2,4,5,5)
    assert u.UNet((4,8), ni=3, n_emb=16)(torch.randn(2, 3, 7, 7), c).shape==(2,3,7,7)
    import tempfile
    from functools import partial
    from pathlib import Path
    from miniai.ddpm import save_weights
    net = u.UNet((4,8), norm=partial(torch.nn.GroupNorm, 2), patch=2)
    with tempfile.TemporaryDirectory() as folder:
        save_weights(net, Path(folder)/'net.safetensors', config=dict(nfs=[4,8], groups=2, patch=2), sigma_data=.7)
        assert u.load_unet(Path(folder)/'net.safetensors')(torch.randn(2, 1, 8, 8), 1.).shape==(2,1,8,8)

def call_superres():
    from miniai import superres as s
    from miniai.resnet import resnet
    pictures = torch.rand(4, 3, 16, 16)*2-1
    low = s.Degrade()(pictures)
    assert len(low)==2
    assert s.psnr(pictures*.9, pictures)>10 and s.sharpness(pictures, pictures)==1
    assert s.Residual(torch.nn.Conv2d(3, 3, 3, padding=1))(pictures).shape==pictures.shape
    net = resnet((4,8), ni=3)
    assert s.PerceptualLoss(net, ['stem'])(pictures*.9, pictures)>0

def call_attention():
    from miniai import attention as t
    h,words = torch.randn(2, 9, 8),torch.randn(2, 5, 6)
    torch.testing.assert_close(t.attention_weights(h, h, causal=True).sum(-1), torch.ones(2, 9))
    assert t.attention(h, h, h).shape==h.shape and t.FeedForward(8, gated=True)(h).shape==h.shape
    assert t.MultiHeadAttention(8, 2, 6)(h, words).shape==h.shape and t.TransformerBlock(8, 2, 6)(h, words).shape==h.shape
    pictures = torch.randn(2, 8, 3, 3)
    torch.testing.assert_close(t.SpatialTransformer(8, 2, 6)(pictures, words), pictures)          # fresh: nothing is added
    torch.testing.assert_close(t.DiTBlock(8, 2, 4)(h, torch.randn(2, 4)), h)
    assert t.grid_positions(3, 5, 8).shape==(15,8)
    assert t.DiT(3, 8, n_blocks=1, n_heads=2, n_emb=16)(torch.randn(2, 3, 8, 12), torch.rand(2)).shape==(2,3,8,12)
    assert t.sinusoidal_positions(9, 8).shape==(9,8)

def call_guidance():
    from miniai import guidance as g
    from miniai.karras import KarrasCB,karras_sigmas
    net = g.ClassUNet((4,8), n_classes=3).eval()
    cond,none = torch.arange(2),torch.tensor([3])
    def denoise(z, sigma, cond): return net(z, torch.zeros(len(z)), cond)
    z = torch.randn(2, 1, 8, 8)
    assert g.GuidedDenoiser(denoise, cond, none, 3.)(z, 1.).shape==z.shape
    assert torch.equal(g.AutoGuidedDenoiser(lambda x, sigma: x*0+2, lambda x, sigma: x*0+1, 3.)(z, 1.), torch.full_like(z, 4))
    assert g.generate_guided(denoise, cond, none, 2., karras_sigmas(2), shape=(1,8,8)).shape==z.shape
    learn = type('learn', (), dict(batch=(z, cond), training=True))
    g.CondCB(KarrasCB(.5), 3).before_batch(learn)
    assert len(learn.batch)==4

def call_clip():
    from miniai import clip as c
    texts = ['a red star','a blue ring']
    assert c.clean_text('A  Caf\u0065\u0301')=='a caf\u00e9'
    tok = c.Tokenizer.train(texts, 50)
    assert [tok.decode(row) for row in tok(texts)]==texts
    net = c.small_clip(len(tok), n=8, n_heads=2, depth=1, nfs=(4,8), n_out=6)
    assert isinstance(net, c.CLIP) and isinstance(net.image, c.ImageEncoder) and isinstance(net.text, c.TextTransformer)
    pictures = torch.randn(2, 3, 16, 16)
    assert c.clip_loss(*net(pictures, tok(texts)))>0
    sims = c.similarities(net.eval(), pictures, tok(texts))
    assert sims.shape==(2,2) and c.recall_at(sims, 2)==1
    assert c.load_with_words('scene_clip', c.small_clip)[1](texts).shape==(2,24)
    stored,words = c.load_clip()
    assert stored.encode_text(words(texts)).shape[0]==2

def call_vae():
    from miniai import vae as v
    pictures = torch.rand(4, 3, 16, 16)*2-1
    codec = v.load_codec()
    assert codec.to_pictures(codec.to_latents(pictures)).shape==pictures.shape
    assert v.gradient_loss(pictures, pictures)==0 and isinstance(codec.encode(pictures), v.Gaussian)
    fresh = v.Codec((8,8), 2).eval()
    fresh.calibrate(pictures)
    assert fresh.to_latents(pictures).shape==(4,2,4,4)
    assert v.codec_error(pictures, fresh(pictures)[0])
    net = v.VAE(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), nn.Sequential(nn.Linear(2, 64), nn.Unflatten(1, (1,8,8))))
    assert v.VAELoss()(net(x.float()), x.float())>0

def call_distill():
    from miniai import distill as d
    from miniai.karras import karras_sigmas,sample_euler
    sigmas,z = karras_sigmas(4, .02, 80.),80*torch.randn(3, 1, 8, 8)
    paths = d.trajectories(lambda z, sigma: z/(1+float(sigma)**2), z, sigmas)
    assert paths.shape==(3,5,1,8,8)
    assert d.jump_target(paths[:,0].float(), sigmas[0], paths[:,2].float(), sigmas[2]).shape==z.shape
    jumps,levels = d.plan_jumps(sigmas, {2: (80., 2), 1: (30.,)})
    assert isinstance(jumps[0], d.Jump) and len(levels[2])==3
    learn = type('learn', (), dict(batch=(paths,)))
    d.JumpCB(sigmas, jumps, .5).before_batch(learn)
    assert [o.shape for o in learn.batch]==[z.shape, (3,), z.shape]
    learn = type('learn', (), dict(batch=(z,), model=staticmethod(lambda z, c: 0*z), training=True))
    d.ConsistencyCB(.5, 10).before_batch(learn)
    assert len(learn.batch)==3
    denoise,levels = d.load_few()
    assert sample_euler(denoise, levels[1][0]*torch.randn(2, 1, 28, 28), levels[1]).shape==(2,1,28,28)
    w = nn.Linear(9, 8).state_dict()
    assert 'weight.a' in d.Change.between(nn.Linear(9, 8).state_dict(), w, 2).w

def call_gan():
    from miniai import gan as t
    pts = t.gaussian_ring(500)
    m = t.count_modes(pts)
    assert isinstance(m, t.Modes) and m.found==25 and m.good>.95
    a,b = torch.randn(6),torch.randn(6)
    assert t.wasserstein_1d(a, a)==0 and t.bce_d(a, b, .1, .1)>0
    def nets(): return nn.Linear(3, 2),nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))
    for loss in (t.minimax, t.non_saturating, t.wasserstein, t.relativistic):
        assert isinstance(loss, t.GANLoss) and loss.d(a, b).ndim==loss.g(a, b).ndim==0
        for penalty in (None, t.r1_r2, t.wgan_gp):
            g = t.GAN(*nets(), 3, loss, penalty=penalty, every=2, augment=lambda o: o+.1)
            for _ in range(3): g.step(pts[:8])
            assert g.n==3 and all(p.isfinite().all() for p in g.average.parameters())
    t.clip_weights(g.d, .01)
    assert t.squared_slopes(g.d, pts[:4]).max()<=2.1e-4
    small,d,y = t.StyleGenerator(8, 6, (4,4), 3),t.Discriminator((4,4), 5, 3),torch.tensor([0,2])
    game = t.GAN(small, d, 8, t.relativistic, penalty=t.r1_r2)
    game.step(torch.rand(2, 1, 28, 28), y)
    assert small.draw(y, .5).shape==(2,1,28,28) and small.mean_w(3).shape==(3,6)
    assert t.MappingNetwork(4, 6, 3)(torch.randn(2, 4), y).shape==(2,6)
    assert t.ModulatedConv(2, 3, 6)(torch.rand(2, 2, 5, 5), torch.rand(2, 6)).shape==(2,3,5,5)
    assert t.StyleBlock(2, 3, 6)(torch.rand(2, 2, 5, 5), torch.rand(2, 6), torch.rand(2, 1, 5, 5)).shape==(2,3,5,5)
    assert torch.equal(t.truncate(a, b, 0.), b)
    assert t.load_gan().draw(torch.tensor([3])).shape==(1,1,28,28)

def call_lora():
    import tempfile
    from pathlib import Path
    from miniai import lora as t
    from miniai.attention import MultiHeadAttention
    def fresh():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 8), MultiHeadAttention(8, 2))
    net,h = fresh(),torch.randn(2, 3, 8)
    assert t.attention_layers(net)==['1.q','1.kv','1.out'] and t.all_layers(net)==['0','1.q','1.kv','1.out']
    assert t.LoRA(net[0], 2)(h).shape==h.shape
    assert t.add_lora(net, 2, where=t.all_layers)==t.all_layers(net)
    for p in t.lora_params(net): nn.init.normal_(p, std=.1)
    want = net(h)
    t.merge_lora(net)
    torch.testing.assert_close(net(h), want, atol=1e-5, rtol=1e-5)
    t.unmerge_lora(net)
    assert len(t.lora_layers(net))==4 and len(t.lora_state(net))==12
    with tempfile.TemporaryDirectory() as folder:
        for layout in ('peft', 'kohya'):
            path,other = Path(folder)/f'{layout}.safetensors',fresh()
            t.save_lora(net, path, layout)
            t.load_lora(other, path)
            assert t.lora_parts(path)=={'unet'}
            torch.testing.assert_close(other(h), want, atol=1e-5, rtol=1e-5)
    t.remove_lora(net)
    torch.testing.assert_close(net(h), fresh()(h))

def call_vit():
    from miniai import vit as t
    net = t.ViT(16, 4, n=16, depth=2, n_heads=2, n_out=5, stem=t.conv_stem).eval()
    im = torch.randn(3, 3, 16, 16)
    maps = t.attention_of(net, im)
    assert net(im).shape==(3,5) and [o.shape for o in maps]==[(3,2,17,17)]*2 and t.rollout(maps).shape==(3,17,17)
    assert t.CompactTransformer(16, 4, n=16, depth=1, n_heads=2)(im).shape==(3,16)
    assert t.ViTBlock(16, 2, attention=t.RotaryAttention)(torch.randn(2, 5, 16)).shape==(2,5,16)
    assert t.rotate(torch.ones(1, 1, 5, 4), 2).shape==(1,1,5,4) and t.patch_embed(3, 8, 4)(im).shape==(3,8,4,4)
    assert t.vit_names(net)['head']=='classifier' and t.dinov2_names(net)['norm']=='layernorm'
    with pytest.raises(FileNotFoundError): t.load_vit('no-such-folder')
    x_s,shape,colour = t.draw_stickers(8, 0, 32)
    assert x_s.shape==(8,4,32,32) and shape.max()<10 and colour.max()<6
    assert t.random_colours(im.clamp(-1, 1)).shape==im.shape and t.random_views(x_s, 16).shape==(8,3,16,16)
    large,small = t.multi_crop(x_s, 16, 8)
    dino = t.DINO(t.ViT(16, 4, n=16, depth=1, n_heads=2), 16, 6)
    preds = dino(large, small)
    assert [len(o) for o in preds]==[32,16] and dino.loss(preds)>0
    t.TeacherCB().after_step(SimpleNamespace(model=dino, preds=preds))
    assert t.DINOHead(16, 6)(torch.randn(2, 16)).shape==(2,6)
    assert t.knn_predict(torch.eye(3), torch.arange(3), torch.eye(3), 1).tolist()==[0,1,2]
    assert t.load_dino()(torch.randn(2, 3, 24, 24)).shape==(2,64)

def call_latents():
    from miniai import latents as t
    from miniai.data import random_scenes
    from miniai.karras import KarrasCB,KarrasDenoiser,karras_sigmas
    from miniai.vae import load_codec
    scenes,(tok,text) = random_scenes(2),t.load_text()
    z,ids = t.scene_latents(load_codec(), scenes).float(),t.caption_variants(scenes, tok)
    states = t.text_states(['a star','a ring'], tok, text)
    net = t.load_text_unet()
    assert isinstance(net, t.TextUNet) and isinstance(net.mid[0], t.TextBlock)
    assert t.LatentDiffusion(net, text)(z, torch.zeros(2), ids[:,0]).shape==z.shape
    made = t.generate_latents(KarrasDenoiser(net, 1.), states, states[:1], 2., karras_sigmas(2))
    assert made.shape==z.shape
    reader = t.load_reader()
    assert isinstance(reader, t.Reader) and isinstance(reader.score(torch.randn(2, 3, 64, 64), scenes), t.Score)
    assert t.rephrase(scenes[0], 1)==t.rephrase(scenes[0], 1) and t.caption_variants(scenes, tok, 1, rephrased=2).shape[:2]==(2,4)
    assert t.flawed_scenes(scenes, 64, 1, 'doubled').shape==(2,3,64,64)
    assert t.reader_loss(reader(torch.randn(2, 3, 64, 64)), t.scene_targets(scenes))>0
    learn = type('learn', (), dict(batch=(z, ids), training=True))
    t.CaptionCB(KarrasCB(1.), ids[0,0]).before_batch(learn)
    assert len(learn.batch)==4

def call_stable():
    from miniai import stable as s
    from miniai.karras import karras_sigmas
    pipe = s.StableDiffusion.load()
    hole = torch.zeros(64, 64, dtype=torch.bool)
    hole[:,32:] = True
    before = pipe('a red star', steps=2)
    after = pipe('a blue ring', steps=2, init=before, mask=hole)
    assert after.dtype==torch.uint8 and torch.equal(after[...,:32], before[...,:32])
    assert s.latent_mask(hole).sum()==32 and len(s.strength_sigmas(karras_sigmas(9), .5))<10
    z = torch.randn(1, 8, 8, 8)
    assert torch.equal(s.Inpaint(lambda x, sigma: 0*x, z, torch.zeros(8, 8, dtype=torch.bool))(z, 1.), z)

    made = s.PipelineParts(pipe.tokenizer, pipe.text, pipe.unet, pipe.codec)
    assert made.pictures(made.latents(before)).shape==before.shape and made.noise([1, 2]).shape==(2, *made.shape)

def call_published():
    import tempfile
    from miniai import published as p
    from miniai.schedules import scaled_linear_schedule
    from miniai.stable import StableDiffusion
    assert p.QuickFeedForward(4)(torch.zeros(1, 4)).shape==(1,4) and p.timesteps_of(torch.ones(1), scaled_linear_schedule())>300
    with tempfile.TemporaryDirectory() as tmp:
        p.export_scenes(StableDiffusion.load(), f'{tmp}/scenes')
        tok = p.load_tokenizer(f'{tmp}/scenes/tokenizer')
        assert isinstance(tok, p.FilledTokenizer) and tok.n_ctx==24
        config = dict(scheduler=dict(beta_schedule='scaled_linear', beta_start=.00085, beta_end=.012),
            unet=dict(block_out_channels=[16,32], layers_per_block=1, cross_attention_dim=16, attention_head_dim=4, norm_num_groups=8, sample_size=8,
                      down_block_types=['CrossAttnDownBlock2D','DownBlock2D'], up_block_types=['UpBlock2D','CrossAttnUpBlock2D']),
            vae=dict(block_out_channels=[8,16], layers_per_block=1, norm_num_groups=4),
            text_encoder=dict(vocab_size=len(tok), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=24))
        text,codec = p.CLIPText(len(tok), 24, 16, 4, 2, 2),p.PublishedCodec((8,16), depth=1, groups=4)
        unet = p.PublishedUNet((16,32), (True,False), (4,4), n_text=16, depth=1, groups=8)
        pipe = p.PublishedDiffusion(tok, text, unet, codec, size=16, config=config)
        p.save_published(pipe, f'{tmp}/made')
        back = StableDiffusion.from_pretrained(f'{tmp}/made')
        assert isinstance(back, p.PublishedDiffusion) and torch.equal(back('a red star', steps=2, amp=False), pipe('a red star', steps=2, amp=False))
        assert p.load_published(f'{tmp}/made', torch.bfloat16, skip=1).text.skip==1
        w = p.read_tensors([f'{tmp}/made/unet/diffusion_pytorch_model.safetensors'])
        assert set(w)==set(p.their_weights(unet, p.unet_names(unet))) and p.their_keys('stem.bias', p.unet_names(unet))==['conv_in.bias']
        assert p.take_weights(text, p.text_names(text), p.their_weights(text, p.text_names(text))) is text
    assert 'quant_conv' in p.codec_names(codec).values() and len([*p.nested(unet.downs)])==3
    assert isinstance(unet.downs[0], p.PublishedBlock) and isinstance(codec.encoder[-6], p.PlaceAttention) and isinstance(codec.encoder[2], p.HalfConv)
    assert p.lora_names(unet)['conv_in']=='stem'
    assert p.DoubleConv(4)(torch.zeros(1, 4, 2, 2), (4, 4)).shape==(1,4,4,4)
    hole = p.WithImage(lambda x, c, cond: x, torch.ones(1, 1, 8, 8), torch.zeros(1, 4, 8, 8))
    assert hole(torch.zeros(2, 4, 8, 8), None, None).shape==(2,9,8,8)
    p.check_memory([unet])
    with pytest.raises(MemoryError, match='GiB'): p.check_memory([unet], available=10)

def call_bert():
    from miniai import bert as b
    tok = b.WordPiece(['[PAD]','[UNK]','[CLS]','[SEP]','[MASK]','a','red','star','##s'])
    ids,mask = tok(['a star', 'a red stars'])
    assert ids.shape==mask.shape==(2,6) and tok.decode(ids[1])=='a red stars'
    net = b.Bert(len(tok), 8, 16, 4, 2)
    assert isinstance(net.blocks[0], b.BertBlock) and b.mean_pool(net(ids, mask), mask).shape==(2,16)
    assert b.attention_maps(net, ids, mask).shape==(2,2,4,6,6)
    changed,target = b.mask_words(ids, tok, 1.)
    assert b.MaskedBert(net)(changed, mask).shape==(2,6,9) and target.max()>0
    assert b.SentenceEncoder(tok, net)(['a star']).shape==(1,16)
    assert b.bm25([['red']], [['red','star'], ['blue']])[0].argmax()==0
    with pytest.raises(KeyError): b.from_transformers({})
    try: assert b.load_minilm()('a star').shape==(1,384)
    except FileNotFoundError as e: assert 'pip install' in str(e)

def call_autoregressive():
    from miniai import autoregressive as a
    from miniai.data import draw_scenes,random_scenes
    gpt,palette = a.load_pixels()
    assert isinstance(palette, a.Palette) and isinstance(gpt, a.ImageGPT)
    t = a.generate_tokens(gpt, cond=torch.tensor([7, 0]), scale=2., top_p=.9)
    assert t.shape==(2,196) and torch.equal(palette.to_tokens(palette.from_tokens(t)), t)
    assert 0<a.token_bits(gpt, t).mean()<4 and a.next_token_loss(gpt(t), t)<2.8
    cache = a.KVCache(gpt, 2)
    torch.testing.assert_close(gpt.step(t[:,:5], cache), gpt(t)[:,5], rtol=1e-4, atol=1e-4)
    assert cache.length==6 and a.token_probs(torch.zeros(4), top_k=2).max()==.5
    codec = a.load_vq_codec()
    assert isinstance(codec, a.VQCodec) and isinstance(codec.quantizer, a.VectorQuantizer)
    x = draw_scenes(random_scenes(2), 64).float()/127.5-1
    assert codec.from_tokens(codec.to_tokens(x)).shape==x.shape

def call_personalise():
    import copy,tempfile
    from miniai import personalise as p
    from miniai.clip import Tokenizer
    from miniai.data import SHAPES,random_scenes
    from miniai.latents import load_reader
    from miniai.stable import StableDiffusion
    pipe = StableDiffusion.load()
    places = [('large','white'), ('small','grey')]
    images,said = p.draw_things(p.fish, 'orange', places),p.concept_captions('<it>', places)
    assert images.shape==(2,3,64,64) and len(said)==2 and p.left_half(images).shape==images.shape
    learned,tuned = copy.deepcopy(pipe),copy.deepcopy(pipe)
    row = p.invert(learned, '<it>', images, said, like='arrow', steps=2, bs=2)
    assert row.shape==(128,) and torch.equal(p.token_table(learned)[2].weight[-1], row)
    assert len(p.with_word(pipe.tokenizer, '<it>'))==len(pipe.tokenizer)+1 and isinstance(pipe.tokenizer, Tokenizer)
    id = p.add_word(tuned, '<it>', p.random_row(pipe))
    assert [n for n,_ in p.TextualInversion(tuned, id).named_parameters()]==['vector']
    assert type(p.training_task(pipe)).__name__=='KarrasCB'
    p.check_trainable(pipe.unet.parameters())
    with pytest.raises(ValueError, match='pipe: expected float32 weights to train, got bfloat16'): p.check_trainable([torch.ones(2).bfloat16()])
    prior = p.PriorCB(p.prior_examples(pipe, ['a red star', 'a blue ring'], steps=1))
    learn = p.dreambooth(tuned, images, said, steps=1, bs=2, prior=prior, params=[tuned.unet.head.weight])
    assert learn.model.unet is tuned.unet
    examples = tuned.latents(images),tuned.tokenizer(['a <it>']*2)[:,None]
    tuned.unet.head.weight.requires_grad_(True)
    p.fine_tune(learn.model, tuned, examples, 1, 1e-4, bs=2)
    judge = p.ShapeJudge(dict(fish=p.fish, star=SHAPES['star']))
    assert judge.read(images)==[('fish','orange')]*2
    x,found = p.measure(learned, '<it>', ('fish','orange'), judge, load_reader(), random_scenes(2), n=2, steps=1)
    assert x.shape==(2,3,64,64) and set(found)=={'fidelity','shape','others'}
    with tempfile.TemporaryDirectory() as folder:
        p.save_concept(f'{folder}/it.safetensors', '<it>', row)
        assert p.load_concept(pipe, f'{folder}/it.safetensors')=='<it>'
    assert torch.equal(pipe.states('a <it>'), learned.states('a <it>'))

def call_flow():
    import json,tempfile
    from pathlib import Path
    from miniai import flow as f
    from miniai.bert import Bert,SentenceEncoder,WordPiece
    from miniai.emoji import load_emoji
    from miniai.vae import Codec
    assert f.emoji_captions('red apple', style='fluent')[0]=='red apple, '+f.STYLE_WORDS['fluent']
    emoji = load_emoji(n_drawn=60)
    split = f.split_emoji(emoji)
    assert isinstance(split, f.Split) and len(split.train)>.8*len(emoji) and len(f.COLOURS_HELD_OUT)==7
    encoder = SentenceEncoder(WordPiece(['[PAD]','[UNK]','[CLS]','[SEP]','[MASK]','red','apple']), Bert(7, 64, 16, 2, 1).eval())
    table = f.StatesTable(encoder, ['red apple', 'apple'])
    assert table(table.ids(['apple'])).shape==f.word_states(encoder, 'apple').shape==(1,16,16)
    net,codec = f.TextDiT(4, 8, 16, 2, 2, n_text=16).eval(),Codec((8,16), nz=4).eval()
    assert isinstance(net.blocks[0], f.TextDiTBlock) and f.load_text_dit().n_text==384
    pipe = f.EmojiDiffusion(encoder, net, codec, dict(net=dict(nz=4, size=8, n=16, n_blocks=2, n_heads=2, n_text=16), codec=dict(nfs=(8,16), nz=4)))
    x = pipe(['red apple', 'apple'], steps=2)
    assert x.shape==(2,3,32,32) and x.dtype==torch.uint8
    with pytest.warns(UserWarning, match='1 of 2 texts do not fit into n_ctx=16 pieces'): pipe.states(['apple', 'red '*15])
    with tempfile.TemporaryDirectory() as d:
        pipe.save(d)
        assert (f.EmojiDiffusion.load(d, encoder)('apple', steps=2).int()-pipe('apple', steps=2).int()).abs().max()<=2
        f.EmojiDiffusion(encoder, net, codec, pipe.config, n_ctx=24).save(d)
        assert f.EmojiDiffusion.load(d, encoder).cond_shape==(24,16)
        beside = Path(d)/'emoji_flow.json'
        info = json.loads(beside.read_text())
        for n_ctx in (None, 0, 'x'):
            beside.write_text(json.dumps({k: v for k,v in {**info, 'n_ctx': n_ctx}.items() if v is not None}))
            if n_ctx is None: assert f.EmojiDiffusion.load(d, encoder).cond_shape==(16,16)      # written before it was kept
            else:
                with pytest.raises((ValueError,TypeError), match='emoji_flow.safetensors: n_ctx'): f.EmojiDiffusion.load(d, encoder)

def call_emoji():
    import os,tempfile
    from miniai import emoji as e
    emoji = e.load_emoji(n_drawn=9)
    assert isinstance(emoji, e.Emoji) and set(emoji.styles)<={*e.EMOJI_STYLES,'drawn'}
    assert e.on_background(emoji.rows(range(3)).x, 0).shape==(3,3,64,64)
    with tempfile.TemporaryDirectory() as d:
        with pytest.raises(FileNotFoundError, match='npm pack emojibase-data@17.0.0'): e.build_emoji(d, d)
        path,os.environ['PATH'] = os.environ['PATH'],d
        try:
            with pytest.raises(FileNotFoundError, match='npm is not there'): e.fetch_emoji(d)
        finally: os.environ['PATH'] = path

def call_judges():
    from miniai import judges as j
    assert j.SameConv(3, 4, 3, 2)(torch.rand(2, 3, 8, 8)).shape==(2,4,4,4)
    assert j.InvertedResidual(4, 4)(torch.rand(2, 4, 8, 8)).shape==(2,4,8,8)
    net = j.EfficientNetLite(7, ((3,1,1,8,1), (3,2,6,8,1))).eval()
    assert net.features(torch.rand(2, 3, 32, 32)).shape==(2,1280)
    try: assert j.load_efficientnet()(torch.rand(1, 3, 64, 64)).shape==(1,1000)
    except FileNotFoundError as e: assert 'pip install' in str(e)
    judge,im = j.load_emoji_judge(),2*torch.rand(6, 3, 64, 64)-1
    assert isinstance(judge, j.EmojiJudge) and len(judge.styles(im))==6
    assert [o.shape for o in judge(im)]==[(6,128), (6,3)]
    f = j.judge_features(judge, im)
    same = j.same_pictures(im)
    r = j.retrieval(f, list('abcdef'), f, list('abcdef'), same)
    assert isinstance(r, j.Retrieval) and r.top()==1 and r.found==tuple('abcdef') and torch.equal(same, torch.eye(6)>0)
    v = j.pixel_vectors(im)
    c = j.copies(v, v, 3)
    assert isinstance(c, j.Copies) and c.fraction()==1 and c.nearest.tolist()==list(range(6))

def call_folder():
    import tempfile
    from pathlib import Path
    from miniai import folder as f,stable as s
    pipe = s.StableDiffusion.load()
    with tempfile.TemporaryDirectory() as d:
        f.save_pipeline(pipe, Path(d)/'mine')
        again = f.load_pipeline(Path(d)/'mine', s.StableDiffusion)
    assert torch.equal(again('a red star', steps=1), pipe('a red star', steps=1))

def call_hub():
    import tempfile
    from pathlib import Path
    from miniai import hub as h
    with tempfile.TemporaryDirectory() as d, pytest.MonkeyPatch.context() as m:
        m.delenv('HF_TOKEN', raising=False)
        assert h.hub_token(Path(d)/'.env') is None
        m.setattr('huggingface_hub.constants.HF_HUB_CACHE', d)
        m.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
        with pytest.raises(OSError, match='^name: a/b is not complete in the cache'): h.hub_folder('a/b')
        with pytest.raises(ValueError, match='^name: expected'): h.hub_folder('../b')

def call_single_file():
    import tempfile
    from pathlib import Path
    from miniai import single_file as s
    from miniai.clip import Tokenizer
    from miniai.published import CLIPText,PublishedCodec,PublishedDiffusion,PublishedUNet
    tok = Tokenizer([], 24)
    pipe = PublishedDiffusion(tok, CLIPText(len(tok), 24, 64, 1, 1), PublishedUNet((32,64), (True,False), (8,8), n_text=64, depth=1),
                              PublishedCodec((32,64), depth=1), size=16)
    with tempfile.TemporaryDirectory() as d:
        f = Path(d)/'m.safetensors'
        s.save_single_file(pipe, f)
        header = s.read_header(f)
        again = s.load_single_file(f, tokenizer=tok)
        with pytest.raises(FileNotFoundError, match='^tokenizer: there is no'): s.clip_tokenizer(Path(d)/'none')
    assert s.ldm_name('conv_in.weight', 'unet') in header and s.single_file_config(header)['unet']['sample_size']==8
    assert torch.equal(again.unet.stem.weight, pipe.unet.stem.weight)

def call_command():
    from miniai.command import OneLineParser,load_drawing,main,one_line_errors,parse_drawing
    with pytest.raises(SystemExit) as e: main(['a star', '--steps', '0'])
    assert e.value.code==2
    a,kw = parse_drawing(['a star', '--steps', '3'])
    assert kw['steps']==3 and load_drawing(a, 3)[0].size==64
    with pytest.raises(SystemExit), one_line_errors('x'): OneLineParser('x').parse_args(['--no'])

def call_captioning():
    from miniai import captioning as c
    from miniai.clip import Tokenizer,small_clip
    from miniai.data import caption,random_scenes
    torch.manual_seed(0)
    tok = Tokenizer([], 24)
    net = c.Captioner(len(tok), n=16, n_heads=2, depth=1, nfs=(4,4,8,8)).eval()
    assert c.FeatureMap((4,4,8,8))(torch.zeros(1, 3, 32, 32)).shape==(1,16,16)
    images,ids = torch.rand(2, 3, 32, 32),torch.full((2, 1), tok.start)
    with torch.no_grad(): scores = c.next_scores(net, images)
    assert c.greedy_search(scores, ids, tok.end, 4).shape[0]==2 and c.temperature_sampling(scores, ids, tok.end, 4).shape[0]==2
    with torch.no_grad(): assert torch.allclose(c.cached_scores(net, images)(ids), scores(ids), atol=1e-5)
    assert c.beam_search(scores, ids, tok.end, 4, 3)[0].shape==(2,3,5) and len(net.write(images, tok))==2
    clip = small_clip(len(tok), n=16, n_heads=2, depth=1, nfs=(4,4,8,8), n_out=8).eval()
    assert c.rerank(clip, tok, images, [['a'], ['b']])==['a','b'] and len(c.interrogate(images, net, tok, clip, 2))==2
    assert c.rerank(clip, tok, images, [['a'], ['b']], net)==['a','b'] and len(c.nearest_phrases(clip, tok, images, ['a', 'b', 'c'], 2)[1])==2
    s = random_scenes(1)[0]
    assert c.parse_caption(caption(s))==s and c.references(s)[0]==caption(s)
    assert c.caption_score([caption(s)], [s])==c.CaptionScore(1., 1.)
    assert c.bleu(['a b c d'], [['a b c d']])==1. and c.cider(['a', 'b'], [['a'], ['b']], 1)==[1., 1.]
    assert isinstance(c.load_captioner()[0], c.Captioner)

def call_editing():
    from miniai import editing as e
    from miniai.data import caption
    from miniai.karras import karras_sigmas
    from miniai.latents import load_reader
    from miniai.stable import StableDiffusion
    pipe,edits = StableDiffusion.load(),e.scene_edits(2, 1)
    assert isinstance(edits, e.SceneEdits) and isinstance(e.score_edits(load_reader(), edits.after, edits), e.EditScore)
    a,b = ([caption(s) for s in o] for o in (edits.source, edits.target))
    noise = e.invert(pipe, edits.before, a, steps=2)
    assert e.draw_from(pipe, noise, a, steps=2).shape==edits.before.shape
    mask = e.edit_mask(pipe, edits.before, a, b, n=1)
    assert e.mask_iou(mask, edits.mask).shape==(2,) and e.diff_edit(pipe, edits.before, a, b, mask, steps=2).dtype==torch.uint8
    z = pipe.latents(edits.before)
    assert torch.equal(e.inversion_path(lambda x, sigma: 0*x, z, karras_sigmas(3))[-1], z)
    found = e.imagic(pipe, edits.before[0], b[0], 1, 1, bs=2)
    assert isinstance(found, e.Imagic) and found.between(.5).shape==found.target.shape
    with e.borrow_attention(pipe.denoise.model, torch.arange(2)): pipe.denoise(z, 1., pipe.states(a))

def call_detection():
    from miniai import detection as d
    x,boxes,labels = d.draw_objects(2, 1, 32)
    y,b,there = d.layer_objects(torch.ones(1, 2, 3, 1, 1), torch.ones(1, 2, 4, 4), torch.zeros(1, 3, 4, 4))
    assert there.tolist()==[[True,False]] and y.min()==1 and b.shape==(1,2,4)
    assert torch.allclose(d.to_corners(d.to_centres(boxes)), boxes)
    assert d.box_iou(boxes, boxes).shape==d.box_giou(boxes, boxes).shape==(2,4,4)
    assert d.backbone((4,8))(torch.randn(2, 3, 8, 8)).shape==(2,8,4,4) and d.places(2, 2).shape==d.detr_positions(2, 2, 4)[:,:2].shape
    f = x.float()/127.5-1
    for net,loss,found in ((d.DenseDetector(10, (4,8,8)), d.dense_loss, d.dense_objects), (d.DETR(n=8, nfs=(4,8)), d.set_loss, d.set_objects)):
        preds = net(f)
        assert loss(preds, boxes, labels)>0 and all(isinstance(o, d.Found) for o in found(preds))
    assert isinstance(net, d.DETRBlock|d.DETR) and set(d.detr_names(net)) and d.PlacedAttention(4, 2)(torch.randn(1, 3, 4), 0.).shape==(1,3,4)
    assert d.dense_targets(d.places(4, 4), boxes, labels).shape==(2,16)
    cards,photos = torch.full((1,4,8,8), 255, dtype=torch.uint8),torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    assert d.paste_objects(cards, torch.tensor([3]), photos, 2, size=16)[2].max()==3
    assert d.nms(boxes[0], torch.rand(4), .5).ndim==1 and d.assign(torch.eye(2))==[1,0]
    assert len(d.match_objects(*(o[:,-1] for o in preds), boxes, labels))==3
    assert d.precision_area(torch.tensor([True]), 1)==1
    assert set(d.average_precision(d.load_detector().detect(x), boxes, labels))<=set(range(10))

def call_responsible():
    from miniai import responsible as r
    assert r.wilson(3, 10)[0]<.3<r.wilson(3, 10)[1] and r.bootstrap(torch.mean, x, n=9)[0]<x.mean()
    net = r.fit_flat(x*2-1, y, 10, steps=2, bs=4)
    assert isinstance(net, r.FlatDenoiser) and net(x, 1., y).shape==x.shape
    w = r.balance_weights(y%2, y>4)
    assert 0<r.effective_size(w)<=40
    m,images = r.Watermark(1),torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert (r.false_alarm(m.score(m.embed(images)))<r.false_alarm(m.score(images))).all()
    assert isinstance(r.copy_test(x.flatten(1), x.flatten(1), 1-x.flatten(1)), r.CopyTest)
    assert r.auc(y.float(), y>4)==1 and len(r.roc(y.float(), y>4))==2
    assert isinstance(r.group_rates(y>4, y>6, y%2)[0], r.GroupRates)
    assert isinstance(r.emoji_credits(), list) and r.training_energy()[0]['wh']>0
def call_app():
    import io
    import numpy as np
    from importlib.util import find_spec
    from PIL import Image
    from miniai import app as a
    from miniai.segmentation import load_segmenter
    from miniai.stable import StableDiffusion
    image,f = np.full((16,24,3), 240, np.uint8),io.BytesIO()
    image[4:12,6:14] = 30
    Image.fromarray(image).save(f, 'png')
    assert (a.read_image(f.getvalue())==image).all()
    mask = a.grow_mask(image[...,0]<99, 1)
    assert mask.sum()==100 and a.soft_edge(mask, 1).max()==255 and a.pixel_at((47, 0), (48, 32), (24, 16))==(23,0)
    pipe,segmenter = StableDiffusion.load(),load_segmenter()
    assert a.draw_region(pipe, image, mask, prompt='a star', steps=1).shape==image.shape
    users = a.Sessions(lambda: a.EditSession(pipe, segmenter))
    users['x'].open(f.getvalue())
    assert isinstance(users['x'].state, a.EditState) and a.EditState(image).edited is None
    assert a.Edited(image, mask, 'miniai').warned==() and issubclass(a.Stopped, Exception)
    if find_spec('gradio'):
        with a.PageServer(a.safe_app(a.edit_page(users))) as server: assert server.port
    with pytest.raises(SystemExit): a.app_main(['--port', 'x'])

def call_segmentation():
    from miniai import segmentation as s
    rgb,alpha = s.place_stickers(torch.full((1, 4, 64, 64), 255, dtype=torch.uint8), torch.zeros(1).long(), torch.zeros(1, 2), torch.ones(1), torch.zeros(1), 32)
    assert rgb.shape==(1,3,32,32) and alpha.min()>.4
    x,masks,labels = s.masked_objects(2, 1, size=32)
    assert masks.shape==(2,7,32,32) and labels.shape==(2,3)
    f,truth,_ = s.pick_masks(x, masks)
    assert s.ChannelNorm(4)(torch.randn(1, 4, 2, 2)).shape==(1,4,2,2) and len(s.FeaturePyramid(8, (4,8,8))(f))==3
    tokens,dense = s.PromptEncoder(16)(torch.rand(2, 1, 2), torch.ones(2, 1).long())
    assert tokens.shape==(2,2,16) and s.NarrowAttention(16, 4)(tokens, tokens, tokens).shape==(2,2,16)
    assert s.TwoWayBlock(16, 4, 8, True)(tokens, tokens, tokens, 0.)[0].shape==(2,2,16)
    assert s.MaskDecoder(16)(torch.randn(1, 16, 4, 4), torch.zeros(16, 16), tokens)[0].shape==(2,3,16,16)
    net = s.PromptSegmenter(16, (4,8,8), size=32)
    preds = s.ClickTraining(net)(f, truth)
    assert s.mask_loss(preds, truth)>0 and s.pair_ious(preds[0]>0, truth[:,:,0].flatten(0, 1)).shape==(4,3)
    m = masks[:,0]
    assert s.random_click(m).shape==s.middle_click(m).shape==s.next_click(m, m)[0].shape==(2,2) and s.at_click(m, s.random_click(m)).shape==(2,) and s.masks_to_boxes(m).shape==(2,4)
    seg = s.load_segmenter().set_image(x[0].permute(1, 2, 0).numpy())
    assert isinstance(seg, s.Segmenter) and seg.predict([[16,16]], [1])[0].shape==(3,32,32) and s.automatic_masks(seg, 2)[0].shape[1:]==(32,32)
    assert s.RelativeAttention(8, 2, 3)(torch.randn(1, 3, 3, 8)).shape==s.WindowBlock(8, 2, 8, 3, 2)(torch.randn(1, 3, 3, 8)).shape
    eye = s.SAMEncoder(32, 8, 8, 1, 2, 8, 2, (), 16)
    net = s.PromptSegmenter(16, n_ff=8, size=32, local=False, encoder=eye, mask_nf=4)
    assert net(f[:1], torch.rand(1, 1, 2), torch.ones(1, 1).long())[0].shape==(1,3,16,16)
    assert 'encoder.stem' in s.sam_names(net) and s.sam_weights({'a': 1, 'b.bias': 2})=={'a.weight': 1, 'b.bias': 2}
    with pytest.raises(FileNotFoundError): s.load_sam('nowhere')
def call_video():
    from miniai import video as v
    things = v.random_moving(3, 1)
    assert isinstance(things[0], v.MovingThing) and things[0].motion in v.MOTIONS and things[0].size in v.RADII
    centre,angle = v.motion_paths(things, torch.Generator().manual_seed(0), 4)
    assert centre.shape==(3,4,2) and angle.shape==(3,4) and v.moving_masks(things, size=8).shape==(3,8,8,8)
    x = v.draw_moving(things, n_frames=4).float()/127.5-1
    assert v.jitter(v.centre_of_mass(x)).shape==(3,) and set(v.read_motions(x))<={*v.MOTIONS,''}
    words = v.word_vectors([v.moving_caption(o) for o in things])
    assert words.shape==(3,len(v.VOCABULARY)) and words.sum()==12
    assert v.animation(x, zoom=1)[:4]==b'\x89PNG'
    image = v.WordUNet((8,), n_emb=16)
    net = v.inflate(image).eval()
    assert isinstance(net, v.VideoUNet) and isinstance(net.mid[0], v.VideoBlock)
    h = torch.randn(2, 3, 8, 2, 2)
    assert torch.equal(v.TemporalConv(8)(h), h) and torch.equal(v.TemporalAttention(8)(h), h)
    assert torch.equal(v.FramePlaces(8, 6)(h, torch.randn(2, 3, 6)), h) and len(v.MOVING_SHAPES)==6
    assert v.frame_levels(torch.ones(2), 3, 1)[:,0].tolist()==[torch.tensor(v.KNOWN).item()]*2
    learn = type('learn', (), dict(batch=(x, words), training=True))
    v.VideoCB(.5).before_batch(learn)
    x_in,c,clean,weight = learn.batch
    assert v.video_loss(net(x_in, c, words), clean, weight)>0
    toy = v.VideoDenoiser(net, .5)
    assert v.GivenFrames(toy, x[:,:1])(x, 1., words).shape==x.shape
    assert v.generate_video(toy, ['a red star'], x[:1,:1], steps=1, n_frames=4).shape==(1,4,3,24,24)
    assert isinstance(v.load_video().model, v.VideoUNet) and isinstance(v.load_thing_reader(), v.ThingReader)
    assert len(v.load_thing_reader().read(x))==3

def call_core():
    from miniai.checks import core as c
    c.same([x[0,0,0,0], 1], (x[0,0,0,0].item(), 1.))
    with pytest.raises(AssertionError, match='shape'): c.same(x, x[:1])
    assert c.describe(3)=='3' and c.difference([1.], [2.]) and len(c.dims(2))==2
    check = c.Checker(double=c.Exercise(c.compare(lambda a: 2*a, lambda: (torch.randn(3),)), 'add it to itself'))
    def double(a): return a+a
    def wrong(a): return a*a
    wrong.__name__ = 'double'
    def stub(a): ...
    assert c.is_stub(stub) and not c.is_stub(double)
    c.test_exercise(check, double, wrong)

def call_serving():
    import asyncio,json,tempfile
    from pathlib import Path
    from miniai import serving as s
    from miniai.ddpm import save_weights
    from miniai.learner import Learner,MetricsCB,TrainCB
    tmp = Path(tempfile.mkdtemp())
    assert s.energy_wh(360, 10)==1 and (s.git_state(tmp) is None)
    learn = Learner(linear(), dls(), nn.functional.cross_entropy, .1, [TrainCB(), MetricsCB(), s.RunCardCB(tmp/'card.json')])
    learn.fit(1)
    assert json.loads((tmp/'card.json').read_text())['state']=='finished'
    assert s.TensorBoardCB(tmp/'e').state_dict()==dict(step=0, n=0) and s.TrackioCB('p').config=={}
    save_weights(linear(), tmp/'net.safetensors', data='drawn shapes')
    source, = s.data_sources(dict(data='drawn shapes'))
    assert isinstance(source, s.Source) and source is s.DATA_SOURCES['drawn']
    assert '# net' in s.model_card(tmp/'net.safetensors') and 'Data of net' in s.data_sheet(tmp/'net.safetensors')
    r = s.Registry(tmp/'r')
    r.promote(r.add(tmp/'net.safetensors'))
    assert r.history()==r.versions()==[1] and r.path().exists()
    assert s.take_batch([1, 2, 1], 2)==([1, 1], [2])
    drawer,metrics = s.Drawer(),s.Metrics()
    assert drawer.check('a star') is None and drawer.check('star '*40)
    line = s.Batcher(drawer, metrics=metrics)
    assert line.submit(s.Ask('a large red star', 3, 1)).result(60).shape==(3,64,64) and 'batch_size_count 1' in metrics.text()
    async def wait(): return await s.wait_for_image(line, s.Ask('a star'), SimpleNamespace(receive=asyncio.Event().wait), 60)
    assert asyncio.run(wait())[0]==200
    with s.running(s.make_app(line, journal=s.Journal(tmp/'j'))) as url:
        answers = s.load_test(url, 50, 3)
        assert isinstance(answers[0], s.Answered) and s.load_row(answers, 50)['answered']==3
    with pytest.raises(s.QueueFull): line.submit(s.Ask('a'))
    assert isinstance(s.make_app(line), s.BodyLimit)
    assert s.simulate_queue([0.], lambda n: n)==[1] and len(s.random_arrivals(1, 2))==2
    seen = s.prompt_features('a red star')
    assert seen['colour']=='red' and s.psi({'a': 1}, {'a': 1})==0 and s.chi_square({'a': 1}, {'a': 1})==(0, 1)
    from miniai.data import random_scenes,caption
    scene = random_scenes(1)[0]
    assert s.verdict(caption(scene), scene)=='right' and s.DriftMonitor([seen], 1).add(seen)=={}
    with pytest.raises(SystemExit): s.serve_main(['--no-such-option'])

calls = {'checks.core': call_core, **{m: globals()[f'call_{m}'] for m in order if m and '.' not in m}}

def names(code):
    "All names and constants in a function's code, in what is defined within it too."
    consts = code.co_consts
    return {*code.co_names, *code.co_varnames, *(n for c in consts if isinstance(c, tuple) for n in c)}.union(
        *(names(c) for c in consts if hasattr(c, 'co_names')))

def reads_data(module): return bool(names(calls[module].__code__)&{'get_data','get_dataset','load_emoji'})

@pytest.mark.parametrize('module', [pytest.param(m, marks=[pytest.mark.data]*reads_data(m)) for m in sorted(calls)])
def test_calls(module):
    torch.manual_seed(0)
    calls[module]()

@pytest.mark.parametrize('module', sorted(calls))
def test_no_export_is_forgotten(module):
    "Every exported name occurs in its module's call."
    found = names(calls[module].__code__)
    assert not [o for o in exports(module) if o not in found]

@pytest.mark.parametrize('module', sorted(m for m in order if m.startswith('checks.') and m not in ('checks.core','checks.progress')))
def test_checkers_refuse_the_stub(module, capsys):
    check = importlib.import_module(f'miniai.{module}').check
    for name in check.exercises:
        def stub(*args): ...
        stub.__name__ = name
        assert check(stub) is None and 'not written yet' in capsys.readouterr().out
        def raises(*args, **kwargs): raise KeyError('oops')
        raises.__name__ = name
        assert not check.passes(raises)
