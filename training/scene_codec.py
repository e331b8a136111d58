"The codec of lesson 25: scenes of 64 pixels to 8x8 latents with 8 channels; squared error first, then some absolute error too."
import torch,torch.nn.functional as F
from functools import partial
from torch.optim import AdamW
from common import arguments,curve,info,little,train
from miniai.accel import ClipCB
from miniai.data import SEEN,draw_scenes,random_scenes
from miniai.ddpm import save_weights
from miniai.init import Normalize
from miniai.optim import BatchSchedCB,OneCycle
from miniai.resnet import AutocastCB
from miniai.superres import psnr
from miniai.vae import Codec,VAELoss,codec_error

def main():
    args = arguments('scene_codec', n_scenes=38_400, epochs=2)
    n,bs,lr,norm = little(args, args.n_scenes),8 if args.few else 16,2e-3,Normalize(127.5, 127.5)
    scenes = random_scenes(n, 0, pairs=SEEN)
    x = torch.cat([draw_scenes(scenes[i:i+1000], 64, i) for i in range(0, n, 1000)])
    def pair(x): return norm(x)*2
    torch.manual_seed(0)
    config = dict(nfs=[32,64,96], nz=8, depth=1, patch=2)
    codec,losses,minutes = Codec(**config),[],0
    for stage,error in (('squared', F.mse_loss), ('both', codec_error)):
        cbs = [AutocastCB(), BatchSchedCB(partial(OneCycle, max_lr=lr)), ClipCB(.3)]
        opt = partial(AdamW, betas=(.9, .99))
        l,m = train(args, stage, codec, (x,), VAELoss(error, 2e-5), lr, cbs, opt, max(1, args.epochs//2), bs, 0, pair)
        losses,minutes = [*losses, l],minutes+m
    codec.cpu().eval()
    test = norm(draw_scenes(random_scenes(little(args, 1000), 2, pairs=SEEN), 64, 2))[0]
    with torch.no_grad():
        codec.calibrate(norm(x[:2000])[0])
        made = torch.cat([codec.decode(codec.encode(o).mean) for o in test.split(100)]).clamp(-1, 1)
    save_weights(codec, args.folder/'scene_codec.safetensors', config=config, notebook='25_vae', data=f'{n:,} drawn scenes of 64 pixels, seen pairs only',
                 seed=0, pictures=sum(map(len, losses))*bs, minutes=minutes, metrics=dict(psnr=round(psnr(made, test).item(), 2)),
                 curve=curve(torch.cat(losses), bs), **info(args))

if __name__=='__main__': main()
