"hub_folder against a server on this machine that behaves as the Hugging Face hub does, well or badly. No test reaches the network."
import errno,hashlib,json,logging,os,shutil,signal,subprocess,sys,threading,time,warnings
from http.server import BaseHTTPRequestHandler,ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote,urlparse
import pytest
import huggingface_hub
from huggingface_hub import constants,hf_hub_download,snapshot_download
from miniai.hub import _held,_note,hub_folder,hub_token
from common import python

name,commit,secret = 'small/diffusion','a1'*20,'hf_'+'Sesame'*5
unet,vae,text = 'unet/diffusion_pytorch_model.safetensors','vae/diffusion_pytorch_model.safetensors','text_encoder/model.safetensors'
unwanted = 'README.md','v1-5.ckpt','unet/diffusion_pytorch_model.bin','unet/diffusion_pytorch_model.non_ema.safetensors','safety_checker/model.safetensors'

def toy():
    "Files with the names of a published pipeline."
    classes = dict(unet='UNet2DConditionModel', vae='AutoencoderKL', text_encoder='CLIPTextModel', tokenizer='CLIPTokenizer',
                   scheduler='PNDMScheduler', safety_checker='StableDiffusionSafetyChecker', feature_extractor='CLIPImageProcessor')
    files = {'model_index.json': json.dumps({'_class_name': 'StableDiffusionPipeline', **{k: ['lib', v] for k,v in classes.items()}}).encode()}
    files |= {o: json.dumps(dict(name=o)).encode() for o in ('unet/config.json','vae/config.json','text_encoder/config.json','scheduler/scheduler_config.json',
                                 'tokenizer/vocab.json','tokenizer/tokenizer_config.json')}          # all differ: equal files are fetched once
    files |= {'tokenizer/merges.txt': b''}                                # an empty file is a file, too
    files |= {o: os.urandom(n) for o,n in ((unet, 300_000), (vae, 100_000), (text, 60_000))}
    return files

def facts(raw):
    "Size, sha1 of git, sha256."
    return len(raw),hashlib.sha1(b'blob %d\0'%len(raw)+raw).hexdigest(),hashlib.sha256(raw).hexdigest()

class Handler(BaseHTTPRequestHandler):
    "The hub; what begins with /cdn/ belongs to the server of large files, which is another port."
    protocol_version = 'HTTP/1.1'
    def log_message(self, *args): pass
    def reply(self, status, body=b'', cut=None, **headers):
        self.send_response(status)
        for k,v in {'Content-Length': str(len(body)), **headers}.items(): self.send_header(k.replace('_', '-'), v)
        self.end_headers()
        if self.command=='HEAD': return
        if cut is not None: self.close_connection = True
        self.wfile.write(body[:cut])
        self.hub.sent += len(body[:cut])
    def do_GET(self):
        hub,path = self.hub,unquote(urlparse(self.path).path)
        cdn,file = path.startswith('/cdn/'),path.split('/resolve/')[-1].split('/', 1)[-1]
        key = 'api' if path.startswith('/api/') else file
        hub.asked.append((self.command, ('cdn ' if cdn else '')+key, self.headers['Range'], self.headers['Authorization']))
        action = (hub.plan.get(('cdn ' if cdn else '')+key) or [None]).pop(0)
        if callable(action): return action(self)
        if key=='api':
            if path.removesuffix(commit) not in (f'/api/models/{name}/revision/main', f'/api/models/{name}/revision/'): return self.reply(404, X_Error_Code='RepoNotFound')
            return self.reply(200, json.dumps(hub.listing()).encode(), **{'Content-Type': 'application/json'})
        if not path.endswith((f'/{hub.commit}/{file}', f'/main/{file}')) or file not in hub.files: return self.reply(404, X_Error_Code='EntryNotFound')
        raw = hub.files[file]
        size,git,sha = facts(raw)
        large = size>5000
        if large and not cdn:
            return self.reply(302, Location=f'{hub.cdn}/cdn{path}?signature=1', X_Repo_Commit=hub.commit, X_Linked_Size=str(size),
                              X_Linked_Etag=f'"{sha}"', ETag=f'"{git}"')
        cut = action if isinstance(action, int) else None
        headers = {'ETag': f'"{sha if large else git}"', 'Accept-Ranges': 'bytes', **({} if cdn else {'X-Repo-Commit': hub.commit})}
        if r := self.headers['Range']:
            i = int(r.removeprefix('bytes=').rstrip('-'))
            if i>=size: return self.reply(416)
            return self.reply(206, raw[i:], cut, **headers, Content_Range=f'bytes {i}-{size-1}/{size}')
        self.reply(200, raw, cut, **headers)
    do_HEAD = do_GET

