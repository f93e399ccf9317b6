"""Depthwise convolutions whose gradients are computed fast on a processor.

In bfloat16, oneDNN computes a depthwise convolution itself quickly but its gradients 3 to 20 times slower than in
float32 (slowest where the stride is 2), which then take half of a training step. Here the forward pass stays in
bfloat16 and the backward pass uses float32.
"""

from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torch.nn import functional as F


class _Float32Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any) -> Tensor:
        x = x.to(torch.bfloat16)
        ctx.save_for_backward(x, weight)
        ctx.geometry, ctx.has_bias = (stride, padding), bias is not None
        bias = None if bias is None else bias.to(torch.bfloat16)
        return F.conv2d(x, weight.to(torch.bfloat16), bias, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        stride, padding = ctx.geometry
        gradient = gradients[0].float().contiguous(memory_format=torch.channels_last)
        needed = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.has_bias]
        to_x, to_weight, to_bias = torch.ops.aten.convolution_backward(
            gradient, x.float(), weight.float(), [len(weight)] if ctx.has_bias else None,
            stride, padding, (1, 1), False, (0, 0), len(weight), needed,
        )  # fmt: skip
        return None if to_x is None else to_x.to(x.dtype), to_weight, to_bias, None, None


class DepthwiseConv(nn.Conv2d):
    """A depthwise nn.Conv2d or timm Conv2dSame with the same parameters, outputs and gradients.

    Only where it computes in bfloat16 on a processor and a gradient is wanted does it take its own way.
    """

    def __init__(self, original: nn.Conv2d) -> None:
        channels, bias = original.in_channels, original.bias is not None
        size: Any = (original.kernel_size, original.stride, original.padding)
        super().__init__(channels, channels, *size, groups=channels, bias=bias)
        self.weight, self.bias = original.weight, original.bias
        self.same = isinstance(original, Conv2dSame)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Float (B, C, H, W) to float (B, C, H', W'), as nn.Conv2d and timm's Conv2dSame give it."""
        if self.same:
            x = pad_same(x, list(self.kernel_size), list(self.stride))
        autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        trained = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        if x.device.type == "cpu" and autocast and trained:
            return _Float32Backward.apply(x, self.weight, self.bias, self.stride, self.padding)  # type: ignore[return-value]
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, groups=self.groups)


def replace_depthwise(module: nn.Module) -> None:
    """Put a `DepthwiseConv` in the place of every depthwise convolution below `module`; names of tensors stay."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d) and _is_depthwise(child):
            setattr(module, name, DepthwiseConv(child))
        else:
            replace_depthwise(child)


def _is_depthwise(layer: nn.Conv2d) -> bool:
    return 1 < layer.groups == layer.in_channels == layer.out_channels and layer.dilation == (1, 1)
