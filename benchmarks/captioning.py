"""Three decoders on the same frozen image encoder, three seeds each; the last of them also with positions, and from nothing, its encoder too.

Run: `python benchmarks/captioning.py`. Each run adds a line to `benchmarks/results/captioning.jsonl`; runs that are there already are left
out, so that it can be stopped and started again. A run takes up to a minute of one core. Lesson 39 shows the results.

`python benchmarks/captioning.py --length` asks instead what the length penalty does to a transformer that has read whole captions and shortened ones;
it writes `benchmarks/results/captioning_length.jsonl`, one line for each penalty."""
import argparse,json,time
from pathlib import Path
import torch
import torch.nn.functional as F
from torch import nn
from miniai.attention import attention,grid_positions
from miniai.captioning import (Captioner,FeatureMap,beam_search,bleu,cached_scores,caption_score,greedy_search,next_scores,parse_caption,
                               references)
from miniai.clip import load_clip
from miniai.data import COLOURS,SEEN,draw_scenes,drop_words,random_scenes
from miniai.latents import scene_targets
from miniai.resnet import autocast

out = Path(__file__).parent/'results/captioning.jsonl'
n_train,n_batches,bs = 3000,400,64


class OneVector(nn.Module):
    "A recurrent decoder that begins with the mean of all places."
    def __init__(self, image, n_vocab, n=96):
        super().__init__()
        self.image,self.into = image,nn.Sequential(nn.Linear(160, n), nn.LayerNorm(n))
        self.tokens,self.gru,self.out = nn.Embedding(n_vocab, n),nn.GRU(n, n, batch_first=True),nn.Linear(n, n_vocab)
        nn.init.normal_(self.tokens.weight, std=.1)
    def encode(self, x): return self.into(self.image(x))
    def decode(self, ids, places): return self.out(self.gru(self.tokens(ids), places.mean(1)[None])[0])


class Looking(OneVector):
    "A recurrent decoder whose state asks all places before each word."
    def __init__(self, image, n_vocab, n=96):
        super().__init__(image, n_vocab, n)
        self.query,self.out = nn.Linear(n, n),nn.Linear(2*n, n_vocab)
    def decode(self, ids, places):
        h = self.gru(self.tokens(ids), places.mean(1)[None])[0]
        return self.out(torch.cat([h, attention(self.query(h), places, places)], -1))


def transformer(image, n_vocab):
    net = Captioner(n_vocab)
    net.image = image
    return net


class Marked(Captioner):
    "A `Captioner` whose places have positions."
    def decode(self, ids, places): return super().decode(ids, places+.5*grid_positions(8, 8, places.shape[2]))


def marked(image, n_vocab):
    net = Marked(n_vocab)
    net.image = image
    return net


def floats(x): return x.float()/127.5-1


def rows(n, seed, tok):
    scenes = random_scenes(n, seed, SEEN)
    told = [references(s) for s in scenes]
    ids = torch.stack([tok([t[j] for t in told])[:,:18] for j in (0,-1)], 1)
    return scenes,floats(draw_scenes(scenes, 64, seed)),ids


def goes_on(net, tok, scenes, x, wrong):
    "As in lesson 39: fraction of captions right in all words but the third, which is forced."
    two = [i for i,s in enumerate(scenes) if len(s.things)==2]
    forced,right = [],0
    for i in two:
        w = references(scenes[i])[0].split()
        other = next(c for c in COLOURS if c not in {t.colour for t in scenes[i].things})
        forced.append(f"a {w[1]} {other if wrong else w[2]}")
    ids = greedy_search(next_scores(net, x[two]), tok(forced)[:,:4], tok.end)
    for i,o in zip(two, ids):
        drop = [t.split()[:2]+t.split()[3:] for t in (tok.decode(o), *references(scenes[i]))]
        right += drop[0] in drop[1:]
    return right/len(two)


def fit(make, lr, seed, frozen, tok, clip, data):
    "Train one decoder: `(net, number of parameters, mean loss of the last 20 batches, seconds)`."
    torch.manual_seed(seed)
    image = FeatureMap()
    if frozen: image.copy_from(clip.image).eval().requires_grad_(False)
    net = make(image.to(memory_format=torch.channels_last), len(tok))
    _,x,ids = data
    if frozen:
        with torch.no_grad(),autocast('cpu'): x = torch.cat([image(o) for o in x.split(250)]).float()
    gen,start,losses = torch.Generator().manual_seed(seed),time.process_time(),[]
    params = [p for p in net.parameters() if p.requires_grad]
    opt = torch.optim.AdamW(params, lr)
    sched = torch.optim.lr_scheduler.OneCycleLR(opt, lr, n_batches)
    for _ in range(n_batches):
        i,j = torch.randint(n_train, (bs,), generator=gen),torch.randint(ids.shape[1], (bs,), generator=gen)
        y = ids[i,j]
        with autocast('cpu'): scores = net.decode(y[:,:-1], net.into(x[i] if frozen else image(x[i])))
        loss = F.cross_entropy(scores.float().flatten(0, 1), y[:,1:].masked_fill(y[:,:-1]==tok.end, -100).flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.)
        opt.step()
        sched.step()
        opt.zero_grad()
        losses.append(loss.item())
    return net.eval(),sum(p.numel() for p in params),sum(losses[-20:])/20,round(time.process_time()-start)


