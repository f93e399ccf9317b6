"""Fused convolutions agree with PyTorch's own, a ReLU6 behind them, in outputs and in gradients."""

import copy
import platform

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from ucore import convolution
from ucore.convolution import FusedConv, fuse_convolutions


def convolutions():
    torch.manual_seed(0)
    yield nn.Conv2d(6, 6, 5, padding=2, groups=6)
    yield nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=6, bias=False)
    yield Conv2dSame(6, 6, 5, stride=2, groups=6)
    yield Conv2dSame(6, 6, 3, stride=2, groups=6, bias=False)
    yield Conv2dSame(6, 8, (3, 4), stride=(2, 3))
    yield nn.Conv2d(6, 9, 1)
    yield nn.Conv2d(6, 4, 3, dilation=2, groups=2, padding=1)


def gradients(layer, x, counts=1):
    x = x.clone().requires_grad_()
    out = layer(x)
    (out.float() * counts * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    return [out.detach().float(), x.grad, *(parameter.grad for parameter in layer.parameters())]


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize("size", [(12, 12), (13, 12), (13, 13)])
def test_outputs_and_gradients_are_those_of_the_original(number, size, clipped):
    convolution_layer = list(convolutions())[number]
    convolution_layer.weight.data *= 12  # so that many outputs lie beyond 6, and many below 0
    original = nn.Sequential(convolution_layer, nn.ReLU6() if clipped else nn.Identity())
    x = torch.randn(4, 6, *size).contiguous(memory_format=torch.channels_last)
    expected = gradients(copy.deepcopy(original), x)
    assert not clipped or {0.0, 6.0} < set(expected[0].flatten().tolist())
    layer = FusedConv(copy.deepcopy(convolution_layer), clipped)
    exact = gradients(layer, x)
    for mine, theirs in zip(exact, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), expected[0], rtol=1e-4, atol=1e-4)
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = gradients(layer, x)
        with torch.inference_mode():
            assert layer(x).dtype == torch.bfloat16
            assert torch.equal(layer(x).float(), rounded[0])
    if clipped:  # rounded, an output near 0 or 6 can fall on the other side of it, and its gradient with it
        counts = (rounded[0] > 0) & (rounded[0] < 6)
        expected[1:] = gradients(copy.deepcopy(convolution_layer), x, counts)[1:]
    for mine, theirs in zip(rounded, expected, strict=True):
        assert (mine - theirs).norm() < 0.02 * theirs.norm()


def test_without_the_operator_of_compiled_models_the_same_comes_out(monkeypatch):
    layer = FusedConv(list(convolutions())[2], clipped=True)
    x = torch.randn(2, 6, 9, 9) * 9
    with torch.inference_mode():
        fused = layer(x)
        monkeypatch.setattr(convolution, "_clips_in_passing", lambda kind: False)
        torch.testing.assert_close(layer(x), fused)
    assert layer(torch.zeros(0, 6, 9, 9)).shape == (0, 6, 5, 5)


def test_frozen_weights_get_no_gradient_and_pass_one_on():
    layer = FusedConv(next(convolutions()), clipped=True).requires_grad_(False)
    x = torch.randn(2, 6, 8, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x).float().sum().backward()
    assert layer.weight.grad is None
    assert x.grad is not None


def test_trained_weights_of_a_layer_whose_input_needs_no_gradient():
    layer = FusedConv(list(convolutions())[2], clipped=True)
    layer(torch.randn(2, 6, 8, 8)).sum().backward()
    assert layer.weight.grad is not None and layer.bias.grad is not None


def test_what_the_original_refuses_is_refused():
    layer, original = FusedConv(list(convolutions())[5], clipped=True), list(convolutions())[5]
    for x in (torch.ones(1, 6, 4, 4, dtype=torch.uint8), torch.ones(1, 6, 4, 4, dtype=torch.float64)):
        for one in (layer, original):
            with torch.inference_mode(), pytest.raises(RuntimeError):
                one(x)
    single = torch.randn(6, 4, 4)
    torch.testing.assert_close(layer(single), original(single).clamp(0, 6))


def test_gradients_in_float64_are_exact():
    for number in (0, 2, 3):
        layer = FusedConv(list(convolutions())[number].double(), clipped=True)
        assert torch.autograd.gradcheck(layer, torch.randn(1, 6, 5, 5, dtype=torch.float64, requires_grad=True))


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not torch.backends.mkldnn.is_available(), reason="of oneDNN on x86-64 alone"
)
def test_the_operator_is_there():
    """If not, a new version of PyTorch has renamed it: all would still be right, and slow."""
    assert convolution._clips_in_passing(torch.float32)


def test_compiled_layers_are_one_graph_and_give_the_same():
    block = nn.Sequential(*(FusedConv(list(convolutions())[number], clipped=True) for number in (0, 2)))
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 6, 9, 9)
    for mine, theirs in zip(gradients(compiled, x), gradients(copy.deepcopy(block), x), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_fusing_twice_changes_nothing():
    block = nn.Sequential(*(part for number in (0, 2) for part in (list(convolutions())[number], nn.ReLU6())))
    x = torch.randn(2, 6, 9, 9)
    expected = block(x)
    for _ in range(2):
        fuse_convolutions(block)
        torch.testing.assert_close(block(x), expected)


def test_fusing_keeps_names_and_leaves_other_convolutions():
    plain = [nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, dilation=2, groups=6), nn.ReLU6(), nn.Conv2d(6, 6, 1), nn.ReLU()]
    block = nn.Sequential(
        nn.Sequential(*plain), nn.Sequential(*list(convolutions())[:4]), nn.Sequential(nn.Conv2d(6, 6, 1), nn.ReLU6())
    )
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    fuse_convolutions(block)
    assert [type(layer) for layer in block[0]] == [type(layer) for layer in plain]
    assert [type(layer).__name__ for layer in block[1]] == ["FusedConv"] * 4
    assert [type(layer).__name__ for layer in block[2]] == ["FusedConv", "Identity"]
    assert [layer.clipped for layer in (*block[1], block[2][0])] == [False] * 4 + [True]
    assert block.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())
