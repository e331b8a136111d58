"""From an image to a prompt and back: lists of phrases, the captioner, and both, judged by what lesson 28's pipeline draws from the prompts.

Run: `python benchmarks/interrogator.py --n 48`. For known and for unseen pairs of colour and shape as many scenes; each way is scored by its prompts
(exact captions, attributes) and by the images drawn from them from the same noise (lesson 27's reader). Each kind of scenes adds its lines to
`benchmarks/results/interrogator.jsonl` when it is done, and is left out where they are there already. Lesson 39 shows the results."""
import argparse,json,time
import torch
from miniai.captioning import caption_score,interrogate,load_captioner,nearest_phrases
from miniai.clip import load_clip
from miniai.data import BACKGROUNDS,COLOURS,SEEN,SHAPES,SIZES,UNSEEN,Scene,Thing,caption,draw_scenes,random_scenes
from miniai.latents import load_reader
from miniai.stable import StableDiffusion
from common import RESULTS

out = RESULTS/'interrogator.jsonl'
things = [caption(Scene((Thing(s, c, h),), '', '')) for s in SIZES for c in COLOURS for h in SHAPES]
grounds = [f'a {g} background' for g in BACKGROUNDS]


@torch.no_grad()
def in_a_list(clip, tok, x, begin, n_near=8):
    "Adds phrases behind a comma, always the one that CLIP likes best, as long as it finds the whole nearer than before."
    near,image,res = nearest_phrases(clip, tok, x, things+grounds, n_near),clip.encode_image(x),[]
    for text,left,v in zip(begin, near, image):
        best = (clip.encode_text(tok([text]))@v).item() if text else -1.
        while True:
            new = [o for o in (f'{text}, {p}' if text else p for p in left if p not in text) if len(tok.encode(o))<=tok.n_ctx-2]
            if not new: break
            found,i = (clip.encode_text(tok(new))@v).max(0)
            if found<=best: break
            text,best = new[i],found.item()
        res.append(text)
    return res


def prompts(x, scenes, captioner, tok, clip):
    "Ways to a prompt, by name."
    said = captioner.write(x, tok)
    return {'phrases': in_a_list(clip, tok, x, ['']*len(x)), 'captioner': said, 'captioner, then phrases': in_a_list(clip, tok, x, said),
            'both, one sentence': interrogate(x, captioner, tok, clip, phrases=(things, grounds)), 'the true caption': list(map(caption, scenes))}


def measure(kind, pairs, n, steps):
    "One line for each way."
    captioner,tok = load_captioner()
    clip,reader,pipe = load_clip()[0],load_reader(),StableDiffusion.load()
    scenes = random_scenes(n, 3940+len(pairs), pairs)
    x = draw_scenes(scenes, 64, 3940+len(pairs)).float()/127.5-1
    ways = prompts(x, scenes, captioner, tok, clip)
    each = list(dict.fromkeys((i, t) for v in ways.values() for i,t in enumerate(v)))       # the same words for the same image are drawn once
    drawn = dict(zip(each, pipe([t for _,t in each], steps=steps, seed=[i for i,_ in each]).float()/127.5-1))
    for k,v in ways.items():
        said,read = caption_score(v, scenes),reader.score(torch.stack([drawn[o] for o in enumerate(v)]), scenes)
        yield dict(scenes=kind, n=n, steps=steps, prompt=k, exact=said.exact, attributes=read.attributes, whole=read.whole)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--n', type=int, default=48, help='scenes of each kind')
    p.add_argument('--steps', type=int, default=16, help='of each drawing')
    args = p.parse_args()
    torch.set_num_threads(1)
    done = {(o['scenes'], o['n']) for o in map(json.loads, out.read_text().splitlines())} if out.exists() else set()
    for kind,pairs in (('seen pairs', SEEN), ('unseen pairs', UNSEEN)):
        if (kind, args.n) in done: continue
        start = time.process_time()
        lines = [json.dumps({k: round(v, 4) if isinstance(v, float) else v for k,v in o.items()}) for o in measure(kind, pairs, args.n, args.steps)]
        with out.open('a') as f: f.write('\n'.join(lines)+'\n')
        print(*lines, f'{time.process_time()-start:.0f} s of CPU time', sep='\n', flush=True)


if __name__=='__main__': main()
