"The pipeline and the command under hostile input: what they must refuse, keep, follow and clean up."
import json,math,os,shutil,signal,subprocess,sys,time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
import numpy as np
import pytest,torch
from common import python
from miniai.clip import Tokenizer
from miniai.ddim import sample_ddim
from miniai.karras import karras_sigmas,sample_euler_ancestral
from miniai.folder import _leftovers
from miniai.stable import StableDiffusion,strength_sigmas

@pytest.fixture(scope='module')
def pipe(): return StableDiffusion.load()

@pytest.fixture(scope='module')
def saved(pipe, tmp_path_factory):
    path = tmp_path_factory.mktemp('pipeline')/'saved'
    pipe.save(path)
    return path

@pytest.fixture
def folder(saved, tmp_path):
    shutil.copytree(saved, tmp_path/'m')
    return tmp_path/'m'

def same_picture(a, b): return (a.float()-b.float()).abs().max()<=3

# ---- one stream of noise per picture

@pytest.mark.parametrize('sampler', [sample_euler_ancestral, partial(sample_ddim, eta=1.)])
def test_a_picture_does_not_depend_on_what_is_drawn_with_it(pipe, sampler):
    go = partial(pipe, 'a red star', steps=3, sampler=sampler, amp=False)
    many = go(n=3, seed=3)
    assert same_picture(go(seed=5), many[2:]) and same_picture(go(n=3, seed=3, bs=2), many)
    assert same_picture(go(n=3, seed=[5, 3, 4]), many[[2,0,1]])

def test_noise_of_a_sampler_is_not_the_first_noise(pipe):
    got = {}
    def spy(denoise, x, sigmas, cb=None, generator=None):
        got['x'],got['next'] = x/sigmas[0],torch.randn(x.shape, generator=generator)
        return x*0
    pipe('a red star', seed=5, steps=2, sampler=spy)
    assert torch.equal(got['x'], pipe.noise([5])) or (got['x']-pipe.noise([5])).abs().max()<1e-5
    assert torch.corrcoef(torch.stack([got['x'].flatten(), got['next'].flatten()]))[0,1].abs()<.2

# ---- arguments

@pytest.mark.parametrize('kw', [dict(seed=s) for s in (2**64, -2**63-1, 1.5, None, 'a', True, [1.5], [None], ['a'], [True],
    [2**64], {1}, np.float64(1))] + [dict(seed=2**64-1, n=2), dict(n=True), dict(n=2.), dict(steps=10**9), dict(steps='3'),
    dict(n=10**12), dict(guidance=math.nan), dict(guidance=math.inf), dict(guidance=True), dict(guidance='4'),
    dict(strength=.5), dict(negative=3), dict(negative=['', None]), dict(negative=[])])
def test_bad_arguments_name_themselves(pipe, kw):
    name = next(iter(kw)) if 'n' not in kw or len(kw)==1 else 'seed'
    with pytest.raises((ValueError,TypeError), match=rf'^{name}: expected'): pipe('a red star', **{'steps': 1, **kw})

@pytest.mark.parametrize('prompt', [None, 3, [], [None], ['a', 3], b'a star', {'a': 1}, torch.zeros(1, 5, 128),
                                    torch.full((1, 24, 128), math.nan)])
def test_bad_prompts_name_themselves(pipe, prompt):
    with pytest.raises((ValueError,TypeError), match='^prompt: expected'): pipe(prompt, steps=1)

def test_numbers_of_numpy_are_numbers(pipe):
    want = pipe('a red star', n=2, seed=3, steps=2, guidance=4., bs=1)
    got = pipe('a red star', n=np.int64(2), seed=np.uint8(3), steps=np.int32(2), guidance=np.float32(4), bs=np.int16(1))
    assert torch.equal(got, want) and torch.equal(pipe('a red star', n=2, seed=np.array([3, 4]), steps=2, bs=1), want)
    assert torch.equal(pipe('a red star', n=2, seed=[np.int64(3), torch.tensor(4)], steps=2, negative=None, bs=1), want)
    assert torch.equal(pipe('a red star', steps=2, init=want[0], strength=np.float32(.5)), pipe('a red star', steps=2, init=want[0], strength=.5))
    pipe('a star', seed=2**64-1, steps=1)
    pipe('a star', seed=-2**63, steps=1)

def test_what_is_not_finite_is_no_picture(pipe):
    with pytest.raises((ValueError,FloatingPointError), match='latents.*finite'): pipe('a red star', guidance=1e30, steps=3)
    with pytest.raises(ValueError, match='finite'): pipe.pictures(torch.full((1, *pipe.shape), math.inf))

