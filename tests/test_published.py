"""A small Stable Diffusion of random weights in diffusers' layout: LoRA files and learned words do to ours what they do to theirs."""
import importlib.util,json,shutil,subprocess,sys,warnings
from pathlib import Path
from types import SimpleNamespace
import pytest,torch
from safetensors.torch import load_file,save_file
from miniai import editing as edit,published as p
from miniai.ddpm import load_weights,save_weights
from miniai.latents import TextUNet
from miniai.lora import add_lora,all_layers,load_lora,lora_layers,lora_params,lora_parts,merge_lora,remove_lora,save_lora,unmerge_lora
from miniai.personalise import PriorCB,add_word,dreambooth,invert,load_concept,prior_examples,save_concept,training_task
from miniai.schedules import scaled_linear_schedule
from miniai.stable import PipelineParts,StableDiffusion
from miniai.unet import UNet,UpConv
from miniai.vae import Codec

needs = pytest.mark.skipif(not all(map(importlib.util.find_spec, ('diffusers','peft','transformers'))), reason='needs diffusers, transformers and peft')
x,states,t = (torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)),torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1)),
              torch.tensor([3, 700]))
c = (scaled_linear_schedule().sigma(t).log()/4).float()                        # the noise levels of these timesteps
everywhere = ['to_q','to_k','to_v','to_out.0','ff.net.2','proj_in','conv','conv1','conv2','conv_in','conv_out','conv_shortcut','linear_1','time_emb_proj']

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    tmp = tmp_path_factory.mktemp('published')
    p.export_scenes(StableDiffusion.load(), tmp/'scenes')
    tok = p.load_tokenizer(tmp/'scenes'/'tokenizer')
    config = dict(scheduler=dict(beta_schedule='scaled_linear', beta_start=.00085, beta_end=.012, clip_sample=False),
        unet=dict(block_out_channels=[16,32], layers_per_block=1, cross_attention_dim=16, attention_head_dim=4, norm_num_groups=8, sample_size=8,
                  down_block_types=['CrossAttnDownBlock2D','DownBlock2D'], up_block_types=['UpBlock2D','CrossAttnUpBlock2D']),
        vae=dict(block_out_channels=[8,16], layers_per_block=1, norm_num_groups=4, down_block_types=['DownEncoderBlock2D']*2, up_block_types=['UpDecoderBlock2D']*2),
        text_encoder=dict(vocab_size=len(tok), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=24))
    nets = [p.CLIPText(len(tok), 24, 16, 4, 2, 2),p.PublishedUNet((16,32), (True,False), (4,4), n_text=16, depth=1, groups=8),
            p.PublishedCodec((8,16), depth=1, groups=4)]
    gen = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for net in nets:
            for o in net.parameters(): o.copy_((o.ndim==1)+.1*torch.randn(o.shape, generator=gen))
    p.save_published(p.PublishedDiffusion(tok, *nets, size=16, config=config), tmp/'made')
    return tmp/'made'

@pytest.fixture
def pipe(folder): return StableDiffusion.from_pretrained(folder)

def scramble(net, seed=3):
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for o in lora_params(net): o.copy_(.2*torch.randn(o.shape, generator=gen))

def far(a, b): return (a-b).abs().max().item()

@needs
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('side', [16, 14])                                     # 7 is odd: the doubling must cut a row
def test_a_lora_of_diffusers_on_every_layer(folder, pipe, tmp_path, side):
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig
    theirs,ours,z = UNet2DConditionModel.from_pretrained(folder/'unet').eval(),pipe.unet,x[...,:side,:side]
    with torch.no_grad():
        plain = ours(z, c, states)
        assert far(theirs(z, t, states).sample, plain)<3e-5
        theirs.add_adapter(LoraConfig(r=2, lora_alpha=6, init_lora_weights=False, target_modules=everywhere))
        theirs.save_lora_adapter(tmp_path)
        names = load_lora(ours, tmp_path, names=p.lora_names(ours))
        assert {'downs.1', 'ups.2', 'stem', 'head', 'mid.0.conv1'}<=set(names) and type(pipe.unet.ups[2].layer) is p.DoubleConv
        want = theirs(z, t, states).sample
        assert far(ours(z, c, states), want)<5e-5 and far(plain, want)>.5
        merge_lora(ours)
        assert far(ours(z, c, states), want)<5e-5
        unmerge_lora(ours)
        for _,m in lora_layers(ours): m.strength = 0.
        assert far(ours(z, c, states), plain)<3e-5

