"""Accuracy on Fashion-MNIST's test pictures after 5, 20 and 50 epochs of the recipe of lesson 14, several seeds each.

Hours on two cores. Each finished run is a line of results/challenge.jsonl and is not made again; delete the file to begin anew."""
import argparse,json,sys,time
from pathlib import Path
from statistics import mean,stdev
import torch
from miniai.augment import capture_preds,challenge,random_crop,random_erase,random_flip,tta
from miniai.data import get_data
from miniai.training import accuracy
from common import write

results = Path(__file__).parent/'results'/'challenge.jsonl'
augmentations = {5: (), 20: (random_crop,random_flip), 50: (random_crop,random_flip,random_erase)}


def names(fs): return ', '.join(f.__name__.removeprefix('random_') for f in fs) or 'none'


def done(): return [json.loads(o) for o in results.read_text().splitlines()] if results.exists() else []


def run(data, epochs, seed):
    "Train once and write the result."
    fs,start = augmentations[epochs],time.time()
    learn = challenge(data, epochs, seed, fs)
    seconds = time.time()-start
    accs = {k: round(accuracy(*o).item(), 4) for k,o in {'accuracy': capture_preds(learn), 'two views': tta(learn)}.items()}
    row = dict(epochs=epochs, augmentation=names(fs), seed=seed, **accs, minutes=round(seconds/60, 1), threads=torch.get_num_threads())
    with results.open('a') as f: f.write(json.dumps(row)+'\n')
    print(row, flush=True)


def main(epochs, seeds, threads):
    if threads: torch.set_num_threads(threads)
    data = get_data('fashion_mnist')
    if data.source=='drawn': sys.exit('challenge: needs Fashion-MNIST; set MINIAI_DATA')
    finished = {(o['epochs'], o['seed']) for o in done()}
    for e,s in ((e, s) for e in epochs for s in seeds if (e, s) not in finished): run(data, e, s)
    rows = []
    for e in sorted({o['epochs'] for o in done()}):
        same = sorted((o for o in done() if o['epochs']==e), key=lambda o: o['seed'])
        accs = [o['accuracy'] for o in same]
        rows.append({'epochs': e, 'augmentation': same[0]['augmentation'], 'seeds': ', '.join(str(o['seed']) for o in same), 'accuracy of each': ', '.join(f'{o:.4f}' for o in accs),
                     'mean': f'{mean(accs):.4f}', 'deviation': f'{stdev(accs):.4f}' if len(accs)>1 else '', 'two views': f'{mean(o["two views"] for o in same):.4f}',
                     'minutes a run': f'{mean(o["minutes"] for o in same):.0f}'})
    write('challenge', rows, 'Fashion-MNIST after 5, 20 and 50 epochs', ('torch',), (
        'The net and recipe of `miniai.augment.challenge`: 1.2 million parameters, bf16, channels_last, batches of 128, AdamW with one cycle, label smoothing 0.1. '
        'All 60,000 training pictures, accuracy on the 10,000 test pictures at the end; \'two views\' averages the probabilities of a picture and its mirror image. '
        'Runs with one thread went on beside each other and beside other work, so their minutes are an upper limit.',))


if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--epochs', type=int, nargs='*', default=[5, 20, 50], choices=list(augmentations))
    p.add_argument('--seeds', type=int, nargs='*', default=[1, 2, 3])
    p.add_argument('--threads', type=int)
    main(**vars(p.parse_args()))
