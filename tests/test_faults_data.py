"Faults that lessons 00 to 02 once had, and what is right instead; the lessons hold the shorter of these tests themselves."
import io,math,os,re,struct,sys,threading,warnings,zlib
from http.server import ThreadingHTTPServer
import numpy as np,pytest,torch
from PIL import ExifTags,Image
from common import python
from test_hub import Hub,caches
from miniai import data as d

def as_file(im, format='png', **kwargs):
    with io.BytesIO() as f:
        im.save(f, format, **kwargs)
        return f.getvalue()

def chunk(kind, body): return struct.pack('>I', len(body))+kind+body+struct.pack('>I', zlib.crc32(kind+body))

noise = Image.effect_noise((12,8), 60)
turns = [None, *(Image.Transpose[t] for t in 'FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_90 TRANSVERSE ROTATE_270'.split())]

@pytest.mark.parametrize('format', ['png', 'tiff', 'webp', 'jpeg'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_all_orientations_come_in_upright(format, orientation):
    exif,turn = Image.Exif(),turns[orientation-1]
    exif[ExifTags.Base.Orientation] = orientation
    more = dict(webp=dict(lossless=True), jpeg=dict(quality=100)).get(format, {})
    file = as_file(noise if turn is None else noise.transpose(turn), format, exif=exif, **more)
    got = np.asarray(d.open_image(file, 'L')).astype(int)
    assert got.shape==(8,12) and abs(got-np.asarray(noise)).mean()<2

@pytest.mark.parametrize('mode', ['RGBA', 'RGBa', 'LA', 'La', 'PA'])
def test_hidden_colours_are_never_seen(mode):
    im = Image.new('RGBA', (2,1), (9,9,9,255))
    im.putpixel((0,0), (0,0,0,0))
    if mode=='PA':
        im = Image.new('PA', (2,1))
        im.putpalette([0,0,0,9,9,9])
        im.putpixel((0,0), (0,0)), im.putpixel((1,0), (1,255))
    else: im = im.convert(mode) if mode!='La' else im.convert('LA').convert('La')
    assert list(d.open_image(im, 'L').tobytes())==[255,9]
    assert list(d.open_image(im, 'L', background=100).tobytes())==[100,9]

def test_transparent_palettes_and_colour_keys():
    p = Image.new('P', (2,1))
    p.putpalette([0,0,0,9,9,9])
    p.putpixel((1,0), 1)
    for key in (0, bytes([0,255])): assert list(d.open_image(as_file(p, transparency=key), 'L').tobytes())==[255,9]
    assert list(d.open_image(as_file(p, 'gif', transparency=0), 'L').tobytes())==[255,9]
    wide = b'\0'+struct.pack('>6H', *[0x1234]*3, *[0x0900]*3)           # 16 bits a channel, one colour transparent
    png = (b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', struct.pack('>IIBBBBB', 2, 1, 16, 2, 0, 0, 0))
           +chunk(b'tRNS', struct.pack('>3H', *[0x1234]*3))+chunk(b'IDAT', zlib.compress(wide))+chunk(b'IEND', b''))
    assert list(d.open_image(png, 'L').tobytes())==[255,9]

def test_sixteen_bits_are_scaled_and_other_numbers_refused():
    ramp = (np.arange(256)*257).reshape(16,16)
    for im in (Image.fromarray(ramp.astype(np.uint16)), Image.fromarray(ramp.astype(np.int32)),
               Image.frombytes('I;16B', (16,16), ramp.astype('>u2').tobytes())):
        assert list(d.open_image(im, 'L').tobytes())==list(range(256))
        assert d.open_image(im).mode=='RGB'
    for bad in (ramp.astype(np.float32), (ramp*2).astype(np.int32), (ramp-1).astype(np.int32), (ramp//257).astype(np.int32)):
        with pytest.raises(ValueError, match='^photo .*mode [FI]'): d.open_image(Image.fromarray(bad), name='photo')

def test_whatever_is_damaged_is_a_value_error_with_the_name():
    rng = np.random.default_rng(0)
    files = [as_file(noise, f) for f in ('png', 'jpeg', 'gif', 'tiff', 'bmp', 'webp', 'tga', 'pcx')]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for n in range(1500):
            b = bytearray(files[n%len(files)])
            for i in rng.integers(len(b), size=3): b[i] = rng.integers(256)
            if n%3==0: b = b[:rng.integers(len(b))]
            try: d.open_image(bytes(b), name='picture 7')
            except ValueError as e: assert str(e).startswith('picture 7'), e
    bomb = struct.pack('>IIBBBBB', 60_000, 60_000, 8, 0, 0, 0, 0)
    with pytest.raises(ValueError, match='picture 7.*bomb'):
        d.open_image(b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', bomb)+chunk(b'IDAT', b'')+chunk(b'IEND', b''), name='picture 7')
    with pytest.raises(FileNotFoundError, match='logo.*nowhere.png'): d.open_image('nowhere.png', name='logo')
    for bad in (None, 3, os.curdir):
        with pytest.raises(ValueError, match='^logo'): d.open_image(bad, name='logo')

def test_decode_agrees_with_datasets(tmp_path):
    import datasets
    grey = Image.effect_noise((6,6), 60)
    for i,turn in enumerate(turns):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = i+1
        (tmp_path/'ab'[i%2]).mkdir(exist_ok=True)
        (grey if turn is None else grey.transpose(turn)).save(tmp_path/'ab'[i%2]/f'{i}.png', exif=exif)
    ds = datasets.load_dataset('imagefolder', data_dir=str(tmp_path), split='train', cache_dir=str(tmp_path/'cache'))
    x,y = d.decode(ds, 6)
    for i,row in enumerate(ds):
        assert np.array_equal(x[i,0].numpy(), np.asarray(row['image'].convert('L'))) and y[i]==row['label']
        assert np.array_equal(x[i,0].numpy(), np.asarray(grey))

def test_import_is_light_and_pipes_stay_clean(tmp_path):
    heavy = ('datasets','pandas','pyarrow','huggingface_hub','matplotlib','fastprogress')
    run = python('-c', f"import sys, miniai.data; print([m for m in {heavy} if m in sys.modules])")
    assert run.stdout.strip()=='[]', run.stdout+run.stderr
    code = ("from miniai.data import _encode,decode,draw_shapes,SHAPES,quiet_bar\n"
            "x,y = draw_shapes(1001); assert decode(_encode(x, y, SHAPES))[0].equal(x)\n"
            "bar = quiet_bar(range(9)); bar.comment = 'a'; bar.update(3); print(sum(bar))")
    run = python('-c', code)
    assert (run.returncode,run.stdout)==(0,'36\n'), run.stderr

def make_set(folder, n=12, names=d.SHAPES, parts=('train','test'), shift=0):
    "A small set in the hub's layout."
    folder.mkdir(parents=True, exist_ok=True)
    x,y = d.draw_shapes(max(n, 1))
    for p in parts: d._encode(x[:n], (y+shift)[:n], names).to_parquet(folder/f'{p}-00000-of-00001.parquet')

@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv('MINIAI_DATA', str(tmp_path/'data'))
    make_set(tmp_path/'data'/'fashion_mnist')
    return tmp_path

def load(root): return d.get_data(cache=root/'cache')

@pytest.mark.parametrize('name', ['train-00001-of-00002', 'train-00000-of-00003', 'train-00005-of-00003', 'test-00000-of-00002'])
def test_half_a_set_is_refused(root, name):
    folder = root/'data'/'fashion_mnist'
    (folder/f"{name.split('-')[0]}-00000-of-00001.parquet").rename(folder/f'{name}.parquet')
    with pytest.raises(FileNotFoundError, match=r'there is no (train|test)-0000\d-of-0000\d.parquet'): load(root)

def test_a_file_too_many_is_refused(root):
    folder = root/'data'/'fashion_mnist'
    (folder/'train.parquet').write_bytes((folder/'train-00000-of-00001.parquet').read_bytes())
    with pytest.raises(ValueError, match='all or none numbered'): load(root)
    (folder/'train.parquet').rename(folder/'train-00000-of-00001-abc.parquet')
    with pytest.raises(ValueError, match='expected 1 files'): load(root)

def test_names_labels_and_empty_parts(root):
    folder = root/'data'/'fashion_mnist'
    for kw,text in ((dict(names=list(d.SHAPES)[::-1]),'classes'), (dict(names=[*d.SHAPES,'more']),'classes'),
                    (dict(n=0),'expected images, got none'), (dict(shift=-1),r'label -1; expected 0 to 9')):
        make_set(folder, parts=('test',), **kw)
        for f in (load, lambda root: d.get_dataset()):
            with pytest.raises(ValueError, match=text): f(root)

def test_null_labels_are_named(root):
    import datasets
    ds = d._encode(*d.draw_shapes(12), d.SHAPES)
    ds = datasets.Dataset.from_dict(dict(image=ds['image'][:], label=[None, *ds['label'][1:]]), features=ds.features)
    ds.to_parquet(root/'data'/'fashion_mnist'/'test-00000-of-00001.parquet')
    with pytest.raises(ValueError, match='test: image 0 has no label'): load(root)

def test_the_hubs_own_layouts_are_found(tmp_path, monkeypatch):
    x = d.draw_shapes(12)[0]
    for folder,named in (('a/fashion_mnist/fashion_mnist','a'), ('b/fashion_mnist','b/fashion_mnist'),
                         ('c/fashion_mnist/plain_text','c/fashion_mnist'), ('d/fashion_mnist/plain_text','d/fashion_mnist/plain_text')):
        make_set(tmp_path/folder)
        monkeypatch.setenv('MINIAI_DATA', str(tmp_path/named))
        assert load(tmp_path).x_train.equal(x), folder
    make_set(tmp_path/'a/fashion_mnist/second')
    monkeypatch.setenv('MINIAI_DATA', str(tmp_path/'a'))
    with pytest.raises(ValueError, match='expected one folder with train'): load(tmp_path)

def test_one_changed_bit_anywhere_in_the_cache_is_noticed(root):
    data = load(root)
    file, = (root/'cache').iterdir()
    sound = file.read_bytes()
    head = 8+int.from_bytes(sound[:8], 'little')
    rng = np.random.default_rng(0)
    for i in [*range(8, head, 7), *rng.integers(len(sound), size=60)]:
        b = bytearray(sound)
        b[i] ^= 1<<int(rng.integers(8))
        file.write_bytes(b)
        got = load(root)
        assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a==b for a,b in zip(got, data)), i
        assert d._load(file) is not None

def test_the_cache_does_not_pile_up_and_touches_nobody_elses_files(root):
    load(root)
    cache,parquet = root/'cache',root/'data'/'fashion_mnist'/'train-00000-of-00001.parquet'
    kept = ['fashion_mnist-mine.safetensors', 'fashion_mnist-notes.txt', 'cifar10-hub.safetensors', 'other.tmp']
    for f in kept: (cache/f).write_text('mine')
    for i in range(5):
        os.utime(parquet, ns=(i, i))
        load(root)
    assert len(list(cache.glob('fashion_mnist-*-*.safetensors')))==1
    assert all((cache/f).exists() for f in kept)
    for i in range(6):
        make_set(root/f'data{i}'/'fashion_mnist')
        os.environ['MINIAI_DATA'] = str(root/f'data{i}')
        load(root)
    assert len(list(cache.glob('fashion_mnist-*-*.safetensors')))==3

@pytest.mark.skipif(os.name!='posix', reason='signals')
def test_what_a_killed_run_left_is_cleaned_up(root):
    code = ("import os,signal; from miniai import data as d\n"
            "def die(*args): os.kill(os.getpid(), signal.SIGKILL)\n"
            f"d.os.replace = die; d.get_data(cache={str(root/'cache')!r})")
    assert python('-c', code).returncode==-9
    assert [f.suffix for f in (root/'cache').iterdir()]==['.tmp']
    load(root)
    assert [f.suffix for f in (root/'cache').iterdir()]==['.safetensors']

@pytest.mark.parametrize('answer', ['forbidden', 'login page'])
def test_a_hub_whose_files_cannot_be_had(answer, tmp_path):
    class Closed(Hub):
        files = {'train-00000-of-00001.parquet': b'PAR1'*99, 'test-00000-of-00001.parquet': b'PAR1'*99}
        def do_GET(self):
            if '/resolve/' not in self.path and '/tree/' not in self.path: return super().do_GET()
            body = b'<html>Please log in</html>'
            self.send_response(403 if answer=='forbidden' else 200)
            for k,v in {'Content-Type': 'text/html', 'Content-Length': str(len(body))}.items(): self.send_header(k, v)
            self.end_headers()
            if self.command!='HEAD': self.wfile.write(body)
        do_HEAD = do_GET
    with ThreadingHTTPServer(('127.0.0.1', 0), Closed) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env = dict(MINIAI_DATA='', HF_ENDPOINT=f'http://127.0.0.1:{server.server_port}', NO_PROXY='127.0.0.1', no_proxy='127.0.0.1',
                   HF_HUB_OFFLINE='0', HF_DATASETS_OFFLINE='0', XDG_CACHE_HOME=str(tmp_path/'cache'), **caches(tmp_path/'hf'))
        run = python('-c', "from miniai.data import _find; print('>', _find('fashion_mnist'))", cwd=tmp_path, env=env)
        server.shutdown()
    assert run.returncode==0, run.stderr
    line,found = run.stdout.strip().splitlines()
    assert found=="> (None, 'drawn')" and "the hub's files cannot be had (" in line and 'drawn shapes' in line

def test_drawing_refuses_what_cannot_be_drawn():
    p,star = d.pixel_grid(8),d.Thing('small','red','star')
    assert d.segment(p, (.1,.1), (.1,.1)).isfinite().all() and d.segment(p, (0,0), (1e-30,0)).isfinite().all()
    for bad in ((float('nan'),0), (float('inf'),0)):
        with pytest.raises(ValueError, match='a, b: expected finite'): d.segment(p, bad, (0,0))
    with pytest.raises(ValueError, match='p: expected floats'): d.segment(p.long(), (.5,0), (1,0))
    one = d.Scene((star,), '', 'black')
    bad = {'size': one._replace(things=(star._replace(size=''),)), 'colour': one._replace(things=(star._replace(colour='pink'),)),
           'shape': one._replace(things=(star._replace(shape='sun'),)), 'background': one._replace(background=''),
           'things': one._replace(things=()), 'relation': one._replace(things=(star,star))}
    for word,scene in bad.items():
        with pytest.raises(ValueError, match=f'scene 1: {word}: expected'): d.draw_scenes([one, scene])
    for scene in (one._replace(relation='above'), one._replace(things=(star,)*3), one._replace(things=(star,star), relation='beside')):
        with pytest.raises(ValueError, match='scene: (relation|things): expected'): d.caption(scene)
    for seed in (2**64, -2**63-1, 1.5, None, 'a', True):
        for f in (lambda: d.draw_scenes([one], seed=seed), lambda: d.draw_shapes(1, seed), lambda: d.random_scenes(1, seed), lambda: d.drop_words([one], .5, seed)):
            with pytest.raises(ValueError, match='seed: expected a whole number'): f()
    assert d.draw_scenes([one], seed=np.int64(3)).equal(d.draw_scenes([one], seed=3))
    with pytest.raises(ValueError, match='blu'): d.random_scenes(5, pairs=[*d.SEEN, ('blu','heart')])
    for kw in (dict(scale=torch.zeros(2)), dict(scale=torch.tensor([1.,float('nan')])), dict(kinds=torch.tensor([0,-1])), dict(angle=torch.zeros(3))):
        args = dict(dict(kinds=torch.zeros(2).long(), centre=torch.zeros(2,2), scale=torch.ones(2), angle=torch.zeros(2)), **kw)
        with pytest.raises(ValueError, match=f'{list(kw)[0]}: expected'): d.draw_masks(**args)

def test_check_finite():
    for x in (torch.ones(3), torch.ones(3).half(), torch.arange(3), torch.ones(2).bool(), torch.empty(0), torch.ones(2, dtype=torch.cfloat)):
        assert d.check_finite(x, 'x') is x
    x = torch.tensor([1., float('nan'), float('inf'), -float('inf')])
    for t in (x, x.half(), x.bfloat16(), x.double()):
        with pytest.raises(ValueError, match='latents: expected finite numbers, got 1 that are nan and 2 that are infinite of 4'):
            d.check_finite(t, 'latents')

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='fork')
def test_a_matrix_product_works_in_a_forked_child():
    code = ("import os,torch; from miniai.matmul import matmul\n"
            "a,b = torch.randn(70,130),torch.randn(130,33); matmul(a, b); want = a@b\n"
            "pid = os.fork()\n"
            "if pid==0: os._exit(0 if torch.allclose(matmul(a, b), want, atol=1e-4) else 1)\n"
            "print(os.waitpid(pid, 0)[1], torch.allclose(matmul(a, b), want, atol=1e-4))")
    run = python('-W', 'ignore', '-c', code)
    assert run.stdout.split()==['0','True'], run.stdout+run.stderr

def test_clear_errors_of_matmul_and_clustering():
    from miniai import clustering as c,matmul as m
    with pytest.raises(TypeError, match='a: expected a dense tensor'): m.matmul(torch.eye(3).to_sparse(), torch.eye(3))
    with pytest.raises(TypeError, match='b: expected a dense tensor'): m.matmul(torch.eye(3), torch.eye(3).to_sparse_csr())
    x = torch.randn(20, 2)
    for kw in (dict(steps=.5), dict(steps=0), dict(steps=None), dict(restarts=1.5), dict(restarts=True)):
        with pytest.raises(ValueError, match=f'{list(kw)[0]}: expected a'): c.kmeans(x, 2, **kw)
    for k in (0, 21, 2.5, '2', True):
        with pytest.raises(ValueError, match='k: expected a whole number from 1 to 20'): c.kmeans(x, k)
    assert len(c.kmeans(x, np.int64(3))[0])==3
    for kw in (dict(bs=2.5), dict(steps=1.5), dict(bandwidth=float('nan')), dict(bandwidth=float('inf'))):
        with pytest.raises(ValueError, match=f'{list(kw)[0]}: expected a'): c.mean_shift(x, **dict(dict(bandwidth=1.), **kw))

def test_results_keep_one_section_per_processor(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(os.path.join(os.path.dirname(__file__), '..', 'benchmarks'))
    monkeypatch.delitem(sys.modules, 'common')
    import importlib
    bench = importlib.import_module('common')
    monkeypatch.delitem(sys.modules, 'common')
    monkeypatch.setattr(bench, 'RESULTS', tmp_path)
    old = '# A title\n\nAMD EPYC, 2 cores; Python 3.11.7, torch 2.13.0.\n\n| a |\n| --- |\n| 1 |\n\nA note.\n'
    (tmp_path/'x.md').write_text(old)
    for value in (2, 3): bench.write('x', [dict(a=value)], 'A title', where='Another, 4 cores')
    text = (tmp_path/'x.md').read_text()
    assert re.findall('^## (.*)', text, re.M)==['AMD EPYC, 2 cores','Another, 4 cores']
    assert '| 1 |' in text and 'A note.' in text and '| 3 |' in text and '| 2 |' not in text
    bench.write('x', [dict(a=4)], 'A title', where='AMD EPYC, 2 cores')
    assert '| 1 |' not in (tmp_path/'x.md').read_text() and '| 3 |' in (tmp_path/'x.md').read_text()

def test_finite_number_and_its_limits():
    for v in (2, 2., np.float32(2), np.array(2), torch.tensor(2.)): assert d.finite_number('x', v)==2. and type(d.finite_number('x', v)) is float
    for v in (None, 'all', True, math.nan, math.inf, -math.inf, 1j, torch.ones(2), torch.tensor(True)):
        with pytest.raises(ValueError, match='^x: expected a finite number, got'): d.finite_number('x', v)
    for v in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match='^x: expected a number, 0 or more, got'): d.finite_number('x', v, 0)
    for v in (-.1, 1.1, math.nan):
        with pytest.raises(ValueError, match='^x: expected a number, from 0 to 1, got'): d.finite_number('x', v, 0, 1)
    assert d.finite_number('x', 1, 0, 1)==1 and d.finite_number('x', 0, 0)==0

def test_points_far_apart_are_grouped_as_in_float64():
    from miniai import clustering as c
    a = torch.tensor([[0.,0],[3,4],[1e5,0]])
    for dtype in (torch.float32, torch.bfloat16): assert c.sq_dists(a.to(dtype), a.to(dtype))[:2,:2].tolist()==[[0,25],[25,0]]
    def blobs(*at, n=200): return c.gaussian_blobs(torch.tensor([[float(o),float(o)] for o in at]), n=n, generator=torch.Generator().manual_seed(0))[0]
    def groups(x): return c.group_points(x, .75)[0]
    x = blobs(0, 6, 1e5, 1e5+6)
    for f in (c.mean_shift, c.mean_shift_near):
        ends = f(x, 1.5)
        assert ends.dtype==x.dtype and groups(ends).max()==3 and (ends-f(x.double(), 1.5)).abs().max()<.05     # steps of .008 at 100,000
    for x,k in ((torch.cat([blobs(0, 6, 10), torch.tensor([[1e5,0]])]), 4), (blobs(1e5, 1e5+9, n=20_000), 2)):
        centers,labels = c.kmeans(x, k, generator=torch.Generator().manual_seed(1))
        other,_ = c.kmeans(x.double(), k, generator=torch.Generator().manual_seed(1))
        def inertia(o): return c.sq_dists(x.double(), o.double()).amin(1).sum().item()
        assert centers.dtype==x.dtype and inertia(centers)<1.01*inertia(other)
        assert labels.equal(c.sq_dists(x.double(), centers.double()).argmin(1))
