"""Faults of lesson 44: runs that fail, registries and journals that are killed at every step, a service and its bad customers, drift.

Nothing here waits for time to pass: models are held by events, and conditions of the line are waited for."""
import asyncio,json,os,socket,subprocess,sys,threading
import pytest,torch
from torch import nn
from common import python,root
from miniai import serving as s
from miniai.ddpm import load_weights,save_weights
from miniai.distill import Change

class Held:
    "A model that draws nothing until it may."
    def __init__(self): self.calls,self.began,self.may = [],threading.Event(),threading.Event()
    def __call__(self, asks):
        self.calls.append([o.seed for o in asks])
        self.began.set()
        assert self.may.wait(60)
        if any(o.prompt=='poison' for o in asks): raise ValueError("poison")
        return [f'image {o.seed}' for o in asks]

def until(line, condition):
    with line.changed: assert line.changed.wait_for(condition, 60)

texts = dict(to_bytes=str.encode, media_type='text/plain')

# The line

def test_batches_share_settings_and_the_oldest_decides():
    held = Held()
    line = s.Batcher(held, max_batch=2, max_queue=9)
    first = line.submit(s.Ask('a', 0))
    assert held.began.wait(60)
    rest = [line.submit(s.Ask('a', k, steps)) for k,steps in enumerate((2, 4, 2, 4, 2, 4), 1)]
    held.may.set()
    assert [o.result(60) for o in (first, *rest)]==[f'image {k}' for k in range(7)]
    assert held.calls==[[0], [1,3], [2,4], [5], [6]]
    line.close()

def test_full_line_refuses_and_a_cancelled_place_is_free():
    held = Held()
    line = s.Batcher(held, max_batch=1, max_queue=2)
    first = line.submit(s.Ask('a', 0))
    assert held.began.wait(60)
    a,b = line.submit(s.Ask('a', 1)),line.submit(s.Ask('a', 2))
    with pytest.raises(s.QueueFull): line.submit(s.Ask('a', 3))
    assert a.cancel() and not first.cancel()                       # what is being drawn cannot be cancelled
    c = line.submit(s.Ask('a', 4))
    held.may.set()
    assert [o.result(60) for o in (first, b, c)]==['image 0','image 2','image 4'] and held.calls==[[0],[2],[4]]
    line.close()
    with pytest.raises(s.QueueFull, match='closing'): line.submit(s.Ask('a'))

def test_one_poisonous_request_fails_alone():
    held = Held()
    line = s.Batcher(held, max_batch=8)
    first = line.submit(s.Ask('a', 0))
    assert held.began.wait(60)
    rest = [line.submit(s.Ask('poison' if k==2 else 'a', k)) for k in range(1, 4)]
    held.may.set()
    assert rest[0].result(60)=='image 1' and rest[2].result(60)=='image 3' and first.result(60)
    with pytest.raises(ValueError, match='poison'): rest[1].result(60)
    assert line.alive
    line.close()

def test_a_model_that_gives_too_few_is_an_error():
    line = s.Batcher(lambda asks: [])
    with pytest.raises(ValueError, match='0 for 1'): line.submit(s.Ask('a')).result(60)
    line.close()

def test_if_the_thread_dies_nobody_waits_for_it(monkeypatch):
    monkeypatch.setattr(threading, 'excepthook', lambda args: None)
    class Dies(BaseException): pass
    go = threading.Event()
    def draw(asks):
        go.wait(60)
        raise Dies
    line = s.Batcher(draw, max_batch=1)
    first,second = line.submit(s.Ask('a')),line.submit(s.Ask('b'))
    go.set()
    with pytest.raises(s.QueueFull): second.result(60)
    with pytest.raises(s.QueueFull): first.result(60)
    line.thread.join(60)
    assert not line.alive

def test_if_the_thread_dies_while_a_failed_batch_is_drawn_again_nobody_waits(monkeypatch):
    monkeypatch.setattr(threading, 'excepthook', lambda args: None)
    begun,go,n = threading.Event(),threading.Event(),[]
    def draw(asks):
        n.append(len(asks))
        begun.set()
        go.wait(60)
        if len(asks)>1: raise ValueError('poison')
        if asks[0].seed==2: raise SystemExit
        return [asks[0].seed]
    line = s.Batcher(draw, max_batch=3)
    first = line.submit(s.Ask('a', 0))
    begun.wait(60)
    three = [line.submit(s.Ask('a', k)) for k in (1, 2, 3)]
    go.set()
    assert (first.result(60), three[0].result(60))==(0, 1)
    for o in three[1:]:
        with pytest.raises(s.QueueFull): o.result(60)
    line.thread.join(60)
    assert n==[1, 3, 1, 1] and not line.alive

def test_close_draws_or_refuses_what_waits():
    for drain in (True, False):
        held = Held()
        line = s.Batcher(held, max_batch=1)
        first = line.submit(s.Ask('a', 0))
        assert held.began.wait(60)
        second = line.submit(s.Ask('a', 1))
        closing = threading.Thread(target=line.close, args=(drain,))
        closing.start()
        until(line, lambda: line.closed)
        if not drain:
            with pytest.raises(s.QueueFull): second.result(60)
        held.may.set()
        closing.join(60)
        assert first.result(60)=='image 0' and (not drain or second.result(60)=='image 1')

# The address, without a network: the application is called as a function

