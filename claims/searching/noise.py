"""Claims of searches for the initial noise, and of the evolution that denoises a population."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from claims.claim import Claim, Outcome, compared, experiment, over_seeds, slow, tolerance
from claims.common import F64, SLICED, plan, sample, sliced
from claims.parts import VP, GaussianMixture, Noise
from fewstep.data.digits import load as load_digits
from fewstep.hub.models import load as load_model
from fewstep.searching.evolution import evolve, posterior_mean
from fewstep.searching.find_noise import FoundNoise, find_noise

N, STEPS, GRADIENTS = 8, 20, 25
SURROGATE, SURROGATE_GRADIENTS, RATE = 2, 15, 0.3
CHEAP, RUNS = 4, 60  # evaluations of a run where runs are cheap, and how many

Reward = Callable[..., Tensor]


def _control(what: str, seed: int, n: int) -> Reward:
    """Minus the control loss: mean squared difference from a held-out digit's ink by rows, or from its left half."""
    images = load_digits("validation")[0][n * (seed + 1) : n * (seed + 2)]
    targets = (images[:, 0] / 2).mean(2) if what == "curve" else images[..., :4] / 2

    def reward(x: Tensor, **condition: Tensor) -> Tensor:
        seen = (x[:, 0] / 2).mean(2) if what == "curve" else x[..., :4] / 2
        goal = targets.repeat(len(x) // n, *[1] * (targets.ndim - 1))
        return -(seen - goal).square().flatten(1).mean(1)

    return reward


@functools.cache
def _found(method: str, what: str, seed: int) -> FoundNoise:
    """The two ways of descent on the same noises: 20 steps of ddim, rate 0.3 for both; a short call warms up."""
    model = load_model("digits")
    long, short = plan(model.process, "ddim", STEPS), plan(model.process, nfe=SURROGATE)
    options: dict[str, Any] = {"surrogate": short}
    one, steps = SURROGATE, SURROGATE_GRADIENTS
    if method == "gradient":
        options, one, steps = {"segment": STEPS}, STEPS, GRADIENTS  # kept whole, so that nothing runs twice
    for count in (1, steps):
        found = find_noise(
            model,
            long,
            _control(what, seed, N),
            method,
            evaluations=2 * STEPS + count * one,
            n=N,
            seed=seed,
            options=options | {"rate": RATE},
        )
    return found


def _reached(found: FoundNoise, loss: float, figure: str) -> float:
    """The seconds or rows beyond the plain run, which both make first, until the mean loss is so low; all that were
    spent where it never is."""
    points = [point for point in found.trace if -float(point.reward.mean()) <= loss]
    return float(getattr((points or found.trace[-1:])[0], figure)) - float(getattr(found.trace[0], figure))


@experiment
def _times_fewer(seed: int, what: str, figure: str, share: float | None = None) -> Outcome:
    """To the loss that DITTO-2 ends with, or to a share of a plain run's, which it may pass long before its end."""
    fast, exact = _found("ditto-2", what, seed), _found("gradient", what, seed)
    ended, plain = -float(fast.reward.mean()), -float(exact.trace[0].reward.mean())
    loss = ended if share is None else share * plain
    never = "" if -float(exact.reward.mean()) <= loss else ", which never gets there"
    about = (
        f"{N} digits, {what}; surrogate: universal, {SURROGATE} evaluations, {SURROGATE_GRADIENTS} gradients, then"
        f" {STEPS} steps of ddim; to {loss / plain:.2g} of a plain run's loss (it ends with {ended / plain:.2g}),"
        f" against the gradient through those {STEPS} steps, at most {GRADIENTS} times{never}"
    )
    ratio = _reached(exact, loss, figure) / _reached(fast, loss, figure)
    return compared([ratio if ended <= loss else 0.0, 5.0], "asked for", about, "high", f"times fewer {figure}")


def _decoded(seed: int) -> Outcome:
    """Samples of the noise found through the surrogate: the plan's against the surrogate's own."""
    model, real, n = load_model("digits"), load_digits("train")[0][:500], 64
    short, long = plan(model.process, nfe=1), plan(model.process, "ddim", STEPS)
    found = find_noise(model, long, _control("curve", seed, n), "ditto-2", evaluations=2 * STEPS + SURROGATE_GRADIENTS,
                       n=n, seed=seed, options={"surrogate": short})  # fmt: skip
    figures = sliced(found.samples, real), sliced(short(model, found.noise), real)
    about = f"{n} digits, noise found in {SURROGATE_GRADIENTS} gradients through universal, 1 evaluation; {STEPS} ddim"
    return compared(figures, "decoded by the surrogate", about, unit=SLICED + " to the data")


def _cheap(method: str, seed: int, runs: int = RUNS) -> float:
    model = load_model("digits")
    short, reward = plan(model.process, nfe=CHEAP), _control("curve", seed, 16)
    return -float(find_noise(model, short, reward, method, evaluations=runs * CHEAP, n=16, seed=seed).reward.mean())


def _zero_order(seed: int) -> Outcome:
    about = f"ink by rows, 16 digits, {RUNS} runs of {CHEAP} evaluations (universal); the way's own defaults"
    return over_seeds(lambda s: [_cheap("zero-order", s), _cheap("best", s)], "best", about, unit="control loss")(seed)


def _best(seed: int) -> Outcome:
    model, reward = load_model("digits"), _control("curve", seed, 16)
    long = sample(model, 16, steps=100, solver="ddim", seed=seed)
    figures = _cheap("best", seed, 25), -float(reward(long).mean())
    about = f"ink by rows, 16 digits; best of 25 runs of {CHEAP} evaluations"
    return compared(figures, "one run of 100 evaluations of ddim", about, unit="control loss")


def _gradient(seed: int) -> Outcome:
    model, what, runs = load_model("digits"), "curve", 27
    exact = _found("gradient", what, seed)
    long = plan(model.process, "ddim", STEPS)
    free = find_noise(model, long, _control(what, seed, N), "best", evaluations=runs * STEPS, n=N, seed=seed)
    about = (
        f"ink by rows, {N} digits, {runs * STEPS} rows a sample, ddim {STEPS}; the gradient's way back is not counted"
    )
    return compared(
        [-float(f.reward.mean()) for f in (exact, free)], "best of as many runs", about, unit="control loss"
    )


# Evolution

POPULATION, GENERATIONS, SPREAD, SEEDS, NEAR = 64, 26, 3.0, 10, 0.75
TWO = torch.tensor([[2.5, 2.5], [-2.5, -2.5]], dtype=F64)
FOUR = torch.tensor([[3.0, 2.0], [-2.805118, 3.131312], [-3.779310, -3.283186], [3.584428, -1.848126]], dtype=F64)


def _peaks(x: Tensor) -> Tensor:
    return torch.exp(-(x[:, None] - TWO.to(x)).square().sum(-1) / 0.5).sum(1)


def _basins(x: Tensor) -> Tensor:
    """Himmelblau's function, whose four minima are 0, as a fitness of at most 1."""
    a, b = x[:, 0], x[:, 1]
    return torch.exp(-((a**2 + b - 11) ** 2 + (a + b**2 - 7) ** 2) / 20)


LANDSCAPES: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "two peaks": (_peaks, TWO), "four basins": (_basins, FOUR)
}  # fmt: skip


