"""The feature network of lesson 17 and what it measures of the training images. It is never made anew lightly: every FID of the course
is in its units."""
import json,hashlib,torch,torch.nn.functional as F
from functools import partial
from torch import optim
from safetensors.torch import save
from common import arguments,info,little,train
from miniai.augment import Augment,BatchTransformCB,random_crop,random_flip
from miniai.data import get_data
from miniai.ddpm import load_weights,save_weights
from miniai.fid import FeatureNet,_feature_net,stats
from miniai.init import Normalize
from miniai.optim import BatchSchedCB,OneCycle
from miniai.resnet import AutocastCB

def main():
    args = arguments('fashion_features', epochs=5)
    data,norm,bs = get_data('fashion_mnist'),Normalize(127.5, 127.5),8 if args.few else 128
    n,source = little(args, len(data.x_train), 200),f'{data.source}: fashion_mnist'
    torch.manual_seed(0)
    net = _feature_net().to(memory_format=torch.channels_last)
    cbs = [AutocastCB(), BatchTransformCB(Augment(random_crop, random_flip), on_valid=False), BatchSchedCB(partial(OneCycle, max_lr=3e-3))]
    losses,minutes = train(args, 'all', net, (data.x_train[:n], data.y_train[:n]), F.cross_entropy, 3e-3, cbs, optim.Adam, args.epochs, bs, 0, norm)
    path = args.folder/'fashion_features.safetensors'
    net.cpu().eval()
    xv,yv = norm(data.x_valid[:little(args, 10_000)])[0],data.y_valid[:little(args, 10_000)]
    with torch.no_grad(): right = torch.cat([net(o).argmax(1) for o in xv.split(500)])==yv
    save_weights(net, path, notebook='17_fid', data=source, seed=0, epochs=args.epochs, minutes=minutes,
                 accuracy=round(right.float().mean().item(), 4), **info(args))
    load_weights(path, net)                                     # what is measured below is measured with the weights as they are stored
    raw = FeatureNet(net.float()).features(norm(data.x_train[:n])[0])
    scale = raw.std(0).float().clamp(min=1e-6)
    s,path = stats(raw/scale),args.folder/'fashion_features_stats.safetensors'
    bytes_ = save(dict(scale=scale, mean=s.mean.float(), cov=s.cov.float(), feats=(raw/scale)[:2048].half()))
    tmp = path.with_suffix('.tmp')
    tmp.write_bytes(bytes_)
    tmp.replace(path)
    of = dict(notebook='17_fid', data=source, of='fashion_features', n=n, sha256=hashlib.sha256(bytes_).hexdigest(), **info(args))
    path.with_suffix('.json').write_text(json.dumps(of, indent=1)+'\n', encoding='utf-8')

if __name__=='__main__': main()