@needs
@pytest.mark.filterwarnings('ignore')
def test_a_lora_of_the_text_encoder_and_kohya_names(folder, pipe, tmp_path):
    from peft import LoraConfig,get_peft_model,get_peft_model_state_dict
    from transformers import CLIPTextModel
    torch.manual_seed(4)
    ids = pipe.tokenizer(['a red star', 'a large blue ring'])
    theirs = CLIPTextModel.from_pretrained(folder/'text_encoder').eval()
    net = get_peft_model(theirs, LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=['q_proj','k_proj','v_proj','out_proj','fc1','fc2']))
    w = {k.removeprefix('base_model.model.'): v.contiguous() for k,v in get_peft_model_state_dict(net).items()}
    with torch.no_grad(): want = net(ids).last_hidden_state
    kohya = {'lora_te_'+k.replace('.lora_A.weight', '').replace('.lora_B.weight', '').replace('.', '_')+('.lora_down.weight' if '.lora_A.' in k else '.lora_up.weight'): v
             for k,v in w.items()}
    save_file({f'text_encoder.{k}': v for k,v in w.items()}, tmp_path/'peft.safetensors')
    save_file(kohya, tmp_path/'kohya.safetensors')
    for file in ('peft','kohya'):
        text = StableDiffusion.from_pretrained(folder).text
        with torch.no_grad():
            plain = text(ids)
            load_lora(text, tmp_path/f'{file}.safetensors', 1., 'text_encoder', p.lora_names(text))
            assert far(text(ids), want)<1e-5 and far(plain, want)>.01, file

@needs
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('n', [1, 3])
def test_a_learned_word(folder, pipe, tmp_path, n):
    from diffusers import StableDiffusionPipeline
    rows = torch.randn(n, 16, generator=torch.Generator().manual_seed(5))
    before = pipe.states(['a red star'])
    save_concept(tmp_path/'w.safetensors', '<it>', rows if n>1 else rows[0])
    load_concept(pipe, tmp_path/'w.safetensors')
    assert torch.equal(pipe.states(['a red star']), before)
    theirs = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    theirs.load_textual_inversion(str(tmp_path/'w.safetensors'))
    for said in ('a red <it>', '<it>', 'a <it> left of a star, <it>', 'a<it>b'):
        ids = theirs.tokenizer(theirs.maybe_convert_prompt(said, theirs.tokenizer), padding='max_length', max_length=24, truncation=True, return_tensors='pt').input_ids
        assert torch.equal(pipe.tokenizer([said]), ids), said
        with torch.no_grad(): assert far(theirs.text_encoder(ids)[0], pipe.states([said]))<1e-5
    word = StableDiffusion.from_pretrained(folder)
    add_word(word, '<it>', rows)
    assert torch.equal(word('a <it>', steps=2, amp=False), pipe('a <it>', steps=2, amp=False))

@needs
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('pattern', ['.*attn1.to_[qk]', '^down_blocks.0.*to_v', 'to_q', 'attn2.to_k'])
def test_alpha_patterns_are_regular_expressions(folder, pipe, tmp_path, pattern):
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig,get_peft_model
    torch.manual_seed(7)
    theirs = get_peft_model(UNet2DConditionModel.from_pretrained(folder/'unet').eval(), LoraConfig(
        r=4, lora_alpha=6, target_modules=everywhere, alpha_pattern={pattern: 40}, init_lora_weights=False))
    theirs.save_pretrained(tmp_path)
    load_lora(pipe.unet, tmp_path, names=p.lora_names(pipe.unet))
    alphas = {m.alpha for _,m in lora_layers(pipe.unet)}
    with torch.no_grad(): assert far(theirs(x, t, states).sample, pipe.unet(x, c, states))<1e-4 and alphas=={6., 40.}

@needs
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('layout', ['peft','kohya'])
def test_diffusers_reads_our_lora(folder, pipe, tmp_path, layout):
    from diffusers import StableDiffusionPipeline
    theirs = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    names = p.lora_names(pipe.unet)
    add_lora(pipe.unet, 3, alpha=5)
    scramble(pipe.unet)
    save_lora(pipe.unet, tmp_path/'ours.safetensors', layout, names=names)
    theirs.load_lora_weights(str(tmp_path), weight_name='ours.safetensors')
    with torch.no_grad(): assert far(theirs.unet(x, t, states).sample, pipe.unet(x, c, states))<1e-4
    back = StableDiffusion.from_pretrained(folder)
    load_lora(back.unet, tmp_path/'ours.safetensors', names=names)
    with torch.no_grad(): assert far(back.unet(x, c, states), pipe.unet(x, c, states))<1e-4

