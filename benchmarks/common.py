"Side-by-side timings: run the candidates in turn, take medians, write one table per processor to results/NAME.md."
import argparse,json,os,platform,re,statistics,time
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent/'results'


def processor():
    "Name of the processor, as the system tells it."
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    names = [o.split(':')[1].strip() for o in lines if o.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def cores():
    "Number of cores that this process may use."
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def compare(
    name,     # What is measured, the first column of the table: '1024x1024x1024'
    fns,      # {label: function without arguments}; the first is the reference of the ratios
    rounds=7, # Measured rounds; in each, every function runs once, in turn
    sync=None, # Called before each reading of the clock: `torch.cuda.synchronize` for work on a GPU
): # One dict per label: name, label, `median`, `lo`, `hi` (seconds), `ratio` (speed relative to the reference)
    "Time `fns` alternately after one unmeasured round, so that a slow spell of the machine hits all of them."
    def _time(f):
        if sync: sync()
        start = time.perf_counter()
        f()
        if sync: sync()
        return time.perf_counter()-start
    secs = [{k: _time(f) for k,f in fns.items()} for _ in range(rounds+1)][1:]
    ref = next(iter(fns))
    return [dict(name=name, label=k, median=statistics.median(o[k] for o in secs), lo=min(o[k] for o in secs),
                 hi=max(o[k] for o in secs), ratio=statistics.median(o[ref]/o[k] for o in secs)) for k in fns]


def sections(text):
    "The sections of a results file by processor, in order; a file of one table has no headings, but names it as well."
    head,*parts = re.split(r'^## ', text, flags=re.M)
    if parts: return {o.split('\n', 1)[0].strip(): o.split('\n', 1)[1].strip() for o in parts}
    body = head.split('\n', 1)[1].strip() if head.startswith('# ') else ''
    if not body: return {}
    where,rest = body.split('; ', 1)
    return {where: rest}


def write(
    name, # File name without its ending: 'matmul' writes results/matmul.md
    rows, # List of dicts with the same keys, values already formatted: one line of the table each
    title, # Heading of the page
    packages=('torch',), # Whose versions to state
    notes=(), # Sentences below the table
    where=None, # What the rows were measured on; this machine if None
): # Path of the file
    "Print the table and write it, without a date, as the section of this processor; those of others stay as they are."
    keys,where = list(rows[0]),where or f'{processor()}, {cores()} cores'
    lines = ['| '+' | '.join(map(str, o))+' |' for o in (keys, ['---']*len(keys), *(r.values() for r in rows))]
    versions = ', '.join([f'Python {platform.python_version()}', *(f'{p} {version(p)}' for p in packages)])
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS/f'{name}.md'
    parts = sections(path.read_text()) if path.exists() else {}
    parts[where] = '\n'.join([f'{versions}.', '', *lines, '', *notes]).strip()
    print('\n'.join([f'# {title}', '', f'## {where}', '', parts[where]]))
    text = '\n'.join([f'# {title}', *(f'\n## {k}\n\n{v}' for k,v in parts.items())])+'\n'
    temp = path.with_suffix('.tmp')
    temp.write_text(text)
    os.replace(temp, path)
    return path


def run_in_parts(
    name, # Of the result, results/NAME.jsonl, and of the log of parts
    doc, # Of the script, for --help
    n, # Scenes, if --n is not given
    load, # Makes what `part` needs, a tuple
    part, # `part(*load(), 40, seed)`: scores of 40 scenes, a dict for JSON
    mean, # From the parts to the rows of the result
):
    "Parts of 40 scenes, each kept in a log, so that a run that was stopped goes on from there; then the rows, by rename."
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--n', type=int, default=n, help='scenes, a multiple of 40')
    p.add_argument('--log', type=Path, default=Path(f'{name}.parts.jsonl'), help='finished parts')
    o = p.parse_args()
    if o.n<40 or o.n%40: p.error(f'--n: expected a multiple of 40, got {o.n}')
    parts = [json.loads(l) for l in o.log.read_text().splitlines()] if o.log.exists() else []
    tools = load() if len(parts)<o.n//40 else ()
    for i in range(len(parts), o.n//40):
        parts.append(part(*tools, 40, 1000+i))
        with o.log.open('a') as f: f.write(json.dumps(parts[-1])+'\n')
        print(f'{40*(i+1)} scenes', flush=True)
    temp = RESULTS/f'{name}.tmp'
    temp.write_text(''.join(json.dumps(r)+'\n' for r in mean(parts[:o.n//40])))
    os.replace(temp, RESULTS/f'{name}.jsonl')
