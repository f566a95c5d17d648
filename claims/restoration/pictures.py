"""Restored digits beside the truth: signal to noise, what a choice of pixels tells, and priors of other digits."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

import fewstep as fs
from claims.claim import Claim, Outcome, experiment, over_seeds, slow
from claims.restoration.digits import NFE, NOISE, PICTURES, model, operator, pictures
from claims.trained import fresh
from fewstep.data.open import open_built_in
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.metrics.accuracy import class_accuracy
from fewstep.metrics.psnr import psnr
from fewstep.networks.unet import UNet
from fewstep.operators.jpeg import Jpeg
from fewstep.processes.ve import EDM
from fewstep.restoration.adapt import Adapted
from fewstep.restoration.joint import Joint
from fewstep.training.fit import fit

DECIBELS = "PSNR in dB"
ABOUT = "digits, {}, noise 0.05, 20 held-out pictures, {} evaluations"
TWO = ("half seen", "2x smaller")


@functools.cache
def measured(problem: str, seed: int) -> Tensor:
    return operator(problem).measure(pictures(), NOISE, seed=seed)


@functools.cache
def decibels(method: str, problem: str, nfe: int, seed: int, n: int = 1, **options: Any) -> float:
    """Of the mean of n draws of each picture; the method "pinv" is `A^+ y`."""
    a, y = operator(problem), measured(problem, seed)
    if method == "pinv":
        return psnr(a.pinv(y), pictures()).value
    x = fs.restore(model(), y, a, NOISE, method=method, options=options, n=n, nfe=nfe, seed=seed)
    return psnr(x.mean(1), pictures()).value


def clearer(
    method: str, sentence: str, against: str, problem: str, ours: dict[str, Any], theirs: dict[str, Any], nfe: int = NFE
) -> Claim:
    """A claim that a method has the greater signal to noise."""

    def run(seed: int) -> tuple[float, float]:
        first, second = (
            decibels(how.get("method", method), problem, how.get("nfe", nfe), seed, how.get("n", 1),
                     **how.get("options", {}))
            for how in (ours, theirs)
        )  # fmt: skip
        return first, second

    return slow(method, f"{sentence}, {problem}",
                over_seeds(run, against, ABOUT.format(problem, nfe), better="high", unit=DECIBELS))  # fmt: skip


def kept_bytes(method: str) -> int:
    """Bytes that a run of ten pictures keeps for backward passes, at most at one time."""
    held, most = 0, 0

    class Kept:
        def __init__(self, x: Tensor):
            nonlocal held, most
            self.x = x
            held += x.nbytes
            most = max(most, held)

        def __del__(self) -> None:
            nonlocal held
            held -= self.x.nbytes

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.x):
        fs.restore(model(), measured(TWO[0], 0)[:10], operator(TWO[0]), NOISE, method=method, nfe=4)
    return most


@experiment
def memory(seed: int) -> Outcome:
    return Outcome(kept_bytes("red-diff"), kept_bytes("dps"), "dps", "digits, 10 pictures, half seen", "low", "bytes")


# Which pixels are looked at.


def asked(how: str, budget: int, seed: int) -> float:
    """The squared error of the mean of 8 draws from so many pixels: chosen one by one, by chance, or by variance."""
    truth, a = pictures(), fs.operators.Identity().fit((1, 8, 8))
    y = a.measure(truth, NOISE, seed=seed)
    draws: dict[str, Any] = {"n": 8, "nfe": 2 * NFE, "seed": seed}
    if how == "chosen":
        x = fs.restore(model(), y, a, NOISE, method="ads", options={"budget": budget, "particles": 8}, **draws)
        return float((x.mean(1) - truth).square().mean())
    generator, spread = torch.Generator().manual_seed(seed), open_built_in("digits").images.var(0).flatten()
    found = []
    for i in range(len(y)):
        order = torch.randperm(64, generator=generator) if how == "chance" else spread.argsort(descending=True)
        mask = torch.zeros(64)
        mask[order[:budget]] = 1
        seen = fs.operators.Inpaint(mask.view(1, 8, 8)).fit((1, 8, 8))
        found.append(fs.restore(model(), seen.received(y[i : i + 1]), seen, NOISE, method="dps", **draws)[0])
    return float((torch.stack(found).mean(1) - truth).square().mean())


def chooses(budget: int, against: str, said: str) -> Claim:
    def run(seed: int) -> tuple[float, float]:
        return asked("chosen", budget, seed), asked(against, budget, seed)

    about = f"digits, {budget} of 64 pixels, noise 0.05, 20 pictures, means of 8 particles, 40 evaluations"
    return slow("ads", f"{budget} chosen pixels of digits tell more than {said}",
                over_seeds(run, f"{said}, dps", about, unit="mean squared error"))  # fmt: skip


# A prior of 0 to 4, and pictures of 5 to 9.


@functools.cache
def narrow(seed: int) -> NetworkDenoiser:
    """A network trained for 400 steps on the digits 0 to 4."""
    data = open_built_in("digits")
    images = data.images[data.labels < 5]
    network = fresh(UNet, seed, channels=1, size=8, width=(32, 64), attention=(), embedding=64, classes=None)
    std = float(images.std())
    return fit(NetworkDenoiser(network, EDM(), "x0", (1, 8, 8), {}, "edm", data_std=std), images, steps=400, seed=seed)


@functools.cache
def steered(low: int, tuned: bool, seed: int) -> float:
    """PSNR of the classes low to low + 4, half of whose columns are seen."""
    own, held = narrow(seed), open_built_in("digits", split="validation")
    label = held.labels
    truth = held.images[(label >= low) & (label < low + 5)][:PICTURES]
    mask = torch.zeros(1, 8, 8)
    mask[..., ::2] = 1
    a = fs.operators.Inpaint(mask).fit((1, 8, 8))
    y = a.measure(truth, NOISE, seed=seed)
    how: dict[str, Any] = {"method": "dps", "n": 4, "nfe": 2 * NFE, "seed": seed}
    if tuned:
        x = fs.restore(Adapted(own, a, rank=4, steps=2, rate=5e-3), y, a, NOISE, measurement=y, **how)
    else:
        x = fs.restore(own, y, a, NOISE, **how)
    return psnr(x.mean(1), truth).value


def adapts(low: int, sentence: str, less: float) -> Claim:
    def run(seed: int) -> tuple[float, float]:
        return steered(low, True, seed), steered(low, False, seed) - less

    about = f"a prior of the digits 0 to 4, pictures of {low} to {low + 4}, every second column seen, noise 0.05, dps"
    said = "dps alone" if not less else f"dps alone less {less:g} dB"
    return slow("adapt", sentence, over_seeds(run, said, about, better="high", unit=DECIBELS))


# A noise that has a model of its own.


@functools.cache
def striped(method: str, seed: int) -> float:
    """PSNR where stripes of any phase lie over the digits, whose model is known or taken for white noise."""
    own, truth = model(), pictures()
    along = torch.arange(8, dtype=torch.float64) * (2 * torch.pi * 3 / 8)
    waves = torch.stack([along.sin(), along.cos()])[:, None, :].expand(2, 8, 8).reshape(2, 64)
    covariance = 0.3 * waves.mT @ waves + 1e-4 * torch.eye(64, dtype=torch.float64)
    process = own.process
    stripes = GaussianMixture(torch.ones(1), torch.zeros(1, 1, 8, 8), covariance[None], process, dtype=torch.float32)
    n, a = stripes.sample(len(truth), seed=seed + 3).float(), fs.operators.Identity().fit((1, 8, 8))
    y = a.measure(truth + n, NOISE, seed=seed)
    how: dict[str, Any] = {"method": "dps", "n": 4, "nfe": 2 * NFE, "seed": seed}
    if method == "joint":
        both = Joint(own, stripes)
        x = both.split(fs.restore(both, y, both.operator(a), NOISE, **how).flatten(0, 1))[0].unflatten(0, (-1, 4))
    else:
        x = fs.restore(own, y, a, float((NOISE**2 + n.square().mean()).sqrt()), **how)
    return psnr(x.mean(1), truth).value


# Damage that nobody told of, and a restorer that assumes a blur.


def enhance(x: Tensor) -> Tensor:
    """By a restorer that takes every picture for a blurred one."""
    found: Tensor = fs.restore(model(), x, fs.operators.Blur("gaussian", width=0.7), NOISE, nfe=NFE)
    return found


def damaged(x: Tensor, seed: int) -> list[Tensor]:
    """Blurred, compressed and noisy pictures."""
    noise = 0.4 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    return [fs.operators.Blur("gaussian", width=1.0)(x), Jpeg(10).fit((1, 8, 8))(x), (x + noise).clamp(-1, 1)]


@functools.cache
def cleaned(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Spoilt pictures, what DR2 leaves of them, and both after the restorer, `(3, B, 1, 8, 8)` each."""
    held = open_built_in("digits", split="validation")
    spoilt = damaged(held.images[40 * seed : 40 * seed + 40], seed)
    a, options = fs.operators.Identity(), {"factor": 2, "begin": 1.5, "end": 0.3}
    washed = [fs.restore(model(), y, a, method="dr2", options=options, nfe=NFE, seed=seed) for y in spoilt]
    return (torch.stack(spoilt), torch.stack(washed), torch.stack([enhance(y) for y in spoilt]),
            torch.stack([enhance(y) for y in washed]))  # fmt: skip