def call(app, method, path, body=b'', gone=None, headers=()):
    "`(status, headers, body)`; the client leaves when `gone`, an asyncio event, is set. A coroutine."
    async def run():
        sent,first,done = [],[dict(type='http.request', body=body, more_body=False)],asyncio.Event()
        async def receive():
            if first: return first.pop()
            await (gone or done).wait()
            return dict(type='http.disconnect')
        async def send(m):
            sent.append(m)
            if m['type']=='http.response.body' and not m.get('more_body'): done.set()
        scope = dict(type='http', asgi={'version': '3.0'}, http_version='1.1', method=method, path=path, raw_path=path.encode(), root_path='',
                     scheme='http', query_string=b'', headers=[(b'content-type', b'application/json'), *headers], client=('c', 1), server=('s', 80))
        await app(scope, receive, send)
        head = {k.decode(): v.decode() for k,v in sent[0].get('headers', [])} if sent else {}
        return (sent[0]['status'] if sent else None),head,b''.join(m.get('body', b'') for m in sent[1:])
    return run()

def order(**kw): return json.dumps(dict(prompt='a star', **kw)).encode()

@pytest.mark.parametrize('body,field', [
    (b'{"prompt": ""}', 'prompt'), (b'{"prompt": "   "}', 'prompt'), (b'{}', 'prompt'), (b'{"prompt": 3}', 'prompt'), (b'[]', 'body'), (b'no', '0'),
    (order(seed=-1), 'seed'), (order(seed=2**32), 'seed'), (order(seed=1.5), 'seed'), (order(seed=True), 'seed'), (order(seed='1'), 'seed'),
    (order(steps=3), 'steps'), (order(steps=True), 'steps'), (order(steps=2.), 'steps'), (b'\xff', 'body'), (b'['*4000, 'body'), (b'', 'body'), (order(steps=10**9), 'steps'), (order(weights='/etc/passwd'), 'weights'), (order(id='../x'), 'id'), (order(id=''), 'id'),
    (json.dumps(dict(prompt='a'*201)).encode(), 'prompt'), (b'{"prompt": "a \\ud800"}', '')])
def test_wrong_requests_are_refused_by_name(body, field):
    line = s.Batcher(lambda asks: 1/0)
    app = s.make_app(line, **texts)
    status,_,text = asyncio.run(call(app, 'POST', '/images', body))
    assert status==422 and json.loads(text)['errors'] and b'passwd' not in text
    if field: assert json.loads(text)['errors'][0]['field']==field
    assert 'requests_total{status="422"} 1\n' in line.metrics.text()
    line.close()

def test_what_comes_in_has_a_limit():
    line = s.Batcher(lambda asks: 1/0)
    assert asyncio.run(call(s.make_app(line), 'POST', '/images', b'x'*10_001))[0]==413
    assert 'requests_total{status="413"} 1\n' in line.metrics.text()
    line.close()

def test_a_body_that_stalls_is_answered_and_one_too_long_is_read_to_its_end():
    line = s.Batcher(lambda asks: 1/0)
    app,ask = s.make_app(line),b'POST /images HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n'
    assert app.longest==20
    app.patience = .3
    with s.running(app) as url:
        host,port = url[7:].split(':')
        with socket.create_connection((host, int(port)), 60) as c:
            c.sendall(ask % 5_000_000 + b'x'*5_000_000)                      # who sends does not listen: it must not be cut off
            assert c.makefile('rb').readline().split()[1]==b'413'
        stalls = socket.create_connection((host, int(port)), 60)
        stalls.sendall(ask % 500 + b'{"prompt"')
    assert stalls.makefile('rb').readline().split()[1]==b'408'               # and the service has ended
    stalls.close()
    assert 'requests_total{status="408"} 1\n' in line.metrics.text()

def test_a_service_that_ends_does_not_wait_for_ever():
    line = s.Batcher(lambda asks: 1/0)
    for app,seconds in ((s.make_app(line, timeout=60.5), 81), (None, 30)):
        taken = s.PageServer(port=0)
        assert s._server(app, taken, None).config.timeout_graceful_shutdown==seconds
        taken.socket.close()
    line.close()

def test_answers_and_metrics():
    prom = pytest.importorskip('prometheus_client.parser')
    line = s.Batcher(lambda asks: [f'image {o.seed}' for o in asks])
    app = s.make_app(line, check=lambda p: 'shorter' if 'long' in p else None, **texts)
    async def run():
        assert (await call(app, 'GET', '/health'))[0]==(await call(app, 'GET', '/ready'))[0]==200
        status,head,body = await call(app, 'POST', '/images', order(seed=7, id='me'))
        assert (status, head['x-request-id'], body)==(200, 'me', b'image 7')
        assert (await call(app, 'POST', '/images', b'{"prompt": "a long one"}'))[0]==422
        assert (await call(app, 'GET', '/images/me'))[0]==404             # no journal
        return (await call(app, 'GET', '/metrics'))[2].decode()
    page = asyncio.run(run())
    found = {(o.name, *o.labels.values()): o.value for f in prom.text_string_to_metric_families(page) for o in f.samples}
    assert found['requests_total', '200']==1 and found['requests_total', '422']==1 and found['waiting',]==0
    assert found['batch_size_count',]==1 and found['request_seconds_bucket', '+Inf']==1
    line.close()
    async def closed():
        assert (await call(app, 'GET', '/ready'))[0]==503
        status,head,_ = await call(app, 'POST', '/images', order())
        assert status==503 and int(head['retry-after'])>=1
    asyncio.run(closed())

