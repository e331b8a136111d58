"Lesson 39: captions, beams and measures under odd input, and files of a captioner that are damaged or foreign."
import itertools,json,math,random
from importlib.util import find_spec
import pytest,torch
from miniai.captioning import (Captioner,FeatureMap,beam_search,bleu,cached_scores,caption_score,cider,greedy_search,interrogate,load_captioner,
                               nearest_phrases,next_scores,parse_caption,references,rerank,temperature_sampling)
from miniai.clip import ImageEncoder,Tokenizer,small_clip
from miniai.data import Scene,Thing,caption,draw_scenes,random_scenes
from miniai.ddpm import save_weights

tok = Tokenizer([], 24)
small = dict(n_vocab=len(tok), n=16, n_heads=2, depth=1, nfs=[4,4,8,8])

@pytest.fixture(scope='module')
def net():
    torch.manual_seed(0)
    return Captioner(**small).eval()

def images(n, side=32): return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(n))*2-1

# Captions and scenes

def test_every_caption_is_read_as_written():
    scenes = random_scenes(300, 1)
    for s in scenes:
        told = references(s)
        assert len(told)==len(s.things) and len(set(told))==len(told)
        assert parse_caption(told[0])==s and caption_score(told, [s]*len(told))==(1., 1.)

@pytest.mark.parametrize('text', ['', ' ', 'a', 'boot', 'a boot', 'an small red star', 'a orange star', 'a red star left a ring', 'a star above', 'a red star on a red background',
                                  'a small red star on a black background ', 'A small red star', 'a star a star', 'a star left of a ring above a bar'])
def test_what_is_no_caption_is_none(text): assert parse_caption(text) is None

def test_a_thing_may_lack_words():
    assert parse_caption('a star')==Scene((Thing('', '', 'star'),), '', '')
    assert parse_caption('an orange bar above a small ring')==Scene((Thing('', 'orange', 'bar'), Thing('small', '', 'ring')), 'above', '')

def test_one_wrong_word_costs_one_attribute():
    s = Scene((Thing('large', 'red', 'star'),), '', 'black')
    for wrong in (s._replace(background='white'), s._replace(things=(Thing('small', 'red', 'star'),)), s._replace(things=(Thing('large', 'blue', 'star'),))):
        assert caption_score([caption(wrong)], [s])==(0., .8)
    assert caption_score(['nothing'], [s])==(0., 0.)

@pytest.mark.parametrize('texts,scenes', [([], []), (['a star'], []), ('a star', random_scenes(6)), (['a star']*2, random_scenes(3))])
def test_scores_want_equal_lists(texts, scenes):
    with pytest.raises(ValueError, match='texts, scenes'): caption_score(texts, scenes)

# Ways to write

def chain(v=6, seed=0):
    w = 2*torch.randn(v, v, generator=torch.Generator().manual_seed(seed))
    return lambda ids: w[ids[:,-1]]

def best_of_all(scores, first, end, n_most):
    "The best sum of log probabilities of all texts of at most `n_most` ids."
    def grow(ids, total, left):
        if left==0 or (len(ids)>1 and ids[-1]==end): return total
        p = scores(torch.tensor([ids])).log_softmax(-1)[0].tolist()
        return max(grow([*ids, i], total+q, left-1) for i,q in enumerate(p))
    return grow([first], 0., n_most)

@pytest.mark.parametrize('seed', range(4))
def test_as_many_beams_as_texts_find_the_best(seed):
    scores = chain(4, seed)
    _,sums = beam_search(scores, torch.tensor([[2]]), 1, 4, 64, 0., 'never')
    assert sums[0,0].item()==pytest.approx(best_of_all(scores, 2, 1, 4), abs=1e-4)

@pytest.mark.parametrize('stop', [False, True, 'never'])
def test_rows_do_not_know_of_each_other(stop):
    ids = torch.arange(6)[:,None]
    found,sums = beam_search(chain(), ids, 1, 7, 3, .7, stop)
    for i in range(6):
        one,s = beam_search(chain(), ids[i:i+1], 1, 7, 3, .7, stop)
        assert torch.equal(one[0], found[i]) and torch.allclose(s[0], sums[i], atol=1e-5)