class Hub:
    "Two servers, the files, what was asked, and a plan: what to do with the next requests for a file."
    def __init__(self):
        self.files,self.commit,self.extra = toy(),commit,{}
        self.asked,self.plan,self.sent,self.over,self.half = [],{},0,threading.Event(),threading.Event()
        self.servers = [ThreadingHTTPServer(('127.0.0.1', 0), type('H', (Handler,), dict(hub=self))) for _ in range(2)]
        for o in self.servers:
            o.daemon_threads,o.block_on_close = True,False
            threading.Thread(target=o.serve_forever, kwargs=dict(poll_interval=.02), daemon=True).start()
        self.url,self.cdn = (f'http://127.0.0.1:{o.server_port}' for o in self.servers)
    def listing(self):
        siblings = []
        for k,v in self.files.items():
            size,git,sha = facts(v)
            siblings.append(dict(rfilename=k, size=size, blobId=git, **(dict(lfs=dict(size=size, sha256=sha, pointerSize=130)) if size>5000 else {})))
            siblings[-1] |= self.extra.get(k, {})
        return dict(id=name, sha=self.commit, private=False, gated=False, tags=[], siblings=siblings)
    def gets(self, *begin): return [o[1:3] for o in self.asked if o[0]=='GET' and (not begin or o[1].startswith(begin))]
    def silent(self, handler): self.over.wait(20)
    def close(self):
        self.over.set()
        huggingface_hub.close_session()
        for o in self.servers:
            o.shutdown()
            o.server_close()

def status(code, **headers): return lambda handler: handler.reply(code, **headers)

@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub()
    for k,v in dict(ENDPOINT=hub.url, HF_HUB_CACHE=str(tmp_path/'hub'), HF_HUB_OFFLINE=False, HF_HUB_DISABLE_TELEMETRY=True,
                    HUGGINGFACE_CO_URL_TEMPLATE=hub.url+'/{repo_id}/resolve/{revision}/{filename}',
                    HF_TOKEN_PATH=str(tmp_path/'token')).items(): monkeypatch.setattr(constants, k, v)
    for k in ('HF_TOKEN','HUGGING_FACE_HUB_TOKEN'): monkeypatch.delenv(k, raising=False)
    for k in ('NO_PROXY','no_proxy'): monkeypatch.setenv(k, '127.0.0.1')
    monkeypatch.chdir(tmp_path)
    huggingface_hub.close_session()
    yield hub
    hub.close()

@pytest.fixture
def naps(monkeypatch):
    "Pauses are noted and not made."
    naps,sleep = [],time.sleep
    monkeypatch.setattr('miniai.hub.time', SimpleNamespace(sleep=lambda s: (naps.append(s), sleep(0))[1], time=time.time))
    return naps

def whole(folder, hub, without=()):
    "Does the folder hold what it should, and nothing else?"
    found = {o.relative_to(folder).as_posix(): o.read_bytes() for o in folder.rglob('*') if o.is_file()}
    assert found=={k: v for k,v in hub.files.items() if k not in unwanted and k not in without}
    assert not list(folder.parents[2].rglob('*.incomplete'))

def refused(exc, *words, **kw):
    "hub_folder raises this, in one line that has the words and not the token."
    with pytest.raises(exc) as e: hub_folder(**dict(name=name, timeout=5) | kw)
    text = str(e.value)
    assert type(e.value) is exc and '\n' not in text and len(text)<330 and text.split(':')[0] in ('name','token','revision')
    assert e.value.__cause__ is None and (e.value.__suppress_context__ or e.value.__context__ is None)
    for o in words: assert o in text, text
    assert secret not in text
    return text

# ---- what should work

