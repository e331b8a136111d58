"LoRA under hostile input: damaged and foreign files, wrong arguments, and a net that must stay as it was."
import copy,json,math,os
import pytest,torch
from safetensors.torch import load,save
from torch import nn
from miniai.attention import MultiHeadAttention
from miniai.lora import (LoRA,add_lora,all_layers,attention_layers,load_lora,lora_layers,lora_params,lora_state,
                         merge_lora,remove_lora,save_lora,unmerge_lora)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv,self.attend = nn.Conv2d(3, 8, 3, padding=1),MultiHeadAttention(8, 2)
        self.deep = nn.ModuleDict(dict(a_b=nn.ModuleList([nn.Linear(8, 8)])))
    def forward(self, x): return self.deep['a_b'][0](self.attend(self.conv(x).flatten(2).transpose(1, 2)))

@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()

@pytest.fixture
def x(): return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))

def scrambled(net, rank=2, alpha=None, where=all_layers, seed=0):
    net,gen = copy.deepcopy(net),torch.Generator().manual_seed(seed)
    add_lora(net, rank, alpha, where)
    with torch.no_grad():
        for p in lora_params(net): p.copy_(.2*torch.randn(p.shape, generator=gen))
    return net

@pytest.fixture
def good(net, tmp_path):
    save_lora(scrambled(net), tmp_path/'good.safetensors')
    return tmp_path/'good.safetensors'

def unchanged(net, before):
    now = net.state_dict()
    assert not lora_layers(net) and list(now)==list(before)
    for k,v in before.items(): assert torch.equal(now[k], v), k

def refuse(net, path, w, text, **kw):
    path.write_bytes(save(w) if isinstance(w, dict) else w)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=text) as e: load_lora(net, path, **kw)
    assert '\n' not in str(e.value)
    unchanged(net, before)

# ---- files

def test_every_truncation_is_refused(net, good):
    raw = good.read_bytes()
    for n in [*range(0, 40), *range(40, len(raw), 97), len(raw)-1]: refuse(net, good, raw[:n], 'is damaged')

def test_flipped_header_bytes_never_change_the_net(net, good):
    raw = good.read_bytes()
    n = 8+int.from_bytes(raw[:8], 'little')
    for i in range(0, n, 7):
        bad = bytearray(raw)
        bad[i] ^= 0x15
        good.write_bytes(bytes(bad))
        twin = copy.deepcopy(net)
        before = copy.deepcopy(twin.state_dict())
        try: load_lora(twin, good)
        except ValueError as e: assert '\n' not in str(e)
        else: continue
        unchanged(twin, before)

