"""Claims of guidance that is learned: noise awareness, and heads on a model's features."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from claims.common import F64, VP, Denoiser, Noise, Outcome, compared, experiment, plan, sliced, slow, thrice
from claims.problems import anisotropic
from claims.trained import MLP, NetworkDenoiser, NoiseLevels, fit, fresh
from fewstep.data import shapes
from fewstep.data.shapes_render import BACKGROUND
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.denoisers.noise_free import NoiseFree
from fewstep.guidance.lacon import lacon
from fewstep.guidance.noise_awareness import nag
from fewstep.hub.models import load
from fewstep.metrics.shapes_verifier import verify
from fewstep.sampling.noise_shift import noise_shift
from fewstep.training.lacon import Adapter, fit_adapter

N, LEVELS = 1000, 40
HIDDEN, TRAINING = 0.3, 1500  # the share of hidden noise levels, and the steps
BLOCKS, HEAD_STEPS, SCENES = ("mid.res1", "up.1.res0", "up.0.res0"), 100, 32
SIGMA = 1.0  # where early guidance ends


def six(d: int) -> GaussianMixture:
    return anisotropic(6, 0.8, 0.1, 0.4, VP(), d)


def levels_of(process: VP) -> Tensor:
    return process.time(torch.linspace(process.log_snr(process.t_max) + 0.1, 4.5, LEVELS, dtype=F64))


def _aware(d: int, scale: float, kind: str = "score") -> Denoiser:
    model = six(d)
    return nag(model, scale, null=NoiseFree(model, levels_of(VP()), kind)) if scale else model


@experiment
def _sliced(seed: int, solver: str, steps: int, d: int, scale: float, kind: str = "score") -> Outcome:
    """Sliced distance of samples from exact ones; both arms see the same number of steps."""
    noise, made = Noise(seed).normal(0, (N, d), "cpu", F64), plan(VP(), solver, steps)
    real = six(d).sample(4 * N, seed + 1)
    figures = [sliced(made(_aware(d, w, kind), noise, seed=seed, dtype=F64), real) for w in (scale, 0.0)]
    about = f"6-component mixture in {d} dimensions, VP, {N} samples, {steps} steps of {solver}, scale {scale:g}, exact"
    about += f" mean of {kind}"
    return compared(figures, "no guidance, equal steps", about, unit="sliced Wasserstein distance")


@experiment
def _shifted(seed: int, d: int) -> Outcome:
    made = plan(VP(), "ddpm", 12)
    figures = [noise_shift(_aware(d, w), made, N, seed=seed).value for w in (0.5, 0.0)]
    about = f"6-component mixture in {d} dimensions, VP, {N} runs of 12 steps of ddpm, scale 0.5, exact"
    unit = "mean absolute difference of the shift from that of true noised data, in log-SNR"
    return compared(figures, "no guidance, equal steps", about, unit=unit)


@functools.cache
def _cosines(seed: int) -> tuple[float, float]:
    """Of the learned answer without a noise level with the exact one, and of the learned term with the exact one."""
    mixture, process = six(2), VP()
    levels = NoiseLevels(process)
    network = fresh(MLP, seed, (2,), 64, 3)
    model = NetworkDenoiser(network, process, "v", (2,), noise_dropout=HIDDEN)

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        return data[torch.randint(len(data), (count,), generator=generator)], {}

    data = mixture.sample(20_000, seed).float()
    model = fit(model, draw, steps=TRAINING, lr=2e-3, levels=levels, seed=seed)
    u = (torch.arange(N, dtype=F64) + 0.5) / N
    t, x0 = levels.quantile(u), mixture.sample(N, seed + 1)
    x = process.alpha(t)[:, None] * x0 + process.sigma(t)[:, None] * Noise(seed).normal(1, (N, 2), "cpu", F64)
    even = levels.quantile((torch.arange(4 * LEVELS, dtype=F64) + 0.5) / (4 * LEVELS))
    with torch.no_grad():
        null = model.network(x.float(), None).double()
        strong = model(x.float(), t).value.double()
    exact = NoiseFree(mixture, even, "v")(x, t).value
    change = nag(mixture, 1.0, null=NoiseFree(mixture, even))(x, t).v - mixture(x, t).v

    def cosine(a: Tensor, b: Tensor) -> float:
        return float((a * b).sum() / (a.norm() * b.norm()))

    return cosine(null, exact), cosine(strong - null, change)


@experiment
def _learned(seed: int, part: int, what: str) -> Outcome:
    about = f"{what}; 2-D mixture, VP, MLP of v, {TRAINING} steps, noise level hidden from {HIDDEN:g} of the samples"
    return compared([_cosines(seed)[part], 0.9], "at least 0.9", about, "high", "cosine over all samples")


def _pairs(kind: str) -> Callable[[int, torch.Generator], tuple[Tensor, Tensor]]:
    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return shapes.maps(torch.randint(shapes.N_TRAIN, (count,), generator=generator), "train", kind)

    return draw


@functools.cache
def head_of(kind: str, blocks: tuple[str, ...], seed: int) -> Adapter:
    model = load("shapes")
    levels = NoiseLevels(model.process, "log-normal", mean=1.0, std=1.2)
    held = shapes.maps(torch.arange(64), "validation", kind)
    return fit_adapter(model, _pairs(kind), blocks, steps=HEAD_STEPS, levels=levels, held=held, seed=seed)


@functools.cache
def _scenes(kind: str, blocks: tuple[str, ...] | None, interval: tuple[float, float] | None, seed: int) -> Tensor:
    """Samples guided to the maps of held-out scenes by a head on blocks; None for no guidance."""
    model, (_, target) = load("shapes"), _asked(kind)
    if blocks is not None:
        model = lacon(model, **head_of(kind, blocks, seed).options, target=target, interval=interval)
    return plan(model.process, "ddim", 20, "karras")(model, Noise(seed).normal(0, (SCENES, 3, 32, 32)))


def _asked(kind: str) -> tuple[Tensor, Tensor]:
    return shapes.maps(torch.arange(1000, 1000 + SCENES), "validation", kind)


def _overlap(x: Tensor, kind: str) -> float:
    """Mean over pictures of the intersection over union of the asked and the shown map, cut at one half."""
    shown = ((x - BACKGROUND).square().sum(1, keepdim=True).sqrt() > 0.7).float()
    if kind == "edge":
        pool = torch.nn.functional.max_pool2d
        shown = pool(shown, 3, 1, 1) + pool(-shown, 3, 1, 1)
    a, b = (part.flatten(1) > 0.5 for part in (shown, _asked(kind)[1]))
    return float(((a & b).sum(1) / (a | b).sum(1).clamp_min(1)).mean())


def _about(kind: str) -> str:
    return f"shapes without captions, {kind}s of {SCENES} held-out scenes, 20 steps of ddim, heads of {HEAD_STEPS}"


@experiment
def _iou(seed: int, kind: str, theirs: tuple[str, ...] | None, against: str) -> Outcome:
    figures = [_overlap(_scenes(kind, blocks, None, seed), kind) for blocks in (BLOCKS, theirs)]
    return compared(figures, against, _about(kind), "high", "intersection over union")


@experiment
def _window(seed: int, clean: bool) -> Outcome:
    """Early guidance beside late guidance by overlap, and beside all of it by how many pictures show shapes alone."""
    early = _scenes("mask", BLOCKS, (SIGMA, 80.0), seed)
    if clean:
        whole = _scenes("mask", BLOCKS, None, seed)
        figures = [sum(scene.clean for scene in verify(x)) / SCENES for x in (early, whole)]
        return compared(figures, "guidance throughout", _about("mask"), "high", "share of pictures with shapes alone")
    figures = [_overlap(x, "mask") for x in (early, _scenes("mask", BLOCKS, (0.002, SIGMA), seed))]
    return compared(figures, f"only below sigma {SIGMA:g}", _about("mask"), "high", "intersection over union")


CLAIMS = (
    *(slow("nag", f"few steps of ddpm end closer to the data in {d} dimensions at scale {w:g}",
           _sliced("ddpm", 12, d, w)) for d in (2, 16) for w in (0.5, 1.0)),
    *(slow("nag", f"so do they in {d} dimensions with the answer that a perfect network of v learns",
           _sliced("ddpm", 12, d, 0.5, "v")) for d in (2, 16)),
    slow("nag", "so do 8 steps of dpmpp-2m", _sliced("dpmpp-2m", 8, 2, 0.5)),
    slow("nag", "so do 12 steps of ddim", _sliced("ddim", 12, 2, 0.5)),
    slow("nag", "the states of ddpm come closer to their noise level in 2 dimensions", _shifted(2)),
    slow("nag", "the states of ddpm come closer to their noise level in 16 dimensions", _shifted(16)),
    slow("nag", "the learned answer without a noise level is like the exact one",
         thrice(_learned(0, "the answers without a noise level, in v"))),
    slow("nag", "and the learned term like the gradient of log p(t | x)",
         thrice(_learned(1, "v less v without a noise level, against the exact term of scores"))),
    slow("lacon", "samples cover a mask far better than without guidance", thrice(_iou("mask", None, "no guidance"))),
    slow("lacon", "and better than by a head on the noisy pixels",
         thrice(_iou("mask", (), "a head on the noisy pixels"))),
    slow("lacon", "the same model follows edges as well", thrice(_iou("edge", None, "no guidance"))),
    slow("lacon", "early guidance decides, late does not", thrice(_window(False))),
    slow("lacon", "stopped early, it leaves more pictures clean", thrice(_window(True))),
)  # fmt: skip
