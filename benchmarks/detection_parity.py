"""Lesson 40 beside the COCO tools on thousands of random cases, and what a training batch of its two detectors costs, timed in turn.

Run: `python benchmarks/detection_parity.py`, half a minute. The comparisons are those of tests/test_detection.py, which also asserts them."""
import sys
from pathlib import Path
import torch
from torch.optim import AdamW
from miniai import detection as d
from miniai.resnet import autocast
from common import compare,write

sys.path.append(str(Path(__file__).resolve().parent.parent/'tests'))
import test_detection as t

def parity():
    def row(name, of, n, far): return {'what': name, 'compared with': of, 'random cases': n, 'largest difference': f'{far:.0e}' if far else '0'}
    rows = []
    for name,f,ref,of,kw in (('IoU', d.box_iou, t.iou_of_coco, '`mask.iou` of pycocotools', {}),
                             ('generalised IoU', d.box_giou, t.giou_of_sizes, "torchvision's formula, from centres and sizes", {}),
                             ('generalised IoU', d.box_giou, t.giou_of_pixels, 'counted pixels', dict(rounds=10, n=30, boxes=t.grid_boxes))):
        n,far = t.farthest(f, ref, **kw)
        rows.append(row(name, of, f'{n:,} pairs', far))
    n,differ = t.nms_of_coco()
    rows.append(row('NMS', '`bbNms` in the C code of pycocotools', f'{n:,} boxes in 300 images, up to 200 in one', differ))
    for family,(n,far) in t.compare_ap().items():
        rows.append(row('AP', '`COCOeval` of pycocotools', f'{n:,}: {family}', far))
    write('detection_parity', rows, 'Boxes and average precision beside the COCO tools', ('torch','pycocotools'),
          ('In float64. For NMS, the number of images in which another box is kept.',), where='Random cases')

def step(net, loss, data):
    opt = AdamW(net.train().parameters(), 1e-4)
    x,boxes,labels = data[0].float()/127.5-1,*data[1:]
    def run():
        opt.zero_grad()
        with autocast(x.device): preds = net(x)
        loss([o.float() for o in preds], boxes, labels).backward()
        opt.step()
    return run

def speed():
    torch.manual_seed(0)
    data = d.draw_objects(32, seed=2)
    nets = [o.to(memory_format=torch.channels_last) for o in (d.DenseDetector(), d.DETR())]
    rows = compare('a training batch of 32', dict(dense=step(nets[0], d.dense_loss, data), DETR=step(nets[1], d.set_loss, data)))
    write('detection_speed', [{'what': o['name'], 'detector': o['label'], 'seconds': f"{o['median']:.2f}", 'time relative to dense': f"{1/o['ratio']:.2f}"} for o in rows],
          'What the two detectors of lesson 40 cost', ('torch',), ('Timed in turn, medians of seven rounds.',))

if __name__=='__main__':
    parity()
    speed()
