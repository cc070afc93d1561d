"""Averages of the parameters p_t of several decays d in one training: a_t = d a_(t - 1) + (1 - d) p_t, debiased.

Which decay is best is known only after training. The state of a transform is a tree of which the decay is a leaf: the
states of all decays are stacked, and `vmap` turns the update of one average (Adam's debiasing: arXiv 1412.6980) into
theirs.
"""

from dataclasses import replace

import torch

import backbones.tree as tree
from backbones import optim
from backbones.component import use
from backbones.types import OptState, Params
from docs.examples import small_vit, train

DECAYS = (0.5, 0.8, 0.9, 0.95, 0.98)


def adam_with_averages(schedule: optim.Schedule, *, lr: float = 3e-3) -> optim.GradientTransformation:
    """Adam, and averages whose state has a first dimension in each leaf, that of the decays."""

    def init(params: Params) -> OptState:
        return tree.stack([optim.ema_params(decay).init(params) for decay in DECAYS])

    update = torch.vmap(optim.ema_params(0.0).update, in_dims=(None, 0, None), out_dims=(None, 0))  # type: ignore[arg-type]
    return optim.chain(optim.adam(schedule, lr=lr), optim.GradientTransformation(init, update))


def main(num_steps: int = 200) -> None:
    program = replace(small_vit, optim=use(adam_with_averages)).make()
    state = train(program, num_steps)
    for decay, average in zip(("none", *DECAYS), ((), *tree.unstack(state.opt_state[-1])), strict=True):
        print(f"decay {decay}: top-1 {program.evaluate(state._replace(opt_state=average))['top1']:.2%}")


if __name__ == "__main__":
    main()