def test_the_command_takes_loras_and_a_word(folder, pipe, tmp_path):
    add_lora(pipe.unet, 2, where=all_layers)
    scramble(pipe.unet)
    save_lora(pipe.unet, tmp_path/'ours.safetensors')
    # our names for our own file; a file of others has theirs: both are found
    w = load_file(tmp_path/'ours.safetensors')
    names = {v: k for k,v in p.lora_names(pipe.unet).items() if isinstance(v, str)}
    other = {}
    for k,v in w.items():
        ours,kind = k.removeprefix('unet.').split('.lora_')
        if ours in names: other[f'unet.{names[ours]}.lora_{kind}'] = v
    save_file(other, tmp_path/'theirs.safetensors')
    save_concept(tmp_path/'w.safetensors', '<it>', torch.randn(2, 16))
    # and one that changes the text encoder alone
    add_lora(pipe.text, 2)
    scramble(pipe.text)
    save_lora(pipe.text, tmp_path/'text.safetensors', 'peft', 'text_encoder', p.lora_names(pipe.text))
    save_file(load_file(tmp_path/'theirs.safetensors') | load_file(tmp_path/'text.safetensors'), tmp_path/'both.safetensors')
    (tmp_path/'both').mkdir()
    shutil.copy(tmp_path/'both.safetensors', tmp_path/'both'/'pytorch_lora_weights.safetensors')
    def draw(name, *args, prompt='a red star'):
        run = subprocess.run([sys.executable, '-c', 'from miniai.command import main; main()', prompt, '--model', folder, '--steps', '2', '-o', tmp_path/name, '--quiet', *args],
                             capture_output=True, text=True)
        assert not run.returncode and not run.stderr, run.stderr            # nor a warning about other parts
        return (tmp_path/name).read_bytes()
    plain = draw('0.png')
    changed = draw('1.png', '--lora', tmp_path/'theirs.safetensors')
    twice = draw('5.png', '--lora', f"{tmp_path/'theirs.safetensors'}:.5", '--lora', f"{tmp_path/'theirs.safetensors'}:.5")
    assert changed!=plain!=twice and draw('2.png', '--lora', f"{tmp_path/'theirs.safetensors'}:0")==plain
    def lora(*files): return draw('6.png', *[o for file in files for o in ('--lora', tmp_path/file)])
    text = lora('text.safetensors')
    assert text not in (plain, changed) and lora('theirs.safetensors', 'text.safetensors')==lora('both.safetensors')==lora('both') not in (text, changed, plain)
    assert draw('3.png', '--concept', tmp_path/'w.safetensors')==plain!=draw('4.png', '--concept', tmp_path/'w.safetensors', prompt='a red <it>')

# ---- convolutions that do their own with the weight, in our own nets

@pytest.mark.parametrize('size', [None, (10,8), (9,7)])
def test_lora_on_a_doubling(size):
    torch.manual_seed(0)
    net,z = torch.nn.ModuleDict(dict(up=UpConv(6).double())),torch.randn(2, 6, 5, 4, dtype=torch.float64)
    plain = net['up'](z, size)
    for rank in (2, 3):                                                        # two, one on the other
        add_lora(net, rank, 5., ['up'])
        assert torch.equal(net['up'](z, size), plain) or rank==3
        scramble(net.double(), rank)
    up,twin = net['up'],UpConv(6).double()
    twin.load_state_dict(dict(weight=up.weight+up.delta()+up.layer.delta(), bias=up.bias))
    assert far(up(z, size), twin(z, size))<1e-12<far(up(z, size), plain)
    up(z, size).sum().backward()
    assert all(o.grad.abs().max()>0 for o in lora_params(net)) and up.weight.grad is None
    want = up(z, size)
    merge_lora(net)
    assert far(up(z, size), want)<1e-12
    unmerge_lora(net)
    assert far(up(z, size), want)<1e-12

