"""Claims of fewstep/sampling/mixed.py."""

from __future__ import annotations

from claims.claim import Claim, Outcome
from fewstep.core.noise import Noise
from fewstep.hub.models import load
from fewstep.sampling.build import plan
from fewstep.sampling.mixed import Mixed, Request


def _requests(seed: int):
    model = load("digits")
    kinds = (("unipc-3", 8), ("ddpm", 20), ("dpmpp-2m", 12), ("heun", 5), ("ddim", 10))
    return model, [
        Request(plan(model.process, solver, steps), Noise(seed + i).normal(0, (1 + i, 1, 8, 8)), {"label": i}, seed + i)
        for i, (solver, steps) in enumerate(kinds)
    ]


def _run(seed: int):
    model, requests = _requests(seed)
    mixed = Mixed(model)
    tickets = [mixed.add(request) for request in requests]
    while len(mixed):
        mixed.step()
    return model, requests, mixed.calls, [mixed.pop(ticket) for ticket in tickets]


def _same(seed: int) -> Outcome:
    model, requests, _, out = _run(seed)
    worst = 0.0
    for one, samples in zip(requests, out, strict=True):
        alone = one.plan(model, one.noise, seed=one.seed, **one.condition)
        worst = max(worst, float((samples - alone).norm() / alone.norm()))
    return Outcome(
        worst,
        1e-4,
        "tolerance",
        "five requests (unipc-3, ddpm, dpmpp-2m, heun, ddim; 1 to 5 samples; a label each), embedded digits, float32",
        unit="relative difference from the runs alone",
    )


def _calls(seed: int) -> Outcome:
    _, requests, calls, _ = _run(seed)
    return Outcome(
        calls,
        sum(one.plan.nfe for one in requests),
        "one run after the other",
        "the same five requests, embedded digits",
        unit="network calls",
    )


CLAIMS = (
    Claim("run-mixed", "gives each request the samples of its run alone", _same, quick=False),
    Claim("run-mixed", "needs no more calls than the longest request", _calls, quick=False),
)
