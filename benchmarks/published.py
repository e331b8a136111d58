"""The three nets of Stable Diffusion 1.5 at their published sizes with random weights, ours beside those of diffusers and transformers: difference, seconds and
peak memory. Needs diffusers, a development requirement, `pip install transformers`, and 8 GB of memory.

`python published.py --threads 2 --rounds 3 --pixels 512` sets torch's threads, the rounds and the size of the image."""
import argparse,gc,subprocess,sys,warnings
import torch
from diffusers import AutoencoderKL,UNet2DConditionModel
from transformers import CLIPTextConfig,CLIPTextModel
from miniai.published import CLIPText,PublishedCodec,PublishedUNet,codec_names,take_weights,text_names,unet_names
from miniai.schedules import scaled_linear_schedule
from common import compare,write

tasks = {'text encoder, 2 prompts': 'text', 'UNet, guided step': 'unet', 'codec, decode': 'codec'}


def theirs(part):
    "The published shape with random weights."
    torch.manual_seed(0)
    if part=='text': return CLIPTextModel(CLIPTextConfig(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)).eval()
    if part=='unet': return UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8).eval()
    return AutoencoderKL(block_out_channels=(128,256,512,512), layers_per_block=2, down_block_types=['DownEncoderBlock2D']*4, up_block_types=['UpDecoderBlock2D']*4).eval()


def ours(part, w):
    "Our net with the weights `w` of theirs; the two share most of their memory."
    make,names = dict(text=(CLIPText, text_names), unet=(PublishedUNet, unet_names), codec=(PublishedCodec, codec_names))[part]
    with torch.device('meta'): net = make()
    return take_weights(net, names(net), w).eval()


def calls(part, dtype, pixels):
    "What is asked of theirs and of ours, functions of the net."
    torch.manual_seed(1)
    side = pixels//8
    if part=='text':
        ids = torch.randint(49408, (2, 77))
        return lambda net: net(ids).last_hidden_state,lambda net: net(ids)
    if part=='unet':
        x,t,c = torch.randn(2, 4, side, side),torch.tensor([500, 500]),torch.randn(2, 77, 768)
        s = scaled_linear_schedule().sigma(t).log().float()/4
        return lambda net: net(x.to(dtype), t, c.to(dtype)).sample,lambda net: net(x, s, c)
    z = torch.randn(1, 4, side, side)
    return lambda net: net.decode(z.to(dtype)).sample,lambda net: net.decode(z)


def peak(part, who, dtype, pixels):
    "MiB of memory of a process that asks one of the nets once, beyond its weights."
    out = subprocess.run([sys.executable, __file__, '--only', part, who, dtype, '--pixels', str(pixels)], capture_output=True, text=True, check=True)
    return int(out.stdout.split()[-1])


def status(name):
    "KiB of memory of this process: now (VmRSS), or at most so far (VmHWM)."
    with open('/proc/self/status') as f: return next(int(o.split()[1]) for o in f if o.startswith(name))


def one(part, who, name, pixels):
    "What `peak` runs in a process of its own."
    dtype = getattr(torch, name)
    net = theirs(part).to(dtype).requires_grad_(False)
    if who=='miniai': net = ours(part, net.state_dict())
    if who=='miniai': gc.collect()
    before = status('VmRSS')
    with open('/proc/self/clear_refs', 'w') as f: f.write('5')                 # the peak until now is forgotten
    with torch.no_grad(): calls(part, dtype, pixels)[who=='miniai'](net)
    print((status('VmHWM')-before)//1024)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--threads', type=int, default=1)
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--pixels', type=int, default=512)
    p.add_argument('--only', nargs=3, help='part, who and dtype, for the peak memory alone')
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter('ignore')
    if args.only: return one(*args.only, args.pixels)
    rows = []
    for task,part in tasks.items():
        their = theirs(part).requires_grad_(False)
        exact = None
        for dtype in (torch.float32, torch.bfloat16):
            our,name = ours(part, their.to(dtype).state_dict()),str(dtype)[6:]
            ask_theirs,ask_ours = calls(part, dtype, args.pixels)
            with torch.no_grad():
                a,b = ask_theirs(their).float(),ask_ours(our).float()
                exact = a if exact is None else exact
                gaps = {k: ((o-exact).abs().max()/exact.abs().max()).item() for k,o in (('theirs', a), ('miniai', b))}
                found = compare('', {'theirs': lambda: ask_theirs(their), 'miniai': lambda: ask_ours(our)}, args.rounds)
            memory = {k: peak(part, k, name, args.pixels) for k in ('theirs','miniai')}
            for o in found:
                k = o['label']
                rows.append({'task': task, 'numbers': name, 'by': k, 'parameters': f'{sum(q.numel() for q in (our if k=="miniai" else their).parameters()):,}',
                             'difference from theirs in float32': f'{gaps[k]:.1e}', 'seconds': f"{o['median']:.2f}", 'of theirs': f"{1/o['ratio']:.2f}",
                             'MiB beyond the weights': f'{memory[k]:,}', 'of their MiB': f"{memory[k]/max(1, memory['theirs']):.2f}"})
            print(rows[-1], flush=True)
    write('published', rows, 'Stable Diffusion 1.5 at its published size: our nets beside those of diffusers and transformers', ('torch','diffusers','transformers'), [
        f'Random weights, the same on both sides; an image of {args.pixels} pixels, {args.threads} thread; medians of {args.rounds} rounds, the two in turn; "of theirs" is the '
        'median of the ratios of each round, below 1 where ours is faster. Differences are the largest, relative to the largest value. Memory is what one call adds to the '
        'largest resident size of a process that holds the net.'])


if __name__=='__main__': main()