def test_lora_on_every_layer_of_a_unet_and_a_codec():
    torch.manual_seed(0)
    net,codec,z = UNet((8,16), ni=1, depth=1, norm=None),Codec((8,16), nz=2, depth=1, norm=None),torch.randn(2, 2, 3, 5)
    torch.nn.init.normal_(net.head.weight)
    for m,ask in ((net, lambda: net(x[:,:1,:14,:14], torch.zeros(2))), (codec, lambda: codec.decode(z))):
        with torch.no_grad():
            plain = ask()
            add_lora(m, 2, where=all_layers)
            assert any(isinstance(o.layer, UpConv) for _,o in lora_layers(m)) and torch.equal(ask(), plain)
            scramble(m)
            want = ask()
            merge_lora(m)
            assert far(ask(), want)<1e-5*want.abs().max() and far(want, plain)>.01

# ---- whole images at the published sizes: the stored rows of benchmarks/published_image.py

def test_images_of_the_published_sizes_meet_the_bar():
    "Ten steps by random weights, ours beside diffusers'; two rows with a change that must be seen."
    file = Path(__file__).parents[1]/'benchmarks/results/published_image.jsonl'
    images = {o['image']: o for o in map(json.loads, file.read_text().splitlines())}
    faults = {'DDIM, another prompt', 'DDIM, GELU for quick GELU'}
    assert {'DDIM', 'DPMSolverMultistep', 'EulerAncestralDiscrete', 'DDIM, twice the size', *faults}<=set(images)
    for k,o in images.items():
        assert o['spread']>.1 and o['clamped']<.1 and o['our_mib']<1.1*o['their_mib'], k
        if k in faults: assert o['largest']>5e-3 and o['squares']>1e-7, k
        else: assert o['largest']<1e-3 and o['squares']<1e-8, k

# ---- folders: what is written must say what was asked for, and what is read must be what it says

def test_what_was_asked_for_at_loading_is_written(folder, tmp_path):
    pipe = StableDiffusion.from_pretrained(folder, velocity=True, size=32)
    pipe.save(tmp_path/'a')
    back = p.PublishedDiffusion.load(tmp_path/'a')
    assert type(back.denoise) is type(pipe.denoise) and back.size==32 and type(back.denoise).__name__=='VDenoiser'
    assert torch.equal(back('a red star', steps=2, amp=False), pipe('a red star', steps=2, amp=False))
    for bad in ('no', 1, 0.):
        with pytest.raises(TypeError, match='velocity: expected True, False or None'): StableDiffusion.from_pretrained(folder, velocity=bad)

def test_a_net_with_a_lora_is_not_written(folder, pipe, tmp_path):
    plain = pipe('a red star', steps=2, amp=False)
    add_lora(pipe.unet, 2, where=all_layers)
    scramble(pipe.unet)
    with pytest.raises(ValueError, match='net: expected one without a LoRA; call merge_lora'): p.save_published(pipe, tmp_path/'a')
    assert not list(tmp_path.iterdir())
    merge_lora(pipe.unet)
    want = pipe('a red star', steps=2, amp=False)
    remove_lora(pipe.unet)
    p.save_published(pipe, tmp_path/'a')
    assert torch.equal(StableDiffusion.from_pretrained(tmp_path/'a')('a red star', steps=2, amp=False), want) and not torch.equal(want, plain)
    scenes = StableDiffusion.load()
    add_lora(scenes.unet, 1)
    with pytest.raises(ValueError, match='expected one without a LoRA'): p.export_scenes(scenes, tmp_path/'b')

@pytest.mark.parametrize('config', [dict(_class_name='FlowMatchEulerDiscreteScheduler', shift=3.), dict(_class_name='EDMEulerScheduler', sigma_data=.5),
                                    dict(_class_name='CMStochasticIterativeScheduler'), dict(use_flow_sigmas=True), dict(_class_name=None)])
def test_other_kinds_of_schedules_are_refused(folder, tmp_path, config):
    shutil.copytree(folder, tmp_path/'a')
    file = tmp_path/'a'/'scheduler'/'scheduler_config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    with pytest.raises(ValueError, match="scheduler_config.json: expected a scheduler of DDPM's noise levels"): StableDiffusion.from_pretrained(tmp_path/'a')

@pytest.mark.parametrize('name', ['DDIM','DDPM','PNDM','LMSDiscrete','EulerDiscrete','EulerAncestralDiscrete','HeunDiscrete','DPMSolverMultistep','DPMSolverSinglestep',
                                  'DPMSolverSDE','KDPM2Discrete','KDPM2AncestralDiscrete','DEISMultistep','UniPCMultistep','LCM','TCD'])
