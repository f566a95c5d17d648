"""Claims of fewstep/sampling/adjoint.py."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from claims.claim import Claim, Outcome
from claims.problems import mixture, smooth
from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.processes.vp import VP
from fewstep.sampling.adjoint import adjoint_flow, sample_with_gradient
from fewstep.sampling.angle import Angle, increment, tableau
from fewstep.timesteps.grid import make_times

F64 = torch.float64


def _reward(x: Tensor) -> Tensor:
    """Nearness to a fixed point, a sample at a time."""
    return -(x - 0.5).flatten(1).square().sum(1)


def _gradient(model: Denoiser, noise: Tensor, steps: int, method: str, solver: str, **condition: Tensor) -> Tensor:
    start = noise.clone().requires_grad_(True)
    x = sample_with_gradient(model, start, steps, method, solver=solver, **condition)
    return torch.autograd.grad(_reward(x).sum(), start)[0]


def _cosine(model: Denoiser, noise: Tensor, what: str, **condition: Tensor) -> Outcome:
    ours = _gradient(model, noise, 20, "adjoint", "midpoint", **condition)
    theirs = _gradient(model, noise, 20, "checkpointed", "dpmpp-2m", **condition)
    return Outcome(
        float(torch.cosine_similarity(ours.flatten(), theirs.flatten(), 0)),
        0.99,
        "tolerance",
        f"gradient for the noise, adjoint of 20 midpoint steps against autograd through dpmpp-2m with 20, {what}",
        better="high",
        unit="cosine",
    )


def _mixture(seed: int) -> Outcome:
    noise = Noise(seed).normal(0, (64, 2), "cpu", F64)
    return _cosine(smooth(VP()), noise, "smooth 5-component mixture, vp, 64 noises")


def _digits(seed: int) -> Outcome:
    from fewstep.hub.models import load

    model = load("digits").requires_grad_(False)
    noise = Noise(seed).normal(0, (20, 1, 8, 8))
    return _cosine(model, noise, "embedded digits, 20 noises, classes in turn", label=torch.arange(20) % 10)


def _own_steps(seed: int) -> Outcome:
    """Against autograd through the adjoint's own forward steps, on the embedded digits."""
    from fewstep.hub.models import load

    model, label = load("digits").requires_grad_(False), torch.arange(20) % 10
    noise, frame, rule = Noise(seed).normal(0, (20, 1, 8, 8)), Angle(model.process, model.data_std), tableau("midpoint")
    times = make_times(model.process, 20, "log-snr", "min")
    angles = [frame.angle(t) for t in times]

    def slope(y: Tensor, angle: float) -> Tensor:
        return frame.slope(model, y, angle, {"label": label})

    gradients = []
    for way in ("adjoint", "plain"):
        start = noise.clone().requires_grad_(True)
        y = start * math.sin(angles[0])
        if way == "adjoint":
            y = adjoint_flow(slope, y, angles, rule, [])
        else:
            for a, b in zip(angles, angles[1:], strict=False):
                y = y + increment(rule, lambda s, state: (slope(state[0], s),), a, b, (y,))[0]
        gradients.append(torch.autograd.grad(_reward(y * frame.norm(times[-1])).sum(), start)[0].flatten())
    return Outcome(
        float(torch.cosine_similarity(*gradients, 0)),
        0.99,
        "tolerance",
        "gradient for the noise, adjoint against autograd through the same 20 midpoint steps, embedded digits, 20"
        " noises, classes in turn",
        better="high",
        unit="cosine",
    )


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

    def gradient(way: str) -> Tensor:
        start = noise.clone().requires_grad_(True)
        x = start * process.sigma(process.t_max)
        if way == "raw":
            x = adjoint_flow(raw, x, times(steps), rule, [])
        else:
            y, angles = x / frame.norm(process.t_max), [frame.angle(t) for t in times(150 if way == "exact" else steps)]
            if way == "exact":
                for a, b in zip(angles, angles[1:], strict=False):
                    y = y + increment(rule, lambda s, state: (angled(state[0], s),), a, b, (y,))[0]
            else:
                y = adjoint_flow(angled, y, angles, rule, [])
            x = y * frame.norm(process.t_min)
        return torch.autograd.grad(_reward(x).sum(), start)[0]

    exact = gradient("exact")
    ours, theirs = (float((gradient(way) - exact).norm() / exact.norm()) for way in ("angle", "raw"))
    return Outcome(
        ours,
        theirs,
        "the adjoint in the process's own time and state, at the same times",
        f"rk4, {steps} steps even in log-SNR, smooth 5-component mixture, vp, 64 noises",
        unit="relative error of the gradient",
    )


def _optimise(seed: int) -> Outcome:
    model, size = mixture(VP()), 64
    noise = Noise(seed).normal(0, (size, 2), "cpu", F64)
    before = float(_reward(sample_with_gradient(model, noise, 10, "adjoint")).mean())
    start = noise.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([start], lr=0.05)
    for _ in range(30):
        optimiser.zero_grad()
        # The second term is minus the noise's own log-density, which keeps it where the model was trained.
        value = _reward(sample_with_gradient(model, start, 10, "adjoint")) - 0.01 * start.square().sum(1)
        (-value.sum()).backward()
        optimiser.step()
    after = float(_reward(sample_with_gradient(model, start.detach(), 10, "adjoint")).mean())
    return Outcome(
        after,
        before,
        "the noise as drawn",
        f"minus the squared distance to (0.5, 0.5), {size} noises, 30 steps of Adam at 0.05, 10 midpoint steps each,"
        f" 8-component mixture, vp; squared norm of the noise {float(start.detach().square().sum(1).mean()):.2f},"
        f" before {float(noise.square().sum(1).mean()):.2f}",
        better="high",
        unit="mean reward",
    )


def _weights(seed: int) -> Outcome:
    """The gradient for the mixture's means, which stand for weights, against autograd through a fine plan."""
    model = smooth(VP())
    centres = model.centres
    noise = Noise(seed).normal(0, (64, 2), "cpu", F64)
    found = []
    try:
        for steps, method, solver in ((20, "adjoint", "midpoint"), (100, "checkpointed", "dpmpp-3m")):
            model.centres = centres.clone().requires_grad_(True)
            x = sample_with_gradient(model, noise, steps, method, solver=solver)
            found.append(torch.autograd.grad(_reward(x).sum(), model.centres)[0].flatten())
    finally:
        model.centres = centres
    return Outcome(
        float(torch.cosine_similarity(*found, 0)),
        0.99,
        "tolerance",
        "gradient for the component means, adjoint of 20 midpoint steps against autograd through dpmpp-3m with 100,"
        f" smooth 5-component mixture, vp, 64 noises; ratio of norms {math.exp(_log_ratio(*found)):.3f}",
        better="high",
        unit="cosine",
    )


def _log_ratio(a: Tensor, b: Tensor) -> float:
    return float((a.norm() / b.norm()).log())


CLAIMS = (
    Claim("adjoint", "its gradient points where autograd's does on the mixture", _mixture),
    Claim(
        "adjoint",
        "its gradient points where autograd's through dpmpp-2m does on the embedded digits",
        _digits,
        quick=False,
    ),
    Claim("adjoint", "its gradient is nearly that of its own steps on the embedded digits", _own_steps, quick=False),
    Claim("adjoint", "its gradient for the model's parameters points where autograd's does", _weights),
    Claim("adjoint", "the frame without a linear part is more accurate than the raw adjoint", _frames, quick=False),
    Claim("adjoint", "noise optimised with it has a higher reward", _optimise, quick=False),
)
