"The photo editor: images from strangers, masks, sessions of several users, the page's server by HTTP, the command."
import contextlib,copy,io,json,shlex,socket,struct,warnings,zlib
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch as mock
import numpy as np,pytest,torch
from PIL import Image
from miniai.app import (EditSession,PageServer,Sessions,Stopped,app_main,draw_region,edit_page,grow_mask,read_image,
                        _seeing,_views,safe_app,soft_edge)
from miniai.command import main
from miniai.data import Scene,Thing,draw_scenes,random_scenes
from miniai.segmentation import load_segmenter
from miniai.stable import StableDiffusion

needs_gradio = pytest.mark.skipif(find_spec('gradio') is None, reason='needs the package gradio')

def png(image, format='png', **kw):
    f = io.BytesIO()
    Image.fromarray(image).save(f, format, **kw)
    return f.getvalue()

def chunk(kind, data): return struct.pack('>I', len(data))+kind+data+struct.pack('>I', zlib.crc32(kind+data))

def bomb(w, h):
    "A PNG of few bytes that says it is `w` by `h`; its rows are zeros, and compress to nothing."
    rows = zlib.compress(bytes(1_000_000), 9)
    return b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 8, 2, 0, 0, 0))+chunk(b'IDAT', rows)+chunk(b'IEND', b'')

@pytest.fixture(scope='module')
def image():
    "A large red moon on white, uint8 (64,64,3)."
    return draw_scenes(random_scenes(1, seed=5), 64, seed=1)[0].permute(1, 2, 0).numpy()

@pytest.fixture(scope='module')
def parts(): return StableDiffusion.load(),load_segmenter()

@pytest.fixture
def session(parts, image):
    s = EditSession(*parts)
    s.open(png(image))
    return s

