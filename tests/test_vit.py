"Lesson 38: folders that are wrong, arguments that are wrong, and what the loss and the teacher keep."
import json,math
import pytest,torch
from torch import nn
from safetensors.torch import save_file
from miniai.vit import (DINO,CompactTransformer,RotaryAttention,TeacherCB,ViT,attention_of,conv_stem,dinov2_names,draw_stickers,knn_predict,load_dino,
                        load_vit,multi_crop,random_views,rollout,vit_names)

config = dict(model_type='vit', hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4)

def names_of(net, names):
    "The tensors of `net` under the names of a published file."
    w = {}
    for k,v in net.state_dict().items():
        module,_,end = k.rpartition('.')
        if k in names: w[names[k]] = v
        elif isinstance(names[module], str): w[f'{names[module]}.{end}'] = v
        else: w |= {f'{o}.{end}': part for o,part in zip(names[module], v.chunk(2))}
    return {k: v.clone().contiguous() for k,v in w.items()}

def folder(path, w, config):
    path.mkdir(exist_ok=True)
    save_file(w, path/'model.safetensors')
    (path/'config.json').write_text(json.dumps(config))
    return path

@pytest.fixture
def vit():
    torch.manual_seed(0)
    return ViT(8, 4, n=8, depth=2, n_heads=2, mult=2, eps=1e-12).eval()

def test_both_layouts_come_back(vit, tmp_path):
    x,w = torch.randn(2, 3, 8, 8),names_of(vit, vit_names(vit))
    for extra in ({}, {'pooler.dense.weight': torch.ones(8, 8)}):                      # the pooler is no part of the net
        assert torch.equal(load_vit(folder(tmp_path/'a', w|extra, config))(x), vit(x))
    headed = {f'vit.{k}': v for k,v in w.items()} | {'classifier.weight': torch.ones(3, 8), 'classifier.bias': torch.zeros(3)}
    assert load_vit(folder(tmp_path/'b', headed, config))(x).shape==(2,3)
    d = ViT(8, 4, n=8, depth=2, n_heads=2, mult=4, layer_scale=.5).eval()
    other = config|dict(model_type='dinov2', mlp_ratio=4)
    w = names_of(d, dinov2_names(d))|{'embeddings.mask_token': torch.zeros(1, 8)}
    back = load_vit(folder(tmp_path/'c', w, other))
    assert torch.equal(back(x), d(x)) and back(torch.randn(1, 3, 16, 12)).shape==(1,8)
    with pytest.raises(ValueError, match='has a classifier, which we don.t read of a DINOv2'):
        load_vit(folder(tmp_path/'d', w|{'classifier.weight': torch.ones(3, 16), 'classifier.bias': torch.zeros(3)}, other))

@pytest.mark.parametrize('change,text', [
    (dict(model_type='bert'), "expected the model_type 'vit' or 'dinov2', got 'bert'"), (dict(hidden_act='silu'), "hidden_act: expected 'gelu'"),
    (dict(qkv_bias=False), 'qkv_bias: expected True'), (dict(intermediate_size=12), 'intermediate_size: expected a multiple of 8'),
    (dict(num_hidden_layers=0), 'num_hidden_layers: expected a whole number'), (dict(image_size=9), 'size: expected a multiple of patch'),
    (dict(num_hidden_layers=3), 'it lacks encoder.layer.2'), (dict(num_hidden_layers=1), 'the net has no place for encoder.layer.1'),
    (dict(image_size=16), r'expected the shape \(1, 17, 8\), got \(1, 5, 8\)')])
def test_a_config_that_does_not_fit(vit, tmp_path, change, text):
    with pytest.raises(ValueError, match=text): load_vit(folder(tmp_path, names_of(vit, vit_names(vit)), config|change))

def test_damaged_folders(vit, tmp_path):
    with pytest.raises(FileNotFoundError, match='there is no'): load_vit(tmp_path)
    path = folder(tmp_path, names_of(vit, vit_names(vit)), config)
    raw = (path/'model.safetensors').read_bytes()
    for bad in (raw[:-8], raw[:20], b''):
        (path/'model.safetensors').write_bytes(bad)
        with pytest.raises(ValueError, match='model.safetensors'): load_vit(path)
    for bad in ('', '[1]', '{"model_type"'):
        (path/'config.json').write_text(bad)
        with pytest.raises(ValueError, match='config.json'): load_vit(path)

