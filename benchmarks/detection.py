"""The DETR of lesson 40 and its dense detector after equally many batches, which cost about the same: average precision on fresh images.

Run: `python training/detector.py --net dense --work FOLDER` first, which takes as long as the stored DETR took; then
`python benchmarks/detection.py FOLDER/detector_dense.safetensors`, a minute. Lesson 40 shows the table."""
import sys
import torch
from miniai.ddpm import load_model
from miniai.detection import DenseDetector,Found,average_precision,dense_objects,draw_objects,load_detector,nms
from common import write

n = 1000


def apart(f): return f.boxes+2*f.labels[:,None]


def row(name, net, found, boxes, labels):
    def ap(found, limit=.5): return f'{sum(average_precision(found, boxes, labels, limit).values())/10:.3f}'
    kept = [Found(*(o[nms(apart(f), f.scores)] for o in f)) for f in found]
    sure = sum((f.scores>.5).sum().item() for f in found)
    return {'detector': name, 'parameters': f'{sum(p.numel() for p in net.parameters()):,}', 'AP50': ap(found), 'AP50 with NMS': ap(kept), 'AP75 with NMS': ap(kept, .75),
            'boxes above 0.5 per object': f'{sure/(labels>=0).sum().item():.2f}'}


def main(path):
    x,boxes,labels = draw_objects(n, seed=1)
    dense,detr = load_model(DenseDetector, path).to(memory_format=torch.channels_last),load_detector()
    with torch.no_grad(): preds = dense(x.float()/127.5-1)
    rows = [row('dense', dense, dense_objects(preds, limit=None), boxes, labels), row('DETR', detr, detr.detect(x), boxes, labels)]
    write('detection', rows, 'Two detectors on drawn shapes, 6,250 batches of 64 images each', ('torch',),
          (f'{n:,} fresh images of one to four shapes. NMS at an IoU of 0.5 among boxes of one kind.',), where='One training each')


if __name__=='__main__': main(sys.argv[1])