def on_object(image): return (int(o[len(o)//2]) for o in np.nonzero(np.abs(image.astype(int)-image[0,0]).max(-1)>60)[::-1])

# Images from strangers

@pytest.mark.parametrize('data', [b'', b'no image', b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', b'\x89PNG\r\n\x1a\n', b'GIF89a'])
def test_no_image(data):
    with pytest.raises(ValueError, match='^image: expected an image, as PNG, JPEG'): read_image(data)

@pytest.mark.parametrize('size', [(10_000,10_000), (4001,4000), (30_000,30_000), (2**31-1,2**31-1)])
def test_too_large_is_refused_before_decoding(size):
    never = mock('PIL.ImageFile.ImageFile.load', side_effect=AssertionError('decoded'))
    with warnings.catch_warnings(), never, pytest.raises(ValueError, match='^image: expected at most 16 megapixels, got'):
        warnings.simplefilter('ignore', Image.DecompressionBombWarning)
        read_image(bomb(*size))

def test_too_small_and_damaged(image):
    with pytest.raises(ValueError, match='8 pixels a side or more, got 64 x 7'): read_image(png(image[:7]))
    with pytest.raises(ValueError, match='^image cannot be read'): read_image(png(image)[:300])
    with pytest.raises(ValueError, match='^mask: expected'): read_image(b'', name='mask')

def test_as_it_is_meant_to_be_seen(image):
    assert (read_image(png(image))==image).all()
    exif = Image.Exif()
    exif[274] = 6                                                     # turned by a quarter
    wide = np.tile(image, (1, 2, 1))
    assert read_image(png(wide, 'png', exif=exif)).shape==(128,64,3)
    clear = np.dstack([image, np.zeros((64,64), np.uint8)])
    assert (read_image(png(clear))==255).all()
    assert read_image(png(image[...,0])).shape==(64,64,3)

# Masks

def test_grow(image):
    m = np.zeros((20,30), bool)
    m[5,7] = m[0,29] = True
    assert (grow_mask(m, 0)==m).all()
    big = grow_mask(m, 2)
    assert big[3:8,5:10].all() and big[:3,27:].all() and big.sum()==25+9
    for bad in (-1, 1001, 1.5, None):
        with pytest.raises(ValueError, match='^grow: expected a whole number'): grow_mask(m, bad)
    for bad in (m.astype(int), m[0], None):
        with pytest.raises(TypeError, match='^mask: expected an array of bool'): grow_mask(bad, 1)

def test_soft_edge():
    m = np.zeros((40,50), bool)
    m[10:,5:30] = True
    for r in (0, 1, 5, 32):
        a = soft_edge(m, r)
        assert a.dtype==np.uint8 and not a[~m].any() and a.shape==m.shape
    assert (soft_edge(m, 0)==255*m).all()
    a = soft_edge(m, 5)
    assert a[30,17]==255 and a[-1,17]==255 and (np.diff(a[30,4:11].astype(int))>0).sum()==6 and a[30,10]==255
    thin = np.zeros((9,9), bool)
    thin[4,2:7] = True
    assert soft_edge(thin, 5).max()==255                              # or a thin thing would never be replaced
    with pytest.raises(ValueError, match='^soft: expected a whole number, from 0 to 32'): soft_edge(m, 33)

class Grey:
    "A pipeline that paints all of it grey, and notes what it was given."
    size = 64
    def __call__(self, init, mask, **kw):
        self.given = init,mask
        return torch.where(mask, torch.full_like(init, 128), init)[None]

@pytest.mark.parametrize('shape', [(64,64), (300,200), (33,1000), (8,3000), (2000,8), (40,50)])
@pytest.mark.parametrize('soft', [0, 3])
def test_other_pixels_stay(shape, soft):
    rng = np.random.default_rng(0)
    x,pipe = rng.integers(0, 256, (*shape,3), dtype=np.uint8),Grey()
    m = np.zeros(shape, bool)
    m[2:6,shape[1]//2:shape[1]//2+4] = True
    y = draw_region(pipe, x, m, soft)
    assert y.shape==x.shape and y.dtype==np.uint8 and (y[~m]==x[~m]).all() and (y[m]!=x[m]).any()
    assert pipe.given[0].shape==(3,64,64) and pipe.given[1].shape==(64,64) and pipe.given[1].any()

def test_region_is_checked(image):
    m = np.zeros((64,64), bool)
    with pytest.raises(ValueError, match='marks nothing'): draw_region(Grey(), image, m)
    with pytest.raises(ValueError, match='expected the size of the image, 64x64, got 32x64'): draw_region(Grey(), image, m[:,:32])

def ghosts_of(kept, drawn):
    "Pixels of a drawing on black that are neither black nor near what is kept, as a fraction of what is kept."
    return ((drawn.astype(int).max(-1)>80)&~grow_mask(kept, 2)).sum()/kept.sum()

def test_all_but_a_thing_is_drawn_around_it(parts):
    "No latent cell lies in the thing, so the network is shown its pixels; else it draws a second one behind it."
    scene = Scene((Thing('large', 'red', 'heart'),), '', 'white')
    image = draw_scenes([scene], 64, seed=1)[0].permute(1, 2, 0).numpy()
    s = EditSession(*parts)
    s.open(png(image))
    s.click(*on_object(image))
    words = 'a large red heart on a black background'
    ghosts = [ghosts_of(s.mask, s.edit(words, True, seed=i, steps=8)) for i in (2, 4)]
    with mock('miniai.app._seeing', lambda pipe, mask: pipe):
        before = [ghosts_of(s.mask, s.edit(words, True, seed=i, steps=8)) for i in (2, 4)]
    assert 3*sum(ghosts)<sum(before), (ghosts, before)

def test_which_pipelines_are_shown_pixels(parts):
    pipe,mask = parts[0],torch.ones(64, 64, dtype=torch.bool)
    mask[20:40,20:40] = False
    assert _seeing(pipe, mask) is not pipe and _seeing(pipe, ~mask) is pipe
    few = copy.copy(pipe)
    few.denoiser = lambda asked,*_: None                              # a pipeline with a denoiser of its own goes its own way
    assert _seeing(few, mask) is few and isinstance(_seeing(Grey(), mask), Grey)

# Sessions

def test_nothing_opened(parts):
    s = EditSession(*parts)
    for f in (lambda: s.click(1, 1), s.keep, s.masks, s.files, lambda: s.edit('a star'), lambda: s.choose(1)):
        with pytest.raises(ValueError, match='^image: open one first'): f()
    with pytest.raises(ValueError, match='nothing to take back'): s.undo()
    with pytest.raises(ValueError, match='expected an image'): s.open(b'x')

def test_clicks_are_checked(session):
    for x,y,label in ((-1, 0, 1), (64, 0, 1), (0, 64, 1), (.5, 0, 1), (0, 0, 2)):
        with pytest.raises(ValueError, match='expected a whole number'): session.click(x, y, label)
    with pytest.raises(ValueError, match='^mask: click an object first'): session.mask
    with pytest.raises(ValueError, match='^mask: click an object first'): session.edit('a star')
    for i in range(30): session.click(i, i)
    with pytest.raises(ValueError, match='at most 30'): session.click(1, 1)

def test_empty_mask(session):
    session.click(3, 3)
    with mock.object(EditSession, 'masks', return_value=(np.zeros((3,64,64), bool), np.ones(3))):
        with pytest.raises(ValueError, match='^mask: it is empty'): session.edit('a star')

def test_bad_words_and_numbers_change_nothing(session, image):
    session.click(*on_object(image))
    before = list(session.history)
    bad = [(dict(prompt=' '), 'prompt'), (dict(prompt='x'*1001), 'prompt'), (dict(negative='x'*1001), 'negative'),
           (dict(steps=0), 'steps'), (dict(seed='x'), 'seed'), (dict(strength=2), 'strength'), (dict(sampler='best'), 'sampler'),
           (dict(guidance=-1), 'guidance'), (dict(grow=1001), 'grow'), (dict(soft=33), 'paste')]
    for kw,name in bad:
        with pytest.raises(ValueError, match=f'^{name}'): session.edit(**(dict(prompt='a star')|kw))
    assert session.history==before

def test_undo_goes_back_through_everything(session, image):
    x,y = on_object(image)
    session.click(x, y)
    first = session.mask.copy()
    session.click(0, 0, 0)
    session.choose(2)
    session.edit('a blue ring', steps=2)
    session.keep()
    assert session.state.points==() and session.state.edited is None and (session.state.image!=image).any()
    for _ in range(4): session.undo()
    assert session.state.points==((x,y,1),) and (session.mask==first).all() and session.state.image is session.history[0].image
    session.undo()
    with pytest.raises(ValueError, match='nothing to take back'): session.undo()

def test_two_users_do_not_mix(parts, image):
    a,b = (EditSession(*parts) for _ in range(2))
    other = draw_scenes(random_scenes(1, seed=6), 96, seed=1)[0].permute(1, 2, 0).numpy()
    a.open(png(image))
    b.open(png(other))
    x,y = on_object(image)
    a.click(x, y)
    alone = a.mask.copy()
    b.click(*on_object(other))
    assert b.mask.shape==(96,96)
    a.click(x, y)                                                     # the same mask, or one click would move another's
    a.undo()
    assert a.mask.shape==(64,64) and (a.mask==alone).all() and len(a.state.points)==1==len(b.state.points)

def test_stop_and_close(session, image):
    session.click(*on_object(image))
    steps = []
    def stop(i):
        steps.append(i)
        session.stop()
    with pytest.raises(Stopped): session.edit('a star', steps=9, cb=stop)
    assert len(steps)==1 and session.state.edited is None
    session.edit('a star', steps=2)                                   # and it goes on
    folder = Path(session.files()[0]).parent
    session.close()
    assert not folder.exists()
    with pytest.raises(Stopped): session.edit('a star', steps=9)

def test_another_image_while_drawing(session, image):
    session.click(*on_object(image))
    with pytest.raises(Stopped): session.edit('a star', steps=3, cb=lambda i: session.open(png(image[::-1].copy())))
    assert len(session.history)==1 and session.state.edited is None

def test_sessions_are_few_and_private(parts):
    all_of = Sessions(lambda: EditSession(*parts), limit=2)
    a,b = all_of['a'],all_of['b']
    assert a is not b and all_of['a'] is a and len(all_of)==2
    c = all_of['c']                                                   # b was not used for the longest time
    assert 'b' not in all_of and b.closed and not a.closed and not c.closed
    all_of.drop('a')
    all_of.drop('never there')
    assert a.closed and len(all_of)==1
    for bad in (None, '', 3):
        with pytest.raises(ValueError, match='^session: expected a name'): all_of[bad]

# The command line that repeats it

def test_the_page_shows_the_choice_that_counts(session, image):
    x,y = on_object(image)
    session.click(x, y)
    session.choose(2)
    assert _views(session)[-1]==3
    session.click(0, 0, 0)                                            # a new question: the first answer again
    assert _views(session)[-1]==1
    session.undo()
    assert _views(session)[-1]==session.state.choice+1

def test_a_long_image_grows_by_what_is_allowed(parts):
    x = np.full((16,17_000,3), 255, np.uint8)
    x[4:12,100:900] = 200,0,0
    s = EditSession(*parts)
    s.open(png(x))
    s.click(500, 8)
    y = s.edit('a star', steps=1)
    assert y.shape==x.shape and (y[~s.state.edited.region]==x[~s.state.edited.region]).all()

@pytest.mark.parametrize('everything_else,size,kw', [(False, 64, {}), (True, 150, dict(negative='-a "blue" ring', guidance=2, sampler='euler_ancestral', seed=-3, strength=.8, soft=0))])
def test_the_command_line_repeats_it(parts, tmp_path, monkeypatch, everything_else, size, kw):
    image = draw_scenes(random_scenes(1, seed=5), size, seed=1)[0].permute(1, 2, 0).numpy()
    image = image[:,:size-10] if everything_else else image
    s = EditSession(*parts)
    s.open(png(np.ascontiguousarray(image)))
    s.click(*on_object(image))
    y = s.edit("-a  star's\n'light'", everything_else, **dict(steps=4)|kw)
    for f in s.files(): (tmp_path/Path(f).name).write_bytes(Path(f).read_bytes())
    (tmp_path/'result.png').rename(tmp_path/'from_page.png')
    monkeypatch.chdir(tmp_path)
    words = shlex.split(s.state.edited.command)
    assert words[0]=='miniai'
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main(['--quiet', *words[1:]])
    again,page = (np.array(Image.open(tmp_path/f)) for f in ('result.png', 'from_page.png'))
    assert (again==y).all() and (page==y).all()
    assert (y[~s.state.edited.region]==image[~s.state.edited.region]).all() and (y!=image).any()

# The server

@pytest.fixture(scope='module')
def served(parts):
    if find_spec('gradio') is None: pytest.skip('needs the package gradio')
    sessions = Sessions(lambda: EditSession(*parts))
    with PageServer(safe_app(edit_page(sessions))) as server: yield server,sessions

def ask(server, path, body=None, host=None, kind='application/json'):
    "Status and answer to a request as it stands; a client would tidy up the path."
    with socket.create_connection((server.host, server.port)) as s:
        head = f'{"GET" if body is None else "POST"} {path} HTTP/1.1\r\nHost: {host or server.host}\r\nConnection: close\r\n'
        if body is not None: head += f'Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n'
        s.sendall(head.encode()+b'\r\n'+(body or b''))
        with s.makefile('rb') as f: data = f.read()
    head,_,rest = data.partition(b'\r\n\r\n')
    return int(head.split()[1]),head.decode('latin1').lower(),rest

def test_no_file_can_be_read(served, tmp_path, monkeypatch):
    server,_ = served
    monkeypatch.chdir(tmp_path)
    (tmp_path/'secret.txt').write_text('the secret')
    secret,up = str(tmp_path/'secret.txt'),'../'*12
    for path in ('secret.txt', secret, up+secret[1:], '%2e%2e/'*12+secret[1:], secret.replace('/', '%2f'), '/'+secret, f'file://{secret}',
                 f'{tmp_path}/./secret.txt', f'http://127.0.0.1:{server.port}/'):
        for route in ('/gradio_api/file=', '/file=', '/gradio_api/file/', '/static/', '/assets/', '/svelte/', '/gradio_api/proxy=', '/'):
            code,_,data = ask(server, route+path)
            assert b'the secret' not in data and code>=400, (route, path, code)

def test_nothing_but_an_upload_is_taken_for_one(served, tmp_path, image):
    server,sessions = served
    (tmp_path/'private.png').write_bytes(png(image))                  # an image, on the computer of the server
    for path in (str(tmp_path/'private.png'), f'http://127.0.0.1:{server.port}/static/img/logo.svg', 'https://example.com/x.png', 7, None):
        for route in ('queue/join', 'run/predict', 'call/x', 'run/upload', 'api/upload', 'queue/join/upload'):
            data = dict(data=[dict(path=path, meta=dict(_type='gradio.FileData'))], fn_index=0, session_hash='thief')
            code,_,answer = ask(server, f'/gradio_api/{route}', json.dumps(data).encode())
            assert code==400 and b'was not uploaded here' in answer
    for body in (b'no json', b'['*100_000, json.dumps(dict(data=['x'*2_000_000])).encode()):
        with contextlib.suppress(ConnectionError): assert ask(server, '/gradio_api/queue/join', body)[0]==400
    assert 'thief' not in sessions

def test_gradio_checks_it_too(served, tmp_path, image):
    "Mounted in another application, gradio takes every path for an upload, unless it believes that it was launched."
    from gradio.context import LocalContext
    from gradio.exceptions import InvalidPathError
    from gradio.processing_utils import _check_allowed
    page = edit_page(served[1])
    safe_app(page)
    token = LocalContext.blocks.set(page)
    try:
        with pytest.raises(InvalidPathError): _check_allowed(str(tmp_path/'x.png'), True)
    finally: LocalContext.blocks.reset(token)

def test_headers_names_and_limits(served):
    server,_ = served
    code,head,data = ask(server, '/')
    assert code==200 and "default-src 'self'" in head and 'nosniff' in head and b'fonts.googleapis' not in data and b'cdnjs' not in data
    assert ask(server, '/', host='evil.example')[0]==400
    for path in ('/docs', '/openapi.json', '/monitoring', '/gradio_api/mcp/'): assert ask(server, path)[0]>=400
    body = b'--b\r\nContent-Disposition: form-data; name="files"; filename="../../x.png"\r\n\r\n'
    code,_,data = ask(server, '/gradio_api/upload', body+b'x\r\n--b--\r\n', kind='multipart/form-data; boundary=b')
    assert code==200 and '..' not in json.loads(data)[0]
    try: code,_,data = ask(server, '/gradio_api/upload', body+b'x'*21_000_000+b'\r\n--b--\r\n', kind='multipart/form-data; boundary=b')
    except ConnectionError: pass                                      # hung up on us in the middle
    else: assert code==413

# The command

def refused(*args):
    err = io.StringIO()
    with contextlib.redirect_stderr(err), pytest.raises(SystemExit) as e: app_main(list(args))
    assert e.value.code==2 and err.getvalue().count('\n')==1
    return err.getvalue()

@needs_gradio
def test_one_line_and_code_2():
    with socket.create_server(('127.0.0.1', 0)) as s:
        port = s.getsockname()[1]
        assert refused('--port', str(port))==f'miniai-app: port: 127.0.0.1:{port} is in use; try --port with another number\n'
    assert 'port: expected a whole number, from 0 to 65535' in refused('--port', '65536')
    assert '--port' in refused('--port', 'x') and 'no.such.host.invalid' in refused('--host', 'no.such.host.invalid')
    assert 'model: expected scenes' in refused('--model', 'oil') and '--colour' in refused('--colour', 'red')

def test_without_gradio():
    with mock('miniai.app.importlib.util.find_spec', return_value=None): assert "pip install 'miniai[app]'" in refused()