def test_download_then_no_download_then_no_network(hub, tmp_path):
    hub.files |= dict.fromkeys(unwanted, os.urandom(70_000))
    folder = hub_folder(name, token=secret)
    whole(folder, hub)
    assert folder==tmp_path/'hub'/'models--small--diffusion'/'snapshots'/commit
    order = [f for f,_ in hub.gets()]
    assert order[:2]==['api','model_index.json'] and order[-1]==f'cdn {unet}'
    assert not [o for o in order if o.split()[-1] in unwanted] and len(order)==1+8+2*3
    auth = {o[1].startswith('cdn '): o[3] for o in hub.asked}
    assert auth=={False: f'Bearer {secret}', True: None}                  # the token goes to the hub alone
    hub.asked.clear()
    assert hub_folder(name)==folder and hub.gets()==[('api', None)]
    hub.asked.clear()
    assert hub_folder(name, revision=commit)==folder and not hub.asked  # a commit never changes
    hub.close()
    with pytest.warns(UserWarning, match='^name: .* cannot be reached.*; the copy in the cache is used$'): assert hub_folder(name)==folder

def test_offline_in_a_fresh_process_by_its_environment(hub, tmp_path):
    env = dict(HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path/'home'), HF_HUB_CACHE='', HF_HUB_DISABLE_TELEMETRY='1', HF_HUB_OFFLINE='0')
    env |= dict(PYTHONPATH=os.environ.get('PYTHONPATH', ''))
    del env['HF_HUB_CACHE']
    code = "import sys; from miniai.hub import hub_folder; print(hub_folder('small/diffusion')); print('torch' in sys.modules)"
    run = python('-c', code, env=env)
    assert run.returncode==0 and run.stdout.split()[1]=='False', run.stderr
    assert str(tmp_path/'home'/'hub') in run.stdout
    hub.asked.clear()
    again = python('-c', code, env=env|dict(HF_HUB_OFFLINE='1'))
    assert again.stdout==run.stdout and not hub.asked, again.stderr

def test_diffusers_loads_the_folder(hub, tmp_path):
    for o in ('diffusers','transformers','torch'): pytest.importorskip(o)
    from diffusers import AutoencoderKL,DDIMScheduler,StableDiffusionPipeline,UNet2DConditionModel
    from transformers import CLIPTextConfig,CLIPTextModel,CLIPTokenizer
    vocab = {o: i for i,o in enumerate(['a','a</w>','<|startoftext|>','<|endoftext|>'])}
    clip = CLIPTextConfig(vocab_size=4, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, bos_token_id=2, eos_token_id=3)
    blocks = dict(block_out_channels=(8,), norm_num_groups=4, layers_per_block=1)
    net = UNet2DConditionModel(sample_size=8, cross_attention_dim=8, attention_head_dim=4, down_block_types=['CrossAttnDownBlock2D'],
                               up_block_types=['CrossAttnUpBlock2D'], **blocks)
    pipe = StableDiffusionPipeline(AutoencoderKL(latent_channels=4, **blocks), CLIPTextModel(clip), CLIPTokenizer(vocab=vocab, merges=[], model_max_length=8),
                                   net, DDIMScheduler(steps_offset=1, clip_sample=False), None, None, requires_safety_checker=False)
    pipe.save_pretrained(tmp_path/'saved')
    hub.files = {o.relative_to(tmp_path/'saved').as_posix(): o.read_bytes() for o in (tmp_path/'saved').rglob('*') if o.is_file()}
    again = StableDiffusionPipeline.from_pretrained(hub_folder(name), safety_checker=None)
    want,got = ({k: v.tolist() for k,v in o.unet.state_dict().items()} for o in (pipe, again))
    assert got==want and again.tokenizer('a').input_ids==pipe.tokenizer('a').input_ids

def test_the_library_finds_what_we_fetched_and_we_what_it_fetched(hub):
    folder = hub_folder(name)
    assert snapshot_download(name, local_files_only=True)==str(folder)
    hub.asked.clear()
    assert hf_hub_download(name, unet)==str(folder/unet) and not hub.gets()
    verified = huggingface_hub.scan_cache_dir()
    assert not verified.warnings and [o.repo_id for o in verified.repos]==[name]
    shutil.rmtree(folder.parents[1])
    for o in (unet, text): hf_hub_download(name, o)
    hub.asked.clear()
    whole(hub_folder(name), hub)
    assert [o for o,_ in hub.gets('cdn')]==[f'cdn {vae}']

