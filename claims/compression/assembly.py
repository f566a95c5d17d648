"""Claims of assembled UNets: what experts in the kernels are worth to a pruned one, and when to switch to the whole."""

from __future__ import annotations

import functools
import time

import torch

from claims.caches import UNIT, fewer, model_of, run, steps_of, whole
from claims.common import Outcome, compared, experiment, gap, slow, thrice
from claims.parts import Denoiser, Noise
from claims.trained import NetworkDenoiser, NoiseLevels
from fewstep.compression.assembly import Distillation, assemble, pruned
from fewstep.core.denoiser import Denoiser as Model
from fewstep.data.open import open_data
from fewstep.denoisers.experts import Experts
from fewstep.denoisers.operations import operations

NAME, DROP = "digits", ("mid.res0", "mid.attn", "mid.res1")  # all of its middle
EXPERTS, STEPS, BATCH, HIDDEN = 4, 400, 32, 0.1
N, EVALUATIONS = 64, 20
LOSS = "distillation loss on held-out digits"


def _teacher() -> NetworkDenoiser:
    found = model_of(NAME)
    assert isinstance(found, NetworkDenoiser)
    return found


def _levels() -> NoiseLevels:
    """Those that the embedded model was trained at."""
    return NoiseLevels(_teacher().process, "log-normal", -0.8, 1.2)


@functools.cache
def _student(experts: int, seed: int) -> NetworkDenoiser:
    data = open_data(NAME)
    labels = torch.as_tensor(data.labels)

    def draw(count: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        rows = torch.randint(len(data.images), (count,), generator=generator)
        hidden = torch.rand(count, generator=generator) < HIDDEN
        return data.images[rows], {"label": labels[rows].masked_fill(hidden, 10)}

    return assemble(_teacher(), DROP, draw, experts=experts, steps=STEPS, batch=BATCH, levels=_levels(), seed=seed)


@torch.no_grad()
def _loss(student: NetworkDenoiser, seed: int) -> float:
    """On all held-out digits, with noise levels even over the quantiles."""
    data = open_data(NAME, split="validation")
    x0, count = data.images, len(data.images)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    t = _levels().quantile((order + 0.5) / count)
    condition = {"label": torch.as_tensor(data.labels)}
    return float(Distillation(student, _teacher())(x0, Noise(seed).normal(0, tuple(x0.shape)), t, condition).mean())


@functools.cache
def _ratio(batch: int) -> float:
    """Seconds of an evaluation by the student with experts in those of the plain one, one thread, the best of 20."""
    took = []
    for experts in (EXPERTS, 1):
        model, x, t = pruned(_teacher(), DROP, experts), torch.zeros(batch, 1, 8, 8), torch.tensor(1.0)
        label, best = torch.zeros(batch, dtype=torch.long), float("inf")
        with torch.no_grad():
            for _ in range(20):
                begin = time.perf_counter()
                model(x, t, label=label)
                best = min(best, time.perf_counter() - begin)
        took.append(best)
    return took[0] / took[1]


def _about() -> str:
    counts = [operations(pruned(_teacher(), DROP, n)) / operations(_teacher()) for n in (EXPERTS, 1)]
    told = f"embedded {NAME} without its middle, {STEPS} steps of batch {BATCH}, the whole model's answers to learn;"
    return told + f" operations of the whole: {counts[0]:.0%} with {EXPERTS} experts, {counts[1]:.0%} plain"


@experiment
def _experts(seed: int) -> Outcome:
    figures = [_loss(_student(experts, seed), seed) for experts in (EXPERTS, 1)]
    untrained = _loss(pruned(_teacher(), DROP), seed)
    about = f"{_about()}; {_ratio(1):.2f} times the seconds of the plain one at batch 1, {_ratio(64):.2f} at 64;"
    return compared(figures, "plain convolutions", f"{about} {untrained:.3g} untrained", unit=LOSS)


def _gap(model: Model, seed: int) -> float:
    samples = run(model, NAME, steps_of(NAME, "ddim", EVALUATIONS), seed, N).samples
    return gap(samples, whole(NAME, "ddim", EVALUATIONS, seed, N))


def _switched(seed: int, first: bool) -> Denoiser:
    """The small model for the first half of the evaluations and the whole one for the second, or the reverse."""
    moments = steps_of(NAME, "ddim", EVALUATIONS).moments
    small, cut = _student(EXPERTS, seed), (moments[EVALUATIONS // 2 - 1] + moments[EVALUATIONS // 2]) / 2
    return Experts([_teacher(), small] if first else [small, _teacher()], [cut])


def _share() -> float:
    """Operations of a run that switches halfway, in those of the whole model's."""
    return (1 + operations(pruned(_teacher(), DROP, EXPERTS)) / operations(_teacher())) / 2


RUN = f"{N} fresh noises, {EVALUATIONS} steps of ddim"


@experiment
def _taught(seed: int) -> Outcome:
    figures = [_gap(_student(EXPERTS, seed), seed), _gap(pruned(_teacher(), DROP), seed)]
    return compared(figures, "the same blocks left out, untrained", f"{_about()}; {RUN}", unit=UNIT)


@experiment
def _early(seed: int) -> Outcome:
    figures = [_gap(_switched(seed, True), seed), _gap(_student(EXPERTS, seed), seed)]
    about = f"{_about()}; the small one for the first half of {RUN}, {_share():.0%} of the whole's operations"
    return compared(figures, "the small model alone", about, unit=UNIT)


@experiment
def _cheaper(seed: int) -> Outcome:
    about = f"embedded {NAME} without its middle and with {EXPERTS} experts for the first half of {EVALUATIONS} steps"
    return compared([_share(), 1.0], "the whole model", about, unit="operations of a run, in the whole model's")


@experiment
def _order(seed: int) -> Outcome:
    figures = [_gap(_switched(seed, first), seed) for first in (True, False)]
    return compared(figures, "the whole model early and the small one late", f"{_about()}; {RUN}", unit=UNIT)


@experiment
def _fewer(seed: int) -> Outcome:
    count, rival = fewer(NAME, "ddim", _share() * EVALUATIONS, seed, N)
    figures = [_gap(_switched(seed, True), seed), gap(rival, whole(NAME, "ddim", EVALUATIONS, seed, N))]
    return compared(figures, f"{count} whole steps", f"{_about()}; the small one first, {RUN}", unit=UNIT)


CLAIMS = (
    slow("assembly", "experts in the kernels lower the distillation loss at equal training steps", thrice(_experts())),
    slow("assembly", "taught, it is nearer to the whole model's samples than blocks left out", thrice(_taught())),
    slow("assembly", "small early and whole late is nearer than small alone", thrice(_early())),
    slow("assembly", "small early and whole late costs less than the whole model", _cheaper()),
    slow("assembly", "small early and whole late is nearer than the reverse", thrice(_order())),
    slow("assembly", "small early and whole late is nearer than fewer whole steps of equal cost", thrice(_fewer())),
)
