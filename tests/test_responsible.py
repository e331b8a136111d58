"Lesson 45: wrong arguments, damaged files, and what intervals, marks and tests must keep."
import importlib.util,json,math,sys
import pyarrow as pa,pyarrow.parquet as pq
import pytest,torch
from common import root
from miniai.data import draw_scenes,random_scenes
from miniai.responsible import (FlatDenoiser,Watermark,auc,balance_weights,bootstrap,copy_test,effective_size,emoji_credits,false_alarm,fit_flat,group_rates,roc,
                                training_energy,wilson)

x,y = torch.rand(12, 1, 4, 4),torch.arange(12)%3
yes = torch.arange(12)<5
flat = torch.rand(12, 3)
images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)

@pytest.mark.parametrize('call,text', [
    (lambda: wilson(3, 0), 'n: expected a whole number, 1 or more, got 0'), (lambda: wilson(-1, 3), 'k: expected a whole number, from 0 to 3'),
    (lambda: wilson(1.5, 3), 'k: expected'), (lambda: wilson(1, 3, 0), 'level: expected more than 0'), (lambda: wilson(1, 3, math.nan), 'level: expected'),
    (lambda: bootstrap(torch.mean), r'data: expected tensors .* got \[\]'), (lambda: bootstrap(torch.mean, x, n=1), 'n: expected a whole number'),
    (lambda: bootstrap(torch.mean, x, level=2), 'level: expected'), (lambda: bootstrap(torch.mean, x, level=1), 'level: expected more than 0'),
    (lambda: FlatDenoiser((1,4,4), 0), 'n_classes: expected'), (lambda: FlatDenoiser((1,4,4), 2, depth=0), 'depth: expected'),
    (lambda: FlatDenoiser((1,4,4), 2)(x[:,:,:3], 1., y), r'x: expected images \(1, 4, 4\), got \(1, 3, 4\)'),
    (lambda: fit_flat(x, y[1:], 3), r'y: expected the shape \(12,\), got \(11,\)'), (lambda: fit_flat(x, y, 3, probs=-torch.ones(12)), 'probs: expected numbers of 0 or more'),
    (lambda: fit_flat(x, y, 3, weights=torch.full((12,), math.nan)), 'weights: expected finite'), (lambda: fit_flat(x, y, 3, probs=torch.zeros(12)), 'not all 0'),
    (lambda: balance_weights(y, yes[:3]), 'group: expected the shape'), (lambda: effective_size(-torch.ones(3)), 'weights: expected numbers of 0 or more'),
    (lambda: effective_size(torch.ones(0)), r'weights: expected the shape \(n,\), got \(0,\)'), (lambda: balance_weights(y[:0], yes[:0]), 'y: expected the shape'),
    (lambda: Watermark('k'), 'key: expected a whole number'), (lambda: Watermark(1, lo=0), 'lo: expected'), (lambda: Watermark(1, strength=math.inf), 'strength: expected'),
    (lambda: Watermark(1).embed(images[0]), r'x: expected images, uint8 \(n,3,h,w\) of 28 pixels'), (lambda: Watermark(1, hi=40).score(images), 'of 40 pixels or more'),
    (lambda: Watermark(1).score(images[:,:1]), 'x: expected images'), (lambda: Watermark(1).embed(images/255), 'got torch.float32'),
    (lambda: copy_test(flat, flat, flat[:,:2]), r'\(12, 3\), \(12, 3\), \(12, 2\)'), (lambda: copy_test(flat, flat[:0], flat), 'one row or more'),
    (lambda: copy_test(flat, flat, flat/0), 'held: expected finite'), (lambda: roc(flat[:,0], yes[1:]), 'scores: expected the shape'),
    (lambda: roc(flat[:,0], yes|True), 'y: expected both'), (lambda: auc(flat[:,0]/0, yes), 'scores: expected finite'),
    (lambda: group_rates(yes, yes, y[:4]), 'group: expected the shape'), (lambda: group_rates(yes[:,None], yes, y), r'y: expected the shape \(12,\), got \(12, 1\)'),
    (lambda: group_rates(yes, yes[:,None], y), 'said: expected the shape'), (lambda: group_rates(yes, yes, y[:,None]), 'group: expected the shape'),
    (lambda: group_rates(yes, flat[:,0], y), 'said: expected True and False'), (lambda: roc(flat[:,0], yes[:,None]), 'y: expected the shape'),
    (lambda: roc(flat[:,:1], yes), r'scores: expected the shape \(12,\), got \(12, 1\)'), (lambda: balance_weights(y[:,None], y), 'y: expected the shape'),
    (lambda: balance_weights(y, y.tolist()), r'group: expected the shape \(12,\), got a list'), (lambda: Watermark(2**256), 'key: expected a whole number, from 0 to'),
    (lambda: training_energy(watts=math.nan), 'watts: expected')])
def test_wrong_arguments_are_named(call, text):
    with pytest.raises(ValueError, match=text) as e: call()
    assert '\n' not in str(e.value)