@pytest.mark.parametrize('change, text', [
    (lambda w: w.pop('unet.attend.q.lora_A.weight') is None, 'lacks A'),
    (lambda w: w.pop('unet.attend.q.lora_B.weight') is None, 'lacks B'),
    (lambda w: w.update({'unet.attend.q.lora_B.weight': torch.zeros(8, 3)}), r'expected the shape \(8, 2\), got \(8, 3\)'),
    (lambda w: w.update({'unet.attend.q.lora_B.weight': torch.tensor(1.)}), r'expected the shape \(8, 2\), got \(\)'),
    (lambda w: w.update({'unet.attend.q.lora_A.weight': torch.tensor(1.)}), 'a rank of 1 or more, got 0'),
    (lambda w: w.update({'unet.attend.q.lora_A.weight': torch.zeros(0, 8), 'unet.attend.q.lora_B.weight': torch.zeros(8, 0)}), 'a rank of 1 or more, got 0'),
    (lambda w: w.update({'unet.conv.lora_A.weight': torch.zeros(2, 3, 5, 5)}), 'conv, A: expected the shape'),
    (lambda w: w.update({'unet.conv.lora_A.weight': torch.full((2, 3, 3, 3), math.inf)}), 'conv, A: expected finite'),
    (lambda w: w.update({'unet.conv.lora_A.weight': torch.full((2, 3, 3, 3), math.nan).half()}), 'conv, A: expected finite'),
    (lambda w: w.update({'unet.conv.lora_A.weight': torch.zeros(2, 3, 3, 3, dtype=torch.int64)}), 'conv, A: expected floats'),
    (lambda w: w.update({'unet.conv.alpha': torch.tensor(math.nan)}), 'alpha: expected a finite number'),
    (lambda w: w.update({'unet.conv.alpha': torch.zeros(0)}), 'one number as alpha, got 0'),
    (lambda w: w.update({'unet.conv.dora_scale': torch.zeros(8)}), 'is no part of a LoRA'),
    (lambda w: w.update({'unet.conv.lora_magnitude_vector': torch.zeros(8)}), 'is no part of a LoRA'),
    (lambda w: w.update({'conv.lora_A.weight': torch.zeros(2, 3, 3, 3)}), 'is there twice'),
    (lambda w: w.update({'unet.new.lora_A.weight': torch.zeros(2, 3), 'unet.new.lora_B.weight': torch.zeros(3, 2)}), "no layer 'new'"),
    (lambda w: w.clear(), 'it holds nothing'),
])
def test_what_does_not_fit_is_refused(net, good, change, text):
    w = load(good.read_bytes())
    change(w)
    refuse(net, good, w, text)

def test_other_files_are_refused(net, tmp_path):
    with pytest.raises(ValueError, match='ends in .safetensors'): load_lora(net, tmp_path/'x.ckpt')
    with pytest.raises(FileNotFoundError): load_lora(net, tmp_path/'x.safetensors')
    with pytest.raises(FileNotFoundError, match='holds neither'): load_lora(net, tmp_path)
    refuse(net, tmp_path/'x.safetensors', b'PK\x03\x04'+b'\0'*100, 'is damaged')
    refuse(net, tmp_path/'x.safetensors', (10).to_bytes(8, 'little')+b'[1,2,3]   ', 'is damaged')

@pytest.mark.parametrize('config, text', [
    ('[]', 'no JSON object'), ('{', 'is damaged'), (json.dumps(dict(use_dora=True)), 'it is a DoRA'),
    (json.dumps(dict(lora_alpha='much')), 'alpha: expected a finite number'),
    (json.dumps(dict(alpha_pattern=[1])), 'alpha_pattern: expected'), ('NaN', 'no JSON object'),
    (json.dumps(dict(lora_alpha=math.nan)), 'alpha: expected a finite number')])
def test_configurations_are_checked(net, good, config, text):
    good.write_bytes(save(load(good.read_bytes()), metadata=dict(lora_adapter_metadata=config)))
    refuse(net, good, good.read_bytes(), text)

def test_alpha_of_a_configuration(net, good):
    w = load(good.read_bytes())
    def alphas(**config):
        good.write_bytes(save(w, metadata=dict(lora_adapter_metadata=json.dumps(config))))
        twin = copy.deepcopy(net)
        load_lora(twin, good)
        return {k: m.alpha for k,m in lora_layers(twin)}
    assert set(alphas().values())=={2.}
    assert set(alphas(lora_alpha=6).values())=={6.}
    assert set(alphas(**{'unet.lora_alpha': 6}).values())=={6.}
    got = alphas(lora_alpha=6, alpha_pattern={'q': 3})
    assert got['attend.q']==3 and got['conv']==6
    assert abs(alphas(lora_alpha=6, use_rslora=True)['conv']-6*2**.5)<1e-6       # 6/sqrt(2) = (6*sqrt(2))/2

