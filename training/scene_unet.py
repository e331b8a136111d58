"""The UNet and the text encoder of lesson 27, in five stages that the lesson tells of. 1: an encoder from a CLIP without twins learns with
the UNet, and does not learn the sides. 2: that of `scene_clip` instead, learning too, forgets the order. 3: `scene_clip`'s, frozen. 4: it
learns again. 5: both go on with other wordings (`rephrase`), whose words get an id each. `scene_clip` must be there
(`training/scene_clip.py`); the package's own is taken otherwise. `--first 5` begins with the package's weights at stage 5."""
import copy,torch,torch.nn.functional as F
from functools import partial
from torch.optim import AdamW
from common import arguments,curve,info,little,train
from miniai.accel import ClipCB
from miniai.clip import load_clip
from miniai.data import SEEN,random_scenes
from miniai.ddpm import EMACB,load_weights,save_weights
from miniai.karras import KarrasCB
from miniai.latents import CaptionCB,LatentDiffusion,TextUNet,caption_variants,load_text,rephrase,scene_latents
from miniai.optim import BatchSchedCB,OneCycle
from miniai.resnet import AutocastCB
from miniai.vae import load_codec
from scenes import grow,train_clip,with_words

def words(n, tok):
    "All words that `rephrase` uses, from `n` scenes."
    return sorted({w for i,s in enumerate(random_scenes(n, 9, SEEN)) for w in tok.words(rephrase(s, i))})

def main():
    args = arguments('scene_unet', n_scenes=100_000, clip_rows=44_256, clip_epochs=4, bs=64, first=1,
                     epochs_1=9, epochs_2=1, epochs_3=5, epochs_4=3, epochs_5=4)
    bs,codec,(clip,tok) = 8 if args.few else args.bs,load_codec(),load_clip()
    config = dict(nfs=[96,112], nz=8, n_text=128, depth=1, n_emb=128, n_heads=4)
    torch.manual_seed(1)
    made,text = dict(pictures=0, minutes=0, stages=[], curve=[]),copy.deepcopy(clip.text)
    net = LatentDiffusion(TextUNet(**config), text)
    if args.first==1: net.text = train_clip(args, 'clip without twins', tok, twins=False)[0].text
    elif args.first==5:
        made = {k: v for k,v in load_weights('scene_unet', net.unet)[1].items() if k in made}
        tok,net.text = load_text()
        net.requires_grad_(True)
    else: raise SystemExit(f'--first: expected 1, or 5 to begin with the stored weights, got {args.first}')
    stages = {1: 'text encoder of a CLIP without pairs, trained on with the UNet', 2: 'that of scene_clip, trained on with the UNet',
              3: 'that of scene_clip, frozen', 4: 'the same, trained on with the UNet', 5: 'both, with other wordings too'}
    for i,said in stages.items():
        if i<args.first: continue
        n,two = little(args, args.n_scenes),.5 if i<3 else .8 if i<5 else .65   # fraction with two things: sides are learned from these alone
        scenes = random_scenes(round(n*two), 60+10*(i==5), SEEN, (True,))+random_scenes(n-round(n*two), 61+10*(i==5), SEEN, (False,))
        if i in (2,3): net.text = copy.deepcopy(text)
        if i==5:
            old,tok = tok,with_words(tok, words(5000, tok))
            net.text = grow(net.text, old, tok)
        net.text.requires_grad_(i!=3)
        z = scene_latents(codec, scenes, 64, seed=60+10*(i==5))
        ids = caption_variants(scenes, tok) if i<5 else caption_variants(scenes, tok, 1, seed=5, rephrased=4)
        ema,lr = EMACB(.9995),{1: 1e-3, 5: 3e-4}.get(i, 5e-4)
        cbs = [CaptionCB(KarrasCB(1., mean=.2, std=1.4), tok([''])[0]), AutocastCB(n_inp=3), ClipCB(1.),
               BatchSchedCB(partial(OneCycle, max_lr=lr, pct_start=.02, base_momentum=None)), ema]
        opt = partial(AdamW, betas=(.9, .99), weight_decay=.01)
        losses,minutes = train(args, f'stage {i}', net, (z, ids), F.mse_loss, lr, cbs, opt, getattr(args, f'epochs_{i}'), bs, i,
                               lambda z, ids: (z.float(), ids))
        net.load_state_dict(ema.model.state_dict())             # the next stage begins with the average
        made['curve'] += [[made['pictures']+k,o] for k,o in curve(losses, bs)]
        made['pictures'],made['minutes'] = made['pictures']+len(losses)*bs,round(made['minutes']+minutes, 1)
        made['stages'] += [[made['pictures'],said]]
    net.cpu().eval()
    more = dict(notebook='27_latent_diffusion', data=f'{args.n_scenes:,} drawn scenes of 64 pixels as latents of scene_codec, seen pairs only',
                seed=1, **made, **info(args))
    save_weights(net.unet, args.folder/'scene_unet.safetensors', config=config, sigma_data=1., **more)
    save_weights(net.text, args.folder/'scene_text.safetensors', config=dict(n_vocab=len(tok)), merges=tok.merges, **{k: v for k,v in more.items() if k!='curve'})

if __name__=='__main__': main()