def test_a_new_commit_brings_only_what_changed_and_the_old_one_stays_until_it_is_whole(hub, naps):
    old = hub_folder(name)
    hub.commit,hub.files[vae] = 'b2'*20,os.urandom(100_000)
    hub.plan[f'cdn {vae}'] = [status(500)]*9
    with pytest.warns(UserWarning) as said: assert hub_folder(name)==old
    assert 'answers 500' in str(said[-1].message) and str(said[-1].message).endswith('; the copy in the cache is used')
    hub.plan.clear()
    hub.asked.clear()
    new = hub_folder(name)
    assert new.name==hub.commit and [o for o,_ in hub.gets('cdn')]==[f'cdn {vae}']
    whole(new, hub)
    assert (old/vae).read_bytes()!=hub.files[vae]

def test_half_takes_16_bits_where_they_are(hub):
    half16 = unet.replace('.safe', '.fp16.safe')
    hub.files[half16] = os.urandom(150_000)
    whole(hub_folder(name, half=True), hub, without=(unet,))
    hub.asked.clear()
    folder = hub_folder(name, revision=commit)                            # 32 bits were not asked for before
    assert (folder/unet).is_file() and (folder/half16).is_file()          # both lie side by side
    assert hub.gets('cdn')==[(f'cdn {unet}', None)]
    hub.asked.clear()
    assert hub_folder(name, revision=commit)==folder and not hub.asked

def test_shards(hub):
    one,two = (unet.replace('.safe', f'-0000{i}-of-00002.safe') for i in (1,2))
    hub.files |= {one: hub.files.pop(unet), two: os.urandom(80_000)}
    index = {f'w{i}': o.split('/')[1] for i,o in enumerate((one, two, one))}
    hub.files['unet/diffusion_pytorch_model.safetensors.index.json'] = json.dumps(dict(weight_map=index)).encode()
    folder = hub_folder(name)
    whole(folder, hub)
    (folder/two).unlink()
    with pytest.MonkeyPatch.context() as m:
        m.setattr(constants, 'HF_HUB_OFFLINE', True)
        refused(OSError, 'not complete in the cache')

def test_where_links_are_not_allowed(hub, monkeypatch):
    monkeypatch.setattr(constants, 'HF_HUB_DISABLE_SYMLINKS', True)
    folder = hub_folder(name)
    whole(folder, hub)
    assert not any(o.is_symlink() for o in folder.rglob('*'))
    hub.asked.clear()
    assert hub_folder(name)==folder and hub.gets()==[('api', None)]

def test_two_at_once_fetch_each_file_once(hub):
    found = []
    threads = [threading.Thread(target=lambda: found.append(hub_folder(name))) for _ in range(3)]
    for o in threads: o.start()
    for o in threads: o.join()
    assert len(found)==3 and len(set(found))==1
    whole(found[0], hub)
    assert len(hub.gets('cdn'))==3

def test_two_at_once_note_the_commit(tmp_path, monkeypatch):
    met,replace,failed = threading.Barrier(3),os.replace,[]
    def together(*args):                            # all have written before the first renames
        met.wait(10)
        replace(*args)
    monkeypatch.setattr(os, 'replace', together)
    def work():
        try: _note(tmp_path, 'main', 'a'*40)
        except Exception as e: failed.append(e)
    threads = [threading.Thread(target=work) for _ in range(3)]
    for o in threads: o.start()
    for o in threads: o.join()
    assert not failed and [o.name for o in (tmp_path/'refs').iterdir()]==['main'] and (tmp_path/'refs'/'main').read_text()=='a'*40

def test_a_file_that_goes_while_it_is_measured(tmp_path):
    def stat(): raise FileNotFoundError
    assert _held(SimpleNamespace(is_file=lambda: True, stat=stat))==-1 and _held(tmp_path)==-1
    (tmp_path/'a').write_bytes(b'abc')
    assert _held(tmp_path/'a')==3

# ---- downloads that go wrong

def test_truncated_then_resumed_by_range(hub, naps):
    hub.plan[f'cdn {unet}'] = [100_000, 50_000]
    whole(hub_folder(name), hub)
    assert hub.gets(f'cdn {unet}')==[(f'cdn {unet}', o) for o in (None, 'bytes=100000-', 'bytes=150000-')]
    assert hub.sent==sum(map(len, hub.files.values()))+len(json.dumps(hub.listing()))      # no byte twice