def test_beams_differ_and_end():
    found,sums = beam_search(chain(), torch.tensor([[0], [3]]), 1, 7, 4)
    for row in found.tolist():
        assert len({tuple(o) for o in row})==4
        for o in row:
            if 1 in o[1:]: assert set(o[1+o[1:].index(1):])=={1}
    assert (sums.diff(dim=1)<=0).all()

def test_an_end_mark_at_the_beginning_is_no_end():
    assert greedy_search(lambda ids: torch.eye(3)[torch.full((len(ids),), 2)], torch.tensor([[1]]), 1, 3).tolist()==[[1, 2, 2, 2]]

@pytest.mark.parametrize('ids', [torch.tensor([1]), torch.zeros(2, 0).long(), torch.zeros(0, 2).long(), torch.zeros(2, 2), [[1]], None])
def test_beginnings_are_checked(ids):
    for f in (greedy_search, beam_search, temperature_sampling):
        with pytest.raises(ValueError, match='ids: expected beginnings'): f(chain(), ids, 1)

@pytest.mark.parametrize('kw,text', [(dict(n_beams=0), 'n_beams'), (dict(n_beams=1.5), 'n_beams'), (dict(n_most=0), 'n_most'), (dict(length_penalty=math.inf), 'length_penalty'),
                                     (dict(early_stopping='sometimes'), 'early_stopping'), (dict(early_stopping=None), 'early_stopping')])
def test_settings_of_beams_are_checked(kw, text):
    with pytest.raises(ValueError, match=f'{text}: expected'): beam_search(chain(), torch.tensor([[2]]), 1, **kw)

@pytest.mark.parametrize('t', [0., -1., math.nan, math.inf])
def test_temperatures_are_checked(t):
    with pytest.raises(ValueError, match='temperature: expected'): temperature_sampling(chain(), torch.tensor([[2]]), 1, temperature=t)

def test_the_same_generator_draws_the_same():
    def draw(): return temperature_sampling(chain(), torch.full((50, 1), 2), 1, 9, generator=torch.Generator().manual_seed(3))
    assert torch.equal(draw(), draw())

@pytest.mark.skipif(not find_spec('transformers'), reason='needs transformers')
def test_beams_are_those_of_transformers():
    from transformers import GPT2Config,GPT2LMHeadModel
    torch.manual_seed(5)
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_positions=24, n_embd=8, n_layer=1, n_head=2, initializer_range=1., bos_token_id=0, eos_token_id=1, pad_token_id=1)).eval()
    ids = torch.randint(2, 9, (3, 2))
    for k,a,stop in itertools.product((2, 3), (0., 1.5), (False, True, 'never')):
        want = gpt.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, num_beams=k, length_penalty=a, early_stopping=stop, do_sample=False, num_return_sequences=k)
        got = beam_search(lambda i: gpt(i).logits[:,-1], ids, 1, 8, k, a, stop)[0].flatten(0, 1)
        assert got[:,:want.shape[1]].tolist()==want.tolist(), (k, a, stop)

# Measures

@pytest.mark.parametrize('f', [bleu, cider])
@pytest.mark.parametrize('texts,refs', [([], []), ('a', [['a']]), (['a'], ['a']), (['a'], [[]]), (['a', 'b'], [['a']])])
def test_measures_want_a_list_of_references(f, texts, refs):
    with pytest.raises(ValueError, match='refs: expected'): f(texts, refs)

def test_measures_of_empty_and_repeated_text():
    assert bleu([''], [['a star']])==0 and cider(['', 'x'], [['a star'], ['x']])[0]==0
    assert bleu(['red '*7], [['a red star']], 1)==pytest.approx(1/7)              # at most as often as the reference has it
    assert bleu(['a b'], [['a b c d']], 1)==pytest.approx(math.exp(-1))           # half as long
    assert bleu(['a b c'], [['a b', 'a b c d']], 1)==1.                           # of two as near, the shorter one

