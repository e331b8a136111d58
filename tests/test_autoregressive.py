"Pixels and codes under hostile input: damaged and foreign files, wrong arguments, and what must not depend on the batch."
import json
import pytest,torch
from miniai.autoregressive import (ImageGPT,KVCache,Palette,VQCodec,VectorQuantizer,generate_tokens,load_pixels,load_vq_codec,next_token_loss,
                                   token_bits,token_probs)
from miniai.ddpm import save_weights

@pytest.fixture
def net():
    torch.manual_seed(0)
    net = ImageGPT(n_tokens=5, length=9, n_cond=4, n=16, depth=2).eval().requires_grad_(False)
    for p in net.parameters(): torch.nn.init.normal_(p, std=.3)
    return net

small = dict(n_tokens=3, length=4, n_cond=2, n=8, depth=1)

@pytest.fixture
def stored(tmp_path):
    torch.manual_seed(0)
    save_weights(ImageGPT(**small), tmp_path/'a.safetensors', bits=8, config=small, levels=[-1., 0., 1.])
    return tmp_path/'a.safetensors'

def rewrite(path, **changes):
    beside = path.with_suffix('.json')
    info = json.loads(beside.read_text()) | changes
    beside.write_text(json.dumps({k: v for k,v in info.items() if v is not None}))

def test_a_stored_net_comes_back(stored):
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    net,palette = load_pixels(stored)
    assert torch.equal(torch.rand(3), want)                       # torch's random state is as it was
    assert palette.levels.tolist()==[[-1.], [0.], [1.]] and not net.training and not any(p.requires_grad for p in net.parameters())
    assert generate_tokens(net, 3).shape==(3, 4)

@pytest.mark.parametrize('changes,said', [(dict(config=None), 'config'), (dict(levels=None), 'levels'), (dict(levels=[0., 1.]), 'expected 3 levels'),
                                          (dict(config=dict(k=3)), 'does not fit'), (dict(config=small | dict(n=16)), 'does not fit')])
def test_a_json_that_does_not_fit_is_one_clear_error(stored, changes, said):
    rewrite(stored, **changes)
    with pytest.raises(ValueError, match=said): load_pixels(stored)

@pytest.mark.parametrize('keep', [0, 10, 200])
def test_a_truncated_file_is_one_clear_error(stored, keep):
    stored.write_bytes(stored.read_bytes()[:keep])
    with pytest.raises(ValueError): load_pixels(stored)

def test_missing_and_foreign_files(tmp_path):
    with pytest.raises((ValueError, FileNotFoundError)): load_pixels(tmp_path/'none.safetensors')
    with pytest.raises(ValueError, match='does not fit'): load_vq_codec('fashion_pixels')
    with pytest.raises(ValueError, match='does not fit'): load_pixels('scene_codes')

@pytest.mark.parametrize('kw,said', [(dict(n=0), 'n: '), (dict(n=2.5), 'n: '), (dict(n=2, seed=-1), 'seed'), (dict(n=2, bs=0), 'bs'), (dict(n=2, top_p=1.5), 'top_p'),
    (dict(n=2, top_k=1.5), 'top_k'), (dict(n=2, temperature=float('nan')), 'temperature'), (dict(n=2, scale=float('inf')), 'scale'), (dict(n=2, cond=torch.tensor([0, 9])), 'cond'),
    (dict(n=2, prefix=torch.zeros(2, 10).long()), 'at most 9'), (dict(n=2, prefix=torch.zeros(2, 3)), 'int64'), (dict(n=2, prefix=torch.full((2, 3), 7)), '0 to 4')])
def test_bad_arguments_are_named(net, kw, said):
    with pytest.raises(ValueError, match=said): generate_tokens(net, **kw)

def test_an_image_does_not_depend_on_its_neighbours(net):
    y = torch.tensor([0, 1, 2, 0, 1])
    whole = generate_tokens(net, cond=y, scale=2., top_k=3)
    for bs in (1, 2, 3): assert torch.equal(generate_tokens(net, cond=y, scale=2., top_k=3, bs=bs), whole)
    assert torch.equal(generate_tokens(net, cond=y[:2], scale=2., top_k=3), whole[:2])
    assert not torch.equal(generate_tokens(net, cond=y, scale=2., top_k=3, seed=1), whole)

