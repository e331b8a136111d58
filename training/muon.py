"""Muon (Keller Jordan, 2024; at the scale of arXiv:2502.16982): matrices move by their momentum with all singular values made about equal.
Vectors, and matrices that read or write data, move as with AdamW. Compared with `torch.optim.Muon` in tests/test_training.py."""
import torch
from collections import defaultdict

def orthogonalised(
    g, # Matrices, (n,r,c), float
    steps=5, # Of the iteration
): # Like `g`, in bfloat16: U V' of g = U S V', roughly, with singular values in about 0.7 to 1.2
    "The nearest matrices with orthogonal rows or columns, by a Newton-Schulz iteration of fifth order."
    x = g.bfloat16()
    tall = x.shape[1]>x.shape[2]
    if tall: x = x.mT
    x = x/x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        a = x@x.mT
        x = 3.4445*x + (-4.775*a+2.0315*a@a)@x
    return x.mT if tall else x

class MuonAdamW(torch.optim.AdamW):
    "AdamW, but the `matrices` among the parameters move by Muon, with steps as large as AdamW's."
    def __init__(self,
        params, # Of the net
        lr, # Learning rate of both
        matrices=(), # Those of the parameters that move by Muon, all 2-dimensional
        momentum=.95, # Of Muon, as Nesterov's
        **kw, # More for AdamW
    ):
        super().__init__(params, lr=lr, **kw)
        self.chosen,self.momentum = {id(p) for p in matrices},momentum

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            same = defaultdict(list)                         # those of one shape go through the iteration together
            for p in group['params']:
                if id(p) in self.chosen and p.grad is not None: same[p.shape].append(p)
            for (r,c),ps in same.items():
                for p in ps:
                    s = self.state[p]
                    if not s: s |= dict(step=torch.tensor(0.), momentum=torch.zeros_like(p))
                    s['step'] += 1
                    s['momentum'].lerp_(p.grad, 1-self.momentum)
                steps = orthogonalised(torch.stack([p.grad.lerp(self.state[p]['momentum'], self.momentum) for p in ps]))
                for p,u in zip(ps, steps):
                    p.mul_(1-group['lr']*group['weight_decay'])
                    p.add_(u.to(p), alpha=-.2*group['lr']*max(r, c)**.5)     # AdamW's steps have about this length per weight
                    p.grad = None
        return super().step(closure)
