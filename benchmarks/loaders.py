"Batches a second of loaders over the same pictures: `python benchmarks/loaders.py` writes results/loaders.md and fails below the bar."
from itertools import islice
import datasets,numpy as np,torch
from torch.utils.data import DataLoader,TensorDataset
from common import compare,write
from miniai.data import get_data,get_dataset
from miniai.loaders import BatchLoader,DataLoaders,inplace

BAR = 20                # times the batches a second of the `DataLoader` that decodes, without workers
BS,BATCHES = 256,60     # rows a batch, batches a measured round


@inplace
def to_floats(batch): batch['image'] = [torch.tensor(np.array(im))[None]/255 for im in batch['image']]


def to_unit(xb, yb): return xb/255, yb


def cycle(dl):
    "Batches for ever."
    while True: yield from dl


def taker(dl):
    "A function that takes `BATCHES` batches, going on where the last call stopped."
    batches = cycle(dl)
    return lambda: sum(len(yb) for _,yb in islice(batches, BATCHES))


def main():
    torch.set_num_threads(1)        # as PyTorch's workers have
    datasets.disable_progress_bars()
    data,dd = get_data('fashion_mnist'),get_dataset('fashion_mnist').with_transform(to_floats)
    x,y = data.x_train,data.y_train
    xb,yb = next(iter(DataLoaders.from_dd(dd, bs=BS, splits=('test','train')).valid))
    for a,b in zip((xb, yb), next(iter(BatchLoader(x, y, bs=BS, tfm=to_unit)))): assert torch.equal(a, b), "the loaders differ"

    loaders = {
        'DataLoader, decoding on access': DataLoaders.from_dd(dd, bs=BS).train,
        'the same, 2 workers': DataLoaders.from_dd(dd, bs=BS, num_workers=2).train,
        'DataLoader, decoded tensors (uint8)': DataLoader(TensorDataset(x, y), BS, shuffle=True),
        'BatchLoader': BatchLoader(x, y, bs=BS, shuffle=True, tfm=to_unit)}
    gpu = torch.cuda.is_available()
    if gpu: loaders['BatchLoader, on the GPU'] = BatchLoader(x, y, bs=BS, shuffle=True, tfm=to_unit, device='cuda')
    res = compare('loaders', {k: taker(dl) for k,dl in loaders.items()}, sync=torch.cuda.synchronize if gpu else None)

    rows = [{'loader': o['label'], 'batches a second': f"{BATCHES/o['median']:,.0f}",
             'range': f"{BATCHES/o['hi']:,.0f} to {BATCHES/o['lo']:,.0f}", 'ratio': f"{o['ratio']:.1f}"} for o in res]
    ratio = next(o['ratio'] for o in res if o['label']=='BatchLoader')
    write('loaders', rows, 'Loaders', packages=('torch','datasets','pillow'), notes=(
        f"Batches of {BS} from {len(x):,} pictures of {tuple(x.shape[1:])} (source: {data.source}), float32 in [0,1], shuffled, one thread. "
        f"Medians of 7 rounds of {BATCHES} batches; the ratio is the median of the rounds' ratios to the first line. "
        "Workers are started before, and hold a few finished batches when a round begins, which flatters them slightly.",
        '', f"The bar: `BatchLoader` at least {BAR} times the first line; measured {ratio:.0f} times."))
    if ratio<BAR: raise SystemExit(f"below the bar: {ratio:.1f} times, expected at least {BAR}")


if __name__=='__main__': main()
