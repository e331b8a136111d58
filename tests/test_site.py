"The site's gate: what nbdev and Quarto need, without either page being rendered."
import ast,json,os,re,shutil,subprocess,sys
import pytest,yaml
from common import cells,lessons,nbs,notebooks,root,source

by_name = pytest.mark.parametrize('file', notebooks, ids=lambda f: str(f.relative_to(nbs)))
course = [f for f in notebooks if re.match(r'\d\d', f.name) or f.name=='checking.ipynb']
by_lesson = pytest.mark.parametrize('file', course, ids=lambda f: str(f.relative_to(nbs)))

def pages(contents):
    "The files of a sidebar, sections within sections too."
    for o in contents:
        if 'href' in o: yield o['href']
        yield from pages(o.get('contents', []))

def test_sidebar_is_yaml_and_lists_every_notebook_once():
    listed = list(pages(yaml.safe_load((nbs/'sidebar.yml').read_text(encoding='utf-8'))['website']['sidebar']['contents']))
    assert sorted(o for o in listed if o.endswith('.ipynb'))==sorted(f.relative_to(nbs).as_posix() for f in notebooks)
    assert all((nbs/o).exists() for o in listed)

def test_quarto_configuration():
    "What nbdev needs, and that nothing is fetched from others when a page is read."
    file = nbs/'_quarto.yml'
    assert file.resolve()==(root/'_quarto.yml').resolve()
    cfg = yaml.safe_load(file.read_text(encoding='utf-8'))
    html = cfg['format']['html']
    assert cfg['metadata-files']==['nbdev.yml','sidebar.yml'] and cfg['project']['type']=='website'
    assert 'commonmark' not in cfg['format'] or html.get('keep-md')
    assert html['html-math-method']=='mathml' and html['code-overflow']=='scroll'
    named = [*cfg['filters'], html['css'], *cfg['project']['resources'], cfg['website']['favicon'], cfg['website']['navbar']['logo'],
             *(o for theme in html['theme'].values() for o in theme if o.endswith('.scss'))]
    for o in named: assert (nbs/o).exists(), o
    for f in (*nbs.glob('*.scss'), *nbs.glob('*.css')):
        text = f.read_text(encoding='utf-8')
        assert not re.search(r'@import|url\(\s*["\']?https?:', text), f
    assert '$web-font-path: false' in (nbs/'theme.scss').read_text(encoding='utf-8')
    logo = (nbs/'images/logo.svg').read_text(encoding='utf-8')
    assert re.search(r'<svg[^>]* width="\d+"[^>]* height="\d+"', logo), "without a size the logo is not seen"

def test_llms_is_in_step():
    from readme import llms
    assert (nbs/'llms.txt').read_text(encoding='utf-8')==llms(), "run `make readme`"

def test_the_map_of_progress_is_in_step():
    from readme import course
    text = (root/'miniai/course.json').read_text(encoding='utf-8')
    assert text==course(), "run `make readme`"
    names = {l['file']: [e['name'] for e in l['exercises']] for l in json.loads(text)}
    for f in lessons:
        check = __import__(f"miniai.checks.{next(l['checks'] for l in json.loads(text) if l['file']==f.stem)}", fromlist=['check']).check
        assert sorted(names[f.stem])==sorted(check.exercises), f.stem

def test_progress_needs_no_torch(tmp_path):
    code = "import sys; from miniai.command import main; main(['progress']); sys.exit('torch' in sys.modules)"
    run = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env={**os.environ, 'MINIAI_PROGRESS': str(tmp_path/'p.json')}, capture_output=True, text=True)
    assert run.returncode==0 and 'Next: ' in run.stdout, run.stderr

@by_name
def test_exported_cells_have_code(file):
    for c in cells(file):
        if re.match(r'#\| exports?\b', source(c)): assert ast.parse(source(c)).body, "Quarto stops at an exported cell without code"

@by_name
def test_nothing_exported_is_hidden(file):
    for c in cells(file): assert not re.match(r'#\| export\n', source(c)), f"write `#| exports`, so that pasted code runs:\n{source(c)}"

@by_lesson
def test_lines_of_code_fit(file):
    long = [l for c in cells(file) for l in source(c).splitlines() if len(l)>96 and not l.startswith('#|')]
    assert not long, f"{len(long)} lines are longer than 96 characters:\n"+'\n'.join(long)

def alts(cell):
    "The descriptions that a cell gives of its figures."
    m = re.search(r'^#\| fig-alt: (.*)$', source(cell), re.M)
    if not m: return []
    alt = yaml.safe_load(m[1])
    return alt if isinstance(alt, list) else [alt]