def test_mask_that_marks_nothing_is_told(pipe):
    init = torch.zeros(3, 64, 64, dtype=torch.uint8)
    with pytest.warns(UserWarning, match='marks nothing'): x = pipe('a star', steps=1, init=init, mask=torch.zeros(64, 64, dtype=torch.bool))
    assert torch.equal(x[0], init)

# ---- strength

@pytest.mark.parametrize('steps', [1, 2, 3, 4, 5, 8, 10, 30, 200])
def test_the_run_starts_at_the_strength(steps):
    grid = karras_sigmas(steps, .02, 80.)
    for i in range(101):
        levels = strength_sigmas(grid, i/100)
        assert abs(levels[0].atan().item()*2/math.pi-i/100)<.01 and levels[-1]==0 and len(levels)<=len(grid)
        assert (levels.diff()<0).all() and set(levels[1:].tolist())<=set(grid.tolist())
    assert len({tuple(strength_sigmas(grid, i/10).tolist()) for i in range(11)})==11

def test_strengths_give_other_pictures(pipe):
    init = pipe('a blue ring', steps=4)
    xs = [pipe('a red star', steps=2, init=init, strength=s).float() for s in (0, .3, .5, .6, .8)]
    assert torch.equal(xs[0], init.float())
    far = [(x-init).abs().mean() for x in xs]
    assert far==sorted(far) and min(b-a for a,b in zip(far, far[1:]))>0

# ---- the folder

@pytest.mark.parametrize('name', ['train.py', 'sub', '.hidden', 'unet.safetensors.bak'])
def test_save_leaves_a_folder_with_anything_else_alone(pipe, folder, name):
    if name=='sub': (folder/name).mkdir()
    else: (folder/name).write_text('my work')
    before = {o.name: o.is_dir() or o.read_bytes() for o in folder.iterdir()}
    with pytest.raises(FileExistsError, match=f'holds .*{name}'): pipe.save(folder)
    assert {o.name: o.is_dir() or o.read_bytes() for o in folder.iterdir()}==before and len(list(folder.parent.iterdir()))==1

@pytest.mark.parametrize('text', ['{"model_type":"bert"}', '5', 'null', '[]', '{', '{"size": 64, "sha256": []}'])
def test_a_config_of_another_program_is_left_alone(pipe, tmp_path, text):
    d = tmp_path/'bert'
    d.mkdir()
    (d/'config.json').write_text(text)
    with pytest.raises(FileExistsError): pipe.save(d)
    with pytest.raises(ValueError, match='^path: '): StableDiffusion.load(d)
    assert (d/'config.json').read_text()==text and [o.name for o in d.iterdir()]==['config.json']

def test_links_are_followed(pipe, folder, tmp_path):
    (tmp_path/'link').symlink_to(folder, target_is_directory=True)
    (folder/'unet.safetensors').unlink()                               # so that we see that it is written again
    pipe.save(tmp_path/'link')
    assert (tmp_path/'link').is_symlink() and (folder/'unet.safetensors').is_file()
    assert sorted(o.name for o in tmp_path.iterdir())==['link', 'm']
    StableDiffusion.load(tmp_path/'link')
    (tmp_path/'dangling').symlink_to(tmp_path/'new')
    pipe.save(tmp_path/'dangling')
    assert (tmp_path/'dangling').is_symlink() and (tmp_path/'new'/'config.json').is_file()

