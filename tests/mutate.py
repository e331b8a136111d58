"""Mutation testing by hand: `make mutate LESSON=12` makes small changes in the exported cells of a lesson, one at a time, and runs its
notebook, its solutions and the tests of its module. A change that nobody notices is a test that is missing.

    python tests/mutate.py 12 [--n 40] [--seed 0] [--timeout 900] [--only REGEX]

It works on a copy of the project in a temporary folder, keeps what it has done in `--log` (so that it goes on after an interruption),
and writes one row for each lesson into benchmarks/results/mutation.md."""
import argparse,ast,contextlib,copy,json,os,random,re,shutil,signal,subprocess,sys,tempfile,time
from pathlib import Path
from common import lessons,module_of,nbs,root,source

class Sites(ast.NodeVisitor):
    "The changes that can be made in a cell: `(line, what, function that changes the node)`."
    def __init__(self): self.found,self.skip = [],0

    def add(self, node, what, change): self.found.append((node, what, change))

    def visit_FunctionDef(self, node):
        body = node.body[1:] if ast.get_docstring(node) is not None else node.body
        for o in [*body, *node.args.defaults]: self.visit(o)

    def visit_Raise(self, node): pass                     # the words of an error are no behaviour
    def visit_JoinedStr(self, node): pass

    def visit_BinOp(self, node):
        swap = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv}
        new = swap.get(type(node.op))
        if new and not isinstance(node.left, ast.Constant) or new and not isinstance(getattr(node.left, 'value', 0), str):
            self.add(node, f'{type(node.op).__name__} -> {new.__name__}', lambda n, new=new: setattr(n, 'op', new()))
        self.generic_visit(node)

    def visit_UnaryOp(self, node):
        if isinstance(node.op, (ast.USub,ast.Not)):
            self.add(node, f'drop {type(node.op).__name__}', lambda n: setattr(n, 'op', ast.UAdd()) if isinstance(n.op, ast.USub) else setattr(n, 'operand', ast.UnaryOp(ast.Not(), n.operand)))
        self.generic_visit(node)

    def visit_Compare(self, node):
        swap = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}
        new = swap.get(type(node.ops[0]))
        if new: self.add(node, f'{type(node.ops[0]).__name__} -> {new.__name__}', lambda n, new=new: n.ops.__setitem__(0, new()))
        self.generic_visit(node)

    def visit_BoolOp(self, node):
        new = ast.Or if isinstance(node.op, ast.And) else ast.And
        self.add(node, f'{type(node.op).__name__} -> {new.__name__}', lambda n, new=new: setattr(n, 'op', new()))
        self.generic_visit(node)

    def visit_Constant(self, node):
        if type(node.value) in (int,float) and abs(node.value)<1e4:
            self.add(node, f'{node.value} -> {node.value+1}', lambda n: setattr(n, 'value', n.value+1))
        elif type(node.value) is bool: self.add(node, f'{node.value} -> {not node.value}', lambda n: setattr(n, 'value', not n.value))

    def visit_Call(self, node):
        name = getattr(node.func, 'attr', '')
        if name in ('detach','eval','zero_grad','clone','requires_grad_','contiguous','abs','sqrt','exp','log','flip','clamp','round'):
            def drop(n): n.func,n.args,n.keywords = ast.Name('_same', ast.Load()),[n.func.value],[]
            self.add(node, f'without .{name}()', drop)
        for k in node.keywords:
            if k.arg=='dim' and isinstance(k.value, ast.Constant) and type(k.value.value) is int:
                self.add(k, f'dim={k.value.value} -> {k.value.value-1}', lambda n: setattr(n, 'value', ast.Constant(n.value.value-1)))
        self.generic_visit(node)

    def visit_IfExp(self, node):
        def other(n): n.body,n.orelse = n.orelse,n.body
        self.add(node, 'branches of if-else exchanged', other)
        self.generic_visit(node)

    def visit_Expr(self, node):
        if isinstance(node.value, ast.Call): self.add(node, f'without the line {ast.unparse(node)[:50]}', lambda n: setattr(n, 'value', ast.Constant(None)))
        if not isinstance(node.value, ast.Constant): self.generic_visit(node)

