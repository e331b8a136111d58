"""The accuracy board of the course: the recipe of each lesson on all of Fashion-MNIST, from three seeds, into miniai/boards.json.

Each finished run is a line of results/board.jsonl and is not made again; the rows of lessons 13 and 14 come from challenge.py, which takes hours."""
import argparse,json,os,sys,time
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from statistics import mean,median,stdev
import torch,torch.nn.functional as F
from torch import nn,optim
from miniai import training as ours
from miniai.conv import cnn
from miniai.data import get_data
from miniai.init import BatchNorm,Normalize,init_weights
from miniai.learner import Learner,MetricsCB,TrainCB,TrainLearner
from miniai.loaders import DataLoaders
from miniai.optim import AdamW,BatchSchedCB,OneCycle
from common import processor,write

here = Path(__file__).parent
results,challenge,board = here/'results'/'board.jsonl',here/'results'/'challenge.jsonl',here.parent/'miniai'/'boards.json'

def tensors(data):
    norm = Normalize(data.x_train.float().mean(), data.x_train.float().std())
    return (norm(data.x_train)[0], data.y_train),(norm(data.x_valid)[0], data.y_valid)

def flat(model, data, rates):
    "Lesson 04: plain SGD on rows of pixels from 0 to 1, `(epochs, rate)` in turn."
    sets = [ours.Dataset(x.float().flatten(1)/255, y) for x,y in ((data.x_train, data.y_train), (data.x_valid, data.y_valid))]
    for epochs,lr in rates:
        rows = ours.fit(epochs, model, ours.cross_entropy, ours.SGD(model.parameters(), lr=lr), *ours.get_dls(*sets, 64))
    return rows[-1]['accuracy']

def linear(data): return flat(ours.Linear(784, 10), data, ((5, .2), (2, .04)))

def plain(data): return flat(ours.Sequential(ours.Linear(784, 50), ours.ReLU(), ours.Linear(50, 10)), data, ((5, .2), (2, .04)))

def momentum(model, data, rates, bs):
    "Momentum, `(epochs, rate)` in turn."
    learn = TrainLearner(model, DataLoaders.from_tensors(*tensors(data), bs=bs), F.cross_entropy, rates[0][1], [MetricsCB(ours.accuracy)],
                         partial(optim.SGD, momentum=.9))
    for epochs,lr in rates: learn.fit(epochs, lr=lr)
    return learn.history[-1]['valid_accuracy']

def conv(data): return momentum(cnn(), data, ((3, .05), (1, .01)), 64)

def found(data):
    "Lesson 09: the rate that `lr_find` suggests, the last epoch at a tenth of it."
    learn = Learner(cnn((16,32,64,128), norm=nn.BatchNorm2d), DataLoaders.from_tensors(*tensors(data), bs=128), F.cross_entropy,
                    cbs=[TrainCB(), MetricsCB(ours.accuracy)], opt_func=partial(optim.SGD, momentum=.9))
    learn.lr = learn.lr_find(plot=False)
    learn.fit(3)
    learn.fit(1, lr=learn.lr/10)
    return learn.history[-1]['valid_accuracy']

def normed(data): return momentum(cnn(norm=BatchNorm).apply(init_weights), data, ((2, .1), (1, .01)), 128)

def cycle(data):
    model = cnn((16,32,64,128), norm=BatchNorm).apply(init_weights)
    learn = Learner(model, DataLoaders.from_tensors(*tensors(data), bs=128), F.cross_entropy, .01,
                    [TrainCB(), MetricsCB(ours.accuracy), BatchSchedCB(partial(OneCycle, max_lr=.01))], AdamW)
    learn.fit(5)
    return learn.history[-1]['valid_accuracy']

# (lesson, what it is, epochs, training, what fast.ai's course reports for as many epochs)
recipes = [('04', 'one linear layer', 7, linear, None), ('04', 'two layers', 7, plain, None),
           ('07', 'convolutions, momentum', 4, conv, None),
           ('09', 'a wider net, the rate found', 4, found, None), ('11', 'batch norm, Kaiming', 3, normed, '0.876'),
           ('12', 'AdamW, one cycle', 5, cycle, '0.906')]
stored = [('13', 'residual net', 5, '0.928 to 0.934'), ('14', 'crop and flip', 20, '0.943'), ('14', '+ erase', 50, '0.949')]

def lines(file): return [json.loads(o) for o in file.read_text().splitlines()] if file.exists() else []

def run(data, seeds):
    "Train what is missing."
    done = {(o['recipe'], o['seed']) for o in lines(results)}
    for seed in seeds:
        for lesson,recipe,epochs,f,_ in recipes:
            if (recipe, seed) in done: continue
            torch.manual_seed(seed)
            start = time.process_time()
            with redirect_stdout(None): acc = f(data)
            row = dict(lesson=lesson, recipe=recipe, epochs=epochs, seed=seed, accuracy=round(acc, 4), threads=torch.get_num_threads(),
                       seconds=round((time.process_time()-start)/epochs, 1), processor=processor())
            with results.open('a') as out: out.write(json.dumps(row)+'\n')
            print(row, flush=True)

def rows():
    "The rows of the board, from both files of results."
    found = []
    for lesson,recipe,epochs,_,fastai in recipes:
        same = sorted((o for o in lines(results) if o['recipe']==recipe), key=lambda o: o['seed'])
        found.append((lesson, recipe, epochs, [o['accuracy'] for o in same], round(median(o['seconds'] for o in same), 1), fastai))
    for lesson,recipe,epochs,fastai in stored:
        same = sorted((o for o in lines(challenge) if o['epochs']==epochs), key=lambda o: o['seed'])
        found.append((lesson, recipe, epochs, [o['accuracy'] for o in same], None, fastai))
    return [dict(lesson=l, recipe=r, epochs=e, mean=round(mean(a), 4), std=round(stdev(a), 4), seeds=a, seconds=s, fastai=f) for l,r,e,a,s,f in found]

def main(seeds, threads):
    if threads: torch.set_num_threads(threads)
    data = get_data('fashion_mnist')
    if data.source=='drawn': sys.exit('board: needs Fashion-MNIST; set MINIAI_DATA')
    run(data, seeds)
    found = rows()
    boards = json.loads(board.read_text(encoding='utf-8')) if board.exists() else {}
    temp = board.with_suffix('.tmp')
    temp.write_text(json.dumps(boards | dict(accuracy=found), indent=1)+'\n', encoding='utf-8')
    os.replace(temp, board)
    table = [{'lesson': o['lesson'], 'recipe': o['recipe'], 'epochs': o['epochs'], 'accuracy of each seed': ', '.join(f'{a:.4f}' for a in o['seeds']),
              'mean': f"{o['mean']:.4f}", 'standard deviation': f"{o['std']:.4f}", 'CPU seconds per epoch': o['seconds'] or '', 'fast.ai': o['fastai'] or ''} for o in found]
    write('board', table, 'The accuracy board', ('torch',), (
        'Accuracy on the 10,000 test images of Fashion-MNIST after training on all 60,000. Seconds are those of one core (CPU time, one thread), medians of the seeds; lessons 13 and 14 come from challenge.py.',))

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--seeds', type=int, nargs='*', default=[1, 2, 3])
    p.add_argument('--threads', type=int, default=1)
    main(**vars(p.parse_args()))
