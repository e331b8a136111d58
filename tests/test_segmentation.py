"""Faults of lesson 41 and their right values: clicks, boxes, images of any size, files."""
import json,tempfile
import numpy as np
import pytest, torch
from PIL import Image
from miniai import segmentation as s
from miniai.ddpm import save_weights

def tiny(**kw): return s.PromptSegmenter(16, (4,8,8), n_ff=16, **kw).eval()

def asked(h=20, w=30, net=None, **kw):
    torch.manual_seed(0)
    seg = s.Segmenter(net or tiny(), **kw)
    return seg.set_image(np.random.RandomState(0).randint(0, 256, (h,w,3)).astype('uint8'))

@pytest.mark.parametrize('h,w', ((1,1), (20,30), (64,64), (300,7)))
@pytest.mark.parametrize('pad', (False, True))
def test_masks_have_the_size_of_the_image(h, w, pad):
    masks,ious = asked(h, w, pad=pad).predict([[w/2, h/2]], [1])
    assert masks.shape==(3,h,w) and masks.dtype==bool and ious.shape==(3,) and (np.diff(ious)<=0).all()
    assert asked(h, w, pad=pad).predict(box=[0, 0, w, h])[0].shape==(3,h,w)

@pytest.mark.parametrize('h,w,inner', ((81,128,41), (83,128,42), (69,128,35), (1365,2048,43), (1,128,1)))
def test_the_image_is_fitted_in_as_by_sam(h, w, inner):
    for shape,fills in (((h,w), [1., inner/64]), ((w,h), [inner/64, 1.])):
        assert s.Segmenter(tiny(), pad=True).set_image(np.zeros((*shape,3), 'uint8')).fills.tolist()==fills

def test_images_in_every_form_are_the_same():
    a = np.random.RandomState(1).randint(0, 256, (9,12,3)).astype('uint8')
    net,got = tiny(),[]
    for im in (a, Image.fromarray(a), torch.as_tensor(a), Image.fromarray(np.dstack([a, np.full((9,12), 255, 'uint8')])), a[:,::-1][:,::-1]):
        got.append(s.Segmenter(net).set_image(im).predict([[3,4]], [1])[1])
    for o in got[1:]: np.testing.assert_allclose(o, got[0], atol=1e-6)

def test_points_are_taken_in_every_form():
    seg = asked()
    want = seg.predict([[3,4],[8,9]], [1,0])[1]
    for p,l in ((np.array([[3,4],[8,9]]), np.array([1,0])), (torch.tensor([[3.,4],[8,9]]), torch.tensor([1,0])), ([(3,4),(8,9)], (True,False))):
        np.testing.assert_array_equal(seg.predict(p, l)[1], want)

def test_bad_questions():
    seg = asked()
    for kw,text in ((dict(), 'points, box: expected one of them at least'), (dict(points=[[1,2]]), 'labels: expected 1 of 0 and 1'),
                    (dict(points=[[1,2]], labels=[2]), 'labels: expected 1 of 0 and 1'), (dict(points=[[1,2]], labels=[0]), 'labels: expected a 1 at least'),
                    (dict(points=[1,2], labels=[1]), r'points: expected the shape \(k,2\)'), (dict(points=[], labels=[]), r'points: expected the shape \(k,2\)'),
                    (dict(points=[[31,2]], labels=[1]), 'points: expected x from 0 to 30 and y from 0 to 20'), (dict(points=[[float('nan'),2]], labels=[1]), 'points: expected finite'),
                    (dict(box=[5,5,5,9]), 'box: expected left < right and top < bottom in an image of 30 by 20'), (dict(box=[0,0,31,9]), 'box: expected'),
                    (dict(box=[0,0,9]), 'box: expected'), (dict(box=[0,0,float('inf'),9]), 'box: expected finite')):
        with pytest.raises(ValueError, match=text): seg.predict(**kw)
    with pytest.raises(ValueError, match='image: expected one, call set_image first'): s.Segmenter(tiny()).predict([[0,0]], [1])
    with pytest.raises(ValueError, match='image: expected one, call set_image first'): s.automatic_masks(s.Segmenter(tiny()))
    seg.predict([[1,2]], [0], box=[0,0,9,9])                                            # a box says what is meant

def test_bad_images():
    seg = s.Segmenter(tiny())
    for im in (np.zeros((4,4), 'uint8'), np.zeros((4,4,3)), np.zeros((0,4,3), 'uint8'), torch.zeros(3, 4, 4, dtype=torch.uint8)):
        with pytest.raises(ValueError, match='image: expected uint8'): seg.set_image(im)
    with pytest.raises(ValueError, match='cannot be read as an image'): seg.set_image(b'no image')
    assert seg.maps is None