def test_who_leaves_is_not_drawn_and_who_waits_too_long_neither(tmp_path):
    held = Held()
    line = s.Batcher(held, max_batch=1, max_queue=3)
    journal = s.Journal(tmp_path/'j')
    app,quick = (s.make_app(line, journal=journal, timeout=t, **texts) for t in (60, 0))
    async def run():
        first = asyncio.ensure_future(call(app, 'POST', '/images', order(seed=1, id='first')))
        await asyncio.to_thread(held.began.wait, 60)
        gone = asyncio.Event()
        leaves = asyncio.ensure_future(call(app, 'POST', '/images', order(seed=2, id='leaves'), gone))
        await asyncio.to_thread(until, line, lambda: len(line.waiting)==1)
        box = line.waiting[0].future
        assert (await call(app, 'POST', '/images', order(id='leaves')))[0]==409              # the name is in use
        gone.set()
        await leaves
        assert box.cancelled()
        assert (await call(quick, 'POST', '/images', order(seed=3, id='slow')))[0]==504
        held.may.set()
        assert (await first)[2]==b'image 1'
    asyncio.run(run())
    line.close()
    assert held.calls==[[1]]
    assert [journal.state(k) for k in ('first', 'leaves', 'slow')]==['done', 'failed 499', 'failed 504']
    assert all(f'requests_total{{status="{k}"}} 1\n' in line.metrics.text() for k in (200, 409, 499, 504))

def test_a_model_that_fails_is_500_and_the_next_one_is_served(capsys):
    line = s.Batcher(lambda asks: [1/(o.seed-1) and f'image {o.seed}' for o in asks])
    app = s.make_app(line, **texts)
    async def run(): return [(await call(app, 'POST', '/images', order(seed=k)))[0::2] for k in (1, 2)]
    (status,text),good = asyncio.run(run())
    assert status==500 and b'division' not in text and good==(200, b'image 2') and 'ZeroDivisionError' in capsys.readouterr().err
    line.close()

def test_an_image_that_cannot_be_written_is_500_everywhere(tmp_path, capsys):
    line,journal = s.Batcher(lambda asks: [o.seed for o in asks]),s.Journal(tmp_path/'j')
    app = s.make_app(line, journal=journal, to_bytes=lambda x: b'%d' % (1/x), media_type='text/plain')
    async def run(): return [(await call(app, 'POST', '/images', order(seed=k, id=f'r{k}')))[0::2] for k in (0, 1)]
    (status,text),good = asyncio.run(run())
    assert status==500 and json.loads(text)==dict(error='the model failed', id='r0') and good==(200, b'1') and 'ZeroDivisionError' in capsys.readouterr().err
    assert [journal.state(k) for k in ('r0', 'r1')]==['failed 500', 'done']
    assert all(f'requests_total{{status="{k}"}} 1\n' in line.metrics.text() for k in (200, 500))
    line.close()

# Files: killed at every step, damaged, foreign

killer = r'''
import os,sys
from miniai.ddpm import load_weights
from miniai.serving import Registry
folder,weights = sys.argv[1:]
events = {'open','os.rename','os.mkdir','os.remove','os.rmdir','shutil.copyfile','shutil.copymode','shutil.rmtree'}

def killed_at(k, change):
    pid = os.fork()
    if pid:
        status = os.waitpid(pid, 0)[1]
        assert status in (0, 9), status
        return status==9
    left = [k]
    def hook(event, args):
        if event not in events: return                     # os.kill is an event too
        left[0] -= 1
        if left[0]==0: os.kill(os.getpid(), 9)
    sys.addaudithook(hook)
    change()
    os._exit(0)

for what in ('promote','rollback','add'):
    registry = Registry(os.path.join(folder, what))
    for _ in range(2): registry.add(weights)
    registry.promote(1)
    registry.promote(2)
    change = dict(promote=lambda: registry.promote(1), rollback=registry.rollback, add=lambda: registry.add(weights))[what]
    k = 1
    while killed_at(k, change):
        assert registry.history()[-1] in ((2,) if what=='add' else (1, 2))
        for v in registry.versions(): load_weights(registry.path(v))
        while registry.history()!=[1, 2]: registry.promote(2) if registry.history()==[1] else registry.rollback()
        k += 1
    assert k>6, (what, k)
    assert registry.add(weights)==max(registry.versions()) and not list((registry.folder/'versions').glob('tmp-*'))
'''

@pytest.fixture(scope='module')
def small(tmp_path_factory):
    "A small set of weights."
    path = tmp_path_factory.mktemp('weights')/'net.safetensors'
    save_weights(nn.Linear(2, 3), path, config={}, data='drawn shapes', notebook='44_serving')
    return path

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_a_registry_killed_at_every_step_is_whole(small, tmp_path):
    run = python('-c', killer, str(tmp_path/'registry'), str(small))
    assert run.returncode==0, run.stderr

