"""The derivative of a held-out loss by the learning rate, through k steps of training: d L(theta_k(lr)) / d lr.

A train step is a pure function of a state of which the learning rate is a leaf. Forward mode (`jvp`) carries
d theta_t / d lr along as it trains, and keeps no step (Franceschi et al., arXiv 1703.01785, section 3.2).
"""

from dataclasses import replace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from backbones.data import digits
from backbones.experiment import Program
from backbones.optim import set_hyperparams
from docs.examples import make_losses, mean, plain_sgd, small_vit, train, whole


@sdpa_kernel(SDPBackend.MATH)  # fused attention has no second derivative
def loss_after(lr: torch.Tensor, program: Program, num_steps: int) -> torch.Tensor:
    """The held-out loss after this many steps with this learning rate; the train step is pure."""
    opt_state = set_hyperparams(program.state.opt_state, base_learning_rate=lr)
    state = train(program._replace(state=program.state._replace(opt_state=opt_state)), num_steps)
    return mean(make_losses(program, state, whole(digits().test)))(state.params)


def main(num_steps: int = 30, num_updates: int = 8) -> None:
    experiment, lr = replace(small_vit, optim=plain_sgd.replace(momentum=0.9)), torch.tensor(0.002, dtype=torch.float64)
    program = experiment.make()._replace(train_step=experiment.make_pure_step(digits()))
    for _ in range(num_updates):
        loss, slope = torch.func.jvp(lambda lr: loss_after(lr, program, num_steps), (lr,), (lr,))  # type: ignore[misc]
        print(f"lr {lr:.4f}: held-out loss {loss:.4f} after {num_steps} steps, d loss / d log lr {slope:.4f}")
        lr = lr * torch.exp(-slope)  # downhill


if __name__ == "__main__":
    main()
