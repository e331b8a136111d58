"""The nets of lesson 43: a reader of things that move, and a `VideoUNet`, which is an image model first.

`--start FILE` begins the last stage with the weights of an earlier run of this script."""
import torch,torch.nn.functional as F
from functools import partial
from torch.optim import AdamW
from common import arguments,curve,in_parts,info,little,train
from miniai.data import BACKGROUNDS,COLOURS
from miniai.ddpm import EMACB,load_weights,save_weights
from miniai.guidance import CondCB
from miniai.optim import BatchSchedCB,OneCycle
from miniai.resnet import AutocastCB
from miniai.video import MOTIONS,RADII,ThingReader,VideoCB,VideoUNet,WordUNet,inflate,moving_caption,moving_masks,random_moving,video_loss,word_vectors

parts = len(RADII),len(COLOURS),-1,len(MOTIONS)
palette,black = torch.tensor(list(COLOURS.values()), dtype=torch.float32),BACKGROUNDS['black'][0]
sigma_data = .5

def masks(n, seed):
    "Coverage of `n` clips as bytes (n,8,24,24), and their words (n,24)."
    things = random_moving(n, seed)
    return (moving_masks(things, seed)*255).round().byte(),word_vectors([moving_caption(o) for o in things])

def recolour(w):
    "The words with a colour drawn anew."
    w,k = w.clone(),len(RADII)
    w[:,k:k+len(COLOURS)] = F.one_hot(torch.randint(len(COLOURS), (len(w),)), len(COLOURS))
    return w

def painted(m, w):
    "Masks (n,...,h,w) in the colours of their words, floats (n,...,3,h,w) in [-1,1]."
    k = len(RADII)
    colour = (w[:,k:k+len(COLOURS)]@palette-black).reshape(len(m), *[1]*(m.ndim-3), 3, 1, 1)
    return (black + colour*m.float().unsqueeze(-3)/255)/127.5-1

def frame(m, w):
    "One frame of each clip and its words: the first frame and all of them, or any frame and those without the motion."
    first,i = torch.rand(len(w), 1)<.5,torch.randint(m.shape[1], (len(m),))
    w = torch.cat([w[:,:-len(MOTIONS)], w[:,-len(MOTIONS):]*first], 1)
    return painted(m[torch.arange(len(m)),i*~first[:,0]], w),w

def frames(m, w): return frame(m, recolour(w))

def clips_or_frames(data, bs, p=.5):
    "Makes a transform: clips in all colours, or in half of the batches `bs` single frames of the `data`."
    def tfm(m, w):
        if torch.rand(())<p:
            i = torch.randint(len(data[0]), (bs,))
            return frames(data[0][i], data[1][i])
        w = recolour(w)
        return painted(m, w),w
    return tfm

def seen(m, w):
    "Frames for the reader, some with noise or a little blurred, and their three answers."
    x,w = frames(m, w)
    u,v = torch.rand(2).tolist()
    if u<.3: x = x.lerp(F.avg_pool2d(F.pad(x, (1,1,1,1), mode='replicate'), 3, 1), .6*v)
    elif u<.6: x = x + .15*v*torch.randn_like(x)
    words = w[:,:-len(MOTIONS)].split([len(RADII), len(COLOURS), w.shape[1]-len(RADII)-len(COLOURS)-len(MOTIONS)], 1)
    return x,torch.stack([o.argmax(1) for o in words], 1)

def train_reader(args, data, bs, about):
    "The reader of things."
    torch.manual_seed(0)
    reader = ThingReader().to(memory_format=torch.channels_last)
    def loss(pred, y): return sum(F.cross_entropy(o, y[:,i]) for i,o in enumerate(pred.split(reader.parts, 1)))
    losses,minutes = train(args, 'reader', reader, data, loss, 3e-3, [AutocastCB(), rates(3e-3)], opt, args.reader_epochs, bs, 0, seen)
    save_weights(reader.eval(), args.folder/'video_reader.safetensors', bits=8, config={}, images=bs*len(losses), minutes=minutes, curve=curve(losses, bs),
                 **about, **info(args))

opt = partial(AdamW, weight_decay=.01)
def rates(lr): return BatchSchedCB(partial(OneCycle, max_lr=lr, pct_start=.1))

def main():
    args = arguments('video', n=8000, reader_epochs=10, image_epochs=6, video_epochs=3, motion_epochs=2, start='')
    n,lr = little(args, args.n),2e-3
    data = in_parts(args, 'masks', max(1, n//800), lambda i: masks(min(n, 800), 43_000+i))
    about = dict(notebook='43_video', data=f'{n:,} drawn clips of one thing', seed=0)
    bs,few = (8,8) if args.few else (128,64)
    def tasks(p, mean): return [CondCB(VideoCB(sigma_data, mean, p=p), 0.), AutocastCB(n_inp=3), rates(lr)]
    net,before,images,batches,runs = VideoUNet(),0.,0,0,[]
    if args.start:
        past = load_weights(args.start, net)[1]
        before,images,batches,runs = past['minutes'],past['images'],past['batches'],past.get('runs', [])
    else:
        train_reader(args, data, bs, about)
        torch.manual_seed(0)
        ema = EMACB(.998)
        losses,before = train(args, 'image', WordUNet().to(memory_format=torch.channels_last), data, video_loss, lr, [*tasks(0, 0.), ema], opt,
                              args.image_epochs, few, 0, frames)
        net,images = inflate(ema.model),few*len(losses)
        torch.manual_seed(0)
        ema,tfm = EMACB(.998),clips_or_frames(data, few, .4)
        losses,minutes = train(args, 'video', net.to(memory_format=torch.channels_last), data, video_loss, lr, [*tasks(.3, .5), ema], opt, args.video_epochs, 8, 0, tfm)
        net,before,batches = ema.model.requires_grad_(True),before+minutes,len(losses)
    torch.manual_seed(0)
    ema,new = EMACB(.99),{id(p) for k,p in net.named_parameters() if 'temporal' in k}
    def two_rates(params, lr):
        "The layers over time learn ten times as fast as those of the image model."
        params = list(params)
        return opt([dict(params=[p for p in params if (id(p) in new)==k]) for k in (True,False)], lr=lr)
    task,rate = CondCB(VideoCB(sigma_data, .7, 1., p=.95, most=2), 0.),BatchSchedCB(partial(OneCycle, max_lr=[5e-3,5e-4], pct_start=.1))
    losses,minutes = train(args, 'motion', net.to(memory_format=torch.channels_last), data, video_loss, 5e-3, [task, AutocastCB(n_inp=3), rate, ema], two_rates,
                           args.motion_epochs, 16 if not args.few else 8, 0, clips_or_frames(data, few, .3))
    made = info(args)
    runs = runs+[dict(command=made['command'], batches=len(losses), curve=curve(losses, 16))]
    save_weights(ema.model, args.folder/'video.safetensors', bits=8, config={}, sigma_data=sigma_data, images=images, batches=batches+len(losses),
                 minutes=round(before+minutes, 1), runs=runs, **about, **made)

if __name__=='__main__': main()