def test_registry_refuses_what_is_damaged(small, tmp_path):
    r = s.Registry(tmp_path/'r')
    (tmp_path/'bad.safetensors').write_bytes(small.read_bytes()[:-4])
    (tmp_path/'bad.json').write_bytes(small.with_suffix('.json').read_bytes())
    with pytest.raises(ValueError): r.add(tmp_path/'bad.safetensors')
    assert r.versions()==[] and r.add(small)==1
    with pytest.raises(ValueError, match='version'): r.promote(2)
    with pytest.raises(ValueError, match='nothing is in production'): r.path()
    r.promote(1)
    assert torch.equal(load_weights(r.path())[0]['weight'], load_weights(small)[0]['weight'])
    with pytest.raises(ValueError, match='two versions'): r.rollback()
    for bad in (1., True, '1', 0):
        for f in (r.promote, r.path):
            with pytest.raises(ValueError, match='version: expected a whole number'): f(bad)
    assert r.history()==[1]
    for text in ('', '[1]', '{"history": 3}', '{"history": [9]}', '{"history": [1.0]}', '{"history": [true]}'):
        (tmp_path/'r/production.json').write_text(text)
        with pytest.raises(ValueError, match='folder'): r.history()

def test_two_registries_on_one_folder_get_different_numbers(small, tmp_path):
    versions = []
    people = [threading.Thread(target=lambda: versions.append(s.Registry(tmp_path/'r').add(small))) for _ in range(4)]
    for o in people: o.start()
    for o in people: o.join(60)
    assert sorted(versions)==[1, 2, 3, 4]

