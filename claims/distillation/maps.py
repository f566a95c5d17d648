"""Claims of flow maps: on the eight-component mixture, both sides of each at equal evaluations of networks and teacher.

The data and the diffusion model that students begin as are those of `claims.distillation.consistency`. Errors are those
of the ends of the teacher's own flow from the same noises, velocities' those of the teacher's at noised data.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch

from claims.claim import Claim, Outcome, Run, over_seeds, slow
from claims.common import ENDPOINT, F64, SLICED, Denoiser, Noise, endpoint_error, gap, sliced
from claims.distillation.consistency import (
    CONSISTENCY,
    PROCESS,
    Arm,
    arm,
    base,
    data,
    ends,
    setting,
    train,
    truth,
)
from claims.problems import mixture
from claims.trained import MLP, fresh
from fewstep.core.methods import made
from fewstep.core.student import Student, default_start
from fewstep.denoisers.gaussian_map import GaussianMap
from fewstep.distillation.maps import pairs
from fewstep.distillation.method import Distiller, Setting
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.sample import choose_plan

BUDGET = 300_000  # evaluations of a run
ABOUT = f"8-component mixture, perceptron of 64, {BUDGET:,} evaluations"
N = 2048  # samples that are judged
TRIAL = 64  # iterations by which a run's cost is found
STEPS = (1, 2, 4, 8)
CTM, MEAN_FLOW, DMF, ANY_FLOW = map(arm, ("ctm", "mean-flow", "dmf", "any-flow"))
FIRST_STAGE = arm("any-flow", policy=0.0)
SCRATCH = arm("mean-flow", velocity="data")  # of data alone, and of a network that has learnt nothing
LAGRANGIAN, EULERIAN, SEMIGROUP = (arm("flow-map", rule=rule) for rule in ("lagrangian", "eulerian", "semigroup"))
VELOCITY = "relative error of u(x, t, t)"


def built(side: Arm, seed: int, iterations: int) -> Distiller:
    own = setting(side, seed, iterations)
    if side == SCRATCH:
        own.base = copy.deepcopy(base(seed))
        own.base.network = fresh(MLP, seed + 1, width=64, depth=3)
    found: Distiller = made("distiller", side.method, 1, **dict(side.options))(own)
    return found


@functools.cache
def trained(side: Arm, seed: int) -> Denoiser:
    """A side's student after its budget, with its averaged weights."""
    iterations, method = TRIAL, built(side, seed, TRIAL)
    train(method, 0, TRIAL, seed)
    # More than once where the number of jumps is drawn.
    while abs((ratio := BUDGET / method.setting.count.evaluations) - 1) > 0.03:
        iterations = round(iterations * ratio)
        method = built(side, seed, iterations)
        train(method, 0, iterations, seed)
    found = copy.deepcopy(method.student).eval().requires_grad_(False)
    average = method.players["student"].average
    assert average is not None
    average.copy_to(found)
    found.student = Student(method.kind, side.method, start=method.setting.start)
    return found


@functools.cache
def samples(side: Arm, seed: int, steps: int) -> torch.Tensor:
    """N of a side's student, of one series of noises for all sides of a seed."""
    model, noise = trained(side, seed), Noise(seed + 100).normal(0, (N, 2))
    return choose_plan(model, steps=steps)(model, noise, seed=seed).double()


def endpoint(side: Arm, seed: int, steps: int) -> float:
    return endpoint_error(samples(side, seed, steps), ends(seed)).value


def wasserstein(side: Arm, seed: int, steps: int) -> float:
    return sliced(samples(side, seed, steps), truth(seed))


@torch.no_grad()
def velocity(side: Arm, seed: int) -> float:
    """The error of the student's velocity at noised data, relative to the teacher's."""
    own, generator = setting(side, seed, 1), torch.Generator().manual_seed(seed + 100)
    t = pairs(own, N, generator, 1.0, 0.0)[0]
    x = own.noised(data(seed + 100).raw[:N].double(), own.noise(N, generator).double(), t)
    return gap(trained(side, seed)(x, t).to("flow"), mixture(PROCESS)(x, t).to("flow"))


def _steps(steps: int) -> str:
    return f"{steps} step{'s' if steps > 1 else ''}"


def _words(steps: int) -> str:
    return f"{steps} step{' ends' if steps == 1 else 's end'}"


def _ends(ours: Arm, theirs: Arm, against: str, steps: int) -> Run:
    about = f"{ABOUT}; {_steps(steps)}"
    return over_seeds(lambda s: [endpoint(side, s, steps) for side in (ours, theirs)], against, about, unit=ENDPOINT)


