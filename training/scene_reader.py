"The reader of lesson 27, which judges images: nine answers from a scene, also where it has been through the codec, is blurred or noisy."
import torch,torch.nn.functional as F
from functools import partial
from torch.optim import AdamW
from common import arguments,curve,info,little,train
from miniai.data import UNSEEN,random_scenes
from miniai.ddpm import save_weights
from miniai.latents import Reader,reader_loss,scene_targets,flawed_scenes
from miniai.optim import BatchSchedCB,OneCycle
from miniai.resnet import AutocastCB,autocast
from miniai.vae import load_codec
from scenes import draw,to_float

def degrade(x, y):
    "Floats in [-1,1]; a batch in three is blurred, one in four noisy."
    x,u,v = to_float(x)[0],*torch.rand(2).tolist()
    if u<.35: x = x.lerp(F.avg_pool2d(F.pad(x, (1,1,1,1), mode='replicate'), 3, 1), .6*v)
    elif u<.6: x = x + .15*v*torch.randn_like(x)
    return x,y

def flawed(n, seed):
    "`n` scenes with a flaw each, and the one answer that is asked of them."
    scenes = random_scenes(n, seed)
    x = torch.cat([flawed_scenes(scenes[i:i+1000], 64, seed+i) for i in range(0, n, 1000)])
    y = torch.full((n, 9), -100)
    y[:,8] = 1
    return x,y

@torch.no_grad()
def through_codec(x, codec, bs=250):
    "Bytes as the codec gives them back."
    with autocast('cpu'): parts = [codec.to_pictures(codec.to_latents(to_float(o)[0])).float() for o in x.split(bs)]
    return ((torch.cat(parts)+1)*127.5).round().clamp(0, 255).byte()

def rows(n_scenes, n_flawed, codec, seed):
    "Images (n,3,64,64) and answers (n,9); a half of both kinds, every second one, has been through the codec."
    scenes,(x_bad,y_bad) = random_scenes(n_scenes, seed),flawed(n_flawed, seed+1)
    x,y = torch.cat([draw(scenes, seed), x_bad]),torch.cat([scene_targets(scenes), y_bad])
    x[::2] = through_codec(x[::2], codec)
    return x,y

def main():
    args = arguments('scene_reader', n_scenes=70_000, n_flawed=50_000, epochs=9)
    bs,codec = 8 if args.few else 128,load_codec()
    torch.manual_seed(0)
    net,config = Reader().to(memory_format=torch.channels_last),dict(n_out=44, nfs=[16,32,64,96])
    cbs,opt = [AutocastCB(), BatchSchedCB(partial(OneCycle, max_lr=3e-3))],partial(AdamW, weight_decay=.05)
    data = rows(little(args, args.n_scenes), little(args, args.n_flawed), codec, 40)
    losses,minutes = train(args, 'all', net, data, reader_loss, 3e-3, cbs, opt, args.epochs, bs, 0, degrade)
    net.cpu().eval()
    n = little(args, 1000)
    scenes = random_scenes(n, 41, UNSEEN)
    good,bad = through_codec(draw(scenes, 41), codec),through_codec(flawed(n, 43)[0], codec)
    score = net.score(to_float(good)[0], scenes)
    seen = 1-net.right(to_float(bad)[0], random_scenes(n, 43))[0][:,8].float().mean().item()
    save_weights(net, args.folder/'scene_reader.safetensors', config=config, notebook='27_latent_diffusion',
                 data=f'{len(data[0]):,} drawn scenes of 64 pixels, {little(args, args.n_flawed):,} of them with a flaw; one half through the codec, a third a little '
                      'blurred, a quarter with noise', seed=0, pictures=bs*len(losses), minutes=minutes,
                 metrics=dict(attributes_right=score.attributes, whole_right=score.whole, flaws_noticed=seen,
                              of=f'{n:,} scenes of unseen pairs and as many with a flaw, all through the codec'),
                 curve=curve(losses, bs), **info(args))

if __name__=='__main__': main()
