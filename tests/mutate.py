"""Mutation testing by hand: `make mutate LESSON=12` makes small changes in the exported cells of a lesson, one at a time, and runs its
notebook, its solutions and the tests of its module. A change that nobody notices is a test that is missing.

    python tests/mutate.py 12 [23 ...] [--n 40] [--seed 0] [--quick] [--only REGEX] [--again]

The quickest comes first: the lesson's checks that speak of what was changed, with the cells that they need; the smoke test; the tests that
speak of it, the nearest first; the contract. Without `--quick` the whole lesson and its solutions follow. What fails must pass without
the change, else it counts for nothing. It works on a copy of the project in a temporary folder, keeps what it has done in the folder
`--log` (so that it goes on after an interruption), and writes one row for each lesson into benchmarks/results/mutation.md. Changes that
change no behaviour are listed in tests/equivalent.json, with the reason."""
import argparse,ast,collections,contextlib,copy,json,os,random,re,shutil,signal,sys,tempfile,time,traceback
from pathlib import Path
import pytest
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

def name_at(tree, line):
    "The name of the function, class or constant that a line of a cell belongs to, and of the method."
    for o in tree.body:
        if o.lineno-len(getattr(o, 'decorator_list', []))<=line<=o.end_lineno:
            name = getattr(o, 'name', None) or next((n.id for n in ast.walk(o) if isinstance(n, ast.Name)), '')
            if any(getattr(d, 'id', '')=='patch' for d in getattr(o, 'decorator_list', [])) and (arg := o.args.args[0]).annotation:
                return ast.unparse(arg.annotation),name                     # a method that is patched into its class
            return name,next((b.name for b in getattr(o, 'body', []) if isinstance(o, ast.ClassDef) and hasattr(b, 'name') and b.lineno<=line<=b.end_lineno), '')
    return '',''

def changes(code):
    "All changed versions of a cell's code, as `(what, (name, method), code)`."
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
        yield f"{code.splitlines()[line-1].strip()[:70]}: {what}",name_at(tree, line),directives+text

def preload():
    "Import what is large and no part of the course, once: each test process is a fork of this one."
    import torch
    torch.set_num_threads(1)
    for name in ('numba','numba.cuda','matplotlib.pyplot','datasets','pandas','pytest','nbdev.test','nbdev.export','fastprogress','sklearn','scipy.linalg',
                 'diffusers','IPython','torchvision','safetensors.torch','PIL.Image'):
        try: __import__(name)
        except ImportError: pass

def forked(f, timeout=1e9, out=None):
    "What `f()` gives, in a fork of this process; False after an error or an exit, None if it takes longer than `timeout` seconds of processor time."
    file = Path(tempfile.mkstemp()[1])
    pid = os.fork()
    if not pid:
        code = 1
        try:
            null = os.open(out or os.devnull, os.O_WRONLY|os.O_CREAT|os.O_APPEND)
            os.dup2(null, 1), os.dup2(null, 2)
            os.setsid()
            file.write_text(json.dumps(f()))
            code = 0
        except BaseException: traceback.print_exc()
        finally: os._exit(code)
    def spent():
        try: fields = Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()
        except OSError: return time.time()-start
        return sum(map(int, fields[11:15]))/os.sysconf('SC_CLK_TCK')
    start = time.time()
    while True:
        done,status = os.waitpid(pid, os.WNOHANG)
        if done: break
        if spent()>timeout or time.time()-start>60*timeout:
            with contextlib.suppress(ProcessLookupError): os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            file.unlink()
            return None
        time.sleep(.05)
    text = file.read_text()
    file.unlink()
    return json.loads(text) if status==0 and text else False

class TooLong(BaseException): "A test or a cell used up its processor time."

@contextlib.contextmanager
def limit(seconds):
    "Raise `TooLong` in what takes longer than `seconds` of processor time."
    def stop(*args): raise TooLong
    old = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try: yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old)

class Watch:
    "A pytest plugin: the first test that fails; a test that takes more than `cap` seconds is stopped and counts for nothing."
    def __init__(self, cap): self.cap,self.failed = cap,None

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self, item):
        if not self.cap: yield
        else:
            start = time.process_time()
            with limit(self.cap): outcome = yield
            if time.process_time()-start>=self.cap: outcome.force_result(None)

    def pytest_runtest_logreport(self, report):
        if report.failed: self.failed = self.failed or report.nodeid

