"""Run notebooks and gates, two at a time, each in a process of its own: `python tests/run.py nbs/13_resnet.ipynb tests/test_smoke.py ...`.
What follows `--again` is run once more as for somebody without data: no folder, an empty cache, and a hub that nobody can reach (of a
gate, the tests marked `data`).

All stand in one queue, the longest first (`tests/times.json`), so that no process works alone at the end; the runs without data come last.
On a slow machine `--within` leaves out what would be too late, and names it. A process is a fork of this one,
which has imported PyTorch, matplotlib and nbdev, and nothing of ours: that saves each of them three seconds. Within one process numba's
simulator, threads and seeds would leak. `--note` writes the CPU seconds into `tests/times.json`."""
import argparse,json,math,os,shutil,subprocess,sys,tempfile,time
from collections import namedtuple
from pathlib import Path

root = Path(__file__).resolve().parent.parent
times = root/'tests/times.json'
forks = sys.platform=='linux'                          # macOS has fork, but its libraries do not bear it
usual = dict(nbs=120, appendix=40, tests=60, solutions=10)            # seconds of those that are not in that file
Item = namedtuple('Item', 'file again')

def name(item): return item.file+(' without data' if item.again else '')

def environment(item):
    "Set what the process of `item` finds in its environment."
    os.environ['OMP_NUM_THREADS'] = '1'
    if not item.again: return
    cache = os.environ['MINIAI_TEST_CACHE']            # One for the whole run: shapes are drawn once
    os.environ |= dict(MINIAI_DATA='', XDG_CACHE_HOME=cache, HF_HOME=f'{cache}/hf', HF_ENDPOINT='http://127.0.0.1:9', NO_PROXY='127.0.0.1')

def run(item):
    "Run `item` in this process, as `nbdev_test --path` and `python -m pytest -q` do; its exit status."
    environment(item)
    sys.path[0] = str(root)                            # not tests/, where a notebook has nothing to look for
    if item.file.endswith('.py'):
        import pytest
        return int(pytest.main(['-q', item.file, *(['-m', 'data'] if item.again else [])]))
    from nbdev.config import get_config
    from nbdev.test import test_nb
    os.chdir(root/'nbs')
    return int(not test_nb(root/item.file, skip_flags=get_config().tst_flags.split(), basepath=str(root))[0])

def start(item, out):
    "Start a process for `item` that writes into `out`; its id, or None in the new process itself."
    if not forks:
        args = [sys.executable, __file__, '--one', *(['--again'] if item.again else []), item.file]
        return subprocess.Popen(args, stdout=out, stderr=subprocess.STDOUT).pid
    if pid := os.fork(): return pid
    for fd in (1, 2): os.dup2(out.fileno(), fd)

def finish(item, out, status, cpu, known):
    "Show how `item` ended; did it pass?"
    out.seek(0)
    text = out.read().decode(errors='replace').strip()
    if text and (status or item.file.endswith('.py')): print(text)
    print(f"{'FAILED' if status else 'passed'}: {name(item)}, {cpu:.0f} CPU s", flush=True)
    known[name(item)] = round(cpu)
    out.close()
    return not status

def main():
    p = argparse.ArgumentParser(description='Run notebooks and gates, two at a time.')
    p.add_argument('files', nargs='*', help='notebooks and gates')
    p.add_argument('--again', nargs='*', default=[], help='notebooks and gates to run without data')
    p.add_argument('--one', action='store_true', help='run the one file in this process')
    p.add_argument('--note', action='store_true', help='write the CPU seconds into tests/times.json')
    p.add_argument('--within', type=float, default=math.inf, help='seconds after which no run of `--again` is begun; those left out are named')
    args = p.parse_args()
    os.chdir(root)
    queue = [Item(str(Path(f)), again) for again,files in enumerate((args.files, args.again)) for f in files]
    if args.one: return run(*queue)
    known = json.loads(times.read_text(encoding='utf-8')) if times.exists() else {}
    queue.sort(key=lambda o: (not o.again, known.get(name(o)) or known.get(o.file) or usual.get(Path(o.file).parent.name, 60)))
    if forks:
        os.environ['OMP_NUM_THREADS'] = '1'
        import matplotlib.pyplot,nbdev.test,pytest,torch              # noqa: F401
    os.environ['MINIAI_TEST_CACHE'] = cache = tempfile.mkdtemp()
    running,failed,late,begun,total = {},[],[],time.time(),0
    while queue or running:
        while queue and len(running)<2:
            item,out = queue.pop(),tempfile.TemporaryFile()
            if item.again and time.time()-begun>args.within:
                late.append(name(item))
                continue
            pid = start(item, out)
            if pid is None: return run(item)               # in the new process
            running[pid] = item,out
        pid,status,used = os.wait4(-1, 0)
        item,out = running.pop(pid)
        cpu = used.ru_utime+used.ru_stime
        total += cpu
        if not finish(item, out, status, cpu, known): failed.append(name(item))
    shutil.rmtree(cache, ignore_errors=True)
    if args.note: times.write_text(json.dumps(dict(sorted(known.items())), indent=0)+'\n', encoding='utf-8')
    if late: print(f"NOT RUN, since {args.within:.0f} s were over: {', '.join(late)}")
    print(f"miniai: {total:.0f} CPU s in {time.time()-begun:.0f} s; "+(f"{len(failed)} failed: {', '.join(failed)}" if failed else 'all passed'))
    return bool(failed)

if __name__=='__main__': sys.exit(main())
