"""Claims of guidance that is learned: noise awareness, guides for noisy samples, heads on a model's features."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from claims.common import F64, VP, Claim, Denoiser, Noise, Outcome, compared, experiment, plan, sliced, slow, tolerance
from claims.problems import anisotropic
from claims.trained import MLP, NetworkDenoiser, NoiseLevels, fit, fresh
from fewstep.core.denoiser import Wrapper
from fewstep.core.prediction import Prediction, conversion, expand, scales
from fewstep.data import shapes
from fewstep.data.shapes_render import BACKGROUND
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.denoisers.noise_free import NoiseFree
from fewstep.guidance.lacon import lacon
from fewstep.guidance.noise_awareness import nag
from fewstep.hub.models import load
from fewstep.metrics.accuracy import class_accuracy
from fewstep.metrics.shapes_verifier import verify
from fewstep.sampling.noise_shift import noise_shift
from fewstep.training.digits_classifier import train_digits_classifier
from fewstep.training.lacon import Adapter, fit_adapter
from fewstep.training.ppap import fit_experts, match, seen

N, LEVELS = 1000, 40
HIDDEN, TRAINING = 0.3, 1500  # the share of hidden noise levels, and the steps
EXPERTS, STEPS, SCALE, DIGITS = 5, 300, 4.0, 300
BLOCKS, HEAD_STEPS, SCENES = ("mid.res1", "up.1.res0", "up.0.res0"), 100, 32
SIGMA = 1.0  # where early guidance ends


def _mixture(d: int) -> GaussianMixture:
    return anisotropic(6, 0.8, 0.1, 0.4, VP(), d)


def _levels(process: VP) -> Tensor:
    return process.time(torch.linspace(process.log_snr(process.t_max) + 0.1, 4.5, LEVELS, dtype=F64))


def _aware(d: int, scale: float, kind: str = "score") -> Denoiser:
    model = _mixture(d)
    return nag(model, scale, null=NoiseFree(model, _levels(VP()), kind)) if scale else model


@experiment
def _sliced(seed: int, solver: str, steps: int, d: int, scale: float, kind: str = "score") -> Outcome:
    """Sliced distance of samples from exact ones; both arms see the same number of steps."""
    noise, made = Noise(seed).normal(0, (N, d), "cpu", F64), plan(VP(), solver, steps)
    real = _mixture(d).sample(4 * N, seed + 1)
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
    mixture, process = _mixture(2), VP()
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


def _exact_null(seed: int) -> Outcome:
    """The score without a noise level against automatic differentiation of the law over all levels."""
    mixture, levels = _mixture(3), _levels(VP())
    x = Noise(seed).normal(0, (64, 3), "cpu", F64).requires_grad_(True)
    density = torch.stack([mixture.log_likelihood(x, t) for t in levels], 1).logsumexp(1)
    (score,) = torch.autograd.grad(density.sum(), x)
    off = (NoiseFree(mixture, levels)(x.detach(), levels[0]).value - score).norm() / score.norm()
    return tolerance(float(off), 1e-10, f"{LEVELS} levels, mixture in 3 dimensions", "relative error")


def _reads(seed: int) -> Outcome:
    """The shift of a run that starts with too much noise beside that of one that starts right, first evaluation."""
    model, made = _mixture(16), plan(VP(), "ddpm", timesteps=[0.5, 0.3, 0.0])
    found = noise_shift(model, made, N, seed=seed)
    return compared([found.shift[0] - found.true[0], 0.0], "no shift",
                    "a run begun at log-SNR 0 from pure noise, which has no data in it; mixture in 16 dimensions",
                    unit="shift beyond that of true noised data, in log-SNR")  # fmt: skip


class _Steered(Wrapper):
    """The model without a label, its score with the gradient of a guide's log-probability."""

    def __init__(self, model: Denoiser, log_probability: Callable[..., Tensor]):
        super().__init__(model)
        self.log_probability = log_probability

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        answer = self.model(x, t, **self.model.check_condition({}, len(x), x.device))
        with torch.enable_grad():
            here = x.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(self.log_probability(here, t, **condition).sum(), here)
        factor = torch.as_tensor(conversion("score", answer.kind, *scales(self.process, t))[1])
        return answer.replaced(answer.value + SCALE * expand(factor, x) * slope)


