"""Drawing by next-token prediction with a cache of keys and values: our `generate_tokens` beside transformers' `generate` on GPT-2's layout.

Run: `python benchmarks/families.py [--threads 2]`. Both nets have the same weights, so they do the same work: 196 tokens after one of the condition, drawn at random."""
import argparse
import torch
from common import compare,write
from miniai.autoregressive import ImageGPT,generate_tokens


def as_gpt2(net):
    "transformers' GPT-2 with the weights of an `ImageGPT`: ids 0 to k-1 are tokens, those behind them conditions."
    from transformers import GPT2Config,GPT2LMHeadModel
    n = net.positions.shape[1]
    config = GPT2Config(vocab_size=net.n_tokens+net.n_cond, n_positions=len(net.positions), n_embd=n, n_layer=len(net.blocks),
                        n_head=net.blocks[0].attend.n_heads, activation_function='gelu', resid_pdrop=0., embd_pdrop=0., attn_pdrop=0.,
                        tie_word_embeddings=False, bos_token_id=None, eos_token_id=None)
    model = GPT2LMHeadModel(config).eval()
    t = model.transformer
    with torch.no_grad():
        t.wte.weight.copy_(torch.cat([net.tokens.weight, net.conds.weight]))
        t.wpe.weight.copy_(net.positions)
        for a,b in zip(t.h, net.blocks):
            for x,y in ((a.ln_1, b.norm1), (a.ln_2, b.norm3)): x.load_state_dict(y.state_dict())
            qkv = [torch.cat([getattr(b.attend.q, k), getattr(b.attend.kv, k)]) for k in ('weight', 'bias')]
            for x,(w,bias) in ((a.attn.c_attn, qkv), *((x, (y.weight, y.bias)) for x,y in ((a.attn.c_proj, b.attend.out),
                               (a.mlp.c_fc, b.ff.up), (a.mlp.c_proj, b.ff.down)))):
                x.weight.copy_(w.T)
                x.bias.copy_(bias)
        t.ln_f.load_state_dict(net.norm.state_dict())
        model.lm_head.weight[:net.n_tokens].copy_(net.head.weight)
        model.lm_head.weight[net.n_tokens:] = 0
    return model


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--threads', type=int, default=1)
    p.add_argument('--rounds', type=int, default=5)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows = []
    for n,sizes in ((1, dict()), (16, dict()), (64, dict()), (16, dict(length=64, n_tokens=512, n=72, n_heads=3, depth=3))):
        net = ImageGPT(**sizes).eval().requires_grad_(False)
        torch.nn.init.zeros_(net.head.bias)                       # GPT-2's head has none
        theirs = as_gpt2(net)
        start = torch.full((n, 1), net.n_tokens+net.n_cond-1)
        def library(theirs=theirs, start=start, net=net):
            return theirs.generate(start, attention_mask=torch.ones_like(start), do_sample=True, max_new_tokens=net.length, use_cache=True, top_k=0,
                                   suppress_tokens=list(range(net.n_tokens, net.n_tokens+net.n_cond)), pad_token_id=0)
        def ours(net=net, n=n): return generate_tokens(net, n)
        t = torch.randint(net.n_tokens, (2, net.length))
        with torch.no_grad(): want = theirs(torch.cat([torch.full((2, 1), net.n_tokens+net.n_cond-1), t[:,:-1]], 1)).logits[...,:net.n_tokens]
        assert (net(t)-want).abs().max()<1e-4                     # the same net
        assert library().shape==(n, net.length+1)
        name = f'{n} images, {net.length} tokens of {net.n_tokens}, width {net.positions.shape[1]}, {len(net.blocks)} blocks'
        a,b = compare(name, dict(transformers=library, miniai=ours), args.rounds)
        rows.append({'what': name, 'transformers, s': f"{a['median']:.2f}", 'miniai, s': f"{b['median']:.2f}", 'miniai / transformers': f"{1/b['ratio']:.2f}"})
        print(rows[-1], flush=True)
    write('families', rows, 'Next-token prediction with a cache', ('torch', 'transformers'),
          (f'Seconds for a batch, drawn at random with a cache of keys and values; {args.threads} thread{"s" if args.threads>1 else ""}, median of {args.rounds} rounds in turn. '
           'Below 1 in the last column we are faster. Both nets have the same weights and give the same logits (checked before the timing).',))


if __name__=='__main__': main()
