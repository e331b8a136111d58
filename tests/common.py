"What the gates share: the notebooks in order, and the modules that they make."
import ast,json,os,re,subprocess,sys
from functools import cache
from pathlib import Path

root = Path(__file__).parent.parent
nbs = root/'nbs'
notebooks = [f for d in (nbs, nbs/'solutions', nbs/'appendix') for f in sorted(d.glob('*.ipynb'))]
lessons = sorted(nbs.glob('[0-9][0-9]_*.ipynb'))

@cache
def _read(file, changed): return json.loads(file.read_text(encoding='utf-8'))['cells']

def all_cells(file):
    "Cells of a notebook, which is read once; not to be changed."
    return _read(file, file.stat().st_mtime_ns)

def cells(file, kind='code'):
    "Cells of one kind."
    return [c for c in all_cells(file) if c['cell_type']==kind]

def source(cell): return ''.join(cell['source'])

def module_of(file):
    "The module that a notebook makes, without the package's name; None if it makes none."
    return next((m[1] for c in cells(file) if (m := re.search(r'^#\| default_exp (\S+)', source(c), re.M))), None)

# Module -> number of its lesson; checkers and appendices may use their own lesson, so they come half a step later
order = {module_of(f): int(f.name[:2]) for f in lessons if module_of(f)}
order |= {m: int(f.name[:2])+.5 for f in notebooks if f.parent!=nbs and f.name[0].isdigit() and (m := module_of(f))}
order |= {'board': -3, 'checks.progress': -2, 'checks.core': -1, '': -1}

def path(module): return root/'miniai'/f"{module.replace('.', '/')}.py"

def exports(module):
    "The names in a module's `__all__`."
    tree = ast.parse(path(module).read_text(encoding='utf-8'))
    return next(ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '')=='__all__')

def python(*args, cwd=None, env=None, exe=sys.executable, **kwargs):
    "Run Python in a fresh process, without the notebooks' folder in sight; the finished process."
    env = {**os.environ, 'PYTHONPATH': '', **(env or {})}
    return subprocess.run([exe, *args], cwd=cwd, env=env, capture_output=True, text=True, **kwargs)