def test_names_of_the_folder(pipe, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    pipe.save('~/mine')
    assert (tmp_path/'mine'/'config.json').is_file()
    StableDiffusion.load('~/mine')
    monkeypatch.chdir(tmp_path/'mine')
    for path in ('.', '..'):
        with pytest.raises(ValueError, match='^path: expected a folder other than'): pipe.save(path)
    (tmp_path/'file').write_text('x')
    with pytest.raises(FileExistsError, match='is a file'): pipe.save(tmp_path/'file')
    (tmp_path/'empty').mkdir()
    pipe.save(tmp_path/'empty')
    assert len(list((tmp_path/'empty').iterdir()))==5

@pytest.mark.skipif(os.name!='posix', reason='modes of POSIX')
def test_mode_follows_the_umask(pipe, tmp_path):
    old = os.umask(0o022)
    try: pipe.save(tmp_path/'m')
    finally: os.umask(old)
    assert (tmp_path/'m').stat().st_mode & 0o777==0o755
    assert all(o.stat().st_mode & 0o777==0o644 for o in (tmp_path/'m').iterdir())

def ended():
    "The number of a process that has ended."
    run = subprocess.Popen([sys.executable, '-c', ''])
    run.wait()
    return run.pid

@pytest.mark.skipif(os.name!='posix', reason='processes of POSIX')
def test_leftovers_go_and_nothing_else(pipe, folder, tmp_path):
    import miniai.folder as s
    left = [tmp_path/f'.m.{s._host}.{ended()}.0123abcd.{k}' for k in ('new','old')]
    for o in left: shutil.copytree(folder, o)
    theirs = [tmp_path/f'.m.{s._host}.{os.getppid()}.0123abcd.new', tmp_path/f'.m.elsewhere.{ended()}.0123abcd.new', tmp_path/'.m.old',
              tmp_path/f'.n.{s._host}.{ended()}.0123abcd.new']
    for o in theirs: o.mkdir()
    (left[0]/'note.txt').write_text('mine')
    assert set(_leftovers(folder))==set(left)
    pipe.save(folder)
    assert not left[1].exists() and (left[0]/'note.txt').read_text()=='mine' and all(o.is_dir() for o in theirs)

@pytest.mark.skipif(os.name!='posix', reason='processes of POSIX')
def test_killed_between_the_two_renames(pipe, folder, tmp_path):
    "The old folder can still be loaded, and the next save does not lose it before it has put a new one there."
    import miniai.folder as s
    old = tmp_path/f'.m.{s._host}.{ended()}.0123abcd.old'
    folder.rename(old)
    assert StableDiffusion.load(folder).config==pipe.config
    pipe.save(folder)
    assert [o.name for o in tmp_path.iterdir()]==['m']

@pytest.mark.skipif(os.name!='posix', reason='fork')
def test_saves_of_several_processes_and_threads(pipe, tmp_path):
    from threading import Thread
    errors = []
    def save():
        try:
            for _ in range(3): pipe.save(tmp_path/'m')
        except Exception as e: errors.append(e)
    threads = [Thread(target=save) for _ in range(3)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert not errors and [o.name for o in tmp_path.iterdir()]==['m']
    StableDiffusion.load(tmp_path/'m')

def edit(folder, name, content, config=None):
    "Replace a file and set the checksums so that they are right."
    import miniai.folder as s
    (folder/name).write_bytes(content)
    c = json.loads((folder/'config.json').read_text()) | (config or {})
    c['sha256'][name] = s._sha256(content)
    c['checksum'] = s._checksum(c)
    (folder/'config.json').write_text(json.dumps(c))

def test_made_for_another_net(pipe, folder):
    tok = pipe.tokenizer
    with pytest.raises(ValueError, match=rf'^tokenizer: expected {len(tok)} ids'):
        StableDiffusion(Tokenizer(tok.merges[:50]), pipe.text, pipe.unet, pipe.codec)
    for other in (Tokenizer(tok.merges, n_ctx=77), Tokenizer(tok.merges[:-1])):
        other.save(folder/'t.json')
        text = (folder/'t.json').read_bytes()
        (folder/'t.json').unlink()
        edit(folder, 'tokenizer.json', text)
        with pytest.raises(ValueError, match='tokenizer: expected'): StableDiffusion.load(folder)

def test_weights_of_another_kind(folder):
    from safetensors.torch import load,save
    raw = (folder/'unet.safetensors').read_bytes()
    w = load(raw)
    edit(folder, 'unet.safetensors', save({k: v.int() for k,v in w.items()}))
    with pytest.raises(ValueError, match='is torch.int32, expected torch.float32'): StableDiffusion.load(folder)
    first = next(iter(w))
    edit(folder, 'unet.safetensors', save({**w, first: w[first]*math.nan}))
    with pytest.raises(ValueError, match='expected finite numbers'): StableDiffusion.load(folder)
    import pickle
    edit(folder, 'unet.safetensors', pickle.dumps(w))
    with pytest.raises(ValueError, match='^path: .*unet.safetensors'): StableDiffusion.load(folder)

@pytest.mark.parametrize('change', [dict(size=64.), dict(size=-8), dict(size=60), dict(sha256=[]), dict(sha256={}), dict(unet=None),
    dict(unet=dict(nfs=[96])), dict(unet=dict(colours=3)), dict(text=dict(n_vocab=600, n_heads=2)), dict(checksum='0')])
def test_config_that_was_changed(folder, change):
    c = json.loads((folder/'config.json').read_text())
    (folder/'config.json').write_text(json.dumps({**c, **change}))
    with pytest.raises(ValueError): StableDiffusion.load(folder)

def test_folder_of_an_older_version(folder):
    "config.json had no checksum of its own."
    c = json.loads((folder/'config.json').read_text())
    c.pop('checksum')
    (folder/'config.json').write_text(json.dumps(c))
    StableDiffusion.load(folder)

def test_config_that_does_not_make_the_nets_is_refused_when_saving(pipe, tmp_path):
    for config in (None, {}, {**pipe.config, 'unet': dict(nfs=(8,8))}, {**pipe.config, 'unet': {**pipe.config['unet'], 'norm': torch.nn.BatchNorm2d}}):
        with pytest.raises(ValueError, match='^config: '): StableDiffusion(pipe.tokenizer, pipe.text, pipe.unet, pipe.codec, config).save(tmp_path/'m')
    assert not list(tmp_path.iterdir())

# ---- the command

command = '-c','from miniai.command import main; main()'

def run(*args, cwd, **kw): return python(*command, *map(str, args), cwd=cwd, env={'PYTHONPATH': os.environ.get('PYTHONPATH', '')}, **kw)

@pytest.mark.parametrize('args', [['--n', 10**9], ['--zoom', 10**8], ['--zoom', 1000], ['--steps', 10**9], ['--seed', 2**64], ['--seed', 'x'],
    ['--strength', .5], ['--mask', 'm.png'], ['--guidance', 'nan'], ['-o', 'x'*300+'.png'], ['-o', 'no/x.png'], ['-o', 'x.gif'], ['-o', '.png/..'],
    ['--weights', 'none'], ['--init', 'none.png'], ['--sampler', 'best'], ['--colour'], ['--n']])
def test_bad_arguments_are_told_at_once_in_one_line(args, tmp_path):
    start = time.process_time(),sum(os.times()[2:4])
    r = run('a star', *args, cwd=tmp_path)
    assert r.returncode==2 and r.stderr.count('\n')==1 and r.stderr.startswith('miniai: ') and not r.stdout, r.stderr
    assert sum(os.times()[2:4])-start[1]<.5 and not list(tmp_path.iterdir())

@pytest.mark.parametrize('args,line', [(['--steps', '4', '--guidance', '2'], '4 steps, but with the net for many (scene_unet), because of guidance'),
    (['--steps', '1', '--sampler', 'euler', '--negative', 'red'], '1 step, but with the net for many (scene_unet), because of sampler, negative'),
    (['--steps', '4', '--model', 'emoji'], '4 steps, but with the net for many (emoji_flow), as emoji have no other; 16 or more are better'),
    (['--steps', '3'], None), (['--steps', '8', '--model', 'emoji'], None), (['--steps', '4'], '4 steps, so with the weights of lesson 31 (scene_few)')])
def test_few_steps_say_which_net_draws(args, line, monkeypatch, capsys):
    from miniai import flow
    from miniai.command import load_drawing,parse_drawing
    monkeypatch.setattr(flow.EmojiDiffusion, 'load', lambda path: None)           # its text encoder may not be there
    a,kw = parse_drawing(['a star', *args])
    load_drawing(a, kw['steps'])
    assert capsys.readouterr().err==(f'miniai: {line}\n' if line else '')

def test_guidance_has_a_default_per_model(tmp_path):
    from miniai.command import parse_drawing
    def scale(*args): return parse_drawing(['a star', *map(str, args)])[1]['guidance']
    assert (scale(), scale('--model', 'emoji'), scale('--model', tmp_path), scale('--model', 'emoji', '--guidance', 1))==(4., 3., 7.5, 1.)

def test_help_needs_no_torch(tmp_path):
    code = "import sys\nfrom miniai.command import main\ntry: main()\nexcept SystemExit: print([m for m in ('torch','numpy','PIL') if m in sys.modules])"
    r = python('-c', code, '--help', cwd=tmp_path, env={'PYTHONPATH': os.environ.get('PYTHONPATH', '')})
    assert r.returncode==0 and 'usage: miniai' in r.stdout and r.stdout.rstrip().endswith('[]')

def test_weights_that_are_no_weights_are_told_in_one_line(folder, tmp_path):
    import pickle
    edit(folder, 'unet.safetensors', pickle.dumps({}))
    r = run('a star', '--weights', folder, '--quiet', cwd=tmp_path)
    assert r.returncode==2 and r.stderr.count('\n')==1 and 'unet.safetensors' in r.stderr, r.stderr

@pytest.mark.skipif(os.name!='posix', reason='signals of POSIX')
@pytest.mark.parametrize('after', [.3, 1., 6.])
def test_ctrl_c(after, tmp_path):
    code = 'from miniai.command import main; print(flush=True); main()'
    args = [sys.executable, '-c', code, 'a star', '--steps', '9000', '--quiet']
    p = subprocess.Popen(args, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    p.stdout.readline()                                 # Python has started
    time.sleep(after)
    p.send_signal(signal.SIGINT)
    assert p.communicate(timeout=60)[1]=='miniai: interrupted\n' and p.returncode==130 and not list(tmp_path.iterdir())

def test_a_drawing_imports_no_more_than_it_needs(tmp_path):
    code = "import sys,miniai.stable; print([m for m in ('matplotlib','datasets','pandas','miniai.loaders','IPython') if m in sys.modules])"
    r = python('-c', code, cwd=tmp_path, env={'PYTHONPATH': os.environ.get('PYTHONPATH', '')})
    assert r.returncode==0 and r.stdout.strip()=='[]', r.stdout+r.stderr

# ---- what goes where

def test_prompts_and_negatives_keep_their_rows(pipe):
    kw = dict(steps=2, amp=False, bs=3)
    words,without = ['a red star','a blue ring'],['a star','a ring on a white background']
    many = pipe(words, n=2, negative=without, seed=[5, 6, 7, 8], **kw)
    for i,(p,o) in enumerate(zip(words, without)): assert same_picture(pipe(p, n=2, negative=o, seed=5+2*i, **kw), many[2*i:2*i+2])
    assert not same_picture(pipe(words, n=2, seed=5, **kw), many)

def test_a_run_starts_from_the_picture_and_its_noise(pipe):
    init,got,mask = pipe('a blue ring', steps=3),{},torch.zeros(64, 64, dtype=torch.bool)
    mask[:,32:] = True
    def spy(denoise, x, sigmas, cb=None, generator=None):
        got.update(x=x, sigmas=sigmas)
        return torch.zeros_like(x)
    for kw,start in ((dict(strength=.5), 1.), (dict(), math.tan(.4*math.pi)), (dict(mask=mask, strength=.5), 1.),
                     (dict(strength=1), 80.), (dict(mask=mask), 80.)):
        pipe('a red star', seed=3, init=init, sampler=spy, amp=False, **kw)
        assert got['sigmas'][0].item()==pytest.approx(start)
        left = got['x']-start*pipe.noise([3])
        assert (left-(pipe.latents(init) if start<80 else 0)).abs().max()<1e-4*start

@pytest.mark.skipif(os.name!='posix', reason='pipes of POSIX')
def test_nobody_reads_the_output(tmp_path):
    "A pipe that is closed, and no output at all: the picture is written, and nothing is said."
    r,w = os.pipe()
    os.close(r)
    for k,out in enumerate((dict(stdout=w), dict(preexec_fn=lambda: os.close(1)))):
        p = subprocess.run([sys.executable, *command, 'a star', '--steps', '3', '-o', f'{k}.png'], cwd=tmp_path, stderr=subprocess.PIPE, text=True, **out)
        assert p.returncode==0 and not p.stderr and (tmp_path/f'{k}.png').is_file(), p.stderr
    os.close(w)

def test_pixels_and_numbers_of_the_codec():
    "0 is -1 and 255 is 1, both ways; what lies outside is cut off."
    from types import SimpleNamespace
    from miniai.stable import PipelineParts
    parts = SimpleNamespace(device='cpu', codec=SimpleNamespace(to_latents=lambda x: x, to_pictures=lambda z: z))
    x = torch.arange(256, dtype=torch.uint8)
    torch.testing.assert_close(PipelineParts.latents(parts, x), torch.linspace(-1, 1, 256))
    assert PipelineParts.pictures(parts, torch.linspace(-1, 1, 256)).equal(x)
    assert PipelineParts.pictures(parts, torch.tensor([-1.5, 1.5])).tolist()==[0, 255]

def test_a_strength_next_to_1_is_a_whole_drawing():
    levels = karras_sigmas(6, .02, 80.)
    for s in (.995, .9999, 1, 1.): assert strength_sigmas(levels, s).equal(levels)
    start = (levels[0]*levels[1]).sqrt().item()
    torch.testing.assert_close(strength_sigmas(levels, 2*math.atan(start)/math.pi)[0].item(), start)

# ---- emoji

@pytest.fixture
def artist():
    from miniai.bert import Bert,SentenceEncoder,WordPiece
    from miniai.flow import EmojiDiffusion,TextDiT
    from miniai.vae import Codec
    args = dict(net=dict(nz=4, size=8, n=16, n_blocks=1, n_heads=2, n_text=16), codec=dict(nfs=(8,16), nz=4))
    pieces = ['[PAD]','[UNK]','[CLS]','[SEP]','[MASK]','red','apple']
    encoder = SentenceEncoder(WordPiece(pieces), Bert(len(pieces), 16, 16, 2, 1).eval())
    return EmojiDiffusion(encoder, TextDiT(**args['net']), Codec(**args['codec']), args)

def held(folder): return {o.name: o.read_bytes() for o in folder.iterdir()}

def test_net_and_codec_of_emoji_are_saved_together(artist, tmp_path):
    artist.save(tmp_path)
    before = held(tmp_path)
    with torch.no_grad():
        for net in (artist.net, artist.codec): next(net.parameters()).fill_(.5 if net is artist.net else math.nan)
    with pytest.raises(ValueError, match='half precision cannot hold'): artist.save(tmp_path)
    assert held(tmp_path)==before and len(before)==4

def test_a_killed_save_never_mixes_net_and_codec(artist, tmp_path, monkeypatch):
    "Killed before any of the four renames, the old pipeline or the new one is loaded, or none."
    from miniai.flow import EmojiDiffusion
    replace,seen = os.replace,set()
    parts = [{k: v.clone() for k,v in net.state_dict().items()} for net in (artist.net, artist.codec)]
    def fill(scale):
        for net,w in zip((artist.net, artist.codec), parts): net.load_state_dict({k: v*scale if v.is_floating_point() else v for k,v in w.items()})
    for at in range(5):
        folder,left = tmp_path/f'{at}',[at]
        fill(1)
        artist.save(folder)
        fill(2)
        def killed(a, b):
            if folder in b.parents:
                left[0] -= 1
                if left[0]==-1:
                    m.setattr(Path, 'unlink', lambda *args, **kw: None)         # a dead process tidies nothing up
                    raise KeyboardInterrupt
            replace(a, b)
        with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt) if at<4 else nullcontext():
            m.setattr(os, 'replace', killed)
            artist.save(folder)
        try: found = EmojiDiffusion.load(folder, artist.encoder)
        except ValueError as e:
            assert 'emoji_codec.safetensors is not the codec that was saved with ' in str(e) or 'is damaged: its sha256' in str(e)
            seen.add('refused')
        else:
            for scale in (1, 2):
                fill(scale)
                same = [all(torch.allclose(v, w[k], atol=2e-3, rtol=2e-3) for k,v in net.state_dict().items()) for net,w in
                        ((artist.net, found.net.state_dict()), (artist.codec, found.codec.state_dict()))]
                assert same[0]==same[1]
                if all(same): seen.add(scale)
        fill(2)
        artist.save(folder)
        EmojiDiffusion.load(folder, artist.encoder)
    assert seen=={1, 2, 'refused'}

@pytest.mark.parametrize('name', ['emoji_flow.json', 'emoji_codec.json'])
def test_a_json_of_somebody_else_is_left_alone(artist, tmp_path, name):
    (tmp_path/name).write_text('{"mine": 1}')
    with pytest.raises(FileExistsError, match='path: .* holds what `save` did not write: .*emoji_'): artist.save(tmp_path)
    assert held(tmp_path)=={name: b'{"mine": 1}'}

def test_states_of_what_can_be_read_once(artist):
    texts = ['red apple', 'apple']
    assert artist.states(o for o in texts).equal(artist.states(texts)) and artist.states(iter(texts)).shape==(2, 16, 16)

@pytest.mark.skipif(os.name!='posix', reason='HOME')
def test_home_and_modes(artist, tmp_path, monkeypatch):
    from miniai.command import _png_path,_write_png
    from miniai.flow import EmojiDiffusion
    monkeypatch.setenv('HOME', str(tmp_path))
    artist.save('~/e')
    assert EmojiDiffusion.load('~/e', artist.encoder).size==artist.size
    png = tmp_path/'a.png'
    png.touch(mode=0o600)
    _write_png(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), _png_path('~/a.png'), 1)
    assert png.stat().st_mode&0o777==0o600 and png.stat().st_size
    monkeypatch.chdir(tmp_path)
    assert _png_path('~nobody.png')==tmp_path/'~nobody.png'
