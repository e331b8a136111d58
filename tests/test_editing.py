"Editing with arguments that make no sense, with pipelines of other kinds, and what must not change on the way."
import copy,importlib.util,json
from pathlib import Path
import pytest,torch
from torch import nn
from miniai import editing as e
from miniai.attention import SpatialTransformer
from miniai.karras import KarrasDenoiser,karras_sigmas

class Net(nn.Module):
    "A small net that looks at words, in the place of a UNet."
    def __init__(self):
        super().__init__()
        self.into,self.look,self.out = nn.Conv2d(4, 8, 3, padding=1),SpatialTransformer(8, 2, 6, None),nn.Conv2d(8, 4, 3, padding=1)
        nn.init.normal_(self.look.back.weight)
    def forward(self, x, c, cond): return self.out(self.look(self.into(x)+c[:,None,None,None], cond))

class Pipe:
    "All that a pipeline must have to be edited with, and nothing else: 32 pixels, latents of 4x8x8, other levels."
    size,shape,cond_shape = 32,(4,8,8),(3,6)
    def levels(self, steps): return karras_sigmas(steps, .03, 14.6)
    def __init__(self):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = Net().eval().requires_grad_(False)
        self.denoise = KarrasDenoiser(self.net, 1.)
    def states(self, prompts):
        texts = [prompts] if isinstance(prompts, str) else prompts
        return torch.stack([torch.randn(3, 6, generator=torch.Generator().manual_seed(sum(map(ord, o)))) for o in texts])
    def latents(self, x):
        small = nn.functional.avg_pool2d(x.float()/127.5-1, 4)
        return torch.cat([small, small.mean(1, keepdim=True)], 1)
    def pictures(self, z): return ((nn.functional.interpolate(z[:,:3], scale_factor=4.)+1)*127.5).round().clamp(0, 255).byte()

@pytest.fixture(scope='module')
def pipe(): return Pipe()

@pytest.fixture
def x(): return torch.randint(256, (3,3,32,32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))

def test_a_pipeline_of_another_kind(pipe, x):
    noise = e.invert(pipe, x, 'a', steps=5)
    assert noise.shape==(3,4,8,8) and e.draw_from(pipe, noise, 'a', steps=5).shape==x.shape
    assert e.edit_mask(pipe, x, 'a', 'b', n=2).shape==(3,32,32) and e.edit_mask(pipe, x, 'a', 'b', n=2, latent=True).shape==(3,8,8)
    assert e.diff_edit(pipe, x, 'a', ['b', 'c', 'd'], steps=3, n=2).shape==x.shape

def test_levels_are_those_of_the_pipeline(pipe, x):
    seen = []
    spy = copy.copy(pipe)
    spy.denoise = lambda x, sigma, cond: seen.append(float(sigma)) or pipe.denoise(x, sigma, cond)
    e.invert(spy, x, 'a', steps=4)
    assert max(seen)<14.6 and min(seen)==pytest.approx(.03)

def test_nothing_is_changed_in_place(pipe, x):
    before,weights,state = x.clone(),copy.deepcopy(pipe.net.state_dict()),torch.get_rng_state()
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[8:20,8:20] = True
    kept = mask.clone()
    e.invert(pipe, x, steps=2)
    out = e.diff_edit(pipe, x, 'a', 'b', mask, steps=3, grow=2)
    e.imagic(pipe, x[0], 'b', 2, 2, bs=2)
    assert torch.equal(x, before) and torch.equal(mask, kept) and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, weights[k]) for k,v in pipe.net.state_dict().items())
    moved = (out!=x).any(1)
    assert moved[:,6:22,6:22].any() and not moved[:,:6].any() and not moved[:,22:].any() and not moved[...,:6].any() and not moved[...,22:].any()

