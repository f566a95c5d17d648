"""Claims of composed models, of factors of a picture, and of guidance by gradients."""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from claims.claim import Claim, Outcome, compared, experiment, slow, thrice
from claims.common import F64, SLICED, plan, sample, sliced
from claims.parts import EDM, VP, Flow, GaussianMixture, Noise
from claims.trained import NetworkDenoiser, NoiseLevels, UNet, fit, fresh
from fewstep.conditions.text import Text
from fewstep.data.captions import COLOURS, SHAPES
from fewstep.data.digits import load as load_digits
from fewstep.data.shapes_render import BACKGROUND, PALETTE, render
from fewstep.guidance.bands import low_pass
from fewstep.guidance.classifier import Classified
from fewstep.guidance.compose import Composed
from fewstep.guidance.energy import Energy
from fewstep.guidance.factorized import Factorized
from fewstep.guidance.flowchef import FlowChef
from fewstep.guidance.guide import guide
from fewstep.hub.models import load as load_model
from fewstep.metrics.psnr import psnr

# Two small networks, each of which sees one word of a picture.
TRAIN_STEPS, BATCH, DROPPED, JITTER = 700, 32, 0.15, 1.75
WORDS = {"shape": SHAPES, "colour": COLOURS}
ASKED, STEPS, WEIGHT = 96, 16, 2.0
# Pairs of shapes on the embedded model.
PAIRS, SCALE = 48, 3.0
# A linear measurement of an exact mixture.
DIM, SEEN, NOISE, OBSERVED, DRAWN, STEERED_STEPS = 12, 5, 0.2, 16, 64, 20
SCALES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 25.0)  # of the gradient through the network: the best of them counts
DIGITS, DIGIT_STEPS = 60, 20
N, SHARES = 2000, (0.03, 0.1, 0.3, 1.0)


def _scenes(colour: Tensor, shape: Tensor, shift: Tensor) -> Tensor:
    """One large thing near the middle of each picture."""
    one = torch.ones(len(colour), 1, dtype=torch.long)
    return render(colour[:, None], shape[:, None], one, 16 + shift[:, None], one.bool())


@functools.cache
def _specialist(word: str, seed: int) -> NetworkDenoiser:
    """A denoiser trained on captions that name one attribute: "a circle", or "a red"."""
    names = WORDS[word]
    text = Text(("a", *names), 2)
    network = fresh(
        UNet, seed, channels=3, size=32, width=(48, 96), attention=(4,), classes=None, patch=4,
        vocabulary=len(names) + 1, captions=2, places=True,
    )  # fmt: skip
    model = NetworkDenoiser(network, EDM(), "x0", (3, 32, 32), {"text": text}, "edm", 0.5, (-1.0, 1.0))

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        colour, shape = (torch.randint(len(own), (count,), generator=generator) for own in (COLOURS, SHAPES))
        shift = JITTER * (2 * torch.rand(count, 2, generator=generator) - 1)
        named = shape if word == "shape" else colour
        tokens = torch.stack([torch.ones_like(named), 2 + named], 1)
        kept = torch.rand(count, 1, generator=generator) >= DROPPED
        return _scenes(colour, shape, shift), {"text": tokens * kept}

    levels = NoiseLevels(model.process, "log-normal", mean=0.0, std=1.6)
    return fit(model, draw, steps=TRAIN_STEPS, batch=BATCH, lr=2e-3, levels=levels, ema=0.99, seed=seed)


@functools.cache
def _joint(arm: str, seed: int) -> float:
    """Share of pictures whose shape and colour are both as asked, by the templates that explain most of them."""
    shape, colour = (_specialist(word, seed) for word in ("shape", "colour"))
    rows = torch.arange(ASKED)
    shapes, colours = ([names[int(i) % len(names)] for i in rows] for names in (SHAPES, COLOURS))
    first, second = [f"a {s}" for s in shapes], [f"a {c}" for c in colours]
    options: dict[str, Any] = {"solver": "dpmpp-2m", "timesteps": "karras", "seed": seed, "batch_size": ASKED}
    if arm == "composed":
        mix = Composed(shape, [colour], [WEIGHT, WEIGHT])
        x = sample(mix, ASKED, steps=STEPS, text=first, text_2=second, **options)
    elif arm == "average":  # of both conditional answers: two rows an evaluation, so twice as many
        mix = Composed(shape, [colour], [0.5, 0.5])
        x = sample(mix, ASKED, steps=2 * STEPS, text=first, text_2=second, **options)
    else:
        own, said = (shape, first) if arm == "shape" else (colour, second)
        x = sample(guide(own, "cfg", scale=WEIGHT), ASKED, steps=2 * STEPS, text=said, **options)
    read = _read(x)
    right = [own == rows % len(names) for own, names in zip(read, (SHAPES, COLOURS), strict=True)]
    return float((right[0] & right[1]).double().mean())