def test_schedulers_of_one_schedule_are_read(folder, name):
    from miniai.published import _schedule
    assert len(_schedule(dict(_class_name=f'{name}Scheduler', beta_schedule='scaled_linear'))[0])==1000

def test_scenes_with_a_learned_word_are_not_exported(tmp_path):
    pipe = StableDiffusion.load()
    add_word(pipe, '<it>', torch.randn(pipe.cond_shape[1]))
    with pytest.raises(ValueError, match='pipe: expected no learned words'): p.export_scenes(pipe, tmp_path/'a')
    assert not list(tmp_path.iterdir())

@needs
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('nfs', [(16,16), (16,32,32), (16,16,32), (16,32)])
def test_scenes_of_any_widths_are_read_by_diffusers(tmp_path, nfs):
    from diffusers import UNet2DConditionModel
    base = StableDiffusion.load()
    net = TextUNet(nfs=nfs, nz=8, n_text=128, depth=1, n_emb=64, n_heads=4).eval().requires_grad_(False)
    with torch.no_grad():
        for o in net.parameters(): o.copy_((o.ndim==1)+.1*torch.randn(o.shape))
    p.export_scenes(PipelineParts(base.tokenizer, base.text, net, base.codec), tmp_path/'a')
    theirs = UNet2DConditionModel.from_pretrained(tmp_path/'a'/'unet').eval()
    z,c,words = torch.randn(2, 8, 8, 8),torch.tensor([-.5,.6]),torch.randn(2, 24, 128)
    with torch.no_grad(): assert far(theirs(z, c, words).sample, net(z, c, words))<1e-4*net(z, c, words).abs().max()

@needs
@pytest.mark.filterwarnings('ignore')
def test_a_folder_with_learned_words(folder, pipe, tmp_path):
    from diffusers import StableDiffusionPipeline
    save_concept(tmp_path/'it.safetensors', '<it>', torch.randn(2, 16))
    save_concept(tmp_path/'one.safetensors', '<one>', torch.randn(16))
    theirs = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    for o in ('it','one'):
        theirs.load_textual_inversion(str(tmp_path/f'{o}.safetensors'))
        load_concept(pipe, tmp_path/f'{o}.safetensors')
    theirs.save_pretrained(tmp_path/'a')
    back = StableDiffusion.from_pretrained(tmp_path/'a')
    said = ['a <it> left of a <one>', 'a red star']
    assert torch.equal(back.tokenizer(said), pipe.tokenizer(said)) and torch.equal(back.states(said), pipe.states(said))
    with pytest.raises(ValueError, match='pipe: expected no learned words'): p.save_published(back, tmp_path/'b')

def test_a_folder_with_words_in_capitals(folder, pipe, tmp_path):
    n = len(pipe.tokenizer)
    def tokenizer(**words):
        shutil.copytree(folder/'tokenizer', tmp_path/'t', dirs_exist_ok=True)
        (tmp_path/'t'/'added_tokens.json').write_text(json.dumps({f'<{k}>': n+i for k,i in words.items()}))
        return p.load_tokenizer(tmp_path/'t', 24)
    assert tokenizer(MyStyle=0).encode('a <MyStyle> <mystyle>')[1:]==[n, n]
    (tmp_path/'t'/'added_tokens.json').write_text(json.dumps({'<MyStyle>': n, '<MyStyle>_1': n+1}))
    assert p.load_tokenizer(tmp_path/'t', 24).encode('<mystyle>')==[n, n+1]
    with pytest.raises(ValueError, match="path: .*added_tokens.json: word: expected a new one, '<it>'"): tokenizer(it=0, IT=1)

def test_a_tokenizer_as_an_object_and_a_home(folder, pipe, monkeypatch):
    assert StableDiffusion.from_pretrained(folder, tokenizer=pipe.tokenizer).tokenizer is pipe.tokenizer
    monkeypatch.setenv('HOME', str(folder))
    assert StableDiffusion.from_pretrained('~', tokenizer='~/tokenizer').tokenizer.vocab==pipe.tokenizer.vocab

# ---- the same functions for a published model: lessons 34 and 35

images = torch.randint(256, (2,3,16,16), generator=torch.Generator().manual_seed(6), dtype=torch.uint8)

