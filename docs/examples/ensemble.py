"""An ensemble: p(y | x) = 1/M sum_m softmax(f(theta_m, x))_y (Lakshminarayanan et al., arXiv 1612.01474, section 2.4).

Its members are trainings that differ in their seed. Their states are stacked leaf by leaf; then one `vmap` trains them
all, and another one predicts. ECE is the expected calibration error (Guo et al., arXiv 1706.04599, equation 3).
"""

from dataclasses import replace

import torch

import backbones.tree as tree
from backbones.data import digits
from backbones.metrics import calibration, in_top_k
from backbones.vmapped_step import make_vmapped_step
from docs.examples import small_vit, whole

MEMBERS = [replace(small_vit, seed=seed) for seed in range(5)]


def ensemble_logits(num_steps: int, images: torch.Tensor) -> torch.Tensor:
    """The logits [M, B, K] of images [B, C, H, W] by M members that are trained for this many steps."""
    programs, step = [member.make() for member in MEMBERS], make_vmapped_step(MEMBERS, digits())
    states = tree.stack([program.state for program in programs])
    for i in range(num_steps):
        states, _ = step(states, tree.stack([program.batches(i) for program in programs]))
    return torch.vmap(programs[0].predict, in_dims=(0, 0, None))(states.params, states.model_state, images)


def main(num_steps: int = 200) -> None:
    test = whole(digits().test)
    logits = ensemble_logits(num_steps, test.images)
    mean = logits.softmax(dim=2).mean(dim=0).log()  # its softmax is the mean of the probabilities
    for name, each in zip([*map("member {}".format, range(len(logits))), "mean"], [*logits, mean], strict=True):
        top1, error = in_top_k(each, test.labels, 1).float().mean(), calibration(each, test.labels).error
        print(f"{name}: top-1 {top1:.2%}, ECE {error:.2%}")


if __name__ == "__main__":
    main()
