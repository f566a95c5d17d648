"""Claims of the ways to run a plan: compiled, many requests mixed, parallel in time; and of the likelihood."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from claims.claim import Claim, Outcome, compared, experiment, slow, tolerance
from claims.common import F64, gap, plan
from claims.parts import EDM, VP, Flow, GaussianMixture, Noise, Plan, Process
from claims.problems import TOLERANCE, mixture, problem, smooth
from fewstep.core.unrolled import unrolled
from fewstep.data.digits import load as load_digits
from fewstep.hub.models import load as load_model
from fewstep.sampling.angle import increment, tableau
from fewstep.sampling.compiled import compile
from fewstep.sampling.likelihood import bits_per_dim, log_likelihood
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
    model = load_model("digits")
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


def _density(model: GaussianMixture, x: Tensor, t: float) -> Tensor:
    return model.log_likelihood(x, torch.tensor(t, dtype=F64))


def _exact(model: GaussianMixture, x: Tensor) -> Tensor:
    """The density of the data with the noise of t_min added."""
    process = model.process
    alpha = process.alpha(process.t_min)
    return _density(model, alpha * x, process.t_min) + x[0].numel() * math.log(alpha)


def _found(model: GaussianMixture, x: Tensor, nfe: int, **options: Any) -> Tensor:
    last = model.process.t_max
    return log_likelihood(model, x, nfe, prior=lambda end: _density(model, end, last), **options)


def _agreement(seed: int) -> Outcome:
    errors = {}
    for process in (VP(), EDM(), Flow()):
        model, x = smooth(process), smooth(process).sample(64, seed)
        errors[process.name] = float((_found(model, x, 240, trace="exact") - _exact(model, x)).abs().mean())
    about = "exact trace, rk4, 240 evaluations, smooth 5-component mixture, 64 samples, mean error on "
    about += ", ".join(f"{name} {error:.1g}" for name, error in errors.items())
    return tolerance(max(errors.values()), 1e-4, about, "nats")


def _order(seed: int) -> Outcome:
    model, x = smooth(VP()), smooth(VP()).sample(16, seed)
    wanted = _exact(model, x)
    errors = [float((_found(model, x, 4 * steps, trace="exact") - wanted).norm()) for steps in (48, 96)]
    order = math.log2(errors[0] / errors[1])
    about = f"measured order {order:.2f}, stated 4; 48 and 96 steps, smooth 5-component mixture, vp"
    return tolerance(abs(order - 4), TOLERANCE, about, "difference from the stated order")


def _in_time(model: GaussianMixture, x: Tensor, nfe: int) -> Tensor:
    """The same in the process's own time and state, with equal steps of Runge-Kutta's method."""
    process: Process = model.process

    def field(t: float, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            at = state[0].detach().requires_grad_(True)
            velocity = model(at, torch.tensor(t, dtype=F64)).velocity
            rows = [torch.autograd.grad(velocity[:, i].sum(), at, retain_graph=True)[0][:, i] for i in range(2)]
        return velocity.detach(), rows[0] + rows[1]

    low, high, steps = process.t_min, process.t_max, nfe // 4
    state = (x * process.alpha(low), torch.zeros(len(x), dtype=F64))
    for k in range(steps):
        a, b = (low + (high - low) * i / steps for i in (k, k + 1))
        more = increment(tableau("rk4"), field, a, b, state)
        state = (state[0] + more[0], state[1] + more[1])
    return _density(model, state[0], high) + state[1] + 2 * math.log(process.alpha(low))


def _frame(seed: int) -> Outcome:
    model, x = mixture(VP()), mixture(VP()).sample(64, seed)
    wanted, found = _exact(model, x), (_found(model, x, 80, trace="exact"), _in_time(model, x, 80))
    errors = [float((value - wanted).abs().mean()) for value in found]
    against = "rk4 in the process's own time and state, 80 evaluations"
    about = "rk4, exact trace, 80 evaluations, 8-component mixture, vp, 64 samples"
    return compared(errors, against, about, unit="mean error in nats")


def _hutchinson(seed: int) -> Outcome:
    model, n = smooth(VP()), 2000
    x = model.sample(1, seed).expand(n, 2).contiguous()
    found = _found(model, x, 240, seed=seed)
    off, std = abs(float(found.mean() - _exact(model, x[:1])[0])), float(found.std())
    about = f"one point, {n} draws of the signs, standard deviation {std:.2g} nats, 240 evaluations, vp"
    return tolerance(off / (std / math.sqrt(n)), 4.0, about, "distance from the exact value in standard errors")


def _bits(seed: int) -> Outcome:
    model, x = load_model("digits"), load_digits("validation")[0][:64]
    bits = bits_per_dim(model, x, 60, levels=17, seed=seed)
    about = "embedded digits without labels, 64 validation images, 60 evaluations, one probe"
    return Outcome(float(bits.mean()), math.log2(17), "17 equally likely levels", about, unit="bits a pixel")


def _entropy(seed: int) -> Outcome:
    model, x = smooth(Flow()), smooth(Flow()).sample(64, seed)
    wanted = -_exact(model, x).mean() / (2 * math.log(2))
    found = bits_per_dim(model, x, 240, trace="exact").mean()
    about = f"smooth 5-component mixture, flow, 64 samples, {float(found):.4f} bits a value, 240 evaluations"
    return tolerance(abs(float(found - wanted)), 1e-4, about, "bits a value")


CLAIMS = (
    slow("compile", "one graph serves every schedule and step count", _graphs),
    slow("run-mixed", "gives each request the samples of its run alone", _same),
    slow("run-mixed", "needs no more calls than the longest request", _calls),
    *(slow("paradigms", f"needs less than a third of the calls of {what} at 50 steps", _depth(solver))
      for solver, what in SOLVERS),
    *(slow("paradigms", f"keeps its tolerance on {what} at 50 steps", _held(solver)) for solver, what in SOLVERS),
    slow("ode-likelihood", "agrees with the exact log-likelihood on vp, edm and flow", _agreement),
    Claim("ode-likelihood", "is of order 4", _order),
    Claim("ode-likelihood", "the frame of the angle needs fewer evaluations than the process's own time", _frame),
    Claim("ode-likelihood", "Hutchinson's trace has the exact value as its mean", _hutchinson),
    Claim("bits-per-dim", "is the exact one on the mixture", _entropy),
    slow("bits-per-dim", "codes held-out digits in fewer bits than equally likely levels", _bits),
)  # fmt: skip
