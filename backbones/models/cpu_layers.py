"""Linear layers and convolutions: those of torch, computed in another way where that is faster on CPUs.

Which way is faster was measured on an Intel Xeon with AMX and on an AMD EPYC without, see benchmarks/README.md.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HAS_AMX = torch.cpu._is_amx_tile_supported()


class Linear(nn.Linear):
    """A linear layer of tokens.

    In bfloat16 on CPUs it is a 1x1 convolution of parts of about 512 tokens where that is faster: oneDNN then adds the
    bias as it goes, and takes less time for the gradient of the weights. Within torch.func's transforms, of which vmap
    makes a convolution slower, and in a program that is compiled or exported it is a linear layer.
    """

    def forward(self, x: Tensor) -> Tensor:  # [..., in_features] -> [..., out_features]
        num_tokens = x.numel() // self.in_features
        within_func = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
        if within_func or not self._is_faster_as_convolution(x, num_tokens):
            return super().forward(x)
        num_parts = math.gcd(num_tokens, 1 << (num_tokens // 512).bit_length() - 1)
        parts = x.reshape(num_parts, -1, 1, self.in_features).contiguous().permute(0, 3, 1, 2)
        y = F.conv2d(parts, self.weight[:, :, None, None], self.bias)
        return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], self.out_features)

    def _is_faster_as_convolution(self, x: Tensor, num_tokens: int) -> bool:
        """Whether this layer was measured to be faster as a convolution, for the input x."""
        return in_bfloat16_on_cpu(x) and num_tokens >= 512 and self.in_features <= self.out_features


def in_bfloat16_on_cpu(x: Tensor) -> bool:
    """Whether a layer computes in bfloat16 on a CPU for the input x."""
    return x.is_cpu and (x.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu"))


class Conv(nn.Conv2d):
    """A square convolution that keeps the image size (at stride 1).

    On CPUs it is a product of matrices where images have become small, as in the last stage of a ResNet: oneDNN's
    convolutions, above all the gradients of their weights, take two to nine times as long there. In a program that is
    exported it is a convolution: another runtime has its own.
    """

    def __init__(
        self, in_channels: int, out_channels: int, size: int, *, stride: int = 1, groups: int = 1, bias: bool = False
    ) -> None:
        super().__init__(in_channels, out_channels, size, stride=stride, padding=size // 2, groups=groups, bias=bias)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, out_channels, H/stride, W/stride]
        if torch.compiler.is_exporting():
            return super().forward(x)
        (size, _), (stride, _) = self.kernel_size, self.stride
        height, width = (-(-length // stride) for length in x.shape[2:])
        if not (x.is_cpu and self.groups == 1 and self._is_faster_as_matmul(height * width, x.dtype)):
            return super().forward(x)
        x = x.permute(0, 2, 3, 1)
        if size > 1:
            x = F.pad(x, (0, 0, *4 * [size // 2]))
        patches = [
            x[:, top : top + stride * height : stride, left : left + stride * width : stride]
            for top in range(size)
            for left in range(size)
        ]
        rows = torch.cat(patches, dim=3) if size > 1 else patches[0]
        y = F.linear(rows.flatten(0, 2), self.weight.permute(0, 2, 3, 1).flatten(1), self.bias)
        return y.unflatten(0, (len(x), height, width)).permute(0, 3, 1, 2)

    def _is_faster_as_matmul(self, positions: int, dtype: torch.dtype) -> bool:
        """Whether this layer was measured to be faster as a product of matrices, for an output of this many pixels."""
        if dtype != torch.bfloat16:
            return positions <= 4
        if self.kernel_size == (1, 1):
            return positions <= 64
        return positions <= (16 if HAS_AMX else 4) and self.in_channels * self.out_channels >= 2**17


class DepthwiseConv(Conv):
    """A filter for each channel; in float32 on CPUs, where bfloat16 takes up to forty times as long."""

    def __init__(self, channels: int, size: int, *, stride: int = 1, bias: bool = False) -> None:
        super().__init__(channels, channels, size, stride=stride, groups=channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, C, H/stride, W/stride]
        if not in_bfloat16_on_cpu(x):
            return super().forward(x)
        bias = None if self.bias is None else self.bias.float()
        with torch.autocast("cpu", enabled=False):
            return self._conv_forward(x.float(), self.weight.float(), bias).to(torch.bfloat16)
