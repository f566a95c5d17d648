"""Claims of codecs: held-out digits in few bits, by the embedded model and by a mixture of principal components."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

import fewstep as fs
from claims.claim import Claim, over_seeds, slow
from claims.common import SLICED, VP, GaussianMixture, sliced
from fewstep.data.open import open_built_in
from fewstep.metrics.psnr import psnr
from fewstep.restoration.codec import Compressed
from fewstep.restoration.ddcm import DDCM, Codebook, draws_of
from fewstep.restoration.relic import Relic

PICTURES = 120  # a seed's: the held-out ones are shared out
ENTRIES, NFE = 64, 20
SETS, DRAWN = 8, 256
COMPONENTS, LATENTS, STEP, TAIL = 10, 20, 1.5, 4
MSE, PSNR = "mean squared error", "PSNR, dB"


@functools.cache
def _model() -> Any:
    return fs.load("digits")


def _pictures(seed: int) -> Tensor:
    first = seed % 3 * PICTURES
    return open_built_in("digits", split="validation").images[first : first + PICTURES]


@functools.cache
def _made(entries: int, nfe: int, seed: int) -> tuple[Compressed, Tensor]:
    made = fs.encode(_model(), _pictures(seed), options={"entries": entries, "nfe": nfe})
    return made, fs.decode(_model(), made)


def _ratio(entries: int, nfe: int, seed: int) -> float:
    return psnr(_made(entries, nfe, seed)[1], _pictures(seed)).value


def richer(ours: tuple[int, int], theirs: tuple[int, int]) -> Any:
    """PSNR with codebooks of so many entries, at so many evaluations."""
    return lambda seed: (_ratio(*ours, seed), _ratio(*theirs, seed))


def scalar(seed: int) -> tuple[float, float]:
    """Distances to the originals; the scalar quantiser has the largest step at which it takes no fewer bits."""
    made, ours = _made(ENTRIES, NFE, seed)
    x, low, high = _pictures(seed), 0.01, 10.0
    for _ in range(30):
        step = (low * high) ** 0.5
        plain = fs.encode(_model(), x, "relic", options={"step": step, "nfe": 0})
        low, high = (step, high) if plain.bits >= made.bits else (low, step)
    plain = fs.encode(_model(), x, "relic", options={"step": low, "nfe": 0})
    return sliced(ours, x), sliced(fs.decode(_model(), plain), x)


def random_indices(seed: int) -> tuple[float, float]:
    """Distances to samples of ddpm: of samples with random indices, and the largest of eight other sets of ddpm's."""
    model, codec = _model(), DDCM(entries=ENTRIES, nfe=NFE)
    plan = codec.plan(model)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(ENTRIES, (max(draws_of(plan)) + 1, DRAWN), generator=generator)
    named = model.check_condition({}, DRAWN, model.device)
    ours = codec.run(model, plan, Codebook(chosen, seed), DRAWN, named)
    sets = [fs.sample(model, DRAWN, plan=plan, seed=seed, first=(k + 1) * 10_000) for k in range(SETS + 1)]
    return sliced(ours, sets[0]), max(sliced(one, sets[0]) for one in sets[1:])


def restored(seed: int) -> tuple[float, float]:
    """PSNR of what the bits of a measurement decode to, and of the pseudo-inverse."""
    x, a = _pictures(seed), fs.operators.Downsample(2).fit((1, 8, 8))
    made = fs.encode(_model(), a(x), operator=a, options={"entries": ENTRIES, "nfe": NFE})
    return psnr(fs.decode(_model(), made), x).value, psnr(a.pinv(a(x)), x).value


# Principal components of the digits, each of unit variance, and a mixture of Gaussians of them.


