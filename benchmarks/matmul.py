"""Our `matmul` against torch's on the CPU, float32, all cores: python benchmarks/matmul.py

Both run in turn, several rounds, after a warm-up; the table has medians. On x86 the 1024 case runs a second time in a
process of its own with our kernel held to AVX2 (256-bit registers): the difference is what wider registers bring."""
import json,os,platform,subprocess,sys,torch
from common import compare,write
from miniai.matmul import matmul

SIZES = 256,512,1024,2048


def measure(n, rounds=15):
    "Rows of `compare` for a product of n x n matrices, with operations per second."
    a,b = torch.randn(n,n),torch.randn(n,n)
    torch.testing.assert_close(matmul(a, b), a@b, atol=1e-3, rtol=1e-3)
    rows = compare(f'{n}x{n}x{n}', {'torch @': lambda: a@b, 'miniai matmul': lambda: matmul(a, b)}, rounds)
    return [dict(o, rate=2*n**3/o['median']/1e9) for o in rows]


def in_avx2(n):
    "The same in a process whose numba compiles for AVX2 with fused multiply-add (Haswell, 2013) and nothing newer."
    env = {**os.environ, 'NUMBA_CPU_NAME':'haswell', 'NUMBA_CPU_FEATURES':''}
    cmd = [sys.executable, __file__, '--json', str(n)]
    res = subprocess.run(cmd, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return [dict(o, label=o['label']+', AVX2 only') for o in json.loads(res.stdout) if 'miniai' in o['label']]


def line(o):
    "A line of the table, from a row."
    return {'product':o['name'], 'version':o['label'], 'median ms':f"{o['median']*1e3:.2f}",
            'lowest to highest':f"{o['lo']*1e3:.2f} to {o['hi']*1e3:.2f}",
            'GFLOP/s':f"{o['rate']:.0f}", 'of torch':f"{o['ratio']:.2f}"}


def main():
    torch.manual_seed(0)
    if '--json' in sys.argv: return print(json.dumps(measure(int(sys.argv[-1]))))
    rows = [o for n in SIZES for o in measure(n)]
    if platform.machine() in ('x86_64','AMD64'): rows += in_avx2(1024)
    write('matmul', [line(o) for o in rows], 'Matrix products on the CPU, float32', ('torch','numba','numpy'), NOTES)


NOTES = ["""'of torch' is the median over the rounds of torch's time by ours in the same round: above 1 ours is faster.
GFLOP/s are billion operations (2mnk) per second at the median time. Ours includes packing and the checks.
""", f"""torch runs with {torch.get_num_threads()} threads. 'AVX2 only' was compared with torch, itself not held back.
""", """What holds ours back: the innermost loop re-reads and re-writes its part of c in the first-level cache after every
4 steps of k, where an assembly kernel keeps it in registers over the depth of a tile; the compiler chooses registers and
the order of instructions (on Intel's processors it prefers 256 bits even where there are 512); each strip is copied once
more into c; and small products are padded to whole tiles. What lifts it: on AMD's processors numba uses the widest
registers, where a library may choose narrower ones."""]


if __name__=='__main__': main()
