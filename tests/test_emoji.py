"`make data` on four small packages and a false npm: what is whole stays, what is not is fetched again, and nothing is ever half written."
import hashlib,io,json,stat,sys,tarfile
import pytest
from PIL import Image
from common import python,root
from miniai import emoji as e

def tgz(path, files):
    with tarfile.open(path, 'w:gz') as tar:
        for k,v in files.items():
            info = tarfile.TarInfo(f'package/{k}')
            info.size = len(v)
            tar.addfile(info, io.BytesIO(v))

def image(colour, size, format):
    with io.BytesIO() as f:
        Image.new('RGBA', (size,size), colour).save(f, format, lossless=True)
        return f.getvalue()

@pytest.fixture
def shop(tmp_path, monkeypatch):
    "A registry of four small packages, and an npm that brings them and notes what it brought."
    made = tmp_path/'registry'
    made.mkdir()
    data = [dict(label='eye', hexcode='1F441-FE0F', tags=['look'], group=1, subgroup=2),
            dict(label='hand', hexcode='270B', tags=['stop'], group=1, subgroup=3, skins=[dict(label='hand: light', hexcode='270B-1F3FB', tone=1)])]
    js = {'package': dict(license='MIT'), 'en/data': data, 'en/messages': dict(groups=[dict(key='body', message='people & body')], subgroups=[]),
          'meta/groups': dict(groups={'1': 'body'}, subgroups={})}
    tgz(made/'emojibase-data-17.0.0.tgz', {f'{k}.json': json.dumps(v).encode() for k,v in js.items()})
    for style,(package,version,where,suffix,licence) in e._PACKAGES.items():
        size,format = (256,'webp') if style=='fluent' else (64,'png')
        files = {'README.md': licence.encode()} | {f'{where}{k}{suffix}': image((10*i, 20, 30, 255), size, format)
                                                   for i,k in enumerate(('270b-1f3fb','1f441-fe0f','270b','1f9ff'))}
        tgz(e._tgz(made, package, version), files)
    for package,version,*_ in (*e._PACKAGES.values(), e._NAMES):
        monkeypatch.setitem(e._SHA256, package, hashlib.sha256(e._tgz(made, package, version).read_bytes()).hexdigest())
    npm = tmp_path/'bin'/'npm'
    npm.parent.mkdir()
    npm.write_text(f'#!{sys.executable}\n' + (
        'import os,sys\nfrom pathlib import Path\n'
        'assert sys.argv[1]=="pack" and len(sys.argv)==3\n'
        'name,version = sys.argv[2].rsplit("@", 1)\n'
        'name = name.replace("@", "").replace("/", "-")+f"-{version}.tgz"\n'
        f'Path({str(tmp_path/"log")!r}).open("a").write(name+"\\n")\n'
        f'raw = Path({str(made)!r}, name).read_bytes()\n'
        'how = os.environ.get("NPM_DOES", "") if "twitter" in name else ""\n'
        'Path(name).write_bytes(raw[:len(raw)//2] if how else raw)\n'
        'if how=="fail": sys.exit("npm error code ENOTFOUND\\nnpm error network is away")\n'))
    npm.chmod(npm.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv('PATH', str(npm.parent))
    monkeypatch.setenv('MINIAI_DATA', str(tmp_path/'data'))
    build = e.build_emoji
    monkeypatch.setattr(e, 'build_emoji', lambda packages, folder: build(packages, folder, least=3))
    return tmp_path

def fetched(shop):
    "What npm brought since this was asked last."
    log = shop/'log'
    text = log.read_text() if log.exists() else ''
    log.write_text('')
    return sorted(o.split('-')[-2] for o in text.split())

posix = pytest.mark.skipif(sys.platform=='win32', reason='the false npm is a script')

@posix
def test_fetches_builds_and_does_nothing_twice(shop, capsys):
    path = e.fetch_emoji()
    assert path==shop/'data/emoji/train-00000-of-00001.parquet' and fetched(shop)==['3d', 'data', 'google', 'twitter']
    assert sorted(o.name for o in (shop/'data').rglob('*') if o.name.startswith('.'))==[]
    assert 'CC-BY-4.0, Twemoji' in capsys.readouterr().out
    small = e.load_emoji(tones=True)
    assert len(small)==9 and small.names[:3]==('eye',)*3 and small.tags[-1]==('stop',) and small.groups[0]=='people & body'
    before = path.stat().st_mtime_ns
    assert e.fetch_emoji()==path and path.stat().st_mtime_ns==before and fetched(shop)==[]
    assert '9 images' in capsys.readouterr().out

@posix
def test_home_is_understood(shop, monkeypatch):
    monkeypatch.setenv('HOME', str(shop))
    monkeypatch.chdir(shop)
    path = e.fetch_emoji('~/more')
    assert path==shop/'more/emoji/train-00000-of-00001.parquet' and not (shop/'~').exists()
    assert e.build_emoji('~/more/npm', '~/again').is_relative_to(shop/'again')

@posix
@pytest.mark.parametrize('how,error,text', [('fail', OSError, 'ENOTFOUND'), ('half', ValueError, 'sha256 differs')])
def test_goes_on_where_it_broke_off(shop, monkeypatch, how, error, text):
    monkeypatch.setenv('NPM_DOES', how)
    with pytest.raises(error, match=f'emoji-datasource-twitter@16.0.0.*{text}'): e.fetch_emoji()
    assert not (shop/'data/emoji').exists() and [o.name for o in (shop/'data/npm').iterdir()]==['emoji-datasource-google-16.0.0.tgz']
    assert fetched(shop)==['google', 'twitter']
    monkeypatch.delenv('NPM_DOES')
    e.fetch_emoji()
    assert fetched(shop)==['3d', 'data', 'twitter'] and len(e.load_emoji())==6

@posix
def test_half_a_package_is_not_taken_for_whole(shop):
    e.fetch_emoji()
    fetched(shop)
    half = shop/'data/npm/emojibase-data-17.0.0.tgz'
    half.write_bytes(half.read_bytes()[:-20])
    (shop/'data/emoji/train-00000-of-00001.parquet').unlink()
    e.fetch_emoji()
    assert fetched(shop)==['data'] and len(e.load_emoji())==6

@posix
def test_without_npm_one_line_says_what_to_do(shop, monkeypatch):
    monkeypatch.setenv('PATH', str(shop))
    with pytest.raises(FileNotFoundError, match='npm is not there .*install Node.js .*or put emoji-datasource-google-16.0.0.tgz into'): e.fetch_emoji()
    for o in (shop/'registry').iterdir(): (shop/'data/npm'/o.name).write_bytes(o.read_bytes())
    e.fetch_emoji()                                              # and nothing is needed where the packages are
    assert len(e.load_emoji())==6

@posix
def test_a_table_that_cannot_be_read_is_never_overwritten(shop):
    folder = shop/'data/emoji'
    folder.mkdir(parents=True)
    mine = folder/'mine.parquet'
    mine.write_bytes(b'something of my own')
    with pytest.raises(ValueError, match='mine.parquet is damaged or no parquet file; move it away'): e.fetch_emoji()
    assert mine.read_bytes()==b'something of my own' and [o.name for o in folder.iterdir()]==['mine.parquet'] and fetched(shop)==[]

@pytest.mark.parametrize('spoil,text', [(lambda r: r.update(image=dict(bytes=b'', path='')), 'has no bytes'), (lambda r: r.update(text=''), 'expected a name'),
                                        (lambda r: r.update(image=dict(bytes=image(0, 32, 'png'), path='')), '32x32 pixels; expected 64x64'),
                                        (lambda r: r.update(image=dict(bytes=image(0, 64, 'png')[:-30], path='')), "image 1, 'eye'"),
                                        (lambda r: r.update(style='mine'), "got 'eye' and 'mine'"), (lambda r: r.pop('tags'), r"\['tags'\] is missing")])
def test_bad_rows_are_named(tmp_path, monkeypatch, spoil, text):
    import pyarrow as pa,pyarrow.parquet as pq
    rows = [dict(image=dict(bytes=image(9, 64, 'png'), path=''), text='eye', tags=['look'], group='', subgroup='', tone='', style='noto') for _ in range(2)]
    (tmp_path/'emoji').mkdir()
    monkeypatch.setenv('MINIAI_DATA', str(tmp_path))
    def write(): pq.write_table(pa.Table.from_pylist(rows if 'tags' in rows[1] else [{k: v for k,v in r.items() if k!='tags'} for r in rows]), tmp_path/'emoji/a.parquet')
    write()
    assert len(e.load_emoji())==2
    spoil(rows[1])
    write()
    with pytest.raises(ValueError, match=text): e.load_emoji()

def test_a_table_without_what_is_asked_for(tmp_path, monkeypatch):
    import pyarrow as pa,pyarrow.parquet as pq
    row = dict(image=dict(bytes=image(9, 64, 'png'), path=''), text='eye', tags=['look'], group='', subgroup='', tone='light', style='noto')
    (tmp_path/'emoji').mkdir()
    monkeypatch.setenv('MINIAI_DATA', str(tmp_path))
    def write(o): pq.write_table(pa.Table.from_pylist([o]), tmp_path/'emoji/a.parquet')
    write(row)
    assert len(e.load_emoji(tones=True))==1
    for kw in ({}, dict(tones=True, style='fluent')):
        with pytest.raises(ValueError, match='tones, style: expected such emoji in .*emoji, found none'): e.load_emoji(**kw)
    for bad,text in (('a text', 'expected images in the column image, as a dict'), (dict(path='x'), 'has no bytes')):
        write(row | dict(image=bad))
        with pytest.raises(ValueError, match=text): e.load_emoji(tones=True)

def test_the_command_of_the_makefile_ends_in_one_line(tmp_path):
    line = next(o for o in (root/'Makefile').read_text(encoding='utf-8').splitlines() if 'fetch_emoji' in o)
    env = dict(MINIAI_DATA=str(tmp_path/'data'), PATH=str(tmp_path), PYTHONPATH=str(root))
    run = python('-c', line.split("'")[1], env=env, cwd=tmp_path)
    assert run.returncode==1 and run.stdout=='' and run.stderr.count('\n')==1 and 'install Node.js' in run.stderr, run.stderr
