"""torchvision's ResNet is the oracle."""

import pytest
import torch
import torchvision.models

import backbones.random as random
import backbones.tree as tree
from backbones.models import MODELS

NAMES = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]


def from_torchvision(state: dict[str, torch.Tensor], like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Their leaves under our names. Both trees list the layers in order of definition, but the head is `fc` there."""
    assert [leaf.shape for leaf in state.values()] == [leaf.shape for leaf in like.values()]
    return dict(zip(like, state.values(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        expected = sum(leaf.numel() for leaf in getattr(torchvision.models, name)().parameters())
    params, _ = MODELS[name]((3, 224, 224), 1000, stem="imagenet").init(random.generator(0))
    assert tree.size(params) == expected
    if name == "resnet50":
        assert expected == 25_557_032


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("train", [False, True])
def test_logits_and_statistics(name: str, train: bool) -> None:
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)(num_classes=1000).double().train()
    with torch.no_grad():
        theirs(torch.randn(2, 3, 64, 64, dtype=torch.float64))  # statistics that are not 0 and 1
    theirs.train(train)

    ours = MODELS[name]((3, 224, 224), 1000, stem="imagenet")
    params, model_state = ours.init(random.generator(0))
    params = from_torchvision(dict(theirs.named_parameters()), params)
    model_state = from_torchvision({key: leaf.clone() for key, leaf in theirs.named_buffers()}, model_state)

    images = torch.randn(3, 3, 96, 96, dtype=torch.float64)
    logits, model_state = ours.apply(params, model_state, images, train=train)
    expected = theirs(images)
    assert (logits - expected).norm() / expected.norm() < 1e-10
    for got, wanted in zip(model_state.values(), theirs.buffers(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_cifar_stem_has_the_published_size() -> None:
    params, _ = MODELS["resnet18"]((3, 32, 32), 10).init(random.generator(0))
    assert tree.size(params) == 11_173_962
    assert params["stem.0.weight"].is_contiguous(memory_format=torch.channels_last)