def test_resumed_by_a_later_call(hub, naps):
    hub.plan[f'cdn {unet}'] = [200_000]+[0]*9
    refused(OSError, 'breaks off', 'call again, it goes on where it stopped')
    part, = (o for o in os.scandir(f'{constants.HF_HUB_CACHE}/models--small--diffusion/blobs') if o.name.endswith('.incomplete'))
    assert part.stat().st_size==200_000 and len(naps)<9
    hub.plan.clear()
    hub.asked.clear()
    whole(hub_folder(name), hub)
    assert hub.gets('cdn')==[(f'cdn {unet}', 'bytes=200000-')]

def stops(hub):
    "Sends a part of the UNet and falls silent."
    def send(handler):
        handler.send_response(200)
        handler.send_header('Content-Length', '300000')
        handler.end_headers()
        handler.wfile.write(hub.files[unet][:123_456])
        handler.wfile.flush()
        hub.half.set()
        hub.over.wait(20)
    return send

@pytest.mark.skipif(os.name!='posix', reason='needs signals')
@pytest.mark.parametrize('sig', [signal.SIGINT, signal.SIGKILL])
def test_a_process_that_ends_half_way_leaves_what_it_has(hub, sig):
    hub.plan[f'cdn {unet}'] = [stops(hub)]
    env = {**os.environ, 'HF_ENDPOINT': hub.url, 'HF_HUB_CACHE': constants.HF_HUB_CACHE, 'HF_HUB_DISABLE_TELEMETRY': '1', 'HF_HUB_OFFLINE': '0'}
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from miniai.hub import hub_folder; hub_folder('small/diffusion')"
    p = subprocess.Popen([sys.executable, '-c', code], env=env, stderr=subprocess.DEVNULL)
    assert hub.half.wait(30)
    part = Path(constants.HF_HUB_CACHE)/'models--small--diffusion'/'blobs'/f'{facts(hub.files[unet])[2]}.incomplete'
    for _ in range(500):
        if part.exists() and part.stat().st_size>100_000: break
        time.sleep(.02)
    time.sleep(.1)                                                        # the last bytes before the silence
    start = time.time()
    p.send_signal(sig)
    assert p.wait(10) and time.time()-start<5
    here,hub.asked = part.stat().st_size,[]
    assert 100_000<here<=123_456
    whole(hub_folder(name), hub)
    assert hub.gets('cdn')==[(f'cdn {unet}', f'bytes={here}-')]

@pytest.mark.parametrize('size', [100, 300_000, 300_001])
def test_a_foreign_incomplete_file_is_found_out_by_its_checksum(hub, naps, size):
    blobs = f'{constants.HF_HUB_CACHE}/models--small--diffusion/blobs'
    os.makedirs(blobs)
    with open(f'{blobs}/{facts(hub.files[unet])[2]}.incomplete', 'wb') as f: f.write(b'x'*size)
    if size<=300_000: refused(OSError, f'{unet} of {name} arrived damaged')
    whole(hub_folder(name), hub)

def test_a_server_without_ranges_sends_all_again(hub, naps):
    def all_of_it(handler): handler.reply(200, hub.files[unet])
    hub.plan[f'cdn {unet}'] = [100_000, all_of_it]
    whole(hub_folder(name), hub)

@pytest.mark.parametrize('body', [b'y'*300_000, b'y'*300_001, b'y'*299_999, b'', b'<html>sign in</html>'])
def test_wrong_bytes_are_refused_and_not_kept(hub, naps, body):
    hub.plan[f'cdn {unet}'] = [status(200, body=body)]+[status(416)]*9
    refused(OSError, 'arrived damaged' if len(body)>=300_000 else 'answers 416')
    assert not os.path.lexists(f'{constants.HF_HUB_CACHE}/models--small--diffusion/snapshots/{commit}/{unet}')
    hub.plan.clear()
    whole(hub_folder(name), hub)

def test_a_blob_that_became_shorter_is_fetched_again(hub):
    folder = hub_folder(name)
    with open(folder/vae, 'r+b') as f: f.truncate(99)
    hub.asked.clear()
    whole(hub_folder(name), hub)
    assert [o for o,_ in hub.gets('cdn')]==[f'cdn {vae}']

