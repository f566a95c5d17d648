"""AB-Cache on whole evaluations: those that are left out are forecast from the last ones made, as part of the plan."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from fewstep.caching.forecast import Coordinate, check_coordinate, coordinate_at, nodes, weights
from fewstep.caching.schedule import every as whole_at
from fewstep.caching.schedule import within
from fewstep.core.arguments import check_whole, checked, fits
from fewstep.core.methods import Method
from fewstep.core.ops import Combine, Evaluate, Op, one_level, slots_of
from fewstep.core.plan import Plan, as_plan
from fewstep.core.prediction import coefficients, conversion
from fewstep.core.record import rewrite
from fewstep.core.sampler import Sampler

METHODS = (
    Method(
        "ab-cache",
        kind="rewrite",
        paper="AB-Cache: Training-Free Acceleration of Diffusion Models via Adams-Bashforth Cached Feature Reuse"
        " (Yu et al., 2025)",
        arxiv="2504.10540",
        claim="forecasts skipped evaluations from the last k ones made, with an error of h^k, in any plan",
        use="ab_cache",
    ),
)

Levels = tuple[float, float, float, float]  # alpha, sigma and their derivatives


@checked
def ab_cache(
    plan: Sampler,
    every: int = 2,
    order: int = 3,
    coordinate: str = "own",
    data_std: float | None = None,
    skipped: Collection[int] | None = None,
    start: float = 0.0,
    stop: float = 1.0,
) -> Plan:
    """The plan without some of its evaluations: what they would have said is forecast from the last `order` ones made.

    Evaluation i is left out, and its prediction in the coordinate F becomes `F_i = sum_j w_j F_j` over the last k =
    `order` evaluations made before it, the value at its log-SNR of the polynomial in log-SNR through them. For every
    second one at equal distances that is `F_i-1`, `(3 F_i-1 - F_i-3) / 2`, `(15 F_i-1 - 10 F_i-3 + 3 F_i-5) / 8` for k
    = 1, 2, 3. Where F is smooth, the error falls with the k-th power of the step. The weights depend on the noise
    levels alone, so the skipping is the same for every sample, and the result is a plan again.

    Forecasts are never forecast from, and of several evaluations at one noise level the last counts. Fewer than `order`
    at the beginning make the order that there is. Evaluations at alpha = 0 or sigma = 0, whose log-SNR is infinite, are
    left out of a polynomial; where there are no others, and for a skipped one at such a level, the last evaluation's F
    is reused. A number that the plan gives the network at a skipped evaluation goes with it.

    Args:
        every: the evaluations 0, every, 2 every, ... are made; 1 is the plan itself.
        order: evaluations that a forecast goes through, at least 1. Over wide gaps in a path with noise 1 is best.
        coordinate: what is forecast: "x0", "eps", "v", "velocity", "flow", or "own", the output of a network with
            EDM's preconditioning, `F = (sigma / s x0 - alpha s eps) / sqrt(sigma^2 + alpha^2 s^2)`: unit variance at
            every noise level, and `-v` for s = 1 where alpha^2 + sigma^2 = 1. Where it is not, v and velocity grow with
            the noise, and their forecasts diverge.
        data_std: s, the standard deviation of the data (`model.data_std`), for "own" alone; 1 where it is not known.
        skipped: the numbers of the evaluations to leave out, from 1 to nfe - 1, in place of `every`, start and stop.
        start, stop: the fractions of the run between which evaluations are left out.

    Raises:
        ValueError: numbers outside these ranges; given `skipped`, a start, a stop or an order that no forecast could
            have; an evaluation at which the coordinate says nothing of what the plan wants (eps at alpha = 0, x0 at
            sigma = 0) or is infinite; a sampler without a table.
    """
    made = as_plan(plan)
    every, order = check_whole("every", every), check_whole("order", order)
    s = check_coordinate(coordinate, data_std)
    keys = within(whole_at(every), start, stop)
    chosen = frozenset(i for i in range(1, made.nfe) if not keys(i, made.nfe))
    if skipped is not None:
        if (start, stop) != (0.0, 1.0):
            raise ValueError(f"skipped says which evaluations are left out: no start or stop, got {start} and {stop}")
        chosen = _given(made.nfe, skipped, order)
    if not chosen:
        return made
    about = dict(made.about) | {
        "solver": f"{made.name}, {len(chosen)} skipped",
        "forecast": f"order {order} in {coordinate}" + (f", data_std {s:g}" if coordinate == "own" else ""),
    }
    about.pop("rewritten", None)
    if skipped is None:  # how to do it again on other times (core/check.py)
        options = {"every": every, "order": order, "coordinate": coordinate, "data_std": s}
        options |= {"start": start, "stop": stop}
        about["rewritten"] = {"by": "ab-cache", "from": made.name, "to": about["solver"], "options": options}
    return replace(rewrite(made, lambda band: _forecast(band, chosen, order, coordinate, s)), about=about)


def _given(nfe: int, skipped: Collection[int], order: int) -> frozenset[int]:
    """The numbers of the skipped evaluations, checked."""
    if wrong := [i for i in skipped if not fits(i, int) or not 0 < i < nfe]:
        raise ValueError(f"evaluations 1 to {nfe - 1} can be skipped, not {wrong[0]}")
    chosen = frozenset(map(int, skipped))
    before = max(chosen, default=0) + 1 - len(chosen)
    if chosen and order > before:
        raise ValueError(f"an order of {order} needs as many evaluations before a skipped one, and there are {before}")
    return chosen


def levels_of(op: Evaluate) -> Levels:
    """An evaluation's alpha, sigma and their derivatives; `ValueError` where they differ from band to band."""
    alpha, sigma, dalpha, dsigma = (one_level(scale) for scale in op.scales)
    return alpha, sigma, dalpha, dsigma


