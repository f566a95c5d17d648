"""Adam on a sample is torch's Adam."""

from __future__ import annotations

import math

import torch

from fewstep.restoration.adam import BETAS, TINY, Adam


def test_it_is_torchs_with_a_rate_along_a_cosine():
    gradients = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours, x = Adam(0.3, len(gradients)), torch.nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))
    theirs = torch.optim.Adam([x], lr=0.3, betas=BETAS, eps=TINY)
    mu = torch.zeros(2, 3, dtype=torch.float64)
    for number, gradient in enumerate(gradients):
        theirs.param_groups[0]["lr"] = 0.3 * 0.5 * (1 + math.cos(math.pi * number / len(gradients)))
        x.grad = gradient.clone()
        theirs.step()
        mu = mu - ours.move(gradient)
        assert torch.allclose(mu, x.detach(), rtol=1e-10)


def test_forgotten_means_are_those_of_a_new_one():
    g = torch.tensor([2.0, -3.0])
    old, new = Adam(0.1, 4), Adam(0.1, 4)
    old.move(torch.tensor([100.0, 100.0]))
    old.forget()
    new.number = old.number
    assert torch.equal(old.move(g), new.move(g))