@functools.cache
def _guided_digits(seed: int) -> tuple[dict[str, float], float]:
    """Accuracy of the labels by the guide, and the share of the trained numbers of an expert."""
    guide = train_digits_classifier(seed=seed + 7, epochs=40)[0].eval().requires_grad_(False)
    model = load("digits")
    process, std = model.process, float(model.data_std)
    levels = NoiseLevels(process, "log-normal", mean=0.0, std=1.5)
    bank = plan(process, "ddim", 20, "karras")(model, Noise(seed + 100).normal(0, (1024, 1, 8, 8)))
    experts = fit_experts(model, guide, EXPERTS, 4, steps=STEPS, samples=bank, levels=levels, seed=seed)
    one = copy.deepcopy(guide).requires_grad_(True)
    match(guide, one, process, bank, levels, std, steps=EXPERTS * STEPS, lr=6e-3, seed=seed)
    one.requires_grad_(False)

    def plain(network: nn.Module) -> Callable[..., Tensor]:
        def log_probability(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
            logits: Tensor = network(seen(process, x, t, std))
            return logits.log_softmax(1).gather(1, label[:, None])[:, 0]

        return log_probability

    label, made = torch.arange(DIGITS) % 10, plan(process, "ddim", 20, "karras")
    noise = Noise(seed).normal(0, (DIGITS, 1, 8, 8))
    found = {}
    for name, guiding in (("experts", experts.log_probability), ("raw", plain(guide)), ("one", plain(one))):
        found[name] = class_accuracy(made(_Steered(model, guiding), noise, label=label), label).value
    return found, experts.share


@experiment
def _experts(seed: int, other: str, against: str) -> Outcome:
    found, share = _guided_digits(seed)
    about = f"digits without labels, {DIGITS} samples, 20 steps of ddim, one gradient a step, scale {SCALE:g};"
    about += f" {EXPERTS} experts of {STEPS} steps, one expert trains {share:.1%} of the guide; judged by the package's"
    return compared([found["experts"], found[other]], against, f"{about} classifier", "high", "class accuracy")


def _share(seed: int) -> Outcome:
    share = _guided_digits(seed)[1]
    about = f"rank 4 in a guide of 48 thousand weights; all {EXPERTS} experts together {EXPERTS * share:.0%}"
    return tolerance(share, 0.1, about, "trained numbers of one expert, share of the guide's")


def _pairs(kind: str) -> Callable[[int, torch.Generator], tuple[Tensor, Tensor]]:
    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return shapes.maps(torch.randint(shapes.N_TRAIN, (count,), generator=generator), "train", kind)

    return draw


@functools.cache
def _head(kind: str, blocks: tuple[str, ...], seed: int) -> Adapter:
    model = load("shapes")
    levels = NoiseLevels(model.process, "log-normal", mean=1.0, std=1.2)
    held = shapes.maps(torch.arange(64), "validation", kind)
    return fit_adapter(model, _pairs(kind), blocks, steps=HEAD_STEPS, levels=levels, held=held, seed=seed)


@functools.cache
def _scenes(kind: str, blocks: tuple[str, ...] | None, interval: tuple[float, float] | None, seed: int) -> Tensor:
    """Samples guided to the maps of held-out scenes by a head on blocks; None for no guidance."""
    model, (_, target) = load("shapes"), _asked(kind)
    if blocks is not None:
        model = lacon(model, **_head(kind, blocks, seed).options, target=target, interval=interval)
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


def _validation(seed: int) -> Outcome:
    figures = [_head("mask", blocks, seed).validation for blocks in (BLOCKS, ())]
    about = f"masks of 64 held-out scenes, log-normal noise levels around sigma 2.7, {HEAD_STEPS} steps of 32"
    return compared(figures, "a head on the noisy pixels", about, unit="validation loss")


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
         _learned(0, "the answers without a noise level, in v")),
    slow("nag", "and the learned term like the gradient of log p(t | x)",
         _learned(1, "v less v without a noise level, against the exact term of scores")),
    Claim("noise-free", "its score is the gradient of the log-density over all levels", _exact_null),
    Claim("noise-shift", "a run begun with too much noise is seen to have it", _reads),
    slow("ppap", "five experts guide digits to more right classes than the guide for clean samples",
         _experts("raw", "the guide on noisy samples")),
    slow("ppap", "and than one guide tuned to all noise levels with as many steps",
         _experts("one", "all weights of one guide, as many steps in all")),
    slow("ppap", "an expert trains less than a tenth of the guide", _share),
    slow("lacon", "samples cover a mask far better than without guidance", _iou("mask", None, "no guidance")),
    slow("lacon", "and better than by a head on the noisy pixels", _iou("mask", (), "a head on the noisy pixels")),
    slow("lacon", "the same model follows edges as well", _iou("edge", None, "no guidance")),
    slow("lacon", "early guidance decides, late does not", _window(False)),
    slow("lacon", "stopped early, it leaves more pictures clean", _window(True)),
    slow("late-constraint", "features tell a mask better than noisy pixels do", _validation),
)  # fmt: skip
