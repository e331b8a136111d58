"""Seconds of training until a residual net classifies 92% of Fashion-MNIST's test pictures rightly: our way against the usual one."""
import sys
from functools import partial
import numpy as np,torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from miniai.data import get_data,get_dataset
from miniai.init import Normalize
from miniai.learner import CancelFit,Callback,Learner,MetricsCB,TrainCB
from miniai.loaders import DataLoaders
from miniai.optim import BatchSchedCB,OneCycle
from miniai.resnet import AutocastCB,PoolBlock,resnet
from miniai.training import accuracy
from common import write

goal,epochs,bs,max_lr = .92,2,128,5e-3


class StopAt(Callback):
    "Ends the fit when the validation accuracy has reached `goal`."
    order = 50
    def after_epoch(self, learn):
        if learn.phase=='valid' and learn.history[-1]['valid_accuracy']>=goal: raise CancelFit()


def seconds(dls, steps, channels_last, seed):
    "Train until the goal: `(seconds, epochs, accuracy)`; seconds of training and validation."
    torch.manual_seed(seed)
    model = resnet(block=PoolBlock)
    if channels_last: model = model.to(memory_format=torch.channels_last)
    sched = BatchSchedCB(partial(OneCycle, max_lr=max_lr))
    learn = Learner(model, dls, partial(F.cross_entropy, label_smoothing=.1), lr=max_lr, cbs=[steps, MetricsCB(accuracy), StopAt(), sched],
                    opt_func=partial(torch.optim.AdamW, weight_decay=.05, fused=True))
    learn.fit(epochs)
    last = learn.history[-1]
    return sum(o['seconds'] for o in learn.history),len(learn.history),last['valid_accuracy']


def items(dataset, mean, std):
    "Rows of `dataset`, each picture decoded when it is asked for, for a `DataLoader`."
    def tensor(row):
        row['x'] = [torch.from_numpy((np.asarray(im, dtype=np.float32)-mean)/std)[None] for im in row.pop('image')]
        return row
    return dataset.with_transform(tensor)


def collate(rows): return torch.stack([o['x'] for o in rows]),torch.tensor([o['label'] for o in rows])


def main(seed=1):
    data = get_data('fashion_mnist')
    mean,std = data.x_train.float().mean().item(),data.x_train.float().std().item()
    tensors = (data.x_train, data.y_train),(data.x_valid, data.y_valid)
    ours = DataLoaders.from_tensors(*tensors, bs=bs, tfm=Normalize(mean, std))
    dd = get_dataset('fashion_mnist')
    usual = DataLoaders(DataLoader(items(dd['train'], mean, std), bs, shuffle=True, collate_fn=collate),
                        DataLoader(items(dd['test'], mean, std), 2*bs, collate_fn=collate))
    ways = {'bfloat16, channels last, batches cut from memory': (ours, AutocastCB(), True),
            'float32, contiguous, DataLoader that decodes items': (usual, TrainCB(), False)}
    found = {k: seconds(*o, seed) for k,o in ways.items()}
    first = next(iter(found.values()))[0]
    rows = [{'way': k, 'epochs': n, 'test accuracy': f'{acc:.4f}', 'seconds': f'{s:.0f}', 'times ours': f'{s/first:.2f}'} for k,(s,n,acc) in found.items()]
    write('time_to_accuracy', rows, f'Time to {goal} on the test set of Fashion-MNIST', ('torch','datasets'), (
        f'The same net (`resnet(block=PoolBlock)` of `miniai.resnet`), start, optimizer and schedule ({epochs} epochs of 1cycle, ended at the first epoch that reaches the goal); '
        f'batches of {bs}, {torch.get_num_threads()} threads, validation included, data source: {data.source}.',))


if __name__=='__main__': main(*map(int, sys.argv[1:]))
