"""How good each set of stored weights is, for the cards of lesson 44: the key `metrics` of the JSON beside it.

No number stands in this file. Each is read from where it was measured: a table in benchmarks/results, an output that is stored in a lesson, or what the
training script wrote. Beside the numbers stand `of`, on what they were measured, and `where`. Run: `python benchmarks/weights.py` after a training, when
its benchmark and its lesson have run again; `--check` changes nothing and fails if a JSON is behind."""
import argparse,hashlib,json,re,statistics,sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
weights = root/'miniai/weights'
number = r'(-?\d+(?:\.\d+)?)'


def info(name): return json.loads((weights/f'{name}.json').read_text(encoding='utf-8'))


def rows(name, **equal):
    "Rows of a file of results that have these values; an error if there are none."
    found = [r for r in map(json.loads, (root/f'benchmarks/results/{name}.jsonl').read_text(encoding='utf-8').splitlines()) if equal.items()<=r.items()]
    if not found: raise ValueError(f"benchmarks/results/{name}.jsonl: no row has {equal}")
    return found


def mean(found, key, digits=3): return round(statistics.mean(r[key] for r in found), digits)


def outputs(lesson, cell=None):
    "What a lesson, or one of its cells, has printed."
    cells = json.loads((root/f'nbs/{lesson}.ipynb').read_text(encoding='utf-8'))['cells']
    outs = [o for c in cells if c['cell_type']=='code' and cell in (None, c.get('id')) for o in c['outputs']]
    return '\n'.join(''.join(o.get('text') or o.get('data', {}).get('text/plain', '')) for o in outs)


def of_these(name, lesson):
    "An error unless the lesson's outputs are of today's weights: it prints how many images they have seen."
    if f"{(n := info(name)['images']):,} images" not in outputs(lesson): raise ValueError(f"nbs/{lesson}.ipynb was run with other weights than {name}'s, of {n:,} images: run it again first")


def output(lesson, pattern, cell=None):
    "The numbers of the one place in a lesson's stored outputs (or in one cell's) that fits a pattern, in which # stands for a number, a blank for any space."
    found = re.findall(re.escape(pattern).replace(r'\ ', r'\s+').replace(r'\#', number), outputs(lesson, cell))
    if len(found)!=1: raise ValueError(f"nbs/{lesson}.ipynb: expected one output like {pattern!r}, found {len(found)}")
    return [float(o) for o in (found[0] if isinstance(found[0], tuple) else found)]


def markdown(name, first):
    "The row of a table in benchmarks/results that begins with a text, as a dict."
    lines = [[o.strip() for o in l.strip('| \n').split('|')] for l in (root/f'benchmarks/results/{name}.md').read_text(encoding='utf-8').splitlines() if l.startswith('|')]
    row, = (l for l in lines if l[0]==first)
    return dict(zip(lines[0], row))


def fid(name, sampler, *calls, **rest):
    "FID by the number of network evaluations, of exactly these weights."
    sha = hashlib.sha256((weights/f'{name}.safetensors').read_bytes()).hexdigest()[:8]
    found = {f'fid_{n}_nfe': list({r['seed']: r for r in rows('fid', weights=sha, sampler=sampler, calls=n)}.values()) for n in calls}
    seeds = {len(v) for v in found.values()}                                             # of a seed that ran again the last row
    return {k: mean(v, 'fid', 2) for k,v in found.items()}|dict(
        of=f"2,048 images by {sampler}, against all 60,000 training images; mean of {' or '.join(map(str, sorted(seeds)))} seeds", where='benchmarks/results/fid.jsonl')


def detector():
    of_these('detector', '40_detection')
    r = markdown('detection', 'DETR')
    return dict(ap50=float(r['AP50']), ap50_with_nms=float(r['AP50 with NMS']), ap75_with_nms=float(r['AP75 with NMS']),
                of='1,000 fresh images of one to four shapes', where='benchmarks/results/detection.md')


def emoji_flow():
    of_these('emoji_flow', '30_flow')
    keys = {'seen': 'seen', 'pairs held out': 'pairs_held_out', 'colours held out': 'colours_held_out'}
    found = {k: output('30_flow', f'{said} {n} # #') for said,k,n in zip(keys, keys.values(), (48, 48, 21))}
    return {f'nearest_is_right_{k}': v[0] for k,v in found.items()}|{f'among_five_nearest_{k}': v[1] for k,v in found.items()}|dict(
        of='48, 48 and 21 prompts, guidance 3, 16 steps; is the nearest real emoji of that style the one asked for?', where='nbs/30_flow.ipynb')


def fashion_pixels():
    plain,guided = rows('autoregressive', what='sampling', setting='as it is'),rows('autoregressive', what='guidance', setting='scale 1.5')
    return dict(bits_per_pixel=output('37_autoregressive', 'transformer, stored #')[0], fid=mean(plain, 'FID', 2), fid_guidance_1_5=mean(guided, 'FID', 2),
                right_class_guidance_1_5=mean(guided, 'right'), of=f'test images (bits); 400 drawings of each of {len(plain)} seeds', where='nbs/37_autoregressive.ipynb, benchmarks/results/autoregressive.jsonl')


def scene_few():
    found = {k: output('31_few_steps', f'student {k} # #') for k in (4, 2, 1)}
    return {f'whole_right_{k}_nfe': v[1] for k,v in found.items()}|{f'all_attributes_right_{k}_nfe': v[0] for k,v in found.items()}|dict(
        of='160 prompts, half of them with unseen pairs', where='nbs/31_few_steps.ipynb')


