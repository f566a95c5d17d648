"""The Monge gap: how much further than necessary a map moves points, as a metric and as a regulariser."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.training.couplings import assignment

METHODS = (
    Method(
        "monge-gap",
        kind="regulariser",
        paper="The Monge Gap: A Regularizer to Learn All Transport Maps (Uscidda and Cuturi, 2023)",
        arxiv="2302.04953",
        claim="zero for a map that transports optimally, positive for any other",
        use="monge_gap",
    ),
)


def squared_cost(x: Tensor, y: Tensor) -> Tensor:
    """`|x_i - y_j|^2`, (N, M) float64, of (N, *shape) and (M, *shape)."""
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(f"points must have one shape, got {tuple(x.shape[1:])} and {tuple(y.shape[1:])}")
    a, b = x.flatten(1).double(), y.flatten(1).double()
    a, b = a - a.detach().mean(0), b - a.detach().mean(0)  # less cancellation
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp_min(0)


def sinkhorn(cost: Tensor, epsilon: float, iterations: int = 2000, tolerance: float = 1e-4) -> Tensor:
    """The plan `P` (N, M) with uniform marginals that minimises `<P, cost> + epsilon KL(P | uniform)` (Cuturi, 2013).

    Sinkhorn's iteration on the potentials, in logarithms and float64, until the first marginal is within a relative
    `tolerance`; the second is exact. Raises ValueError for an epsilon that is not positive.
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon must be positive, got {epsilon}: the exact plan is an assignment")
    n, m = cost.shape
    scaled = -cost.detach().double() / epsilon
    f, g = scaled.new_zeros(n), scaled.new_zeros(m)
    for step in range(iterations):
        row = torch.logsumexp(scaled + g, 1) - math.log(m)
        if step % 20 == 1 and bool(((f + row).expm1().abs() < tolerance).all()):
            break
        f = -row
        g = math.log(n) - torch.logsumexp(scaled + f[:, None], 0)
    return (scaled + f[:, None] + g).exp() / (n * m)


def transport_cost(x: Tensor, y: Tensor, epsilon: float = 0.0) -> Tensor:
    """The least mean squared distance that takes the points x (N, *shape) to y (M, *shape); a differentiable scalar.

    epsilon: entropic regularisation as a share of the mean cost: `<P, C> + e KL(P | uniform)` with `e = epsilon mean C`
    held fixed. 0 is exact: an assignment, of up to 4096 points and equal numbers. The gradient is that of `<P, C>` at
    the best plan P (envelope theorem), so it costs no backward pass through the iterations.
    """
    cost = squared_cost(x, y)
    if epsilon == 0:
        if len(x) != len(y):
            raise ValueError(f"without epsilon both sides need as many points, got {len(x)} and {len(y)}")
        return cost.gather(1, assignment(cost)[:, None]).mean()
    scale = epsilon * float(cost.detach().mean())
    if scale == 0:  # all points in one place
        return cost.sum() * 0
    plan = sinkhorn(cost, scale)
    entropy = torch.xlogy(plan, plan * plan.numel()).sum()
    return (plan * cost).sum() + scale * entropy


def sinkhorn_divergence(x: Tensor, y: Tensor, epsilon: float = 0.1) -> Tensor:
    """`W(x, y) - W(x, x) / 2 - W(y, y) / 2` with entropic costs of one epsilon (Genevay et al., 2018).

    A distance of two clouds of points that is zero where they coincide; differentiable in both. epsilon: as a share of
    the mean cost between x and y.
    """
    cost = squared_cost(x, y)
    scale = epsilon * float(cost.detach().mean())
    parts = []
    for one, other in ((x, y), (x, x), (y, y)):
        between = squared_cost(one, other)
        plan = sinkhorn(between, scale)
        parts.append((plan * between).sum() + scale * torch.xlogy(plan, plan * plan.numel()).sum())
    return parts[0] - 0.5 * (parts[1] + parts[2])


def monge_gap(x: Tensor, y: Tensor, epsilon: float = 0.0) -> Tensor:
    """`mean |x_i - y_i|^2 - W(x, y)` for a map's inputs x and outputs y, both (N, *shape): a differentiable scalar.

    At epsilon 0 it is at least 0, and 0 if and only if no exchange of outputs would be cheaper, which every optimal map
    fulfils (cyclical monotonicity; Uscidda and Cuturi, definition 1 and proposition 2). With `epsilon`, a share of the
    mean cost, W is entropic and the gap a lower bound, at least `-log(N) epsilon` times the mean cost.
    """
    if x.shape != y.shape:
        raise ValueError(f"inputs and outputs of a map come in pairs, got {tuple(x.shape)} and {tuple(y.shape)}")
    moved = (x.double() - y.double()).square().flatten(1).sum(1).mean()
    return moved - transport_cost(x, y, epsilon)
