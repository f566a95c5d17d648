"""Claims of students on digits: distilled from the embedded model, at equal evaluations on both sides of each.

Every student has its method's own defaults, and begins as the teacher's network where it is not said to be from
scratch. Frechet distances are those in pixels to the training images; errors those of the ends of the teacher's own
flow from the same noises and labels.
"""

from __future__ import annotations

import copy
import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from claims.claim import Claim, Run, over_seeds, slow
from claims.common import ENDPOINT, Denoiser, Plan, endpoint_error, frechet, plan
from claims.trained import fresh
from fewstep.core.config import built as rebuilt
from fewstep.core.config import config
from fewstep.core.methods import card, made
from fewstep.core.student import REACH, Student, default_start
from fewstep.distillation.distill import AVERAGE, LR, plan_of
from fewstep.distillation.method import Distiller, Setting
from fewstep.distillation.state import DistillState
from fewstep.hub.models import load
from fewstep.sampling.sample import choose_plan
from fewstep.searching.candidates import Candidate, fitted, hand_made, rank
from fewstep.searching.learn import learn
from fewstep.searching.problem import Problem, own_data, run_all
from fewstep.searching.reference import solve

BUDGET, BATCH, TRIAL = 120_000, 64, 24  # evaluations of a run, samples of an iteration, iterations that tell its cost
PAIRS = 2048  # of methods that make pairs, which the budget pays for
N, FIRST, NFE = 1024, 1 << 20, 50  # samples judged, the number of their first noise, evaluations of the reference
FIT, HELD_OUT, LEARNING = 96, 48, 5  # noises and iterations of learned plans
ABOUT = f"embedded digits, {BUDGET:,} evaluations a student, {N} samples"
FRECHET = "Frechet distance in pixels"


class Arm(NamedTuple):
    """One side of a claim: a method, its student's steps, its options, its share of the budget."""

    method: str
    steps: int = 1
    options: tuple[tuple[str, Any], ...] = ()
    share: float = 1.0


@functools.cache
def teacher() -> Any:
    return load("digits")


def built(side: Arm, seed: int, iterations: int, pairs: int) -> Distiller:
    """A method with its card's settings, before its first iteration."""
    facts, model = card(side.method, "distiller")[0].facts, teacher()
    std, base = float(model.data_std), model
    if side == SCRATCH:
        base = copy.deepcopy(model)
        base.network = fresh(rebuilt, seed + 1, config(model.network))
    own = Setting(
        model, base, default_start(model.process, std, float(facts.get("start", REACH))), side.steps, iterations,
        known=lambda: own_data(model), data_std=std, lr=float(facts.get("lr", LR)),
        ema=float(facts.get("ema", AVERAGE)), batch=BATCH, seed=seed,
    )  # fmt: skip
    options = dict(side.options) | ({"pairs": pairs} if side.method in ("kd", "sfd") else {})
    found: Distiller = made("distiller", side.method, 1, **options)(own)
    return found


@functools.cache
def student(side: Arm, seed: int) -> tuple[Denoiser, Plan | None]:
    """A side's student after its budget, with its averaged weights, and its plan where its kind is no map."""
    trial = built(side, seed, TRIAL, 1)
    before = trial.setting.count.evaluations
    DistillState(trial, {}, seed=seed, batch=BATCH, accelerator=None).run(TRIAL)
    each = (trial.setting.count.evaluations - before) / TRIAL
    work = built(side, seed, 1, PAIRS)
    own, budget = work.setting, BUDGET * side.share
    own.iterations = int((budget - own.count.evaluations) / each)
    state = DistillState(work, {}, seed=seed, batch=BATCH, accelerator=None)
    state.run(own.iterations)
    assert abs(own.count.evaluations / budget - 1) < 0.1, own.count.evaluations  # dmd2 and its kin draw their steps
    model = state.averaged().eval().requires_grad_(False)
    model.student = Student(work.kind, side.method, "digits", own.start, work.times())
    return model, None if work.kind == "map" else plan_of(own.process, work.kind, side.steps, own.start, work.times())


@functools.cache
def problem(seed: int) -> Problem:
    """Noises that no training has seen, labels and the ends of the teacher's flow."""
    return solve(teacher(), seed, FIRST, N, NFE, torch.float32)


@functools.cache
def samples(side: Arm, seed: int, steps: int) -> Tensor:
    model, its_plan = student(side, seed)
    return drawn(model, its_plan if its_plan is not None and steps == side.steps else choose_plan(model, steps=steps),
                 seed)  # fmt: skip


@torch.no_grad()
def drawn(model: Denoiser, its_plan: Any, seed: int) -> Tensor:
    own = problem(seed)
    return run_all(its_plan, model, own.noise, own.condition, own.seed, own.first)


def figure(x: Tensor, seed: int, unit: str) -> float:
    if unit == ENDPOINT:
        return endpoint_error(x, problem(seed).reference).value
    data = own_data(teacher())
    assert data is not None
    return frechet(x, data.images).value