def log_snr_of(levels: Levels) -> float:
    """`log(alpha / sigma)`, infinite at alpha = 0 and sigma = 0."""
    alpha, sigma = levels[:2]
    return math.log(alpha / sigma) if alpha > 0 and sigma > 0 else math.copysign(math.inf, alpha - sigma)


def _forecast(plan: Plan, skipped: Collection[int], order: int, coordinate: str, s: float) -> Plan:
    """A plan of plain floats, rewritten: what it wants of a skipped evaluation is put into the combinations that read
    it, as the state there and what is kept of the evaluations before."""
    levels = [levels_of(op) for op in plan.evaluations]
    at = [log_snr_of(level) for level in levels]
    kept = [i for i in range(plan.nfe) if i not in skipped]
    through = {i: nodes([(j, at[j]) for j in kept if j < i], at[i], order) for i in sorted(set(skipped))}
    read = {j for own in through.values() for j, _ in own}
    kind = "v" if coordinate == "own" else coordinate  # finite at every noise level, as is own from it
    fresh = 1 + max([plan.result, *(slot for op in plan.ops for slot in slots_of(op))])
    parts: dict[int, Mapping[int, float]] = {}  # F at an evaluation made, as what is kept of it
    stands: dict[int, Mapping[int, float]] = {}  # for the slots of skipped evaluations
    ops: list[Op] = []
    count = -1
    for op in plan.ops:
        if isinstance(op, Combine):
            if stands.keys() & {slot for slot, _ in op.terms}:
                terms = _sum([(one_level(c), stands.get(slot, {slot: 1.0})) for slot, c in op.terms])
                op = Combine(op.slot, tuple((slot, c) for slot, c in terms.items() if c != 0) or ((0, 0.0),))
            ops.append(op)
        elif not isinstance(op, Evaluate):
            ops.append(op)
        elif (count := count + 1) in through:
            own = zip(weights(through[count], at[count]), through[count], strict=True)
            value = _sum([(w, parts[j]) for w, (j, _) in own])
            for wanted, slot in op.outputs:
                p, q = _converted(
                    coordinate_at(coordinate, *levels[count][:2], s), wanted, levels[count], count, coordinate
                )
                stands[slot] = _sum([(p, {op.x: 1.0}), (q, value)])
        elif count in read:
            outputs = dict(op.outputs)
            if kind not in outputs:
                outputs[kind] = fresh
                fresh += 1
            p, q = _converted(kind, coordinate_at(coordinate, *levels[count][:2], s), levels[count], count, coordinate)
            parts[count] = _sum([(p, {op.x: 1.0}), (q, {outputs[kind]: 1.0})])
            ops.append(replace(op, outputs=tuple(outputs.items())))
        else:
            ops.append(op)
    return replace(plan, ops=tuple(ops))


def _sum(parts: Sequence[tuple[float, Mapping[int, float]]]) -> dict[int, float]:
    """The sum of factors times combinations of slots."""
    total: dict[int, float] = {}
    for factor, terms in parts:
        for slot, c in terms.items():
            total[slot] = total.get(slot, 0.0) + factor * c
    return total


def _converted(
    source: Coordinate[float], target: Coordinate[float], levels: Levels, number: int, coordinate: str
) -> tuple[float, float]:
    """`conversion` at evaluation `number`, between kinds that must be finite there."""
    p = q = math.nan
    with contextlib.suppress(ZeroDivisionError):
        if all(map(math.isfinite, (*coefficients(source, *levels), *coefficients(target, *levels)))):
            p, q = conversion(source, target, *levels)
    if not (math.isfinite(p) and math.isfinite(q)):
        raise ValueError(
            f"evaluation {number} is at alpha = {levels[0]:g} and sigma = {levels[1]:g}, where {coordinate!r} cannot"
            f" be forecast: it says nothing of what the plan wants there, or is infinite"
        )
    return p, q