def run(make, lr, seed, frozen, tok, clip, data, test):
    "Train one decoder and measure it."
    net,n_params,loss,seconds = fit(make, lr, seed, frozen, tok, clip, data)
    scenes,x,_ = test
    with torch.no_grad():
        texts = [tok.decode(o) for o in greedy_search(next_scores(net, x), torch.full((len(x), 1), tok.start), tok.end)]
        right,wrong = (goes_on(net, tok, scenes, x, o) for o in (False, True))
    def exact(n): return caption_score(*zip(*[(t, s) for t,s in zip(texts, scenes) if len(s.things)==n])).exact
    score = caption_score(texts, scenes)
    return dict(parameters=n_params, loss=loss, one=exact(1), two=exact(2), exact=score.exact,
                attributes=score.attributes, right_words=right, wrong_colour=wrong, seconds=seconds)


def nothing_false(text, scene):
    "Is all true that a caption says?"
    read = parse_caption(text)
    if read is None: return False
    got,want = scene_targets([read, scene])[:,:8]
    return len(read.things)==len(scene.things) and bool(((got==want)|(got<0)).all())


@torch.no_grad()
def lengths(tok, clip, data, test, penalties=(-2.,-1.,-.5,0.,.5,1.,2.,4.), n_beams=4, seed=0):
    "One line for each length penalty, of a transformer to which half of the captions came with words left out."
    scenes,x,ids = data
    fewer = [references(s) for s in drop_words(scenes, .5, 39)]
    ids = torch.cat([ids, torch.stack([tok([t[j] for t in fewer])[:,:18] for j in (0,-1)], 1)], 1)
    with torch.enable_grad(): net,_,loss,_ = fit(transformer, 3e-3, seed, True, tok, clip, (scenes, x, ids))
    scenes,x,_ = test
    told,scores,start = [references(s) for s in scenes],cached_scores(net, x),torch.full((len(x), 1), tok.start)
    for a in penalties:
        texts = [tok.decode(o[0]) for o in beam_search(scores, start, tok.end, n_beams=n_beams, length_penalty=a)[0]]
        score = caption_score(texts, scenes)
        yield dict(penalty=a, beams=n_beams, words=sum(len(t.split()) for t in texts)/len(texts), exact=score.exact, attributes=score.attributes,
                   nothing_false=sum(map(nothing_false, texts, scenes))/len(texts), bleu=bleu(texts, told), loss=loss, seed=seed)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--length', action='store_true', help='measure the length penalty')
    args = p.parse_args()
    torch.set_num_threads(1)
    clip,tok = load_clip()
    data,test = rows(n_train, 39, tok),rows(200, 391, tok)
    if args.length:
        lines = [json.dumps({k: round(v, 4) for k,v in o.items()}) for o in lengths(tok, clip, data, test)]
        out.with_name('captioning_length.jsonl').write_text('\n'.join(lines)+'\n')
        return print(*lines, sep='\n')
    done = [json.loads(o) for o in out.read_text().splitlines()] if out.exists() else []
    kinds = dict(zip(('one vector', 'looks', 'transformer', 'transformer, places marked', 'transformer, from nothing'),
                     ((OneVector, 5e-3, True), (Looking, 5e-3, True), (transformer, 3e-3, True), (marked, 3e-3, True), (transformer, 3e-3, False))))
    for kind in ([k for k in kinds if 'nothing' not in k], ['transformer, from nothing']):
        for seed,name in ((i, k) for i in range(3) for k in kind):
            make,lr,frozen = kinds[name]
            if any((o['decoder'],o['seed'])==(name,seed) for o in done): continue
            res = {k: round(v, 4) if isinstance(v, float) else v for k,v in run(make, lr, seed, frozen, tok, clip, data, test).items()}
            line = json.dumps(dict(decoder=name, seed=seed, images=n_train, batches=n_batches, **res))
            with out.open('a') as f: f.write(line+'\n')
            print(line, flush=True)


if __name__=='__main__': main()