@pytest.mark.skipif(not find_spec('sacrebleu'), reason='needs sacrebleu')
def test_bleu_is_that_of_sacrebleu():
    from sacrebleu import corpus_bleu
    gen = torch.Generator().manual_seed(0)
    def some(n): return ' '.join('abcd'[i] for i in torch.randint(4, (n,), generator=gen))
    for i in range(20):
        texts,refs = [some(3+i%5+j) for j in range(6)],[[some(4+j), some(9-j)] for j in range(6)]
        want = corpus_bleu(texts, list(zip(*refs)), smooth_method='none', tokenize='none', force=True).score/100
        assert bleu(texts, refs)==pytest.approx(want, abs=1e-9)

# The nets

def test_map_begins_with_the_encoder():
    torch.manual_seed(0)
    encoder = ImageEncoder(5, (4,4,8,8)).eval()
    fm = FeatureMap((4,4,8,8)).copy_from(encoder).eval()
    x = images(2)
    with torch.no_grad(): mean = fm(x)[:,:,8:].mean(1)                            # the last stage's channels, enlarged evenly
    with torch.no_grad(): torch.testing.assert_close(encoder.net.head(mean), encoder(x))

def test_map_refuses_other_encoders():
    before = FeatureMap((4,4,8,8))
    for nfs in ((4,4,8), (4,8,8,8), (4,4,8,8,8)):
        with pytest.raises(ValueError, match='encoder: expected'): before.copy_from(ImageEncoder(5, nfs))

@pytest.mark.parametrize('x', [torch.zeros(3, 32, 32), torch.zeros(1, 1, 32, 32), torch.zeros(1, 3, 33, 32), torch.zeros(1, 3, 32, 32, dtype=torch.uint8), None])
def test_images_are_checked(net, x):
    for f in (net.encode, lambda o: net.write(o, tok)):
        with pytest.raises(ValueError, match='x: expected images'): f(x)

def test_written_text_is_the_same_in_any_batch(net):
    x = images(5)
    for k in (1, 3):
        whole = net.write(x, tok, k)
        assert net.write(x, tok, k, bs=2)==whole and [net.write(o[None], tok, k)[0] for o in x]==whole

def test_not_a_number_is_refused_and_modes_stay(net):
    with pytest.raises(ValueError, match='x'): net.write(images(2)*math.nan, tok)
    net.train()
    try:
        net.write(images(1), tok)
        assert net.training
    finally: net.eval()

def test_rerank_and_interrogate(net):
    torch.manual_seed(0)
    clip = small_clip(len(tok), n=16, n_heads=2, depth=1, nfs=(4,4,8,8), n_out=8).eval()
    x = images(2)
    assert rerank(clip, tok, x, [['a star'], ['a ring', 'a ring']])==['a star', 'a ring']
    assert len(interrogate(x, net, tok, clip, 2))==2
    for texts in ([['a']], ['a', 'b'], [[], ['a']], 'ab'):
        with pytest.raises(ValueError, match='texts'): rerank(clip, tok, x, texts)
    with pytest.raises(ValueError, match='x: expected images'): interrogate(x[0], net, tok, clip)

def test_asking_leaves_both_nets_as_they_were(net):
    "In any mode the same answers, and afterwards the same statistics and, module by module, the same mode."
    torch.manual_seed(0)
    clip = small_clip(len(tok), n=16, n_heads=2, depth=1, nfs=(4,4,8,8), n_out=8).eval()
    x,texts = images(3),[['a star', 'a ring']]*3
    want = net.write(x, tok),interrogate(x, net, tok, clip, 2),rerank(clip, tok, x, texts)
    for o in (net, clip):
        o.train()
        next(m for m in o.modules() if isinstance(m, torch.nn.BatchNorm2d)).eval()
    modes = [m.training for o in (net, clip) for m in o.modules()]
    kept = {k: v.clone() for o in (net, clip) for k,v in o.state_dict().items()}
    try:
        assert (net.write(x, tok),interrogate(x, net, tok, clip, 2),rerank(clip, tok, x, texts))==want
        assert [m.training for o in (net, clip) for m in o.modules()]==modes
        assert all(torch.equal(v, kept[k]) for o in (net, clip) for k,v in o.state_dict().items())
    finally: net.eval()