@pytest.mark.parametrize('make,text', [
    (lambda: ViT(30, 4), 'size: expected a multiple'), (lambda: ViT(32, 0), 'patch: expected a whole number'), (lambda: ViT(positions='x'), 'positions: expected one of'),
    (lambda: ViT(n=96, n_heads=5), 'n_heads: expected a divisor'), (lambda: RotaryAttention(12, 2), 'n_heads: expected heads'),
    (lambda: conv_stem(3, 8, 6), 'patch: expected a power of 2'), (lambda: TeacherCB(2.), 'momentum: expected'), (lambda: TeacherCB(centre=-1), 'centre: expected'),
    (lambda: random_views(torch.zeros(2, 3, 8, 8)), 'x: expected images in uint8'), (lambda: draw_stickers(0), 'n: expected a whole number'),
    (lambda: knn_predict(torch.ones(3, 2), torch.zeros(3).long(), torch.ones(1, 3)), 'queries: expected as many features'),
    (lambda: knn_predict(torch.ones(3, 2), torch.zeros(2).long(), torch.ones(1, 2)), 'y: expected a class for each of 3'),
    (lambda: knn_predict(torch.ones(3, 2), torch.zeros(3).long(), torch.ones(1, 2), temp=0.), 'temp: expected a number above 0'),
    (lambda: ViT(8, 4)(torch.zeros(1, 1, 8, 8)), 'x: expected floats'), (lambda: ViT(8, 4)(torch.zeros(1, 3, 8, 9)), 'divisible by 4'),
    (lambda: load_dino('no_such_weights'), 'path: there is no')])
def test_wrong_arguments(make, text):
    with pytest.raises((ValueError,FileNotFoundError), match=text): make()

def test_votes_of_a_low_temperature_are_finite():
    "exp(1/.01) is no float32; of the two near ones of class 1 the vote is the larger, however small `temp` is."
    f,y,q = torch.tensor([[1.,0.], [.99,.1], [.98,.1]]),torch.tensor([0,1,1]),torch.tensor([[.99,.12]])
    for temp in (.07, .02, .01, 1e-3, 1e-30): assert knn_predict(f, y, q, 3, temp).item()==1

def test_stickers_and_views_by_seed():
    a,b = draw_stickers(6, 3, 24),draw_stickers(6, 3, 24)
    assert all(torch.equal(u, v) for u,v in zip(a, b)) and not torch.equal(a[0], draw_stickers(6, 4, 24)[0])
    def gen(): return torch.Generator().manual_seed(1)
    assert all(torch.equal(u, v) for u,v in zip(multi_crop(a[0], 12, 8, generator=gen()), multi_crop(a[0], 12, 8, generator=gen())))

def test_views_of_nothing_are_refused():
    for kw,text in ((dict(x=torch.zeros(0, 3, 9, 9, dtype=torch.uint8)), 'x: expected images'), (dict(x=torch.zeros(1, 3, 9, 9, dtype=torch.uint8), n_small=0), 'n_small')):
        with pytest.raises(ValueError, match=text): multi_crop(**kw)

def test_the_teacher_takes_no_gradient_and_follows():
    torch.manual_seed(0)
    dino = DINO(ViT(8, 4, n=8, depth=1, n_heads=2), 8, 5)
    preds = dino(torch.randn(6, 3, 8, 8), torch.randn(3, 3, 4, 4))
    loss = dino.loss(preds)
    loss.backward()
    assert 0<loss.item()<2*math.log(5)+5 and all(p.grad is None for p in dino.teacher.parameters())
    assert all(p.grad is not None for p in dino.student.parameters())
    assert (dino.targets(preds[1]).sum(1)-1).abs().max()<1e-5
    nn.init.ones_(dino.student[0].norm.bias)
    TeacherCB(0., 0.).after_step(type('learn', (), dict(model=dino, preds=preds)))
    assert all(torch.equal(a, b) for a,b in zip(dino.teacher.parameters(), dino.student.parameters()))
    torch.testing.assert_close(dino.centre, preds[1].mean(0))

def test_rollout_keeps_rows():
    net = CompactTransformer(8, 4, n=8, depth=3, n_heads=2)
    r = rollout(attention_of(net, torch.randn(2, 3, 8, 8)))
    assert r.shape==(2,4,4) and (r.sum(-1)-1).abs().max()<1e-5 and (r>=0).all()

def test_the_stored_weights_are_small():
    from miniai.ddpm import load_weights
    w,info = load_weights('shape_dino')
    assert sum(v.numel() for v in w.values())<3e5 and info['notebook']=='38_vit'