def test_too_little_space_is_told_before_the_download(hub, monkeypatch):
    monkeypatch.setattr('shutil.disk_usage', lambda p: SimpleNamespace(free=400_000))
    refused(OSError, 'needs 0.00 GB more', 'make room', 'HF_HOME', 'half=True')
    assert not hub.gets('cdn')

def test_a_full_disk(hub, monkeypatch):
    def full(fd): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr('os.fsync', full)
    refused(OSError, 'cannot write', 'No space left on device; make room there')
    monkeypatch.undo()

@pytest.mark.skipif(os.name!='posix' or os.geteuid()==0, reason='root may write everywhere')
def test_a_cache_that_cannot_be_written(hub, tmp_path):
    tmp_path.chmod(0o500)
    try: refused(OSError, 'Permission denied', 'make it writable')
    finally: tmp_path.chmod(0o700)

def test_the_cache_is_a_file(hub, tmp_path):
    (tmp_path/'hub').write_text('mine')
    refused(OSError, 'cannot write')
    assert (tmp_path/'hub').read_text()=='mine'

# ---- refusals

gated = dict(X_Error_Code='GatedRepo', X_Error_Message='Access to model small/diffusion is restricted.')

@pytest.mark.parametrize('code,headers,token,exc,words', [
    (401, dict(X_Error_Code='RepoNotFound'), None, ValueError, 'does not have a model small/diffusion, or it is private and needs a token'),
    (401, {}, None, ValueError, 'or it is private and needs a token in HF_TOKEN or .env'),
    (401, dict(X_Error_Message='Invalid credentials in Authorization header'), secret, ValueError, 'token: the hub refuses the token'),
    (404, dict(X_Error_Code='RepoNotFound'), secret, ValueError, 'does not have a model small/diffusion'),
    (404, dict(X_Error_Code='RevisionNotFound'), None, ValueError, "revision: small/diffusion has no revision 'main'"),
    (403, gated, secret, ValueError, f'is gated, its licence stands on https://huggingface.co/{name}: accept it there with the account of your token'),
    (401, gated, None, ValueError, 'put a token of your account into HF_TOKEN or .env'),
    (403, dict(X_Error_Message='Access to this resource is disabled.'), None, ValueError, 'taken small/diffusion off'),
    (418, {}, None, OSError, 'answers 418')])
@pytest.mark.parametrize('where', ['api','model_index.json'])
def test_refusals(hub, code, headers, token, exc, words, where):
    hub.plan[where] = [status(code, **headers)]
    refused(exc, words, token=token)
    assert len(hub.gets(where))==1

def test_a_refusal_does_not_matter_where_the_cache_is_complete(hub):
    folder = hub_folder(name)
    hub.plan['api'] = [status(404, X_Error_Code='RepoNotFound')]
    with pytest.warns(UserWarning, match='does not have a model'): assert hub_folder(name)==folder
    hub.plan['api'] = [status(429, Retry_After='30')]                     # and nobody waits for it
    with pytest.warns(UserWarning, match='too many requests.*the copy in the cache'): assert hub_folder(name)==folder
    hub.plan['api'] = [hub.silent]
    start = time.time()
    with pytest.warns(UserWarning, match='was silent for 0.3 s'): assert hub_folder(name, timeout=.3)==folder
    assert time.time()-start<3

def test_a_name_that_has_moved(hub):
    assert refused(ValueError, name='runwayml/stable-diffusion-v1-5').endswith('did you mean stable-diffusion-v1-5/stable-diffusion-v1-5?')

@pytest.mark.parametrize('where', ['api','scheduler/scheduler_config.json',f'cdn {vae}'])
def test_too_many_requests_then_success(hub, naps, where):
    hub.plan[where] = [status(429, Retry_After='7'), status(429, RateLimit='"api";r=0;t=3')]
    with pytest.warns(UserWarning, match='asks for a pause of [37] s'): whole(hub_folder(name), hub)
    assert naps[:2]==[7, 3]

def test_too_many_requests_for_ever(hub, naps):
    hub.plan['api'] = [status(429, Retry_After='9')]*9
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        refused(OSError, 'too many requests', 'tried 4 times', 'try again in 9 s', 'with a token')
    assert naps==[9]*3
    hub.plan['api'],hub.asked = [status(429, Retry_After='3600')],[]
    refused(OSError, 'tried once', 'try again in 3600 s', token=secret)  # no pause of an hour
    assert naps==[9]*3 and len(hub.asked)==1

