"""The generator of lesson 36: a small StyleGAN with classes on Fashion-MNIST, by the relativistic loss with R1 and R2; the average of its weights is stored.

`--steps` may be raised and the script run again: it goes on from its checkpoint. `--fall` of the last steps have a falling learning rate."""
import os,time,torch
from functools import partial
from common import arguments,info,little
from miniai.data import get_data
from miniai.ddpm import save_weights
from miniai.fid import load_feature_net
from miniai.gan import GAN,Discriminator,StyleGenerator,r1_r2,relativistic
from miniai.resnet import autocast

parts = ('g','d','average','opt_g','opt_d')

def save(gan, file, **more):
    "Write a checkpoint to a temporary name, then rename it."
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({k: getattr(gan, k).state_dict() for k in parts} | dict(n=gan.n, rng=torch.get_rng_state(), **more), file.with_suffix('.tmp'))
    os.replace(file.with_suffix('.tmp'), file)

def load(gan, file):
    "Fill `gan` from a checkpoint; the rest of it is returned."
    state = torch.load(file, weights_only=True)
    for k in parts: getattr(gan, k).load_state_dict(state[k])
    gan.n = state['n']
    torch.set_rng_state(state['rng'])
    return state

def measure(net, g, n):
    "FID of `n` images and the smallest fraction of a class."
    with autocast('cpu'): x = g.draw(torch.arange(n)%10, generator=torch.Generator().manual_seed(1))
    return round(net.fid(x), 2),round(net.class_fractions(x).min().item(), 4)

def main():
    args = arguments('fashion_gan', steps=2900, fall=500)
    data,bs,lr,gamma,every = get_data('fashion_mnist'),64,1e-3,.5,8
    if args.few: args.steps,args.fall,bs = args.few,1,8
    n = little(args, len(data.x_train))
    config = dict(nz=64, nw=64, nfs=[64,32], n_classes=10)
    torch.manual_seed(0)
    gan = GAN(StyleGenerator(**config), Discriminator((32,64)), 64, relativistic, (lr,lr), penalty=partial(r1_r2, gamma=gamma), every=every, bf16=True)
    for net in (gan.g, gan.d, gan.average): net.to(memory_format=torch.channels_last)
    file,net,curve,seconds = args.work/'gan.pt',load_feature_net(),[],0.
    if file.exists() and not args.few:
        state = load(gan, file)
        curve,seconds = state['curve'],state['seconds']
        print(f'{args.name}: goes on from step {gan.n}', flush=True)
    start = time.process_time()-seconds
    while gan.n<args.steps:
        for opt in (gan.opt_g, gan.opt_d): opt.param_groups[0]['lr'] = lr*min(1., (args.steps-gan.n)/args.fall)
        i = torch.randint(n, (bs,))
        x = (data.x_train[i].float()/127.5-1).contiguous(memory_format=torch.channels_last)
        gan.step(x, data.y_train[i])
        if args.few: continue
        if gan.n%500==0:
            curve.append([bs*gan.n, *measure(net, gan.average, 1000)])
            print(f'{args.name}: step {gan.n}, {(time.process_time()-start)/60:.1f} minutes, FID and rarest class {curve[-1][1:]}', flush=True)
        if gan.n%100==0: save(gan, file, curve=curve, seconds=time.process_time()-start)
    minutes = round((time.process_time()-start)/60, 1)
    fid,least = measure(net, gan.average, 20 if args.few else 2000)
    save_weights(gan.average, args.folder/'fashion_gan.safetensors', config=config, notebook='36_gan', data=f'{data.source}: fashion_mnist', seed=0, images=bs*gan.n, minutes=minutes,
                 loss=f'relativistic, R1 and R2 with gamma {gamma} in every {every}th step', metrics=dict(fid=fid, rarest_class=least, of='images of equally many classes'),
                 curve=curve, **info(args))

if __name__=='__main__': main()
