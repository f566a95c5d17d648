"""Claims of fewstep/sampling/adaptive.py."""

from __future__ import annotations

from typing import Any

from claims.common import ENDPOINT, F64, VP, Claim, Outcome, Process, endpoint_error, experiment, plan
from claims.problems import Problem, problem


def _run(on: Problem, solver: str, tolerance: float, **options: Any) -> tuple[float, float]:
    """End point error and evaluations of the mean sample."""
    made = plan(on.model.process, solver, rtol=tolerance, atol=tolerance, **options)
    result = made.run(on.model, on.noise, dtype=on.noise.dtype, **on.condition)
    error = endpoint_error(result.samples, on.reference).value
    return error, float(result.report["nfe_per_sample"].to(F64).mean())


def _about(on: Problem, order: int, tolerance: float, mean: float) -> str:
    return (
        f"dpm-solver-adaptive of order {order}, tolerance {tolerance:g}, {mean:.1f} evaluations in the mean, {on.about}"
    )


@experiment
def _against_fixed(seed: int, where: Process | str, n: int, order: int, tolerance: float) -> Outcome:
    """The fixed solver gets the mean evaluations, rounded up, on even log-SNRs."""
    on = problem(where, seed, n)
    error, mean = _run(on, "dpm-solver-adaptive", tolerance, order=order)
    made = plan(on.model.process, f"dpm-solver-{order}", nfe=int(-(-mean // 1)), timesteps="log-snr")
    against = f"dpm-solver-{order}, {made.nfe} evaluations"
    return Outcome(error, on.error(made), against, _about(on, order, tolerance, mean), unit=ENDPOINT)


@experiment
def _against_rk(seed: int, where: Process, n: int, order: int, tolerance: float) -> Outcome:
    """The generic pair gets the loosest tolerance with which it makes at least as many evaluations in the mean."""
    on = problem(where, seed, n)
    error, mean = _run(on, "dpm-solver-adaptive", tolerance, order=order)
    low, high = tolerance * 1e-3, 1.0
    for _ in range(12):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if _run(on, "rk-adaptive", middle)[1] >= mean else (low, middle)
    theirs, their_mean = _run(on, "rk-adaptive", low)
    against = f"rk-adaptive, tolerance {low:.2g}, {their_mean:.1f} evaluations in the mean"
    return Outcome(error, theirs, against, _about(on, order, tolerance, mean), unit=ENDPOINT)


def _met(seed: int) -> Outcome:
    error, _ = _run(problem(VP(), seed, 64), "rk-adaptive", 1e-3)
    against, about = (
        "ten times the tolerance: the steps' errors add up",
        "tolerance 1e-3, 8-component mixture, vp, 64 noises",
    )
    return Outcome(error, 1e-2, against, about, unit=ENDPOINT)


CLAIMS = (
    *(Claim("dpm-solver-adaptive",
            f"of order {order} beats dpm-solver-{order} on even log-SNRs at equal mean evaluations",
            _against_fixed(VP(), 64, order, 1e-2), quick=False)
      for order in (2, 3)),
    *(Claim("dpm-solver-adaptive", f"of order {order} beats the generic pair at equal mean evaluations",
            _against_rk(VP(), 64, order, 1e-2), quick=False)
      for order in (2, 3)),
    Claim("dpm-solver-adaptive", "beats dpm-solver-3 on even log-SNRs at equal mean evaluations on the embedded digits",
          _against_fixed("digits", 32, 3, 3e-2), quick=False),
    Claim("rk-adaptive", "meets its tolerance of 1e-3 at the end point", _met, quick=False),
)  # fmt: skip
