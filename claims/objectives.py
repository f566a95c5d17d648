"""The small training runs that claims about objectives share: a plane with the exact answer, and the 8x8 digits.

Every arm of a comparison has the same network, first weights, data, noise and number of steps.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from claims.common import F64, VP, Denoiser, GaussianMixture, Noise, frechet, plan, sliced
from claims.problems import mixture
from claims.trained import MLP, NetworkDenoiser, Objective, UNet, fit, fresh
from fewstep.data.digits import load
from fewstep.denoisers.learned_variance import LearnedVariance
from fewstep.training.learned_variance import VariationalBound
from fewstep.training.multiscale import multiscale
from fewstep.training.weightings import weighting

PROCESS = VP()
PLANE_STEPS, PLANE_BATCH = 1200, 128
DIGIT_STEPS, DIGIT_BATCH = 400, 64
ABOUT_PLANE = f"perceptron for eps, {PLANE_STEPS} steps of {PLANE_BATCH} points of the 8-component mixture, vp"
CHAIN = 20  # steps, whose bound is learned
ABOUT_CHAIN = "perceptron for eps, 1000 steps of 128 points of the 8-component mixture, bound of a chain of 20, vp"
ABOUT_DIGITS = f"unet for eps, {DIGIT_STEPS} steps of {DIGIT_BATCH} digits, vp"


@functools.cache
def points(n: int = 20_000) -> Tensor:
    """Samples of the mixture, to train on."""
    return mixture(PROCESS).sample(n, 100).float()


@functools.cache
def plane(arm: str, seed: int) -> NetworkDenoiser:
    """A perceptron trained on the mixture; `arm` is "constant" or a weighting's name."""
    model = NetworkDenoiser(fresh(MLP, seed), PROCESS, "eps", (2,))
    objective = Objective(model, None if arm == "constant" else weighting(arm))
    return fit(model, points(), steps=PLANE_STEPS, batch=PLANE_BATCH, lr=2e-3, objective=objective, seed=seed)


@functools.cache
def hybrid(seed: int) -> LearnedVariance:
    """A perceptron that learns the variance too, with `L_simple + 0.001 L_vlb`."""
    model = LearnedVariance(fresh(MLP, seed, out=2), PROCESS, "eps", (2,))
    objective = Objective(model, terms=[(0.001, VariationalBound(CHAIN))])
    return fit(model, points(), steps=1000, batch=128, lr=2e-3, objective=objective, seed=seed)  # type: ignore[return-value]


@functools.cache
def mean_alone(seed: int) -> NetworkDenoiser:
    """The same without the bound, and without the variance."""
    model = NetworkDenoiser(fresh(MLP, seed), PROCESS, "eps", (2,))
    return fit(model, points(), steps=1000, batch=128, lr=2e-3, seed=seed)


@functools.cache
def digits(arm: str, seed: int) -> NetworkDenoiser:
    """A small unet trained on the digits; `arm` is "constant", "multiscale" or a weighting's name."""
    model = NetworkDenoiser(fresh(UNet, seed, width=(32, 48), classes=None), PROCESS, "eps", (1, 8, 8))
    options: dict[str, Any] = {}
    if arm == "multiscale":
        options["distance"] = functools.partial(multiscale, smallest=2)
    elif arm != "constant":
        options["weighting"] = weighting(arm)
    objective = Objective(model, **options)
    return fit(model, load("train")[0], steps=DIGIT_STEPS, batch=DIGIT_BATCH, lr=2e-3, objective=objective, seed=seed)


def few_step_distance(model: Denoiser, truth: GaussianMixture, seed: int, nfe: int = 5) -> float:
    """Sliced Wasserstein distance of 4096 samples from as many exact ones."""
    noise = Noise(seed).normal(0, (4096, *(truth.shape or ())))
    samples = plan(model.process, "dpmpp-2m", timesteps="log-snr", nfe=nfe)(model, noise, seed=seed)
    return sliced(samples.double(), truth.sample(4096, seed + 1))


def large_noise_error(model: Denoiser, truth: GaussianMixture, seed: int) -> float:
    """Root mean square of the predicted x0 less the exact posterior mean, at log(alpha / sigma) from -4 to -2."""
    process, generator = model.process, torch.Generator().manual_seed(seed)
    t = process.time(torch.linspace(-2, -4, 4096, dtype=F64))
    x0, eps = truth.sample(4096, seed + 1), torch.randn(4096, 2, generator=generator, dtype=F64)
    x = process.alpha(t)[:, None] * x0 + process.sigma(t)[:, None] * eps
    with torch.no_grad():
        return float((model(x.float(), t).x0 - truth(x, t).x0).square().mean().sqrt())


def digits_distance(model: Denoiser, seed: int, nfe: int = 5, n: int = 1000) -> float:
    """Frechet distance in pixels of n samples from the training digits."""
    noise = Noise(seed).normal(0, (n, 1, 8, 8))
    return frechet(plan(model.process, "dpmpp-2m", timesteps="log-snr", nfe=nfe)(model, noise), load("train")[0]).value


def digits_x0_error(model: Denoiser, seed: int, log_snr: tuple[float, float], side: int = 8) -> float:
    """Root mean square error of x0, averaged down to `side` pixels, on held-out digits at even log-SNRs."""
    x0 = load("validation")[0].repeat(4, 1, 1, 1)
    t = model.process.time(torch.linspace(*log_snr, len(x0), dtype=F64))
    t = t[torch.randperm(len(x0), generator=torch.Generator().manual_seed(seed))]
    eps = Noise(seed).normal(1, tuple(x0.shape))
    alpha, sigma = (value.float().reshape(-1, 1, 1, 1) for value in (model.process.alpha(t), model.process.sigma(t)))
    with torch.no_grad():
        error = model(alpha * x0 + sigma * eps, t).x0 - x0
    return float(nn.functional.avg_pool2d(error, 8 // side).square().mean().sqrt())