def changes(code):
    "All changed versions of a cell's code, as `(what, code)`."
    directives = ''.join(l+'\n' for l in code.splitlines() if l.startswith('#|'))
    tree = ast.parse(code)
    sites = Sites()
    for o in tree.body:
        if not isinstance(o, (ast.Import,ast.ImportFrom)): sites.visit(o)
    for i,(node,what,_) in enumerate(sites.found):
        new = copy.deepcopy(tree)
        again = Sites()
        for o in new.body:
            if not isinstance(o, (ast.Import,ast.ImportFrom)): again.visit(o)
        target,_,change = again.found[i]
        change(target)
        text = ast.unparse(ast.fix_missing_locations(new))
        if '_same(' in text: text = 'def _same(x): return x\n'+text
        line = getattr(node, 'lineno', None) or getattr(getattr(node, 'value', None), 'lineno', 0)
        yield f"{code.splitlines()[line-1].strip()[:70]}: {what}", directives+text

def preload():
    "Import what is large and no part of the course, once: each test process is a fork of this one."
    import torch
    torch.set_num_threads(1)
    for name in ('numba','numba.cuda','matplotlib.pyplot','datasets','pandas','pytest','nbdev.test','fastprogress','sklearn','scipy.linalg','diffusers','IPython'):
        try: __import__(name)
        except ImportError: pass

def forked(f, timeout):
    "What `f()` gives, true or false, in a fork of this process; None if it takes longer than `timeout` seconds."
    pid = os.fork()
    if not pid:
        code = 1
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1), os.dup2(null, 2)
            os.setsid()
            code = 0 if f() else 1
        except BaseException: pass
        os._exit(code)
    end = time.time()+timeout
    while time.time()<end:
        done,status = os.waitpid(pid, os.WNOHANG)
        if done: return status==0
        time.sleep(.05)
    with contextlib.suppress(ProcessLookupError): os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)

def noticed(copy_, notebook, module, timeout):
    "None if everything passes, else what noticed the change. The quickest first."
    def tests(*args):
        import pytest
        return pytest.main(['-q','-x','-p','no:cacheprovider',*args]) in (0, 5)      # 5: no such test
    def run(path):
        from nbdev.test import test_nb
        return test_nb(Path(path), skip_flags=['slow'])[0]
    name = module.split('.')[-1]
    about = [str(f) for f in sorted((copy_/'tests').glob('test_faults_*.py')) if re.search(rf'miniai(\.| import .*){name}\b', f.read_text(encoding='utf-8'))]
    steps = {'smoke test': lambda: tests('tests/test_smoke.py','-k',name), 'package tests': lambda: not about or tests(*about),
             'lesson': lambda: run(notebook.relative_to(root)), 'contract': lambda: tests('tests/test_contract.py','-k',name),
             'solutions': lambda: run(nbs.relative_to(root)/'solutions'/notebook.name)}
    for what,f in steps.items():
        if what=='solutions' and not (nbs/'solutions'/notebook.name).exists(): continue
        passed = forked(f, timeout)
        if not passed: return 'timeout' if passed is None else what

