"""The gradient of each image's own loss, g_i = d l(theta; x_i, y_i) / d theta, in one call: `vmap(grad(loss))`.

|g_i| says how much the network has to learn from an image: the largest are of hard or mislabelled ones (GraNd: Paul et
al., arXiv 2107.07075, definition 2.1). No image of a batch may influence another: BatchNorm is in evaluation mode.
"""

import torch
from torch import Tensor

import backbones.tree as tree
from backbones.experiment import Program
from backbones.losses import cross_entropy
from backbones.types import Batch, ModelState, Params
from docs.examples import small_resnet, small_vit, train


def per_sample_gradients(program: Program, params: Params, model_state: ModelState, batch: Batch) -> Params:
    """A tree like `params`, whose leaves have a first dimension B."""

    def loss(params: Params, image: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(program.predict(params, model_state, image[None]), label[None])[0]

    return torch.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(params, batch.images, batch.labels)


def main(num_steps: int = 50) -> None:
    for experiment in (small_vit, small_resnet):
        program = experiment.make()
        state, batch = train(program, num_steps), program.batches(num_steps)
        norms = torch.vmap(tree.global_norm)(per_sample_gradients(program, state.params, state.model_state, batch))
        largest = [f"{norms[i]:.1f} (image {batch.index[i]}, a {batch.labels[i]})" for i in norms.topk(3).indices]
        print(f"{experiment.name}: median norm {norms.median():.1f}, largest {', '.join(largest)}")


if __name__ == "__main__":
    main()