def run_tests(*args, cap=None):
    "The name of the first test that fails, if any."
    watch = Watch(cap)
    code = pytest.main(['-q','-x','-p','no:cacheprovider',*args], plugins=[watch])
    return dict(failed=watch.failed or (code not in (0, 5) and str(args[0])))

def run_cells(path, cells=None, cap=None, bad=()):
    "Run cells of a notebook one after another; the number of the first that fails, if any. Those that take more than `cap` seconds, and `bad` ones, may."
    from execnb.shell import CaptureShell
    nb,shell = json.loads(Path(path).read_text(encoding='utf-8')),CaptureShell(path=Path(path).parent)
    os.chdir(Path(path).parent)
    for i,c in enumerate(nb['cells']):
        if c['cell_type']!='code' or (cells is not None and i not in cells) or skipped(source(c)): continue
        try:
            with limit(cap or 1e6): shell.run(source(c))
        except TooLong: continue
        if shell.exc and not isinstance(shell.exc, TooLong) and i not in bad: return dict(failed=i)
    return dict(failed=None)

def skipped(code): return re.search(r'^#\| *(eval: *false|slow)', code, re.M)

def used(tree, attributes=True):
    return {n.id if isinstance(n, ast.Name) else n.attr for n in ast.walk(tree) if isinstance(n, ast.Name) or attributes and isinstance(n, ast.Attribute)}

def made(tree):
    "Names that a piece of code gives a value to, outside its functions and classes."
    if isinstance(tree, (ast.FunctionDef,ast.ClassDef)): return {tree.name}
    if isinstance(tree, (ast.Import,ast.ImportFrom)): return {(a.asname or a.name).split('.')[0] for a in tree.names}
    names = {tree.id} if isinstance(tree, ast.Name) and isinstance(tree.ctx, ast.Store) else set()
    return names.union(*map(made, ast.iter_child_nodes(tree))) if not isinstance(tree, (ast.Lambda,ast.ListComp,ast.GeneratorExp,ast.DictComp,ast.SetComp)) else names

def within(tree):
    "All names that a piece of code gives a value to, in its functions too."
    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)} | {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}

def users(code, names):
    "`names`, and what in a module's code uses them, and what uses that."
    parts,names = [(made(o), used(o)) for o in ast.parse(code).body],set(names)
    while new := {n for m,u in parts if u & names for n in m if n!='__all__'}-names: names |= new
    return names

def tests_of(module, code, name, method):
    "The package tests that speak of a function, directly before by way of another, as pytest's node ids."
    word = re.compile(rf"miniai(\.| import .*){module.split('.')[-1]}\b")
    found = []
    for f in sorted(Path('tests').glob('test_faults_*.py')):
        text = f.read_text(encoding='utf-8')
        if not word.search(text): continue
        body = [o for o in ast.parse(text).body if isinstance(o, (ast.FunctionDef,ast.ClassDef,ast.Assign))]
        for rank,wanted in enumerate(({name}, users(code, {name}))):
            first = {n for o in body if not getattr(o, 'name', '').startswith('test_') and used(o) & wanted for n in made(o)} if rank else set()
            for o in body:
                if getattr(o, 'name', '').startswith('test_') and used(o) & (wanted | first):
                    found.append((rank-(method in used(o)), o.end_lineno-o.lineno, f'{f}::{o.name}'))
    return list(dict.fromkeys(o for *_,o in sorted(found)))[:15]

