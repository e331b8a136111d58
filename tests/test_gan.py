"Lesson 36: wrong arguments, damaged weights, and what a game of two nets must keep."
import json,math
import pytest,torch
from torch import nn
from miniai.ddpm import save_weights
from miniai.gan import (GAN,Discriminator,GANLoss,ModulatedConv,StyleGenerator,bce_d,clip_weights,count_modes,gaussian_ring,load_gan,
                        non_saturating,r1_r2,relativistic,truncate,wasserstein_1d)

def nets(): return nn.Linear(3, 2),nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))
def small(): return StyleGenerator(8, 6, (4,4), 3)

@pytest.fixture
def stored(tmp_path):
    torch.manual_seed(0)
    save_weights(small(), tmp_path/'g.safetensors', config=dict(nz=8, nw=6, nfs=[4,4], n_classes=3))
    return tmp_path/'g.safetensors'

def test_stored_weights_come_back(stored):
    g = load_gan(stored)
    assert not g.training and not any(p.requires_grad for p in g.parameters())
    assert g.draw(torch.tensor([0,2])).shape==(2,1,28,28)

def test_damaged_files_are_refused(stored):
    raw = stored.read_bytes()
    for n in (0, 7, 40, len(raw)//2, len(raw)-1):
        stored.write_bytes(raw[:n])
        with pytest.raises(ValueError, match='damaged') as e: load_gan(stored)
        assert '\n' not in str(e.value)

@pytest.mark.parametrize('config', [None, 3, [], dict(nz=8, depth=2), dict(nz=8, nw=6, nfs=3, n_classes=3)])
def test_wrong_configs_are_refused(stored, config):
    beside = stored.with_suffix('.json')
    info = json.loads(beside.read_text())
    beside.write_text(json.dumps(info | dict(config=config)))
    with pytest.raises(ValueError, match="path: expected the model's arguments|does not fit"): load_gan(stored)

def test_other_sizes_are_refused(stored):
    beside = stored.with_suffix('.json')
    info = json.loads(beside.read_text())
    beside.write_text(json.dumps(info | dict(config=dict(nz=8, nw=6, nfs=[4,8], n_classes=3))))
    with pytest.raises(ValueError, match='does not fit the model'): load_gan(stored)

def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='path: there is no'): load_gan(tmp_path/'x.safetensors')

@pytest.mark.parametrize('call,text', [
    (lambda: gaussian_ring(0), 'n: expected a whole number'), (lambda: gaussian_ring(4, k=0), 'k: expected a whole number'),
    (lambda: count_modes(torch.zeros(0, 2)), r'x: expected points \(n,2\), got \(0, 2\)'), (lambda: count_modes(torch.zeros(2)), 'x: expected points'),
    (lambda: wasserstein_1d(torch.zeros(2, 2), torch.zeros(2, 2)), 'b: expected numbers like a'),
    (lambda: clip_weights(nn.Linear(2, 2), -1.), 'most: expected a number above 0, got -1.0'), (lambda: clip_weights(nn.Linear(2, 2), math.nan), 'most: expected'),
    (lambda: truncate(torch.zeros(2, 3), torch.zeros(3), math.inf), 'psi: expected a finite number, got inf'),
    (lambda: GAN(*nets(), 0), 'nz: expected a whole number'), (lambda: GAN(*nets(), 3, lr=(1e-3,)), 'lr: expected two'),
    (lambda: GAN(*nets(), 3, ema=1), r'ema: expected a number in \[0,1\), got 1'), (lambda: GAN(*nets(), 3, every=0), 'every: expected a whole number'),
    (lambda: small().draw(torch.tensor([3])), 'y: expected classes'), (lambda: small().draw(torch.tensor([-1])), 'y: expected classes'),
    (lambda: small().draw(torch.zeros(2)), 'y: expected classes'), (lambda: small().draw(torch.tensor(1)), 'y: expected classes'),
    (lambda: small().mean_w(0), 'n: expected a whole number'), (lambda: small().synthesise(torch.zeros(2, 6)), r'ws: expected styles \(n,5,6\), got \(2, 6\)')])
