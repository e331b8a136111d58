"""What a training loop costs on top of plain PyTorch: ours, fastai's and Lightning's, the same net on the same batches.

Needs benchmarks/requirements.txt; a peer that is not installed is left out of the table."""
import gc,importlib,logging,statistics,time,warnings
from importlib.metadata import PackageNotFoundError,version
from types import SimpleNamespace
import torch
from torch import nn,optim
import torch.nn.functional as F
from miniai.conv import cnn
from miniai.data import get_data
from miniai.learner import DeviceCB,Learner,MetricsCB,TrainCB
from miniai.loaders import BatchLoader
from miniai.training import accuracy
from common import write

rounds,batches,device = 20,80,'cpu'


class Clocked:
    "A loader that notes the time at each batch it gives out, so that a framework's set-up before the first and after the last does not count."
    def __init__(self, dl): self.dl = dl
    def __len__(self): return len(self.dl)
    def __iter__(self):
        self.times = []
        for b in self.dl:
            self.times.append(time.perf_counter())
            yield b

    @property
    def seconds(self): return statistics.median(b-a for a,b in zip(self.times, self.times[1:]))    # of a batch


def small(): return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


def plain(model, dl):
    opt = optim.SGD(model.parameters(), lr=.01)
    model.train()
    for xb,yb in dl:
        xb,yb = xb.to(device),yb.to(device)
        loss = F.cross_entropy(model(xb), yb)
        loss.backward()
        opt.step()
        opt.zero_grad()


def plain_accuracy(model, dl):
    opt = optim.SGD(model.parameters(), lr=.01)
    model.train()
    losses,correct,n = [],[],0
    for xb,yb in dl:
        xb,yb = xb.to(device),yb.to(device)
        preds = model(xb)
        loss = F.cross_entropy(preds, yb)
        loss.backward()
        opt.step()
        opt.zero_grad()
        losses.append(loss.detach()*len(xb))
        correct.append((preds.detach().argmax(1)==yb).sum())
        n += len(xb)
    return (sum(losses)/n).item(),(sum(correct)/n).item()


def ours(model, dl):
    learn = Learner(model, SimpleNamespace(train=dl, valid=None), F.cross_entropy, lr=.01,
                    cbs=[TrainCB(), DeviceCB(device), MetricsCB(accuracy)])
    learn.log = lambda *args: None
    learn.fit(1, valid=False)


def fastai(model, dl):
    importlib.import_module('fastai.callback.progress')      # gives its Learner no_bar
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner as FastaiLearner
    from fastai.optimizer import OptimWrapper
    learn = FastaiLearner(DataLoaders(dl, [next(iter(dl.dl))], device=torch.device(device)), model, F.cross_entropy, lr=.01,
                          opt_func=lambda ps, **kw: OptimWrapper(ps, optim.SGD, **kw), metrics=accuracy)
    learn.recorder.train_metrics = True
    with learn.no_bar(),learn.no_logging(): learn.fit(1)


def lightning(model, dl):
    import lightning as L
    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model,self.losses,self.correct,self.n = model,[],[],0
        def configure_optimizers(self): return optim.SGD(self.parameters(), lr=.01)
        def training_step(self, batch, i):
            xb,yb = batch
            preds = self.model(xb)
            loss = F.cross_entropy(preds, yb)
            self.losses.append(loss.detach()*len(xb))
            self.correct.append((preds.detach().argmax(1)==yb).sum())
            self.n += len(xb)
            return loss
    trainer = L.Trainer(max_epochs=1, accelerator=device, devices=1, logger=False, enable_progress_bar=False, enable_checkpointing=False,
                        enable_model_summary=False, num_sanity_val_steps=0)
    trainer.fit(Module(), dl)


def has(package):
    try: return bool(version(package))
    except PackageNotFoundError: return False


def measure(loops, net, bs, data):
    "For each of `loops`: its seconds a batch in each round, the loops in turn, the same net and batches for all."
    start = net().state_dict()
    x,y = (data.x_train[:bs*batches].float()-72.9)/90,data.y_train[:bs*batches]
    secs = {k: [] for k in loops}
    for r in range(rounds+1):
        for k,f in sorted(loops.items(), key=lambda o: (list(loops).index(o[0])+r)%len(loops)):     # each is first in its turn
            model,dl = net(),Clocked(BatchLoader(x, y, bs=bs))
            model.load_state_dict(start)
            gc.collect()
            f(model, dl)
            if r: secs[k].append(dl.seconds)       # the first round warms up
    return secs


def main():
    warnings.filterwarnings('ignore')
    if has('lightning'):
        importlib.import_module('lightning.pytorch')      # it sets the level of its logger
        logging.getLogger('lightning.pytorch').setLevel(logging.ERROR)
    torch.set_num_threads(1)        # steadier than two on a shared machine
    data = get_data('fashion_mnist')
    loops = {'plain loop': plain, 'plain loop with accuracy': plain_accuracy, 'miniai': ours}
    loops |= {k: f for k,f in dict(fastai=fastai, lightning=lightning).items() if has(k)}
    rows = []
    for name,net,bs in (('cnn()', cnn, 128), ('one hidden layer', small, 128)):
        secs = measure(loops, net, bs, data)
        for k,o in secs.items():
            extra = [s-p for s,p in zip(o, secs['plain loop'])]
            share = statistics.median(s/p-1 for s,p in zip(o, secs['plain loop']))
            rows.append({'net': name, 'loop': k, 'ms a batch': f'{1e3*statistics.median(o):.3f}', 'extra, microseconds': f'{1e6*statistics.median(extra):.0f}',
                         'extra': f'{100*share:.1f}%'})
    write('learner', rows, "A training loop's cost on top of plain PyTorch", ('torch', *[k for k in ('fastai','lightning') if has(k)]), (
        f'The net of lesson 07, and one with a hidden layer of 64; SGD, {batches} batches of 128 pictures from memory, one thread, medians of {rounds} rounds, each loop first in its turn; the time of a batch '
        'is that from one batch to the next, the median of a round, so that a framework\'s set-up does not count.',
        'miniai, fastai and lightning move batches to the device and keep the loss and the accuracy of the training batches; lightning by the code of the second row. '
        'Progress bars and logging are off.'))


if __name__=='__main__': main()