@experiment
def _composed(seed: int, arm: str, against: str) -> Outcome:
    about = (
        f"two networks, {TRAIN_STEPS} steps each on captions of one attribute, {ASKED} pictures, {4 * STEPS} rows each"
    )
    return compared([_joint(own, seed) for own in ("composed", arm)], against, about, "high", "both attributes right")


@functools.cache
def _templates(which: str, level: int) -> Tensor:
    """(4, offsets, 1024): every shape near the middle, its low or high band, of unit length."""
    line = torch.arange(-3.0, 3.5, 0.5)
    shift = torch.cartesian_prod(line, line)
    found = []
    for shape in range(len(SHAPES)):
        white = _scenes(torch.zeros(len(shift), dtype=torch.long), torch.full((len(shift),), shape), shift)
        found.append(_band((white - white[:, :, :1, :1])[:, :1], which, level).flatten(1))
    made = torch.stack(found)
    return made / made.norm(dim=-1, keepdim=True)


def _band(x: Tensor, which: str, level: int) -> Tensor:
    low = low_pass(x, level)
    return {"low": low, "high": x - low, "whole": x}[which]


def _seen(x: Tensor, which: str, level: int) -> Tensor:
    """The shape `(B,)` whose template explains most of a band of pictures, over all channels."""
    bands = _band(x - x[:, :, :1, :1], which, level).flatten(2)
    explained = torch.einsum("bcp,sop->bsoc", bands, _templates(which, level)).square().sum(-1)
    return explained.amax(2).argmax(1)


def _read(x: Tensor) -> tuple[Tensor, Tensor]:
    """The shape and the colour `(B,)` of the thing near the middle, in the networks' rough pictures too."""
    inner = torch.einsum("bcp,sop->bsoc", (x - BACKGROUND).flatten(2), _templates("whole", 0))
    explained = inner.square().sum(-1)
    shape = explained.amax(2).argmax(1)
    best = explained.flatten(1).argmax(1)
    colour = inner.flatten(1, 2)[torch.arange(len(x)), best]
    palette = torch.tensor(PALETTE) - BACKGROUND
    return shape, (colour @ (palette / palette.norm(dim=1, keepdim=True)).T).argmax(1)


@functools.cache
def _hybrids(arm: str, level: int, seed: int) -> tuple[float, float, float]:
    """Shares of pictures that show the first shape when blurred, the second in the rest, and both."""
    model = guide(load_model("shapes"), "cfg", scale=SCALE)
    pairs = [(a, b) for a in range(4) for b in range(4) if a != b]
    low, high = (torch.tensor([pairs[i % len(pairs)][side] for i in range(PAIRS)]) for side in (0, 1))
    said = [
        [f"a large {COLOURS[i % 6]} {SHAPES[int(s)]} in the center" for i, s in enumerate(side)] for side in (low, high)
    ]
    if arm == "factorized":
        made: Any = Factorized(model, [(f"low-{level}", {}), (f"high-{level}", {})])
    else:
        made = Composed(model, [{}], [0.5, 0.5])
    x = sample(made, PAIRS, steps=STEPS, solver="ddim", seed=seed, text=said[0], text_2=said[1], batch_size=PAIRS)
    ours = [_seen(x, which, level) == side for which, side in (("low", low), ("high", high))]
    both = ours[0] & ours[1]
    first, second, each = (float(part.double().mean()) for part in (*ours, both))
    return first, second, each


@experiment
def _factorized(seed: int, level: int, figure: int, unit: str) -> Outcome:
    about = f"embedded shapes, {PAIRS} pairs, low-{level} and the rest, {STEPS} steps of ddim, scale {SCALE:g}"
    figures = [_hybrids(arm, level, seed)[figure] for arm in ("factorized", "average")]
    return compared(figures, "averaged answers", about, "high", unit)


def _measured(arm: str, seed: int, figure: int) -> float:
    """A figure of an arm; the gradient through the network at the best of its scales by that same figure."""
    scales = SCALES if arm == "energy" else (1.0,)
    return min(_sampled(arm, scale, seed)[figure] for scale in scales)