def test_wrong_arguments_are_named(call, text):
    with pytest.raises(ValueError, match=text) as e: call()
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('loss', ['minimax', None, (1, 2), bce_d])
def test_a_loss_is_a_pair(loss):
    with pytest.raises(TypeError, match='loss: expected a GANLoss'): GAN(*nets(), 3, loss)

def test_no_images_are_no_error(): assert small().draw(torch.zeros(0, dtype=torch.int64)).shape==(0,1,28,28)

def test_same_seed_same_game():
    def play():
        torch.manual_seed(1)
        gan = GAN(*nets(), 3, relativistic, penalty=r1_r2)
        for _ in range(5): gan.step(gaussian_ring(8))
        return gan
    a,b = play(),play()
    for u,v in zip([*a.g.parameters(), *a.average.parameters()], [*b.g.parameters(), *b.average.parameters()]): assert torch.equal(u, v)

def test_a_penalty_every_other_step_counts_twice():
    "With a penalty that is linear in the weights, its gradient of one due step is that of two."
    def grads(every):
        torch.manual_seed(1)
        g,d = nets()
        nothing = GANLoss(lambda real, fake: 0*real.sum(), non_saturating.g)
        gan = GAN(g, d, 3, nothing, penalty=lambda d, real, fake: d[0].weight.sum(), every=every)
        x = gaussian_ring(4)
        gan.step_d(x, gan.fakes(4))
        return d[0].weight.grad
    assert torch.equal(grads(2), 2*grads(1))

def test_the_average_follows():
    torch.manual_seed(0)
    gan = GAN(*nets(), 3, ema=.9)
    assert not any(p.requires_grad for p in gan.average.parameters())
    for _ in range(200): gan.step(gaussian_ring(8))
    for a,b in zip(gan.average.parameters(), gan.g.parameters()): assert 0<(a-b).abs().max()<.1

def test_the_average_has_the_buffers_of_the_generator():
    torch.manual_seed(0)
    g,d = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)),nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))
    gan = GAN(g, d, 3)
    for _ in range(20): gan.step(gaussian_ring(8)+3)
    assert gan.average[1].num_batches_tracked==20
    for a,b in zip(gan.average.buffers(), g.buffers()): assert torch.equal(a, b)

def test_narrow_modes_are_found():
    "Distances of many points by a matrix product are wrong by a thousandth here, ten times the deviation."
    x = gaussian_ring(2000, std=1e-4, generator=torch.Generator().manual_seed(0))
    assert count_modes(x, std=1e-4).found==25 and count_modes(x, std=1e-4).good>.98

def test_what_d_sees_is_augmented_alike():
    seen = []
    def augment(x):
        seen.append(x.requires_grad)
        return x
    gan = GAN(*nets(), 3, augment=augment)
    gan.step(gaussian_ring(4))
    assert seen==[False, False, True]                    # real, fake, and the fakes with their graph

def test_games_with_classes_in_bfloat16():
    torch.manual_seed(0)
    gan = GAN(small(), Discriminator((4,4), 5, 3), 8, relativistic, penalty=r1_r2, every=2, bf16=True)
    y = torch.tensor([0,1,2,0])
    for _ in range(3): gan.step(torch.rand(4, 1, 28, 28)*2-1, y)
    assert all(p.isfinite().all() and p.dtype==torch.float32 for p in [*gan.g.parameters(), *gan.d.parameters()])

def test_demodulated_outputs_do_not_depend_on_the_scale_of_the_kernel():
    torch.manual_seed(0)
    m,x,w = ModulatedConv(4, 3, 6).double(),torch.randn(2, 4, 5, 5).double(),torch.randn(2, 6).double()
    a = m(x, w)
    with torch.no_grad(): m.weight.mul_(100)
    torch.testing.assert_close(m(x, w), a, rtol=1e-5, atol=1e-6)