def test_a_new_image_replaces_the_old_one():
    seg = asked(20, 30)
    old = seg.predict([[3,4]], [1])[0]
    seg.set_image(np.zeros((8,9,3), 'uint8'))
    assert old.shape==(3,20,30) and seg.predict([[3,4]], [1])[0].shape==(3,8,9)

def test_automatic_masks_none_and_all():
    seg = asked(10, 12)
    masks,ious = s.automatic_masks(seg, 2, least=2.)
    assert masks.shape==(0,10,12) and ious.shape==(0,)
    masks,ious = s.automatic_masks(seg, 3, least=-1., stable=0., limit=1.)
    assert masks.shape[1:]==(10,12) and masks.dtype==torch.bool and len(masks)==len(ious)

def test_clicks_of_empty_and_of_whole_regions():
    none,whole = torch.zeros(2, 5, 7, dtype=torch.bool),torch.ones(2, 5, 7, dtype=torch.bool)
    for pick in (s.random_click, s.middle_click):
        for region in (none, whole): assert ((pick(region)>0)&(pick(region)<1)).all()
    assert s.next_click(whole, whole)[1].tolist()==[1,1]                                # right already: one more inside
    assert s.next_click(none, none)[1].tolist()==[0,0]
    assert s.pair_ious(none[:,None], none[:,0][:,None].expand(-1, 5, -1)).tolist()==[[0.],[0.]]

def test_a_random_click_of_one_pixel():
    m = torch.zeros(3, 6, 9, dtype=torch.bool)
    m[:,4,7] = True
    assert torch.allclose(s.random_click(m), torch.tensor([7.5/9, 4.5/6]).expand(3, 2))

def test_the_training_plays_every_number_of_rounds():
    torch.manual_seed(0)
    x,truth = torch.randn(2, 3, 32, 32),torch.rand(2, 2, 2, 32, 32)>.5
    for boxes in (0., 1.):
        for r in range(3):
            t = s.ClickTraining(tiny().train(), boxes, [float(k==r) for k in range(3)])
            loss = s.mask_loss(t(x, truth), truth)
            loss.backward()
            assert loss.isfinite() and t.net.encoder.stem[0].weight.grad.abs().sum()>0

def test_a_click_on_a_part_may_mean_its_whole():
    x,masks,_ = s.masked_objects(60, 3)
    torch.manual_seed(0)
    f,truth,_ = s.pick_masks(x, masks)
    assert truth.shape==(60,2,2,64,64)
    meant,other = truth.flatten(0, 1).unbind(1)
    some = other.flatten(1).any(1)
    assert some.any() and not some.all()
    inside = ((meant&other).flatten(1).sum(1)==torch.minimum(meant.flatten(1).sum(1), other.flatten(1).sum(1)))
    assert inside.all()                                       # a part lies in its whole; the ground beside the ground is itself
    t = s.ClickTraining(tiny(), 0., (1.,))
    xy,one = s.random_click(meant),torch.ones(len(meant), 1, dtype=torch.long)
    got = t.possible(other, points=xy[:,None], labels=one)
    x_,y_ = (xy*64).long().unbind(1)
    assert got[:,0].all() and got[:,1].tolist()==other[torch.arange(len(other)),y_,x_].tolist() and got[:,1].any()
    two = dict(points=xy[:,None].expand(-1, 2, -1), labels=one.expand(-1, 2))
    assert not t.possible(other, **two)[:,1].any() and not t.possible(other, boxes=torch.rand(len(meant), 4))[:,1].any()
    # three times the whole, and whole and part: only the second answers both questions
    i = got[:,1].nonzero()[:1,0]
    def loss(masks): return s.mask_loss((20*torch.stack(masks, 1).float()-10, torch.ones(1, 3), got[i]), truth.flatten(0, 1)[i])
    assert loss([meant[i]]*3)>10*loss([meant[i], other[i], meant[i]])