@pytest.mark.parametrize('layout', ['peft', 'kohya'])
@pytest.mark.parametrize('prefix', ['unet', 'text_encoder', 'text_encoder_2', ''])
@pytest.mark.parametrize('alpha', [None, 7.5])
def test_round_trip(net, x, tmp_path, layout, prefix, alpha):
    theirs = scrambled(net, 3, alpha)
    save_lora(theirs, tmp_path/'new'/'a.safetensors', layout, prefix)
    ours = copy.deepcopy(net)
    assert load_lora(ours, tmp_path/'new'/'a.safetensors', prefix=prefix)==all_layers(net)
    with torch.no_grad(): torch.testing.assert_close(ours(x), theirs(x), atol=1e-6, rtol=1e-6)
    assert os.listdir(tmp_path/'new')==['a.safetensors']

def test_kohya_names_for_parts(net, tmp_path):
    for prefix,head in (('unet', 'lora_unet_'), ('text_encoder', 'lora_te_'), ('text_encoder_2', 'lora_te2_')):
        save_lora(scrambled(net), tmp_path/'a.safetensors', 'kohya', prefix)
        w = load((tmp_path/'a.safetensors').read_bytes())
        assert f'{head}deep_a_b_0.lora_down.weight' in w and all(k.startswith(head) for k in w)

def test_other_parts_of_a_file_are_left_out_with_a_warning(net, good):
    w = load(good.read_bytes())
    w |= {k.replace('unet.', 'text_encoder.'): v.clone() for k,v in w.items()}
    good.write_bytes(save(w))
    with pytest.warns(UserWarning, match='10 tensors are for other parts than unet'): names = load_lora(net, good)
    assert names==all_layers(net)

def test_what_cannot_be_written_leaves_the_old_file(net, good):
    raw,bad = good.read_bytes(),scrambled(net)
    with torch.no_grad(): lora_params(bad)[0][0] = math.nan
    with pytest.raises(ValueError, match='conv.lora_A.weight: expected finite numbers'): save_lora(bad, good)
    assert good.read_bytes()==raw and os.listdir(good.parent)==[good.name]

# ---- arguments

@pytest.mark.parametrize('call, text', [
    (lambda net: add_lora(net, 0), 'rank: expected a whole number, 1 or more, got 0'),
    (lambda net: add_lora(net, 2.5), 'rank: expected a whole number'),
    (lambda net: add_lora(net, True), 'rank: expected a whole number'),
    (lambda net: add_lora(net, 2, math.inf), 'alpha: expected a finite number'),
    (lambda net: add_lora(net, 2, where=[]), 'where: expected names'),
    (lambda net: add_lora(net, 2, where=['attend']), "where: expected names .* got 'attend'"),
    (lambda net: add_lora(nn.Linear(2, 2), 2), 'where: expected names'),
    (lambda net: lora_params(net), 'net: expected one with a LoRA'),
    (lambda net: lora_state(net), 'net: expected one with a LoRA'),
    (lambda net: remove_lora(net), 'net: expected one with a LoRA'),
    (lambda net: merge_lora(net), 'net: expected one with a LoRA'),
    (lambda net: unmerge_lora(net), 'net: expected one with a LoRA'),
    (lambda net: save_lora(net, 'x.safetensors'), 'net: expected one with a LoRA'),
    (lambda net: save_lora(net, 'x.pt'), 'ends in .safetensors'),
    (lambda net: save_lora(net, 'x.safetensors', 'other'), "layout: expected 'peft' or 'kohya'"),
    (lambda net: save_lora(net, 'x.safetensors', prefix='a.b'), 'prefix: expected a word'),
    (lambda net: load_lora(net, 'x.safetensors', weight=None), 'weight: expected a finite number'),
])
def test_bad_arguments(net, call, text):
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=text): call(net)
    unchanged(net, before)
    assert all(p.requires_grad for p in net.parameters())

def test_subclasses_and_torch_attention_are_left_alone():
    class Mine(nn.Linear): pass
    net = nn.Sequential(Mine(2, 2), nn.MultiheadAttention(4, 2))
    assert all_layers(net)==[] and attention_layers(net)==[]
    with pytest.raises(ValueError, match='layer: expected an nn.Linear'): LoRA(net[0], 1)

