"""Claims of chains that choose, adapt, guess a kernel or average: small problems with known answers."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

import fewstep as fs
from claims.claim import Claim, Outcome, experiment, over_seeds, slow, tolerance
from claims.common import F64, VP, GaussianMixture
from claims.posteriors import NUMBERS, law
from claims.restoration.league import beats
from fewstep.data.open import open_built_in
from fewstep.operators.noise import Gaussian
from fewstep.restoration.adapt import Adapted
from fewstep.restoration.blind_dps import BlindDPS
from fewstep.restoration.gibbs_ddrm import GibbsDDRM
from fewstep.restoration.joint import Joint
from fewstep.restoration.mbir import Slices
from fewstep.restoration.measured import Measured
from fewstep.restoration.restore import walking

ERROR = "mean squared error"
TRUE = torch.tensor([0.15, 0.6, 0.25], dtype=F64)
FIRST = torch.tensor([0.05, 0.9, 0.05], dtype=F64)


def error(x: Tensor, truth: Tensor) -> float:
    return float((x - truth).square().mean())


def _restored(model: Any, y: Tensor, a: Any, noise: float, method: str, nfe: int, seed: int, **options: Any) -> Tensor:
    found: Tensor = fs.restore(model, y, a, noise, method=method, options=options, nfe=nfe, seed=seed, dtype=F64)
    return found


# Where the next number is measured, of numbers that are all hidden at first.


def chosen(seed: int) -> tuple[float, float]:
    """Errors of 5 numbers of 16 that the method chose, and of 5 drawn by chance, by dps with as many particles."""
    model, a = law(seed), fs.operators.Identity().fit((NUMBERS,))
    truth = model.sample(24, seed=seed + 2)
    y = a.measure(truth, 0.05, seed=seed)
    draws = {"n": 16, "nfe": 40, "seed": seed, "dtype": F64}
    ours = fs.restore(model, y, a, 0.05, method="ads", options={"budget": 5, "particles": 16}, **draws)
    theirs = []
    generator = torch.Generator().manual_seed(seed)
    for i in range(len(y)):
        mask = torch.zeros(NUMBERS, dtype=F64)
        mask[torch.randperm(NUMBERS, generator=generator)[:5]] = 1
        seen = fs.operators.Inpaint(mask)
        theirs.append(fs.restore(model, seen.received(y[i : i + 1]) * mask, seen, 0.05, method="dps", **draws)[0])
    return error(ours.mean(1), truth), error(torch.stack(theirs).mean(1), truth)


# A noisy sample is a state already.


def averaged(seed: int, runs: int, against: int) -> tuple[float, float]:
    model, a = law(seed), fs.operators.Identity().fit((NUMBERS,))
    truth = model.sample(200, seed=seed + 2)
    y = a.measure(truth, 0.3, seed=seed)
    found = [_restored(model, y, a, 0.3, "dmid", 8 * n, seed, runs=n) for n in (runs, against)]
    return error(found[0], truth), error(found[1], truth)


# Kernels that are not known.


@functools.cache
def _blurred(seed: int) -> tuple[GaussianMixture, Tensor, Tensor, Any]:
    model = law(seed)
    truth = model.sample(24, seed=seed + 2)
    y = fs.operators.Blur(TRUE).fit((NUMBERS,)).measure(truth, 0.05, seed=seed)
    return model, truth, y, fs.operators.Blur(FIRST).fit((NUMBERS,))


def _blind(own: Any, name: str, seed: int, nfe: int = 40) -> Tensor:
    model, _, y, first = _blurred(seed)
    loop = walking(model, first, Gaussian(0.05), own, name, nfe, "karras")
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=F64)
    found: Tensor = loop(Measured(model, first), noise, y=y, dtype=F64, seed=seed)
    return found


def kernel_error(own: Any, name: str, seed: int) -> tuple[float, float]:
    """Of the kernels found and of the first guess."""
    _blind(own, name, seed)
    return error(own.reported()["kernels"], TRUE), error(FIRST, TRUE)


def gibbs(seed: int) -> tuple[float, float]:
    model, truth, y, first = _blurred(seed)
    ours = _blind(GibbsDDRM(spread=0.2), "gibbs-ddrm", seed)
    return error(ours, truth), error(_restored(model, y, first, 0.05, "ddrm", 40, seed), truth)


def _kernels() -> BlindDPS:
    prior = GaussianMixture(torch.ones(1), torch.tensor([[0.2, 0.6, 0.2]]), 0.1**2, VP())
    return BlindDPS(prior, kernel_zeta=0.05)


def against_uniform(seed: int) -> tuple[float, float]:
    """With a prior of kernels, and with all kernels as likely."""
    truth = _blurred(seed)[1]
    found = [_blind(own, "blind-dps", seed) for own in (_kernels(), BlindDPS(kernel_zeta=0.05))]
    return error(found[0], truth), error(found[1], truth)


def blind(seed: int) -> tuple[float, float]:
    """With a prior of kernels around a wider one, against dps that takes the first guess for the kernel."""
    model, truth, y, first = _blurred(seed)
    ours = _blind(_kernels(), "blind-dps", seed)
    return error(ours, truth), error(_restored(model, y, first, 0.05, "dps", 40, seed), truth)


# A structured noise beside the sample.


def parted(seed: int) -> tuple[float, float]:
    """Waves of one frequency and any phase, known by a model of their own, against dps that takes them for white."""
    model = law(seed)
    t = torch.arange(NUMBERS, dtype=F64) * (2 * torch.pi * 3 / NUMBERS)
    waves = torch.stack([t.sin(), t.cos()])
    stripes = GaussianMixture(
        torch.ones(1), torch.zeros(1, NUMBERS), waves.mT @ waves * 0.3 + 1e-4 * torch.eye(16)[None], VP()
    )
    truth, n = model.sample(24, seed=seed + 2), stripes.sample(24, seed=seed + 3)
    both, a = Joint(model, stripes), fs.operators.Identity().fit((NUMBERS,))
    y = a.measure(truth + n, 0.05, seed=seed)
    x = both.split(_restored(both, y, both.operator(a), 0.05, "dps", 40, seed))[0]
    white = float((0.05**2 + n.square().mean()).sqrt())
    return error(x, truth), error(_restored(model, y, a, white, "dps", 40, seed), truth)


# Volumes whose slices belong together.


def volumes(seed: int) -> tuple[float, float]:
    means = 0.8 * torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=F64)
    pictures = GaussianMixture(torch.ones(3), means, 0.1, VP())
    generator = torch.Generator().manual_seed(seed + 1)
    truth = pictures.sample(8, seed=seed).expand(-1, 6, -1, -1).clone()
    truth[:, 3:] += 0.3 * torch.randn(8, 1, 4, 4, generator=generator, dtype=F64)  # one step across the slices
    a = fs.operators.Matrix(torch.randn(40, 96, generator=generator, dtype=F64) / 6).fit((6, 4, 4))
    y = a.measure(truth, 0.02, seed=seed)
    model = Slices(pictures, 6)
    found = [_restored(model, y, a, 0.02, "mbir", 30, seed, weight=weight) for weight in (0.02, 0.0)]
    return error(found[0], truth), error(found[1], truth)


@experiment
def separate(seed: int) -> Outcome:
    means = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=F64)
    pictures = GaussianMixture(torch.ones(2), means, 0.1, VP())
    x, t = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(seed + 1), dtype=F64), torch.tensor(0.4)
    whole = Slices(pictures, 4)(x, t).x0
    alone = torch.cat([pictures(x[:, k : k + 1], t).x0 for k in range(4)], 1)
    return tolerance(float((whole - alone).abs().max()), 1e-12, "4 slices, each beside the model of pictures")


# Networks: what they were not trained on, and what nobody told them of the damage.


def adapted(seed: int) -> tuple[float, float]:
    """Digits in negative, which the prior has never seen; half of each is gone."""
    model = fs.load("digits")
    truth = -open_built_in("digits", split="validation").images[10 * seed : 10 * seed + 10]
    mask = torch.zeros(1, 8, 8)
    mask[..., ::2] = 1
    a = fs.operators.Inpaint(mask).fit((1, 8, 8))
    y = a.measure(truth, 0.02, seed=seed)
    how: dict[str, Any] = {"method": "calibrated", "nfe": 20, "seed": seed}
    ours = fs.restore(Adapted(model, a, rank=4, steps=2, rate=5e-3), y, a, 0.02, measurement=y, **how)
    return error(ours, truth), error(fs.restore(model, y, a, 0.02, **how), truth)


def washed(seed: int) -> tuple[float, float]:
    """How far apart two unknown kinds of damage leave the same pictures, after and before."""
    model, a = fs.load("digits"), fs.operators.Identity().fit((1, 8, 8))
    x = open_built_in("digits", split="validation").images[40 * seed : 40 * seed + 40]
    noise = 0.4 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    kinds = [fs.operators.Blur("gaussian", width=1.0)(x), (x + noise).clamp(-1, 1)]
    cleaned = [
        fs.restore(model, y, a, method="dr2", options={"factor": 2, "begin": 1.5, "end": 0.3}, nfe=20, seed=seed)
        for y in kinds
    ]
    return error(*cleaned), error(*kinds)


def claim(method: str, sentence: str, run: Any, against: str, about: str) -> Claim:
    return slow(method, sentence, over_seeds(run, against, about, unit=ERROR))


SIXTEEN = "mixture of 6 in 16 numbers"
KERNELS = f"{SIXTEEN}, three taps, noise 0.05, 24 samples, 40 evaluations"

CLAIMS = (
    beats("cdim", "in 20 evaluations it is nearer to the posterior than dps", "dps", "half seen", {"method": "cdim"},
          {"method": "dps"}),
    beats("stsl", "is nearer to the posterior than dps", "dps", "half seen", {"method": "stsl"}, {"method": "dps"}),
    beats("red-diff", "a mode is nearer to the posterior than dps's draws", "dps", "half seen", {"method": "red-diff"},
          {"method": "dps"}),
    claim("ads", "chosen numbers tell more than others", chosen, "numbers drawn by chance, dps",
          f"{SIXTEEN}, 5 of 16 measured, noise 0.05, 24 samples, means of 16 particles, 40 evaluations"),
    claim("dmid", "the mean of eight runs has the smaller error", lambda seed: averaged(seed, 8, 1), "one run",
          f"{SIXTEEN}, noise 0.3, 200 samples, 8 evaluations a run"),
    claim("gibbs-ddrm", "an unknown kernel is found on the way", gibbs, "ddrm with the first guess",
          KERNELS),
    claim("blind-dps", "a prior of kernels is better than a wrong kernel", blind, "dps with the first guess",
          KERNELS),
    claim("gibbs-ddrm", "kernels drawn on the way are nearer to the true one than the first guess",
          lambda seed: kernel_error(GibbsDDRM(spread=0.2), "gibbs-ddrm", seed), "the first guess", KERNELS),
    claim("blind-dps", "kernels found on the way are nearer to the true one than the first guess",
          lambda seed: kernel_error(_kernels(), "blind-dps", seed), "the first guess", KERNELS),
    claim("blind-dps", "a prior of kernels is better than none", against_uniform, "all kernels as likely", KERNELS),
    claim("joint", "a noise with a model of its own is taken out", parted, "dps that takes it for white",
          f"{SIXTEEN} and waves of one frequency, noise 0.05, 24 samples, 40 evaluations"),
    claim("mbir", "total variation across the slices tells what they share", volumes, "slices alone (weight 0)",
          "volumes of 6 slices of 4 x 4, 40 projections, noise 0.02, 8 samples, 30 evaluations"),
    Claim("slices", "answers as the model of pictures does for each", separate()),
    claim("adapt", "helps where the prior has not been trained", adapted, "calibrated alone",
          "digits in negative, every second column seen, noise 0.02, 10 pictures, 20 evaluations"),
    claim("dr2", "two kinds of unknown damage come nearer to each other", washed, "the damaged pictures",
          "digits blurred and noisy, 40 pictures, 20 evaluations"),
)  # fmt: skip
