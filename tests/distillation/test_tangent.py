"""Derivatives along a direction: closed forms, the orders of differences, gradients, networks without forward mode."""

from __future__ import annotations

import math

import pytest
import torch
from distillation.short import Twice
from torch import nn
from torch.nn import functional

from fewstep.distillation.tangent import WrittenOut, tangent
from fewstep.networks.dit import DiT
from fewstep.networks.mlp import MLP
from fewstep.networks.unet import UNet

F64 = torch.float64


def trajectory():
    """A state, a time, a velocity, and d/dt of sin(x) exp(-t) along them."""
    generator = torch.Generator().manual_seed(0)
    x, v = (torch.randn(5, 3, generator=generator, dtype=F64) for _ in range(2))
    t = torch.rand(5, generator=generator, dtype=F64)
    decay = (-t).exp()[:, None]
    return x, t, v, x.sin() * decay, (x.cos() * v - x.sin()) * decay


def wave(x, t):
    return x.sin() * (-t)[:, None].exp()


def test_forward_mode_is_the_closed_form():
    x, t, v, expected, slope = trajectory()
    value, found = tangent(wave, (x, t), (v, torch.ones_like(t)))
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-15)
    torch.testing.assert_close(found, slope, rtol=0, atol=1e-14)


def test_differences_are_of_second_order():
    x, t, v, expected, slope = trajectory()
    errors = []
    for h in (4e-3, 2e-3, 1e-3):
        value, found = tangent(wave, (x, t), (v, torch.ones_like(t)), "difference", h=h)
        assert torch.equal(value, expected)
        errors.append(float((found - slope).abs().max()))
    assert errors[-1] < 5e-6
    orders = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert orders == pytest.approx([2.0, 2.0], abs=1e-3)


def small(kind, **options):
    """A network of float64 pictures, all its weights moved, and its inputs; it attends, wherever its kind can."""
    made = {
        UNet: lambda: UNet(2, 4, (8, 16), attention=(2, 4), classes=3, **options),
        DiT: lambda: DiT(2, 4, width=64, depth=2, classes=3, **options),
        MLP: lambda: MLP((2, 4, 4), 16, 2, classes=3, **options),
    }
    torch.manual_seed(0)
    network = made[kind]().double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=F64))
    x, v = (torch.randn(3, 2, 4, 4, generator=generator, dtype=F64) for _ in range(2))
    t = torch.rand(3, generator=generator, dtype=F64)
    return network, (x, t, t / 2), (v, torch.ones_like(t), torch.zeros_like(t))


def of(network):
    """The network as a function of a state and two times."""
    return lambda x, t, s: network(x, t, torch.tensor([0, 2, 3]), target=s)


@pytest.mark.parametrize("kind", [UNet, DiT, MLP])
@pytest.mark.parametrize("late", [0, 2])
def test_networks_have_forward_mode(kind, late):
    network, inputs, along = small(kind, extras={"target": 1}, late=late)
    for directions in (along, (torch.zeros_like(inputs[0]), torch.zeros_like(inputs[1]), along[1])):
        value, slope = tangent(of(network), inputs, directions)
        same, steps = tangent(of(network), inputs, directions, "difference", h=1e-4)
        torch.testing.assert_close(value, same, rtol=0, atol=1e-12)
        assert slope.abs().max() > 1e-2
        torch.testing.assert_close(steps, slope, rtol=1e-4, atol=1e-5 * float(slope.abs().max()))


@pytest.mark.parametrize("mode", ["jvp", "difference"])
def test_the_value_has_its_own_gradient_and_the_derivative_none(mode):
    network, inputs, directions = small(DiT, extras={"target": 1})
    x = inputs[0].requires_grad_()
    wanted = [x, *network.parameters()]
    value, slope = tangent(of(network), inputs, directions, mode)
    assert not slope.requires_grad
    found = torch.autograd.grad((value * slope).sum(), wanted)
    expected = torch.autograd.grad((of(network)(*inputs) * slope).sum(), wanted)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_the_derivative_keeps_its_gradient_where_it_is_to():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 16), nn.GELU(), nn.Linear(16, 16), nn.SiLU(), nn.Linear(16, 3)).double()
    x, _, v, _, _ = trajectory()
    _, slope = tangent(network, (x,), (v,), keep=True)
    _, twice = torch.autograd.functional.jvp(network, x, v, create_graph=True)  # by two backward passes
    torch.testing.assert_close(slope, twice, rtol=0, atol=1e-12)
    parameters = list(network.parameters())[:-1]  # the last bias has no part in it
    found, expected = (torch.autograd.grad(one.square().sum(), parameters) for one in (slope, twice))
    assert min(float(one.abs().max()) for one in expected) > 1e-4
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", [UNet, DiT, MLP])
def test_the_gradient_of_the_derivative_is_right_through_norms_and_attention(kind):
    """Differences tend to it in the second order; of torch's own layer norm they do not."""
    network, inputs, directions = small(kind, extras={"target": 1})
    parameters = list(network.parameters())

    def gradient(*how, **options):
        _, slope = tangent(of(network), inputs, directions, *how, keep=True, **options)
        found = torch.autograd.grad(slope.square().sum(), parameters, materialize_grads=True)
        return torch.cat([one.flatten() for one in found])

    exact = gradient()
    errors = [float((gradient("difference", h=h) - exact).norm() / exact.norm()) for h in (2e-3, 1e-3)]
    assert errors[1] < 1e-3 and math.log2(errors[0] / errors[1]) == pytest.approx(2.0, abs=0.05)


def test_layer_norm_written_out_is_layer_norm():
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(2, 3, 5, generator=generator, dtype=F64) for _ in range(3))
    with WrittenOut():
        out = functional.layer_norm(x, (3, 5), weight[0], bias[0], 1e-3)
        plain = nn.LayerNorm(5).double()(x)
    torch.testing.assert_close(out, functional.layer_norm(x, (3, 5), weight[0], bias[0], 1e-3), rtol=0, atol=1e-14)
    torch.testing.assert_close(plain, functional.layer_norm(x, (5,)), rtol=0, atol=1e-14)


class Fused(nn.Module):
    """A tensor operation whose derivative is known backwards alone."""

    def forward(self, x):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(x, x, x)[0]


@pytest.mark.parametrize("function", [Twice.apply, Fused()])
def test_networks_without_forward_mode_say_what_to_use(function):
    x = torch.randn(1, 2, 3, 8, dtype=F64)
    with pytest.raises(ValueError, match='the network has no forward mode: use tangent="difference"'):
        tangent(function, (x,), (torch.ones_like(x),))
    _, slope = tangent(function, (x,), (x,), "difference")
    assert slope.shape == x.shape and (function is not Twice.apply or torch.allclose(slope, 2 * x, atol=1e-10))


def test_errors_of_the_function_stay_what_they_are():
    x = torch.ones(2, 3)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        tangent(lambda x: x @ x, (x,), (x,))


def test_bad_calls_raise():
    x = torch.ones(2)
    with pytest.raises(ValueError, match="unknown tangent 'differences': did you mean 'difference'"):
        tangent(torch.sin, (x,), (x,), "differences")
    with pytest.raises(ValueError, match=r"directions must have the shapes of the inputs, \[\(2,\)\], got \[\(3,\)\]"):
        tangent(torch.sin, (x,), (torch.ones(3),))
    with pytest.raises(ValueError, match="h must be positive, got 0"):
        tangent(torch.sin, (x,), (x,), "difference", h=0)
