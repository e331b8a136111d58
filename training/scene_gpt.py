"The transformer of lesson 37 that draws scenes from captions: 64 codes of `scene_codes`, one after the other, after the words."
import torch
from functools import partial
from torch.optim import AdamW
from common import arguments,curve,info,in_parts,little,train
from miniai.autoregressive import ImageGPT,load_vq_codec,next_token_loss
from miniai.data import SEEN,caption,random_scenes
from miniai.ddpm import EMACB,save_weights
from miniai.latents import load_text
from miniai.optim import BatchSchedCB,OneCycle
from miniai.resnet import AutocastCB
from scenes import draw,to_float

def main():
    args = arguments('scene_gpt', n_scenes=16_000, epochs=3, more=3)
    bs,lr,each,codec,tok = 8 if args.few else 32,3e-3,64 if args.few else 2000,load_vq_codec(),load_text()[0]
    def part(i): return (codec.to_tokens(to_float(draw(random_scenes(each, 500+i, SEEN), 500+i))[0]),)
    n = little(args, args.n_scenes)//each
    tokens, = in_parts(args, 'few' if args.few else 'tokens', n, part)
    scenes = [s for i in range(n) for s in random_scenes(each, 500+i, SEEN)]
    words,nothing = tok([caption(s) for s in scenes]),len(tok)
    config = dict(n_tokens=len(codec.quantizer.codes), length=64, n_cond=len(tok)+1, cond_length=tok.n_ctx, n=72, n_heads=3, depth=3)
    torch.manual_seed(0)
    net,ema = ImageGPT(**config),EMACB(.998)
    def batch(t, w): return t,torch.where(torch.rand(len(w), 1)<.1, nothing, w),t     # no words in one of ten
    def stage(name, epochs, seed):
        cbs = [AutocastCB(n_inp=2), BatchSchedCB(partial(OneCycle, max_lr=lr, pct_start=.1)), ema]
        return train(args, name, net, (tokens, words), next_token_loss, lr, cbs, partial(AdamW, weight_decay=.05), epochs, bs, seed, batch)
    parts = [stage('all', args.epochs, 0), *(stage(f'more{i}', 1, i+1) for i in range(args.more))]
    losses,minutes = torch.cat([o[0] for o in parts]),round(sum(o[1] for o in parts), 1)
    save_weights(ema.model, args.folder/'scene_gpt.safetensors', bits=8, config=config, merges=[list(o) for o in tok.merges], notebook='37_autoregressive',
                 data=f'{len(tokens):,} drawn scenes of 64 pixels as codes of scene_codes, seen pairs only', seed=0, images=len(losses)*bs,
                 minutes=minutes, curve=curve(losses, bs), **info(args))

if __name__=='__main__': main()
