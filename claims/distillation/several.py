"""Claims of guidance drawn for each iteration, and of several students: on points under labels and on digits.

Both sides of a claim spend equal evaluations: a forward pass of one sample by any network is 1, with its backward pass
3. The points are eight Gaussians of the plane, two under each of four labels, and the teacher of a seed is a perceptron
that was trained on them; the digits' is the embedded model. Distances are means over the labels, of samples of one step
to those of the label.
"""

from __future__ import annotations

import functools
import math
import statistics
from typing import Any, NamedTuple

import torch
from torch import Tensor

from claims.claim import Claim, Outcome, Run, arms, slow
from claims.common import EDM, F64, SLICED, Denoiser, GaussianMixture, Noise, frechet, plan, sliced
from claims.problems import mixture
from claims.trained import MLP, NetworkDenoiser, NoiseLevels, fit, fresh
from fewstep.conditions.label import Label
from fewstep.core.methods import made
from fewstep.core.student import default_start
from fewstep.data.dataset import Dataset, DataSpec
from fewstep.distillation.method import Distiller, Setting
from fewstep.distillation.state import DistillState
from fewstep.hub.models import load
from fewstep.searching.problem import own_data

PROCESS, LABELS, WIDTH = EDM(), 4, 32
TRAINED, RATE, TRIAL, SMALL = 1500, 2e-3, 20, 8  # steps of a teacher and their rate; iterations of a trial, its batch
N, TRUTH = 2048, 1000
SCALES = (1.0, 2.5, 4.0)
SPREAD, FRECHET = "standard deviation over 3 seeds of the sliced distance", "Frechet distance in pixels of a class"


class Where(NamedTuple):
    """A kind of data: evaluations of a run, samples of an iteration, the rate, options of a quarter of the width."""

    name: str
    budget: int
    batch: int
    lr: float
    quarter: tuple[tuple[str, Any], ...]