def test_bad_drawings():
    with pytest.raises(ValueError, match='photos: expected uint8'): s.masked_objects(1, photos=torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match='stickers: expected uint8'): s.masked_objects(1, stickers=torch.zeros(0, 4, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match='most: expected a whole number'): s.masked_objects(1, most=0)

def test_weights_that_do_not_fit(tmp_path):
    save_weights(tiny(), tmp_path/'a.safetensors')
    with pytest.raises(ValueError, match="path: expected the model's arguments"): s.load_segmenter(tmp_path/'a.safetensors')
    save_weights(tiny(), tmp_path/'b.safetensors', config=dict(n=16, nfs=[4,8,16], n_ff=16))
    with pytest.raises(ValueError, match='does not fit the model'): s.load_segmenter(tmp_path/'b.safetensors')
    (tmp_path/'b.safetensors').write_bytes(b'damaged')
    with pytest.raises(ValueError): s.load_segmenter(tmp_path/'b.safetensors')

@pytest.mark.parametrize('h,w', ((20,30), (100,40), (64,64)))
def test_questions_in_pixels_are_those_of_sam(h, w):
    lib = pytest.importorskip('transformers')
    torch.manual_seed(0)
    eye = dict(hidden_size=16, output_channels=16, num_hidden_layers=2, num_pos_feats=8, num_attention_heads=2, image_size=64, patch_size=8, mlp_dim=32, window_size=3, global_attn_indexes=[1])
    theirs = lib.SamModel(lib.SamConfig(vision_config=eye, prompt_encoder_config=dict(hidden_size=16, image_size=64, patch_size=8),
                                        mask_decoder_config=dict(hidden_size=16, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16))).eval()
    with torch.no_grad():
        for o in theirs.parameters(): o.add_(.1*torch.randn_like(o))
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        seg = s.load_sam(folder)
    seg.set_image(np.random.RandomState(1).randint(0, 256, (h,w,3)).astype('uint8'))
    k = torch.tensor([round(o*64/max(h, w)+1e-9)/o for o in (w, h)])          # SamProcessor scales to whole pixels of the net
    click,box = torch.tensor([[w//3, h//2.]]),torch.tensor([w//4, h//4, w//2+3, h//2+3.])
    for ours,kw in ((dict(points=click, labels=[1]), dict(input_points=(click*k)[None,None], input_labels=torch.ones(1, 1, 1).long())),
                    (dict(box=box), dict(input_boxes=(box*k.repeat(2))[None,None]))):
        with torch.no_grad(): want = theirs(image_embeddings=seg.maps[0], **kw).iou_scores[0,0].sort(descending=True)[0].clamp(0, 1)
        np.testing.assert_allclose(seg.predict(**ours)[1], want.numpy(), atol=1e-6)

def test_a_published_folder(tmp_path):
    lib = pytest.importorskip('transformers')
    from safetensors.torch import save_file
    torch.manual_seed(0)
    eye = dict(hidden_size=16, output_channels=16, num_hidden_layers=2, num_pos_feats=8, num_attention_heads=2, image_size=32, patch_size=8, mlp_dim=32, window_size=3, global_attn_indexes=[1])
    theirs = lib.SamModel(lib.SamConfig(vision_config=eye, prompt_encoder_config=dict(hidden_size=16, image_size=32, patch_size=8),
                                        mask_decoder_config=dict(hidden_size=16, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16))).eval()
    theirs.save_pretrained(tmp_path)
    seg = s.load_sam(tmp_path)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        want = theirs(pixel_values=x, input_points=torch.tensor([[[[9.,20]]]]), input_labels=torch.tensor([[[1]]]))
        got = seg.net(x, torch.tensor([[[9.5,20.5]]])/32, torch.tensor([[1]]))
    torch.testing.assert_close(got[0][:,1:], want.pred_masks[:,0], atol=1e-4, rtol=1e-3)
    masks,ious = seg.set_image(np.full((10,20,3), 99, 'uint8')).predict([[3,4]], [1])
    assert masks.shape==(3,10,20) and seg.fills.tolist()==[1., .5]
    config = json.loads((tmp_path/'config.json').read_text())
    for bad,text in (('{', 'is damaged'), (json.dumps(config|dict(model_type='vit')), "expected the model_type 'sam', got 'vit'"), ('[]', "expected the model_type 'sam'"),
                     (json.dumps(config|dict(vision_config=config['vision_config']|dict(hidden_size='a'))), 'hidden_size: expected'),
                     *((json.dumps(config|{f'{part}_config': config[f'{part}_config']|{k: v}}), f'config.json: {part}_config: {k}: expected .*, got {v!r}')
                       for part,act in (('vision', 'relu'), ('prompt_encoder', 'relu'), ('mask_decoder', 'gelu')) for k,v in (('hidden_act', act), ('layer_norm_eps', .01)))):
        (tmp_path/'config.json').write_text(bad)
        with pytest.raises(ValueError, match=text): s.load_sam(tmp_path)
    (tmp_path/'config.json').write_text(json.dumps(config))
    w = dict(theirs.state_dict())
    w = {k: v.clone() for k,v in w.items() if 'neck.conv1' not in k}
    save_file(w, tmp_path/'model.safetensors')
    with pytest.raises(ValueError, match='it lacks vision_encoder.neck.conv1.weight'): s.load_sam(tmp_path)
    (tmp_path/'model.safetensors').unlink()
    with pytest.raises(FileNotFoundError, match='folder: there is no'): s.load_sam(tmp_path)
