"""Models that neither torchvision nor timm has, against the equations of their papers, written with the leaves alone.

The functions below transcribe the papers, for evaluation and for training (where BatchNorm uses the statistics of the
batch).
"""

from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from helpers.runs import relative_error
from helpers.shallow import shallow
from torch import Tensor

import backbones.random as random
import backbones.tree as tree
from backbones.models import MODELS

pytestmark = pytest.mark.slow


class Leaves:
    """The leaves of a model, and the layers that use them."""

    def __init__(self, params: dict[str, Tensor], model_state: dict[str, Tensor], train: bool) -> None:
        self.leaves, self.train = {**params, **model_state}, train

    def has(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self.leaves)

    def norm(self, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
        dims = (0, 2, 3)
        mean, var = x.mean(dims), x.var(dims, unbiased=False)
        if not self.train:
            mean, var = self.leaves[f"{name}.running_mean"], self.leaves[f"{name}.running_var"]
        x = (x - mean[:, None, None]) / (var[:, None, None] + eps).sqrt()
        weight = self.leaves.get(f"{name}.weight", torch.ones(()).expand(x.shape[1]))
        return x * weight[:, None, None] + self.leaves[f"{name}.bias"][:, None, None]

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight, bias = self.leaves[f"{name}.weight"], self.leaves.get(f"{name}.bias")
        groups = x.shape[1] // weight.shape[1]
        return F.conv2d(x, weight, bias, stride=stride, padding=weight.shape[2] // 2, groups=groups)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.leaves[f"{name}.weight"].T + self.leaves[f"{name}.bias"]


def stages_of(layers: Leaves, stage_depths: tuple[int, ...]) -> list[tuple[str, int]]:
    """(name, stride) of each residual block."""
    return [
        (f"stages.{stage}.{i}", 2 if stage > 0 and i == 0 else 1)
        for stage, depth in enumerate(stage_depths)
        for i in range(depth)
    ]


def preact_resnet(layers: Leaves, x: Tensor, depths: tuple[int, ...]) -> Tensor:
    """Equation 5 of arXiv 1603.05027: x + F(f(x)), f = ReLU of BatchNorm before each weight layer."""
    x = layers.conv("stem.0", x)
    for block, stride in stages_of(layers, depths):
        num_convs, first_3x3 = (3, 2) if layers.has(f"{block}.conv3") else (2, 1)
        y = x
        for i in range(1, num_convs + 1):
            y = F.relu(layers.norm(f"{block}.norm{i}", y))
            y = layers.conv(f"{block}.conv{i}", y, stride if i == first_3x3 else 1)
        if layers.has(f"{block}.shortcut"):
            x = layers.conv(f"{block}.shortcut.2", F.relu(layers.norm(f"{block}.shortcut.0", x)), stride)
        x = x + y
    return layers.linear("head", F.relu(layers.norm("norm", x)).mean((2, 3)))


def wide_resnet(layers: Leaves, x: Tensor, depths: tuple[int, ...]) -> Tensor:
    """Table 1 of arXiv 1605.07146, with the order BatchNorm, ReLU, convolution."""
    x = layers.conv("stem.0", x)
    for block, stride in stages_of(layers, depths):
        activated = F.relu(layers.norm(f"{block}.norm1", x))
        y = layers.conv(f"{block}.conv1", activated, stride)
        y = layers.conv(f"{block}.conv2", F.relu(layers.norm(f"{block}.norm2", y)))
        if layers.has(f"{block}.projection"):
            x = layers.conv(f"{block}.projection", activated, stride)
        x = x + y
    return layers.linear("head", F.relu(layers.norm("norm", x)).mean((2, 3)))


def squeeze_excitation(layers: Leaves, name: str, x: Tensor) -> Tensor:
    """Equations 2 to 4 of arXiv 1709.01507."""
    z = x.flatten(2).mean(2)
    s = layers.linear(f"{name}.fc2", F.relu(layers.linear(f"{name}.fc1", z))).sigmoid()
    return torch.einsum("bc,bchw->bchw", s, x)


def cbam(layers: Leaves, name: str, x: Tensor) -> Tensor:
    """Equations 1 to 3 of arXiv 1807.06521."""

    def mlp(z: Tensor) -> Tensor:
        return layers.linear(f"{name}.channel.fc2", F.relu(layers.linear(f"{name}.channel.fc1", z)))

    channel = (mlp(x.flatten(2).mean(2)) + mlp(x.flatten(2).max(2).values)).sigmoid()
    x = torch.einsum("bc,bchw->bchw", channel, x)
    pooled = torch.stack([x.mean(1), x.max(1).values], dim=1)
    return torch.einsum("bohw,bchw->bchw", layers.conv(f"{name}.spatial.conv", pooled).sigmoid(), x)


def resnet_with(attend: Callable[[Leaves, str, Tensor], Tensor]) -> Callable[..., Tensor]:
    """ResNet (arXiv 1512.03385) with an attention before each addition."""

    def apply(layers: Leaves, x: Tensor, depths: tuple[int, ...]) -> Tensor:
        x = F.relu(layers.norm("stem.1", layers.conv("stem.0", x)))
        for block, stride in stages_of(layers, depths):
            num_convs, first_3x3 = (3, 2) if layers.has(f"{block}.conv3") else (2, 1)
            y = x
            for i in range(1, num_convs + 1):
                y = layers.norm(f"{block}.norm{i}", layers.conv(f"{block}.conv{i}", y, stride if i == first_3x3 else 1))
                y = F.relu(y) if i < num_convs else attend(layers, f"{block}.attention", y)
            if layers.has(f"{block}.shortcut"):
                x = layers.norm(f"{block}.shortcut.1", layers.conv(f"{block}.shortcut.0", x, stride))
            x = F.relu(x + y)
        return layers.linear("head", x.mean((2, 3)))

    return apply


def shufflenet(layers: Leaves, x: Tensor, groups: int) -> Tensor:
    """Figure 2, b and c, and table 1 of arXiv 1707.01083."""
    x = F.relu(layers.norm("stem.1", layers.conv("stem.0", x)))
    for stage, depth in enumerate((4, 8, 4)):
        for i in range(depth):
            block, stride = f"stages.{stage}.{i}", 2 if i == 0 else 1
            y = F.relu(layers.norm(f"{block}.norm1", layers.conv(f"{block}.conv1", x)))
            channels = y.shape[1]
            shuffled = torch.empty_like(y)
            for c in range(channels):  # channel i of group g becomes number g among the i-th channels of all groups
                g, i_in_group = divmod(c, channels // groups)
                shuffled[:, i_in_group * groups + g] = y[:, c]
            y = layers.norm(f"{block}.norm2", layers.conv(f"{block}.conv2", shuffled, stride))
            y = layers.norm(f"{block}.norm3", layers.conv(f"{block}.conv3", y))
            x = F.relu(x + y if stride == 1 else torch.cat([F.avg_pool2d(x, 3, 2, 1), y], dim=1))
    return layers.linear("head", x.mean((2, 3)))


def airbench(layers: Leaves, x: Tensor, _: None) -> Tensor:
    """Section 3.1 of arXiv 2404.00498."""
    weight, bias = layers.leaves["whiten.weight"], layers.leaves["whiten.bias"]
    x = F.gelu(F.conv2d(x, weight, bias))

    def norm(name: str, x: Tensor) -> Tensor:
        return layers.norm(name, x, eps=1e-12)

    for stage in range(3):
        x = F.max_pool2d(layers.conv(f"stages.{stage}.conv1", x), 2)
        x = F.gelu(norm(f"stages.{stage}.norm1", x))
        x = F.gelu(norm(f"stages.{stage}.norm2", layers.conv(f"stages.{stage}.conv2", x)))
    return F.max_pool2d(x, 3).flatten(1) @ layers.leaves["head.weight"].T / 9


PAPERS = {
    "preactresnet18": (preact_resnet, (2, 1, 1, 1)),
    "preactresnet50": (preact_resnet, (2, 1, 1, 1)),
    "wrn-16-8": (wide_resnet, (2, 2, 2)),
    "se-resnet18": (resnet_with(squeeze_excitation), (2, 1, 1, 1)),
    "cbam-resnet18": (resnet_with(cbam), (2, 1, 1, 1)),
    "cbam-resnet50": (resnet_with(cbam), (2, 1, 1, 1)),
    "shufflenet-g3": (shufflenet, 3),
    "shufflenet-g8": (shufflenet, 8),
    "airbench": (airbench, None),
}
"""Model, which `shallow` cuts -> its transcription, and its depths, or its groups."""


def random_trees(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Leaves in float64, with noise on the zeros and ones of a new model."""
    generator = random.generator(1)
    params, model_state = shallow(name)((3, 32, 32), 10).init(random.generator(0))

    def add_noise(leaf: Tensor) -> Tensor:
        if leaf.ndim != 1:
            return leaf.double() if leaf.is_floating_point() else leaf
        return leaf.double() + 0.1 * torch.rand(leaf.shape, generator=generator, dtype=torch.float64)

    return tree.map(add_noise, (params, model_state))


@pytest.mark.parametrize("name", PAPERS)
def test_is_its_paper(name: str) -> None:
    paper, size = PAPERS[name]
    params, model_state = random_trees(name)
    images = torch.randn(3, 3, 32, 32, generator=random.generator(2), dtype=torch.float64)
    for train in (False, True):
        logits, _ = shallow(name)((3, 32, 32), 10).apply(params, model_state, images, train=train)
        expected = paper(Leaves(params, model_state, train), images, size)
        assert relative_error(logits, expected) < 1e-10


@pytest.mark.parametrize("train", [False, True])
def test_mobilenet_is_that_of_timm(train: bool) -> None:
    """Both define their layers in one order. timm's has ReLU6 by default, the paper ReLU."""
    theirs = timm.create_model("mobilenetv1_100", num_classes=10, act_layer=torch.nn.ReLU).double().train()
    params, model_state = random_trees("mobilenet")
    leaves = iter(params.values()), iter(model_state.values())
    with torch.no_grad():
        for part, ours in zip((theirs.parameters(), theirs.buffers()), leaves, strict=True):
            for leaf in part:
                leaf.copy_(next(ours))
    images = torch.randn(3, 3, 32, 32, generator=random.generator(2), dtype=torch.float64)
    model = MODELS["mobilenet"]((3, 32, 32), 10, stem="imagenet")
    logits, new_model_state = model.apply(params, model_state, images, train=train)
    expected = theirs.train(train)(images)
    assert relative_error(logits, expected) < 1e-10
    for ours, leaf in zip(new_model_state.values(), theirs.buffers(), strict=True):
        torch.testing.assert_close(ours, leaf, rtol=1e-10, atol=1e-10)


def test_airbench_has_a_batchnorm_momentum_of_three_fifths() -> None:
    """Section 3.1: momentum 0.6, which is 0.4 in torch's definition."""
    params, model_state = random_trees("airbench")
    images = torch.randn(3, 3, 32, 32, generator=random.generator(2), dtype=torch.float64)
    _, new_model_state = MODELS["airbench"]((3, 32, 32), 10).apply(params, model_state, images, train=True)
    x = F.gelu(F.conv2d(images, model_state["whiten.weight"], params["whiten.bias"]))
    x = F.max_pool2d(F.conv2d(x, params["stages.0.conv1.weight"], padding=1), 2)
    name = "stages.0.norm1.running_mean"
    torch.testing.assert_close(new_model_state[name], 0.6 * model_state[name] + 0.4 * x.mean((0, 2, 3)))


def test_filters_of_airbench_whiten_the_patches() -> None:
    """Responses to all 2x2 patches of the images have unit covariance, but for the eps on the eigenvalues."""
    model = MODELS["airbench"]((3, 32, 32), 10)
    images = torch.randn(50, 3, 32, 32, generator=random.generator(0)).cumsum(2) + torch.rand(50, 3, 1, 1)
    _, model_state = model.init_from_images(*model.init(random.generator(0)), images)
    responses = F.conv2d(images, model_state["whiten.weight"]).transpose(0, 1).flatten(1).double()  # [24, patches]
    torch.testing.assert_close(responses[12:], -responses[:12])
    covariance = responses[:12] @ responses[:12].T / responses.shape[1]
    torch.testing.assert_close(covariance, torch.eye(12, dtype=torch.float64), rtol=0, atol=0.02)