POINTS = Where("points", 200_000, 128, 2e-3, (("width", WIDTH // 4),))
DIGITS = Where("digits", 40_000, 64, 1e-3, (("width", (8, 16)),))  # smaller ones take more than this to begin


class Arm(NamedTuple):
    """One side of a claim: what it is trained on, its method and options."""

    where: str
    method: str
    options: tuple[tuple[str, Any], ...] = ()


def arm(where: Where, method: str, **options: Any) -> Arm:
    return Arm(where.name, method, tuple(sorted(options.items())))


@functools.cache
def law(label: int) -> GaussianMixture:
    """Two of the eight components."""
    whole, own = mixture(PROCESS), slice(2 * label, 2 * label + 2)
    axes = whole.basis.unflatten(1, (len(whole.means), -1)).transpose(0, 1)[own]
    covariances = axes @ torch.diag_embed(whole.variances[own]) @ axes.mT
    return GaussianMixture(torch.ones(2), whole.means[own], covariances, PROCESS)


@functools.cache
def points(seed: int) -> Dataset:
    raw = torch.cat([law(label).sample(2048, LABELS * seed + label) for label in range(LABELS)]).float()
    labels = torch.arange(LABELS).repeat_interleave(2048)
    return Dataset(DataSpec("points", (2,), (-math.inf, math.inf), LABELS, len(raw)), raw, labels)


@functools.cache
def teacher(where: str, seed: int) -> NetworkDenoiser:
    if where == "digits":
        found = load("digits")
        assert isinstance(found, NetworkDenoiser)
        return found
    data = points(seed)
    network = fresh(MLP, seed, width=WIDTH, depth=3, classes=LABELS)
    model = NetworkDenoiser(network, PROCESS, "x0", (2,), {"label": Label(LABELS)}, "edm", float(data.raw.std()), None)

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        x0, named = data.batch(torch.randint(len(data), (count,), generator=generator))
        hidden = torch.rand(count, generator=generator) < 0.1
        return x0, {"label": named["label"].masked_fill(hidden, LABELS)}

    return fit(model, draw, steps=TRAINED, lr=RATE, levels=NoiseLevels(PROCESS, "log-normal", -1.2, 1.2), seed=seed)


def data_of(where: str, seed: int) -> Dataset:
    if where == "points":
        return points(seed)
    found = own_data(teacher(where, seed))
    assert found is not None
    return found


def _options(side: Arm) -> dict[str, Any]:
    found = dict(side.options)
    return found | ({"network": dict(found["network"])} if "network" in found else {})


def run(side: Arm, seed: int, iterations: int, batch: int) -> Distiller:
    where = POINTS if side.where == "points" else DIGITS
    model = teacher(side.where, seed)
    std = float(model.data_std)
    own = Setting(
        model, model, default_start(model.process, std), 1, iterations, known=lambda: data_of(side.where, seed),
        data_std=std, lr=where.lr, batch=batch, seed=seed,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found: Distiller = made("distiller", side.method, 1, **_options(side))(own)
    state = DistillState(found, {}, seed=seed, batch=batch, accelerator=None)
    state.run(iterations)
    found.student = state.averaged()
    return found


@functools.cache
def student(side: Arm, seed: int) -> tuple[Denoiser, float]:
    """A side's student with its averaged weights, and where it begins."""
    where = POINTS if side.where == "points" else DIGITS
    each = run(side, seed, TRIAL, SMALL).setting.count.evaluations / TRIAL * where.batch / SMALL
    done = run(side, seed, int(where.budget / each), where.batch)
    assert abs(done.setting.count.evaluations / where.budget - 1) < 0.1, done.setting.count.evaluations
    return done.student, done.setting.start


@torch.no_grad()
def distance(side: Arm, seed: int) -> float:
    """The mean over the labels."""
    model, start = student(side, seed)
    count = LABELS if side.where == "points" else 10
    noise, labels = Noise(seed + 100).normal(0, (N, *(model.shape or ()))), torch.arange(N) % count
    one = plan(model.process, "multistep-consistency", timesteps=[start, model.process.t_zero])
    x, found = one(model, noise, label=labels, seed=seed), []
    for label in range(count):
        own = x[labels == label]
        if side.where == "points":
            found.append(sliced(own.to(F64), law(label).sample(len(own), TRUTH + LABELS * seed + label)))
        else:
            data = data_of(side.where, seed)
            assert data.labels is not None
            found.append(frechet(own, data.images[data.labels == label]).value)
    return statistics.fmean(found)


# Guidance


def _scaled(low: float, high: float) -> Arm:
    return arm(POINTS, "pg-sb", scales=(low, high))


FREE, FIXED = _scaled(SCALES[0], SCALES[-1]), [_scaled(scale, scale) for scale in SCALES]
ABOUT = f"8 components under 4 labels, perceptrons of {WIDTH}, {POINTS.budget:,} evaluations, {N} samples of one step"


def _spread(seed: int) -> Outcome:
    """Over the seeds, of the scale that is drawn, and the mean of those of the fixed ones."""
    seeds = (seed, seed + 1, seed + 2)
    ours, *theirs = [statistics.stdev(distance(side, s) for s in seeds) for side in (FREE, *FIXED)]
    told = f"{ABOUT}, scales {SCALES[0]:g} to {SCALES[-1]:g}"
    return Outcome(ours, statistics.fmean(theirs), f"fixed scales {SCALES}, their mean", told, unit=SPREAD)


# Several students


def _sides(where: Where) -> dict[str, Arm]:
    whole: tuple[tuple[int, ...], ...] = (tuple(range(LABELS if where is POINTS else 10)),)
    small = {"network": where.quarter}
    return {
        "four": arm(where, "msd", parts=4),
        "one": arm(where, "dmd2"),
        "four small": arm(where, "msd", parts=4, **small),
        "four small, fresh": arm(where, "msd", parts=4, warm=0.0, **small),
        "one small": arm(where, "msd", parts=whole, **small),
    }


def _told(where: Where) -> str:
    named = "embedded digits" if where is DIGITS else f"8 components under 4 labels, perceptrons of {WIDTH}"
    return f"{named}, {where.budget:,} evaluations a side, {N} samples of one step"


def _several(where: Where, ours: str, theirs: str, against: str) -> Run:
    sides = _sides(where)
    unit = f"{SLICED} of a class" if where is POINTS else FRECHET
    return arms(distance, sides[ours], sides[theirs], against, _told(where), unit=unit)


CLAIMS: tuple[Claim, ...] = (
    slow("pg-sb", "a scale drawn for each iteration makes the result vary less from seed to seed", _spread),
    *(slow("pg-sb", f"a scale drawn for each iteration ends nearer than the fixed {scale:g}",
           arms(distance, FREE, fixed, f"scale {scale:g}", f"{ABOUT}, scales {SCALES[0]:g} to {SCALES[-1]:g}",
                unit=f"{SLICED} of a class"))
      for scale, fixed in zip(SCALES, FIXED, strict=True)),
    *(slow("msd", f"on {where.name} four students have a better law in each class than one",
           _several(where, "four", "one", "one student, dmd2")) for where in (POINTS, DIGITS)),
    slow("msd", "on points four students of a quarter of the width have a better law than one of that width",
         _several(POINTS, "four small", "one small", "one student of that width")),
    slow("msd", "on points smaller students learn more for beginning with the teacher's answers",
         _several(POINTS, "four small", "four small, fresh", "random start")),
)  # fmt: skip