def scene_gpt():
    one,best = (output('37_autoregressive', f'{k} # # # # # #') for k in ('one each', 'best of eight'))
    return dict(whole_right=one[0], attributes_right=one[1], whole_right_best_of_8=best[0], attributes_right_best_of_8=best[1],
                of='64 prompts of seen pairs, temperature 0.8, guidance 2', where='nbs/37_autoregressive.ipynb')


def scene_unet():
    kinds = {'one thing': 'one_thing', 'one thing, unseen pair': 'one_thing_unseen_pair', 'two things, relation': 'two_things', 'two things, unseen pairs': 'two_things_unseen_pairs'}
    found = {k: output('27_latent_diffusion', f'30 2 {said} # # #') for said,k in kinds.items()}
    return {f'whole_right_{k}': v[2] for k,v in found.items()}|{f'attributes_right_{k}': v[0] for k,v in found.items()}|dict(
        of='48 prompts of each kind, 30 steps, guidance 2; UNet and text encoder together', where='nbs/27_latent_diffusion.ipynb')


def segmenter():
    of_these('segmenter', '41_segmentation')
    kinds = {'drawn shapes': 'shapes', 'with emoji and photographs': 'photographs', 'scenes': 'scenes'}
    found = {k: output('41_segmentation', f'{said} # # # # # # #', '4362583b') for said,k in kinds.items()}
    return {f'iou_{n}_{k}': v[i] for i,n in ((0, '1_click'), (2, '3_clicks'), (4, 'box')) for k,v in found.items()}|dict(
        of='one object of each of 120, 200 and 100 new images; mean IoU of the mask that comes first', where='nbs/41_segmentation.ipynb')


def scene_clip():
    known,unseen = (output('26_clip', f'{k} image to caption # # 0.01', '99aeb6b4')[0] for k in ('known pairs', 'unseen pairs'))
    shape,shape_unseen = (output('26_clip', f'{k} # # #\n', '5eeac738')[1] for k in ('known pairs', 'unseen pairs'))
    return dict(recall_at_1_of_100=known, recall_at_1_of_100_unseen_pairs=unseen, shape_of_10=shape, shape_of_10_unseen_pairs=shape_unseen,
                of='groups of 100 new scenes; 300 things on their own for the shape', where='nbs/26_clip.ipynb')


def video():
    clips = rows('video', clips='scale 1.25')+rows('video', clips='scale 1.25, other seeds')
    return {k: mean(clips, k) for k in ('size', 'colour', 'shape', 'motion', 'both', 'jitter')}|dict(
        of=f'clips at guidance 1.25, mean of {len(clips)} seeds; what the reader sees, beside what was asked for', where='benchmarks/results/video.jsonl')


def video_reader():
    clips = rows('video', clips='real')
    return {k: mean(clips, k) for k in ('size', 'colour', 'shape')}|dict(of=f'new drawn clips, mean of {len(clips)} seeds', where='benchmarks/results/video.jsonl')


def statistics_of_features():
    every,some = output('17_fid', 'FID of all 10,000 test images: #, of the first 2,048: #')
    return dict(fid_of_test_images=every, fid_of_2048_test_images=some, of='real test images of Fashion-MNIST, the floor of every FID', where='nbs/17_fid.ipynb')


def kept(name, of=None):
    "What the training script has measured at its end."
    i = info(name)
    found = i.get('metrics') or {k: i[k] for k in ('accuracy',) if k in i}
    if not found or not (of or 'of' in found): raise ValueError(f"{name}: no measurement is known; add it to `measured`")
    return {k: v for k,v in found.items() if k not in ('of', 'where')}|dict(of=of or found['of'], where=i['script'])


measured = dict(
    detector=detector, emoji_codec=lambda: kept('emoji_codec', '200 emoji that were held out'), emoji_flow=emoji_flow, emoji_judge=lambda: kept('emoji_judge'),
    fashion_ddpm=lambda: fid('fashion_ddpm', 'DPM-Solver++(2M)', 10, 20, 50), fashion_features=lambda: kept('fashion_features', '10,000 test images of Fashion-MNIST'),
    fashion_features_stats=statistics_of_features, fashion_few=lambda: fid('fashion_few', 'Euler', 1, 2, 4),
    fashion_gan=lambda: kept('fashion_gan', '2,000 images of equally many classes'), fashion_pixels=fashion_pixels,
    fashion_unet=lambda: fid('fashion_unet', 'DPM-Solver++(2M)', 10, 20, 50), scene_captioner=lambda: kept('scene_captioner'), scene_clip=scene_clip,
    scene_codec=lambda: kept('scene_codec', '1,000 new scenes of seen pairs'), scene_codes=lambda: kept('scene_codes'), scene_few=scene_few, scene_gpt=scene_gpt,
    scene_reader=lambda: kept('scene_reader'), scene_text=scene_unet, scene_unet=scene_unet, segmenter=segmenter, shape_dino=lambda: kept('shape_dino'),
    video=video, video_reader=video_reader)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--check', action='store_true', help='change nothing; fail if a JSON is behind')
    args,behind = p.parse_args(),[]
    for file in sorted(weights.glob('*.json')):
        old = info(file.stem)
        try: new = old|dict(metrics=measured.get(file.stem, lambda: kept(file.stem))())
        except ValueError as e: raise SystemExit(str(e)) from None
        if new==old: continue
        behind.append(file.stem)
        if not args.check: file.write_text(json.dumps(new, indent=1)+'\n', encoding='utf-8')
        print(file.stem, new['metrics'])
    return 1 if args.check and behind else 0


if __name__=='__main__': sys.exit(main())
