"""Skipping evaluations where a sample's path is smooth: AdaptiveDiffusion's third-order-difference criterion."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from fewstep.caching.ab_cache import ab_cache, levels_of, log_snr_of
from fewstep.caching.forecast import check_coordinate, coordinate_at
from fewstep.core.arguments import check_whole
from fewstep.core.lagrange import lagrange
from fewstep.core.live import Answer, Live, Loop, around
from fewstep.core.methods import Method
from fewstep.core.plan import Plan
from fewstep.core.prediction import conversion
from fewstep.core.sampler import Sampler

METHODS = (
    Method(
        "adaptive-diffusion",
        kind="executor",
        paper="Training-Free Adaptive Diffusion with Bounded Difference Approximation Strategy (Ye et al., 2024)",
        arxiv="2410.09873",
        claim="reuses or forecasts predictions, sample by sample, while the states' third difference is small",
        use="skip",
    ),
)


def reuse(plan: Sampler, skipped: Collection[int]) -> Plan:
    """The plan without some of its evaluations (numbers from 0): the last eps before each is used in its place.

    The same skipping for every sample, so it is a plan again: `ab_cache` of order 1 in eps.

    Raises:
        ValueError: the first evaluation among the skipped, or one at alpha = 0, where eps says nothing about x0.
    """
    return ab_cache(plan, skipped=skipped, order=1, coordinate="eps")


def skip(
    plan: Sampler,
    delta: float = 0.05,
    most: int = 4,
    order: int = 1,
    coordinate: str = "eps",
    data_std: float | None = None,
) -> Loop:
    """A plan that leaves out evaluations where it can (Algorithm 1 of the paper), for every solver.

    A sample's evaluation is skipped, and its last eps used instead, when the last four states that the network was or
    would have been fed (scaled to unit variance, `x / sqrt(alpha^2 + sigma^2)`) satisfy `|third difference| < delta
    |first difference|`, but never more than `most` times in a row, nor among the first three evaluations. The
    decision is each sample's own; a call evaluates those that need it.

    With an order k above 1, which the paper has not, what stands in is the forecast of `fewstep.caching.ab_cache`
    through the sample's own last k evaluations: the polynomial in log-SNR, in a coordinate. None is skipped before k
    evaluations at different levels have been made; those at alpha = 0 or sigma = 0 are always made and forecast from
    never.

    Args:
        order, coordinate, data_std: of what stands in, as in `ab_cache`.

    Returns:
        A loop with the plan's signature. `Result.report` holds `nfe_per_sample` `(B,)` and `skipped` `(evaluations,
        B)`, booleans; `Result.nfe` counts the calls.

    Raises:
        ValueError: a negative delta, `most` or `order` below 1, an unknown coordinate, a plan with no operations.
    """
    if not delta >= 0:
        raise ValueError(f"delta must not be negative, got {delta}")
    most, order = check_whole("most", most), check_whole("order", order)
    s = check_coordinate(coordinate, data_std)
    evaluations = plan.table.evaluations
    scales = [levels_of(e) for e in evaluations]
    kinds = [coordinate_at(coordinate, *level[:2], s) for level in scales]
    at = [log_snr_of(level) for level in scales]
    enough = [order == 1 or len({level for level in at[:i] if math.isfinite(level)}) >= order for i in range(len(at))]

    def known(i: int) -> bool:
        """Whether the coordinate is kept at evaluation i, and may be forecast there."""
        return math.isfinite(at[i]) if order > 1 else scales[i][1] > 0

    def solver(live: Live, play: Callable[[Answer], Tensor]) -> Tensor:
        x = live.start()
        states: list[Tensor] = []
        # Of each sample, oldest first: what is forecast from, and its log-SNRs, not a number where there is none.
        history, last = [torch.zeros_like(x)] * order, ""
        nodes = torch.full((order, len(x)), math.nan, dtype=torch.float64, device=x.device)
        in_a_row = torch.zeros(len(x), dtype=torch.long, device=x.device)
        skipped: list[Tensor] = []

        def forecast(i: int) -> Tensor:
            weights = lagrange(list(nodes), torch.full_like(nodes[0], at[i]))
            parts = [w.to(x.dtype).view(-1, *[1] * (x.ndim - 1)) * f for w, f in zip(weights, history, strict=True)]
            return sum(parts[1:], start=parts[0])

        def keep(i: int, fresh: Tensor, made: Tensor) -> None:
            """The history with what the samples `made` `(B,)` evaluated, in place of one at the same level or else of
            the oldest."""
            old = [*history, fresh], torch.cat([nodes, torch.full_like(nodes[:1], at[i])])
            for j in range(order):
                moved = made & ~(old[1][j + 1 : order] == at[i]).any(0)
                history[j] = torch.where(moved.view(-1, *[1] * (x.ndim - 1)), old[0][j + 1], old[0][j])
                nodes[j] = torch.where(moved, old[1][j + 1], old[1][j])

        def answer(live: Live, i: int, x: Tensor) -> tuple[Tensor, str]:
            nonlocal states, in_a_row, last
            t, kind = evaluations[i].t, last
            given: dict[str, Any] = dict(evaluations[i].given)
            states = [*states[-3:], x / math.hypot(*scales[i][:2])]
            smooth = torch.zeros(len(x), dtype=torch.bool, device=x.device)
            if delta > 0 and len(skipped) >= 3 and enough[i] and (order == 1 or known(i)):
                a, b, c, d = states
                third = (d - 3 * c + 3 * b - a).flatten(1).norm(dim=1)
                smooth = (third < delta * (d - c).flatten(1).norm(dim=1)) & (in_a_row < most)
            in_a_row = torch.where(smooth, in_a_row + 1, 0)
            skipped.append(smooth)
            if not bool(smooth.any()):
                prediction = live.evaluate(x, t, **given)
                kind, value = prediction.kind, prediction.value
            else:  # reading from the device which samples to evaluate is what saves the evaluations
                p, q = conversion(kinds[i], kind, *scales[i])
                value = p * x + q * forecast(i)
                rows = (~smooth).nonzero().squeeze(1)
                if len(rows):
                    value[rows] = live.evaluate(x[rows], t, rows, **given).value
            if known(i):
                p, q = conversion(kind, kinds[i], *scales[i])
                keep(i, p * x + q * value, ~smooth)
            last = kind
            return value, kind

        samples = play(answer)
        live.report["skipped"] = torch.stack(skipped)
        return samples

    forecasts = f", order {order} in {coordinate}" if order > 1 or coordinate != "eps" else ""
    return around(plan, f"skipping {delta:g}{forecasts}", solver)
