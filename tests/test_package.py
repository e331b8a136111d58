"The package's gate: what the notebooks' own tests cannot see, since they run in the notebook's namespace."
import ast,hashlib,importlib.metadata as md,json,re,shutil,sys,venv
import pytest
from packaging.requirements import Requirement
from common import exports,order,path,python,root

modules = sorted(m for m in order if m)

def test_every_lesson_made_its_module():
    made = {'.'.join(f.relative_to(root/'miniai').with_suffix('').parts) for f in (root/'miniai').rglob('*.py')}
    assert made-{'__init__','_modidx','checks.__init__'} == set(modules)

def test_pyflakes():
    run = python('-m', 'pyflakes', str(root/'miniai'))
    assert run.returncode==0, run.stdout

@pytest.fixture(scope='session')
def fresh(tmp_path_factory):
    "`{code: what it wrote to stderr, or None if it ran}`, each run in a process that has imported PyTorch and nothing of ours."
    codes = [*map('import miniai.{}'.format, modules), *(loads(*o) for o in sorted(handed_over))]
    folder,args,env = tmp_path_factory.mktemp('fresh'),('-W', 'error::SyntaxWarning', '-c'),{'PYTHONPATH': str(root)}
    if sys.platform=='linux':          # forks of one process, since importing PyTorch takes ten times as long as importing a module of ours
        run = python(*args, forks, cwd=folder, env=env, input=json.dumps(codes))
        assert run.returncode==0, run.stderr
        return json.loads(run.stdout)
    runs = {code: python(*args, code, cwd=folder, env=env) for code in codes}
    return {code: run.stderr if run.returncode else None for code,run in runs.items()}

forks = """
import json,os,sys,tempfile,traceback
import torch
res,codes = {},json.load(sys.stdin)
for code in codes:
    with tempfile.TemporaryFile() as f:
        pid = os.fork()
        if not pid:
            os.dup2(f.fileno(), 2)
            try: exec(code, {'__name__': '__main__'})
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        failed = os.waitpid(pid, 0)[1]
        f.seek(0)
        res[code] = f.read().decode() if failed else None
print(json.dumps(res))
"""

def loads(module, later): return f"import sys,miniai.{module}; assert 'miniai.{later}' not in sys.modules"

@pytest.mark.parametrize('module', modules)
def test_imports_in_a_fresh_process(module, fresh): assert fresh[f'import miniai.{module}'] is None, fresh[f'import miniai.{module}']

def test_import_miniai_is_cheap(tmp_path):
    code = "import sys,miniai; print(miniai.__version__, [m for m in ('torch','matplotlib','numpy') if m in sys.modules])"
    run = python('-c', code, cwd=tmp_path)
    assert run.returncode==0 and run.stdout.strip().endswith('[]'), run.stdout+run.stderr

