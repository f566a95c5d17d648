"""Heads on features, the two adversarial losses, and both forms of R1 against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from distillation.matched import F64, perceptron, shaken
from torch.nn import functional

from fewstep.denoisers.network import NetworkDenoiser
from fewstep.distillation.discriminator import Discriminator, Head, r1, r1_difference, sides
from fewstep.distillation.features import Read
from fewstep.networks.unet import UNet
from fewstep.processes.ve import EDM

MATRIX = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 0.7]], dtype=F64)
VECTOR = torch.tensor([0.4, -1.0, 0.2], dtype=F64)


def quadratic(x, t, condition):
    """`x A x / 2 + b x`, whose slope is `A x + b`."""
    return (x @ MATRIX * x).sum(1) / 2 + x @ VECTOR


def test_a_head_averages_its_perceptron_over_the_places():
    head = Head((1, 5, 2, 3))
    x = torch.randn(7, 5, 2, 3, generator=torch.Generator().manual_seed(0))
    places = [head.last(functional.silu(head.first(head.norm(x[:, :, i, j])))) for i in range(2) for j in range(3)]
    torch.testing.assert_close(head(x), torch.stack(places).mean(0)[:, 0])
    tokens = Head((1, 6, 5))
    tokens.load_state_dict(head.state_dict())
    torch.testing.assert_close(tokens(x.flatten(2).mT), head(x))
    vectors = Head((1, 5))
    vectors.load_state_dict(head.state_dict())
    torch.testing.assert_close(vectors(x[..., 0, 0]), places[0][:, 0])


def test_a_logit_is_the_sum_of_the_heads():
    model = shaken(perceptron(classes=3))
    made = Discriminator(model, (2,), ["block.0", "block.2"], {"label": torch.tensor([0])}, seed=4)
    x, t, label = torch.ones(5, 2), torch.linspace(0.1, 2, 5), torch.arange(5) % 3
    _, found = Read(model, ["block.0", "block.2"])(x, t, {"label": label})
    total = made.heads[0](found["block.0"]) + made.heads[1](found["block.2"])
    torch.testing.assert_close(made(x, t, {"label": label}), total)


def test_its_parameters_are_those_of_the_heads_and_follow_from_the_seed():
    model, before = perceptron(), torch.get_rng_state()
    made = [Discriminator(model, (2,), None, {}, seed).state_dict() for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(name.startswith("heads.0.") for name in made[0])
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert not torch.equal(made[0]["heads.0.first.weight"], made[2]["heads.0.first.weight"])


def test_pictures_are_judged():
    network = UNet(channels=1, width=(4, 8), attention=(), classes=None)
    model = NetworkDenoiser(network, EDM(), "x0", (1, 4, 6), precondition="edm")
    assert Discriminator(model, (1, 4, 6), ["mid.res1"], {})(torch.ones(3, 1, 4, 6), torch.ones(3), {}).shape == (3,)


def test_the_losses():
    real, made = torch.tensor([2.0, 0.0, -1.0]), torch.tensor([-2.0, 0.0, 1.5])
    judge, student = sides("non-saturating")
    exact = [math.log1p(math.exp(-r)) + math.log1p(math.exp(m)) for r, m in zip(real, made, strict=True)]
    torch.testing.assert_close(judge(real, made), torch.tensor(exact))
    torch.testing.assert_close(student(made), torch.tensor([math.log1p(math.exp(-m)) for m in made]))
    judge, student = sides("hinge")
    torch.testing.assert_close(judge(real, made), torch.tensor([0.0, 2.0, 4.5]))
    torch.testing.assert_close(student(made), -made)
    with pytest.raises(ValueError, match="did you mean 'hinge'"):
        sides("hing")


def test_the_best_logit_is_the_logarithm_of_the_ratio():
    # Two points with probabilities p and q: at the minimum of the expected loss, logit = log(p / q).
    p, q = torch.tensor([0.8, 0.2], dtype=F64), torch.tensor([0.3, 0.7], dtype=F64)
    logit = (p / q).log().requires_grad_(True)
    judge, _ = sides("non-saturating")
    loss = (p * judge(logit, torch.full_like(logit, -1e9)) + q * judge(torch.full_like(logit, 1e9), logit)).sum()
    assert torch.autograd.grad(loss, logit)[0].abs().max() < 1e-15


def test_r1_is_the_squared_slope_with_its_gradient():
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    slope = x @ MATRIX + VECTOR
    found = r1(quadratic, x, torch.ones(5), {})
    torch.testing.assert_close(found, slope.square().sum(1))
    scale = torch.ones((), dtype=F64, requires_grad=True)
    penalty = r1(lambda x, t, condition: scale * quadratic(x, t, condition), x, torch.ones(5), {}).sum()
    torch.testing.assert_close(torch.autograd.grad(penalty, scale)[0], 2 * slope.square().sum())


def test_the_difference_form_has_the_mean_of_r1():
    # Over z it is |g|^2 + h^2 (2 |A|^2 + (tr A)^2) / 4, by the moments of quadratic forms.
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    grid = torch.cartesian_prod(*[torch.tensor(nodes)] * 3)
    mass = torch.cartesian_prod(*[torch.tensor(weights / weights.sum())] * 3).prod(1)
    x = torch.tensor([0.5, -0.2, 1.0], dtype=F64).expand(len(grid), 3)
    slope = (x[:1] @ MATRIX + VECTOR).square().sum()
    for h in (0.01, 0.5):
        found = (mass * r1_difference(quadratic, x, torch.ones(len(grid)), {}, grid, h)).sum()
        exact = slope + h**2 / 4 * (2 * MATRIX.square().sum() + MATRIX.trace() ** 2)
        torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)