def test_images_are_moved_to_the_captioner():
    "The meta device stands for any other."
    net = Captioner(**small).to('meta')
    def encode(x): raise FloatingPointError(x.device.type)
    net.encode = encode
    for ask in (lambda: net.write(images(1), tok), lambda: interrogate(images(1), net, tok, None)):
        with pytest.raises(FloatingPointError, match='meta'): ask()

def test_three_stages_take_multiples_of_eight():
    torch.manual_seed(0)
    net = Captioner(**{**small, 'nfs': [4,4,8]})
    assert len(net.write(images(2, 24), tok))==2 and len(interrogate(images(1, 24), net, tok, small_clip(len(tok), n=16, n_heads=2, depth=1, nfs=(4,4,8), n_out=8)))==1
    with pytest.raises(ValueError, match='multiples of 8'): net.write(images(1, 28), tok)
    with pytest.raises(ValueError, match='multiples of 16'): Captioner(**small).write(images(1, 24), tok)

def test_no_images_are_no_texts(net):
    assert net.write(torch.zeros(0, 3, 32, 32), tok)==[]==interrogate(torch.zeros(0, 3, 32, 32), net, tok, None)

def test_scores_have_rows_for_each_image(net):
    x = images(2)
    with torch.no_grad():
        f = next_scores(net, x)
        ids = torch.full((2, 1), tok.start)
        torch.testing.assert_close(f(ids.repeat_interleave(3, 0))[::3], f(ids))

@pytest.mark.parametrize('k', [1, 3])
def test_cached_scores_are_the_plain_ones(net, k):
    "Row by row, whichever earlier row each continues, several ids at a time, and from the beginning again."
    gen,x = torch.Generator().manual_seed(k),images(2)
    with torch.no_grad():
        plain,kept = next_scores(net, x),cached_scores(net, x)
        ids = torch.randint(len(tok), (2*k, 1), generator=gen)
        for m in (1, 1, 2, 3, 1):
            rows = torch.arange(2).repeat_interleave(k)*k + torch.randint(k, (2*k,), generator=gen)
            ids = torch.cat([ids[rows], torch.randint(len(tok), (2*k, m), generator=gen)], 1)
            torch.testing.assert_close(kept(ids), plain(ids), atol=1e-5, rtol=1e-5)
        for o in (ids, ids[:,:4], ids.flip(0), ids[:2]): torch.testing.assert_close(kept(o), plain(o), atol=1e-5, rtol=1e-5)
        with pytest.raises(ValueError, match='ids: expected'): kept(torch.zeros(2, 25).long())

@pytest.mark.parametrize('stop', [False, True, 'never'])
def test_searches_find_the_same_with_a_cache(net, stop):
    x,ids = images(3),torch.full((3, 1), tok.start)
    with torch.no_grad():
        assert torch.equal(greedy_search(cached_scores(net, x), ids, tok.end), greedy_search(next_scores(net, x), ids, tok.end))
        a,b = (beam_search(f(net, x), ids, tok.end, 12, 4, .5, stop) for f in (cached_scores, next_scores))
        assert torch.equal(a[0], b[0])
        torch.testing.assert_close(a[1], b[1], atol=1e-4, rtol=1e-4)
        a,b = (temperature_sampling(f(net, x), ids, tok.end, generator=torch.Generator().manual_seed(1)) for f in (cached_scores, next_scores))
        assert torch.equal(a, b)

def test_two_judges_add_up(net):
    "The writer's part is the sum of its log probabilities, and CLIP's its scaled cosine."
    torch.manual_seed(0)
    clip = small_clip(len(tok), n=16, n_heads=2, depth=1, nfs=(4,4,8,8), n_out=8).eval()
    x,texts = images(2),['a star','a ring','two','a']
    with torch.no_grad():
        want = clip.scale*clip.encode_image(x)@clip.encode_text(tok(texts)).T
        for j,t in enumerate(texts):
            ids = torch.tensor([[tok.start, *tok.encode(t), tok.end]]*2)
            want[:,j] += net(x, ids[:,:-1]).log_softmax(-1).gather(2, ids[:,1:,None]).sum((1,2))
    assert rerank(clip, tok, x, [texts]*2, net)==[texts[i] for i in want.argmax(1)]

