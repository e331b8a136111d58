"""Quality and variety of garments in few steps: precision and recall (lesson 17) of the teacher and of the student of lesson 31, by the features of
lesson 17's net; writes results/few.jsonl, one line per net and number of network evaluations.

`python few.py --n 1024` draws so many images each and compares them with as many real ones."""
import argparse,json,os
import torch
from miniai.ddpm import generate
from miniai.distill import load_few
from miniai.fid import load_feature_net,precision_recall
from miniai.karras import karras_sigmas,sample_dpmpp_2m,sample_euler
from miniai.unet import load_unet
from common import RESULTS


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--n', type=int, default=1024, help='images of each kind')
    n = p.parse_args().n
    net,teacher,(student,levels) = load_feature_net(),load_unet(),load_few('fashion_few')
    if not 3<n<=len(net.ref_feats): p.error(f'--n: expected 4 to {len(net.ref_feats)}, got {n}')
    kinds = [('teacher', k, teacher, karras_sigmas(k, .02, 80.), sample_dpmpp_2m) for k in (1, 2, 4, 10)]
    kinds += [('student', k, student, levels[k], sample_euler) for k in (1, 2, 4)]
    rows,real = [],net.ref_feats[:n]
    for name,k,denoise,sigmas,sampler in kinds:
        with torch.autocast('cpu', torch.bfloat16): x = generate(denoise, sigmas, n, sampler, seed=9000)
        precision,recall = precision_recall(net.features(x), real)
        rows.append(dict(net=name, evaluations=k, images=n, precision=round(precision, 4), recall=round(recall, 4)))
        print(rows[-1], flush=True)
    temp = RESULTS/'few.tmp'
    temp.write_text(''.join(json.dumps(o)+'\n' for o in rows))
    os.replace(temp, RESULTS/'few.jsonl')


if __name__=='__main__': main()
