"""Claims of models that are trained for data or starts of a kind of their own."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from claims.claim import Claim, Outcome, Run, arms, experiment, over_seeds, slow, tolerance
from claims.common import F64, SLICED, plan, sliced, sliced_wasserstein
from claims.parts import EDM, Discrete, GaussianMixture, Noise
from claims.problems import mixture
from claims.trained import MLP, NetworkDenoiser, NoiseLevels, Objective, fit, fresh
from claims.training.transport import TRUTH_SEED, W2, N, noises, wasserstein
from fewstep.data.pyramid import Pyramid, scaled
from fewstep.processes.restoration_chain import RestorationChain
from fewstep.training.ambient import Ambient, MixedQuality, ambient_pair
from fewstep.training.one_more_step import OneMoreStep, train_one_more_step
from fewstep.training.restorer import Restorer, degraded, fidelity, fit_restorer
from fewstep.training.single_image import SingleImage

PROCESS = EDM()
SAMPLES, SHARE, LEVEL = 2000, 0.1, 0.2  # the mixture's own components are 0.04 to 0.2 wide
STEPS, BATCH = 1000, 128
CONDITIONS = (
    f"{SAMPLES} samples of the 8-component mixture, noise of deviation {LEVEL}, mlp, {STEPS} steps of {BATCH}; ddim,"
    " 50 evaluations"
)
CHAIN = RestorationChain.preserving((0.95, 0.75, 0.4, 0.05))
HEAPS, STD = 6, 0.1
TRAINED = f"{HEAPS} heaps on a circle, mlp, 700 steps of 256"
WHAT = f"{TRAINED}, {SAMPLES} samples of {CHAIN.levels} evaluations"
AGAINST = "the same restorer trained by squared error"
SIZE, CROP, PATCH = 40, 24, 6
TEXTURE = f"texture of {SIZE}x{SIZE}, 400 steps of 4 crops of {CROP}, one network"


@functools.cache
def _distance(arm: str, seed: int) -> float:
    """W2 to the truth of a denoiser trained on "mixed", "noisy", "tenth" or "clean" samples."""
    clean = mixture(PROCESS).sample(SAMPLES, seed).float()
    if arm == "tenth":
        clean = clean[: round(SHARE * SAMPLES)]
    data = MixedQuality.degrade(clean, {"mixed": SHARE, "noisy": 0.0}.get(arm, 1.0), LEVEL, seed)
    options: dict[str, Any] = {"precondition": "edm", "data_std": 0.5, "value_range": None}
    model = NetworkDenoiser(fresh(MLP, seed), PROCESS, "x0", (2,), **options)
    levels = NoiseLevels(PROCESS, "log-normal", -1.2, 1.2)
    objective: Any = Ambient(Objective(model), levels)
    model = fit(model, data, steps=STEPS, batch=BATCH, lr=2e-3, objective=objective, levels=levels, seed=seed)
    made = plan(PROCESS, "ddim", 50, "karras")
    if arm == "noisy":  # below its own level nothing was learnt: from there, the mean of what x0 may be
        made = plan(PROCESS, "ddim", timesteps=[*(t for t in made.times if t > LEVEL), LEVEL, 0.0])
    return wasserstein(made(model, noises(seed, (2,))), mixture(PROCESS).sample(N, TRUTH_SEED + seed))


@experiment
def _against(seed: int, arm: str, name: str) -> Outcome:
    clean = sum(_distance("clean", s) for s in (seed, seed + 1, seed + 2)) / 3
    return arms(_distance, "mixed", arm, name, f"{CONDITIONS}; all of them clean give {clean:.2g}", unit=W2)(seed)


def _unbiased(seed: int) -> Outcome:
    """The pair's x0 less the exact conditional mean, against functions of the state that it must not follow."""
    model, n, t = mixture(PROCESS), 400_000, 0.3
    generator = torch.Generator().manual_seed(seed)
    y = model.sample(n, seed) + LEVEL * torch.randn(n, 2, generator=generator, dtype=F64)
    z, time = torch.randn(n, 2, generator=generator, dtype=F64), torch.full((n,), t, dtype=F64)
    x0, eps, _ = ambient_pair(PROCESS, y, z, time, torch.full((n,), LEVEL, dtype=F64))
    x = x0 + t * eps
    truth, worst = model(x, time).x0, {}
    for name, target in (("ours", x0), ("naive", y)):  # to take the noisy sample for the clean one
        residual = target - truth
        scale = residual.std() / n**0.5
        probes = (torch.ones_like(x), x / x.std(), x.flip(1) / x.std(), torch.sin(3 * x))
        scores = [(residual * probe).mean(0).abs().max() / (scale * probe.square().mean().sqrt()) for probe in probes]
        worst[name] = float(max(scores))
    about = f"8-component mixture, edm, {n} samples of noise {LEVEL} at sigma {t}; taken for clean they miss by"
    about += f" {worst['naive']:.0f}"
    unit = "largest correlation of error and state, in standard errors"
    return Outcome(worst["ours"], 5.0, "five standard errors", about, unit=unit)