@pytest.mark.parametrize('velocity', [False, True])
def test_what_a_published_net_is_trained_to_predict(folder, pipe, velocity):
    if velocity: pipe = p.PublishedDiffusion(pipe.tokenizer, pipe.text, pipe.unet, pipe.codec, True, 16, pipe.config)
    z = torch.randn(64, 4, 8, 8)
    learn = SimpleNamespace(batch=(z,), training=True)
    training_task(pipe).before_batch(learn)
    x_t,c,y = learn.batch
    steps = p.timesteps_of((4*c.double()).exp(), pipe.unet.sched)
    abar = pipe.unet.sched.abar(steps.round().long())[:,None,None,None].float()
    eps = (x_t-abar.sqrt()*z)/(1-abar).sqrt()
    want = abar.sqrt()*eps-(1-abar).sqrt()*z if velocity else eps
    assert (steps-steps.round()).abs().max()<.01 and steps.max()>900 and steps.min()<100 and far(y, want)<2e-2*want.abs().max()

def test_learning_a_word_and_a_thing(folder, pipe):
    plain = pipe(['a red star'], steps=2, amp=False)
    row = invert(pipe, '<it>', images, ['a <it>']*2, like='star', steps=3, bs=2, n=2)
    assert row.shape==(2,16) and torch.equal(pipe(['a red star'], steps=2, amp=False), plain)
    prior = PriorCB(prior_examples(pipe, ['a red star', 'a blue ring'], steps=1))
    add_lora(pipe.unet, 2)
    dreambooth(pipe, images, ['a <it> star']*2, steps=3, bs=2, params=lora_params(pipe.unet), prior=prior)
    assert all(torch.isfinite(o.lora_B.weight).all() and o.lora_B.weight.abs().max()>0 for _,o in lora_layers(pipe.unet))
    assert not torch.equal(pipe(['a <it> star'], steps=2, amp=False), plain)
    with pytest.raises(TypeError, match='pipe: expected a KarrasDenoiser, EpsDenoiser or VDenoiser'): training_task(SimpleNamespace(denoise=None))

def test_imagic_asks_for_noise_that_the_net_knows(pipe):
    sigma,weight = edit._noise_and_weight(pipe, 4000, torch.Generator().manual_seed(0))
    ends = pipe.unet.sched.sigma(torch.tensor([0, 999]))
    assert ends[0]<=sigma.min() and sigma.max()<=ends[1] and sigma.shape==(4000,1,1,1) and torch.allclose(weight*sigma**2, torch.ones_like(sigma))
    pipe = p.PublishedDiffusion(pipe.tokenizer, pipe.text, pipe.unet, pipe.codec, True, 16, pipe.config)
    sigma,weight = edit._noise_and_weight(pipe, 10, torch.Generator().manual_seed(0))
    assert torch.allclose(weight, 1+sigma**-2)
    scenes = StableDiffusion.load()
    sigma,weight = edit._noise_and_weight(scenes, 4000, torch.Generator().manual_seed(0))
    assert sigma.max()>20 and torch.allclose(weight, 1+sigma**-2)
    seen = []                                                       # a mask at full noise stays below the highest level, too
    pipe.denoise = lambda x, s, cond: seen.append(s) or x
    edit.edit_mask(pipe, images[:1], 'a', 'b', strength=.99, n=1)
    assert max(seen)<=ends[1]+1e-6

def test_a_net_for_inpainting_is_refused_by_name(folder, pipe):
    unet = p.PublishedUNet((16,32), (True,False), (4,4), n_text=16, depth=1, groups=8, nz=9)
    hole = p.PublishedDiffusion(pipe.tokenizer, pipe.text, unet, pipe.codec, size=16, config=pipe.config)
    for f in (lambda: edit.invert(hole, images[:1]), lambda: edit.edit_mask(hole, images[:1], 'a', 'b'), lambda: edit.imagic(hole, images[0], 'a'),
              lambda: invert(hole, '<it>', images, ['a <it>']*2, like='star', steps=1), lambda: dreambooth(hole, images, ['a']*2, steps=1)):
        with pytest.raises(ValueError, match='pipe: expected a net .* for inpainting'): f()

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_sixteen_bits_draw_by_default(folder, dtype):
    pipe = StableDiffusion.from_pretrained(folder, dtype=dtype)
    a,b = pipe('a red star', steps=2),StableDiffusion.from_pretrained(folder)('a red star', steps=2, amp=False)
    assert a.shape==b.shape and (a.float()-b.float()).abs().mean()<25

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_weights_of_sixteen_bits_are_not_trained(folder, dtype):
    pipe = StableDiffusion.from_pretrained(folder, dtype=dtype)
    said,word = f'pipe: expected float32 weights to train, got {str(dtype)[6:]}',lambda: invert(pipe, '<it>', images, ['a <it>']*2, like='star', steps=1, bs=2)
    for f in (lambda: dreambooth(pipe, images, ['a star']*2, steps=1), lambda: edit.imagic(pipe, images[0], 'a star'), *([word] if dtype==torch.float16 else ())):
        with pytest.raises(ValueError, match=said): f()
    if dtype==torch.bfloat16:                                       # the row, and factors of a LoRA, are float32
        assert word().dtype==torch.float32
        add_lora(pipe.unet)
        dreambooth(pipe, images, ['a star']*2, steps=2, bs=2, params=(params := lora_params(pipe.unet)))
        assert all(o.dtype==torch.float32 and o.abs().max()>0 for o in params)

