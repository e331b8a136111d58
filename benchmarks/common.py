"Side-by-side timings: run the candidates in turn, take medians, write one table to results/NAME.md."
import os,platform,statistics,time
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


def write(
    name, # File name without its ending: 'matmul' writes results/matmul.md
    rows, # List of dicts with the same keys, values already formatted: one line of the table each
    title, # Heading of the page
    packages=('torch',), # Whose versions to state
    notes=(), # Sentences below the table
): # Path of the file
    "Print the table and write it with the versions and the processor's name, without a date."
    keys = list(rows[0])
    lines = ['| '+' | '.join(map(str, o))+' |' for o in (keys, ['---']*len(keys), *(r.values() for r in rows))]
    versions = ', '.join([f'Python {platform.python_version()}', *(f'{p} {version(p)}' for p in packages)])
    text = '\n'.join([f'# {title}', '', f'{processor()}, {cores()} cores; {versions}.', '', *lines, '', *notes])+'\n'
    print(text)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS/f'{name}.md'
    path.write_text(text)
    return path
