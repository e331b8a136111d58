"The reader of lesson 27, which judges pictures: eight answers from a scene, also where it is a little blurred or noisy."
import torch,torch.nn.functional as F
from functools import partial
from torch.optim import AdamW
from common import arguments,curve,info,little,train
from miniai.data import UNSEEN,random_scenes
from miniai.ddpm import save_weights
from miniai.latents import Reader,reader_loss,scene_targets
from miniai.optim import BatchSchedCB,OneCycle
from miniai.resnet import AutocastCB
from scenes import draw,to_float

def degrade(x, y):
    "Floats in [-1,1]; a batch in three is blurred, one in four noisy."
    x,u,v = to_float(x)[0],*torch.rand(2).tolist()
    if u<.35: x = x.lerp(F.avg_pool2d(F.pad(x, (1,1,1,1), mode='replicate'), 3, 1), .6*v)
    elif u<.6: x = x + .15*v*torch.randn_like(x)
    return x,y

def main():
    args = arguments('scene_reader', n_scenes=80_000, epochs=9)
    n,bs = little(args, args.n_scenes),8 if args.few else 128
    scenes = random_scenes(n, seed=40)
    torch.manual_seed(0)
    net,config = Reader().to(memory_format=torch.channels_last),dict(n_out=42, nfs=[16,32,64,96])
    cbs,opt = [AutocastCB(), BatchSchedCB(partial(OneCycle, max_lr=3e-3))],partial(AdamW, weight_decay=.05)
    rows = draw(scenes, 40),scene_targets(scenes)
    losses,minutes = train(args, 'all', net, rows, reader_loss, 3e-3, cbs, opt, args.epochs, bs, 0, degrade)
    net.cpu().eval()
    test = random_scenes(little(args, 1000), 41, UNSEEN)
    right = net.score(to_float(draw(test, 41))[0], test).attributes
    save_weights(net, args.folder/'scene_reader.safetensors', config=config, notebook='27_latent_diffusion',
                 data=f'{n:,} drawn scenes of 64 pixels, a third of them a little blurred, a quarter with noise', seed=0,
                 pictures=bs*len(losses), minutes=minutes, metrics=dict(attributes_right=right, of=f'{len(test):,} scenes of unseen pairs'),
                 curve=curve(losses, bs), **info(args))

if __name__=='__main__': main()