@functools.cache
def _latents() -> tuple[GaussianMixture, Tensor, Tensor]:
    """The prior, the mean picture, and the components that make pictures of latents."""
    x = open_built_in("digits", split="train").images.flatten(1).double()
    mean = x.mean(0)
    _, values, frame = torch.linalg.svd(x - mean, full_matrices=False)
    maker = frame[:LATENTS] * (values[:LATENTS, None] / len(x) ** 0.5)
    z = (x - mean) @ torch.linalg.pinv(maker)
    return GaussianMixture.fitted(z, COMPONENTS, VP()), mean, maker


@functools.cache
def _rounded(seed: int) -> tuple[Tensor, Tensor, float]:
    """Latents of held-out pictures, rounded ones, and the level that is sent."""
    model, mean, maker = _latents()
    z = ((_pictures(seed).flatten(1).double() - mean) @ torch.linalg.pinv(maker)).float()
    codec = Relic(step=STEP)
    level, rounded = codec.rounded(model, codec.encode(model, z, None, {}, PICTURES), len(z))
    return z, rounded, level


def _pixels(z: Tensor) -> Tensor:
    _, mean, maker = _latents()
    return z.double() @ maker + mean


def _relic(seed: int, factor: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures: the originals, plainly dequantised, and denoised from `factor` times the level."""
    z, rounded, level = _rounded(seed)
    ours = Relic(step=STEP, nfe=TAIL).denoised(_latents()[0], rounded, factor * level, {})
    return _pixels(z), _pixels(rounded), _pixels(ours)


def realistic(seed: int) -> tuple[float, float]:
    x, plain, ours = _relic(seed)
    return sliced(ours, x), sliced(plain, x)


def faithful(seed: int) -> tuple[float, float]:
    x, plain, ours = _relic(seed)
    return float((ours - x).square().mean()), 1.1 * float((plain - x).square().mean())


def matched(factor: float) -> Any:
    def run(seed: int) -> tuple[float, float]:
        x, _, ours = _relic(seed)
        return sliced(ours, x), sliced(_relic(seed, factor)[2], x)

    return run


DIGITS = f"{PICTURES} held-out digits, {{}}"
BITS = DIGITS.format(f"{ENTRIES} entries, {NFE} evaluations: {NFE * 6} bits each")
WHITE = f"{LATENTS} principal components of {PICTURES} held-out digits, steps of {STEP} deviations, {TAIL} evaluations"


def claim(method: str, sentence: str, run: Any, against: str, about: str, unit: str, better: str = "low") -> Claim:
    return slow(method, sentence, over_seeds(run, against, about, better, unit))


CLAIMS = (
    claim("ddcm", "pictures come nearer with larger codebooks", richer((256, 20), (16, 20)), "16 entries, 80 bits",
          DIGITS.format("256 entries, 20 evaluations: 160 bits each"), PSNR, "high"),
    claim("ddcm", "pictures come nearer with more evaluations", richer((64, 40), (64, 10)), "10 evaluations, 60 bits",
          DIGITS.format("64 entries, 40 evaluations: 240 bits each"), PSNR, "high"),
    claim("ddcm", "at equal bits pictures look more like digits", scalar, "scalar quantisation, no fewer bits", BITS,
          SLICED),
    claim("ddcm", "what a measurement's bits decode to is restored", restored, "the pseudo-inverse",
          f"{BITS}, 2x smaller", PSNR, "high"),
    claim("codebook", "random indices draw as ddpm does", random_indices, "the largest of 8 other sets of ddpm's",
          f"digits, {ENTRIES} entries, {NFE} evaluations, {DRAWN} samples, to as many of ddpm's", SLICED),
    claim("relic", "the same bits look more like digits", realistic, "plain dequantisation", WHITE, SLICED),
    claim("relic", "the same bits are about as near to the originals", faithful,
          "1.1 times that of plain dequantisation", WHITE, MSE),
    claim("relic", "half the matched level is worse", matched(0.5), "half the level", WHITE, SLICED),
    claim("relic", "twice the matched level is worse", matched(2.0), "twice the level", WHITE, SLICED),
)  # fmt: skip
