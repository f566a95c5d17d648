"""Claims of fewstep/processes/kinetic_optimal.py."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from claims.claim import Claim, Outcome, over_seeds
from claims.problems import F64, identities, mixture, wide
from fewstep.core.noise import Noise
from fewstep.core.process import Process
from fewstep.core.trace import Trace, Value
from fewstep.metrics.sliced_wasserstein import sliced_wasserstein
from fewstep.processes.cosine import Cosine
from fewstep.processes.flow import Flow
from fewstep.processes.kinetic_optimal import KineticOptimal, energy, separation
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan

OTHERS = {"flow": Flow(), "cosine": Cosine(t_max=1.0), "vp": VP()}
PROBLEMS = {"8-component mixture": mixture, "mixture in 12 dimensions": wide}


@functools.cache
def _solved(problem: str, seed: int) -> tuple[KineticOptimal, Tensor, float]:
    """From 1024 samples with two noises each."""
    model = PROBLEMS[problem](Flow())
    data = model.sample(1024, seed)
    speeds, rms = separation(model, data, 33, 2, seed)
    return KineticOptimal.of(model, data, 33, 2, seed), speeds, rms


def _formulas(seed: int) -> Outcome:
    process = _solved("8-component mixture", seed)[0]
    return identities(process, abs(process.alpha(0.0) - 1) + process.alpha(1.0), "the ends")


def _energy(seed: int, problem: str, other: str) -> Outcome:
    process, speeds, rms = _solved(problem, seed)
    return Outcome(
        energy(process, speeds, rms),
        energy(OTHERS[other], speeds, rms),
        other,
        f"{problem}, speeds from 1024 samples, root mean square {rms:.2g}",
        unit="kinetic energy of the path, a value",
    )


def euler(trace: Trace, process: Process, times: Sequence[float]) -> Value:
    x = trace.start()
    for a, b in pairwise(times):
        x = x + trace.evaluate(x, a).velocity * (b - a)
    return x


def _euler(seed: int, other: str, steps: int) -> Outcome:
    problem, n = "mixture in 12 dimensions", 2048

    def run(s: int) -> tuple[float, float]:
        noise, figures = Noise(s).normal(0, (n, 12), "cpu", F64), []
        for process in (_solved(problem, seed)[0], OTHERS[other]):
            model = wide(process)
            x = plan(process, euler, steps, "uniform", end="min")(model, noise, dtype=F64)
            figures.append(sliced_wasserstein(x, model.sample(n, s + 1), projections=64).value)
        return figures[0], figures[1]

    return over_seeds(
        run,
        range(seed, seed + 3),
        other,
        f"{problem}, Euler with {steps} even steps from t_max to t_min, {n} samples",
        unit="sliced Wasserstein distance",
    )


CLAIMS = (
    Claim("kinetic-optimal", "its formulas agree with each other", _formulas),
    *(
        Claim(
            "kinetic-optimal",
            f"has less kinetic energy than {other} on the {problem}",
            functools.partial(_energy, problem=problem, other=other),
            quick=False,
        )
        for problem in PROBLEMS
        for other in OTHERS
    ),
    *(
        Claim(
            "kinetic-optimal",
            f"is nearer to the data than {other} after {steps} Euler steps",
            functools.partial(_euler, other=other, steps=steps),
            quick=False,
        )
        for steps in (4, 8)
        for other in OTHERS
    ),
)