def test_a_hub_in_trouble(hub, naps):
    hub.plan['api'] = [status(503), status(502)]
    whole(hub_folder(name), hub)
    assert naps[:2]==[.5, 1]

# ---- silence

@pytest.mark.parametrize('where', ['api','model_index.json',unet,f'cdn {unet}'])
def test_a_silent_hub_is_given_up(hub, where):
    hub.plan[where] = [hub.silent]*9
    start = time.time()
    refused(OSError, 'was silent for 0.4 s', timeout=.4)
    assert .3<time.time()-start<4

def test_silence_in_the_middle_and_the_rest_later(hub):
    hub.plan[f'cdn {unet}'] = [stops(hub)]
    refused(OSError, 'was silent', 'what has arrived is kept', timeout=.5)
    hub.asked.clear()
    whole(hub_folder(name), hub)
    assert hub.gets('cdn')==[(f'cdn {unet}', 'bytes=123456-')]

def test_a_listing_that_trickles_is_given_up(hub):
    def trickles(handler):
        handler.send_response(200)
        handler.send_header('Content-Length', '1000')
        handler.end_headers()
        while not hub.over.wait(.1): handler.wfile.write(b' ')
    hub.plan['api'] = [trickles]
    start = time.time()
    refused(OSError, 'was silent for 0.5 s', timeout=.5)
    assert time.time()-start<4

def test_a_refused_connection(hub, naps):
    hub.close()
    start = time.time()
    refused(OSError, 'cannot be reached', 'HF_ENDPOINT')
    assert time.time()-start<4

@pytest.mark.parametrize('where', ['api',unet,f'cdn {unet}'])
def test_redirects_in_a_circle(hub, where):
    def round_and_round(handler): handler.reply(302, Location=handler.path)
    hub.plan[where] = [round_and_round]*99
    refused(OSError, 'sends us in circles')

# ---- what a hub would not say

@pytest.mark.parametrize('answer', [b'<html>sign in to this network</html>', b'[]', b'{}', b'null', b'', b'{"id": 1, "sha": "../../x", "siblings": []}',
                                    json.dumps(dict(id=name, sha=commit)).encode(), json.dumps(dict(id=name, sha=commit, siblings=[3])).encode()])
def test_another_server(hub, answer):
    hub.plan['api'] = [status(200, body=answer)]
    refused(OSError, 'is not what a hub answers')

@pytest.mark.parametrize('lies', [dict(lfs=dict(size=300_000, sha256='../../../evil', pointerSize=1)), dict(lfs=dict(size='x', sha256='0'*64, pointerSize=1)),
                                  dict(lfs=dict(size=-1, sha256='0'*64, pointerSize=1)), dict(lfs=None, blobId='A'*40)])
def test_a_listing_with_impossible_checksums(hub, tmp_path, lies):
    hub.extra[unet] = lies
    refused(OSError, 'is not what a hub answers')
    assert not list(tmp_path.rglob('evil*'))

def test_a_checksum_that_is_not_that_of_the_file(hub):
    hub.extra[unet] = dict(lfs=dict(size=300_000, sha256='0'*64, pointerSize=130))
    refused(OSError, f'{unet} of {name} arrived damaged')
    shutil.rmtree(constants.HF_HUB_CACHE)
    hub.extra = {'scheduler/scheduler_config.json': dict(blobId='0'*40)}
    refused(OSError, 'scheduler_config.json of small/diffusion arrived damaged')

@pytest.mark.parametrize('kind', ['FluxPipeline','StableDiffusionXLPipeline','StableDiffusionControlNetPipeline','StableDiffusion3Pipeline'])
def test_another_pipeline(hub, kind):
    hub.files['model_index.json'] = json.dumps({'_class_name': kind}).encode()
    refused(ValueError, 'expected a Stable Diffusion 1.x or 2.x', f'is of the class {kind}')
    assert len(hub.gets())==2