@by_name
def test_every_figure_is_described(file):
    for c in cells(file):
        n = sum(any(k.startswith('image/') for k in o.get('data', {})) for o in c['outputs'])
        if not n: continue
        assert len(alts(c))==n, f"{n} figures, {len(alts(c))} descriptions (`#| fig-alt:`):\n{source(c)[:300]}"
        first = [any(k.startswith('image/') for k in o.get('data', {})) for o in c['outputs'][:n]]
        assert n==1 or all(first), f"text before several figures, by whose places Quarto finds the descriptions; split the cell:\n{source(c)[:300]}"
        for a in alts(c): assert isinstance(a, str) and len(a.split())>=4 and a.strip().endswith('.'), a
    for c in cells(file, 'markdown'): assert '![](' not in source(c), "an image without a description"

@by_name
def test_outputs_bring_no_scripts(file):
    "HTML or a widget makes Quarto load two libraries from another server; tables are Markdown."
    for c in cells(file):
        for o in c['outputs']:
            data = o.get('data', {})
            assert not [k for k in data if 'widget' in k], source(c)
            assert 'text/html' not in data, source(c)

@pytest.mark.parametrize('file', lessons, ids=lambda f: f.stem)
def test_lesson_leads_to_its_solutions(file):
    text = '\n'.join(map(source, cells(file, 'markdown')))
    assert f'](solutions/{file.name})' in text
    title = source(cells(file, 'markdown')[0]).splitlines()[0][2:]
    assert source(cells(nbs/'solutions'/file.name, 'markdown')[0]).splitlines()[0]==f'# Solutions: {title}'

@pytest.mark.parametrize('file', lessons, ids=lambda f: f.stem)
def test_sources_have_links(file):
    text = '\n'.join(map(source, cells(file, 'markdown')))
    part = text.split('## Sources')[-1]
    bare = [l for l in re.findall(r'^- .*(?:\n(?!- ).+)*', part, re.M) if '](' not in l and 'http' not in l]
    assert not bare, bare

@by_name
def test_formulas_are_escaped_once(file):
    for c in cells(file, 'markdown'):
        twice = re.search(r'.*\\\\[a-zA-Z]{2,}.*', source(c))
        assert not twice, f"a name after two backslashes is no TeX:\n{twice[0]}"

@by_lesson
def test_first_cell_installs_where_the_package_is_missing(file):
    first = source(cells(file)[0])
    assert first.startswith('#| hide\n') and 'pip install' in first and 'import ' not in first.replace('__import__', ''), first

def test_documentation_pass(tmp_path):
    "nbdev runs every cell that imports or exports, and no other, to write the documentation: it must get through all notebooks."
    copy = tmp_path/'project'
    shutil.copytree(root, copy, symlinks=True, ignore=shutil.ignore_patterns('.git','.venv','data','_docs','_proc','build','*.egg-info','training','benchmarks'))
    env = {**os.environ, 'PYTHONPATH': str(copy), 'MPLBACKEND': 'agg', 'OMP_NUM_THREADS': '1'}
    run = subprocess.run([sys.executable, '-c', 'from nbdev.serve import proc_nbs; proc_nbs(n_workers=2)'], cwd=copy, env=env, capture_output=True, text=True)
    assert run.returncode==0, run.stderr[-3000:]
    assert 'Found cells containing imports and other code' not in run.stderr, run.stderr[-3000:]
    made = {f.relative_to(copy/'_proc').as_posix() for f in (copy/'_proc').rglob('*.ipynb')}
    assert made=={f.relative_to(nbs).as_posix() for f in notebooks}
    links,heads = set(),set()
    for f in (copy/'_proc').rglob('*.ipynb'):
        for c in json.loads(f.read_text(encoding='utf-8'))['cells']:
            said = [''.join(o.get('data', {}).get('text/markdown', '')) for o in c.get('outputs', [])]
            text = '\n'.join([source(c), *said])
            links |= set(re.findall(r'https://miniai\.github\.io/miniai/(?!backprop)[\w/]+\.html#([\w.]+)', text))
            heads |= {h.strip().lower() for h in re.findall(r'^#{2,4} (.+)$', text, re.M)}
    known = set(re.findall(r'\["#([\w.]+)"\]', (nbs/'site.lua').read_text(encoding='utf-8')))
    dead = {o for o in links-heads-known if not re.search(r'^_|\._', o)}
    assert links and not dead, f"linked, but without a heading; name it in `bare` of site.lua: {dead}"
