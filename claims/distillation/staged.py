"""Claims of distillation in stages: on digits, one adapter through all stages, beside one of the same evaluations.

The recipe is that of `fewstep/recipes/shapes-hyper.toml`: consistency in ever fewer segments, the score of one-step
samples, and the reward of samples of 1 to 8 steps. Its reward on digits is the log-probability of the class asked for,
by the classifier that also reads the samples: what the reward stage gains in accuracy says that the gradient arrives,
and the Frechet distances what that costs.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from claims.claim import Claim, Run, over_seeds, slow
from claims.common import frechet
from claims.distillation.digits import N, drawn, problem, teacher
from fewstep.core.methods import made
from fewstep.core.student import Student, default_start
from fewstep.distillation.adapter import merged
from fewstep.distillation.method import Distiller, Setting
from fewstep.distillation.state import DistillState
from fewstep.metrics.accuracy import class_accuracy
from fewstep.sampling.sample import choose_plan
from fewstep.searching.problem import own_data

BUDGET, BATCH, RANK, TRIAL = 120_000, 64, 8, 6  # evaluations of all stages, iterations that tell their cost
COUNTS = (1, 2, 4, 8)
Stage = tuple[str, float, float, tuple[tuple[str, Any], ...]]  # method, share of the evaluations, rate, options
HYPER: tuple[Stage, ...] = (
    ("tscd", 0.7, 1e-3, ()),
    ("dmd2", 0.2, 3e-4, (("gan", 0.0), ("fake", "lora"))),
    ("reward", 0.1, 3e-4, (("reward", "digit"), ("counts", COUNTS), ("kind", "jump"))),
)
SINGLE: tuple[Stage, ...] = (("lcm", 1.0, 1e-3, ()),)
ABOUT = f"embedded digits, an adapter of rank {RANK}, {BUDGET:,} evaluations, {N} samples"
FRECHET, ACCURACY = "Frechet distance in pixels", "accuracy"


def work(stage: Stage, seed: int, iterations: int, first: dict[str, Tensor]) -> Distiller:
    """A stage before its first iteration, from the adapter of the one before."""
    name, _, lr, options = stage
    model = teacher()
    std = float(model.data_std)
    own = Setting(
        model, model, default_start(model.process, std), 1, iterations, known=lambda: own_data(model), data_std=std,
        lr=lr, ema=0.99, batch=BATCH, seed=seed, lora=RANK, first=first,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found: Distiller = made("distiller", name, 1, **dict(options))(own)
    return found


def run(method: Distiller, seed: int, last: int) -> DistillState:
    state = DistillState(method, {}, seed=seed, batch=BATCH, accelerator=None)
    state.run(last)
    return state


@functools.cache
def students(stages: tuple[Stage, ...], seed: int) -> list[Any]:
    """The student after each stage, its adapter merged."""
    weights: dict[str, Tensor] = {}
    found = []
    for stage in stages:
        trial = work(stage, seed, TRIAL, weights)
        run(trial, seed, TRIAL)
        iterations = int(stage[1] * BUDGET / (trial.setting.count.evaluations / TRIAL))
        method = work(stage, seed, iterations, weights)
        trained = run(method, seed, iterations).averaged()
        names = method.players["student"].module.state_dict().keys()
        weights = {name: value.clone() for name, value in trained.state_dict().items() if name in names}
        model: Any = merged(trained)
        model.student = Student("jump", stage[0], "digits", method.setting.start)
        found.append(model)
    return found


@functools.cache
def samples(stages: tuple[Stage, ...], after: int, seed: int, steps: int) -> Tensor:
    model = students(stages, seed)[after]
    return drawn(model, choose_plan(model, steps=steps), seed)


def figure(x: Tensor, seed: int, unit: str) -> float:
    if unit == ACCURACY:
        return class_accuracy(x, problem(seed).condition["label"]).value
    data = own_data(teacher())
    assert data is not None
    return frechet(x, data.images).value


def _beside_one(steps: int, unit: str) -> Run:
    """All stages against one method."""

    def figures(seed: int) -> list[float]:
        sides = samples(HYPER, -1, seed, steps), samples(SINGLE, -1, seed, steps)
        return [figure(x, seed, unit) for x in sides]

    told = f"{ABOUT}, {steps} step{'s' if steps > 1 else ''}"
    return over_seeds(figures, "lcm alone, the same evaluations", told, "high" if unit == ACCURACY else "low", unit)


def _beside_before(after: int, steps: int, unit: str) -> Run:
    """The student after a stage against that before it."""

    def figures(seed: int) -> list[float]:
        return [figure(samples(HYPER, stage, seed, steps), seed, unit) for stage in (after, after - 1)]

    told = f"{ABOUT} in all, {steps} step{'s' if steps > 1 else ''}"
    return over_seeds(figures, "before this stage", told, "high" if unit == ACCURACY else "low", unit)


CLAIMS: tuple[Claim, ...] = (
    *(slow("tscd", f"in stages, one adapter {what} at {steps} step{'s' if steps > 1 else ''} than lcm's",
           _beside_one(steps, unit))
      for what, unit in (("has a better law", FRECHET), ("draws more of the classes asked for", ACCURACY))
      for steps in COUNTS),
    slow("dmd2", "as a second stage it improves the law of one step", _beside_before(1, 1, FRECHET)),
    *(slow("reward", f"as a last stage it raises the accuracy of {steps} step{'s' if steps > 1 else ''}",
           _beside_before(2, steps, ACCURACY)) for steps in COUNTS),
    slow("reward", "as a last stage it improves the law of one step as well", _beside_before(2, 1, FRECHET)),
)  # fmt: skip
