"""What a step of a sampler costs beyond the network: ours beside diffusers' schedulers, the same shapes, levels and numbers of steps."""
import statistics,time,warnings
from functools import partial
import torch
from miniai.ddpm import EpsDenoiser
from miniai.karras import karras_sigmas,sample_dpmpp_2m,sample_euler,sample_euler_ancestral,sample_heun,sample_lms
from common import write

rounds = 31
shapes = (1,4,64,64),(64,1,28,28),(16,4,64,64)       # a latent of Stable Diffusion, a batch of Fashion-MNIST, a batch of latents


def peers():
    "diffusers' scheduler of each sampler."
    from diffusers import DPMSolverMultistepScheduler,EulerAncestralDiscreteScheduler,EulerDiscreteScheduler,HeunDiscreteScheduler,LMSDiscreteScheduler
    return {'Euler': (sample_euler, EulerDiscreteScheduler), 'ancestral Euler': (sample_euler_ancestral, EulerAncestralDiscreteScheduler),
            'Heun': (sample_heun, HeunDiscreteScheduler), 'LMS': (sample_lms, LMSDiscreteScheduler), 'DPM-Solver++(2M)': (sample_dpmpp_2m, DPMSolverMultistepScheduler)}


def ours(sampler, net, x, sigmas):
    "Seconds of a trajectory, and the pictures."
    denoise = EpsDenoiser(net)
    kw = dict(generator=torch.Generator().manual_seed(1)) if sampler is sample_euler_ancestral else {}
    start = time.process_time()
    res = sampler(denoise, x, sigmas, **kw)
    return time.process_time()-start,res


@torch.no_grad()
def theirs(cls, net, x, sigmas):
    "The same with a scheduler of diffusers; it gets its levels before the clock starts."
    sched,levels = cls(),sigmas.float()
    sched.set_timesteps(len(sigmas)-1)
    sched.sigmas = levels if cls.__name__!='HeunDiscreteScheduler' else torch.cat([levels[:1], levels[1:-1].repeat_interleave(2), levels[-1:]])
    sched.set_begin_index(0)
    kw = dict(generator=torch.Generator().manual_seed(1)) if cls.__name__=='EulerAncestralDiscreteScheduler' else {}
    if cls.__name__=='DPMSolverMultistepScheduler': x = x/(1+levels[0]**2).sqrt()
    start = time.process_time()
    for t in sched.timesteps: x = sched.step(net(sched.scale_model_input(x, t), t), t, x, **kw).prev_sample
    return time.process_time()-start,x


def measure(sampler, cls, shape, n):
    "Rows of `rounds` trajectories of each, in turn: milliseconds a step and the ratio of the two."
    torch.manual_seed(0)
    eps = torch.randn(shape)                         # the network's answer, always the same: costs nothing
    net,sigmas = lambda x, c: eps,karras_sigmas(n, .03, 15.)
    x = torch.randn(shape)*sigmas[0]
    secs = []
    for r in range(rounds+1):
        fs = [partial(ours, sampler), partial(theirs, cls)]
        found = [f(net, x, sigmas) for f in (fs if r%2 else fs[::-1])][::1 if r%2 else -1]
        (a,ra),(b,rb) = found
        assert (ra-rb).norm()<1e-4*rb.norm(), 'the two disagree'
        if r: secs.append((a, b))                    # the first round warms up
    return [statistics.median(o)*1e3/n for o in zip(*secs)],statistics.median(a/b for a,b in secs)


def main():
    warnings.filterwarnings('ignore')
    torch.set_num_threads(1)                         # steadier than two on a shared machine
    rows = []
    for name,(sampler,cls) in peers().items():
        for shape in shapes:
            for n in (10, 50):
                (a,b),ratio = measure(sampler, cls, shape, n)
                rows.append({'sampler': name, 'shape': 'x'.join(map(str, shape)), 'steps': n, 'miniai, ms a step': f'{a:.3f}', 'diffusers, ms a step': f'{b:.3f}',
                             'ours/theirs': f'{ratio:.2f}'})
    write('sampling', rows, "What a sampler's step costs beyond the network", ('torch','diffusers'), (
        f'One thread, float32, seconds of the processor; medians of {rounds} trajectories each, the two in turn and each first in every second round; the ratio is the median of the rounds\' ratios. '
        'The network gives the same stored noise at each call. Counted is all between two calls: the scaling of its input, the way from its answer to the denoised picture, and the step; '
        "diffusers' noise levels are set before the clock starts. A step of Heun has two calls. In each round the pictures of both agree to 1e-4.",
        "diffusers' LMS integrates its weights with scipy at each step; ours are a handful of products."))


if __name__=='__main__': main()