def test_editing_with_a_published_model(folder, pipe):
    x = images[:1]
    noise = edit.invert(pipe, x, 'a red star', steps=4)
    back = edit.draw_from(pipe, noise, 'a red star', steps=4)
    assert noise.shape==(1,4,8,8) and back.shape==x.shape
    mask = edit.edit_mask(pipe, x, 'a red star', 'a blue star')
    assert mask.dtype==torch.bool and mask.shape[-2:]==(16,16)
    out = edit.diff_edit(pipe, x, 'a red star', 'a blue star', steps=4)
    found = edit.imagic(pipe, x[0], 'a blue star', n_text=2, n_net=2, bs=2)
    assert found.pipe(found.between(.5), steps=2, amp=False).shape==x.shape and len(found.losses)==4
    assert pipe.denoise.model is pipe.unet and out is not None

def test_the_command_changes_the_text_encoder_of_scenes(tmp_path):
    pipe = StableDiffusion.load()
    for net,part in ((pipe.unet, 'unet'), (pipe.text, 'text_encoder')):
        add_lora(net, 1)
        scramble(net)
        save_lora(net, tmp_path/f'{part}.safetensors', prefix=part)
    save_file(load_file(tmp_path/'unet.safetensors') | load_file(tmp_path/'text_encoder.safetensors'), tmp_path/'both.safetensors')
    from miniai.command import _add_lora
    def drawn(*files):
        new = StableDiffusion.load()
        for o in files: _add_lora(new, tmp_path/f'{o}.safetensors', .3)
        return new('a red star', steps=2, amp=False)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        both,plain = drawn('both'),drawn()
        assert torch.equal(both, drawn('unet', 'text_encoder')) and not torch.equal(both, drawn('unet')) and not torch.equal(drawn('text_encoder'), plain)
    assert lora_parts(tmp_path/'both.safetensors')=={'unet','text_encoder'}

def test_words_of_which_one_begins_like_another(pipe):
    for words in (('mycat-toy','mycat'), ('mycat','mycat-toy'), ('<a>','<a>-<b>')):
        new,n = StableDiffusion.load(),len(pipe.tokenizer)
        for i,o in enumerate(words): add_word(new, o, torch.full((new.cond_shape[1],), i/10))
        ids = {o: n+i for i,o in enumerate(words)}
        for o in words: assert new.tokenizer.encode(f'a {o} a')[1:-1]==[ids[o]], o
        assert new.tokenizer.encode('mycats mycat')[-1:]==([ids['mycat']] if 'mycat' in ids else new.tokenizer.encode('mycat')[-1:])

def test_a_home_and_a_folder_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    save_concept('~/w.safetensors', '<it>', torch.zeros(128))
    pipe = StableDiffusion.load()
    add_lora(pipe.unet, 1)
    save_lora(pipe.unet, '~/l.safetensors')
    assert {o.name for o in tmp_path.iterdir()}=={'w.safetensors','l.safetensors'}
    load_concept(pipe, '~/w.safetensors')
    load_lora(pipe.unet, '~/l.safetensors')
    save_weights(torch.nn.Linear(2, 2), '~/n.safetensors')
    assert load_weights('~/n.safetensors')[0]['bias'].shape==(2,)
    with pytest.raises(FileNotFoundError, match='there is no folder .*nowhere'): save_concept(tmp_path/'nowhere'/'w.safetensors', '<it>', torch.zeros(128))
