"Learned words: files of strangers, words that cannot be, and pipelines that stay as they were."
import copy,importlib.util,json,threading,warnings
from pathlib import Path
import pytest,torch
from safetensors.torch import save,save_file
from miniai.data import draw_scenes,random_scenes
from miniai.latents import LatentDiffusion
from miniai.personalise import TextualInversion,add_word,fine_tune,invert,load_concept,random_row,save_concept,token_table,with_word
from miniai.stable import StableDiffusion

row = torch.arange(128.)/100

@pytest.fixture(scope='module')
def pipe(): return StableDiffusion.load()

@pytest.fixture
def mine(pipe):
    res = copy.copy(pipe)
    res.text = copy.deepcopy(pipe.text)
    return res

def same_as_before(mine, pipe):
    assert mine.tokenizer is pipe.tokenizer and torch.equal(token_table(mine)[2].weight, token_table(pipe)[2].weight)

def test_every_truncation_is_refused(tmp_path, mine, pipe):
    whole = save({'<it>': row[None]})
    for n in [*range(0, 90, 7), *range(90, len(whole), 97)]:
        (tmp_path/'x.safetensors').write_bytes(whole[:n])
        with pytest.raises(ValueError, match='no whole safetensors file'): load_concept(mine, tmp_path/'x.safetensors')
    same_as_before(mine, pipe)

def test_every_flipped_byte_of_the_header_is_refused_or_harmless(tmp_path, pipe):
    whole = bytearray(save({'<it>': row[None]}))
    for i in range(0, 72, 3):
        raw = bytearray(whole)
        raw[i] ^= 0x15
        (tmp_path/'x.safetensors').write_bytes(raw)
        other = copy.copy(pipe)
        other.text = copy.deepcopy(pipe.text)
        try: load_concept(other, tmp_path/'x.safetensors')
        except ValueError as e:
            assert '\n' not in str(e)
            same_as_before(other, pipe)

class Bomb:
    def __reduce__(self): return threading.Thread, ()

@pytest.mark.parametrize('name', ['x.bin','x.pt'])
@pytest.mark.parametrize('content', [{'<it>': Bomb()}, Bomb(), {'string_to_param': {'*': Bomb()}, 'name': 'x'}])
def test_pickles_with_more_than_tensors_are_refused(tmp_path, mine, pipe, name, content):
    torch.save(content, tmp_path/name)
    with pytest.raises(ValueError, match='pickle that holds more than tensors'): load_concept(mine, tmp_path/name)
    same_as_before(mine, pipe)

@pytest.mark.parametrize('content,match', [
    ({}, 'found nothing'), ({'a': row, 'b': row+1}, 'found a, b'), ({'<it>': row[:5]}, 'rows of 128 numbers'), ({'<it>': row.reshape(2, 64)}, 'rows of 128'), ({'<it>': row.expand(23, -1).contiguous()}, '22 rows at most'), ({'<it>': row[None][:0]}, 'rows of 128'),
    ({'<it>': torch.tensor(1.)}, 'rows of 128'), ({'<it>': row.int()}, 'floats'), ({'<it>': row*torch.inf}, 'finite'), ({'star': row}, 'is in the vocabulary'),
    ({'two words': row}, 'without blanks'), ({'': row}, 'word: expected'), ({'...': row}, 'word: expected'), ({'<end>': row}, 'vocabulary'), ({'x'*99: row}, '64 at most')])
def test_what_is_no_new_word_is_refused(tmp_path, mine, pipe, content, match):
    save_file(content, tmp_path/'x.safetensors')
    torch.save(content, tmp_path/'x.bin')
    for name in ('x.safetensors','x.bin'):
        with pytest.raises(ValueError, match=match): load_concept(mine, tmp_path/name)
    same_as_before(mine, pipe)

def test_other_files_are_refused(tmp_path, mine):
    with pytest.raises(FileNotFoundError): load_concept(mine, tmp_path/'none.safetensors')
    with pytest.raises(FileNotFoundError): load_concept(mine, tmp_path)
    (tmp_path/'x.safetensors').write_bytes(b'0'*(17<<20))
    with pytest.raises(ValueError, match='some thousand bytes'): load_concept(mine, tmp_path/'x.safetensors')
    torch.save({'string_to_param': {'*': row, '+': row+1}, 'name': 'x'}, tmp_path/'two.pt')
    torch.save({'string_to_param': 3, 'name': 'x'}, tmp_path/'three.pt')
    for o in ('two.pt','three.pt'):
        with pytest.raises(ValueError, match='one word and its row'): load_concept(mine, tmp_path/o)

