"The codec of lesson 37 that turns scenes of 64 pixels into 64 tokens of a learned codebook, and back."
import torch
from functools import partial
from torch import nn
from torch.optim import AdamW
from common import arguments,curve,info,in_parts,little,train
from miniai.autoregressive import VQCodec
from miniai.data import SEEN,UNSEEN,random_scenes
from miniai.ddpm import save_weights
from miniai.latents import load_reader
from miniai.learner import Callback
from miniai.optim import BatchSchedCB,OneCycle
from miniai.resnet import AutocastCB
from miniai.vae import codec_error
from scenes import draw,to_float

class Plain(nn.Module):
    "The codec without its codebook."
    def __init__(self, codec):
        super().__init__()
        self.codec = codec
    def forward(self, x): return self.codec.decode(self.codec.encode(x).mean)

class RestartCB(Callback):
    "Every `every` batches, codes that nobody used become vectors of the encoder."
    def __init__(self, every=100): self.every,self.n = every,0
    def after_batch(self, learn):
        self.n += 1
        if self.n%self.every==0:
            with torch.no_grad(): z = learn.model.encode(learn.batch[0]).mean.float()
            learn.model.quantizer.restart(z)
    def state_dict(self): return dict(n=self.n)
    def load_state_dict(self, state): self.n = state['n']

def batch(x):
    x = to_float(x)[0].contiguous(memory_format=torch.channels_last)
    return x,x

def error(preds, x): return codec_error(preds, x, .1)
def vq_error(preds, x): return codec_error(preds[0], x, .1)+preds[1]

def main():
    args = arguments('scene_codes', n_scenes=16_000, first=1, epochs=1, last=9_600)
    bs,lr,n = 8 if args.few else 32,3e-3,little(args, args.n_scenes)
    def part(i): return (draw(random_scenes(n//8, 500+i, SEEN), 500+i),)
    x, = in_parts(args, 'few' if args.few else 'scenes', 8, part)
    torch.manual_seed(0)
    config = dict(k=512, nz=8, nfs=[32,48], patch=4)
    codec = VQCodec(**config).to(memory_format=torch.channels_last)
    def cbs(*more): return [AutocastCB(), BatchSchedCB(partial(OneCycle, max_lr=lr, pct_start=.1)), *more]
    a,minutes_a = train(args, 'plain', Plain(codec), (x,), error, lr, cbs(), AdamW, args.first, bs, 0, batch)
    codec.start(batch(x[:little(args, 1000)])[0], generator=torch.Generator().manual_seed(0))
    b,minutes_b = train(args, 'codes', codec, (x,), vq_error, lr, cbs(RestartCB()), AdamW, args.epochs, bs, 0, batch)
    c,minutes_c = train(args, 'last', codec, (x[-little(args, args.last):],), vq_error, lr, cbs(RestartCB()), AdamW, 1, bs, 1, batch)
    codec.cpu().eval()
    n = little(args, 500)
    scenes = random_scenes(n, 41, UNSEEN)
    x = batch(draw(scenes, 41))[0]
    ids = codec.to_tokens(x)
    y = codec.from_tokens(ids)
    score,mse = load_reader().score(y, scenes),(x-y).square().mean().item()/4
    used = ids.unique().numel()
    save_weights(codec, args.folder/'scene_codes.safetensors', bits=8, config=config, notebook='37_autoregressive',
                 data=f'{little(args, args.n_scenes):,} drawn scenes of 64 pixels, seen pairs only', seed=0, images=(len(a)+len(b)+len(c))*bs, minutes=round(minutes_a+minutes_b+minutes_c, 1),
                 metrics=dict(attributes_right=score.attributes, whole_right=score.whole, mse=mse, codes_used=used, of=f'{n:,} scenes of unseen pairs'),
                 curve=curve(torch.cat([a, b, c]), bs), **info(args))

if __name__=='__main__': main()
