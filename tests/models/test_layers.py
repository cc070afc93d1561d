import pytest
import torch
import torch.nn.functional as F
from helpers.runs import relative_error
from torch import Tensor, nn
from torch.func import functional_call

import backbones.random as random
from backbones.jit import jit
from backbones.models.cbam_resnet import CBAM
from backbones.models.layers import Conv

SIZES = [(1, 1), (2, 1), (2, 2), (3, 4), (4, 4), (5, 3)]


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("shape", SIZES)
def test_a_convolution_as_a_product_of_matrices(
    shape: tuple[int, int], size: int, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs and gradients are those of torch's convolution, and so is the memory format."""
    monkeypatch.setattr(Conv, "_is_faster_as_matmul", lambda *_: True)
    conv = Conv(6, 8, size, stride=stride, bias=True).double()
    generator = random.generator(0)
    x = torch.randn(3, 6, *shape, generator=generator, dtype=torch.float64).contiguous(
        memory_format=torch.channels_last
    )

    def with_gradients(forward) -> list[Tensor]:
        leaves = [x.clone().requires_grad_(), *conv.parameters()]
        y = forward(leaves[0])
        assert y.is_contiguous(memory_format=torch.channels_last)
        return [y, *torch.autograd.grad(y, leaves, torch.randn(y.shape, generator=random.generator(1)).double())]

    for got, wanted in zip(with_gradients(conv), with_gradients(lambda x: nn.Conv2d.forward(conv, x)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("channels", "size", "length", "dtype", "expected"),
    [
        (512, 3, 4, torch.bfloat16, True),
        (512, 3, 5, torch.bfloat16, False),
        (256, 3, 4, torch.bfloat16, False),
        (64, 1, 8, torch.bfloat16, True),
        (512, 3, 4, torch.float32, False),
        (512, 3, 2, torch.float32, True),
    ],
)
def test_small_images_are_what_it_is_for(
    channels: int, size: int, length: int, dtype: torch.dtype, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    monkeypatch.setattr(nn.Conv2d, "forward", lambda conv, x: called.append(x))
    conv = Conv(channels, channels, size).to(dtype)
    conv(torch.zeros(2, channels, length, length, dtype=dtype))
    assert bool(called) != expected
    with torch.device("meta"):  # as on a GPU
        Conv(channels, channels, size)(torch.zeros(2, channels, length, length))
    assert called


@pytest.mark.slow
def test_gradients_of_maxima_compile_in_bfloat16() -> None:
    """Where a gradient looked for the maximum among values that inductor computes once more, it was NaN."""
    attention = CBAM(64, 16).bfloat16()
    x = torch.randn(4, 64, 6, 6, generator=random.generator(0)).bfloat16()

    def loss(x: Tensor) -> Tensor:
        return (functional_call(attention, dict(attention.named_parameters()), (F.gelu(x) * 1.1,)) ** 2).sum()

    grad = torch.func.grad(loss)
    assert relative_error(jit(grad, mode="compile")(x), grad(x)) < 0.1