def test_a_home_is_understood_everywhere(small, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('USERPROFILE', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for suffix in ('.safetensors', '.json'): (tmp_path/f'w{suffix}').write_bytes(small.with_suffix(suffix).read_bytes())
    registry = s.Registry('~/r')
    assert registry.add('~/w.safetensors')==1 and registry.path(1).is_relative_to(tmp_path/'r')
    s.Journal('~/j').close()
    assert s.RunCardCB('~/card.json').path==tmp_path/'card.json' and s.TensorBoardCB('~/board').folder==tmp_path/'board'
    assert s.git_state('~')==s.git_state(tmp_path) and (tmp_path/'j').exists() and not (tmp_path/'~').exists()
    with pytest.raises(ValueError, match='path: expected a path that ends in .safetensors, got .*w$'): registry.add(tmp_path/'w')
    (tmp_path/'r'/'versions'/'0009').mkdir()
    with pytest.raises(ValueError, match='version: there are no weights in .*0009'): registry.path(9)

def test_a_registry_at_home_is_served(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('USERPROFILE', str(tmp_path))
    s.Registry(tmp_path/'r')
    assert s.serve_main(['--port', '0', '--registry', '~/r'])==2 and 'nothing is in production' in capsys.readouterr().err

def test_journal_after_a_kill_a_torn_line_and_a_foreign_file(tmp_path):
    path = tmp_path/'j'
    j = s.Journal(path)
    assert j.begin('a') and j.begin('b') and not j.begin('a')
    j.note('b', 'done')
    with open(path, 'ab') as f: f.write(b'["c", "acce')               # the process died in this line
    again = s.Journal(path)
    assert again.states==dict(b='done', a='lost') or again.states==dict(a='lost', b='done')
    again.note('d', 'done')
    assert s.Journal(path).state('d')=='done' and s.Journal(path, keep=1).states=={'d': 'done'}
    for text in (b'hello\n', b'["a"]\n', b'{"a": 1}\n["x", "y"]\n', b'\xff\xfe\n'):
        path.write_bytes(text)
        with pytest.raises(ValueError, match='not of a journal'): s.Journal(path)
        assert path.read_bytes()==text

def test_a_journal_keeps_orders_skips_damage_and_has_an_end(tmp_path, capsys):
    path = tmp_path/'j'
    j,order = s.Journal(path),dict(prompt='a', seed=3, steps=2)
    for k in 'abc': assert j.begin(k, order|dict(seed=ord(k)))
    assert j.begin('x') and not j.begin('a', order)
    j.note('b', 'done')
    text = path.read_bytes()
    with open(path, 'ab') as f: f.write(b'\xff\n["q"]\n[1, "done"]\n["r", "done", 5]\n["s", "gone"]\n'+b'['*5000+b'\n["d", "accepted", {"seed": 1}]\n["e", "acc')
    again = s.Journal(path)
    assert again.unfinished()==[('a', order|dict(seed=97)), ('c', order|dict(seed=99)), ('d', dict(seed=1))]
    assert again.states==dict(a='accepted 2', c='accepted 2', x='lost', b='done', d='accepted 2') and again.orders['b']['seed']==98
    said = capsys.readouterr().err
    assert said.count('\n')==1 and 'cannot read 6 lines, the first is 6; skipped' in said and (tmp_path/'j.damaged').read_bytes().startswith(text)
    assert not again.begin('a', order)                                   # it waits for its second drawing
    assert s.Journal(path).state('a')=='accepted 3' and not capsys.readouterr().err
    assert s.Journal(path).state('a')=='lost' and s.Journal(path).unfinished()==[]        # it may have killed three processes
    again.close()
    with pytest.raises(ValueError, match="state: expected 'accepted'"): j.note('a', 'gone')
    small = s.Journal(tmp_path/'k', keep=3)
    assert small.begin('long', order)
    for k in range(50): small.begin(f'r{k}', order), small.note(f'r{k}', 'done')
    assert list(small.states)==['long', 'r48', 'r49'] and small.orders.keys()==small.states.keys()     # what waits is not forgotten
    assert len((tmp_path/'k').read_text().splitlines())<=12 and s.Journal(tmp_path/'k').unfinished()==[('long', order)]

def test_a_journal_killed_while_it_is_written_anew_is_whole(tmp_path, monkeypatch):
    j = s.Journal(tmp_path/'j', keep=2)
    for k in range(8): j.note(f'r{k}', 'done')
    monkeypatch.setattr(os, 'replace', lambda *_: (_ for _ in ()).throw(OSError('killed')))
    with pytest.raises(OSError): j.note('r8', 'done')
    monkeypatch.undo()
    j.note('r9', 'done')                                                   # goes on with the old file
    assert list(s.Journal(tmp_path/'j').states)==[f'r{k}' for k in range(10)]

drawing = """
import torch,zlib
def one(o): return torch.randint(256, (3,8,8), dtype=torch.uint8, generator=torch.Generator().manual_seed(zlib.crc32(repr(o).encode())))
"""
server = drawing+"""
import sys,threading
from miniai.serving import Batcher,Journal,make_app,running
def draw(asks):
    if any(o.seed>=int(sys.argv[2]) for o in asks): threading.Event().wait()
    return [one(o) for o in asks]
with running(make_app(Batcher(draw, max_batch=2, max_queue=2), journal=Journal(sys.argv[1]), timeout=60)) as url:
    print(url, flush=True)
    sys.stdin.read()
"""

def test_a_killed_server_loses_no_order(tmp_path):
    httpx = pytest.importorskip('httpx')
    from concurrent.futures import ThreadPoolExecutor
    from contextlib import contextmanager
    from time import sleep
    @contextmanager
    def serve(hangs=99):
        process = subprocess.Popen([sys.executable, '-c', server, str(tmp_path/'j'), str(hangs)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                   env=os.environ|{'PYTHONPATH': str(root)})
        try:
            url = process.stdout.readline().strip()
            assert url
            yield process,url
        finally:
            process.kill()                                                  # SIGKILL, each time
            process.wait()
    def order(k): return dict(prompt=f'a star {k}', seed=k, steps=(1, 2, 4)[k%3])
    def send(url, k): return httpx.post(f'{url}/images', json=dict(order(k), id=f'r{k}'), timeout=60)
    def state(url, k): return httpx.get(f'{url}/images/r{k}').json().get('state')
    def fetch(url, k): return httpx.get(f'{url}/images/r{k}/image', timeout=60)
    def wait(url, *ks):
        while [state(url, k) for k in ks]!=['done']*len(ks): sleep(.05)
    space = {}
    exec(drawing, space)
    without = [s._png(space['one'](s.Ask(**order(k)))) for k in range(5)]
    with serve(hangs=2) as (process,url), ThreadPoolExecutor(3) as people:
        assert [send(url, k).content for k in range(2)]==without[:2]
        waits = []
        for k in (2, 3, 4):                                                 # one in the model, two in the line, which is full
            waits.append(people.submit(send, url, k))
            while state(url, k)!='accepted': sleep(.05)
            while k==2 and 'waiting 0.0\n' not in httpx.get(f'{url}/metrics').text: sleep(.05)
        assert fetch(url, 3).status_code==202
        assert send(url, 5).status_code==503
        process.kill()
        assert all(isinstance(o.exception(60), httpx.TransportError) for o in waits)
    with serve(hangs=3) as (_,url):                                         # the second process dies over r3
        wait(url, 2)
        assert [state(url, k) for k in range(7)]==['done']*3+['accepted 2']*2+['failed 503', None]
    with serve() as (_,url):
        wait(url, *range(5))
        answers = [fetch(url, k) for k in range(5)]                         # r0 to r2 are of earlier processes, and drawn once more
        assert [o.content for o in answers]==without and answers[3].headers['content-type']=='image/png'
        assert fetch(url, 5).status_code==410 and fetch(url, 6).status_code==404 and fetch(url, 5).json()['state']=='failed 503'
    lines = [json.loads(o) for o in (tmp_path/'j').read_text().splitlines()]
    assert [o[0] for o in lines if o[1].startswith('accepted')]==['r3', 'r4'] and [o[0] for o in lines][-2:]==['r3', 'r4']     # drawn in order

def test_what_cannot_be_drawn_again_has_an_end(tmp_path, capsys):
    def draw(asks):
        if any(o.seed==2 for o in asks): raise ValueError('poison')
        return [f'image {o.seed}' for o in asks]
    j = s.Journal(tmp_path/'j')
    for k,order in enumerate((dict(prompt='a', seed=1), dict(prompt='a', seed=2), dict(prompt='', seed=3), dict(prompt='a', path='/etc/passwd'))): j.begin(f'r{k}', order)
    j.close()
    journal,line = s.Journal(tmp_path/'j'),s.Batcher(draw)
    with s.running(s.make_app(line, journal=journal, **texts)):
        at_start = [journal.state(f'r{k}') for k in (2, 3)]
    assert at_start==['failed 422']*2 and [journal.state(f'r{k}') for k in range(2)]==['done', 'failed 500']
    assert capsys.readouterr().err.count('poison')==1

def test_only_the_latest_images_are_kept_and_older_ones_are_drawn_again(tmp_path):
    drawn = []
    def draw(asks):
        drawn.extend(o.seed for o in asks)
        return [f'image {o.seed}' for o in asks]
    line = s.Batcher(draw)
    app = s.make_app(line, journal=s.Journal(tmp_path/'j'), **texts)
    async def run():
        for k in range(101): await call(app, 'POST', '/images', order(seed=k, id=f'r{k}'))
        return [(await call(app, 'GET', f'/images/r{k}/image'))[0::2] for k in (100, 0, 0)]
    assert asyncio.run(run())==[(200, b'image 100'), (200, b'image 0'), (200, b'image 0')] and drawn==[*range(101), 0]
    line.close()

# Runs

def data():
    from miniai.loaders import DataLoaders
    torch.manual_seed(0)
    x,y = torch.randn(32, 4),torch.randn(32, 1)
    return DataLoaders.from_tensors((x, y), (x, y), bs=8)

def test_recorders_are_read_back_and_agree(tmp_path, monkeypatch):
    from miniai.learner import Learner,MetricsCB,TrainCB
    cbs = [TrainCB(), MetricsCB(), s.RunCardCB(tmp_path/'run.json', dict(lr=.1, deep=dict(a=[1, torch.tensor(2.)])))]
    if has_tb := s.importlib.util.find_spec('tensorboard'): cbs.append(s.TensorBoardCB(tmp_path/'events', dict(lr=.1)))
    learn = Learner(nn.Linear(4, 1), data(), lr=.1, cbs=cbs)
    learn.fit(3)
    card = json.loads((tmp_path/'run.json').read_text())
    assert card['state']=='finished' and [o['train_loss'] for o in card['curve']]==[o['train_loss'] for o in learn.history]
    assert card['config']=={'lr': .1, 'deep': {'a': [1, 2.]}} and card['parameters']==5 and card['energy_wh']>=0
    if has_tb:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        events = EventAccumulator(str(tmp_path/'events'))
        events.Reload()
        assert [o.value for o in events.Scalars('valid/loss')]==pytest.approx([o['valid_loss'] for o in learn.history], rel=1e-6)
        assert [o.step for o in events.Scalars('batch/loss')]==list(range(12))

def test_trackio_is_read_back(tmp_path):
    pytest.importorskip('trackio')
    code = '''
import sys,test_serving as t
from torch import nn
from miniai.learner import Learner,MetricsCB,TrainCB
from miniai.serving import TrackioCB
learn = Learner(nn.Linear(4, 1), t.data(), lr=.1, cbs=[TrainCB(), MetricsCB(), TrackioCB('p', 'r', dict(lr=.1))])
learn.fit(2)
import trackio
rows = trackio.SQLiteStorage.get_logs('p', 'r')
assert [o['train_loss'] for o in rows]==[o['train_loss'] for o in learn.history] and [o['step'] for o in rows]==[0, 1]
assert trackio.Api().runs('p')[0].config['lr']==.1
'''
    run = python('-c', code, cwd=root/'tests', env=dict(TRACKIO_DIR=str(tmp_path), HF_HUB_OFFLINE='1', PYTHONPATH=str(root)))
    assert run.returncode==0, run.stderr
    assert list(tmp_path.glob('*.db'))

def test_a_run_that_fails_or_is_cancelled_says_so(tmp_path):
    from miniai.learner import Callback,CancelFit,Learner,TrainCB
    class Stop(Callback):
        def __init__(self, e): self.e = e
        def after_batch(self, learn): raise self.e
    for e,state in ((CancelFit(), 'cancelled'), (RuntimeError('x'), 'failed')):
        learn = Learner(nn.Linear(4, 1), data(), lr=.1, cbs=[TrainCB(), Stop(e), s.RunCardCB(tmp_path/'c.json')])
        try: learn.fit(1)
        except RuntimeError: pass
        assert json.loads((tmp_path/'c.json').read_text())['state']==state

def test_git_state(tmp_path):
    assert s.git_state(tmp_path) is None
    def git(*a): subprocess.run(['git', '-C', str(tmp_path), '-c', 'user.name=a', '-c', 'user.email=a@b.c', *a], check=True, capture_output=True)
    git('init', '-b', 'trunk')
    (tmp_path/'f').write_text('1')
    git('add', 'f'), git('commit', '-m', 'x')
    assert s.git_state(tmp_path)['branch']=='trunk' and not s.git_state(tmp_path)['changed']
    (tmp_path/'f').write_text('2')
    assert s.git_state(tmp_path)['changed']

def test_cards_of_foreign_weights_say_what_they_lack(small):
    card,sheet = s.model_card(small),s.data_sheet(small)
    assert '| minutes | not recorded |' in card and 'drawn scenes and shapes' in sheet
    info = json.loads(small.with_suffix('.json').read_text())
    small.with_suffix('.json').write_text(json.dumps(info|dict(data='x | y\n# head <script>', minutes=6)))
    assert '# head' not in s.model_card(small).split('\n') and r'\<script\>' in s.model_card(small) and '1 Wh' in s.model_card(small)
    for data,licence in (('drawn scenes', 'apache-2.0'), ('Fashion-MNIST', 'apache-2.0'), ('drawn, on photographs', 'other'), ('emoji', 'other'), ('', 'other')):
        small.with_suffix('.json').write_text(json.dumps(info|dict(data=data)))
        assert f'license: "{licence}"' in s.model_card(small), data
    small.with_suffix('.json').write_text(json.dumps(info))

def test_every_stored_set_of_weights_says_how_good_it_is():
    folder = root/'miniai/weights'
    stored = sorted(f.stem for f in folder.glob('*.safetensors'))
    assert len(stored)>20 and stored==sorted(f.stem for f in folder.glob('*.json'))
    for name in stored:
        metrics = json.loads((folder/f'{name}.json').read_text()).get('metrics')
        assert metrics, f'{name}: run `python benchmarks/weights.py`'
        *names,of,where = metrics
        assert names and (of, where)==('of', 'where') and isinstance(metrics['of'], str), name
        assert all((root/o).exists() for o in metrics['where'].split(', ')), (name, metrics['where'])
        good = s.model_card(name).split('## How good it is\n')[1].split('## ')[0]
        for k in names: assert f'| {k} | {s._line(metrics[k])} |' in good, (name, k)
        assert f"| measured on | {s._line(metrics['of'])} |" in good and f"| measured in | {s._line(metrics['where'])} |" in good, name
    run = python(str(root/'benchmarks/weights.py'), '--check')
    assert run.returncode==0, f'the figures are not those of lessons and results any more, run `python benchmarks/weights.py`: {run.stdout}{run.stderr}'

# Drift

@pytest.mark.parametrize('change,error', [
    (dict(curve=[.5, .4]), 'curve: expected pairs'), (dict(curve=[dict(epoch=0, train_loss=.4)]), 'curve: expected pairs'), (dict(curve=[['a', .4]]), 'curve: expected pairs'),
    (dict(curve=5), 'curve: expected pairs'), (dict(metrics=[1, 2]), 'metrics: expected a dict'), (dict(minutes='5'), "minutes: expected a number, got '5'"),
    (dict(runs=[1]), 'runs: expected dicts'), (dict(runs=[dict(curve=[1])]), 'runs: expected dicts'), (dict(kept_out=5), 'kept_out: expected a list of texts, got 5'),
    (dict(kept_out=[5]), 'kept_out: expected a list of texts')])
def test_odd_entries_beside_weights_are_named(tmp_path, change, error):
    save_weights(nn.Linear(1, 1), tmp_path/'a.safetensors', **change)
    for f in (s.model_card, s.data_sheet):
        with pytest.raises(ValueError, match=f'^path: .*a.safetensors: {error}'): f(tmp_path/'a.safetensors')

def test_rare_categories_raise_no_false_alarms_and_are_not_overlooked():
    gen,alpha = torch.Generator().manual_seed(0),.01
    def drawn(n, p): return s.Counter(torch.multinomial(torch.tensor(p), n, True, generator=gen).tolist())
    for p in ([1-3e-4, 3e-4], [.5, .4997, 3e-4], [.9, .05, .049, .001]):
        alarms = sum(s.chi_square(drawn(5000, p), drawn(100, p))[1]<alpha for _ in range(1000))
        assert alarms<=20, (p, alarms)                                # 10 are promised, with a standard deviation of 3
    for reference in (dict(known=5000), dict(known=4999, new=1), dict(a=2500, b=2499, new=1)):
        first = next(iter(reference))
        assert s.chi_square(reference, {first: 90, 'new': 10})[1]<1e-9 and s.chi_square(reference, dict(new=100))[1]<1e-9
    monitor = s.DriftMonitor([dict(w='new' if k==0 else 'known') for k in range(5000)], window=100, alpha=.001)
    assert [monitor.add(dict(w='new' if k==0 else 'known')) for k in range(100)][-1]=={}
    assert set([monitor.add(dict(w='new' if k<5 else 'known')) for k in range(100)][-1])=={'w'}

def test_a_change_among_rare_categories_alone_is_found_and_quiet_ones_raise_no_alarm():
    a,b = ({f'{k}{i}': 4 for i in range(50)} for k in 'ab')
    assert s.chi_square(a, b)[1]<1e-3 and s.chi_square(a, a)==(0., 1.)
    assert abs(s.chi_square(dict(a=4, b=0), dict(a=0, b=4))[1]-2/70)<1e-9                  # Fisher's
    assert s.chi_square(dict(many=20)|a, dict(many=20)|b)[1]<1e-3 and s.chi_square(dict(a=1), dict(b=1))[1]==1
    monitor = s.DriftMonitor([dict(w=f'a{i%100}') for i in range(200)])
    assert set([monitor.add(dict(w=f'b{i%100}')) for i in range(200)][-1])=={'w'}
    gen = torch.Generator().manual_seed(0)
    def drawn(n): return s.Counter(torch.randint(30, (n,), generator=gen).tolist())
    p = [s.chi_square(drawn(80), drawn(60))[1] for _ in range(60)]
    for alpha in (.05, .3): assert sum(o<alpha for o in p)<=60*alpha+3*(60*alpha*(1-alpha))**.5, alpha

def test_drift_is_found_and_named():
    quiet = [dict(colour='red' if k%2 else 'blue', size='large') for k in range(400)]
    m = s.DriftMonitor(quiet, window=100)
    assert [m.add(o) for o in quiet[:100]]==[None]*99+[{}]
    found = [m.add(dict(colour='green', size='large')) for _ in range(100)][-1]
    assert set(found)=={'colour'} and found['colour']<1e-6
    assert s.psi(dict(a=5), dict(a=5))==0 and s.psi(dict(a=100), dict(b=100))>1
    assert s.chi_square(dict(a=50, b=50), dict(a=50, b=50))==(0., 1.)
    for f in (s.psi, s.chi_square):
        with pytest.raises(ValueError, match='counts nothing'): f({}, dict(a=1))

def test_verdicts():
    from miniai.data import Scene,Thing
    scene = Scene((Thing('large','red','star'), Thing('small','blue','ring')), 'left of', 'black')
    assert s.verdict('a red star', scene)=='right' and s.verdict('a red star', scene, False)=='flawed'
    assert s.verdict('a RED star above a red ring', scene)=='wrong' and s.verdict('a moon', scene)=='wrong'
    assert s.prompt_features('Two pink hexagons')==dict(colour='none', shape='none', words='new')

# The container, as far as it can be checked without Docker

def test_dockerfile():
    text = (root/'Dockerfile').read_text().replace('\\\n', ' ')
    steps = [l.split(None, 1) for l in text.splitlines() if l.strip() and not l.startswith('#')]
    assert {k for k,_ in steps}<=set('ARG FROM RUN COPY USER WORKDIR ENV VOLUME EXPOSE STOPSIGNAL HEALTHCHECK CMD'.split())
    assert steps[0][0]=='ARG' and steps[1][0]=='FROM' and [k for k,_ in steps].index('USER')>[k for k,_ in steps].index('COPY')
    assert all('--no-index' in v for k,v in steps if k=='RUN' and 'pip' in v)
    last = dict(steps)
    command = json.loads(last['CMD'])
    assert command[0]=='miniai-serve' and s._serve_parser().parse_args(command[1:]).port==int(last['EXPOSE'])
    setup = (root/'setup.py').read_text()
    assert 'miniai-serve=miniai.serving:serve_main' in setup and 'serve=' in setup
    health = json.loads(last['HEALTHCHECK'].split('CMD', 1)[1])[2]
    line = s.Batcher(lambda asks: asks)
    with s.running(s.make_app(line)) as url:
        code = health.replace('http://127.0.0.1:8000', url)
        exec(code)
    with pytest.raises(OSError): exec(code)

def test_serve_main_refuses_what_it_cannot_serve(tmp_path, capsys):
    assert s.serve_main(['--registry', str(tmp_path/'typo')])==2
    assert 'registry: there is no folder' in capsys.readouterr().err and not (tmp_path/'typo').exists()
    s.Registry(tmp_path/'empty')
    assert s.serve_main(['--registry', str(tmp_path/'empty')])==2
    assert 'nothing is in production' in capsys.readouterr().err

def test_serve_main_says_why_it_cannot_listen(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(s, 'Drawer', lambda path: pytest.fail('the port comes first'))
    with socket.create_server(('127.0.0.1', 0)) as other:
        port = other.getsockname()[1]
        for args,text in ((['--port', '99999'], 'port: expected a whole number, from 0 to 65535, got 99999'), (['--port', '-5'], 'port: expected a whole number'),
                          (['--port', str(port)], f'port: 127.0.0.1:{port} is in use'), (['--host', 'no.such.host.invalid'], 'port: no.such.host.invalid:8000 cannot be had')):
            assert s.serve_main(args)==2
            said = capsys.readouterr()
            assert said.err.startswith(f'miniai-serve: {text}') and said.err.count('\n')==1 and not said.out
        line = s.Batcher(lambda asks: asks)
        for bad,text in ((99999, 'port: expected'), (port, 'is in use')):
            with pytest.raises(ValueError, match=text):
                with s.running(s.make_app(line), port=bad): pass
        line.close()

def test_a_registry_of_other_weights_is_refused_by_name(tmp_path, capsys):
    r = s.Registry(tmp_path/'r')
    w,info = load_weights('scene_few')
    for k,(change,text) in enumerate(((dict(teacher='fashion_unet'), "expected a student with the teacher 'scene_unet', got 'fashion_unet'"), (dict(teacher=None), 'got None'),
                                      (dict(levels={'1': [20., 0.]}), r'levels: expected those of 1, 2 and 4 steps'), (None, 'does not fit its teacher')), 1):
        net = nn.Linear(1, 1) if change is None else Change(w)
        save_weights(net, tmp_path/'own.safetensors', **(dict(teacher='scene_unet', levels=info['levels'])|(change or {})))
        r.promote(r.add(tmp_path/'own.safetensors'))
        assert s.serve_main(['--registry', str(tmp_path/'r'), '--port', '0'])==2
        said = capsys.readouterr().err
        assert said.startswith(f'miniai-serve: path: {tmp_path}') and text in said and f'{k:04d}' in said

# The queue in computed time

def test_a_load_test_without_answers():
    with pytest.raises(ValueError, match='answers: expected at least one'): s.load_row([], 1.)

def test_simulated_queue():
    times = s.random_arrivals(10, 500, seed=3)
    assert times==sorted(times) and abs(times[-1]-50)<10
    one = s.simulate_queue(times, lambda n: .08, 1)
    assert min(one)==pytest.approx(.08) and sum(one)/500>.12           # it queues: M/D/1 at 0.8 waits 0.16 on average
    assert max(s.simulate_queue(times, lambda n: .04, 8))<=.08+1e-9

@pytest.mark.parametrize('data,names', (('10,000 images of drawn shapes, and of emoji on photographs', ['emoji','drawn scenes and shapes','CIFAR-10']),
                                        ('Fashion-MNIST, training images', ['Fashion-MNIST']), ('somebody else\'s files', []), ('', [])))
def test_a_sheet_names_all_sources(tmp_path, data, names):
    from miniai.ddpm import save_weights
    assert [o.name for o in s.data_sources(dict(data=data))]==names
    save_weights(torch.nn.Linear(1, 1), tmp_path/'a.safetensors', data=data)
    card,sheet = s.model_card(tmp_path/'a.safetensors'),s.data_sheet(tmp_path/'a.safetensors')
    for o in names: assert o in card and o in sheet
    assert names or 'Which data?** not recorded' in sheet and card.rstrip().endswith('not recorded')
