"""Faults of lesson 40 and their right values: boxes, suppression, precision, matching, files; and thousands of random cases beside the COCO
tools, whose counts and largest differences benchmarks/detection_parity.py writes into the table that the lesson shows."""
import contextlib,ctypes,io,math
from pathlib import Path
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

def random_boxes(rng, n):
    "Corners (n,4), float64: lonely, crowded, within each other, on a grid (some equal, some touch), or thin."
    kind = rng.integers(5)
    lo,size = rng.random((n,2)),(.05,.9,.5,.25,.3)[kind]*rng.random((n,2))+.01
    if kind==2: size = size*rng.choice([.2,1,2], (n,1))
    if kind==2: lo = .5-size*rng.random((n,2))
    if kind==3: lo,size = rng.integers(8, size=(n,2))/16,rng.integers(1, 5, size=(n,2))/16
    if kind==4: size[:,rng.integers(2)] = .002
    return np.concatenate([lo, lo+size], 1)

def wide(b):
    "Corners as the COCO tools write boxes: left, top, width, height."
    return np.concatenate([b[...,:2], b[...,2:]-b[...,:2]], -1)

def farthest(f, reference, rounds=40, n=60, boxes=random_boxes):
    "`(pairs of boxes, largest difference)` of `f` to `reference`."
    far = 0.
    for k in range(rounds):
        a,b = np.split(boxes(np.random.default_rng(k), 2*n), 2)
        far = np.maximum(far, np.abs(f(torch.tensor(a), torch.tensor(b)).numpy()-reference(a, b)).max())
    return rounds*n*n,float(far)

def iou_of_coco(a, b): return pytest.importorskip('pycocotools.mask').iou(wide(a), wide(b), [False]*len(b))

def giou_of_sizes(a, b):
    "torchvision's generalised IoU, from centres and sizes instead of corners: no corner of the overlap or the hull is ever computed."
    (ca,sa),(cb,sb) = (((o[...,:2]+o[...,2:])/2,o[...,2:]-o[...,:2]) for o in (a[:,None], b[None]))
    off,mean,small,large = np.abs(ca-cb),(sa+sb)/2,np.minimum(sa, sb),np.maximum(sa, sb)
    both = np.clip(np.minimum(mean-off, small), 0, None).prod(-1)
    hull = np.maximum(mean+off, large).prod(-1)
    union = sa.prod(-1)+sb.prod(-1)-both
    return both/union-(hull-union)/hull

def grid_boxes(rng, n):
    lo = rng.integers(20, size=(n,2))
    return np.concatenate([lo, lo+rng.integers(1, 13, size=(n,2))], 1).astype(float)

def giou_of_pixels(a, b):
    "The same by counting the pixels of boxes with whole corners."
    def painted(o):
        at = np.arange(32)
        x,y = ((at>=o[:,i,None])&(at<o[:,i+2,None]) for i in (0, 1))
        return y[:,:,None]&x[:,None]
    p,q = painted(a)[:,None],painted(b)[None]
    both,either = (p&q).sum((2,3)),p|q
    union = either.sum((2,3))
    spans = [np.array([[np.ptp(np.flatnonzero(r))+1 for r in row] for row in either.any(axis)]) for axis in (2, 3)]
    hull = spans[0]*spans[1]
    return both/union-(hull-union)/hull

def nms_of_coco(rounds=300):
    "`(boxes, images in which what is kept differs)` of `nms` to `bbNms` in the C code of the COCO tools: crowds of up to 200 boxes, ties of scores."
    part = pytest.importorskip('pycocotools._mask')
    try: run = ctypes.CDLL(part.__file__).bbNms
    except (AttributeError, OSError): pytest.skip('this build of pycocotools shows no bbNms')
    run.argtypes,run.restype = (ctypes.c_void_p,ctypes.c_size_t,ctypes.c_void_p,ctypes.c_double),None
    count,differ = 0,0
    for k in range(rounds):
        rng = np.random.default_rng(k)
        n,limit = int(rng.integers(1, 201)),(.3,.5,.7)[k%3]
        boxes,scores = random_boxes(rng, n),rng.random(n) if k%2 else rng.integers(9, size=n)/8
        order = np.argsort(-scores, kind='stable')
        rows,keep = np.ascontiguousarray(wide(boxes[order])),np.zeros(n, np.uint32)
        run(rows.ctypes.data, n, keep.ctypes.data, limit)
        count += n
        differ += d.nms(torch.tensor(boxes), torch.tensor(scores), limit).tolist()!=order[keep>0].tolist()
    return count,differ

families = {'moved copies, doubles, inventions': 900, 'equal IoUs and scores': 900, 'empty images and kinds': 400, 'crowded images': 200}

