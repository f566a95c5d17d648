"""Claims of fewstep/sampling/adaptive.py."""

from __future__ import annotations

from typing import Any

from claims.claim import Claim, Outcome
from claims.problems import F64, Problem, digits, exact
from fewstep.metrics.endpoint import endpoint_error
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan


def _run(problem: Problem, solver: str, tolerance: float, **options: Any) -> tuple[float, float]:
    """End point error and evaluations of the mean sample."""
    made = plan(problem.model.process, solver, rtol=tolerance, atol=tolerance, **options)
    dtype = problem.noise.dtype
    result = made.run(problem.model, problem.noise, dtype=dtype, **problem.condition)
    return (
        endpoint_error(result.samples, problem.reference).value,
        float(result.report["nfe_per_sample"].to(F64).mean()),
    )


def _against_fixed(problem: Problem, order: int, tolerance: float) -> Outcome:
    """The fixed solver gets the mean evaluations, rounded up, on even log-SNRs."""
    error, mean = _run(problem, "dpm-solver-adaptive", tolerance, order=order)
    made = plan(problem.model.process, f"dpm-solver-{order}", nfe=int(-(-mean // 1)), timesteps="log-snr")
    return Outcome(
        error,
        problem.error(made),
        f"dpm-solver-{order}, {made.nfe} evaluations",
        f"dpm-solver-adaptive of order {order}, tolerance {tolerance:g}, {mean:.1f} evaluations in the mean,"
        f" {problem.name}, {len(problem.noise)} noises",
        unit="relative end point error",
    )


def _against_rk(problem: Problem, order: int, tolerance: float) -> Outcome:
    """The generic pair gets the loosest tolerance with which it makes at least as many evaluations in the mean."""
    error, mean = _run(problem, "dpm-solver-adaptive", tolerance, order=order)
    low, high = tolerance * 1e-3, 1.0
    for _ in range(12):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if _run(problem, "rk-adaptive", middle)[1] >= mean else (low, middle)
    theirs, their_mean = _run(problem, "rk-adaptive", low)
    return Outcome(
        error,
        theirs,
        f"rk-adaptive, tolerance {low:.2g}, {their_mean:.1f} evaluations in the mean",
        f"dpm-solver-adaptive of order {order}, tolerance {tolerance:g}, {mean:.1f} evaluations in the mean,"
        f" {problem.name}, {len(problem.noise)} noises",
        unit="relative end point error",
    )


CLAIMS = (
    *(
        Claim(
            "dpm-solver-adaptive",
            f"of order {order} beats dpm-solver-{order} on even log-SNRs at equal mean evaluations",
            lambda seed, order=order: _against_fixed(exact(VP(), seed).part(64), order, 1e-2),
            quick=False,
        )
        for order in (2, 3)
    ),
    *(
        Claim(
            "dpm-solver-adaptive",
            f"of order {order} beats the generic pair at equal mean evaluations",
            lambda seed, order=order: _against_rk(exact(VP(), seed).part(64), order, 1e-2),
            quick=False,
        )
        for order in (2, 3)
    ),
    Claim(
        "dpm-solver-adaptive",
        "beats dpm-solver-3 on even log-SNRs at equal mean evaluations on the embedded digits",
        lambda seed: _against_fixed(digits(seed).part(32), 3, 3e-2),
        quick=False,
    ),
    Claim(
        "rk-adaptive",
        "meets its tolerance of 1e-3 at the end point",
        lambda seed: Outcome(
            _run(exact(VP(), seed).part(64), "rk-adaptive", 1e-3)[0],
            1e-2,
            "ten times the tolerance: the steps' errors add up",
            "tolerance 1e-3, 8-component mixture, vp, 64 noises",
            unit="relative end point error",
        ),
        quick=False,
    ),
)