@functools.cache
def _process() -> Discrete:
    """The first half of DDPM's table, which leaves alpha = 0.28 at its end."""
    return Discrete.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=F64)[:500].tolist())


def _images() -> GaussianMixture:
    """8x8 images: three in four bright, one in four dark, with a little texture."""
    means = torch.cat((torch.full((1, 1, 8, 8), 0.7), torch.full((1, 1, 8, 8), -0.7))).double()
    return GaussianMixture(torch.tensor([3.0, 1.0]), means, 0.15**2, _process())


def _brightness(x: Tensor, exact: Tensor) -> float:
    return sliced_wasserstein(x.flatten(1).mean(1, keepdim=True), exact.flatten(1).mean(1, keepdim=True)).value


def _bright(seed: int) -> Outcome:
    model, n = _images(), 2000
    base = plan(_process(), "dpmpp-2m", 20)
    step, paper = (train_one_more_step(model.sample(n, seed), seed=seed, **rank) for rank in ({}, {"rank": 0}))
    for part in (paper.rest, paper.spread):
        part.zero_()
    noise, exact = Noise(seed).normal(0, (n, 1, 8, 8), "cpu", F64), model.sample(n, seed + 1)
    made = (step.plan(base, _process()), paper.plan(base, _process()), base)
    ours, mean, theirs = (_brightness(p(model, noise, seed=seed, dtype=F64), exact) for p in made)
    about = "dpmpp-2m, 20 evaluations, bright and dark 8x8 images (a mixture with its exact denoiser), the first 500"
    about += f" betas of DDPM, {n} samples; with the mean alone {mean:.3g}"
    return Outcome(ours, theirs, "the same plan from N(0, I)", about, unit="Wasserstein distance of the brightness")


def _gaussian(seed: int) -> Outcome:
    """Mean and covariance of the start, which is affine in the noise, against those of x_T."""
    process, d, generator = _process(), 6, torch.Generator().manual_seed(seed)
    root, mean = torch.randn(d, d, generator=generator, dtype=F64), torch.randn(d, generator=generator, dtype=F64)
    covariance = root @ root.T
    step = OneMoreStep.from_moments(mean, covariance)
    zero = step.start(process, torch.zeros(1, d, dtype=F64))
    matrix = step.start(process, torch.eye(d, dtype=F64)) - zero
    alpha, sigma = process.alpha(process.t_max), process.sigma(process.t_max)
    wanted = alpha**2 * covariance + sigma**2 * torch.eye(d, dtype=F64)
    error = max(float((zero - alpha * mean).abs().max()), float((matrix.T @ matrix - wanted).abs().max()))
    return tolerance(error, 1e-12, f"Gaussian data in {d} dimensions, alpha_T = {alpha:.2f}", "error")


def _centres() -> Tensor:
    angle = 2 * math.pi * torch.arange(HEAPS) / HEAPS
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def data(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(0, HEAPS, (n,), generator=generator)
    return _centres()[which] + STD * torch.randn(n, 2, generator=generator)


@functools.cache
def trained(adversarial: bool, seed: int) -> Restorer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = Restorer(MLP((2,), width=64, depth=3, picture=2), CHAIN, (2,), (2,))
        critic = MLP((2,), width=64, depth=3) if adversarial else None
    return fit_restorer(made, data(20_000, 1000 + seed), critic, steps=700, batch=256, lr=2e-3, seed=seed)


@functools.cache
def samples(adversarial: bool, seed: int) -> Tensor:
    return trained(adversarial, seed).sample(SAMPLES, seed=seed, batch_size=SAMPLES)


def _nearer(seed: int) -> Outcome:
    def figure(adversarial: bool, s: int) -> float:
        return sliced(samples(adversarial, s), data(SAMPLES, 2000 + s))

    floor = sliced(data(SAMPLES, 3000), data(SAMPLES, 2000))
    return arms(figure, True, False, AGAINST, f"{WHAT}; data against data {floor:.2g}", unit=SLICED)(seed)


def _least(adversarial: bool, s: int) -> float:
    near = torch.cdist(samples(adversarial, s), _centres()) < 3 * STD
    return HEAPS * float(near.float().mean(0).min())


def _consistent(seed: int) -> Outcome:
    def run(s: int) -> tuple[float, float]:
        states, filled, levels = degraded(CHAIN, data(4000, 4000 + s), torch.Generator().manual_seed(s))
        z = torch.randn(4000, 2, generator=torch.Generator().manual_seed(s + 1))
        with torch.no_grad():
            restored = trained(True, s)(filled, levels, z)
        return float(fidelity(CHAIN, restored, states).mean()), 1.0

    about = f"{TRAINED}; |A G - y|^2 / (2 sigma^2) a number"
    return over_seeds(run, "twice that of the data themselves, 1/2", about, unit="fidelity")(seed)


def texture(seed: int) -> Tensor:
    """Blobs of two sizes, ten and four pixels across, (1, 40, 40) within -1 and 1."""
    white = torch.fft.rfft2(torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(seed)))
    rows, columns = torch.fft.fftfreq(SIZE)[:, None], torch.fft.rfftfreq(SIZE)[None]
    waves = SIZE * (rows.square() + columns.square()).sqrt()  # over the picture's width

    def band(centre: float, width: float) -> Tensor:
        part = torch.fft.irfft2(white * torch.exp(-(((waves - centre) / width) ** 2)), s=(SIZE, SIZE))
        return part / part.std()

    return torch.tanh(1.5 * band(4, 1) + 0.6 * band(10, 1.5))[None]