def test_phrases_are_put_in(net):
    from miniai.captioning import _put_in
    assert _put_in(['a red star on red'], ['red','a red star'], ['blue'], tok)==['a red star on red','blue on red','a red star on blue']
    assert _put_in(['starfish'], ['star'], ['ring'], tok)==['starfish']
    assert _put_in(['red '+'x'*16], ['red'], ['r', 'much too long'], tok)==['red '+'x'*16,'r '+'x'*16]            # 22 ids at most
    torch.manual_seed(0)
    clip = small_clip(len(tok), n=16, n_heads=2, depth=1, nfs=(4,4,8,8), n_out=8).eval()
    x,phrases = images(2),['a','b','c']
    near = nearest_phrases(clip, tok, x, phrases, 9)
    with torch.no_grad(): want = (clip.encode_image(x)@clip.encode_text(tok(phrases)).T).argmax(1)
    assert all(sorted(o)==phrases for o in near) and [o[0] for o in near]==[phrases[i] for i in want]
    assert len(interrogate(x, net, tok, clip, 2, phrases=(phrases, ['d']), n_near=2))==2
    for bad in ([], 'abc'):
        with pytest.raises(ValueError, match='phrases: expected'): nearest_phrases(clip, tok, x, bad)

# Files

def test_stored_captioner_captions_scenes():
    net,words = load_captioner()
    scenes = random_scenes(40, 77, [('red', 'circle'), ('blue', 'square'), ('green', 'star')])
    score = caption_score(net.write(draw_scenes(scenes, 64, 1).float()/127.5-1, words), scenes)
    assert score.exact>.8 and score.attributes>.95

@pytest.fixture
def stored(net, tmp_path):
    save_weights(net, tmp_path/'c.safetensors', config=small, merges=tok.merges)
    return tmp_path/'c.safetensors'

def test_round_trip(net, stored):
    again,words = load_captioner(stored)
    assert not again.training and len(words)==len(tok) and not any(p.requires_grad for p in again.parameters())
    assert again.write(images(2), words)==net.write(images(2), tok)

@pytest.mark.parametrize('harm', [lambda b: b[:-7], lambda b: b[:9], lambda b: b'', lambda b: b'{}'+b[2:], lambda b: b[:-4]+b'\xff\xff\xff\xff'])
def test_damaged_weights_are_refused(stored, harm):
    stored.write_bytes(harm(stored.read_bytes()))
    with pytest.raises(ValueError, match='c.safetensors'): load_captioner(stored)

@pytest.mark.parametrize('drop', ['config', 'merges'])
def test_a_json_without_its_parts_is_refused(stored, drop):
    info = json.loads(stored.with_suffix('.json').read_text())
    stored.with_suffix('.json').write_text(json.dumps({k: v for k,v in info.items() if k!=drop}))
    with pytest.raises(ValueError, match=drop): load_captioner(stored)

def test_foreign_weights_are_refused(tmp_path):
    for f in ('scene_reader', 'scene_clip'):
        with pytest.raises((ValueError,TypeError)): load_captioner(f)
    with pytest.raises(FileNotFoundError): load_captioner(tmp_path/'no.safetensors')

def test_cider_of_pycocoevalcap():
    "Theirs is CIDEr-D, ten times as large, and the same where all texts are equally long and no word stands twice."
    scorer = pytest.importorskip('pycocoevalcap.cider.cider_scorer').CiderScorer
    rng,words = random.Random(0),[f'w{i}' for i in range(12)]
    for _ in range(50):
        length = rng.randint(4, 8)
        refs = [[' '.join(rng.sample(words, length)) for _ in range(rng.randint(1, 4))] for _ in range(rng.randint(2, 9))]
        texts = [rng.choice(o) if rng.random()<.3 else ' '.join(rng.sample(words, length)) for o in refs]
        theirs = scorer(n=4, sigma=6.)
        for o,ref in zip(texts, refs): theirs += (o, ref)
        assert max(abs(10*a-b) for a,b in zip(cider(texts, refs), theirs.compute_score()[1]))<1e-12