def test_images_do_not_depend_on_their_neighbours(pipe, x):
    all_of = e.diff_edit(pipe, x, 'a', ['b', 'c', 'd'], steps=4, n=3)
    for i,t in enumerate('bcd'): assert (e.diff_edit(pipe, x[i], 'a', t, steps=4, n=3)[0].int()-all_of[i].int()).abs().max()<=1

def test_the_same_seed_gives_the_same_mask(pipe, x):
    assert torch.equal(e.edit_mask(pipe, x, 'a', 'b', n=2, seed=4), e.edit_mask(pipe, x, 'a', 'b', n=2, seed=4))

def test_imagic_learns_and_tunes_a_copy(pipe, x):
    found = e.imagic(pipe, x[0], 'b', 30, 30, lr_net=1e-2, bs=4)
    n = 8
    assert len(found.losses)==60 and sum(found.losses[-n:])<.8*sum(found.losses[:n])
    assert found.pipe.net is found.pipe.denoise.model and found.pipe.net is not pipe.net and pipe.denoise.model is pipe.net
    assert torch.equal(found.between(0), found.image) and torch.equal(found.between(1), found.target)
    with pytest.raises(ValueError, match='weight: expected'): found.between(float('nan'))

bad = [(dict(x=None), TypeError, 'x: expected images as a tensor of uint8, got None'), (dict(x=torch.zeros(3, 32, 32)), TypeError, 'x: .*float32'),
       (dict(x=torch.zeros(3, 3, 16, 16, dtype=torch.uint8)), ValueError, r'x: expected images \(3, 32, 32\)'),
       (dict(x=torch.zeros(0, 3, 32, 32, dtype=torch.uint8)), ValueError, 'x: expected'), (dict(target=7), TypeError, 'target: expected a str'),
       (dict(source=['a', 'b']), ValueError, 'source: expected one, or 3, one for each image, got 2'), (dict(source=[]), ValueError, 'source: .*got 0'),
       (dict(target=[1, 2, 3]), TypeError, 'target'), (dict(target=torch.zeros(3, 2, 6)), ValueError, 'target: expected a text, or states'),
       (dict(target=torch.full((1, 3, 6), float('nan'))), ValueError, 'target: expected finite'), (dict(strength=0), ValueError, 'strength'),
       (dict(strength=float('nan')), ValueError, 'strength'), (dict(strength='half'), ValueError, 'strength')]
only_edit = [(dict(steps=0), ValueError, 'steps'), (dict(steps=2.5), (ValueError,TypeError), 'steps'), (dict(guidance=-1), ValueError, 'guidance'),
             (dict(guidance=float('inf')), ValueError, 'guidance'), (dict(mask=torch.zeros(32, 32)), TypeError, 'mask: expected a tensor of bool'),
             (dict(mask=torch.zeros(2, 32, 32)>0), ValueError, r'mask: expected \(32, 32\)'), (dict(mask=3), TypeError, 'mask'), (dict(grow=-1), ValueError, 'grow')]
only_mask = [(dict(n=0), ValueError, 'n: '), (dict(threshold=-.1), ValueError, 'threshold'), (dict(threshold=True), ValueError, 'threshold')]

@pytest.mark.parametrize('f,kw,error,text', [(f, *o) for f in (e.edit_mask, e.diff_edit) for o in bad] + [(e.diff_edit, *o) for o in only_edit] +
                         [(e.edit_mask, *o) for o in only_mask])
def test_bad_arguments(pipe, x, f, kw, error, text):
    with pytest.raises(error, match=text): f(pipe, **(dict(x=x, source='a', target='b') | kw))

def test_further_arguments_are_for_a_mask_that_is_found(pipe, x):
    mask = torch.zeros(32, 32, dtype=torch.bool)
    for kw,text in ((dict(mask=mask, threshold=.5), 'nothing for a mask that is given, got .threshold'), (dict(treshold=.5), "got 'treshold'"), (dict(latent=True), "got 'latent'")):
        with pytest.raises(TypeError, match=f'kw: expected .*{text}'): e.diff_edit(pipe, x, 'a', 'b', **kw)
    assert e.diff_edit(pipe, x, 'a', 'b', steps=2, n=1, seed=3, threshold=.5).shape==x.shape