def ap_case(rng, family):
    "Answers and objects of one kind in three images: `(boxes, scores, true boxes)` for each, float64."
    res = []
    for i in range(3):
        m = rng.integers(4)
        if family=='crowded images' and not i: m = rng.integers(20, 41)
        if family=='empty images and kinds': m = int(rng.random()<.2)
        grid = family=='equal IoUs and scores' or (family=='crowded images' and rng.random()<.5)
        true = random_boxes(rng, m)
        if grid: true = np.concatenate([lo := rng.integers(8, size=(m,2)), lo+rng.integers(2, 5, size=(m,2))], 1)/16
        copies = true[rng.integers(m, size=rng.integers(2*m+1))] if m else true
        if rng.random()<.1 and m>19: copies = np.concatenate([copies]*4)                # more than the hundred that count
        found = np.concatenate([copies + (rng.integers(2, size=(len(copies),1))/16 if grid else .03*rng.normal(size=(len(copies),4))),
                                random_boxes(rng, rng.integers(3))])
        found = np.concatenate([found[:,:2], np.maximum(found[:,2:], found[:,:2]+1/64)], 1)
        if family=='empty images and kinds' and rng.random()<.5: found = found[:0]
        res.append((found, rng.integers(5, size=len(found))/4 if grid else rng.random(len(found)), true))
    return res

def ap_of_coco(cases, limits):
    "By the COCO tools, (limits,cases): each case is a kind of its own, so that one run judges all; -1 where a kind has no object."
    tools = [pytest.importorskip(f'pycocotools.{o}') for o in ('coco','cocoeval')]
    rows = [(i+1, k+1, *o) for k,case in enumerate(cases) for i,o in enumerate(case)]
    truth = tools[0].COCO()
    truth.dataset = dict(info={}, images=[dict(id=i+1) for i in range(3)], categories=[dict(id=k+1) for k in range(len(cases))],
                         annotations=[dict(image_id=i, category_id=k, bbox=b, iscrowd=0, area=b[2]*b[3]) for i,k,_,_,true in rows for b in wide(true).tolist()])
    for j,o in enumerate(truth.dataset['annotations']): o['id'] = j+1
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        run = tools[1].COCOeval(truth, truth.loadRes([dict(image_id=i, category_id=k, bbox=b, score=s) for i,k,found,scores,_ in rows
                                                      for b,s in zip(wide(found).tolist(), scores.tolist())]), 'bbox')
        run.params.iouThrs,run.params.maxDets = np.array(limits),[100]
        run.params.areaRng,run.params.areaRngLbl = [[0,1e10]],['all']
        run.evaluate()
        run.accumulate()
    return run.eval['precision'][:,:,:,0,-1].mean(1)

def ap_of_ours(case, limit):
    "By `average_precision`; -1 where there is no object."
    found = [d.Found(torch.tensor(b), torch.tensor(s), torch.zeros(len(s)).long()) for b,s,_ in case]
    m = max(len(true) for *_,true in case)
    boxes,labels = torch.zeros(3, m, 4, dtype=torch.float64),torch.full((3,m), -1)
    for i,(*_,true) in enumerate(case): boxes[i,:len(true)],labels[i,:len(true)] = torch.tensor(true),0
    return d.average_precision(found, boxes, labels, limit).get(0, -1.)

def compare_ap(limits=(.3,.5,.75)):
    "{family: (cases, largest difference)} on random cases, whose limits take turns."
    rng = np.random.default_rng(0)
    cases = {f: [ap_case(rng, f) for _ in range(n)] for f,n in families.items()}
    theirs = iter(ap_of_coco(sum(cases.values(), []), limits).T)
    far = {f: float(np.max([abs(ap_of_ours(o, limits[k%3])-next(theirs)[k%3]) for k,o in enumerate(rows)])) for f,rows in cases.items()}
    return {f: (len(cases[f]),far[f]) for f in cases}

def test_thousands_of_ious_are_those_of_coco(): assert farthest(d.box_iou, iou_of_coco)[1]<1e-10

def test_thousands_of_generalised_ious_are_those_of_two_other_formulas():
    assert farthest(d.box_giou, giou_of_sizes)[1]<1e-10
    assert farthest(d.box_giou, giou_of_pixels, 10, 30, grid_boxes)[1]<1e-12

def test_nms_keeps_in_crowds_what_the_code_of_coco_keeps(): assert nms_of_coco()[1]==0

def test_thousands_of_average_precisions_are_those_of_coco():
    res = compare_ap()
    stored = (Path(__file__).resolve().parent.parent/'benchmarks/results/detection_parity.md').read_text(encoding='utf-8')
    assert all(f'{n:,}: {family}' in stored for family,(n,_) in res.items()), "run `python benchmarks/detection_parity.py`"
    assert sum(families.values())>=2000 and max(far for _,far in res.values())<1e-9, res