@functools.cache
def learnt(seed: int, several: bool) -> SingleImage:
    """A model of the texture with four scales, or with one."""
    pyramid = Pyramid(texture(seed), factor=1.4, coarsest=14 if several else SIZE, crop=CROP)
    model: Any = fresh(SingleImage, seed, pyramid, width=24)
    return fit(model, pyramid, steps=400, batch=4, lr=3e-3, seed=seed)  # type: ignore[return-value]


def _patches(images: Tensor) -> Tensor:
    return images.unfold(2, PATCH, 2).unfold(3, PATCH, 2).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)


def patch_distance(samples: Tensor, source: Tensor) -> float:
    """Sliced Wasserstein distance of 6x6 patches, mean of those at full size and at half."""
    half = [scaled(images, (images.shape[2] // 2, images.shape[3] // 2)) for images in (samples, source)]
    pairs = ((samples, source), (half[0], half[1]))
    return sum(sliced_wasserstein(_patches(a), _patches(b), projections=72).value for a, b in pairs) / 2


def _quality(canvas: tuple[int, int] | None) -> Run:
    def figure(several: bool, s: int) -> float:
        made = learnt(s, several).sample(12, canvas, steps=10 if several else 40, seed=s)
        return patch_distance(made, texture(s)[None])

    size = canvas or (SIZE, SIZE)
    about = f"{TEXTURE}; 12 samples of {size[0]}x{size[1]}, 10 evaluations at each of four scales or 40 at one"
    return arms(figure, True, False, "the same at one scale", about, unit="patch distance to the source")


def _copies(seed: int) -> Outcome:
    """The least mean squared difference of a 20x20 crop of a sample from any place of the source, over its variance."""

    def run(s: int) -> tuple[float, float]:
        source = texture(s)
        crops = learnt(s, True).sample(12, seed=s)[:, 0, 10:30, 10:30]
        places = source[0].unfold(0, 20, 1).unfold(1, 20, 1).flatten(0, 1)
        nearest = torch.cdist(crops.flatten(1), places.flatten(1)).square().min(1).values / 400
        return float(nearest.mean() / source.var()), 0.1

    about, unit = f"{TEXTURE}; 12 samples", "squared difference from the nearest place over variance"
    return over_seeds(run, "a tenth of the variance", about, better="high", unit=unit)(seed)


CLAIMS = (
    slow("ambient", "the pair of a noisy sample is unbiased at every state above its level", _unbiased),
    slow("ambient", "a tenth clean and the rest noisy beats all noisy", _against("noisy", "all of them noisy")),
    slow("ambient", "a tenth clean and the rest noisy beats the tenth alone",
         _against("tenth", "the clean tenth alone")),
    slow("one-more-step", "brings the brightness of samples nearer to the data's", _bright),
    Claim("one-more-step", "starts Gaussian data from the exact law", _gaussian),
    slow("rgm", "samples closer to the data than those of a restorer trained by squared error", _nearer),
    slow("rgm", "covers every mode where squared error shrinks to means",
         arms(_least, True, False, AGAINST,
              f"{WHAT}; samples within 3 standard deviations of the heap that has the fewest", "high",
              "share of what the heap should have")),
    slow("rgm", "what it restores, degraded, is what it was given", _consistent),
    slow("sinddm", "patches closer to the source's than at one scale", _quality(None)),
    slow("sinddm", "the same on another canvas, patches closer than at one scale", _quality((32, 72))),
    slow("sinddm", "no copies: every place of the source differs from the sample", _copies),
)  # fmt: skip
