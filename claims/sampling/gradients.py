"""Claims of gradients through a sampler, beside autograd's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from claims.common import F64, VP, Claim, Denoiser, Noise, Outcome, gap, plan, slow
from claims.problems import mixture, smooth
from fewstep.core.unrolled import unrolled
from fewstep.hub.models import load
from fewstep.sampling.adjoint import adjoint_flow, sample_with_gradient
from fewstep.sampling.angle import Angle, increment, tableau
from fewstep.sampling.checkpointed import checkpointed
from fewstep.sampling.reversible import forward, reversible_flow
from fewstep.timesteps.grid import make_times


def reward(x: Tensor) -> Tensor:
    """Nearness to a fixed point, a sample at a time."""
    return -(x - 0.5).flatten(1).square().sum(1)


def of_noise(noise: Tensor, way: Callable[[Tensor], Tensor], value: Callable[[Tensor], Tensor] = reward) -> Tensor:
    """The gradient for the noise of the value that it leads to."""
    start = noise.clone().requires_grad_(True)
    return torch.autograd.grad(value(way(start)).sum(), start)[0]


def through(slope: Callable[[Tensor, float], Tensor], y: Tensor, times: Sequence[float], rule: Any) -> Tensor:
    """The plain steps of a Runge-Kutta rule, for autograd to go back through."""
    for a, b in pairwise(times):
        y = y + increment(rule, lambda s, state: (slope(state[0], s),), a, b, (y,))[0]
    return y


def cosine(ours: Tensor, theirs: Tensor, about: str) -> Outcome:
    """Whether two gradients point the same way."""
    found = float(torch.cosine_similarity(ours.flatten(), theirs.flatten(), 0))
    return Outcome(found, 0.99, "tolerance", about, better="high", unit="cosine")


def _autograd(model: Denoiser, noise: Tensor, what: str, **condition: Tensor) -> Outcome:
    ours = of_noise(noise, lambda x: sample_with_gradient(model, x, 20, "adjoint", solver="midpoint", **condition))
    theirs = of_noise(
        noise, lambda x: sample_with_gradient(model, x, 20, "checkpointed", solver="dpmpp-2m", **condition)
    )
    about = f"gradient for the noise, adjoint of 20 midpoint steps against autograd through dpmpp-2m with 20, {what}"
    return cosine(ours, theirs, about)


def _mixture(seed: int) -> Outcome:
    noise = Noise(seed).normal(0, (64, 2), "cpu", F64)
    return _autograd(smooth(VP()), noise, "smooth 5-component mixture, vp, 64 noises")


def _digits(seed: int) -> Outcome:
    model, label = load("digits").requires_grad_(False), torch.arange(20) % 10
    noise = Noise(seed).normal(0, (20, 1, 8, 8))
    return _autograd(model, noise, "embedded digits, 20 noises, classes in turn", label=label)


def _own_steps(seed: int) -> Outcome:
    """Against autograd through the adjoint's own forward steps, on the embedded digits."""
    model, label = load("digits").requires_grad_(False), torch.arange(20) % 10
    noise, frame, rule = Noise(seed).normal(0, (20, 1, 8, 8)), Angle(model.process, model.data_std), tableau("midpoint")
    times = make_times(model.process, 20, "log-snr", "min")
    angles, norm = [frame.angle(t) for t in times], frame.norm(times[-1])

    def slope(y: Tensor, angle: float) -> Tensor:
        return frame.slope(model, y, angle, {"label": label})

    ours = of_noise(noise, lambda x: adjoint_flow(slope, x * math.sin(angles[0]), angles, rule, []) * norm)
    theirs = of_noise(noise, lambda x: through(slope, x * math.sin(angles[0]), angles, rule) * norm)
    about = "gradient for the noise, adjoint against autograd through the same 20 midpoint steps, embedded digits, 20"
    about += " noises, classes in turn"
    return cosine(ours, theirs, about)


def _frames(seed: int) -> Outcome:
    """From t_max to t_min; the exact gradient is autograd's, through 150 steps of Runge-Kutta's method."""
    process, steps = VP(), 15
    model, frame, rule = smooth(process), Angle(VP()), tableau("rk4")
    noise = Noise(seed).normal(0, (64, 2), "cpu", F64)
    last, first = process.log_snr(process.t_min), process.log_snr(process.t_max)

    def times(n: int) -> list[float]:
        return [process.time(first + (last - first) * k / n) for k in range(n + 1)]

    def angled(y: Tensor, angle: float) -> Tensor:
        return frame.slope(model, y, angle, {})

    def raw(x: Tensor, t: float) -> Tensor:
        return model(x, torch.tensor(t, dtype=F64)).velocity

    def framed(x: Tensor, n: int, way: Callable[[Tensor, list[float]], Tensor]) -> Tensor:
        y = x * process.sigma(process.t_max) / frame.norm(process.t_max)
        return way(y, [frame.angle(t) for t in times(n)]) * frame.norm(process.t_min)

    exact = of_noise(noise, lambda x: framed(x, 150, lambda y, grid: through(angled, y, grid, rule)))
    ours = of_noise(noise, lambda x: framed(x, steps, lambda y, grid: adjoint_flow(angled, y, grid, rule, [])))
    theirs = of_noise(noise, lambda x: adjoint_flow(raw, x * process.sigma(process.t_max), times(steps), rule, []))
    against = "the adjoint in the process's own time and state, at the same times"
    about = f"rk4, {steps} steps even in log-SNR, smooth 5-component mixture, vp, 64 noises"
    return Outcome(gap(ours, exact), gap(theirs, exact), against, about, unit="relative error of the gradient")


