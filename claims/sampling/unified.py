"""Claims of fewstep/sampling/unified.py."""

from __future__ import annotations

from claims.claim import Claim, Outcome
from claims.problems import duel, exact, order, orders
from fewstep.core.process import Process
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan


def _third(process: Process, seed: int) -> Outcome:
    """Two single steps of order 3, then order 3 over the known predictions."""

    def solver(trace, process, times):  # type: ignore[no-untyped-def]
        from fewstep.sampling.unified import unified

        start = [("eps", 3, "inside")] * 2
        return unified(trace, process, times, start + [("x0", 3, "full")] * (len(times) - 3))

    measured = order(process, solver, seed)
    return Outcome(
        abs(measured - 3),
        0.2,
        "tolerance",
        f"measured {measured:.2f}; two steps of eps with evaluations inside, then x0 over the known predictions;"
        f" 96 and 192 steps, smooth 5-component mixture, {process.name}",
        unit="|measured - stated order|",
    )


def _same(process: Process, seed: int) -> Outcome:
    problem = exact(process, seed)
    pairs = [
        (("eps", 1, "full"), "ddim"),
        (("eps", 2, "full"), "ab-2"),
        (("x0", 2, "full"), "ab-x0-2"),
        (("x0", 2, "middle"), "dpmpp-2m"),
        (("eps", 2, "inside"), "dpm-solver-2"),
        (("eps", 3, "inside"), "dpm-solver-3"),
        (("x0", 2, "inside"), "dpmpp-2s"),
    ]
    worst = 0.0
    for choice, name in pairs:
        x, y = (
            made(problem.model, problem.noise, dtype=problem.noise.dtype)
            for made in (plan(process, "unified", 10, schedule=[choice]), plan(process, name, 10))
        )
        worst = max(worst, float((x - y).abs().max()))
    names = ", ".join(name for _, name in pairs)
    return Outcome(
        worst,
        1e-10,
        "tolerance",
        f"{names}; 10 steps, {problem.name}, {len(problem.noise)} noises",
        unit="largest difference",
    )


CLAIMS = (
    Claim("unified", "the order is as stated", lambda seed: orders(VP(), "unified", seed)),
    Claim("unified", "a schedule of third-order steps is of order 3", lambda seed: _third(VP(), seed)),
    Claim("unified", "uniform schedules are seven known solvers", lambda seed: _same(VP(), seed)),
    Claim(
        "unified",
        "beats ddim at 12 evaluations",
        lambda seed: duel(exact(VP(), seed), "unified", "ddim", 12, "log-snr"),
    ),
)
