"""Does the stored transformer of lesson 30 draw what it is asked for? Three sets of emoji, judged by EfficientNet-Lite0 (ImageNet; its package must be there) and by the
`EmojiJudge`; writes results/emoji.md.

`python emoji.py --seeds 3 --n 192 --steps 20 --guidance 3` sets the number of sets, the emoji of each kind in a set, the steps and the guidance scale.
`python emoji.py --settings --n 128` asks instead what the guidance scale and the number of steps change: the same seen emoji from the same noise each
time, judged by the `EmojiJudge`; it writes results/emoji.jsonl, one line per setting, and goes on from there where it was stopped."""
import argparse,json,os,random,re,statistics
import torch
from miniai.ddpm import load_weights
from miniai.emoji import load_emoji,on_background
from miniai.flow import STYLE_WORDS,EmojiDiffusion,split_emoji
from miniai.judges import copies,judge_features,load_efficientnet,load_emoji_judge,pixel_vectors,retrieval,same_pictures
from common import RESULTS,write

# Words that stand in no caption of the training, and the name of the emoji that is meant
SYNONYMS = dict(hound='dog', canine='dog', hog='pig', swine='pig', hare='rabbit', cockerel='rooster', pushbike='bicycle', sofa='couch and lamp', settee='couch and lamp',
                cellphone='mobile phone', spud='potato', brinjal='eggplant', spectacles='glasses', brolly='umbrella', parasol='umbrella', timepiece='watch', dwelling='house',
                cottage='house', residence='house', cathedral='church', lager='beer mug', daisy='blossom', fiddle='violin', cranium='skull', spectre='ghost', phantom='ghost',
                android='robot', automaton='robot', meteor='comet', blaze='fire', bonfire='fire', teardrop='droplet', sweetie='candy', biscuit='cookie', noodles='spaghetti',
                crayfish='lobster', alligator='crocodile', caterpillar='bug', rodent='mouse', bovine='ox', cattle='cow', hen='chicken', padlock='locked', novel='open book',
                trainers='running shoe')


def contrast(x):
    "Mean difference of neighbouring pixels, images (n,3,h,w): grain and frayed edges make it larger."
    return ((x.diff(dim=2).abs().mean()+x.diff(dim=3).abs().mean())/2).item()