def main():
    p = argparse.ArgumentParser()
    p.add_argument('lesson'), p.add_argument('--n', type=int, default=40), p.add_argument('--seed', type=int, default=0)
    p.add_argument('--timeout', type=int, default=900), p.add_argument('--only', default='')
    p.add_argument('--log', type=Path), p.add_argument('--list', action='store_true')
    args = p.parse_args()
    notebook = next(f for f in lessons if f.name.startswith(args.lesson.zfill(2)) or module_of(f)==args.lesson)
    module,cells = module_of(notebook),json.loads(notebook.read_text(encoding='utf-8'))['cells']
    exported = [i for i,c in enumerate(cells) if c['cell_type']=='code' and source(c).startswith('#| exports')]
    every = [(i, what, code) for i in exported for what,code in changes(source(cells[i])) if re.search(args.only, what)]
    random.Random(args.seed).shuffle(every)
    chosen = every[:args.n]
    if args.list:
        for i,what,_ in chosen: print(f'[{i}] {what}')
        return
    log = args.log or Path(tempfile.gettempdir())/f'mutation-{module}-{args.seed}.json'
    done = json.loads(log.read_text()) if log.exists() else {}
    with tempfile.TemporaryDirectory() as d:
        clone = Path(d)/'project'
        shutil.copytree(root, clone, ignore=shutil.ignore_patterns('.git','.venv','_docs','_proc','build','*.egg-info','__pycache__'))
        target,original = clone/notebook.relative_to(root),notebook.read_text(encoding='utf-8')
        py = clone/'miniai'/f"{module.replace('.', '/')}.py"
        package = py.read_text(encoding='utf-8')
        os.environ |= dict(PYTHONPATH=str(clone), OMP_NUM_THREADS='1', MPLBACKEND='agg', PYTHONDONTWRITEBYTECODE='1')
        sys.path[:] = [str(clone), str(clone/'tests'), *(o for o in sys.path if Path(o).resolve() not in (root, root/'tests'))]
        for o in ('common','fold','shape'): sys.modules.pop(o, None)
        os.chdir(clone)
        preload()
        if why := noticed(clone, notebook, module, args.timeout): sys.exit(f'{module}: the tests fail without any change: {why}')
        export = f"from nbdev.export import nb_export; nb_export({str(target.relative_to(clone))!r})"
        for k,(i,what,code) in enumerate(chosen):
            key = f'[{i}] {what}'
            if key in done: continue
            new = copy.deepcopy(cells)
            new[i]['source'] = code.splitlines(keepends=True)
            target.write_text(json.dumps(dict(json.loads(original), cells=new), indent=1, ensure_ascii=False)+'\n', encoding='utf-8')
            subprocess.run([sys.executable, '-c', export], cwd=clone, env={**os.environ, 'PYTHONPATH': str(clone)}, capture_output=True)
            start = time.time()
            done[key] = noticed(clone, notebook, module, args.timeout)
            log.write_text(json.dumps(done, indent=1))
            print(f'{k+1}/{len(chosen)} {key}: {done[key] or "SURVIVES"} ({time.time()-start:.0f} s)', flush=True)
            target.write_text(original, encoding='utf-8')
            py.write_text(package, encoding='utf-8')
    report(module, {k: v for k,v in done.items()}, len(every))

def report(module, done, n_all):
    "Write the lesson's row, and its survivors, into benchmarks/results/mutation.md."
    file = root/'benchmarks/results/mutation.md'
    rows = {}
    if file.exists():
        for m in re.finditer(r'^\| (\w+) \| (.*)$', file.read_text(encoding='utf-8'), re.M):
            if m[1]!='module': rows[m[1]] = m[0]
    live = [k for k,v in done.items() if not v]
    by = ', '.join(f"{sum(v==o for v in done.values())} by {o}" for o in ('smoke test','package tests','lesson','contract','solutions','timeout'))
    rows[module] = f"| {module} | {n_all} | {len(done)} | {len(done)-len(live)} ({(len(done)-len(live))/max(1, len(done)):.0%}) | {by} | {'; '.join(k.replace('|', chr(92)+'|') for k in live) or '-'} |"
    text = ['# Mutation', '', 'Small changes in the exported cells of a lesson, each by itself, and what noticed them: `make mutate LESSON=12`.',
            'A survivor is listed so that a person can judge whether it matters.', '',
            '| module | possible changes | tried | noticed | by what | survivors |', '|---|---|---|---|---|---|', *[rows[k] for k in sorted(rows)], '']
    file.write_text('\n'.join(text), encoding='utf-8')
    print(f'{module}: {len(done)-len(live)} of {len(done)} noticed; wrote {file.relative_to(root)}')

if __name__=='__main__': main()
