import dataclasses

import pytest
import torch
import torch.nn.functional as F
from helpers.runs import relative_error
from torch import Tensor, nn

import backbones.random as random
import backbones.tree as tree
from backbones.augment import identity
from backbones.component import use
from backbones.errors import InputError
from backbones.models import cpu_layers
from backbones.models.cbam_resnet import CBAM
from backbones.models.cpu_layers import Conv, DepthwiseConv, Linear
from backbones.models.shufflenet import shufflenet
from backbones.models.sync_batch_norm import _batch_norm
from backbones.models.wide_resnet import wide_resnet
from backbones.optim.schedule import constant
from experiments.digits import digits_resnet18

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
    ("channels", "size", "length", "dtype", "amx", "expected"),
    [
        (512, 3, 4, torch.bfloat16, True, True),
        (512, 3, 5, torch.bfloat16, True, False),
        (256, 3, 4, torch.bfloat16, True, False),
        (512, 3, 4, torch.bfloat16, False, False),
        (512, 3, 2, torch.bfloat16, False, True),
        (64, 1, 8, torch.bfloat16, False, True),
        (512, 3, 4, torch.float32, True, False),
        (512, 3, 2, torch.float32, False, True),
    ],
)
def test_small_images_are_what_it_is_for(
    channels: int,
    size: int,
    length: int,
    dtype: torch.dtype,
    amx: bool,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu_layers, "HAS_AMX", amx)
    called = []
    monkeypatch.setattr(nn.Conv2d, "forward", lambda conv, x: called.append(x))
    conv = Conv(channels, channels, size).to(dtype)
    conv(torch.zeros(2, channels, length, length, dtype=dtype))
    assert bool(called) != expected
    with torch.device("meta"):  # as on a GPU
        Conv(channels, channels, size)(torch.zeros(2, channels, length, length))
    assert called


@pytest.mark.parametrize("shape", [(512,), (1537,), (2, 512), (4, 5, 130), (16, 97)])
def test_a_linear_layer_as_a_convolution(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs and gradients are those of torch's linear layer, also where the input is not contiguous."""
    monkeypatch.setattr(Linear, "_is_faster_as_convolution", lambda *_: True)
    linear = Linear(6, 8).double()
    contiguous = torch.randn(*shape, 6, generator=random.generator(0), dtype=torch.float64)
    for x in (contiguous, contiguous.transpose(0, -1).contiguous().transpose(0, -1)):

        def with_gradients(forward, x=x) -> list[Tensor]:
            leaves = [x.clone().requires_grad_(), *linear.parameters()]
            y = forward(leaves[0])
            return [y, *torch.autograd.grad(y, leaves, torch.randn(y.shape, generator=random.generator(1)).double())]

        wanted = with_gradients(lambda x: nn.Linear.forward(linear, x))
        torch.testing.assert_close(with_gradients(linear), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("sizes", "num_tokens", "dtype", "expected"),
    [
        ((8, 8), 512, torch.bfloat16, True),
        ((8, 8), 511, torch.bfloat16, False),
        ((8, 4), 512, torch.bfloat16, False),
        ((8, 8), 512, torch.float32, False),
    ],
)
def test_many_tokens_in_bfloat16_are_what_it_is_for(
    sizes: tuple[int, int], num_tokens: int, dtype: torch.dtype, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, conv2d = [], F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda *args: calls.append(None) or conv2d(*args))
    x, linear = torch.zeros(num_tokens, sizes[0]), Linear(*sizes)
    linear.to(dtype)(x.to(dtype))
    assert len(calls) == expected
    with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        linear.float()(x)
        assert len(calls) == 2 * expected
        torch.vmap(linear)(x[None])
        torch.compile(linear, backend="eager", fullgraph=True)(x)
    assert len(calls) == 2 * expected


def test_a_depthwise_convolution_whose_parameters_are_bfloat16() -> None:
    conv = DepthwiseConv(4, 3, bias=True)
    x = torch.randn(2, 4, 6, 6, generator=random.generator(0))
    assert relative_error(conv.bfloat16()(x.bfloat16()).float(), conv.float()(x)) < 0.02


def test_numbers_of_layers_and_groups_that_no_table_has() -> None:
    with pytest.raises(InputError, match=r"a depth of 27 is not 6 n \+ 4, as 16, 28 and 40 are"):
        wide_resnet(27, 10, (3, 32, 32), 10)
    with pytest.raises(InputError, match="5 groups are not in table 1; choose from 2, 3, 4, 8"):
        shufflenet(5, (3, 32, 32), 10)


class WithCBAM(nn.Module):
    """CBAM after one layer, over 48 channels of 4x4 pixels."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem, self.cbam, self.head = nn.Conv2d(48, 48, 1), CBAM(48, 16), nn.Linear(48, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = 1.1 * F.gelu(self.stem(F.pixel_unshuffle(x, 4)))
        return self.head(self.cbam(x).mean((2, 3)))


@pytest.mark.slow
def test_cbam_compiles_in_bfloat16() -> None:
    """Where a layer was applied to both poolings, inductor wrote C++ that does not compile; and where a gradient looked
    for the maximum among values that a compiled program computes once more, it was NaN."""
    base = dataclasses.replace(digits_resnet18, augment=use(identity), schedule=use(constant))
    experiment = dataclasses.replace(base, model=use(WithCBAM), precision="bfloat16")
    params = {}
    for how in ("on", "off"):
        program = dataclasses.replace(experiment, compile=how).make()
        params[how] = program.train_step(program.state, program.batches(0))[0].params
    start = experiment.make().state.params
    moved = {how: tree.map(torch.sub, each, start) for how, each in params.items()}
    assert tree.global_norm(tree.map(torch.sub, moved["on"], moved["off"])) < 0.1 * tree.global_norm(moved["off"])


def test_batch_norm_over_processes_keeps_float64() -> None:
    x = torch.randn(8, 3, 4, 4, generator=random.generator(0), dtype=torch.float64)
    torch.testing.assert_close(_batch_norm(x, None, None, training=True), F.batch_norm(x, None, None, training=True))
