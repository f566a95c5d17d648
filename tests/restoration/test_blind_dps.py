"""BlindDPS against the joint posterior of a small picture and a small kernel, and its steps written out."""

from __future__ import annotations

import itertools

import pytest
import torch
from restoration.problems import D, half, mixture, normal

import fewstep as fs
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.operators.noise import Gaussian
from fewstep.processes.flow import Flow
from fewstep.processes.vp import VP
from fewstep.restoration.blind_dps import BlindDPS, on_simplex
from fewstep.restoration.kernels import Kernels
from fewstep.restoration.measured import Measured
from fewstep.restoration.restore import walking

F64 = torch.float64


def kernels(process=None, spread=0.08) -> GaussianMixture:
    """Kernels of three taps: two numbers, their sum being one, and as likely to lean to either side."""
    frame = torch.tensor([[1.0, -1, 0], [1, 1, -2]], dtype=F64)
    frame = frame / frame.norm(dim=1, keepdim=True)
    means = torch.tensor([[0.2, 0.6, 0.2]], dtype=F64)
    return GaussianMixture(torch.ones(1), means, spread**2 * (frame.T @ frame)[None], process or VP())


def pair(process=None) -> GaussianMixture:
    """Samples of six numbers that two span."""
    frame = normal(2, D, seed=21)
    return GaussianMixture(torch.ones(1), normal(1, D, seed=22), 0.3 * (frame.T @ frame)[None], process or VP())


def run(own, model, a, y, noise, nfe, seed=8):
    loop = walking(model, a, Gaussian(noise), own, "blind-dps", nfe, "karras")
    return loop(Measured(model, a), normal(len(y), D, seed=seed), y=y, dtype=F64)


def exact(model, prior, y, noise) -> tuple[torch.Tensor, torch.Tensor]:
    """The posterior's means of x and k, on a grid over the two numbers of k; x given k is Gaussian."""
    family = Kernels(fs.operators.Blur(torch.ones(3)).fit((D,)))
    basis = prior.covariances()[0]
    values, vectors = torch.linalg.eigh(basis)
    directions = vectors[:, -2:] * values[-2:].sqrt()
    grid = torch.tensor(list(itertools.product(torch.linspace(-4, 4, 41).tolist(), repeat=2)), dtype=F64)
    ks = prior.means[0] + grid @ directions.T
    logs, means = [], []
    c, m = model.covariances()[0], model.means[0]
    for k, at in zip(ks, grid, strict=True):
        a = family.apply(k.expand(D, -1), torch.eye(D, dtype=F64)).T
        cov = a @ c @ a.T + noise**2 * torch.eye(D, dtype=F64)
        r = y - a @ m
        solved = torch.linalg.solve(cov, r)
        logs.append(-(r @ solved + torch.logdet(cov) + at.square().sum()) / 2)
        means.append(m + c @ a.T @ solved)
    weights = torch.stack(logs).softmax(0)
    return (weights[:, None] * torch.stack(means)).sum(0), (weights[:, None] * ks).sum(0)


@pytest.mark.parametrize("process", [VP(), Flow()], ids=["vp", "flow"])
def test_it_is_nearer_to_the_joint_posteriors_mean_than_the_prior(process):
    model, prior, noise, n = pair(process), kernels(process), 0.05, 64
    true = torch.tensor([0.05, 0.6, 0.35], dtype=F64)
    a = fs.operators.Blur(torch.ones(3)).fit((D,))
    x = model.sample(1, seed=3)
    y = fs.operators.Blur(true).fit((D,)).measure(x, noise=noise, seed=2)
    mean_x, mean_k = exact(model, prior, y[0], noise)
    own = BlindDPS(prior, zeta=0.5, kernel_zeta=0.05)
    drawn = run(own, model, a, y.expand(n, -1), noise, 50)
    off_x = float((drawn.mean(0) - mean_x).norm() / (model.means[0] - mean_x).norm())
    off_k = float((own.found[0].mean(0) - mean_k).norm() / (prior.means[0] - mean_k).norm())
    assert off_x < 0.3 and off_k < 0.8


def test_without_gradients_both_are_draws_of_their_priors():
    model, prior, n = pair(), kernels(), 3
    a = fs.operators.Blur(torch.ones(3)).fit((D,))
    own = BlindDPS(prior, zeta=0.0, kernel_zeta=0.0, simplex=False)
    x = run(own, model, a, normal(n, D, seed=4), 0.1, 6)
    plain = fs.plan(model.process, "ddpm", timesteps="karras", nfe=6)(model, normal(n, D, seed=8), dtype=F64)
    assert torch.allclose(x, plain, atol=1e-10)
    assert torch.allclose(own.found[0].sum(1), torch.ones(n, dtype=F64), atol=1e-6)


def test_the_simplex_is_the_nearest_point():
    k = normal(50, 4, seed=1)
    near = on_simplex(k)
    assert bool((near >= 0).all()) and torch.allclose(near.sum(1), torch.ones(50, dtype=F64))
    others = torch.rand(200, 4, generator=torch.Generator().manual_seed(2), dtype=F64)
    others = others / others.sum(1, keepdim=True)
    assert bool(((k - near).norm(dim=1)[:, None] <= torch.cdist(k, others) + 1e-12).all())


def test_it_runs_without_a_model_of_kernels_and_says_what_does_not_fit():
    model = mixture()
    a = fs.operators.Blur(torch.tensor([0.2, 0.6, 0.2])).fit((D,))
    y = a.measure(model.sample(2, seed=3), noise=0.1)
    x = fs.restore(model, y, a, 0.1, method="blind-dps", options={"sparse": 0.1}, nfe=5, dtype=F64)
    assert bool(torch.isfinite(x).all())
    with pytest.raises(ValueError, match="unknown kernels start from a cyclic Blur"):
        fs.restore(model, y, half(), 0.1, method="blind-dps")
    with pytest.raises(ValueError, match="must have one process"):
        fs.restore(model, y, a, 0.1, method="blind-dps", options={"kernels": kernels(Flow())})
    with pytest.raises(ValueError, match=r"the model of kernels makes \(6,\)"):
        fs.restore(model, y, a, 0.1, method="blind-dps", options={"kernels": mixture()})
