"""Small flows and denoisers trained under different couplings and data, shared by the claims about them.

The plane: the eight-component mixture of `claims.problems`, a perceptron, 1000 steps of 128 samples. Digits: a small
unet, 300 steps of 64 images. Both predict the rectified flow's velocity at uniform times.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from claims.common import Denoiser, Flow, Noise, frechet, plan
from claims.problems import mixture
from claims.trained import MLP, NetworkDenoiser, UNet, fit, fresh
from fewstep.core.methods import find
from fewstep.data.digits import load
from fewstep.metrics.curvature import curvature
from fewstep.training.couplings import assignment
from fewstep.training.monge_gap import squared_cost

STEPS, BATCH, RATE = 1000, 128, 2e-3
DIGIT_STEPS, DIGIT_BATCH = 300, 64
PLANE = f"8-component mixture, mlp, {STEPS} steps of {BATCH}"
DIGITS = f"digits, unet, {DIGIT_STEPS} steps of {DIGIT_BATCH}"
TRUTH_SEED = 1000  # of the samples that distances are measured to, apart from those of training
N = 1024
BEND, W2 = "curvature over squared chord", "W2 to the truth"  # units of the figures below


@functools.cache
def plane_flow(seed: int, coupling: str = "independent-coupling", steps: int = STEPS) -> NetworkDenoiser:
    """A flow to the mixture, its training noise coupled by name."""
    model = NetworkDenoiser(fresh(MLP, seed), Flow(), "velocity", shape=(2,), value_range=None)
    data = mixture(Flow()).sample(20_000, seed).float()
    return fit(model, data, steps=steps, batch=BATCH, lr=RATE, coupling=find(coupling, "training"), seed=seed)


@functools.cache
def digits_flow(seed: int, coupling: str) -> NetworkDenoiser:
    """A flow to the digits, without labels."""
    network = fresh(UNet, seed, width=(16, 32), classes=None)
    model = NetworkDenoiser(network, Flow(), "velocity", shape=(1, 8, 8))
    named = find(coupling, "training")
    return fit(model, load("train")[0], steps=DIGIT_STEPS, batch=DIGIT_BATCH, lr=RATE, coupling=named, seed=seed)


def noises(seed: int, shape: tuple[int, ...], n: int = N) -> Tensor:
    return Noise(seed + 100).normal(0, (n, *shape))


def bend(model: NetworkDenoiser, seed: int, n: int = N, steps: int = 50) -> float:
    """Curvature of the model's paths, relative to the squared length of their chords."""
    made = plan(Flow(), "ddim", steps, "uniform")
    run = made.run(model, noises(seed, model.shape or (), n), trajectory=True)
    return curvature(run.trajectory, made.times).relative


def wasserstein(samples: Tensor, truth: Tensor) -> float:
    """The exact 2-Wasserstein distance of two equally large sets of points."""
    cost = squared_cost(samples, truth)
    return float(cost.gather(1, assignment(cost)[:, None]).mean().sqrt())


@functools.cache
def truth(seed: int) -> Tensor:
    return mixture(Flow()).sample(N, TRUTH_SEED + seed)


def plane_error(model: Denoiser, seed: int, steps: int) -> float:
    """W2 of samples in so many Euler steps to exact ones."""
    return wasserstein(plan(Flow(), "ddim", steps, "uniform")(model, noises(seed, (2,))), truth(seed))


@functools.cache
def floor(seed: int) -> float:
    """W2 of exact samples from exact ones."""
    return wasserstein(mixture(Flow()).sample(N, TRUTH_SEED + 500 + seed), truth(seed))


def digits_error(model: NetworkDenoiser, seed: int, steps: int) -> float:
    """Frechet distance in pixels of 1000 samples in so many Euler steps to the training images."""
    made = plan(Flow(), "ddim", steps, "uniform")
    samples = torch.cat([made(model, part) for part in noises(seed, (1, 8, 8), 1000).split(250)])
    return frechet(samples, load("train")[0]).value