@functools.cache
def ranked(nfe: int, seed: int) -> list[Candidate]:
    """The teacher's plans of so many evaluations, the best first, on noises of their own."""
    process = teacher().process
    plans = [*hand_made(process, nfe), *fitted(process, nfe, float(teacher().data_std))]
    return rank(plans, teacher(), solve(teacher(), seed, FIT, HELD_OUT, NFE, torch.float32))


@functools.cache
def planned(nfe: int, seed: int, learned: bool) -> Tensor:
    """Samples of the teacher's best plan of so many evaluations, or of one that is learned from the best."""
    found = ranked(nfe, seed)
    best: Plan | None = found[0].plan
    if learned:
        noises = solve(teacher(), seed, 0, FIT + HELD_OUT, NFE, torch.float32)
        train, held_out = noises.part(0, FIT), noises.part(FIT, len(noises))
        best, _ = learn(teacher(), found, train, held_out, seconds=math.inf, iterations=LEARNING)
    assert best is not None
    return drawn(teacher(), best, seed)


def against_plan(side: Arm, nfe: int, learned: bool, unit: str) -> Run:
    def run(s: int) -> list[float]:
        return [figure(x, s, unit) for x in (samples(side, s, side.steps), planned(nfe, s, learned))]

    against = f"the teacher's {'learned' if learned else 'best'} plan of {nfe} evaluation{'s' if nfe > 1 else ''}"
    return over_seeds(run, against, f"{ABOUT} of {_steps(side.steps)}", unit=unit)


def against_ddim(side: Arm) -> Run:
    """The teacher's DDIM at the student's own times."""

    def run(s: int) -> list[float]:
        _, own = student(side, s)
        assert own is not None
        theirs = drawn(teacher(), plan(teacher().process, "ddim", timesteps=own.times), s)
        return [figure(x, s, ENDPOINT) for x in (samples(side, s, side.steps), theirs)]

    return over_seeds(run, "DDIM of the teacher at the same times", f"{ABOUT} of {_steps(side.steps)}", unit=ENDPOINT)


def against(ours: Arm, theirs: Arm, told: str, unit: str, steps: int | None = None) -> Run:
    def run(s: int) -> list[float]:
        return [figure(samples(side, s, steps or side.steps), s, unit) for side in (ours, theirs)]

    return over_seeds(run, told, f"{ABOUT}, {_steps(steps or ours.steps)}", unit=unit)


def _steps(count: int) -> str:
    return f"{count} step{'s' if count > 1 else ''}"


def _have(count: int) -> str:
    return f"{_steps(count)} {'have' if count > 1 else 'has'}"


def arm(method: str, steps: int = 1, share: float = 1.0, **options: Any) -> Arm:
    return Arm(method, steps, tuple(sorted(options.items())), share)


KD, SFD, HALVED = arm("kd"), arm("sfd", 2), arm("progressive", 4)
ICT, ECT = arm("ict"), arm("ect", share=0.25)
CTM, CONSISTENCY = arm("ctm"), arm("consistency")
DMF, MEAN_FLOW = arm("dmf"), arm("mean-flow")
SCRATCH = arm("mean-flow", velocity="data")  # of data alone, and of a network that has learnt nothing
SIMULATED, NOISED = arm("dmd2", 4), arm("dmd2", 4, simulate=False)
SID, SIM, DIFF = arm("sid"), arm("sim"), arm("diff-instruct")

CLAIMS: tuple[Claim, ...] = (
    *(slow("kd", f"on digits one evaluation does better than the best plan of {nfe}, by its {what}",
           against_plan(KD, nfe, False, unit))
      for nfe in (1, 2, 3) for what, unit in (("ends", ENDPOINT), ("law", FRECHET))),
    *(slow("sfd", f"on digits two steps do better than a learned plan of {nfe}, by their law",
           against_plan(SFD, nfe, True, FRECHET)) for nfe in (2, 3)),
    slow("progressive", "on digits four steps end nearer than DDIM's four", against_ddim(HALVED)),
    slow("progressive", "on digits four steps have a better law than one of kd",
         against(HALVED, KD, "kd at the same cost, one step", FRECHET)),
    *(slow("ect", f"on digits {_have(k)} at a quarter of the cost a better law than ict's",
           against(ECT, ICT, "ict, four times the evaluations", FRECHET, k)) for k in (1, 2)),
    *(slow("ctm", f"on digits {_steps(k)} end{'s' if k == 1 else ''} nearer to the flow's ends than consistency's",
           against(CTM, CONSISTENCY, "consistency", ENDPOINT, k)) for k in (1, 2, 4, 8)),
    *(slow("dmf", f"on digits {_have(k)} a better law than MeanFlow's {how}",
           against(DMF, theirs, f"mean-flow {how}", FRECHET, k))
      for theirs, how in ((SCRATCH, "from scratch"), (MEAN_FLOW, "with an added embedding")) for k in (1, 4)),
    slow("dmd2", "on digits four steps have a better law for having trained on their own states",
         against(SIMULATED, NOISED, "dmd2 trained on noised data", FRECHET)),
    *(slow(side.method, "on digits one step has a better law than that of diff-instruct",
           against(side, DIFF, "diff-instruct", FRECHET)) for side in (SID, SIM)),
)  # fmt: skip
