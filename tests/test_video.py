"Clips under hostile input: wrong shapes and words, damaged files, given frames, and what must hold for any clip."
import json,shutil
import pytest,torch
from pathlib import Path
from miniai import ddpm
from miniai.video import (MOTIONS,RADII,KNOWN,GivenFrames,MovingThing,TemporalAttention,TemporalConv,VideoCB,VideoDenoiser,VideoUNet,WordUNet,animation,
                          centre_of_mass,draw_moving,frame_levels,generate_video,inflate,jitter,load_thing_reader,load_video,moving_caption,random_moving,
                          read_motions,video_loss,word_vectors)

def floats(x): return x.float()/127.5-1

@pytest.fixture
def net():
    torch.manual_seed(0)
    net = VideoUNet((8,16), n_emb=16).eval()
    with torch.no_grad():
        for p in net.parameters(): p.add_(.05*torch.randn(p.shape))
    return net.requires_grad_(False)

# ---- data

@pytest.mark.parametrize('change', [dict(size='tiny'), dict(colour=''), dict(shape='dog'), dict(motion='flies')])
def test_unknown_things_are_named(change):
    bad = MovingThing('small', 'red', 'star', 'turns')._replace(**change)
    with pytest.raises(ValueError, match=f'things: 0: {[*change][0]}: expected one of'): draw_moving([bad])

@pytest.mark.parametrize('kw', [dict(seed=-1), dict(seed=1.5), dict(n_frames=1), dict(size=0), dict(size='8')])
def test_bad_numbers_are_named(kw):
    with pytest.raises(ValueError, match=f'{[*kw][0]}: expected a whole number'): draw_moving(random_moving(1), **kw)

@pytest.mark.parametrize('n_frames', [2, 3, 8, 20])
def test_things_stay_inside(n_frames):
    things = random_moving(60, 3)
    x = draw_moving(things, 3, n_frames, 64)
    assert x.shape==(60,n_frames,3,64,64) and (x[...,0,:]==15).float().mean()>.9

def test_motions_are_read_from_any_length():
    things = random_moving(200, 5)
    for n_frames in (6, 8, 16):
        got = read_motions(floats(draw_moving(things, 5, n_frames)))
        assert sum(a==o.motion for a,o in zip(got, things))>=190

@pytest.mark.parametrize('text,word', [('a pink star', 'pink'), ('moves', 'moves'), ('star,', 'star,'), ('RED', 'RED'), ('a small red star left', 'left')])
def test_unknown_words_are_named(text, word):
    with pytest.raises(ValueError, match=f'got .*{word}'): word_vectors(['a red star', text])

def test_words_have_no_order():
    a,b = word_vectors(['a small red star moves left', 'moves left star red a small'])
    assert torch.equal(a, b) and a.sum()==4

def test_an_empty_frame_and_a_still_clip():
    black = torch.full((1, 8, 3, 24, 24), 15/127.5-1)
    assert torch.equal(centre_of_mass(black), torch.zeros(1, 8, 2)) and read_motions(black)==['']

def test_centre_of_mass_does_not_depend_on_brightness():
    x = floats(draw_moving(random_moving(8, 1), 1))
    assert (centre_of_mass(x)-centre_of_mass(x.double())).abs().max()<1e-4
    with pytest.raises(ValueError, match='three frames'): jitter(torch.zeros(2, 2))

@pytest.mark.parametrize('x', [torch.zeros(3, 8, 8), torch.zeros(1, 2, 3, 8, 8, dtype=torch.uint8), [1], torch.full((1, 2, 3, 8, 8), torch.nan),
                               torch.zeros(1, 2, 2, 8, 8), torch.zeros(1, 0, 3, 8, 8), torch.zeros(0, 2, 3, 8, 8)])
def test_animation_refuses(x):
    with pytest.raises(ValueError, match='x: expected'): animation(x)

def test_animation_holds_all_frames():
    import io
    from PIL import Image
    im = Image.open(io.BytesIO(animation(floats(draw_moving(random_moving(3), n_frames=5)), zoom=2)))
    assert im.n_frames==5 and im.size==(2*3*26,48)

