"""Gradients of a loss on samples, back through sampling: checkpointed, by the adjoint ODE, or reversible."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fewstep.core.arguments import checked
from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.core.sampler import Sampler
from fewstep.sampling.angle import State, Tableau, frame_of, increment, tableau
from fewstep.sampling.build import DEFAULT_TIMES
from fewstep.sampling.build import plan as make_plan
from fewstep.sampling.checkpointed import checkpointed
from fewstep.sampling.reversible import reversible_flow
from fewstep.timesteps.grid import make_times

METHODS = (
    Method(
        "adjoint",
        kind="gradient",
        paper="AdjointDPM: Adjoint Sensitivity Method for Gradient Backpropagation of Diffusion Probabilistic Models"
        " (Pan et al., 2023)",
        arxiv="2307.10711",
        claim="gradients for noise, conditions and weights by the adjoint ODE, in constant memory",
        use="sample_with_gradient",
    ),
)

WAYS = ("checkpointed", "adjoint", "reversible")


@checked
def sample_with_gradient(
    model: Denoiser,
    noise: Tensor,
    steps: int = 10,
    method: str = "checkpointed",
    *,
    solver: str | None = None,
    timesteps: str | Sequence[float] = DEFAULT_TIMES,
    end: str = "zero",
    plan: Sampler | None = None,
    data_std: float | None = None,
    seed: int = 0,
    first: int = 0,
    **condition: Any,
) -> Tensor:
    """Samples `(B, *shape)` from noise `(B, *shape)`, in its dtype, such that `loss(samples).backward()` works.

    Gradients reach the noise, conditions that are float tensors, and the model's weights, where they require them.

        method          gradients                             memory                  evaluations of n steps
        checkpointed    exact, through any plan               the square root of n    the plan's
        adjoint         of the ODE, to the solver's order     one evaluation          n times the solver's
        reversible      exact, up to rounding                 one step                2n times the solver's

    and the backward pass makes the same number again, with their derivatives.

    "adjoint" solves, beside the ODE's reverse, `da/d(theta) = -a^T dv/dy` for the state and the same with `dv/d(w)` for
    everything else (Pan et al.), in the frame of `fewstep.sampling.angle`, which has no linear part left.
    Both it and "reversible" follow the probability-flow ODE and end with the x0 predicted at the last time above 0.

    Args:
        solver: of the plan for "checkpointed" (default dpmpp-2m); "midpoint" (default), "rk4" or "euler" otherwise.
        timesteps, end: as in `fs.plan`. plan: a plan instead, for "checkpointed".
        data_std: of the frame; by default the model's own, or 1.
        seed, first: the stream of a stochastic plan's noise.

    Raises:
        ValueError: unknown names; a plan with a method that has none; noise of another shape; an eps-predicting model
            at alpha = 0.
    """
    if method not in WAYS:
        raise suggest("way to the gradient", method, WAYS)
    if method == "checkpointed":
        if plan is None:
            plan = make_plan(model.process, solver or "dpmpp-2m", steps, timesteps, end=end)
        elif solver is not None:
            raise ValueError("a plan holds its solver already: give either plan or solver")
        return checkpointed(plan, model, noise, seed=seed, first=first, **condition)
    if plan is not None:
        raise ValueError(f"{method!r} follows the ODE with a Runge-Kutta method: it takes solver and steps, no plan")
    if not isinstance(noise, Tensor) or not noise.is_floating_point() or noise.ndim < 2:
        raise ValueError("noise must be a float tensor (B, *shape)")
    if model.shape is not None and tuple(noise.shape[1:]) != tuple(model.shape):
        raise ValueError(f"noise has samples of shape {tuple(noise.shape[1:])}, the model takes {tuple(model.shape)}")
    rule, process = tableau(solver or "midpoint"), model.process
    named = model.check_condition(condition, noise.shape[0], noise.device)
    frame = frame_of(model, data_std)
    times = make_times(process, steps, timesteps, end)
    last = process.sigma(times[-1]) == 0
    angles = [frame.angle(t) for t in (times[:-1] if last else times)]
    tensors = [value for value in named.values() if value.is_floating_point() and value.requires_grad]
    tensors += [value for value in (*model.parameters(), *model.buffers()) if value.requires_grad]

    def slope(y: Tensor, angle: float) -> Tensor:
        return frame.slope(model, y, angle, named)

    y = noise * math.sin(angles[0])
    flow = adjoint_flow if method == "adjoint" else reversible_flow
    x = flow(slope, y, angles, rule, tensors) * frame.norm(times[-2] if last else times[-1])
    if not last:
        return x
    clean = model(x, torch.tensor(times[-2], dtype=x.dtype, device=x.device), **named).x0
    return clean * process.alpha(times[-1])


Slope = Callable[[Tensor, float], Tensor]


def adjoint_flow(slope: Slope, y: Tensor, grid: Sequence[float], rule: Tableau, tensors: Sequence[Tensor]) -> Tensor:
    """The end of `dy/ds = slope(y, s)` over the grid, its gradients (for y and `tensors`) by the adjoint ODE.

    On the way back the state is solved for again from its end, on the same grid, and with it the adjoints: nothing but
    the end is kept.
    """
    return _Adjoint.apply(slope, tuple(grid), rule, y, *tensors)


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, slope: Slope, grid: tuple[float, ...], rule: Tableau, y: Tensor, *tensors: Tensor) -> Tensor:
        for a, b in pairwise(grid):
            y = y + increment(rule, lambda s, state: (slope(state[0], s),), a, b, (y,))[0]
        ctx.slope, ctx.grid, ctx.rule, ctx.tensors = slope, grid, rule, tensors
        y = y.clone()  # on a grid of one time the input itself would be returned
        ctx.save_for_backward(y, *tensors)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        y, tensors = ctx.saved_tensors[0], ctx.tensors  # reading them also tells if one was changed in place

        def field(s: float, state: State) -> State:
            with torch.enable_grad():
                at = state[0].detach().requires_grad_(True)
                value = ctx.slope(at, s)
                pulled = torch.autograd.grad(value, (at, *tensors), -state[1], allow_unused=True)
            filled = [torch.zeros_like(v) if g is None else g for g, v in zip(pulled, (at, *tensors), strict=True)]
            return (value.detach(), *filled)

        state: State = (y, gradient, *(torch.zeros_like(value) for value in tensors))
        for a, b in pairwise(reversed(ctx.grid)):
            more = increment(ctx.rule, field, a, b, state)
            state = tuple(part + added for part, added in zip(state, more, strict=True))
        return None, None, None, *state[1:]
