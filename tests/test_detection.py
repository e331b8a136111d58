"""Faults of lesson 40 and their right values: boxes, suppression, precision, matching, files."""
import math
import numpy as np
import pytest, torch
from miniai import detection as d
from miniai.ddpm import save_weights

box = torch.tensor([[0.,0,.5,.5], [.25,0,.75,.5]])

def test_boxes_without_area_and_apart():
    point = torch.tensor([[.3,.3,.3,.3]])
    assert d.box_iou(point, point).item()==0 and d.box_giou(point, point).isfinite().all()
    assert d.box_iou(box[:1], box[:1]+1).item()==0
    near,far = (d.box_giou(box[:1], box[:1]+k).item() for k in (1, 3))
    assert -1<far<near<0

@pytest.mark.parametrize('dtype', (torch.float32, torch.float64))
def test_boxes_keep_their_dtype(dtype):
    for f in (d.box_iou, d.box_giou): assert f(box.to(dtype), box.to(dtype)).dtype==dtype

@pytest.mark.parametrize('dtype', (torch.float16, torch.bfloat16))
def test_small_boxes_in_half_precision(dtype):
    small = torch.tensor([[.1,.1,.105,.105], [.5,.5,.503,.504]]).to(dtype)
    for f in (d.box_iou, d.box_giou): assert torch.equal(f(small, small), f(small.float(), small.float()))
    assert d.box_iou(small, small)[0,0]==1
    logits = torch.full((1, 3, 10), -9.)
    logits[0,:2,9] = torch.tensor([3., 2.])                     # two of the last kind, IoU 0.39
    boxes = torch.tensor([[[.088,.088,.118,.132], [.101,.088,.132,.132], [0,0,1,1]]])
    assert len(d.dense_objects((logits.to(dtype), boxes.to(dtype)))[0].scores)==2

def test_the_dense_loss_of_maps_that_are_not_square():
    torch.manual_seed(0)
    net,truth = d.DenseDetector(10, (4,8)).eval(),(torch.tensor([[[.5,.5,.9,.9]]]),torch.tensor([[1]]))
    preds = net(torch.randn(1, 3, 32, 8))                       # 16 rows of 4, as many places as 8 by 8
    grads = torch.autograd.grad(d.dense_loss(preds, *truth, shape=(16,4)), preds[1])[0]
    at = d.places(16, 4)[grads[0].abs().sum(1)>0]               # where a box is learnt: in the object
    assert len(at) and (((at-.7)).abs()<=.101).all()
    square = net(torch.randn(1, 3, 16, 16))
    assert d.dense_loss(square, *truth)==d.dense_loss(square, *truth, shape=(8,8))
    for shape,x in (((8,4), square), (None, net(torch.randn(1, 3, 32, 16)))):
        with pytest.raises(ValueError, match='shape: expected rows and columns of'): d.dense_loss(x, *truth, shape=shape)

def test_a_batch_without_any_object():
    net,x,none = d.DenseDetector(2, (8,8,8)).eval(),torch.randn(2, 3, 32, 32),torch.zeros(2, 0).long()
    with torch.no_grad():
        assert torch.equal(d.dense_loss(net(x), torch.zeros(2, 0, 4), none), d.dense_loss(net(x), torch.zeros(2, 1, 4), -torch.ones(2, 1).long()))
    assert (d.dense_targets(d.places(2, 3), torch.zeros(2, 0, 4), none)==torch.full((2,6), -1)).all()

def test_nms_keeps_equal_scores_in_order():
    apart = torch.tensor([[0.,0,1,1], [2,0,3,1], [4,0,5,1]])
    assert d.nms(apart, torch.ones(3)).tolist()==[0,1,2]
    assert d.nms(apart[[0,0,1]], torch.ones(3)).tolist()==[0,2]

def found(boxes, scores, labels): return [d.Found(torch.tensor(boxes), torch.tensor(scores), torch.tensor(labels))]

