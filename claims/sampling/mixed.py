"""Claims of fewstep/sampling/mixed.py."""

from __future__ import annotations

from claims.common import Claim, Noise, Outcome, gap, plan, tolerance
from fewstep.hub.models import load
from fewstep.sampling.mixed import Mixed, Request


def _run(seed: int) -> tuple[list[Request], int, list[float]]:
    """Five requests run together: themselves, the calls, and how far each one's samples are from its run alone."""
    model = load("digits")
    kinds = (("unipc-3", 8), ("ddpm", 20), ("dpmpp-2m", 12), ("heun", 5), ("ddim", 10))
    requests = [
        Request(plan(model.process, solver, steps), Noise(seed + i).normal(0, (1 + i, 1, 8, 8)), {"label": i}, seed + i)
        for i, (solver, steps) in enumerate(kinds)
    ]
    mixed = Mixed(model)
    tickets = [mixed.add(request) for request in requests]
    while len(mixed):
        mixed.step()
    alone = [one.plan(model, one.noise, seed=one.seed, **one.condition) for one in requests]
    return requests, mixed.calls, [gap(mixed.pop(ticket), x) for ticket, x in zip(tickets, alone, strict=True)]


def _same(seed: int) -> Outcome:
    about = (
        "five requests (unipc-3, ddpm, dpmpp-2m, heun, ddim; 1 to 5 samples; a label each), embedded digits, float32"
    )
    return tolerance(max(_run(seed)[2]), 1e-4, about, "relative difference from the runs alone")


def _calls(seed: int) -> Outcome:
    requests, calls, _ = _run(seed)
    theirs, about = sum(one.plan.nfe for one in requests), "the same five requests, embedded digits"
    return Outcome(calls, theirs, "one run after the other", about, unit="network calls")


CLAIMS = (
    Claim("run-mixed", "gives each request the samples of its run alone", _same, quick=False),
    Claim("run-mixed", "needs no more calls than the longest request", _calls, quick=False),
)