def imported(module):
    "Modules of ours that a module imports."
    pkg = ['miniai', *module.split('.')][:-1]
    for node in ast.walk(ast.parse(path(module).read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom):
            base = pkg[:len(pkg)-node.level+1] if node.level else []
            name = '.'.join([*base, *([node.module] if node.module else [])])
            if name.split('.')[0]=='miniai': yield name[7:]
        elif isinstance(node, ast.Import): yield from (a.name[7:] for a in node.names if a.name.split('.')[0]=='miniai')

# A method may hand its work over to an appendix of its lesson at the moment when it is called; the module itself does without
handed_over = {('stable','folder'),('stable','published'),('command','flow'),('command','distill'),('command','lora'),('command','published'),('command','personalise'),('command','app'),('published','hub'),('published','personalise'),('published','single_file')}

@pytest.mark.parametrize('module', modules)
def test_imports_only_from_earlier_notebooks(module):
    late = [m for m in imported(module) if order[m]>=order[module] and (module,m) not in handed_over]
    assert not late, f"{module} imports {late}, from the same or a later notebook"

@pytest.mark.parametrize('module,later', sorted(handed_over))
def test_what_is_handed_over_is_imported_when_called(module, later, fresh): assert fresh[loads(module, later)] is None, fresh[loads(module, later)]

@pytest.mark.parametrize('module', modules)
def test_no_star_import_and_no_fixed_device(module):
    text = path(module).read_text(encoding='utf-8')
    assert not re.search(r'import \*|\.cuda\(\)', text)
    assert text.isascii()

@pytest.mark.parametrize('module', modules)
def test_exports_are_documented(module):
    mod = __import__(f'miniai.{module}', fromlist=['_'])
    bare = [o for o in exports(module) if callable(getattr(mod, o)) and o!='check' and not (getattr(mod, o).__doc__ or '').strip()]
    assert not bare

def test_weights_are_described_and_small():
    files = sorted((root/'miniai'/'weights').iterdir())
    weights = [f for f in files if f.suffix=='.safetensors']
    assert weights and {f.stem for f in files}=={f.stem for f in weights} and len(files)==2*len(weights), "a JSON beside each, and nothing else"
    for f in weights:
        info = json.loads(f.with_suffix('.json').read_text(encoding='utf-8'))
        assert info['sha256']==hashlib.sha256(f.read_bytes()).hexdigest() and {'notebook','data'}<=set(info), f.name
    assert sum(f.stat().st_size for f in weights)<45e6

# The wheel, in an environment that holds what its metadata asks for and nothing else. No network: the other packages
# are linked from the environment that runs this test.

def closure(requirements):
    "Distributions that a list of requirements pulls in."
    found,todo = {},[Requirement(r) for r in requirements]
    while todo:
        req = todo.pop()
        if req.marker and not any(req.marker.evaluate({'extra': e}) for e in (req.extras or {''})): continue
        name = re.sub(r'[-_.]+', '-', req.name).lower()
        if name in found: continue
        found[name] = dist = md.distribution(name)
        todo += [Requirement(r) for r in dist.requires or []]
    return found

def link(dists, site):
    for dist in dists.values():
        for top in {f.parts[0] for f in dist.files or [] if f.parts[0] not in ('..','__pycache__')}:
            if not (site/top).exists(): (site/top).symlink_to(dist.locate_file(top), target_is_directory=dist.locate_file(top).is_dir())

@pytest.mark.skipif(sys.platform=='win32', reason='needs symbolic links')
def test_wheel(tmp_path):
    shutil.rmtree(root/'build', ignore_errors=True)            # what an older build left would get into the wheel
    built = python('-m', 'pip', 'wheel', str(root), '--no-deps', '--no-build-isolation', '--wheel-dir', str(tmp_path), '--quiet')
    assert built.returncode==0, built.stderr
    wheel, = tmp_path.glob('miniai-*.whl')
    listing = python('-m', 'zipfile', '-l', str(wheel)).stdout
    modules_of_tree = {f.relative_to(root).as_posix() for f in (root/'miniai').rglob('*.py')}
    assert set(re.findall(r'miniai/\S+\.py', listing))==modules_of_tree
    assert {f.name for f in (root/'miniai'/'weights').iterdir()}==set(re.findall(r'miniai/weights/(\S+)', listing))
    assert not re.search(r'\.ipynb|tests/|benchmarks/|\.parquet', listing), listing
    venv.create(tmp_path/'env', with_pip=False)
    exe = str(tmp_path/'env/bin/python')
    site = next((tmp_path/'env/lib').glob('python*/site-packages'))
    installed = python('-m', 'pip', '--python', exe, 'install', '--no-deps', '--no-index', '--quiet', str(wheel))
    assert installed.returncode==0, installed.stderr
    link(closure(next(md.distributions(name='miniai', path=[str(site)])).requires or []), site)
    code = ''.join(f'import miniai.{m}\n' for m in modules) + (
        'import miniai,sys; print(miniai.__file__)\n'
        'from miniai.data import draw_shapes; assert draw_shapes(3)[0].shape==(3,1,28,28)\n'
        'for m in ("nbdev","execnb","IPython","sklearn"):\n'
        '    assert m not in sys.modules, m\n'
        'try: import nbdev\n'
        'except ImportError: print("no nbdev")\n')
    run = python('-c', code, cwd=tmp_path, exe=exe)
    assert run.returncode==0, run.stderr
    assert str(site) in run.stdout and 'no nbdev' in run.stdout, run.stdout

def test_every_requirement_is_pinned():
    from configparser import ConfigParser
    ini = ConfigParser()
    ini.read(root/'settings.ini')
    cfg = ini['DEFAULT']
    pins = {line.split('==')[0] for line in (root/'constraints.txt').read_text().splitlines() if '==' in line}
    wanted = {re.split(r'[<>=]', r)[0].lower() for r in (cfg['requirements']+' '+cfg['dev_requirements']).split()}
    assert wanted<=pins, wanted-pins
    assert 'torch==2.13.0' in (root/'constraints.txt').read_text().splitlines()
