"""The diffusion transformer of lesson 30, conditioned on the states of all-MiniLM-L6-v2: emoji of 64 pixels as latents of `emoji_codec`, without skin tones
and without what `split_emoji` holds out. `--minilm` is the folder of the text encoder; that of its package is taken otherwise. `--start FILE` goes on
with the weights of an earlier run, `--net unet` trains lesson 27's `TextUNet` on the same batches,
`--optim muon` moves the matrices of the blocks by Muon (muon.py)."""
import torch,torch.nn.functional as F
from functools import partial
from torch.optim import AdamW
from common import arguments,curve,info,little,train
from miniai.accel import ClipCB
from miniai.bert import load_minilm
from miniai.ddpm import EMACB,load_weights,save_weights
from miniai.emoji import load_emoji,on_background
from miniai.flow import StatesTable,TextDiT,emoji_captions,split_emoji
from miniai.latents import CaptionCB,LatentDiffusion,TextUNet
from miniai.optim import BatchSchedCB,OneCycle
from miniai.resnet import AutocastCB
from miniai.schedules import FlowCB
from miniai.vae import load_codec
from muon import MuonAdamW

def latents(codec, x, bs=256):
    "Images (n,3,64,64), uint8, as latents."
    return torch.cat([codec.to_latents(o.float()/127.5-1).half() for o in x.split(bs)])

def main():
    args = arguments('emoji_flow', net='dit', start='', epochs=100, lr=1e-3, bs=64, mean=0., std=1., seed=0, minilm='', codec='emoji_codec', width=256, depth=8, compiled=0, optim='adamw', ema=.9995)
    emoji,bs = load_emoji(n_drawn=100),8 if args.few else args.bs
    rows = split_emoji(emoji).train[:little(args, len(emoji))]
    captions = [emoji_captions(emoji.names[i], emoji.tags[i], emoji.styles[i]) for i in rows]
    table = StatesTable(load_minilm(args.minilm or None), [o for c in captions for o in c])
    ids = torch.stack([table.ids(c) for c in captions])                        # (n,8,1)
    z = latents(load_codec(args.codec), on_background(emoji.x[list(rows)]))
    config = dict(nz=z.shape[1], n=args.width, n_blocks=args.depth, n_heads=args.width//64) if args.net=='dit' else dict(nfs=[112,160], nz=z.shape[1], n_text=table.states.shape[2])
    torch.manual_seed(args.seed)
    net = (TextDiT if args.net=='dit' else TextUNet)(**config)
    before = dict(images=0, minutes=0, runs=[]) | (load_weights(args.start, net)[1] if args.start else {})
    if args.compiled: net.compile()
    ema = EMACB(args.ema)
    cbs = [CaptionCB(FlowCB(args.mean, args.std), table.ids([''])[0]), AutocastCB(n_inp=3), ClipCB(1.), ema,
           BatchSchedCB(partial(OneCycle, max_lr=args.lr, pct_start=.02, base_momentum=None))]
    opt = partial(AdamW, betas=(.9, .99), weight_decay=.01)
    if args.optim=='muon': opt = partial(MuonAdamW, matrices=[p for p in net.blocks.parameters() if p.ndim==2 and len(p)>6], betas=(.9, .99), weight_decay=.01)
    losses,minutes = train(args, args.net, LatentDiffusion(net, table), (z, ids), F.mse_loss, args.lr, cbs, opt,
                           args.epochs, bs, args.seed, lambda z, ids: (z.float(), ids))
    name = args.name if args.net=='dit' else f'{args.name}_{args.net}'
    args.minilm,args.codec = '',''                              # folders of one machine
    made = info(args, images=len(losses)*bs+before['images'], minutes=round(minutes+before['minutes'], 1))
    runs = before['runs']+[dict(command=made['command'], curve=curve(losses, bs))]
    save_weights(ema.model.unet, args.folder/f'{name}.safetensors', bits=8, config=config, notebook='30_flow', runs=runs,
                 data=f'{emoji.source}: {len(rows):,} emoji without skin tones on white as latents of emoji_codec', **made)

if __name__=='__main__': main()
