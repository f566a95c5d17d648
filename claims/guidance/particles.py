"""Claims of particles: against exact tilted laws, powers and products, and on shapes without captions."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from claims.claim import Outcome, compared, experiment, slow, tolerance
from claims.common import F64
from claims.parts import EDM, VP, Denoiser, GaussianMixture, Noise, Prediction
from fewstep.core.denoiser import Wrapper
from fewstep.data import shapes
from fewstep.guidance.power import Power
from fewstep.guidance.steer import steer
from fewstep.hub.models import load as load_model
from fewstep.metrics.rewards import caption, reward, soft_caption
from fewstep.sampling.build import plan

# The tilted mixture.
STEPS, GROUPS, STRENGTH = 20, 1000, 6.0
A = torch.tensor([[0.8, 0.2], [0.2, 0.4]], dtype=F64)
B = torch.tensor([0.6, -0.4], dtype=F64)
WIDTH = 0.5  # of the kernel of the maximum mean discrepancy
TILTED = f"five Gaussians in two dimensions, VP, {GROUPS} groups, {STEPS} steps of dpmpp-2m-sde"
ERRORS = "standard errors of the mean of Z-hat from the exact Z"
MMD = "maximum mean discrepancy to the tilted law"
# Compositions.
PARTICLES = 4096
GRID, HALF = 801, 6.0
COVARIANCE = "relative error of the covariance"
# Shapes.
CAPTIONS, SCENE_STEPS, SCENE_PARTICLES, SCENE_STRENGTH = 64, 12, 16, 30.0


@functools.cache
def _mixture() -> GaussianMixture:
    generator = torch.Generator().manual_seed(0)
    return GaussianMixture(torch.ones(5), torch.randn(5, 2, generator=generator, dtype=F64), 0.25**2, VP())


def _reward(x: Tensor, **condition: Tensor) -> Tensor:
    return x @ B - 0.5 * ((x @ A) * x).sum(1)


@functools.cache
def _steered(
    seed: int, method: str, k: int, strength: float, solver: str = "dpmpp-2m-sde", potential: str = ""
) -> tuple[Tensor, Tensor]:
    """Samples and log Z-hat of all groups."""
    model = _mixture()
    options: dict[str, Any] = {"potential": potential} if potential else {}
    steered = steer(
        plan(model.process, solver, STEPS), method, reward=_reward, strength=strength, particles=k, **options
    )
    run = steered.run(model, Noise(seed).normal(0, (GROUPS, 2), dtype=F64), seed=seed, dtype=F64)
    return run.samples, run.report["log_normaliser"]


def _ratios(seed: int, strength: float, *arm: Any, **options: Any) -> Tensor:
    return (_steered(seed, *arm, strength, **options)[1] - _mixture().tilted(strength * A, strength * B)[1]).exp()


@experiment
def _normaliser(seed: int, method: str, potential: str = "") -> Outcome:
    z = _ratios(seed, 1.0, method, 4, potential=potential)
    mean, error = float(z.mean()), float(z.std()) / GROUPS**0.5
    about = f"{TILTED}, 4 particles: Z-hat / Z {mean:.3f} +- {error:.3f}"
    return tolerance(abs(mean - 1) / error, 3.0, about, ERRORS)


def _bias(seed: int) -> Outcome:
    errors = [abs(float(_ratios(seed, 1.0, "fk", 4, solver=name).mean()) - 1) for name in ("dpmpp-2m-sde", "ddpm")]
    return compared(errors, "ddpm", f"{TILTED} or ddpm, fk, 4 particles", unit="error of the mean of Z-hat / Z")


def _mmd(x: Tensor, y: Tensor) -> float:
    """Without the terms of a sample with itself, so that two sets of one law have 0 on average."""

    def mean(a: Tensor, b: Tensor) -> float:
        kernel = (-torch.cdist(a, b).square() / (2 * WIDTH**2)).exp()
        return float((kernel.sum() - kernel.diagonal().sum()) / (len(a) * (len(a) - 1)))

    crossed = float((-torch.cdist(x, y).square() / (2 * WIDTH**2)).exp().mean())
    return max(mean(x, x) + mean(y, y) - 2 * crossed, 0.0) ** 0.5


@functools.cache
def _distance(seed: int, method: str, k: int, potential: str) -> float:
    law = _mixture().tilted(STRENGTH * A, STRENGTH * B)[0]
    return _mmd(_steered(seed, method, k, STRENGTH, potential=potential)[0], law.sample(4000, seed=seed + 1))


@experiment
def _nearer(seed: int, ours: tuple[str, int, str], theirs: tuple[str, int, str], against: str) -> Outcome:
    law = _mixture().tilted(STRENGTH * A, STRENGTH * B)[0]
    floor = _mmd(law.sample(GROUPS, seed=seed + 2), law.sample(4000, seed=seed + 1))
    figures = [_distance(seed, *arm) for arm in (ours, theirs)]
    about = f"{TILTED}, strength {STRENGTH:g}, {ours[1]} particles; exact samples have {floor:.3f}"
    return compared(figures, against, about, unit=MMD)


class _Composed(Wrapper):
    """Models and the weights of their eps."""

    def __init__(self, models: Sequence[Denoiser], betas: Sequence[float]):
        super().__init__(models[0])
        self.models, self.betas = list(models), tuple(betas)

    def terms(self, x: Tensor, t: Tensor, memory: Any, condition: Any) -> tuple[tuple[float, ...], list[Prediction]]:
        return self.betas, [model(x, t) for model in self.models]

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        betas, answers = self.terms(x, t, None, condition)
        eps = sum(beta * answer.eps for beta, answer in zip(betas, answers, strict=True))
        return Prediction(eps, "eps", x, t, self.process)  # type: ignore[arg-type]  # a sum of tensors


@functools.cache
def _made(name: str) -> tuple[Denoiser, list[Denoiser], tuple[float, ...]]:
    """A composition, its models and their weights."""
    generator = torch.Generator().manual_seed(3)
    first = GaussianMixture(
        torch.ones(3), 0.8 * torch.randn(3, 2, generator=generator, dtype=F64), torch.tensor([0.15, 0.1, 0.2]), EDM()
    )
    second = GaussianMixture(
        torch.ones(2), 0.5 * torch.randn(2, 2, generator=generator, dtype=F64), torch.tensor([0.5, 0.8]), EDM()
    )
    if name.startswith("power"):
        beta = float(name.removeprefix("power "))
        return Power(first, beta), [first], (beta,)
    betas = (2.0, -1.0) if name == "cfg 2" else (1.0, 1.0)
    return _Composed([first, second], betas), [first, second], betas


def _moments(x: Tensor, weights: Tensor) -> Tensor:
    mean = weights @ x
    return ((x - mean).mT * weights) @ (x - mean)


@functools.cache
def _truth(name: str) -> tuple[Tensor, float]:
    """The covariance of `prod p_i^beta_i` and the logarithm of its integral, on a grid."""
    _, models, betas = _made(name)
    line = torch.linspace(-HALF, HALF, GRID, dtype=F64)
    x = torch.cartesian_prod(line, line)
    logs = torch.stack([b * m.log_likelihood(x) for m, b in zip(models, betas, strict=True)]).sum(0)  # type: ignore[operator]
    total = float(logs.logsumexp(0))
    return _moments(x, (logs - total).exp()), total + 2 * math.log(float(line[1] - line[0]))


@functools.cache
def _corrected(seed: int, name: str, steps: int, solver: str) -> tuple[float, float, float]:
    """Errors of the covariance corrected and by the plain scores, and of the corrected log-normaliser."""
    model, _, betas = _made(name)
    made, (truth, log_z) = plan(EDM(), solver, steps, "karras"), _truth(name)
    run = steer(made, "fkc", particles=PARTICLES, keep=True).run(
        model, Noise(seed).normal(0, (1, 2), dtype=F64), seed=seed, dtype=F64
    )
    start = Noise(seed + 1).normal(0, (PARTICLES, 2), dtype=F64) / sum(betas) ** 0.5
    plain = made(model, start, seed=seed + 1, dtype=F64)
    found = (
        _moments(run.report["particles"][0], run.report["log_weights"][0].softmax(0)),
        _moments(plain, torch.full((PARTICLES,), 1 / PARTICLES, dtype=F64)),
    )
    ours, theirs = (float((cov - truth).norm() / truth.norm()) for cov in found)
    return ours, theirs, abs(float(run.report["log_normaliser"]) - log_z)


@experiment
def _composition(seed: int, name: str, steps: int) -> Outcome:
    figures = _corrected(seed, name, steps, "dpmpp-2m-sde")[:2]
    about = f"{name}, two dimensions, EDM, karras, {steps} steps of dpmpp-2m-sde, {PARTICLES} particles or samples"
    return compared(figures, "the mixed scores alone", about, unit=COVARIANCE)


def _log_normaliser(seed: int) -> Outcome:
    about = f"cfg 2, EDM, karras, 40 steps of dpmpp-2m-sde, {PARTICLES} particles"
    return tolerance(_corrected(seed, "cfg 2", 40, "dpmpp-2m-sde")[2], 0.1, about, "error of the log-normaliser")


def _proposals(seed: int) -> Outcome:
    figures = [_corrected(seed, "cfg 2", 40, name)[0] for name in ("dpmpp-2m-sde", "ddpm")]
    late = _corrected(seed, "cfg 2", 160, "ddpm")[0]
    about = f"cfg 2, EDM, karras, 40 steps, {PARTICLES} particles; ddpm in 160 steps has {late:.3f}"
    return compared(figures, "ddpm", about, unit=COVARIANCE)


@functools.cache
def _scenes(seed: int, arm: str) -> tuple[float, float]:
    """Share of attributes right and mean soft reward of shapes sampled without captions, steered to some."""
    model = load_model("shapes")
    asked = shapes.captions(torch.arange(shapes.N_TRAIN, shapes.N_TRAIN + CAPTIONS))
    made = plan(model.process, "dpmpp-2m-sde", SCENE_STEPS)
    noise = Noise(seed).normal(0, (CAPTIONS, *(model.shape or ())))
    sampler = made
    if arm != "one":
        sampler = steer(
            made, "fk", reward=reward("soft-caption", text=asked), strength=SCENE_STRENGTH,
            particles=SCENE_PARTICLES, potential=arm,
        )  # fmt: skip
    x = sampler(model, noise, seed=seed)
    return float(caption(x, asked).mean()), float(soft_caption(x, asked).mean())


@experiment
def _captions(seed: int, which: int, theirs: str, against: str) -> Outcome:
    figures = [_scenes(seed, arm)[which] for arm in ("difference", theirs)]
    about = (
        f"shapes without captions, {CAPTIONS} captions, {SCENE_STEPS} steps of dpmpp-2m-sde, strength"
        f" {SCENE_STRENGTH:g}, {SCENE_PARTICLES} particles"
    )
    return compared(figures, against, about, "high", ("share of attributes right", "soft reward")[which])


FK, TDS, BEST = "difference", "", "best"
Arm = tuple[str, int, str]


def _against_best(method: str, potential: str, k: int) -> Callable[[int], Outcome]:
    return _nearer((method, k, potential), ("fk", k, BEST), f"best of {k}")


CLAIMS = (
    slow("fk", "the mean of Z-hat is the exact normaliser", _normaliser("fk", FK)),
    slow("fk", "so it is for importance sampling, the same weights at the end alone", _normaliser("fk", "importance")),
    slow("tds", "the mean of Z-hat is the exact normaliser", _normaliser("tds")),
    slow("fk", "the normaliser shows the bias of the plan, which a second order lowers", _bias),
    slow("fk", "nearer to the tilted law than the best of as many", _against_best("fk", FK, 8)),
    slow("fk", "so it is with fewer particles", _against_best("fk", FK, 4)),
    slow("tds", "nearer to the tilted law than the best of as many", _against_best("tds", TDS, 8)),
    slow("tds", "so it is with fewer particles", _against_best("tds", TDS, 4)),
    slow("tds", "nearer to the tilted law than weighing alone, at equal particles",
         _nearer(("tds", 8, TDS), ("fk", 8, FK), "fk")),
    slow("fk", "the distance falls with the particles", _nearer(("fk", 8, FK), ("fk", 4, FK), "4 particles")),
    slow("tds", "the distance falls with the particles", _nearer(("tds", 8, TDS), ("tds", 4, TDS), "4 particles")),
    slow("fkc", "guidance of scale 2 has the covariance of the law that it names", _composition("cfg 2", 40)),
    slow("fkc", "a power below 1 has the covariance of that power", _composition("power 0.5", 40)),
    slow("fkc", "a product has the covariance of the product", _composition("product", 80)),
    slow("power", "a power above 1, corrected, has the covariance of that power", _composition("power 2", 80)),
    slow("fkc", "the log-normaliser of guidance is found", _log_normaliser),
    slow("fkc", "proposals of second order need fewer steps", _proposals),
    slow("fk", "steers shapes without captions to captions, further than the best of as many",
         _captions(0, "best", f"best of {SCENE_PARTICLES}")),
    slow("fk", "so it does by the soft reward", _captions(1, "best", f"best of {SCENE_PARTICLES}")),
    slow("fk", "shows more of a caption than one sample", _captions(0, "one", "one sample")),
)  # fmt: skip