def settings(artist, emoji, real, train, n, done=(), guidances=(1.5,2.,3.,4.), steps=(4,8,16,32)):
    "Guidance scales at 16 steps, and numbers of steps at a scale of 3: one dict for each pair that is not `done`."
    judge,rows = load_emoji_judge(),random.Random(1).sample(train, n)
    prompts,feats = [f'{emoji.names[i]}, {STYLE_WORDS[emoji.styles[i]]}' for i in rows],judge_features(judge, real)
    known = {s: [i for i,o in enumerate(emoji.styles) if o==s] for s in sorted(set(emoji.styles))}
    twins,smooth = {s: same_pictures(real[of]) for s,of in known.items()},contrast(real[rows])
    for guidance,k in dict.fromkeys([*((o, 16) for o in guidances), *((3., o) for o in steps)]):
        if (guidance,k) in done: continue
        x = artist(prompts, steps=k, guidance=guidance, seed=1000).float()/127.5-1
        made,ranks = judge_features(judge, x),[]
        for s,of in known.items():
            at = [j for j,i in enumerate(rows) if emoji.styles[i]==s]
            ranks += retrieval(made[at], [emoji.names[rows[j]] for j in at], feats[of], [emoji.names[i] for i in of], twins[s]).ranks.tolist()
        right = sum(a==emoji.styles[i] for a,i in zip(judge.styles(x), rows))/n
        yield dict(guidance=guidance, steps=k, images=n, **{f'top {top}': round(sum(r<=top for r in ranks)/n, 4) for top in (1, 5)},
                   style=round(right, 4), contrast=round(contrast(x)/smooth, 4))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name,v in dict(seeds=3, n=192, steps=20, guidance=3., size=128).items(): p.add_argument(f'--{name}', type=type(v), default=v)
    p.add_argument('--settings', action='store_true', help='compare guidance scales and numbers of steps')
    args = p.parse_args()
    args.weights = load_weights('emoji_flow')[1]['sha256'][:8]
    torch.set_num_threads(1)
    emoji,artist = load_emoji(),EmojiDiffusion.load()
    if emoji.source!='folder': raise SystemExit('emoji: expected the emoji in MINIAI_DATA')
    split,real = split_emoji(emoji),on_background(emoji.x).float()/127.5-1
    if args.settings:
        path,temp = RESULTS/'emoji.jsonl',RESULTS/'emoji.tmp'
        rows = [json.loads(o) for o in path.read_text().splitlines()] if path.exists() else []
        rows = [o for o in rows if o['weights']==args.weights and o['images']==args.n]
        for o in settings(artist, emoji, real, split.train, args.n, {(o['guidance'],o['steps']) for o in rows}):
            rows.append(dict(weights=args.weights, **o))
            temp.write_text(''.join(json.dumps(o)+'\n' for o in rows))
            os.replace(temp, path)
            print(o, flush=True)
        return
    judges = {'EfficientNet-Lite0': (load_efficientnet(), args.size), 'EmojiJudge': (load_emoji_judge(), None)}
    feats = {k: judge_features(net, real, size) for k,(net,size) in judges.items()}
    by_style = {s: [i for i,o in enumerate(emoji.styles) if o==s] for s in sorted(set(emoji.styles))}
    twins = {s: same_pictures(real[rows]) for s,rows in by_style.items()}
    learned = pixel_vectors(real[list(split.train)])

    def judged(x, rows, seed):
        "Top 1, top 5 and style of images, drawn for `rows`."
        res = {}
        for k,(net,size) in judges.items():
            made,ranks = judge_features(net, x, size),[]
            for s,all_rows in by_style.items():
                of = [j for j,i in enumerate(rows) if emoji.styles[i]==s]
                if of: ranks += retrieval(made[of], [emoji.names[rows[j]] for j in of], feats[k][all_rows], [emoji.names[i] for i in all_rows], twins[s]).ranks.tolist()
            res[k] = [sum(r<=top for r in ranks)/len(ranks) for top in (1, 5)]
        styles = judges['EmojiJudge'][0].styles(x)
        right = sum(a==emoji.styles[i] for a,i in zip(styles, rows))/len(rows)
        near = copies(pixel_vectors(x), learned)
        return [*res['EfficientNet-Lite0'], *res['EmojiJudge'], right, near.fraction()]

    heard = set(re.findall('[a-z]+', ' '.join(f"{emoji.names[i]} {' '.join(emoji.tags[i])}" for i in split.train).lower()))
    if heard&set(SYNONYMS): raise SystemExit(f'SYNONYMS: these occur in captions: {sorted(heard&set(SYNONYMS))}')
    meant = [(word, rows) for word,name in SYNONYMS.items() if (rows := [i for i in split.train if emoji.names[i]==name])]
    found,unheard = {},'seen, by a word in no caption'
    for seed in range(1, args.seeds+1):
        rng = random.Random(seed)
        kinds = {'seen': rng.sample(split.train, args.n), 'pair of name and style held out': rng.sample(split.pairs, min(args.n, len(split.pairs))),
                 'colour of a shape held out': list(split.colours), unheard: [rng.choice(rows) for _,rows in meant]}
        for kind,rows in kinds.items():
            words = [word for word,_ in meant] if kind==unheard else [emoji.names[i] for i in rows]
            x = artist([f'{word}, {STYLE_WORDS[emoji.styles[i]]}' for word,i in zip(words, rows)], steps=args.steps, guidance=args.guidance, seed=1000*seed).float()/127.5-1
            found.setdefault(kind, []).append(judged(x, rows, seed))
            print(seed, kind, [round(o, 3) for o in found[kind][-1]], flush=True)
        if seed==1:
            rows,other = kinds['seen'],{(n,s): i for i,(n,s) in enumerate(zip(emoji.names, emoji.styles))}
            decoded = artist.codec.to_pictures(artist.codec.to_latents(real[rows]))
            found['(real emoji through the codec)'] = [judged(decoded, rows, seed)]
            turn = dict(noto='twemoji', twemoji='fluent', fluent='noto')
            pairs = [(i, other[k]) for i in rows if (k := (emoji.names[i],turn[emoji.styles[i]])) in other]
            found['(the same name in another style)'] = [judged(real[[b for _,b in pairs]], [a for a,_ in pairs], seed)]
    heads = ('EfficientNet top 1','top 5','EmojiJudge top 1','top 5 ','right style','copies')
    def said(v): return f'{statistics.mean(v):.3f}'+(f' ± {statistics.stdev(v):.3f}' if len(v)>1 else '')
    rows = [{'asked for': kind, **{h: said([o[j] for o in v]) for j,h in enumerate(heads)}} for kind,v in found.items()]
    write('emoji', rows, 'Emoji from words: how often is it what was asked for?', ('torch',), [
        f'{args.n} prompts of each kind ("NAME, STYLE"; of the colours all {len(split.colours)}, of words in no caption {len(meant)}, such as "hound" for a dog) in each of {args.seeds} sets, mean and standard deviation; {args.steps} steps of '
        f'DPM-Solver++(2M), guidance {args.guidance:g}. An image is right if the nearest real emoji of that style has the right name or is the same picture; EfficientNet at '
        f'{args.size} pixels. A copy is nearer to one training image than 0.3 times the mean distance to the next 50.'])


if __name__=='__main__': main()