def spread(seed: int) -> tuple[float, float]:
    spoilt, washed, _, _ = cleaned(seed)
    return float(washed.var(0).mean()), float(spoilt.var(0).mean())


def recognised(seed: int) -> tuple[float, float]:
    _, _, alone, after = cleaned(seed)
    label = open_built_in("digits", split="validation").labels[40 * seed : 40 * seed + 40].repeat(3)
    return class_accuracy(after.flatten(0, 1), label).value, class_accuracy(alone.flatten(0, 1), label).value


DPS = {"method": "dps"}
THREE_KINDS = "digits blurred, compressed and noisy, 40 pictures, 20 evaluations"

CLAIMS = (
    *(clearer("diffpir", f"has the greater signal to noise than dps at {nfe} evaluations", "dps", problem, {}, DPS, nfe)
      for problem in TWO for nfe in (20, 40, 100)),
    *(clearer(method, "is above the least squares answer", "A^+ y", problem, {}, {"method": "pinv"})
      for problem in TWO for method in ("diffpir", "ddnm")),
    clearer("nrlg", "without a backward pass it has the greater signal to noise than dps", "dps", "16 projections", {},
            DPS),
    *(clearer("red-diff", "a mode has at least the signal to noise of dps's mean", "dps, the mean of 8", problem, {},
              {"method": "dps", "n": 8}, 100) for problem in TWO),
    *(clearer("red-diff", "weights of the inverse signal are better than constant ones", "constant weights", problem,
              {}, {"options": {"weights": "constant"}}, 100) for problem in TWO),
    slow("red-diff", "keeps less for backward passes than dps", memory()),
    *(clearer("cdim", "in 20 evaluations it has the signal to noise of dps in 200", "dps at 200 evaluations", problem,
              {}, {"method": "dps", "nfe": 200}) for problem in TWO),
    *(chooses(budget, how, said) for budget in (8, 16)
      for how, said in (("chance", "pixels drawn by chance"), ("variance", "those of greatest variance"))),
    adapts(5, "raises the signal to noise of digits that the prior never saw", 0),
    adapts(0, "does not lower that of digits it was trained on by more than 0.1 dB", 0.1),
    slow("joint", "stripes with a model of their own are taken out of digits",
         over_seeds(lambda seed: (striped("joint", seed), striped("dps", seed)), "dps that takes them for white",
                    "digits under stripes of any phase, noise 0.05, 20 pictures, means of 4, 40 evaluations",
                    better="high", unit=DECIBELS)),
    slow("dr2", "three kinds of unknown damage come nearer to each other",
         over_seeds(spread, "the damaged pictures", THREE_KINDS, unit="variance over kinds")),
    slow("dr2", "a restorer for blurs recognises more digits after it",
         over_seeds(recognised, "the restorer alone", THREE_KINDS, better="high", unit="class accuracy")),
)  # fmt: skip
