"""The UNet and the text encoder of lesson 27, in four stages that the lesson tells of. 1: an encoder from a CLIP without twins learns with
the UNet, and does not learn the sides. 2: that of `scene_clip` instead, learning too, forgets the order. 3: `scene_clip`'s, frozen. 4: it
learns again. `scene_clip` must be there (`training/scene_clip.py`); the package's own is taken otherwise."""
import copy,torch,torch.nn.functional as F
from functools import partial
from torch.optim import AdamW
from common import arguments,curve,info,little,train
from miniai.accel import ClipCB
from miniai.clip import load_clip
from miniai.data import SEEN,random_scenes
from miniai.ddpm import EMACB,save_weights
from miniai.karras import KarrasCB
from miniai.latents import CaptionCB,LatentDiffusion,TextUNet,scene_latents,caption_variants
from miniai.optim import BatchSchedCB,OneCycle
from miniai.resnet import AutocastCB
from miniai.vae import load_codec
from scenes import train_clip

def main():
    args = arguments('scene_unet', n_scenes=100_000, clip_rows=44_256, clip_epochs=4, bs=64,
                     epochs_1=9, epochs_2=1, epochs_3=5, epochs_4=3)
    bs,codec,(clip,tok) = 8 if args.few else args.bs,load_codec(),load_clip()
    plain = train_clip(args, 'clip without twins', tok, twins=False)[0]
    config = dict(nfs=[96,112], nz=8, n_text=128, depth=1, n_emb=128, n_heads=4)
    torch.manual_seed(1)
    net,losses,stages,minutes = LatentDiffusion(TextUNet(**config), plain.text),[],[],0
    stored = copy.deepcopy(clip.text)
    for i,(said,text,learns) in enumerate((
            ('text encoder of a CLIP without pairs, trained on with the UNet', plain.text, True),
            ('that of scene_clip, trained on with the UNet', copy.deepcopy(stored), True),
            ('that of scene_clip, frozen', copy.deepcopy(stored), False),
            ('the same, trained on with the UNet', None, True)), 1):
        share = .5 if i<3 else .8                               # of scenes with two things: sides are learned from these alone
        n = little(args, args.n_scenes)
        scenes = random_scenes(round(n*share), 60, SEEN, (True,))+random_scenes(n-round(n*share), 61, SEEN, (False,))
        z,ids = scene_latents(codec, scenes, 64, seed=60),caption_variants(scenes, tok)
        if text is not None: net.text = text
        net.text.requires_grad_(learns)
        ema = EMACB(.9995)
        cbs = [CaptionCB(KarrasCB(1., mean=.2, std=1.4), tok([''])[0]), AutocastCB(n_inp=3), ClipCB(1.),
               BatchSchedCB(partial(OneCycle, max_lr=1e-3 if i==1 else 5e-4, pct_start=.02, base_momentum=None)), ema]
        opt = partial(AdamW, betas=(.9, .99), weight_decay=.01)
        l,m = train(args, f'stage {i}', net, (z, ids), F.mse_loss, 1e-3 if i==1 else 5e-4, cbs, opt, getattr(args, f'epochs_{i}'), bs, i,
                    lambda z, ids: (z.float(), ids))
        net.load_state_dict(ema.model.state_dict())             # the next stage begins with the average
        losses,minutes = [*losses, l],minutes+m
        stages.append([sum(map(len, losses))*bs, said])
    net.cpu().eval()
    more = dict(notebook='27_latent_diffusion', data=f'{args.n_scenes:,} drawn scenes of 64 pixels as latents of scene_codec, seen pairs only',
                seed=1, pictures=stages[-1][0], minutes=minutes, stages=stages, **info(args))
    save_weights(net.text, args.folder/'scene_text.safetensors', config=dict(n_vocab=len(tok)), merges=tok.merges, **more)
    save_weights(net.unet, args.folder/'scene_unet.safetensors', config=config, sigma_data=1., curve=curve(torch.cat(losses), bs), **more)

if __name__=='__main__': main()
