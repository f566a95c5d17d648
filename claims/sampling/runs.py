"""Claims of the ways to run a plan: compiled, many requests mixed, parallel in time."""

from __future__ import annotations

from typing import Any

from claims.common import VP, Noise, Outcome, Plan, experiment, gap, plan, slow, tolerance
from claims.problems import mixture, problem
from fewstep.core.unrolled import unrolled
from fewstep.hub.models import load
from fewstep.sampling.compiled import compile
from fewstep.sampling.mixed import Mixed, Request
from fewstep.sampling.parallel import run_parallel

STEPS, BOUND, NOISES = 50, 1e-2, 16
SOLVERS = (("ddim", "ddim"), ("ddpm", "the stochastic ddpm"), ("dpmpp-2m", "dpmpp-2m"))


def _graphs(seed: int) -> Outcome:
    import torch._dynamo
    from torch._dynamo.testing import CompileCounter

    model, noise = mixture(VP()), Noise(seed).normal(0, (8, 2))
    torch._dynamo.reset()
    ours, theirs, compiled = CompileCounter(), CompileCounter(), None
    whole = torch.compile(unrolled, backend=theirs, fullgraph=True)
    for steps, rule in ((6, "karras"), (9, "log-snr"), (12, "uniform")):
        made = plan(VP(), "dpmpp-3m", steps, rule)
        compiled = compile(made, model, backend=ours) if compiled is None else compiled.use(made)
        compiled(noise)
        whole(made.table.structure, model, noise, *made.table.numbers("x0", noise.device, torch.float32), [], {})
    about = "dpmpp-3m with 6, 9 and 12 steps on three rules"
    return Outcome(ours.frame_count, theirs.frame_count, "the whole program unrolled", about, unit="graphs compiled")


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
    about = "five requests (unipc-3, ddpm, dpmpp-2m, heun, ddim; 1 to 5 samples; a label each), embedded digits"
    about += ", float32"
    return tolerance(max(_run(seed)[2]), 1e-4, about, "relative difference from the runs alone")


def _calls(seed: int) -> Outcome:
    requests, calls, _ = _run(seed)
    theirs, about = sum(one.plan.nfe for one in requests), "the same five requests, embedded digits"
    return Outcome(calls, theirs, "one run after the other", about, unit="network calls")


def _in_parallel(seed: int, solver: str) -> tuple[Plan, Any, float]:
    on = problem("digits", seed, NOISES)
    made = plan(on.model.process, solver, STEPS)
    result = run_parallel(made, on.model, on.noise, STEPS, BOUND, seed=seed, **on.condition)
    return made, result, gap(result.samples, made(on.model, on.noise, seed=seed, **on.condition))


@experiment
def _depth(seed: int, solver: str) -> Outcome:
    made, result, error = _in_parallel(seed, solver)
    about = f"{solver}, {STEPS} steps, window {STEPS}, tolerance {BOUND:g}, embedded digits, {NOISES} noises;"
    about += f" {result.nfe} evaluations a sample, relative difference {error:.2g}"
    against = "a third of the sequential run's calls"
    return Outcome(result.depth, made.nfe / 3, against, about, unit="network calls one after the other")


@experiment
def _held(seed: int, solver: str) -> Outcome:
    _, result, error = _in_parallel(seed, solver)
    about = f"{solver}, {STEPS} steps, window {STEPS}, embedded digits, {NOISES} noises; {result.depth} calls"
    return tolerance(error, BOUND, about, "relative difference from the sequential samples")


CLAIMS = (
    slow("compile", "one graph serves every schedule and step count", _graphs),
    slow("run-mixed", "gives each request the samples of its run alone", _same),
    slow("run-mixed", "needs no more calls than the longest request", _calls),
    *(slow("paradigms", f"needs less than a third of the calls of {what} at 50 steps", _depth(solver))
      for solver, what in SOLVERS),
    *(slow("paradigms", f"keeps its tolerance on {what} at 50 steps", _held(solver)) for solver, what in SOLVERS),
)  # fmt: skip
