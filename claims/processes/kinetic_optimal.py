"""Claims of fewstep/processes/kinetic_optimal.py."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from claims.claim import Claim, Outcome, arms, compared, experiment
from claims.common import F64, VP, Cosine, Flow, Noise, Process, plan, sliced_wasserstein
from claims.duels import identities
from claims.problems import mixture, wide
from fewstep.core.trace import Trace, Value
from fewstep.processes.kinetic_optimal import KineticOptimal, energy, separation

OTHERS = {"flow": Flow(), "cosine": Cosine(t_max=1.0), "vp": VP()}
PROBLEMS = {"8-component mixture": mixture, "mixture in 12 dimensions": wide}


@functools.cache
def _solved(problem: str, seed: int) -> tuple[KineticOptimal, Tensor, float]:
    """From 1024 samples with two noises each."""
    model = PROBLEMS[problem](Flow())
    data = model.sample(1024, seed)
    return KineticOptimal.of(model, data, 33, 2, seed), *separation(model, data, 33, 2, seed)


def _formulas(seed: int) -> Outcome:
    process = _solved("8-component mixture", seed)[0]
    return identities(process, abs(process.alpha(0.0) - 1) + process.alpha(1.0), "the ends")


@experiment
def _energy(seed: int, problem: str, other: str) -> Outcome:
    process, speeds, rms = _solved(problem, seed)
    figures = [energy(p, speeds, rms) for p in (process, OTHERS[other])]
    about = f"{problem}, speeds from 1024 samples, root mean square {rms:.2g}"
    return compared(figures, other, about, unit="kinetic energy of the path, a value")


def euler(trace: Trace, process: Process, times: Sequence[float]) -> Value:
    x = trace.start()
    for a, b in pairwise(times):
        x = x + trace.evaluate(x, a).velocity * (b - a)
    return x


@experiment
def _euler(seed: int, other: str, steps: int) -> Outcome:
    name, n = "mixture in 12 dimensions", 2048

    def figure(process: Process, s: int) -> float:
        model, noise = wide(process), Noise(s).normal(0, (n, 12), "cpu", F64)
        x = plan(process, euler, steps, "uniform", end="min")(model, noise, dtype=F64)
        return sliced_wasserstein(x, model.sample(n, s + 1), projections=64).value

    about = f"{name}, Euler with {steps} even steps from t_max to t_min, {n} samples"
    return arms(seed, figure, _solved(name, seed)[0], OTHERS[other], other, about, unit="sliced Wasserstein distance")


CLAIMS = (
    Claim("kinetic-optimal", "its formulas agree with each other", _formulas),
    *(Claim("kinetic-optimal", f"has less kinetic energy than {other} on the {problem}",
            _energy(problem, other), quick=False)
      for problem in PROBLEMS for other in OTHERS),
    *(Claim("kinetic-optimal", f"is nearer to the data than {other} after {steps} Euler steps",
            _euler(other, steps), quick=False)
      for steps in (4, 8) for other in OTHERS),
)  # fmt: skip
