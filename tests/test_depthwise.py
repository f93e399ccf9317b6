"""Depthwise convolutions in bfloat16 with float32 gradients agree with PyTorch's own in float32."""

import copy

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from ucore.depthwise import DepthwiseConv, replace_depthwise


def convolutions():
    torch.manual_seed(0)
    yield nn.Conv2d(6, 6, 5, padding=2, groups=6)
    yield nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=6, bias=False)
    yield Conv2dSame(6, 6, 5, stride=2, groups=6)


def gradients(layer, x):
    x = x.clone().requires_grad_()
    out = layer(x)
    (out.float() * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    return [out.detach().float(), x.grad, *(parameter.grad for parameter in layer.parameters())]


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("size", [12, 13])
def test_outputs_and_gradients_are_those_of_the_original(number, size):
    original = list(convolutions())[number]
    x = torch.randn(4, 6, size, size).contiguous(memory_format=torch.channels_last)
    expected = gradients(copy.deepcopy(original), x)
    layer = DepthwiseConv(copy.deepcopy(original))
    exact = gradients(layer, x)
    for mine, theirs in zip(exact, expected, strict=True):
        torch.testing.assert_close(mine, theirs)
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = gradients(layer, x)
    for mine, theirs in zip(rounded, expected, strict=True):
        assert (mine - theirs).norm() < 0.02 * theirs.norm()


def test_frozen_weights_get_no_gradient_and_pass_one_on():
    layer = DepthwiseConv(next(convolutions())).requires_grad_(False)
    x = torch.randn(2, 6, 8, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x).float().sum().backward()
    assert layer.weight.grad is None
    assert x.grad is not None


def test_replacing_keeps_names_and_leaves_other_convolutions():
    block = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Sequential(*convolutions()))
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    replace_depthwise(block)
    assert [type(layer).__name__ for layer in block[1]] == ["DepthwiseConv"] * 3
    assert type(block[0]) is nn.Conv2d
    assert block.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())