# ---- properties

@pytest.mark.parametrize('dtype, eps', [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_merge_and_unmerge(net, x, dtype, eps):
    net,x = scrambled(net).to(dtype),x.to(dtype)
    before = [m.weight.clone() for _,m in lora_layers(net)]
    with torch.no_grad():
        want = net(x)
        merge_lora(net)
        torch.testing.assert_close(net(x), want, atol=10*eps, rtol=10*eps)
    unmerge_lora(net)
    for (_,m),w in zip(lora_layers(net), before): torch.testing.assert_close(m.weight, w, atol=eps, rtol=0)

def test_nothing_merges_if_one_change_is_not_finite(net):
    net = scrambled(net)
    before = [m.weight.clone() for _,m in lora_layers(net)]
    with torch.no_grad(): lora_params(net)[-1][0] = math.nan
    with pytest.raises(ValueError, match='expected finite'): merge_lora(net)
    assert all(torch.equal(m.weight, w) and m.merged is None for (_,m),w in zip(lora_layers(net), before))

def test_stack_is_a_sum(net, x, tmp_path):
    a,b = scrambled(net, 2, 3, seed=1),scrambled(net, 3, where=['conv'], seed=2)
    save_lora(a, tmp_path/'a.safetensors')
    save_lora(b, tmp_path/'b.safetensors', 'kohya')
    both = copy.deepcopy(net)
    load_lora(both, tmp_path/'a.safetensors', .5)
    load_lora(both, tmp_path/'b.safetensors', -2.)
    deltas = dict(lora_layers(a)),dict(lora_layers(b))
    by_hand = copy.deepcopy(net)
    with torch.no_grad():
        for k,m in deltas[0].items(): by_hand.get_submodule(k).weight += .5*m.delta()
        by_hand.conv.weight -= 2*deltas[1]['conv'].delta()
        want = by_hand(x)
        torch.testing.assert_close(both(x), want, atol=1e-5, rtol=1e-5)
        save_lora(both, tmp_path/'sum.safetensors')
        one = copy.deepcopy(net)
        load_lora(one, tmp_path/'sum.safetensors')
        assert dict(lora_layers(one))['conv'].rank==5
        torch.testing.assert_close(one(x), want, atol=1e-5, rtol=1e-5)
        merge_lora(both)
        torch.testing.assert_close(both(x), want, atol=1e-5, rtol=1e-5)

def test_training_a_second_one_freezes_the_first(net, x):
    net = scrambled(net)
    first = [o.weight.clone() for _,m in lora_layers(net) for o in (m.lora_A, m.lora_B)]
    add_lora(net, 1, where=['conv'])
    assert [tuple(p.shape) for p in lora_params(net)]==[(1, 3, 3, 3), (8, 1, 1, 1)]
    opt = torch.optim.SGD(lora_params(net), .1)
    net(x).square().sum().backward()
    opt.step()
    kept = [o.weight for _,m in lora_layers(net) for o in (m.lora_A, m.lora_B) if not o.weight.requires_grad]
    assert all(torch.equal(a, b) for a,b in zip(first, kept)) and len(first)==len(kept)

def test_a_copy_is_a_copy(net, x):
    net = scrambled(net)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        want = net(x)
        lora_params(twin)[0].zero_()
        assert torch.equal(net(x), want)

def test_half_precision(net, x):
    net = scrambled(net).bfloat16()
    with torch.no_grad():
        apart = net(x.bfloat16())
        assert apart.dtype==torch.bfloat16
        merge_lora(net)
        torch.testing.assert_close(net(x.bfloat16()), apart, atol=.05, rtol=.05)
    plain = Net().bfloat16()
    add_lora(plain, 2)
    assert plain(x.bfloat16()).dtype==torch.bfloat16 and lora_params(plain)[0].dtype==torch.float32