def test_half_precision_and_both_shapes(tmp_path, pipe):
    for k,v in dict(a=row.half(), b=row.bfloat16()[None], c=row.double()).items():
        save_file({'<it>': v}, tmp_path/f'{k}.safetensors')
        other = copy.copy(pipe)
        other.text = copy.deepcopy(pipe.text)
        assert load_concept(other, tmp_path/f'{k}.safetensors')=='<it>'
        assert torch.equal(token_table(other)[2].weight[-1], v.float().flatten())

def test_a_second_word_and_the_same_again(tmp_path, mine, pipe):
    save_concept(tmp_path/'a.safetensors', '<it>', row)
    save_concept(tmp_path/'b.safetensors', '<it>2', -row)
    for o in 'ab': load_concept(mine, tmp_path/f'{o}.safetensors')
    n = len(pipe.tokenizer)
    assert [mine.tokenizer.encode(o) for o in ('<it>','<it>2','<it> <it>2')]==[[n],[n+1],[n,n+1]]
    add_word(mine, '<many>', torch.stack([row, -row]))
    for o in ('<it>', '<many>'):
        with pytest.raises(ValueError, match=f"'{o}' is in the vocabulary"): add_word(mine, o, row)
    prompts = ['a red star left of a large blue ring', '', 'grey', '<', 'it']
    assert torch.equal(mine.states(prompts), pipe.states(prompts))
    assert mine('a <it>2', steps=1).shape==(1, 3, 64, 64)

def test_a_word_of_several_rows(tmp_path, mine, pipe):
    rows = torch.stack([row, -row, row/2])
    save_concept(tmp_path/'a.safetensors', '<it>', rows)
    torch.save(dict(string_to_param={'*': rows.half()}, name='<other>'), tmp_path/'b.pt')          # AUTOMATIC1111's
    n = len(pipe.tokenizer)
    assert (load_concept(mine, tmp_path/'a.safetensors'), load_concept(mine, tmp_path/'b.pt'))==('<it>', '<other>')
    red, = pipe.tokenizer.encode('red')
    assert mine.tokenizer.encode('<it> red <other>')==[n, n+1, n+2, red, n+3, n+4, n+5] and len(mine.tokenizer)==n+6
    table = token_table(mine)[2].weight
    assert torch.equal(table[n:n+3], rows) and torch.equal(table[n+3:], rows.half().float()) and torch.equal(table[:n], token_table(pipe)[2].weight)
    prompts = ['a red star left of a large blue ring', '', 'it 1']
    assert torch.equal(mine.states(prompts), pipe.states(prompts))
    one = copy.copy(pipe)                                                                      # only the first row: another word
    one.text = copy.deepcopy(pipe.text)
    add_word(one, '<it>', rows[0])
    assert not torch.equal(one.states(['a <it>']), mine.states(['a <it>']))

def test_inversion_of_several_rows(mine, pipe):
    images,n = draw_scenes(random_scenes(2, two=(False,)), 64),len(pipe.tokenizer)
    start = token_table(pipe)[2].weight[pipe.tokenizer.encode('star')[0]]
    found = invert(mine, '<it>', images, ['a <it>']*2, like='star', steps=2, bs=2, n=3)
    assert found.shape==(3,128) and torch.equal(token_table(mine)[2].weight[n:], found) and mine.tokenizer.encode('<it>')==[n, n+1, n+2]
    assert all((row!=start).any() for row in found) and len({tuple(o.tolist()) for o in found})==3   # each of them learned, each something else
    assert torch.equal(mine.states(['a red star']), pipe.states(['a red star']))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        mine(['a <it> on a white background'], steps=1)                                              # it is known, though it has three ids
    with pytest.warns(UserWarning, match="'other'"): mine(['a <other>'], steps=1)
    net = TextualInversion(mine, n, 3)
    z,c,ids = torch.randn(2, 8, 8, 8),torch.zeros(2),mine.tokenizer(['a <it>', 'a <it> left of a <it>'])
    with torch.no_grad(): assert torch.equal(net(z, c, ids), LatentDiffusion(mine.unet, mine.text)(z, c, ids))
    for bad in (0, -1, 1.5, mine.tokenizer.n_ctx-1):
        with pytest.raises((ValueError,TypeError), match='n: expected a whole number'): invert(mine, '<x>', images, ['a <x>']*2, like='star', n=bad)
    assert len(mine.tokenizer)==n+3