def slice_of(cells, i, names, near=8, most=8):
    "The cell `i`, the checks of `names`, at most `most` and all within `near` cells, and what those need."
    trees = {}
    for k,c in enumerate(cells):
        if c['cell_type']!='code' or skipped(source(c)): continue
        try: trees[k] = ast.parse(source(c))
        except SyntaxError: pass
    def checks(k):
        t = trees[k]
        return 'code-summary: "Checks' in source(cells[k]) or i<k<i+near and (used(t) & {'same','test_eq','test_close','test_fail','raises'} or any(isinstance(n, ast.Assert) for n in ast.walk(t)))
    todo,keep = [k for k in trees if k>i and checks(k) and used(trees[k], False) & names][:most],set()
    todo += [i, *(k for k in trees if re.search(r'^#\| exports|^@patch', source(cells[k]), re.M))]       # all definitions: they take no time
    while todo:
        k = todo.pop()
        keep.add(k)
        for name in used(trees[k], False)-within(trees[k]):
            j = max((j for j in trees if j<k and name in made(trees[j])), default=k)
            if j not in keep: todo.append(j)
    return sorted(keep)

def noticed(notebook, cells, module, code, i, name, method, args, sound, apply, restore):
    "None if everything passes, else what noticed the change. The quickest first."
    def fails(f, key, timeout):
        got = forked(f, timeout)
        if got is None: return 'timeout'
        return got['failed'] if got else 'error'
    nb = notebook.relative_to(root)
    part = slice_of(cells, i, users(code, {name}))
    bad = sound.setdefault('bad', set())
    steps = [('lesson', lambda: run_cells(nb.absolute(), part, args.cap, bad), args.limit),
             ('smoke test', lambda: run_tests('tests/test_smoke.py', '-k', f'{module} and not refuse', cap=args.cap), 120)]
    tests = tests_of(module, code, name, method)
    if tests: steps.append(('package tests', lambda: run_tests(*tests, cap=args.cap), args.limit))
    if f"'{module}." in Path('tests/test_contract.py').read_text(encoding='utf-8'):
        steps.append(('contract', lambda: run_tests('tests/test_contract.py', '-k', f'{module}.', cap=args.cap), args.limit))
    if not args.quick:
        steps.append(('lesson', lambda: run_cells(nb.absolute()), 1800))
        file = nbs.relative_to(root)/'solutions'/nb.name
        if file.exists(): steps.append(('solutions', lambda: run_cells(file.absolute()), 1800))
    for what,f,timeout in steps:
        while (why := fails(f, what, timeout)) not in (None, False):
            if why=='timeout' and what!='smoke test': break
            if sound.get((what,why)) is None:            # it must pass without the change
                restore()
                unchanged = fails(f, what, 10*timeout)
                sound[what,why] = unchanged!=why
                apply()
            if sound[what,why]: return what,str(why)
            print(f'  {what}, {why}: fails without any change too', flush=True)
            if what!='lesson' or why in bad or not isinstance(why, int): break
            bad.add(why)
    return None,''

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('lesson', nargs='+'), p.add_argument('--n', type=int, default=40), p.add_argument('--seed', type=int, default=0)
    p.add_argument('--only', default='', help='only changes whose description matches this expression'), p.add_argument('--list', action='store_true')
    p.add_argument('--again', action='store_true', help='try survivors again')
    p.add_argument('--quick', action='store_true', help='the assertions of a lesson and what they need, not the whole lesson and its solutions')
    p.add_argument('--cap', type=float, default=4., help='most seconds of processor time for a quick test or cell')
    p.add_argument('--limit', type=float, default=40., help='and for the quick tests together')
    p.add_argument('--log', type=Path, default=Path(tempfile.gettempdir())/'mutation', help='folder of what was done')
    args = p.parse_args()
    args.log = args.log.absolute()
    args.log.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as d:
        clone = Path(d).resolve()/'project'
        if not args.list:
            shutil.copytree(root, clone, ignore=shutil.ignore_patterns('.git','.venv','_docs','_proc','build','*.egg-info','__pycache__'))
            os.environ |= dict(PYTHONPATH=str(clone), OMP_NUM_THREADS='1', MPLBACKEND='agg', IN_TEST='1')
            sys.path[:] = [str(clone), str(clone/'tests'), *(o for o in sys.path if Path(o).resolve() not in (root, root/'tests'))]
            for o in ('common','fold','shape'): sys.modules.pop(o, None)
            os.chdir(clone)
            preload()
        for lesson in args.lesson: one_lesson(lesson, args, clone)

