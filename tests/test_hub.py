"The second source of `get_data`: a server on this machine that answers as the Hugging Face hub does, then falls silent."
import hashlib,json,threading
from http.server import BaseHTTPRequestHandler,ThreadingHTTPServer
from urllib.parse import unquote,urlparse
import pytest
from common import python

repo,commit = 'zalando-datasets/fashion_mnist','a'*40

class Hub(BaseHTTPRequestHandler):
    "One data set of two parquet files; `files` is set by the fixture."
    protocol_version,files = 'HTTP/1.1',{}
    def log_message(self, *args): pass
    def reply(self, body, **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(200 if body!=b'null' else 404)
        for k,v in {'Content-Length': str(len(body)), **headers}.items(): self.send_header(k.replace('_', '-'), v)
        self.end_headers()
        if self.command!='HEAD': self.wfile.write(body)
    def do_GET(self):
        url = unquote(urlparse(self.path).path)
        if url.startswith(f'/datasets/{repo}/resolve/'):
            name = url.split('/resolve/')[1].split('/', 1)[1]
            if name not in self.files: return self.reply(None, X_Error_Code='EntryNotFound')
            return self.reply(self.files[name], ETag=f'"{hashlib.sha1(name.encode()).hexdigest()}"', X_Repo_Commit=commit)
        tree = [dict(type='file', path=f, size=len(b), oid=hashlib.sha1(f.encode()).hexdigest()) for f,b in self.files.items()]
        if '/tree/' in url: return self.reply(tree)
        siblings = [dict(rfilename=f) for f in self.files]
        self.reply(dict(id=repo, sha=commit, private=False, gated=False, tags=[], siblings=siblings) if repo in url else None)
    do_HEAD = do_GET

def caches(folder): return dict(HF_HOME=str(folder), HF_HUB_CACHE=str(folder/'hub'), HF_DATASETS_CACHE=str(folder/'datasets'))

@pytest.fixture
def hub(tmp_path):
    make = ("from miniai.data import _encode,draw_shapes,SHAPES\n"
            "for i,s in enumerate(('train','test')): _encode(*draw_shapes(30, seed=i), SHAPES).to_parquet(f'{s}-00000-of-00001.parquet')")
    assert python('-c', make, cwd=tmp_path).returncode==0
    Hub.files = {f.name: f.read_bytes() for f in tmp_path.glob('*.parquet')}
    with ThreadingHTTPServer(('127.0.0.1', 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()

def test_hub_then_our_cache_then_the_clients_cache_then_shapes(hub, tmp_path):
    env = dict(MINIAI_DATA='', HF_ENDPOINT=f'http://127.0.0.1:{hub.server_port}', NO_PROXY='127.0.0.1', no_proxy='127.0.0.1',
               HF_HUB_OFFLINE='0', HF_DATASETS_OFFLINE='0', XDG_CACHE_HOME=str(tmp_path/'cache'), **caches(tmp_path/'hf'))
    def source(cache):
        code = f"from miniai.data import get_data; d = get_data(cache={str(tmp_path/cache)!r}); print('>', d.source, len(d.x_train))"
        run = python('-c', code, cwd=tmp_path, env=env)
        assert run.returncode==0, run.stderr
        return run.stdout.split('>')[-1].split()
    assert source('ours')==['hub','30']
    hub.shutdown()
    hub.server_close()
    assert source('ours')==['hub','30']           # our own cache
    assert source('other')==['hub','30']          # the hub client's cache
    env |= caches(tmp_path/'empty')
    assert source('third')==['drawn','24000']     # nothing left
