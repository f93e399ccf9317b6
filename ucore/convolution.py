"""Convolutions that are fast on a processor: with the ReLU6 behind them in one pass, padded without a copy.

PyTorch runs a convolution, the padding before it (TensorFlow's "same", uneven where the stride is 2) and the ReLU6
behind it one after the other, and each reads and writes all of the memory again; in bfloat16 the ReLU6 alone takes
longer than the convolution. oneDNN clips while it convolves, and an uneven padding is an even one with a kernel that
is one row of zeros larger. Gradients of depthwise convolutions are computed in float32: in bfloat16 oneDNN takes 3 to
20 times longer for them, slowest where the stride is 2.
"""

import math
from functools import lru_cache
from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F

CEILING = 6.0  # of ReLU6


class FusedConv(nn.Conv2d):
    """A nn.Conv2d or timm Conv2dSame with the same parameters, outputs and gradients; `clipped`: a ReLU6 behind it.

    On a processor what is not a number may leave a clipped one as 0 or 6 (`weights.fill` refuses NaN weights).
    """

    def __init__(self, original: nn.Conv2d, clipped: bool = False) -> None:
        channels = (original.in_channels, original.out_channels)
        size: Any = (original.kernel_size, original.stride, original.padding, original.dilation)
        super().__init__(*channels, *size, groups=original.groups, bias=original.bias is not None)
        self.weight, self.bias = original.weight, original.bias
        self.same, self.clipped = isinstance(original, Conv2dSame), clipped

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Float (B, C, H, W) to float (B, C', H', W'), as the original and the ReLU6 give it."""
        weight, padding = self._evenly_padded(x)
        how = (self.stride, padding, self.dilation, self.groups)
        autocast = torch.is_autocast_enabled("cpu") and x.dtype != torch.float64 and x.is_floating_point()
        if x.device.type == "cpu" and x.dim() == 4 and (autocast or x.dtype == weight.dtype):
            kind = torch.get_autocast_dtype("cpu") if autocast else x.dtype
            tensors = (x, weight, *(() if self.bias is None else (self.bias,)))
            if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
                return _Convolution.apply(x, weight, self.bias, how, self.clipped, kind)  # type: ignore[return-value]
            return _convolve(x, weight, self.bias, how, self.clipped, kind)
        out = F.conv2d(x, weight, self.bias, *how)
        return F.hardtanh(out, 0.0, CEILING) if self.clipped else out

    def _evenly_padded(self, x: Tensor) -> tuple[Tensor, Any]:
        """The kernel and the padding of both sides of each axis; zeros before the kernel where one side needs less."""
        if not self.same:
            return self.weight, self.padding
        needed = [
            max((math.ceil(length / stride) - 1) * stride + (size - 1) * gap + 1 - length, 0)
            for length, size, stride, gap in zip(
                x.shape[-2:], self.kernel_size, self.stride, self.dilation, strict=True
            )
        ]
        if all(total % 2 == 0 for total in needed):
            return self.weight, tuple(total // 2 for total in needed)
        weight = F.pad(self.weight, (needed[1] % 2, 0, needed[0] % 2, 0))
        return weight, tuple((total + 1) // 2 for total in needed)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, how: Any, clipped: bool, kind: torch.dtype) -> Tensor:
    x, weight, bias = x.to(kind), weight.to(kind), None if bias is None else bias.to(kind)
    stride, padding, gaps, groups = how
    if clipped and not torch.compiler.is_compiling() and _clips_in_passing(kind) and x.numel():
        convolve = torch.ops.mkldnn._convolution_pointwise
        return convolve(x, weight, bias, padding, stride, gaps, groups, "hardtanh", [0.0, CEILING], "")
    out = F.conv2d(x, weight, bias, stride, padding, gaps, groups)
    return F.hardtanh(out, 0.0, CEILING) if clipped else out  # in place would take longer: in bfloat16 four times


@lru_cache(maxsize=4)
def _clips_in_passing(kind: torch.dtype) -> bool:
    """Whether this PyTorch and this processor convolve and clip in one pass: an operator that compiled models use."""
    if kind not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    x = torch.linspace(-9, 9, 32, device="cpu").view(1, 2, 4, 4).to(kind)
    weight = torch.ones(2, 1, 1, 1, dtype=kind, device="cpu")
    try:
        convolve = torch.ops.mkldnn._convolution_pointwise
        found = convolve(x, weight, None, (0, 0), (1, 1), (1, 1), 2, "hardtanh", [0.0, CEILING], "")
    except (AttributeError, RuntimeError, TypeError):  # another version of PyTorch; no bfloat16 in this processor
        return False
    return torch.equal(found, x.clamp(0, CEILING))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, how: Any, clipped: bool, kind: torch.dtype
    ) -> Tensor:
        x = x.to(kind)
        out = _convolve(x, weight, bias, how, clipped, kind)
        ctx.save_for_backward(x, weight, *((out,) if clipped else ()))
        ctx.how, ctx.has_bias, ctx.kind = how, bias is not None, kind
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight, *out = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        if out:  # what was clipped is known by its value: nothing else is exactly 0 or 6
            gradient = torch.ops.aten.hardtanh_backward(gradient, out[0], 0.0, CEILING)
        stride, padding, gaps, groups = ctx.how
        slow = ctx.kind == torch.bfloat16 and 1 < groups == x.shape[1] == len(weight)
        kind = torch.float32 if slow else ctx.kind
        needed = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.has_bias and ctx.needs_input_grad[2]]
        to_x, to_weight, to_bias = torch.ops.aten.convolution_backward(
            gradient.to(kind), x.to(kind), weight.to(kind), [len(weight)] if ctx.has_bias else None,
            stride, padding, gaps, False, (0, 0), groups, needed,
        )  # fmt: skip
        back = [
            None if found is None else found.to(like.dtype)
            for found, like in ((to_x, x), (to_weight, weight), (to_bias, weight))
        ]
        return *back, None, None, None


def fuse_convolutions(module: nn.Module) -> None:
    """Put a `FusedConv` in the place of every depthwise convolution below `module` and of every one that a ReLU6
    follows (which leaves); names of tensors stay. Each ReLU6 must follow one convolution alone."""
    children = list(module.named_children())
    for number, (name, child) in enumerate(children):
        if not isinstance(child, nn.Conv2d) or type(child) not in (nn.Conv2d, Conv2dSame):
            fuse_convolutions(child)
            continue
        after_name, after = children[number + 1] if number + 1 < len(children) else ("", None)
        clipped = type(after) is nn.ReLU6
        if child.dilation != (1, 1) or child.padding_mode != "zeros" or isinstance(child.padding, str):
            continue  # a row of zeros before a kernel with gaps would move it by more than a pixel
        if clipped or 1 < child.groups == child.in_channels == child.out_channels:
            setattr(module, name, FusedConv(child, clipped))
        if clipped:
            setattr(module, after_name, nn.Identity())