def _diffusion(fitness: Callable[[Tensor], Tensor], seed: int, density: float | None = 0.3) -> Tensor:
    return evolve(fitness, (2,), POPULATION, GENERATIONS - 1, spread=SPREAD, seed=seed, density=density,
                  dtype=F64).population  # fmt: skip


def _gaussian_es(fitness: Callable[[Tensor], Tensor], seed: int) -> Tensor:
    """A Gaussian refitted to the fitter half of each generation; the last generation."""
    source = Noise(seed)
    mean, factor = torch.zeros(2, dtype=F64), SPREAD * torch.eye(2, dtype=F64)
    for generation in range(GENERATIONS):
        x = mean + source.normal(generation, (POPULATION, 2), dtype=F64) @ factor.T
        elite = x[fitness(x).topk(POPULATION // 2).indices]
        mean, factor = elite.mean(0), torch.linalg.cholesky(elite.T.cov() + 1e-12 * torch.eye(2, dtype=F64))
    return x


def _cma_es(fitness: Callable[[Tensor], Tensor], seed: int) -> Tensor:
    """CMA-ES (Hansen, "The CMA Evolution Strategy: A Tutorial", 2016, figure 6); the last generation."""
    n, lam, mu = 2, POPULATION, POPULATION // 2
    weights = math.log(mu + 0.5) - np.log(np.arange(1, mu + 1))
    weights /= weights.sum()
    mueff = 1 / np.sum(weights**2)
    cc, cs = (4 + mueff / n) / (n + 4 + 2 * mueff / n), (mueff + 2) / (n + mueff + 5)
    c1 = 2 / ((n + 1.3) ** 2 + mueff)
    cmu = min(1 - c1, 2 * (mueff - 2 + 1 / mueff) / ((n + 2) ** 2 + mueff))
    damps = 1 + 2 * max(0.0, math.sqrt((mueff - 1) / (n + 1)) - 1) + cs
    chi = math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n**2))
    mean, sigma, covariance = np.zeros(n), SPREAD, np.eye(n)
    path_c, path_s, rng = np.zeros(n), np.zeros(n), np.random.default_rng(seed)
    for generation in range(GENERATIONS):
        scale, basis = np.linalg.eigh(covariance)
        scale = np.sqrt(np.maximum(scale, 1e-30))
        y = (rng.standard_normal((lam, n)) * scale) @ basis.T
        x = mean + sigma * y
        best = y[np.argsort(-fitness(torch.from_numpy(x)).numpy())[:mu]]
        step = weights @ best
        mean = mean + sigma * step
        path_s = (1 - cs) * path_s + math.sqrt(cs * (2 - cs) * mueff) * basis @ ((basis.T @ step) / scale)
        length = np.linalg.norm(path_s) / math.sqrt(1 - (1 - cs) ** (2 * (generation + 1)))
        still = float(length < (1.4 + 2 / (n + 1)) * chi)
        path_c = (1 - cc) * path_c + still * math.sqrt(cc * (2 - cc) * mueff) * step
        rank_one = np.outer(path_c, path_c) + (1 - still) * cc * (2 - cc) * covariance
        covariance = (1 - c1 - cmu) * covariance + c1 * rank_one + cmu * (best.T * weights) @ best
        sigma *= math.exp(cs / damps * (np.linalg.norm(path_s) / chi - 1))
    return torch.from_numpy(x)