def test_intervals_hold_the_fraction():
    for n in (1, 7, 50):
        for k in range(n+1):
            lo,hi = wilson(k, n)
            assert 0<=lo<=k/n<=hi<=1
            assert wilson(n-k, n)==pytest.approx((1-hi, 1-lo), abs=1e-12)
    assert wilson(5, 10, .5)[0]>wilson(5, 10)[0]
    state = torch.random.get_rng_state()
    assert bootstrap(torch.mean, flat[:,0], n=50)==bootstrap(torch.mean, flat[:,0], n=50)
    assert torch.equal(state, torch.random.get_rng_state())

def test_training_is_repeatable_and_learns():
    big = torch.stack([torch.full((1,4,4), v) for v in (-.8, 0., .8)])[y]
    a,b = (fit_flat(big, y, 3, steps=150, seed=1) for _ in range(2))
    assert all(torch.equal(p, q) for p,q in zip(a.parameters(), b.parameters()))
    out = a(torch.randn(3, 1, 4, 4), 20., torch.arange(3)).mean((1,2,3))             # nothing but noise: the class alone says it
    assert (out-torch.tensor([-.8, 0., .8])).abs().max()<.25

def test_reweighting_and_sampling_aim_at_the_same():
    y,g = torch.arange(400)%4,torch.rand(400, generator=torch.Generator().manual_seed(0))<.3
    w = balance_weights(y, g)
    for c in range(4): assert w[(y==c)&g].sum().item()==pytest.approx(w[(y==c)&~g].sum().item(), rel=1e-4)
    assert copy_test(flat[:1], flat[:1], flat[:1]).fraction==.5                   # a tie
    assert effective_size(w)<400 and effective_size(torch.ones(7))==pytest.approx(7)

def test_a_mark_does_not_depend_on_the_batch_and_needs_its_key():
    x = draw_scenes(random_scenes(6, seed=3), 64, seed=4)
    m = Watermark(11, strength=6.)
    marked = m.embed(x)
    assert marked.dtype==torch.uint8 and torch.equal(marked[2:3], m.embed(x[2:3])) and torch.equal(x, draw_scenes(random_scenes(6, seed=3), 64, seed=4))
    assert (m.score(marked)>m.score(x)+2).all() and (Watermark(12).score(marked).abs()<6).all()
    assert false_alarm(m.score(marked)).min()>=0 and false_alarm(0.)==.5 and false_alarm(9.)<1e-18
    z = torch.stack([Watermark(k).score(x) for k in range(300)])
    assert abs(z.mean())<.1 and abs(z.std()-1)<.1                                         # standard normal over keys, whatever the image

def test_every_bit_of_a_key_counts():
    keys = [0, 1, 2**31, 2**32-1, 2**32, 2**32+1, 2**33+1, 2**62+1, 2**63, 2**64+1, 2**128+1, 2**256-1]
    z = torch.stack([Watermark(k).pattern[Watermark(k).band] for k in keys])
    alike = torch.corrcoef(z).fill_diagonal_(0)
    assert alike.abs().max()<5/z.shape[1]**.5 and abs(z.mean())<.05 and abs(z.std()-1)<.05   # unrelated, standard normal
    assert torch.equal(Watermark(2**63).pattern, Watermark(2**63).pattern)
    old = torch.randn(28, 28, generator=torch.Generator().manual_seed(7))
    assert torch.equal(Watermark(7).pattern, old*Watermark(7).band)                         # short keys: as in stored figures
    assert Watermark(2**40).pattern[0,3].item()==pytest.approx(1.2344130277633667, abs=1e-6)             # the same with every version of torch

def test_copies_are_found_among_many_and_far_from_zero():
    gen = torch.Generator().manual_seed(0)
    train = 255*torch.rand(60, 192, generator=gen)
    held = train+.02*torch.randn(60, 192, generator=gen)
    for far in (0, 1000): assert copy_test(train+far, train+far, held+far).fraction==1
    assert copy_test(train, held, train).fraction==0 and copy_test(train, train, train).fraction==.5
    half = copy_test(train.double(), train.double()+1e-9, train.double()+2e-9)              # and not cut to float32
    assert half.fraction==1

def test_equal_scores_count_half():
    assert auc([.1, .4, .35, .8], [0, 0, 1, 1])==.75                                        # the example of scikit-learn
    assert auc(torch.zeros(12), yes)==.5 and auc(yes.float(), yes)==1. and auc(-yes.float(), yes)==0.
    fpr,tpr = roc(torch.tensor([3., 1., 1., 0.]), [True, False, True, False])
    assert fpr.tolist()==[0, 0, .5, 1] and tpr.tolist()==[0, .5, 1, 1]

def test_rates_of_groups_without_members():
    rates = group_rates([True, True, False], [True, False, False], [0, 0, 1])
    assert math.isnan(rates[0].fpr) and math.isnan(rates[1].ppv) and rates[0].fnr==.5 and rates[1].fpr==0 and rates[0].n==2

