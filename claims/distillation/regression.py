"""Claims of students by regression: on the eight-component mixture, whose flow is known, at equal cost on both sides.

An evaluation is a forward pass of one sample by any of the networks or the teacher; with its backward pass it is 3. The
teacher is exact, and every student begins as the same perceptron, which was trained on the data as a diffusion model.
"""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import torch
from torch import Tensor

from claims.common import (
    EDM,
    ENDPOINT,
    F64,
    SLICED,
    VP,
    Claim,
    Flow,
    Noise,
    Plan,
    Process,
    Run,
    endpoint_error,
    over_seeds,
    plan,
    sliced,
    slow,
)  # fmt: skip
from claims.problems import fine, mixture
from claims.trained import MLP, NetworkDenoiser, NoiseLevels, Objective, fit, fresh, rows_of
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import made
from fewstep.core.student import default_start
from fewstep.data.dataset import Dataset, DataSpec
from fewstep.distillation.distill import plan_of
from fewstep.distillation.method import Distiller, Setting
from fewstep.distillation.rectified import first_order
from fewstep.distillation.regression import Pairing
from fewstep.distillation.state import DistillState
from fewstep.searching.candidates import Candidate, fitted, hand_made, rank
from fewstep.searching.learn import learn
from fewstep.searching.reference import solve
from fewstep.training.reflow import Paired

BUDGET, BATCH, RATE = 1_000_000, 256, 2e-3  # evaluations of a run, samples of an iteration, its rate
BASE_STEPS, PAIRS, ITERATIONS = 1500, 8192, 1000  # of base models; of rectified students and of reflow
STD, N, JUDGED, TRUTH = 0.59, 2048, 500, 1000  # of the data; samples judged; added to seeds of noise and truth
FIT, HELD_OUT, LEARNING = 96, 64, 6  # noises and iterations of learned plans
ABOUT = f"8-component mixture, perceptron of 64, {BUDGET:,} evaluations"
RECTIFIED = f"8-component mixture, perceptron of 64, {ITERATIONS} iterations of {BATCH} on the same {PAIRS} pairs"
Options = tuple[tuple[str, Any], ...]
TRIALS: dict[str, Options] = {"kd": (("pairs", 1), ("plan", "ddim")), "sfd": (("pairs", 1),)}  # whose cost is found
NO_EDGE = (("boundary", 0.0),)


@functools.cache
def data(seed: int) -> Dataset:
    raw = mixture(EDM()).sample(PAIRS, seed).float()
    return Dataset(DataSpec("mixture", (2,), (-math.inf, math.inf), None, len(raw)), raw)


@functools.cache
def base(process: Process, seed: int) -> NetworkDenoiser:
    """A diffusion model of the mixture: EDM's, VP's of eps, or the rectified flow's of the velocity."""
    predicts = {"edm": "x0", "vp": "eps", "flow": "velocity"}[process.name]
    edm = "edm" if process.name == "edm" else "none"
    network = fresh(MLP, seed, width=64, depth=3)
    model = NetworkDenoiser(network, process, predicts, (2,), precondition=edm, data_std=STD, value_range=None)
    levels = NoiseLevels(process, "log-normal", -1.2, 1.2) if edm == "edm" else None
    return fit(model, data(seed).images, steps=BASE_STEPS, batch=BATCH, lr=RATE, levels=levels, seed=seed)


def setting(process: Process, seed: int, steps: int, iterations: int = 1) -> Setting:
    start = default_start(process, STD)
    return Setting(mixture(process), base(process, seed), start, steps, iterations, data(seed), data_std=STD,
                   lr=RATE, seed=seed)  # fmt: skip


def build(method: str, seed: int, steps: int, options: Options) -> Distiller:
    found: Distiller = made("distiller", method, 1, **dict(options))(setting(EDM(), seed, steps))
    return found


@functools.cache
def student(method: str, seed: int, steps: int = 1, options: Options = ()) -> tuple[Denoiser, Plan]:
    """A student after its budget, with its averaged weights, and its plan."""
    trial = DistillState(build(method, seed, steps, options + TRIALS.get(method, ())), {}, seed=seed, batch=BATCH,
                         accelerator=None)  # fmt: skip
    before = trial.method.setting.count.evaluations
    trial.run(1)
    each = trial.method.setting.count.evaluations - before
    work = build(method, seed, steps, options)
    own = work.setting
    own.iterations = int((BUDGET - own.count.evaluations) / each)
    state = DistillState(work, {}, seed=seed, batch=BATCH, accelerator=None)
    state.run(own.iterations)
    assert abs(own.count.evaluations / BUDGET - 1) < 0.01
    return state.averaged(), plan_of(EDM(), work.kind, steps, own.start, work.times())


@functools.cache
def noise(seed: int) -> Tensor:
    return Noise(seed + JUDGED).normal(0, (N, 2), "cpu", F64)


@functools.cache
def ends(seed: int) -> Tensor:
    return fine(EDM())(mixture(EDM()), noise(seed), dtype=F64)


def figure(samples: Tensor, seed: int, unit: str) -> float:
    if unit == ENDPOINT:
        return endpoint_error(samples, ends(seed)).value
    return sliced(samples, mixture(EDM()).sample(N, TRUTH + seed))


@functools.cache
def made_by(method: str, seed: int, steps: int = 1, options: Options = ()) -> Tensor:
    model, its_plan = student(method, seed, steps, options)
    return its_plan(model, noise(seed), dtype=F64)


@functools.cache
def ranked(nfe: int, seed: int) -> list[Candidate]:
    """The teacher's plans of so many evaluations, the best first, on noises of their own."""
    teacher = mixture(EDM())
    plans = [*hand_made(EDM(), nfe), *fitted(EDM(), nfe, STD)]
    return rank(plans, teacher, solve(teacher, seed, FIT, HELD_OUT, 100, torch.float32))


