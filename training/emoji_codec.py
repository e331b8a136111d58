"The codec of lesson 30: emoji of 64 pixels on white to 16x16 latents with 8 channels; squared error first, then some absolute error and edges."
import torch,torch.nn.functional as F
from functools import partial
from torch.optim import AdamW
from common import arguments,curve,info,little,train
from miniai.accel import ClipCB
from miniai.ddpm import save_weights
from miniai.emoji import load_emoji,on_background
from miniai.init import Normalize
from miniai.optim import BatchSchedCB,OneCycle
from miniai.resnet import AutocastCB
from miniai.superres import psnr
from miniai.vae import Codec,VAELoss,codec_error

def main():
    args = arguments('emoji_codec', epochs=30, width=48, nz=8)
    emoji = load_emoji(n_drawn=400)
    x = on_background(emoji.x)[torch.randperm(len(emoji), generator=torch.Generator().manual_seed(0))]
    test,x = x[:little(args, 200, 8)],x[200:]                  # 200 images held out
    x = x[:little(args, len(x))]
    bs,lr,norm = 8 if args.few else 32,2e-3,Normalize(127.5, 127.5)
    def pair(x):
        mirrored = torch.rand(len(x))<.5
        return norm(torch.where(mirrored[:,None,None,None], x.flip(-1), x))*2
    torch.manual_seed(0)
    config = dict(nfs=[args.width, 2*args.width], nz=args.nz, depth=1, patch=2)
    codec,losses,minutes = Codec(**config).to(memory_format=torch.channels_last),[],0
    for stage,error in (('squared', F.mse_loss), ('both', partial(codec_error, edges=.1))):
        cbs = [AutocastCB(), BatchSchedCB(partial(OneCycle, max_lr=lr)), ClipCB(.3)]
        opt = partial(AdamW, betas=(.9, .99))
        l,m = train(args, stage, codec, (x,), VAELoss(error, 1e-5), lr, cbs, opt, max(1, args.epochs//2), bs, 0, pair)
        losses,minutes = [*losses, l],minutes+m
    codec.cpu().eval()
    test = norm(test)[0]
    with torch.no_grad():
        codec.calibrate(norm(x[:2000])[0])
        made = torch.cat([codec.decode(codec.encode(o).mean) for o in test.split(50)]).clamp(-1, 1)
    save_weights(codec, args.folder/'emoji_codec.safetensors', bits=8, config=config, notebook='30_flow', data=f'{emoji.source}: {len(x):,} emoji without skin tones, on white',
                 seed=0, images=sum(map(len, losses))*bs, minutes=minutes, metrics=dict(psnr=round(psnr(made, test).item(), 2)),
                 curve=curve(torch.cat(losses), bs), **info(args))

if __name__=='__main__': main()