def test_bad_noise(pipe):
    with pytest.raises(ValueError, match='noise: expected'): e.draw_from(pipe, torch.zeros(1, 4, 8, 9))
    with pytest.raises(ValueError, match='noise: expected finite'): e.draw_from(pipe, torch.full((1, 4, 8, 8), float('inf')))

def test_attention_is_given_back_also_after_an_error(pipe):
    z,cond = torch.randn(2, 4, 8, 8),pipe.states(['a', 'b'])
    want = pipe.denoise(z, 1., cond)
    with pytest.raises(KeyError):
        with e.borrow_attention(pipe.net, torch.tensor([0, 0])): raise KeyError
    assert torch.equal(pipe.denoise(z, 1., cond), want)
    assert not any(m._forward_hooks for m in pipe.net.modules())

@pytest.mark.parametrize('layers', ('cross', 'self', 'both'))
def test_borrowed_attention(pipe, layers):
    z,cond = torch.randn(2, 4, 8, 8),pipe.states(['a', 'b'])
    want = pipe.denoise(z, 1., cond)
    with e.borrow_attention(pipe.net, torch.arange(2), layers): assert torch.allclose(pipe.denoise(z, 1., cond), want, atol=1e-5)
    with e.borrow_attention(pipe.net, torch.tensor([0, 0]), layers): got = pipe.denoise(z, 1., cond)
    assert torch.allclose(got[0], want[0], atol=1e-5) and not torch.allclose(got[1], want[1], atol=1e-5)

def test_borrowed_attention_keeps_masks(pipe):
    layer = pipe.net.look.block.cross
    x,cond,mask = torch.randn(2, 5, 8),torch.randn(2, 3, 6),torch.tensor([True, True, False]).expand(2, 1, 1, 3)
    with e.borrow_attention(layer, torch.arange(2)):
        for got in (layer(x, cond, mask), layer(x, cond=cond, mask=mask)): pass
    with torch.no_grad(): assert torch.allclose(got, layer(x, cond, mask), atol=1e-5) and not torch.allclose(got, layer(x, cond), atol=1e-4)

def test_scores_of_what_needs_no_reader():
    edits = e.scene_edits(4, 2)
    class Yes:
        def right(self, x, scenes): return torch.ones(len(x), 9, dtype=torch.bool),torch.ones(len(x), 9, dtype=torch.bool)
    for image,changed,kept in ((edits.before, 0, 1), (edits.after, 0, 1), (edits.before+128, 99, 0)):
        s = e.score_edits(Yes(), image, edits)
        assert s.right==s.whole==1 and s.kept==s.both==kept and (s.changed>=changed if changed else s.changed<.3)

def test_what_lesson_35_says_of_twenty_emoji(monkeypatch):
    folder = Path(__file__).parents[1]/'benchmarks'
    monkeypatch.syspath_prepend(str(folder))
    spec = importlib.util.spec_from_file_location('benchmark_editing', folder/'editing.py')
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert len(script.colours)==len(script.objects)==10 and all(a.split()[-1]==b.split()[-1] for a,b in script.colours)
    rows = {(o['edit by'], o['edits of']): o for o in map(json.loads, (folder/'results/editing_emoji.jsonl').read_text().splitlines())}
    assert all(o['right']<=o['among 5'] and o['right']+o['still the old']<=1 for o in rows.values()) and len(rows)==10
    for kind in ('colour','object'):
        low,high,nothing,true = (rows[k, kind] for k in ('DiffEdit, 0.65','DiffEdit, 0.9','nothing','the true emoji'))
        assert nothing['still the old']==true['right']==1 and low['right']==0 and low['iou']==high['iou']>.6
        assert low['still the old']>high['still the old']+.4