@functools.cache
def planned(nfe: int, seed: int, learned: bool) -> Tensor:
    """Samples of the teacher's best plan of so many evaluations, or of one that is learned from the best."""
    teacher, found = mixture(EDM()), ranked(nfe, seed)
    best: Plan | None = found[0].plan
    if learned:
        problem = solve(teacher, seed, 0, FIT + HELD_OUT, 100, torch.float32)
        train, held_out = problem.part(0, FIT), problem.part(FIT, len(problem))
        best, _ = learn(teacher, found, train, held_out, seconds=math.inf, iterations=LEARNING)
    assert best is not None
    return best(teacher, noise(seed), dtype=F64)


def against_plans(method: str, steps: int, nfe: int, learned: bool, unit: str) -> Run:
    def run(s: int) -> list[float]:
        return [figure(x, s, unit) for x in (made_by(method, s, steps), planned(nfe, s, learned))]

    against = f"the teacher's {'learned' if learned else 'best'} plan of {nfe} evaluation{'s' if nfe > 1 else ''}"
    return over_seeds(run, against, f"{ABOUT}; {steps} evaluations a sample", unit=unit)


def against_students(method: str, steps: int, other: str, against: str, options: Options = ()) -> Run:
    def run(s: int) -> list[float]:
        return [figure(x, s, ENDPOINT) for x in (made_by(method, s, steps), made_by(other, s, 1, options))]

    return over_seeds(run, against, f"{ABOUT} each", unit=ENDPOINT)


def against_ddim(method: str, steps: int) -> Run:
    """The teacher's DDIM at the student's own times."""

    def run(s: int) -> list[float]:
        times = plan_of(EDM(), "denoiser", steps, default_start(EDM(), STD), None).times
        theirs = plan(EDM(), "ddim", timesteps=times)(mixture(EDM()), noise(s), dtype=F64)
        return [figure(x, s, ENDPOINT) for x in (made_by(method, s, steps), theirs)]

    against = f"DDIM of the teacher, {steps} step{'s' if steps > 1 else ''}"
    return over_seeds(run, against, f"{ABOUT}; {steps} evaluations a sample", unit=ENDPOINT)


@functools.cache
def rectified(seed: int) -> tuple[Denoiser, float]:
    """VP's model of eps, rectified, and its start."""
    own = setting(VP(), seed, 1, ITERATIONS)
    work = made("distiller", "rectified-diffusion", 1, pairs=PAIRS)(own)
    state = DistillState(work, {}, seed=seed, batch=BATCH, accelerator=None)
    state.run(ITERATIONS)
    return state.averaged(), own.start


@functools.cache
def reflowed(seed: int) -> NetworkDenoiser:
    """The rectified flow's model, trained on the same pairs, times uniform."""
    pairing = Pairing(setting(VP(), seed, 1), PAIRS)
    model = copy.deepcopy(base(Flow(), seed)).requires_grad_(True)
    rows = rows_of(pairing.x0, noise=pairing.z)
    return fit(model, rows, steps=ITERATIONS, batch=BATCH, lr=RATE, objective=Paired(Objective(model)), seed=seed)


def rectified_steps(steps: int) -> Run:
    def run(s: int) -> list[float]:
        model, start = rectified(s)
        ours = plan_of(VP(), "denoiser", steps, start, None)(model, noise(s), dtype=F64)
        theirs = plan(Flow(), "ddim", steps, "uniform")(reflowed(s), noise(s), dtype=F64)
        return [figure(x, s, ENDPOINT) for x in (ours, theirs)]

    about = f"{RECTIFIED}; vp and eps, DDIM of {steps}"
    return over_seeds(run, "reflow in the flow form, Euler's steps", about, unit=ENDPOINT)


def rectified_paths(name: str, unit: str) -> Run:
    def run(s: int) -> list[float]:
        model, start = rectified(s)
        found = first_order(model, 512, start=start, seed=s), first_order(reflowed(s), 512, seed=s)
        return [getattr(one, name) for one in found]

    return over_seeds(run, "reflow in the flow form", f"{RECTIFIED}; vp and eps, 50 steps", unit=unit)


CLAIMS: tuple[Claim, ...] = (
    *(slow("kd", f"one evaluation does better than the best plan of {nfe}, by its {what}",
           against_plans("kd", 1, nfe, False, unit))
      for nfe in (1, 2, 3) for what, unit in (("ends", ENDPOINT), ("law", SLICED))),
    *(slow("sfd", f"two steps do better than a learned plan of {nfe}, by their {what}",
           against_plans("sfd", 2, nfe, True, unit))
      for nfe in (2, 3) for what, unit in (("ends", ENDPOINT), ("law", SLICED))),
    *(slow("rectified-diffusion", f"under VP it does in {n} step{'s' if n > 1 else ''} what reflow does straight",
           rectified_steps(n)) for n in (1, 2, 3, 4)),
    slow("rectified-diffusion", "eps varies less along its paths",
         rectified_paths("variation", "variation of eps over its mean square")),
    slow("rectified-diffusion", "its paths are straighter",
         rectified_paths("curvature", "curvature over squared chord")),
    slow("progressive", "four steps end nearer than DDIM's four", against_ddim("progressive", 4)),
    slow("progressive", "four steps end nearer than one of kd",
         against_students("progressive", 4, "kd", "kd at the same cost")),
    slow("boot", "ends nearer than a DDIM step", against_ddim("boot", 1)),
    slow("boot", "ends nearer than without its boundary loss",
         against_students("boot", 1, "boot", "boot without its boundary loss", NO_EDGE)),
)  # fmt: skip