def one_lesson(lesson, args, clone):
    notebook = next(f for f in lessons if f.name.startswith(lesson.zfill(2)) or module_of(f)==lesson)
    module,cells = module_of(notebook),json.loads(notebook.read_text(encoding='utf-8'))['cells']
    exported = [i for i,c in enumerate(cells) if c['cell_type']=='code' and source(c).startswith('#| exports')]
    every,seen = [],collections.Counter()
    for i in exported:
        for what,*rest in changes(source(cells[i])):
            seen[i,what] += 1
            every.append((i, what+(f' ({n})' if (n := seen[i,what])>1 else ''), *rest))     # the same words for another place
    chosen = [o for o in every if re.search(args.only, o[1])]
    random.Random(args.seed).shuffle(chosen)
    chosen = chosen[:args.n]
    if args.list: return print(*(f'[{i}] {what}' for i,what,*_ in chosen), sep='\n')
    log = args.log/f'{module}.json'
    done = json.loads(log.read_text()) if log.exists() else {}
    target,original = clone/notebook.relative_to(root),notebook.read_text(encoding='utf-8')
    py = clone/'miniai'/f"{module.replace('.', '/')}.py"
    package,sound = py.read_text(encoding='utf-8'),{}
    def export():
        from nbdev.export import nb_export
        nb_export(str(target.relative_to(clone)))
    def restore():
        target.write_text(original, encoding='utf-8')
        py.write_text(package, encoding='utf-8')
    for k,(i,what,(name,method),code) in enumerate(chosen):
        key = f'[{i}] {what}'
        if key in done and not (args.again and not done[key]): continue
        new = copy.deepcopy(cells)
        new[i]['source'] = code.splitlines(keepends=True)
        def apply():
            target.write_text(json.dumps(dict(json.loads(original), cells=new), indent=1, ensure_ascii=False)+'\n', encoding='utf-8')
            forked(export)
        apply()
        if py.read_text(encoding='utf-8')==package: sys.exit(f'{key}: the export changed nothing')
        start = time.time()
        by,why = noticed(notebook, cells, module, package, i, name, method, args, sound, apply, restore)
        restore()
        done[key] = by
        log.write_text(json.dumps(done, indent=1))
        print(f'{k+1}/{len(chosen)} {key}: {by or "SURVIVES"} {why} ({time.time()-start:.0f} s)', flush=True)
    report(module, done, len(every))

def report(module, done, n_all):
    "Write the lesson's row, and its survivors, into benchmarks/results/mutation.md."
    file = root/'benchmarks/results/mutation.md'
    reasons = json.loads((root/'tests/equivalent.json').read_text(encoding='utf-8')).get(module, {})
    rows = {}
    if file.exists():
        for m in re.finditer(r'^\| (\w+) \| (.*)$', file.read_text(encoding='utf-8'), re.M):
            if m[1]!='module': rows[m[1]] = m[0]
    live = [k for k,v in done.items() if not v]
    same = [k for k in live if k.split('] ', 1)[1] in reasons]
    by = ', '.join(f"{n} by {o}" for o in ('smoke test','package tests','lesson','contract','solutions','timeout') if (n := sum(v==o for v in done.values())))
    hits,tried = len(done)-len(live),len(done)-len(same)
    def code(k): return k.replace('|', chr(92)+'|')
    left = [code(k) for k in live if k not in same]+[f"{code(k)} (equivalent: {reasons[k.split('] ', 1)[1]]})" for k in same]
    rows[module] = f"| {module} | {n_all} | {len(done)} | {len(same)} | {hits} ({hits/max(1, tried):.0%}) | {by} | {'; '.join(left) or '-'} |"
    text = ['# Mutation', '', 'Small changes in the exported cells of a lesson, each by itself, and what noticed them: `make mutate LESSON=12`.',
            'A change is equivalent if it changes no behaviour; the share is that of the others. A survivor that has got a test since counts as noticed; one that lives is listed.', '',
            '| module | possible changes | tried | equivalent | noticed | by what | survivors |', '|---|---|---|---|---|---|---|', *[rows[k] for k in sorted(rows)], '']
    file.write_text('\n'.join(text), encoding='utf-8')
    print(f'{module}: {hits} of {tried} noticed; wrote {file.relative_to(root)}')

if __name__=='__main__': main()