def _distance(ours: Arm, theirs: Arm, against: str, steps: int) -> Run:
    about = f"{ABOUT}; {_steps(steps)}"
    return over_seeds(lambda s: [wasserstein(side, s, steps) for side in (ours, theirs)], against, about, unit=SLICED)


def _velocity(ours: Arm, theirs: Arm, against: str) -> Run:
    return over_seeds(lambda s: [velocity(side, s) for side in (ours, theirs)], against, ABOUT, unit=VELOCITY)


def _fall(ours: Arm, theirs: Arm, against: str) -> Run:
    """What is left at eight steps of the error at one."""

    def figures(seed: int) -> list[float]:
        return [endpoint(side, seed, 8) / endpoint(side, seed, 1) for side in (ours, theirs)]

    return over_seeds(figures, against, f"{ABOUT}; 8 steps over 1", unit=f"ratio of the {ENDPOINT}s")


def _falls(side: Arm) -> Run:
    """The largest ratio of an error to that of half as many steps, against 1."""

    def figures(seed: int) -> list[float]:
        errors = [endpoint(side, seed, steps) for steps in STEPS]
        return [max(b / a for a, b in zip(errors, errors[1:], strict=False)), 1.0]

    about = f"{ABOUT}; 1, 2, 4 and 8 steps"
    return over_seeds(figures, "tolerance", about, unit=f"largest ratio of neighbouring {ENDPOINT}s")


def _identity(seed: int) -> Outcome:
    """The largest difference of u and its target at an exact map, with the derivative in forward mode."""
    law = torch.tensor([0.3, -0.2, 0.1], dtype=F64), torch.tensor([0.4, 0.25, 0.1], dtype=F64)
    worst = 0.0
    for process in (EDM(), VP(), Flow()):
        teacher, student = GaussianMap(*law, process, "denoiser"), GaussianMap(*law, process)
        own = Setting(teacher, student, default_start(process, 0.5), own=True, batch=64)
        method: Any = made("distiller", "mean-flow", 1)(own)
        drawn = method.draw(64, torch.Generator().manual_seed(seed))
        x, t, s = method.states_at(drawn, drawn["t"]), drawn["t"], drawn["s"]
        u, goal = method.identity(x, t, s, method.velocity(x, t, {}), {})
        worst = max(worst, float((u - goal).abs().max()))
    return Outcome(worst, 1e-10, "tolerance", "Gaussian data in three dimensions under edm, vp and flow, 64 states",
                   unit="largest difference")  # fmt: skip


CLAIMS = (
    Claim("mean-flow", "its identity is exact at the map of Gaussian data, under every process", _identity),
    *(slow("ctm", f"{_words(k)} nearer to the flow's ends than consistency's",
           _ends(CTM, CONSISTENCY, "consistency", k)) for k in STEPS),
    slow("ctm", "less of its error is left at eight steps than of consistency's",
         _fall(CTM, CONSISTENCY, "consistency")),
    *(slow("dmf", f"the teacher's weights bring {_steps(k)} nearer to the data than MeanFlow {how}",
           _distance(DMF, theirs, f"mean-flow {how}", k))
      for theirs, how in ((SCRATCH, "from scratch"), (MEAN_FLOW, "with an added embedding")) for k in (1, 4)),
    *(slow("dmf", f"its velocity is nearer to the teacher's than that of MeanFlow {how}",
           _velocity(DMF, theirs, f"mean-flow {how}"))
      for theirs, how in ((SCRATCH, "from scratch"), (MEAN_FLOW, "with an added embedding"))),
    *(slow("flow-map", f"by the lagrangian rule {_words(k)} nearer to the flow's than by the {rule} one",
           _ends(LAGRANGIAN, theirs, f"the {rule} rule", k))
      for theirs, rule in ((EULERIAN, "eulerian"), (SEMIGROUP, "semigroup")) for k in STEPS),
    *(slow("flow-map", f"by the {rule} rule the ends' error falls with every doubling of the steps", _falls(side))
      for side, rule in ((LAGRANGIAN, "lagrangian"), (EULERIAN, "eulerian"), (SEMIGROUP, "semigroup"))),
    *(slow("any-flow", f"{_words(k)} nearer to the flow's than by the lagrangian rule",
           _ends(ANY_FLOW, LAGRANGIAN, "flow-map, the lagrangian rule", k)) for k in STEPS),
    slow("any-flow", "the ends' error falls with every doubling of the steps", _falls(ANY_FLOW)),
    *(slow("any-flow", f"training on its own jumps brings {_steps(k)} nearer to the data",
           _distance(ANY_FLOW, FIRST_STAGE, "the first stage run on", k)) for k in (1, 2)),
)  # fmt: skip