def _differential(fitness: Callable[[Tensor], Tensor], seed: int) -> Tensor:
    """scipy's differential evolution in a box of two standard deviations; the last population."""
    from scipy.optimize import differential_evolution

    found = differential_evolution(
        lambda x: -fitness(torch.from_numpy(x.T)).numpy(), [(-2 * SPREAD, 2 * SPREAD)] * 2, rng=seed, tol=0,
        maxiter=GENERATIONS - 1, popsize=POPULATION // 2, polish=False, vectorized=True, updating="deferred",
    )  # fmt: skip
    return torch.from_numpy(found.population)


DE = "scipy's differential evolution"
WAYS = {"a Gaussian ES": _gaussian_es, "CMA-ES": _cma_es, DE: _differential}


def _covered(population: Tensor, name: str) -> tuple[float, float]:
    """Optima with an individual near, and the entropy over the optima of the fitness near each: none without both
    quality and diversity."""
    fitness, centres = LANDSCAPES[name]
    distance, nearest = torch.cdist(population.to(F64), centres).min(1)
    worth = torch.where(distance < NEAR, fitness(population), 0.0).to(F64)
    share = torch.zeros(len(centres), dtype=F64).index_add(0, nearest, worth) / len(population)
    return float((share > 0).sum()), float(-torch.special.xlogy(share, share).sum())


@experiment
def _evolution(seed: int, name: str, rival: str, which: int) -> Outcome:
    fitness = LANDSCAPES[name][0]
    ways: tuple[Callable[..., Tensor], ...] = (_diffusion, WAYS[rival])
    figures = [np.mean([_covered(way(fitness, seed + k), name)[which] for k in range(SEEDS)]) for way in ways]
    about = f"{name}, {POPULATION} individuals, {POPULATION * GENERATIONS} fitness calls, density 0.3, {SEEDS} seeds"
    unit = ("optima with an individual near", "entropy over the optima of the fitness near each")[which]
    return compared([float(figure) for figure in figures], rival, about, "high", unit)