def test_top_k_never_draws_what_it_left_out(net):
    t = generate_tokens(net, 200, top_k=1)
    assert (t==t[0]).all() and torch.equal(t, generate_tokens(net, 200, temperature=0.))

def test_a_given_beginning_stays_and_a_whole_one_is_returned(net):
    t = torch.randint(5, (4, 9))
    assert torch.equal(generate_tokens(net, prefix=t), t)

def test_the_cache_is_refused_when_full(net):
    cache = KVCache(net, 2)
    net.step(torch.zeros(2, 8).long(), cache)
    assert cache.length==9
    with pytest.raises(ValueError, match='1 to 0 more'): net.step(torch.zeros(2, 1).long(), cache)

@pytest.mark.parametrize('p', [dict(temperature=1e-3), dict(temperature=1e3), dict(top_p=1e-9), dict(top_k=99)])
def test_extreme_knobs_give_distributions(p):
    q = token_probs(50*torch.randn(20, 7), **p)
    assert q.isfinite().all() and (q>=0).all() and torch.allclose(q.sum(-1), torch.ones(20).double())

def test_probabilities_of_all_images_sum_to_one(net):
    torch.manual_seed(1)
    tiny = ImageGPT(n_tokens=2, length=6, n_cond=3, n=8, depth=1).eval()
    every = torch.cartesian_prod(*[torch.arange(2)]*6)
    for y in range(3): assert abs((2.**-token_bits(tiny, every, torch.full((64,), y), bs=7).sum(1).double()).sum().item()-1)<1e-5

def test_no_images_cost_nothing():
    assert Palette(torch.tensor([[-1.], [1.]])).to_tokens(torch.zeros(0, 1, 4, 4)).shape==(0,16)
    assert VQCodec(k=8, nz=4, nfs=(8,8)).to_tokens(torch.zeros(0, 3, 16, 16)).shape==(0,4)
    n = ImageGPT(n_tokens=2, length=6, n_cond=3, n=8, depth=1).eval()
    for cond in (None, torch.zeros(0).long()): assert token_bits(n, torch.zeros(0, 6).long(), cond).shape==(0,6)
    assert generate_tokens(n, cond=torch.zeros(0).long()).shape==(0,6)
    with pytest.raises(ValueError, match='tokens: expected int64'): token_bits(n, torch.zeros(0, 6))
    with pytest.raises(ValueError, match='bs: expected a whole number'): token_bits(n, torch.zeros(1, 6).long(), bs=0)

def test_palettes_refuse_what_they_do_not_know():
    p = Palette(torch.tensor([[-1.], [1.]]))
    for x in (torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4)):
        with pytest.raises(ValueError, match='x: expected images'): p.to_tokens(x)
    with pytest.raises(ValueError, match='nan|finite'): p.to_tokens(torch.full((1, 1, 2, 2), float('nan')))
    with pytest.raises(ValueError, match='divisor of 6'): p.from_tokens(torch.zeros(1, 6).long(), 4)
    with pytest.raises(ValueError, match='square'): p.from_tokens(torch.zeros(1, 6).long())

def test_a_quantizer_moves_only_unused_codes():
    torch.manual_seed(0)
    vq = VectorQuantizer(4, 2)
    vq.codes.data = torch.tensor([[0., 0.], [9., 9.], [-9., 9.], [1., 0.]])
    z = torch.tensor([[.1, 0.], [.9, 0.]]).T[None,:,None]
    vq(z)
    before = vq.codes.detach().clone()
    assert vq.restart(z)==2 and torch.equal(vq.codes[[0,3]], before[[0,3]]) and vq.codes[1:3].abs().max()<1
    vq.eval()
    vq(z)
    assert vq.used.sum()==0                                       # nothing is counted outside of training

def test_the_loss_and_the_codec_check_shapes():
    with pytest.raises(ValueError, match='logits: expected'): next_token_loss(torch.zeros(2, 3, 4), torch.zeros(2, 4).long())
    with pytest.raises(ValueError): VQCodec(k=4, nz=2, nfs=(8,8)).to_tokens(torch.zeros(1, 3, 12, 16))
