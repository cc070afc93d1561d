"""How much a test loss L rises if training image i of N is left out: grad L . (H + d)^-1 grad l_i / N.

H is the Hessian of the mean training loss, d the damping (Koh and Liang, arXiv 1703.04730, equation 2). One solution s
of (H + d) s = grad L is enough for all images: s . grad l_i is the derivative of l_i along s. The parameters are those
of the last layer, in which the loss is convex and so H + d positive definite; the others stay as they are.
"""

import torch

from backbones.data import digits
from backbones.types import Params
from docs.examples import Losses, make_losses, mean, small_vit, train, whole
from docs.examples.hessian import hvp
from docs.examples.linalg import add_scaled, conjugate_gradient


def influences(train_losses: Losses, test_loss: Losses, params: Params, damping: float) -> torch.Tensor:
    """[N], that of each training image."""
    gradient = torch.func.grad(test_loss)(params)
    solution = conjugate_gradient(lambda v: add_scaled(hvp(mean(train_losses), params, v), damping, v), gradient)
    derivatives = torch.func.jvp(train_losses, (params,), (solution,))[1]
    return derivatives / len(derivatives)


def main(num_steps: int = 200) -> None:
    program, images, test = small_vit.make(), whole(digits().train), whole(digits().test)
    state = train(program, num_steps)
    train_losses, test_losses = make_losses(program, state, images), make_losses(program, state, test)
    head = {name: state.params[name] for name in ("head.weight", "head.bias")}
    worst = test_losses(head).argmax()
    print(f"held-out image {worst}, a {test.labels[worst]}: loss {test_losses(head)[worst]:.2f}")
    rise = influences(train_losses, lambda head: test_losses(head)[worst], head, damping=0.01)
    for i in [*rise.topk(2).indices, *(-rise).topk(2).indices]:
        print(f"without training image {i}, a {images.labels[i]}: {rise[i]:+.2f}")


if __name__ == "__main__":
    main()
