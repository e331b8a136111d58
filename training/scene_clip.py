"The CLIP of lesson 26: half of its rows are twins, scenes that differ in one word or in the order of words."
from common import arguments,curve,info
from miniai.ddpm import save_weights
from scenes import make_tokenizer,train_clip

def main():
    args = arguments('scene_clip', clip_rows=44_256, clip_epochs=4)
    tok = make_tokenizer()
    clip,config,losses,minutes = train_clip(args, 'all', tok, twins=True)
    save_weights(clip, args.folder/'scene_clip.safetensors', config=config, merges=tok.merges, size=64, bs=256, notebook='26_clip', seed=0,
                 data='drawn scenes of 64 pixels, seen pairs only; half of the rows are twins that differ in one word or in the order',
                 pictures=256*len(losses), minutes=minutes, curve=curve(losses, 256), **info(args))

if __name__=='__main__': main()