def test_what_is_missing_in_a_repository(hub):
    pickles = unet.replace('.safetensors', '.bin'),'unet/diffusion_pytorch_model.ckpt'
    raw = hub.files.pop(unet)
    refused(ValueError, 'the unet of small/diffusion has no .safetensors weights')
    hub.files |= dict.fromkeys(pickles, raw)
    refused(ValueError, 'weights only as pickles', 'can run code')
    assert not [o for o,_ in hub.gets() if o.endswith(('.bin','.ckpt'))] and not hub.gets('cdn')
    hub.files[unet] = raw
    for o in ('vae/config.json','tokenizer/vocab.json','model_index.json'):
        kept = hub.files.pop(o)
        refused(ValueError, o.split('/')[0])
        hub.files[o] = kept
    hub.files['model_index.json'] = b'{"_class_name": '
    refused(ValueError, 'model_index.json of small/diffusion is damaged')

@pytest.mark.parametrize('bad', ['../vae/x.safetensors','/etc/x.safetensors','..\\x.safetensors','config.json','absent.safetensors','a?b.safetensors',3])
def test_an_index_that_points_elsewhere(hub, bad):
    raw = hub.files.pop(unet)
    hub.files |= {f'unet/{bad}': raw} if bad!='absent.safetensors' else {}
    hub.files[f'{unet}.index.json'] = json.dumps(dict(weight_map=dict(w=bad))).encode()
    refused(ValueError, 'names weights that are not there')

# ---- the token

def test_the_token_of_the_environment_of_env_and_of_the_login(hub, tmp_path, monkeypatch):
    def sent():
        hub.asked.clear()
        hub_folder(name)
        return hub.asked[0][3]
    assert sent() is None
    (tmp_path/'token').write_text('hf_login')
    assert sent()=='Bearer hf_login'
    (tmp_path/'.env').write_text("OTHER=x\nHF_TOKEN='hf_file'\n")
    (tmp_path/'.env').chmod(0o600)
    assert sent()=='Bearer hf_file' and 'OTHER' not in os.environ
    monkeypatch.setenv('HF_TOKEN', 'hf_outside')
    assert sent()=='Bearer hf_outside'

@pytest.mark.skipif(os.name!='posix', reason='needs file modes')
@pytest.mark.parametrize('mode,warned', [(0o600, False), (0o400, False), (0o640, True), (0o604, True), (0o644, True)])
def test_env_that_others_can_read(tmp_path, monkeypatch, mode, warned):
    monkeypatch.delenv('HF_TOKEN', raising=False)
    (tmp_path/'.env').write_text(f'HF_TOKEN={secret}\n')
    (tmp_path/'.env').chmod(mode)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        assert hub_token(tmp_path/'.env')==secret
    assert [str(o.message) for o in said]==[f"path: others can read the token in {tmp_path/'.env'}: run chmod 600 {tmp_path/'.env'}"]*warned

def test_env_without_the_package_that_reads_it(tmp_path, monkeypatch):
    monkeypatch.delenv('HF_TOKEN', raising=False)
    monkeypatch.setitem(__import__('sys').modules, 'dotenv', None)
    assert hub_token(tmp_path/'.env') is None
    (tmp_path/'.env').write_text('OTHER=1\n')
    assert hub_token(tmp_path/'.env') is None                             # nothing for us in it
    (tmp_path/'.env').write_text(f'HF_TOKEN={secret}\n')
    (tmp_path/'.env').chmod(0o600)
    with pytest.raises(ImportError, match='^path: reading .* needs the package python-dotenv: pip install python-dotenv, or set HF_TOKEN') as e:
        hub_token(tmp_path/'.env')
    assert secret not in str(e.value)

def test_the_token_is_never_shown(hub, naps, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    plans = [{'api': [status(401)]}, {'api': [status(429, Retry_After='5')]*9}, {'model_index.json': [status(403, **gated)]}, {f'cdn {unet}': [10]+[0]*9},
             {'api': [status(200, body=b'{')]}, {unet: [status(302, Location='nowhere://x')]*9}]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        for plan in plans:
            hub.plan = plan
            with pytest.raises((ValueError,OSError)) as e: hub_folder(name, token=secret)
            assert secret not in repr(e.value)
        for bad in (f'{secret}\n', f'{secret} x', f'{secret}\u00e9'):
            with pytest.raises(ValueError, match='^token: expected one word') as e: hub_folder(name, token=bad)
            assert secret not in str(e.value)
    out = capfd.readouterr()
    assert secret not in caplog.text+out.out+out.err+' '.join(str(o.message) for o in said)

def test_env_is_not_committed():
    from common import root
    assert '.env' in (root/'.gitignore').read_text().splitlines()