@experiment
def _density(seed: int, name: str) -> Outcome:
    fitness = LANDSCAPES[name][0]
    figures = [
        np.mean([_covered(_diffusion(fitness, seed + k, density), name)[0] for k in range(SEEDS)])
        for density in (0.3, None)
    ]
    about = f"{name}, {POPULATION} individuals, {POPULATION * GENERATIONS} fitness calls, {SEEDS} seeds"
    return compared([float(f) for f in figures], "density counted as constant", about, "high", "optima covered")


def _posterior(seed: int) -> Outcome:
    """The largest error of x0 over four noise levels, where the fitness is a mixture's density."""
    process, generator = VP(), torch.Generator().manual_seed(seed)
    means = torch.tensor([[-1.0, -1.0], [1.0, 0.5], [0.0, 1.2]])
    exact = GaussianMixture(torch.tensor([1.0, 2.0, 1.5]), means, torch.tensor([0.1, 0.15, 0.08]), process)
    cell = torch.stack(torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij"), -1).reshape(-1, 2)
    individuals = ((cell + torch.rand(4096, 2, generator=generator, dtype=F64)) / 64 * 2 - 1) * 3
    errors = []
    for t in (torch.tensor(t, dtype=F64) for t in (0.05, 0.2, 0.5, 1.0)):
        alpha, sigma = process.alpha(t), process.sigma(t)
        x = alpha * exact.sample(256, seed) + sigma * Noise(seed).normal(0, (256, 2), dtype=F64)
        x0 = exact(x, t).x0
        found = posterior_mean(x, individuals, exact.log_likelihood(individuals), alpha, sigma)
        errors.append(float((found - x0).norm() / x0.norm()))
    return tolerance(max(errors), 0.02, "4096 individuals, one in each cell of a square; vp", "relative error of x0")


ROWS: tuple[tuple[str, tuple[str, str, int]], ...] = (
    ("covers more of two peaks than a Gaussian ES", ("two peaks", "a Gaussian ES", 0)),
    ("covers more of two peaks than CMA-ES", ("two peaks", "CMA-ES", 0)),
    ("covers more of two peaks than differential evolution", ("two peaks", DE, 0)),
    ("covers more of four basins than a Gaussian ES", ("four basins", "a Gaussian ES", 0)),
    ("covers more of four basins than CMA-ES", ("four basins", "CMA-ES", 0)),
    ("covers more of four basins than differential evolution", ("four basins", DE, 0)),
    ("is fit and diverse on two peaks beside CMA-ES", ("two peaks", "CMA-ES", 1)),
    ("is fit and diverse on two peaks beside differential evolution", ("two peaks", DE, 1)),
    ("is fit and diverse on four basins beside a Gaussian ES", ("four basins", "a Gaussian ES", 1)),
    ("is fit and diverse on four basins beside CMA-ES", ("four basins", "CMA-ES", 1)),
    ("is fit and diverse on four basins beside differential evolution", ("four basins", DE, 1)),
)

CLAIMS = (
    slow("best", "25 short runs and a choice do more for a reward than one long run", _best),
    slow("zero-order", "neighbours of the best noise go further than fresh ones", _zero_order),
    slow("gradient", "the slope is worth more than as many runs", _gradient),
    slow("ditto-2", "five times fewer seconds to a curve than the gradient", _times_fewer("curve", "seconds")),
    slow("ditto-2", "five times fewer seconds to an inpainting", _times_fewer("inpainting", "seconds")),
    slow("ditto-2", "five times fewer seconds even to a fifth of a plain run's loss",
         _times_fewer("curve", "seconds", 0.2)),
    slow("ditto-2", "five times fewer rows to a curve", _times_fewer("curve", "rows")),
    slow("ditto-2", "the plan decodes the noise better than the surrogate it was found through", _decoded),
    Claim("diffusion-evolution", "its x0 is the posterior mean where the fitness is a density", _posterior),
    *(Claim("diffusion-evolution", text, _evolution(*row), seed=100) for text, row in ROWS),
    slow("diffusion-evolution", "the density divided out covers more basins", _density("four basins"), seed=100),
)  # fmt: skip