def test_a_second_box_on_an_object_is_wrong():
    truth,label = box[None,:1],torch.tensor([[3]])
    assert d.average_precision(found([[0.,0,.5,.5]], [.9], [3]), truth, label)=={3: 1.}
    twice = d.average_precision(found([[0.,0,.5,.5], [0.,0,.5,.5], [.9,.9,1.,1.]], [.9,.8,.95], [3,3,3]), truth, label)
    assert twice[3]==pytest.approx(.5)
    assert d.average_precision(found([[0.,0,.5,.5]], [.9], [2]), truth, label)=={3: 0.}
    assert d.average_precision(found([[0.,0,.5,.5]], [.9], [2]), truth, -label)=={}          # no object, no kind

def test_a_found_box_takes_the_best_free_object():
    truth = torch.tensor([[[0.,0,1,1], [.2,0,1.2,1]]])
    got = d.average_precision(found([[.15,0,1.15,1], [.1,0,1.1,1]], [.9,.8], [0,0]), truth, torch.tensor([[0,0]]))
    assert got=={0: 1.}

def test_of_equally_good_objects_the_last_is_taken_as_by_coco():
    got = d.average_precision(found([[.125,0.,.625,.5], [0.,0,.5,.5]], [.9,.8], [0,0]), box[None], torch.tensor([[0,0]]))
    assert got=={0: 1.}

def test_the_first_hundred_answers_of_an_image_count_as_by_coco():
    right,wrong = [.1,.1,.5,.5],[.6,.6,.9,.9]
    f = found([wrong]*120+[right]+[wrong]*29, [1-i/200 for i in range(150)], [0]*150)
    case = f,torch.tensor([[right]]),torch.tensor([[0]])
    assert d.average_precision(*case)=={0: 0.} and abs(d.average_precision(*case, most=None)[0]-1/121)<1e-9
    assert d.average_precision(*case, most=121)[0]>0
    with pytest.raises(ValueError, match='most: expected a whole number'): d.average_precision(*case, most=0)