@pytest.mark.parametrize('raw', [b'', b'PAR1', b'{"minutes": 3}'])
def test_damaged_tables_are_refused(tmp_path, raw):
    (tmp_path/'t.parquet').write_bytes(raw)
    with pytest.raises(ValueError, match='t.parquet is damaged or no parquet file'): emoji_credits(folder=tmp_path)

def test_credits_by_licence(tmp_path, monkeypatch):
    pq.write_table(pa.table(dict(style=['a', 'b', None], licence=['MIT, One', 'MIT, One', ''])), tmp_path/'1.parquet')
    pq.write_table(pa.table(dict(style=['b'], licence=['CC BY 4.0, Two'])), tmp_path/'2.parquet')
    assert emoji_credits(folder=tmp_path)==['One: 2 images, licence MIT', 'unknown author: 1 images, licence unknown', 'Two: 1 images, licence CC BY 4.0']
    assert emoji_credits(['b'], tmp_path)==['Two: 1 images, licence CC BY 4.0', 'One: 1 images, licence MIT']
    with pytest.raises(ValueError, match="styles: the table has no style 'c'"): emoji_credits(['b', 'c'], tmp_path)
    monkeypatch.setenv('MINIAI_DATA', str(tmp_path))
    assert emoji_credits()==[]                                                                # no folder emoji in it
    monkeypatch.delenv('MINIAI_DATA')
    assert emoji_credits()==[] and emoji_credits(['noto'])==[]

def test_folders_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('USERPROFILE', str(tmp_path))
    (tmp_path/'x.json').write_text('{"minutes": 6}')
    assert training_energy('~', watts=10)==[dict(weights='x', minutes=6., wh=1.)]
    (tmp_path/'x.parquet').write_bytes(b'no table')
    with pytest.raises(ValueError, match='x.parquet is damaged'): emoji_credits(folder='~')

@pytest.mark.parametrize('text,error', [('{', 'damaged or no JSON'), ('{"minutes": "ten"}', 'a.json: minutes: expected a number'), ('{"minutes": -1}', 'minutes: expected'),
                                        ('{"minutes": NaN}', 'minutes: expected')])
def test_damaged_notes_are_refused(tmp_path, text, error):
    (tmp_path/'a.json').write_text(text)
    with pytest.raises(ValueError, match=error): training_energy(tmp_path)

def test_energy_of_the_stored_weights(tmp_path):
    rows = training_energy()
    names = [n for o in rows for n in o['weights'].split(', ')]
    assert len(names)==len(set(names)) and 'scene_text, scene_unet' in [o['weights'] for o in rows]
    assert sum(o['wh'] for o in training_energy(watts=20))==pytest.approx(2*sum(o['wh'] for o in rows))
    (tmp_path/'a.json').write_text(json.dumps([1, 2]))
    assert training_energy(tmp_path)==[]

def results():
    "The module benchmarks/responsible.py, and its stored runs."
    spec = importlib.util.spec_from_file_location('responsible_benchmark', root/'benchmarks/responsible.py')
    bench = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as m:
        m.syspath_prepend(str(root/'benchmarks'))
        m.delitem(sys.modules, 'common')                                                      # that of the tests; the benchmarks have their own
        spec.loader.exec_module(bench)
    return bench,{o['name']: o['found'] for o in map(json.loads, bench.out.read_text().splitlines())}

def test_redrawn_scenes_are_those_of_the_training():
    from miniai.data import SEEN
    from miniai.latents import scene_latents
    class Pixels(torch.nn.Linear):
        def to_latents(self, x): return x
    bench,_ = results()
    n_two = 65_000                                                                           # of 100,000, in stage 5 of training/scene_unet.py
    assert 'args.n_scenes' in (text := (root/'training/scene_unet.py').read_text()) and '.65' in text and '60+10*(i==5), SEEN, (True,)' in text
    some = random_scenes(300, 70, SEEN, (True,))                                             # a prefix of those, as they are drawn one after another
    assert bench.training_scenes(300)==some and 300<n_two
    x = bench.scene_images(some, 70)
    assert torch.equal((x.float()/127.5-1).half(), scene_latents(Pixels(1, 1), some, 64, seed=70))

def test_stored_runs_hold_what_the_lesson_says():
    bench,runs = results()
    assert set(runs)==set(bench.runs)
    scenes = next(v for k,v in runs.items() if k.startswith('scenes'))
    for space in ('pixels', 'features'):                                                      # the test can say yes, and says no where it must
        for end in ('', ', the scene of its caption'):
            assert scenes[f'copies through the codec, {space}{end}']>.97 and abs(scenes[f'drawn by the program, {space}{end}']-.5)<.04
    for n in (240, 6000):
        dice = [v for k,v in runs.items() if k.startswith(f'bias: {n} images, {bench.by_dice}')]
        assert len(dice)==5 and all(abs(o['orange stars, 4']-.5)<.07 for o in dice)
    for v in (v for k,v in runs.items() if k.startswith('amplify')): assert len(v['colours, 1'])==len(v['colours, 4'])==96
