"""Claims of fewstep/sampling/unified.py."""

from __future__ import annotations

from claims.common import VP, Claim, Outcome, plan, tolerance
from claims.duels import duel, orders
from claims.problems import order, problem
from fewstep.sampling.unified import unified

KNOWN = {
    "ddim": ("eps", 1, "full"),
    "ab-2": ("eps", 2, "full"),
    "ab-x0-2": ("x0", 2, "full"),
    "dpmpp-2m": ("x0", 2, "middle"),
    "dpm-solver-2": ("eps", 2, "inside"),
    "dpm-solver-3": ("eps", 3, "inside"),
    "dpmpp-2s": ("x0", 2, "inside"),
}


def _third(seed: int) -> Outcome:
    """Two single steps of order 3, then order 3 over the known predictions."""

    def solver(trace, process, times):  # type: ignore[no-untyped-def]
        start = [("eps", 3, "inside")] * 2
        return unified(trace, process, times, start + [("x0", 3, "full")] * (len(times) - 3))

    measured = order(VP(), solver, seed)
    about = f"measured {measured:.2f}; two steps of eps with evaluations inside, then x0 over the known predictions; 96"
    about += " and 192 steps, smooth 5-component mixture, vp"
    return tolerance(abs(measured - 3), 0.2, about, "|measured - stated order|")


def _same(seed: int) -> Outcome:
    on, worst = problem(VP(), seed), 0.0
    for name, choice in KNOWN.items():
        x, y = (on.run(made) for made in (plan(VP(), "unified", 10, schedule=[choice]), plan(VP(), name, 10)))
        worst = max(worst, float((x - y).abs().max()))
    return tolerance(worst, 1e-10, f"{', '.join(KNOWN)}; 10 steps, {on.about}", "largest difference")


CLAIMS = (
    Claim("unified", "the order is as stated", orders(VP(), "unified")),
    Claim("unified", "a schedule of third-order steps is of order 3", _third),
    Claim("unified", "uniform schedules are seven known solvers", _same),
    Claim("unified", "beats ddim at 12 evaluations", duel(VP(), "unified", "ddim", 12, "log-snr")),
)
