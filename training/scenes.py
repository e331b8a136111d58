"Scenes and captions for the nets of words: twins that differ in one word or in the order, and CLIP's training on them."
import copy,torch
from functools import partial
from torch.optim import AdamW
from common import little,train
from miniai.clip import Tokenizer,clip_loss,small_clip
from miniai.data import BACKGROUNDS,COLOURS,SEEN,SHAPES,SIZES,caption,draw_scenes,drop_words,random_scenes
from miniai.init import Normalize
from miniai.optim import BatchSchedCB,OneCycle
from miniai.resnet import AutocastCB

to_float = Normalize(127.5, 127.5)
opposite = {'left of': 'right of', 'right of': 'left of', 'above': 'below', 'below': 'above'}

def twin(
    scene, # `Scene`
    gen, # `torch.Generator`
): # `Scene` of seen pairs that differs from it in one word, or in the order
    "The same scene with the things exchanged, their colours exchanged, or one size, colour, shape, background or relation replaced."
    def pick(options): return list(options)[torch.randint(len(options), (), generator=gen)]
    while True:
        kind,i = pick(('order','colours','relation','background','size','colour','shape')),pick(range(len(scene.things)))
        things,a = list(scene.things),scene.things[i]
        new = scene
        if kind=='background': new = scene._replace(background=pick(BACKGROUNDS))
        elif kind in ('size','colour','shape'):
            things[i] = a._replace(**{kind: pick(dict(size=SIZES, colour=COLOURS, shape=SHAPES)[kind])})
            new = scene._replace(things=tuple(things))
        elif len(things)==2 and kind=='order': new = scene._replace(things=tuple(things[::-1]))
        elif len(things)==2 and kind=='relation': new = scene._replace(relation=opposite[scene.relation])
        elif len(things)==2:
            b,c = (o._replace(colour=p.colour) for o,p in zip(things, things[::-1]))
            new = scene._replace(things=(b, c))
        if new!=scene and all((t.colour,t.shape) in SEEN for t in new.things): return new

def draw(scenes, seed, size=64): # Scenes in bytes, a thousand at a time
    return torch.cat([draw_scenes(scenes[i:i+1000], size, seed+i) for i in range(0, len(scenes), 1000)])

def make_tokenizer(n=4000): # The vocabulary of the captions, "an orange ring" among them: 605 ids
    return Tokenizer.train([caption(s) for s in drop_words(random_scenes(n, 0, SEEN), .3)], 400)

def with_words(
    tok, # `Tokenizer`
    words, # str, each to be one id
): # `Tokenizer` with the same ids for all pieces of `tok`, marks apart, and more joins
    "The same vocabulary and more words."
    for w in words:
        while len(ids := tok.encode(w))>1: tok = Tokenizer([*tok.merges, tuple(tok.pieces[i] for i in ids[:2])], tok.n_ctx, tok.marks)
    return tok

def grow(
    text, # `TextTransformer`
    old,new, # Its `Tokenizer`, and the one of `with_words`
): # `TextTransformer` with a row for each id of `new`; those of new words are random
    "The text encoder for a larger vocabulary."
    made = copy.deepcopy(text)
    made.tokens = torch.nn.Embedding(len(new), text.tokens.embedding_dim)
    with torch.no_grad():
        made.tokens.weight.normal_(std=text.tokens.weight.std().item())
        made.tokens.weight[:old.start],made.tokens.weight[new.start:] = text.tokens.weight[:old.start],text.tokens.weight[old.start:]
    return made

def clip_rows(
    n, # Rows, of two pictures each
    tok, # `Tokenizer`
    seed, # Of the scenes
    twins=True, # Shall half of the rows hold twins? If not, all hold two scenes that have nothing to do with each other
): # `(x, ids)`: uint8 (n,2,3,64,64), int64 (n,2,l)
    "Scenes with their captions, in half of which words are left out; twins are spoken in full."
    gen = torch.Generator().manual_seed(seed)
    a,b = random_scenes(n, seed, SEEN),random_scenes(n, seed+1, SEEN)
    if twins: b[:n//2] = [twin(s, gen) for s in a[:n//2]]
    k = n//2 if twins else 0
    spoken = [o[:k]+drop_words(o[k:], .4, seed+i)[:(n-k)//2]+o[k+(n-k)//2:] for i,o in enumerate((a, b))]
    ids = torch.stack([tok([caption(s) for s in o]) for o in spoken], 1)
    return torch.stack([draw(a, seed), draw(b, seed+n)], 1),ids

def batch(x, ids): return *to_float(x.flatten(0, 1)),ids.flatten(0, 1)

def train_clip(
    args, # As `common.train` takes them, with `clip_rows` and `clip_epochs`
    stage, # Its name
    tok, # `Tokenizer`
    twins, # As in `clip_rows`
    seed=0, # Of everything
): # `(clip, config, losses, minutes)`
    "A CLIP of drawn scenes."
    torch.manual_seed(seed)
    config,lr = dict(n_vocab=len(tok), nfs=[16,32,64,96]),2e-3
    clip,n = small_clip(**config),little(args, args.clip_rows)
    cbs = [AutocastCB(n_inp=2), BatchSchedCB(partial(OneCycle, max_lr=lr))]
    losses,minutes = train(args, stage, clip, clip_rows(n, tok, seed, twins), lambda preds: clip_loss(*preds), lr, cbs, AdamW,
                           args.clip_epochs, 8 if args.few else 128, seed, batch)
    return clip.cpu().eval(),config,losses,minutes
