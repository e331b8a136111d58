"The notebooks' gate: what is committed is what a reader will see."
import ast,json,re,sys
import pytest
from common import all_cells,cells,exports,lessons,module_of,nbs,notebooks,order,root,source
from fold import metadata
from shape import is_open,lines,main_path,shape
from readme import render

by_name = pytest.mark.parametrize('file', notebooks, ids=lambda f: str(f.relative_to(nbs)))
by_lesson = pytest.mark.parametrize('file', lessons, ids=lambda f: f.stem)

def test_readme_is_in_step():
    assert (root/'README.md').read_text(encoding='utf-8')==render(), "run `make readme`"

def test_readme_links_lead_somewhere():
    for target in re.findall(r'\]\((?!https?:|#)([^)#]+)', render()): assert (root/target).exists(), target

def test_map_has_each_lesson_once():
    assert re.findall(r'^\| \[.*\]\(nbs/(\d\d_.*?)\) \|', render(), re.M)==[f.name for f in lessons]

@by_name
def test_no_placeholder_is_left(file):
    for c in cells(file, 'markdown'): assert not re.search(r'^[A-Z]+\d*$|\b(TODO|TBD|FIXME)\b', source(c), re.M), source(c)

@by_name
def test_links_lead_somewhere(file):
    for c in cells(file, 'markdown'):
        for target in re.findall(r'\]\((?!https?:|#|attachment:)([^)#\s]+)', source(c)): assert (file.parent/target).exists(), target

@by_name
def test_outputs_are_stored_and_sound(file):
    code = cells(file)
    outputs = [o for c in code for o in c['outputs']]
    assert not code or outputs, "no stored output: the site would show none"
    assert not [o for o in outputs if o['output_type']=='error']
    assert file.stat().st_size<2**20
    assert max((len(json.dumps(o)) for o in outputs), default=0)<200_000

@by_name
def test_cells_are_short_and_imports_named(file):
    for c in cells(file):
        assert not re.search(r'import \*|\.cuda\(\)', source(c)), source(c)
        assert sum(not l.startswith('#|') for l in source(c).splitlines())<=40, source(c)

@by_name
def test_title_cell_holds_title_and_summary_alone(file):
    first = source(cells(file, 'markdown')[0]).strip()
    assert re.fullmatch(r'# [^\n]+\n\n> [^\n]+', first), "nbdev leaves the rest of this cell out of the site"

@by_lesson
def test_lesson_has_its_parts(file):
    text = '\n'.join(map(source, cells(file, 'markdown')))
    assert re.match(r'# .+\n\n> \S', text), "title and one-sentence summary"
    for part in ('**You will**','**You need**','**Takes**','## What we built','## Exercises','## Sources'): assert part in text, part

@by_lesson
def test_exercises_check_themselves(file):
    asked = {m[1] for c in cells(file) for m in re.finditer(r'^check\((\w+)\)', source(c), re.M)}
    assert len(asked)>=2
    solution = nbs/'solutions'/file.name
    check = __import__(f'miniai.{module_of(solution)}', fromlist=['check']).check
    assert asked==set(check.exercises)
    solved = '\n'.join(map(source, cells(solution)))
    for name in asked: assert re.search(rf'test_exercise\(check, {name}, \w', solved), f"{solution.name} does not test {name}"

@by_name
def test_folded_on_the_site_is_folded_in_jupyterlab(file):
    for c in all_cells(file): assert c['metadata']==metadata(c), f"run `python tests/fold.py {file.relative_to(root)}`:\n{source(c)[:200]}"

@by_name
def test_a_fold_says_what_it_hides(file):
    for c in cells(file):
        if '#| code-fold: true' in source(c): assert re.search(r'^#\| code-summary: "\S.{5,}"$', source(c), re.M), source(c)[:300]