@pytest.mark.parametrize('n', (20, 25, 50, 100, 200))
def test_precision_at_round_recalls_as_coco_reads_it(n):
    rng = np.random.default_rng(0)
    for _ in range(100):
        right = rng.permutation(np.arange(n+n//4)<n*rng.integers(4, 10)//10)
        tp = right.cumsum()
        recall,precision = tp/n,np.maximum.accumulate((tp/np.arange(1, len(right)+1))[::-1])[::-1]
        at = np.searchsorted(recall, np.linspace(0, 1, 101))
        want = np.append(precision, np.zeros(len(right)))[np.minimum(at, len(right))].mean()
        assert d.precision_area(torch.tensor(right), n)==pytest.approx(want, abs=1e-12)

def test_bad_arguments():
    with pytest.raises(ValueError, match='noise: expected a finite number, 0 or more, got -1'): d.draw_objects(1, noise=-1)
    with pytest.raises(ValueError, match='most: expected a whole number'): d.draw_objects(1, most=0)
    with pytest.raises(ValueError, match='n: expected a multiple of 4, got 6'): d.detr_positions(2, 2, 6)
    with pytest.raises(ValueError, match='found: expected one for each of 2 images, got 0'): d.average_precision([], box[None].expand(2, -1, -1), torch.zeros(2, 2).long())
    with pytest.raises(TypeError, match='x: expected images of bytes'): d.DETR(n=8, nfs=(4,8)).detect(torch.zeros(1, 3, 16, 16))
    for bad in (torch.zeros(3, 2), torch.zeros(3)):
        with pytest.raises(ValueError, match='cost: expected'): d.assign(bad)

def test_detecting_leaves_the_mode_and_needs_no_gradient():
    net,x = d.DETR(n=8, nfs=(4,8)).train(),d.draw_objects(3, 1, 32)[0]
    one,all_ = net.detect(x[:1], 0.),net.detect(x, 0.)
    assert net.training and not all_[0].boxes.requires_grad and len(all_)==3
    torch.testing.assert_close(one[0].boxes, all_[0].boxes)

def test_an_image_without_objects():
    net = d.DETR(n=8, nfs=(4,8))
    x,none = torch.zeros(2, 3, 16, 16),torch.full((2, 4), -1)
    for n,loss in ((net, d.set_loss), (d.DenseDetector(10, (4,8)), d.dense_loss)):
        l = loss(n(x), torch.zeros(2, 4, 4), none)
        assert l.isfinite() and l>0

def test_objects_that_are_hidden_or_leave_the_image():
    alpha = torch.zeros(1, 3, 4, 4)
    alpha[0,0,:2],alpha[0,1,:3],alpha[0,2] = 1,1,.4           # the second shows a third of itself; the third lets the ground through
    x,b,there = d.layer_objects(torch.ones(1, 3, 3, 1, 1), alpha, torch.zeros(1, 3, 4, 4))
    assert there.tolist()==[[True,False,False]] and torch.equal(b[0,0], torch.tensor([0.,0,1,.5]))
    assert torch.allclose(x[0,0,3], torch.full((4,), .4))

def test_drawing_is_the_same_for_a_seed_and_boxes_fit():
    a,b = d.draw_objects(6, 3, 48),d.draw_objects(6, 3, 48)
    assert all(torch.equal(*o) for o in zip(a, b))
    boxes = a[1][a[2]>=0]
    assert (boxes[:,2:]>boxes[:,:2]).all() and boxes.min()>=0 and boxes.max()<=1 and not a[1][a[2]<0].any()
    assert (a[2]>=0).any(1).all()

def test_weights_without_a_config(tmp_path):
    save_weights(d.DETR(n=8, nfs=(4,8)), tmp_path/'a.safetensors')
    with pytest.raises(ValueError, match="path: expected the model's arguments"): d.load_detector(tmp_path/'a.safetensors')
    save_weights(d.DETR(n=8, nfs=(4,8)), tmp_path/'b.safetensors', config=dict(n=8, nfs=[4,16]))
    with pytest.raises(ValueError): d.load_detector(tmp_path/'b.safetensors')

def test_the_hungarian_algorithm_with_ties():
    assert sorted(d.assign(torch.zeros(3, 3)))==[0,1,2] and d.assign(torch.zeros(0, 2))==[]
    assert d.assign(torch.tensor([[math.pi, 0.], [0., 0.]])) in ([1,0],)

def cards(n=2, c=4): return torch.full((n, c, 8, 8), 255, dtype=torch.uint8)

def test_pasted_objects():
    photos = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    a,b = (d.paste_objects(cards(), torch.tensor([0,7]), photos, 5, 1, 24, 2) for _ in range(2))
    assert all(torch.equal(*o) for o in zip(a, b)) and set(a[2].unique().tolist())<={-1,0,7}
    x,boxes,labels = a
    for i in range(5):                                       # what is white lies in a box, and boxes hold something white
        inside = torch.zeros(24, 24, dtype=torch.bool)
        for x0,y0,x1,y1 in (boxes[i][labels[i]>=0]*24).round().int().tolist():
            inside[y0:y1,x0:x1] = True
            assert (x[i,0,y0:y1,x0:x1]>127).any()
        assert not (x[i,0]>140)[~inside].any()
    clear = cards()
    clear[:,3] = 0
    assert (d.paste_objects(clear, torch.tensor([0,7]), photos, 4, 1, 24)[2]<0).all()
    for kw,text in ((dict(cutouts=cards(c=3)), 'cutouts: expected uint8'), (dict(grounds=photos.float()), 'grounds: expected uint8'),
                    (dict(kinds=torch.tensor([0])), 'kinds: expected a label'), (dict(kinds=torch.tensor([0,-1])), 'kinds: expected'),
                    (dict(n=0), 'n: expected a whole number'), (dict(most=0), 'most: expected')):
        with pytest.raises(ValueError, match=text): d.paste_objects(**(dict(cutouts=cards(), kinds=torch.tensor([0,7]), grounds=photos, n=1)|kw))

@pytest.mark.parametrize('shape', ((8,4), (3,5), (4,4), (2,0)))
def test_matching_is_the_same_without_scipy(monkeypatch, shape):
    cost = torch.randn(shape, generator=torch.Generator().manual_seed(1)).double()
    def pairs(): return sorted(zip(*(o.tolist() for o in d._best_pairs(cost))))
    want = pairs()
    monkeypatch.setattr(d, 'linear_sum_assignment', None)
    assert pairs()==want and len(want)==min(shape)
