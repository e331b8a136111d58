"Single-file checkpoints: what is read, what is refused with which words, and that nothing is left half written."
import re,struct,warnings
from importlib.util import find_spec
from pathlib import Path
import pytest,torch
from safetensors.torch import load_file,save_file
from miniai.clip import Tokenizer
from miniai.personalise import add_word,token_table
from miniai.published import CLIPText,FilledTokenizer,PublishedCodec,PublishedDiffusion,PublishedUNet,load_published,save_published
from miniai.schedules import VDenoiser
from miniai.single_file import clip_tokenizer,ldm_name,load_single_file,read_header,save_single_file,single_file_config

unet,vae,text,openclip = 'model.diffusion_model.','first_stage_model.','cond_stage_model.transformer.text_model.','cond_stage_model.model.'

def make(version=1, nz=4, velocity=False, depth=1, tok=None, size=64, text_depth=2, mult=1):
    torch.manual_seed(version)
    nfs,n = ((32,64), 64) if version==1 else ((64,128), 128)
    words = Tokenizer.train(['a red star', 'a blue ring'], 8).merges
    tok = tok or FilledTokenizer(words, 24, ('<|startoftext|>','<|endoftext|>'), None if version==1 else 0)
    return PublishedDiffusion(tok, CLIPText(len(tok), tok.n_ctx, n, n//64, text_depth, mult, quick=version==1),
        PublishedUNet(nfs, (True,False), (8,8) if version==1 else (1,2), nz, 4, n, depth), PublishedCodec((32,64), 4, 1), velocity, size)

@pytest.fixture(scope='module')
def pipes(): return {1: make(1), 2: make(2)}

@pytest.fixture(scope='module')
def tensors(pipes, tmp_path_factory):
    out = {}
    for k,p in pipes.items():
        f = tmp_path_factory.mktemp('single')/'m.safetensors'
        save_single_file(p, f)
        out[k] = load_file(f)
    return out

@pytest.fixture
def read(pipes, tensors, tmp_path):
    "Write the small model with a change, and read it."
    def go(change=lambda w: w, version=1, meta=None, **kw):
        f = tmp_path/'m.safetensors'
        save_file(change(dict(tensors[version])), f, metadata=meta)
        return load_single_file(f, **dict(tokenizer=pipes[version].tokenizer, size=64) | kw)
    return go

def state(p): return {f'{k}.{n}': v for k in ('text','unet','codec') for n,v in getattr(p, k).state_dict().items()}
def same(a, b): return state(a).keys()==state(b).keys() and all(torch.equal(v, state(b)[k]) for k,v in state(a).items())
def one_line(e, path=None):
    assert '\n' not in str(e.value) and (path is None or str(path) in str(e.value)), e.value
    return str(e.value)

# ---- what is read

def test_there_and_back(pipes, read):
    for k,p in pipes.items(): assert same(read(version=k, velocity=False), p)

@pytest.mark.parametrize('version', [1, 2])
def test_known_extras_are_left_out(pipes, read, version):
    more = {k: torch.full((2,), torch.nan) for k in ('betas','alphas_cumprod','alphas_cumprod_prev','sqrt_alphas_cumprod','logvar',
        'sqrt_one_minus_alphas_cumprod','log_one_minus_alphas_cumprod','sqrt_recip_alphas_cumprod','sqrt_recipm1_alphas_cumprod',
        'posterior_variance','posterior_log_variance_clipped','posterior_mean_coef1','posterior_mean_coef2','lvlb_weights',
        'model_ema.diffusion_modelinput_blocks00weight','model_ema.decay','first_stage_model.loss.discriminator.main.0.weight')}
    more |= {'global_step': torch.tensor(1), 'model_ema.num_updates': torch.tensor(3)}
    if version==1: more |= {f'{text}embeddings.position_ids': torch.arange(24)[None]}
    else: more |= {f'{openclip}text_projection': torch.zeros(128, 128), f'{openclip}logit_scale': torch.tensor(4.6),
                   f'{openclip}attn_mask': torch.full((24,24), -torch.inf)}
    assert same(read(lambda w: w | more, version, {}, velocity=False), pipes[version])

def test_the_last_of_24_blocks_is_not_used(tmp_path):
    p = make(2, text_depth=23)
    save_single_file(p, tmp_path/'m.safetensors')
    w = load_file(tmp_path/'m.safetensors')
    assert f'{openclip}transformer.resblocks.22.ln_1.bias' in w
    last = {k.replace('.22.', '.23.'): torch.full_like(v, torch.nan) for k,v in w.items() if '.resblocks.22.' in k}
    save_file(w | last, tmp_path/'n.safetensors', metadata={'modelspec.prediction_type': 'epsilon'})
    assert len(last)==12 and same(load_single_file(tmp_path/'n.safetensors', tokenizer=p.tokenizer, size=64), p)
    with pytest.raises(ValueError, match='^pipe: expected a text encoder of 23 blocks, .* got 24'):
        save_single_file(make(2, text_depth=24), tmp_path/'o.safetensors')

def test_older_names_of_the_text_encoder(pipes, read):
    assert same(read(lambda w: {k.replace('.text_model.', '.'): v for k,v in w.items()}), pipes[1])
    k = f'{text}final_layer_norm.bias'
    with pytest.raises(ValueError, match='holds .*final_layer_norm.bias twice'):
        read(lambda w: w | {k.replace('.text_model.', '.'): w[k].clone()})

@pytest.mark.parametrize('stored,dtype', [(torch.float16, torch.float32), (torch.float16, torch.float16), (torch.bfloat16, torch.float16),
    (torch.float32, torch.bfloat16), (torch.float64, torch.float32)])
def test_types(pipes, read, stored, dtype):
    p = read(lambda w: {k: v.to(stored) for k,v in w.items()}, dtype=dtype)
    assert {v.dtype for k,v in p.unet.named_parameters()}=={dtype}
    for k,v in state(pipes[1]).items():
        if k.split('.')[-1] not in ('shift','scale'): assert torch.equal(state(p)[k], v.to(stored).to(dtype)), k

def test_a_file_of_mixed_types(pipes, read):
    p = read(lambda w: {k: v.half() if k.startswith(unet) else v for k,v in w.items()})
    assert torch.equal(p.codec.encoder[0].weight, pipes[1].codec.encoder[0].weight) and p.unet.stem.weight.dtype==torch.float32

def test_skip_and_inpainting(pipes, read, tmp_path):
    assert read(skip=1).text.skip==1
    with pytest.raises(ValueError, match='^skip: '): read(skip=2)
    p = make(nz=9)
    save_single_file(p, tmp_path/'i.safetensors')
    again = load_single_file(tmp_path/'i.safetensors', tokenizer=p.tokenizer)
    assert same(p, again) and again.unet.stem.in_channels==9 and again.size==64

def test_velocity_by_argument_note_key_and_size(read):
    def v(**kw): return isinstance(read(version=2, **kw).denoise, VDenoiser)
    note = {'modelspec.prediction_type': 'v'}
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert v(velocity=True) and not v(velocity=False) and v(meta=note) and not v(meta={'modelspec.prediction_type': 'epsilon'})
        assert v(change=lambda w: w | {'v_pred': torch.zeros(0)}) and not v(meta=note, velocity=False)
    with pytest.warns(UserWarning, match='^velocity: the file does not say .* taken for epsilon .* give velocity=True'): assert not v()
    with pytest.warns(UserWarning, match='taken for v_prediction .* give velocity=False'):
        p = read(version=2, size=None)
    assert p.size==768 and isinstance(p.denoise, VDenoiser)
    assert read(size=None).size==512 and read(size=None, meta={'modelspec.resolution': '64x64'}).size==64
    for odd in ('64x32', '63x63', '0x0', '', 'x', '1e9'): assert read(size=None, meta={'modelspec.resolution': odd}).size==512

def test_a_folder_of_the_same_model(pipes, read, tmp_path):
    p = read()
    save_published(p, tmp_path/'folder')
    again = load_published(tmp_path/'folder')
    assert same(p, again) and again.size==64
    save_single_file(again, tmp_path/'n.safetensors')
    assert same(load_single_file(tmp_path/'n.safetensors', tokenizer=tmp_path/'folder'/'tokenizer'), p)

def test_names_of_the_published_size_are_unique():
    with torch.device('meta'): p = PublishedUNet(),PublishedCodec()
    from miniai.published import codec_names,their_keys,unet_names
    for net,part,names,n in ((p[0], 'unet', unet_names, 686), (p[1], 'vae', codec_names, 248)):
        keys = [ldm_name(o, part) for k in net.state_dict() if k not in ('shift','scale') for o in their_keys(k, names(net))]
        assert len(keys)==len(set(keys))==n

# ---- the tokenizer

needs_list = pytest.mark.skipif(find_spec('open_clip') is None, reason='needs the package open_clip')

@needs_list
def test_clips_tokenizer_by_itself_through_the_lessons_loader(tmp_path):
    p = make(tok=clip_tokenizer())
    save_single_file(p, tmp_path/'m.safetensors')
    again = load_published(tmp_path/'m.safetensors')
    assert same(p, again) and torch.equal(again.tokenizer(['a star']), p.tokenizer(['a star']))

def test_tokenizer_missing_or_of_another_size(read, monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError, match='^tokenizer: there is no'): read(tokenizer=tmp_path/'nowhere')
    (tmp_path/'empty').mkdir()
    with pytest.raises(FileNotFoundError): read(tokenizer=tmp_path/'empty')
    (tmp_path/'x.gz').write_bytes(b'no list')
    with pytest.raises(ValueError): read(tokenizer=tmp_path/'x.gz')
    with pytest.raises(ValueError, match='^tokenizer: expected .* ids in rows of 24, got 514 in rows of 24'):
        read(tokenizer=Tokenizer([], 24))
    monkeypatch.setattr('miniai.single_file.find_spec', lambda name: None)
    with pytest.raises(ValueError, match='^tokenizer: .*pip install --no-deps open_clip_torch, or give') as e: read(tokenizer=None)
    one_line(e)

# ---- what is refused

def refused(read, tmp_path, words, change, **kw):
    with pytest.raises(ValueError, match=words) as e: read(change, **kw)
    assert one_line(e, tmp_path/'m.safetensors').startswith('path: ')

@pytest.mark.parametrize('key,words', [('lora_unet_mid_block_attentions_0_proj_in.lora_down.weight', 'a LoRA'), ('unet.x.lora_A.weight', 'a LoRA'),
    ('unet.x.lora.down.weight', 'a LoRA'), ('lora_te1_text_model.alpha', 'a LoRA'), ('conditioner.embedders.1.model.ln_final.bias', 'an SDXL'),
    ('model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight', 'a Stable Diffusion 3'), ('double_blocks.0.img_attn.qkv.weight', 'a FLUX'),
    ('model.diffusion_model.double_blocks.0.img_attn.qkv.weight', 'a FLUX'), ('control_model.time_embed.0.weight', 'a ControlNet'),
    ('down_blocks.0.resnets.0.norm1.weight', "a UNet from a folder"), ('decoder.up.0.block.0.norm1.bias', 'a VAE alone'),
    ('text_model.final_layer_norm.bias', 'a text encoder alone'), ('emb_params', 'an embedding'), ('clip_g', 'an embedding'), ('ztsnr', 'schedule')])
@pytest.mark.parametrize('alone', [True, False])
def test_other_kinds_are_named(read, tmp_path, key, words, alone):
    refused(read, tmp_path, f'this is {words}.*{re.escape(key)}' if words!='schedule' else 'this is a model of a schedule',
            lambda w: ({} if alone else w) | {key: torch.zeros(2)})

@pytest.mark.parametrize('dtype', [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8])
def test_quantised_numbers(read, tmp_path, dtype):
    k = f'{unet}middle_block.1.proj_in.weight'
    refused(read, tmp_path, rf'{re.escape(k)} is of the type \w+: the file is quantised', lambda w: w | {k: torch.zeros(64, 64, 1, 1).to(dtype)})

@pytest.mark.parametrize('prefixes,words', [((unet,), r'no UNet \(model'), ((vae,), r'no VAE \(first'), ((text,), r'no text encoder \(cond'),
                                            ((vae, text), 'no VAE .* and no text encoder')])
def test_parts_that_are_missing(read, tmp_path, prefixes, words):
    refused(read, tmp_path, words, lambda w: {k: v for k,v in w.items() if not k.startswith(prefixes)})

def test_each_tensor_is_needed(tensors, pipes):
    header = {k: dict(dtype='F32', shape=list(v.shape)) for k,v in tensors[1].items()}
    from miniai.single_file import _build,_compare
    with torch.device('meta'): nets = _build(single_file_config(header))
    for k in list(header)[::23]:
        rest = {n: o for n,o in header.items() if n!=k}
        with pytest.raises(ValueError, match='^header: '):
            with torch.device('meta'): _compare(rest, _build(single_file_config(rest)))
    for k in list(header)[5::61]:
        for shape in ([], [7], [*header[k]['shape'], 2], header[k]['shape'][:-1]+[header[k]['shape'][-1]+1]):
            with pytest.raises(ValueError, match='^header: '): _compare(header | {k: dict(dtype='F32', shape=shape)}, nets)

def test_missing_surplus_and_wrong_shapes_are_counted(read, tmp_path):
    refused(read, tmp_path, r'it lacks first_stage_model\.\S+\.bias \(\d\d such tensors\)',
            lambda w: {k: v for k,v in w.items() if not (k.startswith(f'{vae}decoder') and k.endswith('.bias'))})
    refused(read, tmp_path, r'no place for strange\.0 \(2 such tensors\)', lambda w: w | {f'strange.{i}': torch.zeros(1) for i in range(2)})
    k = f'{unet}time_embed.0.bias'
    refused(read, tmp_path, rf'{re.escape(k)}: expected the shape \(128,\), got \(129,\)', lambda w: w | {k: torch.zeros(129)})
    k = f'{unet}input_blocks.0.0.weight'
    for nz in (5, 7, 8): refused(read, tmp_path, f'4 channels in, or 9 for inpainting, got {nz}', lambda w: w | {k: torch.zeros(32, nz, 3, 3)})
    refused(read, tmp_path, 'multiples of 32, got', lambda w: w | {f'{unet}input_blocks.1.0.in_layers.2.weight': torch.zeros(40, 32, 3, 3)})
    k = f'{unet}middle_block.1.transformer_blocks.0.attn2.to_k.weight'
    refused(read, tmp_path, 'expected a UNet with 64 features of the text, got 96', lambda w: w | {k: torch.zeros(64, 96)})
    refused(read, tmp_path, 'halvings at', lambda w: {k.replace('input_blocks.2.0.op', 'input_blocks.1.0.op'): v for k,v in w.items()})

@pytest.mark.parametrize('bad', [torch.nan, torch.inf, -torch.inf])
def test_numbers_that_are_not_finite(read, tmp_path, bad):
    k = f'{vae}decoder.mid.attn_1.q.bias'
    def change(w): return w | {k: w[k].index_fill(0, torch.tensor([3]), bad)}
    refused(read, tmp_path, f'{re.escape(k)} has numbers that are not finite', change)
    refused(read, tmp_path, f'{re.escape(k)} has numbers that are too large for float16', lambda w: w | {k: w[k]+1e5}, dtype=torch.float16)

@pytest.mark.parametrize('kw,words', [(dict(dtype=torch.float64), '^dtype: '), (dict(dtype='float16'), '^dtype: '), (dict(size=0), '^size: '),
    (dict(size=65), '^size: expected a multiple of 2'), (dict(size=64.), '^size: '), (dict(velocity='v'), '^velocity: '), (dict(skip=-1), '^skip: ')])
def test_arguments(read, kw, words):
    with pytest.raises((ValueError,TypeError), match=words): read(**kw)

def test_files_that_are_something_else(pipes, tensors, tmp_path):
    f = tmp_path/'m.safetensors'
    torch.save(tensors[1], f)
    zipped = f.read_bytes()
    torch.save({'a': torch.zeros(1)}, f, _use_new_zipfile_serialization=False)
    old = f.read_bytes()
    save_file(tensors[1], f)
    whole = f.read_bytes()
    n = struct.unpack('<Q', whole[:8])[0]
    def with_table(o): return struct.pack('<Q', len(o))+o+whole[8+n:]
    for raw,words in ((zipped, 'is a pickle'), (old, 'is a pickle'), (b'GGUF\3\0\0\0'+bytes(99), 'GGUF'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:0', 'pointer of git-lfs'), (b'<!DOCTYPE html><html>', 'a web page'),
        (b'\n <html>'+bytes(50), 'a web page'), (b'', 'damaged'), (b'abc', 'damaged'), (bytes(8), 'damaged'), (b'\xff'*200, 'damaged'), (whole[:20], 'broke off'),
        (whole[:8+n//2], 'broke off'), (whole[:8+n], 'damaged'), (whole[:-1], 'broke off'), (whole+b'x', 'damaged'),
        (whole[:9]+b'\xff'+whole[10:], 'damaged'), (with_table(b'{}'), 'damaged'), (with_table(b'[]'), 'damaged'), (with_table(b'{"a": 3}'), 'damaged')):
        f.write_bytes(raw)
        with pytest.raises(ValueError, match=words) as e: load_single_file(f, tokenizer=pipes[1].tokenizer)
        assert one_line(e, f).startswith('path: ')
    (tmp_path/'m.ckpt').write_bytes(whole)                             # the content counts, not the name
    assert same(load_single_file(tmp_path/'m.ckpt', tokenizer=pipes[1].tokenizer, size=64), pipes[1])
    with pytest.raises(FileNotFoundError, match='^path: there is no file'): read_header(tmp_path/'none.safetensors')
    with pytest.raises(ValueError, match='^path: expected a file'): read_header(tmp_path)

def test_an_empty_safetensors_file(tmp_path):
    save_file({}, tmp_path/'m.safetensors')
    with pytest.raises(ValueError, match='it holds no UNet .* and no VAE .* and no text encoder'): load_single_file(tmp_path/'m.safetensors')

def test_too_little_memory(read, monkeypatch):
    monkeypatch.setattr('miniai.published._available', lambda: 1000)
    with pytest.raises(MemoryError, match='^dtype: '): read()

# ---- writing

def test_nothing_is_left_half_written(pipes, tmp_path, monkeypatch):
    f = tmp_path/'m.safetensors'
    f.write_bytes(b'mine')
    def broken(w, path, **kw):
        Path(path).write_bytes(b'half')
        raise OSError('no space left')
    monkeypatch.setattr('miniai.single_file.save_file', broken)
    with pytest.raises(OSError, match='no space'): save_single_file(pipes[1], f)
    assert f.read_bytes()==b'mine' and [*tmp_path.iterdir()]==[f]
    monkeypatch.undo()
    save_single_file(pipes[1], f)
    assert same(load_single_file(f, tokenizer=pipes[1].tokenizer), pipes[1]) and [*tmp_path.iterdir()]==[f]
    with pytest.raises(IsADirectoryError): save_single_file(pipes[1], tmp_path)

def test_a_model_may_be_saved_over_the_file_it_was_read_from(pipes, read, tmp_path):
    p = read()
    save_single_file(p, tmp_path/'m.safetensors')
    assert same(p, pipes[1]) and same(load_single_file(tmp_path/'m.safetensors', tokenizer=p.tokenizer), p)

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_is_written_as_it_is(tmp_path, dtype):
    p = make()
    for o in (p.text, p.unet, p.codec): o.to(dtype)                   # with its scale, which a reader has in float32
    save_single_file(p, tmp_path/'m.safetensors')
    assert {v.dtype for v in load_file(tmp_path/'m.safetensors').values()}=={dtype}
    again = load_single_file(tmp_path/'m.safetensors', dtype, tokenizer=p.tokenizer)
    assert torch.equal(again.unet.stem.weight, p.unet.stem.weight) and again.codec.scale.dtype==torch.float32

def test_what_the_file_says_of_itself(pipes, tmp_path):
    for p,kind,what in ((pipes[1], 'v1', 'epsilon'), (pipes[2], 'v2-512', 'epsilon'), (make(2, velocity=True, size=768), 'v2-768-v', 'v')):
        save_single_file(p, tmp_path/'m.safetensors')
        meta = read_header(tmp_path/'m.safetensors')['__metadata__']
        assert meta['modelspec.architecture']==f'stable-diffusion-{kind}' and meta['modelspec.prediction_type']==what
        assert meta['modelspec.resolution']==f'{p.size}x{p.size}' and {v.dtype for v in load_file(tmp_path/'m.safetensors').values()}=={torch.float32}

def test_a_learned_word_is_not_written(tmp_path):
    pipe = make(1)
    add_word(pipe, '<it>', torch.zeros(token_table(pipe)[2].embedding_dim))
    with pytest.raises(ValueError, match='pipe: expected no learned words'): save_single_file(pipe, tmp_path/'a.safetensors')
    assert not list(tmp_path.iterdir())

def test_weights_that_are_not_finite_are_not_written(tmp_path):
    p = make()
    p.unet.stem.bias.data[0] = torch.nan
    with pytest.raises(ValueError, match='^pipe: model.diffusion_model.input_blocks.0.0.bias has'): save_single_file(p, tmp_path/'m.safetensors')
    assert not [*tmp_path.iterdir()]

# ---- the other library

@pytest.mark.skipif(not (find_spec('diffusers') and find_spec('transformers')), reason='needs the packages diffusers and transformers')
@pytest.mark.parametrize('version', [1, 2])
def test_diffusers_reads_what_we_write(pipes, read, tmp_path, version):
    from diffusers import StableDiffusionPipeline
    p = read(version=version, velocity=False)
    save_published(p, tmp_path/'folder')
    their = StableDiffusionPipeline.from_single_file(str(tmp_path/'m.safetensors'), config=str(tmp_path/'folder'), local_files_only=True)
    ids = p.tokenizer(['a red star'])
    x,t = torch.randn(1, 4, 32, 32),torch.tensor([300])
    with torch.no_grad():
        states = their.text_encoder(ids).last_hidden_state
        assert (p.states('a red star')-states).abs().max()<1e-5
        c = p.unet.sched.sigma(t).log().float()/4
        assert (p.unet(x, c, states)-their.unet(x, t, states).sample).abs().max()<1e-4