# ---- layers

@pytest.mark.parametrize('make', [TemporalConv, TemporalAttention])
def test_layers_refuse_frames_that_do_not_fit(make):
    for shape in ((6,8,2,2), (2,3,4,2,2), (2,8,3,2,2)):
        with pytest.raises(ValueError, match='x: expected clips'): make(8)(torch.zeros(shape))

def test_clips_do_not_meet(net):
    g = torch.Generator().manual_seed(1)
    x,c,w = torch.randn(3, 4, 3, 16, 16, generator=g),torch.randn(3, generator=g),word_vectors(['a red star', 'turns', ''])
    y = x.clone()
    y[1] += 1
    a,b = net(x, c, w),net(y, c, w)
    assert torch.equal(a[[0,2]], b[[0,2]]) and not torch.allclose(a[1], b[1])
    torch.testing.assert_close(a[2:], net(x[2:], c[2:], w[2:]), rtol=1e-4, atol=1e-5)

@pytest.mark.parametrize('kw', [{}, dict(n_emb=32), dict(n_groups=4), dict(patch=2), dict(n_words=5)])
def test_inflated_it_is_the_image_model(kw):
    torch.manual_seed(0)
    image = WordUNet((8,16), **{'n_emb': 16, **kw}).eval()
    with torch.no_grad():
        for p in image.parameters(): p.add_(.05*torch.randn(p.shape))
    video = inflate(image).eval()
    x,c,w = torch.randn(2, 3, 3, 16, 16),torch.randn(2),torch.rand(2, kw.get('n_words', 24))
    with torch.no_grad(): want = image(x.flatten(0, 1), c.repeat_interleave(3), w.repeat_interleave(3, 0))
    with torch.no_grad(): assert torch.equal(video(x, c, w).flatten(0, 1), want)

def test_inflate_refuses_other_nets(net):
    for bad in (torch.nn.Linear(2, 2), WordUNet((8,), n_emb=16, depth=2), net):
        with pytest.raises(ValueError, match='image: expected a WordUNet'): inflate(bad)

def test_channels_must_fit_the_norms():
    with pytest.raises(ValueError, match=r'^image: nfs: expected multiples of 8, got \(12, 12\)'): inflate(WordUNet((12,12), n_groups=4))
    for net in (WordUNet, VideoUNet):
        with pytest.raises(ValueError, match=r'^nfs: expected multiples of 8, got \(8, 12\)'): net((8,12))

def test_net_refuses(net):
    x,c = torch.zeros(2, 3, 3, 16, 16),torch.zeros(2)
    for bad in (torch.zeros(3), torch.zeros(2, 2), torch.zeros(2, 3, 1)):
        with pytest.raises(ValueError, match='c: expected one level per clip'): net(x, bad)
    with pytest.raises(ValueError, match='cond: expected one row of words'): net(x, c, torch.zeros(1, 24))
    with pytest.raises(ValueError): net(x[...,:5], c)

# ---- noise and given frames

def test_frame_levels():
    s = frame_levels(torch.tensor([3., 5.]), 4, torch.tensor([0, 2]))
    assert torch.equal(s, torch.tensor([[3.]*4, [KNOWN,KNOWN,5,5]]))

def test_loss_ignores_given_frames():
    torch.manual_seed(0)
    learn = type('learn', (), dict(batch=(torch.randn(64, 5, 3, 8, 8),)))
    VideoCB(.5, p=1., most=3).before_batch(learn)
    x,c,clean,weight = learn.batch
    n = (weight.flatten(1)==0).sum(1)
    assert set(n.tolist())=={1,2,3} and all((weight[i,:k]==0).all() and (weight[i,k:]>0).all() for i,k in enumerate(n))
    wrong = clean + 100*(weight==0)
    assert video_loss(wrong, clean, weight)==0