@pytest.mark.parametrize('file', lessons, ids=lambda f: f.stem)
def test_lesson_can_be_finished(file):
    "At most 60 open cells and 400 open lines on the way, and never more than three cells without a word."
    s = shape(file)
    assert s['cells']<=60 and s['lines']<=400, s
    whole = all_cells(file)
    first = next(c for c in whole if is_open(c))
    assert len(lines(first))<=5, source(first)
    run = 0
    for c in whole:
        run = 0 if c['cell_type']=='markdown' and source(c).strip() else run+is_open(c)
        assert run<=3, source(c)[:300]
    text = '\n'.join(source(c) for c in whole if c['cell_type']=='markdown')
    assert 'Warm-up' in text[:len(text)//2] and s['exercises']>=4, "exercises: `**2. Find the bug** (★★, 15 minutes). ...`"
    assert max(len(lines(c)) for c in main_path(whole) if is_open(c))<=40

def test_api_page_lists_every_name():
    page = ''.join(''.join(o['data'].get('text/markdown', '')) for c in cells(nbs/'api.ipynb') for o in c['outputs'] if 'data' in o)
    public = [m for m in order if m and (not m.startswith('checks.') or m=='checks.core')]
    assert sorted(re.findall(r'\[<code>(\w+)</code>\]', page))==sorted(n for m in public for n in exports(m)), "run nbs/api.ipynb again"

def test_glossary_has_every_bold_term():
    import glossary
    assert not glossary.missing(), "add them to nbs/glossary.qmd"
    first = {}
    for f in lessons:
        for t in glossary.terms(f): first.setdefault(glossary.plain(t), f.name)
    wrong = {k: v for k,v in glossary.entries().items() if first.get(k)!=v}
    assert not wrong, f"not bold in the lesson that the glossary names: {wrong}"

def test_board_is_that_of_the_stored_results(monkeypatch):
    monkeypatch.syspath_prepend(str(root/'benchmarks'))
    import importlib.util
    kept = {k: sys.modules.pop(k) for k in ('common',) if k in sys.modules}      # both folders have a `common`
    def load(name):
        spec = importlib.util.spec_from_file_location(f'{name}_of_benchmarks', root/f'benchmarks/{name}.py')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    try: board,fid = load('board'),load('fid')
    finally:
        sys.modules.pop('common', None)
        sys.modules.update(kept)
    from miniai.board import load_board
    assert load_board('accuracy')==board.rows(), "run `python benchmarks/board.py`"
    assert load_board('garments')==fid.rows(), "run `python benchmarks/fid.py`"
    assert {o['recipe'] for o in fid.rows() if o['lesson']=='36'}=={'VAE of 25', 'GAN'}

def test_no_assertion_is_lost():
    "Assertions of a lesson, its solutions and its appendices: not fewer than are written down in tests/assertions.json."
    pattern = re.compile(r'\b(test_eq|test_ne|test_fail|test_is|test_stdout|test_exercise|same|assert|assert_close)\b')
    kept = json.loads((root/"tests/assertions.json").read_text(encoding='utf-8'))
    for number,n in kept.items():
        files = [f for f in notebooks if f.name.startswith(number)]
        found = sum(len(pattern.findall(source(c))) for f in files for c in cells(f))
        assert found>=n, f"lesson {number}: {found} assertions, {n} before"

def test_no_lesson_takes_the_name_of_an_earlier_export():
    seen = {}
    for f in lessons:
        own = set(exports(module_of(f))) if module_of(f) else set()
        for c in cells(f):
            code = '\n'.join(l for l in source(c).splitlines() if not l.startswith(('%','!')))
            for n in ast.parse(code).body:
                if any('patch' in ast.unparse(d) for d in getattr(n, 'decorator_list', ())): continue
                names = [n.name] if hasattr(n, 'name') else [o.id for t in getattr(n, 'targets', ()) for o in ast.walk(t) if isinstance(o, ast.Name)]
                for o in names: assert o in own or o not in seen, f"{f.name} defines {o}, which {seen[o]} exports"
        seen |= {o: f.name for o in own if o not in seen}

@by_name
def test_no_private_name_is_imported(file):
    for c in cells(file): assert not re.search(r'^from miniai\S* import .*(?<![\w.])_(?!_)\w', source(c), re.M), source(c)[:300]

def test_every_kind_of_exercise_occurs():
    rows = [shape(f) for f in lessons]
    assert all(r['Warm-up'] for r in rows)
    first = [r for r in rows if r['lesson']<'15']
    for k in ('Find the bug','Rebuild it','Beat it','Project'): assert sum(r[k] for r in first)>=5, k
    for part in filter(None, (first, [r for r in rows if r['lesson']>='15'])):
        assert sum(r['words'] for r in part)>=9*sum(r['lines'] for r in part)