@functools.cache
def _sampled(arm: str, scale: float, seed: int) -> tuple[float, float]:
    """Residual and posterior-mean error on an exact flow mixture under a linear measurement."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=F64)

    means, root = normal(4, DIM), normal(4, DIM, DIM) / math.sqrt(DIM)
    covariances = 0.3 * root @ root.mT + 0.05 * torch.eye(DIM, dtype=F64)
    prior = GaussianMixture(torch.ones(4), means, covariances, Flow())
    operator = normal(SEEN, DIM) / math.sqrt(DIM)
    y = prior.sample(OBSERVED, seed) @ operator.T + NOISE * normal(OBSERVED, SEEN)
    # The posterior of each component, and their weights.
    inside = operator @ covariances @ operator.mT + NOISE**2 * torch.eye(SEEN, dtype=F64)
    gain = covariances @ operator.mT @ torch.linalg.inv(inside)
    left = y[:, None] - means @ operator.T
    quadratic = torch.einsum("nki,kij,nkj->nk", left, torch.linalg.inv(inside), left)
    share = (-0.5 * (quadratic + torch.logdet(inside))).softmax(1)
    exact = (share[..., None] * (means + torch.einsum("kij,nkj->nki", gain, left))).sum(1)
    asked = y.repeat_interleave(DRAWN, 0)

    def loss(x0: Tensor) -> Tensor:
        return (x0 @ operator.T - asked).square().sum(1) / 2

    rate = 1 / float(torch.linalg.matrix_norm(operator, 2)) ** 2
    model: Any = {
        "flowchef": lambda: FlowChef(prior, loss, rate),
        "energy": lambda: Energy(prior, loss=loss, scale=scale),
        "model": lambda: prior,
    }[arm]()
    noise = Noise(seed).normal(0, (OBSERVED * DRAWN, DIM), "cpu", F64)
    x = plan(Flow(), "ddim", STEERED_STEPS)(model, noise, dtype=F64)
    residual = float((x @ operator.T - asked).norm(dim=1).mean())
    return residual, float((x.view(OBSERVED, DRAWN, DIM).mean(1) - exact).norm(dim=1).mean())


@experiment
def _steered(seed: int, figure: int, unit: str, arm: str, against: str) -> Outcome:
    about = (
        f"4 Gaussians in {DIM} dimensions, {SEEN} measurements with noise {NOISE:g}, {OBSERVED} x {DRAWN} samples,"
        f" {STEERED_STEPS} steps of ddim on the rectified flow"
    )
    return compared([_measured(own, seed, figure) for own in ("flowchef", arm)], against, about, unit=unit)


@functools.cache
def _inpainted(arm: str, seed: int) -> tuple[float, float, float]:
    """PSNR of digits whose upper half is known, seconds, and megabytes kept for the backward pass."""
    model = load_model("digits").requires_grad_(False)
    images, labels = (part[:DIGITS] for part in load_digits("validation"))
    mask = torch.zeros(8, 8)
    mask[:4] = 1

    def loss(x0: Tensor) -> Tensor:
        return (mask * (x0 - images)).flatten(1).square().sum(1) / 2

    made: Any = {
        "flowchef": lambda: FlowChef(model, loss, 1.0),
        "energy": lambda: Energy(model, loss=loss, scale=1 / NOISE**2),
        "model": lambda: model,
    }[arm]()
    kept = [0]

    def pack(value: Tensor) -> Tensor:
        kept[0] += value.numel() * value.element_size()
        return value

    def run() -> tuple[Tensor, float]:
        begin = time.perf_counter()
        x = sample(made, DIGITS, steps=DIGIT_STEPS, solver="ddim", timesteps="karras", seed=seed, label=labels)
        return x, time.perf_counter() - begin

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        x, _ = run()
    seconds = statistics.median(run()[1] for _ in range(3))
    return psnr(x.clamp(-1, 1), images, (-1.0, 1.0)).value, seconds, kept[0] / DIGIT_STEPS / 2**20


@experiment
def _digits(seed: int, figure: int, unit: str, better: str, arm: str, against: str) -> Outcome:
    about = f"{DIGITS} held-out digits by their label, upper half known, {DIGIT_STEPS} steps of ddim"
    return compared([_inpainted(own, seed)[figure] for own in ("flowchef", arm)], against, about, better, unit)


def _posterior(seed: int) -> Outcome:
    """Two Gaussians, y = x0 + noise: the energy is the exact -log p_t(y | x) of the law."""
    y, tau2, variance = 0.8, 0.2, 0.15
    means = torch.tensor([[-1.0], [0.7]], dtype=F64)
    prior = GaussianMixture(torch.ones(2), means, variance, VP())
    moved = means + variance / (variance + tau2) * (y - means)
    weights = torch.exp(-((y - means[:, 0]) ** 2) / (2 * (variance + tau2)))
    exact = GaussianMixture(weights, moved, variance * tau2 / (variance + tau2), VP())

    def energy(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (one.reshape(-1, 1) for one in (VP().alpha(t), VP().sigma(t)))
        marginal = alpha**2 * variance + sigma**2
        share = (-((x - alpha * means.T) ** 2) / (2 * marginal)).log_softmax(1)
        mean = means.T + alpha * variance / marginal * (x - alpha * means.T)
        spread = variance * sigma**2 / marginal + tau2
        return -(share - (y - mean) ** 2 / (2 * spread) - spread.log() / 2).logsumexp(1)

    # The same energy through the predicted x0 alone, as posterior sampling takes it.
    arms = [Energy(prior, energy)]
    arms += [Energy(prior, loss=lambda x0: ((y - x0) ** 2).sum(1) / (2 * tau2), scale=scale) for scale in SHARES]
    real = exact.sample(N, seed + 1)
    ours, *theirs = [sliced(sample(made, N, steps=20, seed=seed, dtype=F64), real) for made in arms]
    about = f"two Gaussians, a noisy measurement, {N} samples, 20 steps, distance to the posterior"
    against = "a loss on the predicted x0, the best of its scales"
    return compared([ours, min(theirs)], against, about, unit=SLICED)


def _classified(seed: int) -> Outcome:
    """Three overlapping Gaussians: the distance of guided samples to the label's own law."""
    means, variance = torch.tensor([[-0.6, 0.0], [0.6, 0.0], [0.0, 0.8]], dtype=F64), 0.1
    whole = GaussianMixture(torch.ones(3), means, variance, VP())
    parts = [GaussianMixture(torch.ones(1), mean[None], variance, VP()) for mean in means]

    def noisy(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        found = torch.stack([part.log_likelihood(x, t) for part in parts], 1).log_softmax(1)
        return found.gather(1, label[:, None])[:, 0]

    def clean(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return noisy(x, torch.zeros((), dtype=F64), label)

    arms = [Classified(whole, noisy, classes=3), *(Classified(whole, clean, 3, scale) for scale in SHARES)]
    real = parts[1].sample(N, seed + 1)
    ours, *theirs = [sliced(sample(made, N, steps=20, seed=seed, dtype=F64, label=1), real) for made in arms]
    about = f"three overlapping Gaussians, {N} samples of one label, 20 steps"
    against = "a classifier of clean samples, the best of its scales"
    return compared([ours, min(theirs)], against, about, unit=SLICED)


ENERGY, ALONE = "the gradient through the network", "no guidance"
BEST = f"{ENERGY}, the best of {len(SCALES)} scales"
FIGURES: tuple[tuple[str, Callable[[int], Outcome]], ...] = (
    ("leaves a smaller residual than the gradient through the network", _steered(0, "residual", "energy", BEST)),
    ("has the posterior's mean nearer than the gradient through the network",
     _steered(1, "distance of the samples' mean from the posterior's", "energy", BEST)),
    ("has the posterior's mean nearer than no guidance",
     _steered(1, "distance of the samples' mean from the posterior's", "model", ALONE)),
)  # fmt: skip
HYBRID = (
    (2, "blurred pictures show one caption's shape and their rest the other's", "share with both shapes"),
    (0, "blurred, they show the first caption's shape", "share with the first shape"),
    (1, "the rest shows the second caption's shape", "share with the second shape"),
)
CLAIMS = (
    slow("compose", "pictures have the shape of one model's caption and the colour of the other's, above their average",
         thrice(_composed("average", "the average of both answers"))),
    slow("compose", "and above the model of shapes alone", thrice(_composed("shape", "the model of shapes"))),
    slow("compose", "and above the model of colours alone", thrice(_composed("colour", "the model of colours"))),
    *(slow("factorized", f"{sentence}, {where}", _factorized(level, figure, unit))
      for level, where in ((1, "cut at 2 pixels"), (2, "cut at 4 pixels"))
      for figure, sentence, unit in HYBRID),
    *(Claim("flowchef", sentence, run) for sentence, run in FIGURES),
    slow("flowchef", "completes digits better than no guidance", _digits(0, "PSNR in dB", "high", "model", ALONE)),
    slow("flowchef", "completes digits better than the gradient through the network",
         _digits(0, "PSNR in dB", "high", "energy", ENERGY)),
    slow("flowchef", "takes less time than the gradient through the network",
         _digits(1, "seconds", "low", "energy", ENERGY)),
    slow("flowchef", "keeps less memory for a backward pass",
         _digits(2, "MB of saved tensors an evaluation", "low", "energy", ENERGY)),
    Claim("energy", "with the exact energy samples follow the posterior", _posterior),
    Claim("classifier", "samples follow the label's law when the classifier knows the noise", _classified),
)  # fmt: skip
