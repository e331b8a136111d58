"""Answer times of the service of lesson 44 at several arrival rates, one by one and in batches of up to eight.

Run: `python benchmarks/serving.py [--seconds 12]`. The server runs in a process of its own with one thread, and the requests come at random times
(a Poisson process) from this one; for each rate, batches and one by one are measured in turn. Writes results/serving.jsonl, which lesson 44
shows, and the table results/serving.md."""
import argparse,json,os,subprocess,sys
import common
from miniai.serving import load_row,load_test

code = '''
import sys,torch
torch.set_num_threads(1)
from miniai.serving import Ask,Batcher,Drawer,make_app,running
drawer = Drawer()
for n in (1, 2, 4, 8): drawer([Ask('a large red star')]*n)
with running(make_app(Batcher(drawer, max_batch=int(sys.argv[1]), max_queue=64), timeout=60.)) as url:
    print(url, flush=True)
    sys.stdin.read()
'''

def measured(max_batch, rate, n):
    "One server, one load; its row."
    server = subprocess.Popen([sys.executable, '-c', code, str(max_batch)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                              env=os.environ|{'OMP_NUM_THREADS': '1'})
    try:
        answers = load_test(server.stdout.readline().strip(), rate, n)
        return dict(max_batch=max_batch, **load_row(answers, rate))
    finally:
        server.stdin.close()
        server.wait(60)

p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
p.add_argument('--seconds', type=float, default=10, help='how long each rate lasts')
p.add_argument('--rates', type=int, nargs='+', default=[3, 6, 9, 12, 18, 24])
args = p.parse_args()
rows = [measured(k, rate, int(rate*args.seconds)) for rate in args.rates for k in (1, 8)]
(common.RESULTS/'serving.jsonl').write_text(''.join(json.dumps(o)+'\n' for o in rows))
names = dict(max_batch='batches of up to', rate='requests per second', answered='answered', refused='refused (503)', per_second='answers per second', p50='p50, s', p95='p95, s')
common.write('serving', [{v: o[k] for k,v in names.items()} for o in rows], 'A service under load', ('torch','fastapi','uvicorn'),
             [f'Random arrivals for {args.seconds:g} seconds at each rate, scenes in two evaluations, a line of 64; client and server on one machine; where others share it, compare the two rows of a rate.'])