def _optimise(seed: int) -> Outcome:
    model, size = mixture(VP()), 64
    noise = Noise(seed).normal(0, (size, 2), "cpu", F64)
    before = float(reward(sample_with_gradient(model, noise, 10, "adjoint")).mean())
    start = noise.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([start], lr=0.05)
    for _ in range(30):
        optimiser.zero_grad()
        # The second term is minus the noise's own log-density, which keeps it where the model was trained.
        value = reward(sample_with_gradient(model, start, 10, "adjoint")) - 0.01 * start.square().sum(1)
        (-value.sum()).backward()
        optimiser.step()
    after = float(reward(sample_with_gradient(model, start.detach(), 10, "adjoint")).mean())
    about = f"minus the squared distance to (0.5, 0.5), {size} noises, 30 steps of Adam at 0.05, 10 midpoint steps"
    about += " each, 8-component mixture, vp; squared norm of the noise"
    about += f" {float(start.detach().square().sum(1).mean()):.2f}, before {float(noise.square().sum(1).mean()):.2f}"
    return Outcome(after, before, "the noise as drawn", about, better="high", unit="mean reward")


def _weights(seed: int) -> Outcome:
    """The gradient for the mixture's means, which stand for weights, against autograd through a fine plan."""
    model, found = smooth(VP()), []
    centres, noise = model.centres, Noise(seed).normal(0, (64, 2), "cpu", F64)
    try:
        for steps, method, solver in ((20, "adjoint", "midpoint"), (100, "checkpointed", "dpmpp-3m")):
            model.centres = centres.clone().requires_grad_(True)
            x = sample_with_gradient(model, noise, steps, method, solver=solver)
            found.append(torch.autograd.grad(reward(x).sum(), model.centres)[0].flatten())
    finally:
        model.centres = centres
    ratio = math.exp(float((found[0].norm() / found[1].norm()).log()))
    about = "gradient for the component means, adjoint of 20 midpoint steps against autograd through dpmpp-3m with 100,"
    about += f" smooth 5-component mixture, vp, 64 noises; ratio of norms {ratio:.3f}"
    return cosine(*found, about)


def _memory(seed: int) -> Outcome:
    model, noise = smooth(VP()), Noise(seed).normal(0, (16, 2), "cpu", F64).requires_grad_(True)
    made, kept = plan(model.process, "dpmpp-3m", 64), []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    def plain() -> Tensor:
        numbers = made.table.numbers("x0", noise.device, F64)
        return unrolled(made.table.structure, model, noise * made.start[1], *numbers, [], {})

    totals, gradients = [], []
    for way in (lambda: checkpointed(made, model, noise), plain):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            x = way()
        totals.append(sum(kept))
        gradients.append(torch.autograd.grad(x.square().sum(), noise)[0])
    segments = math.ceil(math.sqrt(64))  # one of them, run again, is kept beside the states between them
    about = f"dpmpp-3m, 64 evaluations, smooth 5-component mixture, vp, 16 noises; {totals[0]} between the {segments}"
    about += f" segments, and one segment of them at a time; the gradients differ by {gap(*gradients):.1g}"
    ours = totals[0] + totals[1] / segments
    return Outcome(ours, totals[1], "autograd through the same plan", about, unit="numbers kept for the way back")


def _exact(seed: int) -> Outcome:
    """Gradients against autograd through the very steps that were made; the adjoint is that of its own steps."""
    model, frame, rule = smooth(VP()), Angle(VP()), tableau("midpoint")
    noise = Noise(seed).normal(0, (64, 2), "cpu", F64)
    grid = [frame.angle(1.0) + (0.01 - frame.angle(1.0)) * k / 20 for k in range(21)]

    def slope(y: Tensor, angle: float) -> Tensor:
        return frame.slope(model, y, angle, {})

    def step(y: Tensor, a: float, b: float) -> Tensor:
        return increment(rule, lambda s, state: (slope(state[0], s),), a, b, (y,))[0]

    def error(ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor]) -> float:
        return gap(*(of_noise(noise, way, torch.square) for way in (ours, theirs)))

    ours = error(lambda y: reversible_flow(slope, y, grid, rule, []), lambda y: forward(step, y, grid)[0])
    theirs = error(lambda y: adjoint_flow(slope, y, grid, rule, []), lambda y: through(slope, y, grid, rule))
    about = f"20 midpoint steps, smooth 5-component mixture, vp, 64 noises; {math.log10(theirs / ours):.0f} digits"
    unit = "relative difference from autograd through the steps"
    return Outcome(ours, theirs, "the adjoint ODE on the same grid", about, unit=unit)


CLAIMS = (
    Claim("adjoint", "its gradient points where autograd's does on the mixture", _mixture),
    slow("adjoint", "its gradient points where autograd's through dpmpp-2m does on the embedded digits", _digits),
    slow("adjoint", "its gradient is nearly that of its own steps on the embedded digits", _own_steps),
    Claim("adjoint", "its gradient for the model's parameters points where autograd's does", _weights),
    slow("adjoint", "the frame without a linear part is more accurate than the raw adjoint", _frames),
    slow("adjoint", "noise optimised with it has a higher reward", _optimise),
    Claim("checkpointed", "keeps less than autograd through the same plan", _memory),
    Claim("reversible", "its gradients are those of its own steps", _exact),
)  # fmt: skip