@pytest.mark.parametrize('kw,name', [(dict(sigma_data=0), 'sigma_data'), (dict(mean=float('nan')), 'mean'), (dict(std=-1), 'std'), (dict(p=1.1), 'p'), (dict(most=0), 'most')])
def test_callback_refuses(kw, name):
    with pytest.raises(ValueError, match=f'^{name}: expected'): VideoCB(**{'sigma_data': .5, **kw})

def test_given_frames_come_back_to_the_bit(net):
    x = floats(draw_moving(random_moving(3, 2), 2, 4, 16))
    y = generate_video(VideoDenoiser(net, .5), ['a red star', 'turns', ''], x[:,:2], steps=3, n_frames=4, size=16, bs=2)
    assert torch.equal(y[:,:2], x[:,:2]) and y.shape==x.shape

def test_given_frames_in_bytes_are_refused(net):
    given = torch.zeros(1, 1, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match='given: expected floats in .-1,1., got torch.uint8'): generate_video(VideoDenoiser(net, .5), ['a star'], given, steps=1, size=8)

def test_a_thing_of_which_nothing_is_said():
    with pytest.raises(ValueError, match='thing: expected one word'): moving_caption(MovingThing('', '', '', ''))

def test_a_clip_does_not_depend_on_its_company(net):
    f,texts = VideoDenoiser(net, .5),['a red star', 'a ring turns', 'bounces']
    kw = dict(steps=3, n_frames=3, size=16)
    whole = generate_video(f, texts, seed=4, **kw)
    torch.testing.assert_close(whole[1:2], generate_video(f, texts[1:2], seed=5, **kw), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(whole, generate_video(f, texts, seed=4, bs=1, **kw), rtol=1e-3, atol=1e-4)
    assert generate_video(f, [], **kw).shape==(0,3,3,16,16)

def test_given_frames_that_do_not_fit(net):
    f,x = VideoDenoiser(net, .5),torch.zeros(2, 3, 3, 16, 16)
    kw = dict(steps=2, n_frames=3, size=16)
    with pytest.raises(ValueError, match='given: expected frames for 1 captions'): generate_video(f, ['turns'], x[:,:1], **kw)
    for given in (None, x[:1,:1]):
        with pytest.raises(ValueError, match='n_frames: expected a whole number, 2 or more, got 1'): generate_video(f, ['turns'], given, steps=2, n_frames=1, size=16)
    for given in (x, x[:,:0], x[:,:1,:,:8]):
        with pytest.raises(ValueError, match='given: expected fewer frames'): generate_video(f, ['turns']*2, given, **kw)
    with pytest.raises(ValueError, match='given'): GivenFrames(f, x*torch.nan)

# ---- files

@pytest.mark.parametrize('name,load', [('video', load_video), ('video_reader', load_thing_reader)])
def test_damaged_and_foreign_weights(name, load, tmp_path):
    folder = Path(ddpm._folder)
    for ending in ('safetensors', 'json'): shutil.copy(folder/f'{name}.{ending}', tmp_path)
    file = tmp_path/f'{name}.safetensors'
    load(file)
    raw = file.read_bytes()
    for bad in (raw[:-1], raw[:7], b'', raw[:100]+b'x'+raw[101:]):
        file.write_bytes(bad)
        with pytest.raises(ValueError): load(file)
    other = 'video_reader' if name=='video' else 'video'
    with pytest.raises(ValueError, match='does not fit'): load(other)

def test_noise_of_the_data_must_be_written_down(tmp_path):
    folder = Path(ddpm._folder)
    for ending in ('safetensors', 'json'): shutil.copy(folder/f'video.{ending}', tmp_path)
    info = json.loads((tmp_path/'video.json').read_text())
    info.pop('sigma_data')
    (tmp_path/'video.json').write_text(json.dumps(info))
    with pytest.raises(ValueError, match='sigma_data'): load_video(tmp_path/'video.safetensors')

def test_captions():
    assert moving_caption(MovingThing('', 'orange', 'star', ''))=='an orange star'
    assert len(MOTIONS)==6 and set(RADII)=={'small','large'} and random_moving(0)==[]
    assert random_moving(4, 1)==random_moving(4, 1)!=random_moving(4, 2)
