"""The eigenvalue of largest absolute value of a loss's Hessian H, by power iteration: v <- H v / |H v|; it is v . H v.

H is never formed: H v is the derivative of the gradient along v, `jvp(grad(loss))` (Pearlmutter, "Fast exact
multiplication by the Hessian", 1994). Gradient descent drives it to about 2 / lr (Cohen et al., arXiv 2103.00065).
"""

from dataclasses import replace

import torch

import backbones.tree as tree
from backbones.types import Params
from docs.examples import Losses, make_losses, mean, plain_sgd, small_vit, train
from docs.examples.linalg import dot, unit


def hvp(loss: Losses, params: Params, vector: Params) -> Params:
    """The Hessian of the loss, times a vector."""
    return torch.func.jvp(torch.func.grad(loss), (params,), (vector,))[1]


def largest_eigenvalue(loss: Losses, params: Params, num_iterations: int = 20) -> torch.Tensor:
    product = tree.map(torch.randn_like, params)
    for _ in range(num_iterations):
        vector = unit(product)
        product = hvp(loss, params, vector)
    return dot(vector, product)


def main(num_steps: int = 200) -> None:
    for lr in (0.05, 0.1, 0.2):
        program = replace(small_vit, batch_size=100, optim=plain_sgd.replace(lr=lr)).make()
        state = train(program, num_steps, program.batches(0))
        eigenvalue = largest_eigenvalue(mean(make_losses(program, state, program.batches(0))), state.params)
        print(f"lr {lr}: largest eigenvalue {eigenvalue:.1f} after {num_steps} steps, 2 / lr is {2 / lr:.0f}")


if __name__ == "__main__":
    main()