def test_saving_writes_whole_files_only(tmp_path):
    save_concept(tmp_path/'x.safetensors', '<it>', row)
    before = (tmp_path/'x.safetensors').read_bytes()
    for vector in (row/0, row.int(), None, torch.zeros(2, 2, 128), torch.zeros(0, 128)):
        with pytest.raises((ValueError,TypeError), match='vector: expected'): save_concept(tmp_path/'x.safetensors', '<it>', vector)
    for o in ('x.bin','x'):
        with pytest.raises(ValueError, match='ends in .safetensors'): save_concept(tmp_path/o, '<it>', row)
    assert [o.name for o in tmp_path.iterdir()]==['x.safetensors'] and (tmp_path/'x.safetensors').read_bytes()==before

def test_saving_a_pipeline_with_a_word_is_refused(tmp_path, mine):
    add_word(mine, '<it>', row)
    with pytest.raises(ValueError, match='config: its text is not the net'): mine.save(tmp_path/'p')
    assert not list(tmp_path.iterdir())

def test_a_pipeline_of_another_kind_is_refused(tmp_path):
    save_concept(tmp_path/'x.safetensors', '<it>', row)
    for o in (None, torch.nn.Linear(2, 2), object()):
        with pytest.raises(ValueError, match='byte-pair `Tokenizer`'): load_concept(o, tmp_path/'x.safetensors')

def test_an_error_in_the_training_changes_nothing(mine, pipe):
    images = draw_scenes(random_scenes(2, two=(False,)), 64)
    class Stop(Exception): pass
    class Task:
        order = 10
        def before_batch(self, learn): raise Stop
    with pytest.raises(Stop): invert(mine, '<it>', images, ['a <it>']*2, like='star', steps=2, bs=2, task=Task())
    same_as_before(mine, pipe)

def test_bad_numbers_of_fine_tune(pipe):
    net = torch.nn.Linear(2, 2)
    examples = torch.zeros(1, 8, 8, 8),torch.zeros(1, 1, 24, dtype=torch.int64)
    for kw,match in ((dict(steps=0), 'steps'), (dict(steps=1, bs=0), 'bs'), (dict(steps=1.5), 'steps')):
        with pytest.raises(ValueError, match=f'{match}: expected a whole number'): fine_tune(net, pipe, examples, lr=.1, **kw)

def test_a_word_that_is_a_piece_of_others_is_no_new_one(pipe):
    tok = pipe.tokenizer
    piece = next(k for k in tok.vocab if k.isalpha() and len(tok.encode(k))>1)                       # it would take that piece away from them
    with pytest.raises(ValueError, match=f"'{piece}' is in the vocabulary"): with_word(tok, piece)

def test_words_without_letters_beside(pipe):
    tok = with_word(pipe.tokenizer, "o'neil-7")
    assert len(tok.encode("o'neil-7, o'neil-7."))==2+len(pipe.tokenizer.encode(', .')) and tok.encode("o'neil-77")==pipe.tokenizer.encode("o'neil-77")
    assert random_row(pipe).shape==(128,)

def benchmark(name):
    "A script of benchmarks/ as a module, which runs nothing, and its stored rows."
    folder = Path(__file__).parents[1]/'benchmarks'
    spec = importlib.util.spec_from_file_location(f'benchmark_{name}', folder/f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module,[json.loads(o) for o in (folder/f'results/{name}.jsonl').read_text().splitlines()]

@pytest.mark.parametrize('name', ['personalise','lora'])
def test_stored_rows_are_those_of_the_script(name):
    script,rows = benchmark(name)
    assert {o['run'] for o in rows}<=set(script.runs) and len({(o['run'], o['seed']) for o in rows})==len(rows)

def test_what_lesson_34_says_of_its_table():
    rows = {o['run']: o for o in benchmark('personalise')[1] if o['seed']==0}
    best,plain,prior = (rows[k] for k in ('inverted row, DreamBooth, prior','DreamBooth','DreamBooth, prior'))
    assert best['fidelity']>max(plain['fidelity'], prior['fidelity'])+.1 and best['others']>plain['others']+.2 and best['beside']>prior['beside']+.2

def test_prior_images_are_drawn_once_and_their_time_is_counted(monkeypatch):
    script,_ = benchmark('personalise')
    monkeypatch.setattr(script, 'prior_examples', lambda pipe, kept, seed: (len(kept), seed))
    first,again,other = script.own_images(None, 4, 0),script.own_images(None, 4, 0),script.own_images(None, 4, 1)
    assert first is again==(len(script.arrows)+4, 0) and other==(len(script.arrows)+4, 1) and len(script.spared)==1
