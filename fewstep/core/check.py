"""What can be read off a plan's numbers: order, warm-up, coefficients, stability. `print(plan.check())`."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np

from fewstep.core.methods import card, find, order
from fewstep.core.ops import Combine, Draw, Evaluate, Number, Op, in_band, play
from fewstep.core.process import Process, process_from_config
from fewstep.core.trace import Trace

Array = np.ndarray[Any, Any]
STEPS = (48, 96, 192)  # of the grids on which orders are measured
LOW, HIGH = -math.log(3), -math.log(0.1)  # their log-SNRs
GROWTH = 1 + 1e-9


@dataclass(frozen=True)
class Check:
    """A plan's properties.

    order: of the plan's solver on its process, measured on a one-dimensional mixture as steps are halved; `steady` is
        the order of single steps from an exact history, and `warm_up_loss` the difference: what the start costs. None
        where the solver is not known by name, or draws noise.
    largest: the largest coefficient with which a prediction (as x0) enters any state; `gain` is the sum of the
        magnitudes of those that make up the result: 1 for an average; above 1, errors of the network are amplified.
    off_level: the largest difference between the noise level of a state and the one at which it is evaluated.
    stability: the largest k for which no state of the linear problem `d(x / alpha) / d(log-SNR) = -k x / alpha`
        (predictions `eps = k x / sigma`) exceeds the four before it, for all problems up to k (from 0.01 on). At k =
        1 the model is exact for data at a single point; guidance and errors of the network make it larger.
    """

    solver: str
    nfe: int
    stated: str | None
    order: float | None
    steady: float | None
    largest: float
    gain: float
    off_level: float
    stability: float

    @property
    def warm_up_loss(self) -> float | None:
        """Orders lost at the start: 0 where the start is as good as the rest."""
        return None if self.order is None or self.steady is None else max(0.0, round(self.steady - self.order, 1))

    def __str__(self) -> str:
        def number(value: float | None) -> str:
            return "unknown" if value is None else f"{value:.2f}"

        stated = f", stated {self.stated}" if self.stated else ""
        return "\n".join(
            (
                f"{self.solver}, {self.nfe} evaluations",
                f"  order                measured {number(self.order)}, single steps {number(self.steady)}{stated}",
                f"  warm-up loss         {number(self.warm_up_loss)}",
                f"  largest coefficient  {self.largest:.3g} of a prediction, {self.gain:.3g} in all in the result",
                f"  off its noise level  {self.off_level:.2g}",
                f"  stability radius     {self.stability:.3g}",
            )
        )


def check(plan: Program) -> Check:
    """Read a plan's properties off its operations."""
    order, steady = _orders(plan)
    largest, gain, off = _coefficients(plan)
    return Check(plan.name, plan.nfe, _stated(plan.name), order, steady, largest, gain, off, stability(plan))


class Program(Protocol):
    """What a check reads of a plan, all of whose numbers are floats."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def ops(self) -> tuple[Op, ...]: ...
    @property
    def result(self) -> int: ...
    @property
    def times(self) -> tuple[float, ...]: ...
    @property
    def start(self) -> tuple[Number, Number]: ...
    @property
    def process(self) -> Mapping[str, Any]: ...
    @property
    def about(self) -> Mapping[str, Any]: ...
    @property
    def name(self) -> str: ...
    @property
    def nfe(self) -> int: ...
    @property
    def stochastic(self) -> bool: ...
    @property
    def evaluations(self) -> tuple[Evaluate, ...]: ...


P = TypeVar("P", bound=Program)


def _level(numbers: tuple[Number, ...]) -> tuple[float, float]:
    """(alpha, sigma) of a start or of scales."""
    return in_band(numbers[0], 0), in_band(numbers[1], 0)


def _play(
    plan: Program, start: Array, answer: Callable[[Evaluate, Array], Array], draw: Callable[[Draw], Array]
) -> Iterator[tuple[Combine, dict[int, Array]]]:
    """The plan's operations on arrays, `answer` giving x0 at an evaluation; yields after each combination, whose value
    may be replaced."""
    values = {0: start}
    for op in play(plan.ops, values, lambda op, x: ("x0", answer(op, x)), draw):
        yield op, values


def levels(plan: Program) -> dict[int, tuple[float, float]]:
    """The (alpha, sigma) of the start and every combination, if the predictions were exact."""
    draws = sum(isinstance(op, Draw) for op in plan.ops)
    start = np.zeros(2 + draws)
    start[:2] = _level(plan.start)
    clean, found = np.eye(1, 2 + draws)[0], {0: _level(plan.start)}
    columns = {op.draw: 2 + k for k, op in enumerate(op for op in plan.ops if isinstance(op, Draw))}
    for op, values in _play(plan, start, lambda op, x: clean, lambda op: np.eye(2 + draws)[columns[op.draw]]):
        found[op.slot] = (float(values[op.slot][0]), float(np.linalg.norm(values[op.slot][1:])))
    return found


def grid_states(plan: Program) -> list[tuple[int, tuple[float, float]]]:
    """The state at each time of the grid, as (slot, (alpha, sigma)), from the start on: the last one there,
    where a solver predicts, evaluates and corrects. States between those times are left out."""
    process = process_from_config(dict(plan.process))
    grid = {_log_snr(process.alpha(t), process.sigma(t)) for t in plan.times}
    meant = {e.x: _level(e.scales) for e in plan.evaluations}  # where a state is meant to be
    meant[plan.result] = (process.alpha(plan.times[-1]), process.sigma(plan.times[-1]))
    at: dict[float, tuple[int, tuple[float, float]]] = {}
    for slot, (alpha, sigma) in (levels(plan) | meant).items():
        if (value := _log_snr(alpha, sigma)) in grid:
            at[value] = (slot, (alpha, sigma))
    return [at[value] for value in sorted(at)]


def _log_snr(alpha: float, sigma: float) -> float:
    if alpha > 1e-12 and sigma > 1e-12:
        return round(math.log(alpha / sigma), 7)
    return math.inf if alpha > sigma else -math.inf


def _stated(name: str) -> str | None:
    try:
        stated = order(*card(name, "solver"))
    except ValueError:
        return None
    return None if stated is None else str(stated)


# The problem on which orders are measured: three narrow-to-broad components on the line, 24 starts.
WEIGHTS, MEANS, VARIANCES = np.array([0.3, 0.5, 0.2]), np.array([-0.9, 0.2, 1.0]), np.array([0.16, 0.25, 0.3])


def _x0(alpha: float, sigma: float, x: Array) -> Array:
    """The posterior mean of the clean sample."""
    spread = alpha**2 * VARIANCES + sigma**2
    away = x[:, None] - alpha * MEANS
    log = np.log(WEIGHTS) - 0.5 * np.log(spread) - 0.5 * away**2 / spread
    share = np.exp(log - log.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    return np.sum(share * (MEANS + alpha * VARIANCES / spread * away), 1)


def _grid(process: Process, n: int) -> list[float]:
    return [process.time(float(value)) for value in np.linspace(LOW, HIGH, n + 1)]


@functools.lru_cache(maxsize=16)
def _exact(config: str, n: int) -> tuple[Process, list[float], Array]:
    """The process, its grid of n steps, and the exact states there, `(n + 1, 24)`."""
    from scipy.integrate import solve_ivp

    process = process_from_config(json.loads(config))
    times = _grid(process, n)
    span = np.linspace(LOW, HIGH, n + 1)

    def slope(log_snr: float, y: Array) -> Array:  # of y = x / sigma: d y / d log_snr = alpha x0 / sigma
        ratio = math.exp(log_snr)
        return ratio * _x0(ratio, 1.0, y)

    # In y = x / sigma the problem depends on alpha / sigma alone: x0(alpha, sigma, x) = x0(alpha / sigma, 1, y).
    start = np.linspace(-2.2, 2.2, 24)
    solved = solve_ivp(slope, (LOW, HIGH), start, "DOP853", t_eval=span, rtol=1e-13, atol=1e-13)
    sigma = np.array([process.sigma(t) for t in times])
    return process, times, solved.y.T * sigma[:, None]


def _orders(plan: Program) -> tuple[float | None, float | None]:
    """The measured order of the plan's solver, and that of its single steps."""
    try:
        how = plan.about.get("rewritten", {})
        again = how.get("to") == plan.name  # unless something else was done to it afterwards
        function = find(how["from"] if again else plan.name, "solver")
        if plan.stochastic:
            return None, None
        errors, defects = [], []
        for n in STEPS:
            process, times, exact = _exact(json.dumps(dict(plan.process), sort_keys=True), n)
            traced = Trace(process)
            ops, result = traced.program(function(traced, process, times, **plan.about.get("options", {})))
            start_at = process.alpha(times[0]), process.sigma(times[0])
            solved = replace(plan, ops=ops, result=result, times=tuple(times), start=start_at)
            made = find(how["by"], "rewrite")(solved, **how["options"]) if again else solved
            start = exact[0]
            ends = list(_play(made, start, lambda op, x: _x0(*_level(op.scales), x), _no_draw))
            errors.append(float(np.abs(ends[-1][1][made.result] - exact[-1]).max()))
            defects.append(_defect(made, solved, times, exact))
    except (ValueError, TypeError, ArithmeticError, LookupError):
        return None, None  # not a solver by name, options that it no longer takes, or a table without these levels

    def slope(values: list[float]) -> float | None:
        pairs = [(a, b) for a, b in zip(values, values[1:], strict=False) if a > 1e-12 and b > 1e-12]
        return math.log2(pairs[-1][0] / pairs[-1][1]) if pairs else None

    steady = slope(defects)
    return slope(errors), None if steady is None else steady - 1


def _no_draw(op: Draw) -> Array:
    raise ValueError("a plan that draws noise has no order")


def _defect(plan: Program, solved: Program, times: list[float], exact: Array) -> float:
    """The median error of single steps in the second half, each from exact states at the grid's times; where these are
    is read off the plan as it was `solved`, before a rewrite that leaves out evaluations."""
    states = grid_states(solved)
    at = {slot: k for k, (slot, _) in enumerate(states)}
    if len(states) != len(times):
        raise ValueError("a state is on no noise level of the grid")
    # States computed earlier at the same level (predictions to be corrected) are exact, too, where they are read.
    of_level = {level: k for k, (_, level) in enumerate(states)}
    every = {slot: of_level[level] for slot, level in levels(solved).items() if level in of_level} | at
    errors = {}
    for op, values in _play(plan, exact[0], lambda op, x: _x0(*_level(op.scales), x), _no_draw):
        if (k := every.get(op.slot)) is not None:
            if op.slot in at:
                errors[k] = float(np.abs(values[op.slot] - exact[k]).max())
            values[op.slot] = exact[k]
    late = [error for k, error in errors.items() if k > len(times) // 2]
    return float(np.median(late)) if late else 0.0


def _coefficients(plan: Program) -> tuple[float, float, float]:
    """Largest coefficient of a prediction, the result's sum of magnitudes, and the largest miss of a noise level."""
    n, draws = plan.nfe, sum(isinstance(op, Draw) for op in plan.ops)
    start, count, largest = np.zeros(1 + n + draws), iter(range(1, 1 + n)), 0.0
    start[0] = 1.0
    columns = {op.draw: 1 + n + k for k, op in enumerate(op for op in plan.ops if isinstance(op, Draw))}
    rows: dict[int, Array] = {}
    for op, values in _play(
        plan,
        start,
        lambda op, x: np.eye(1 + n + draws)[next(count)],
        lambda op: np.eye(1 + n + draws)[columns[op.draw]],
    ):
        rows[op.slot] = values[op.slot]
        largest = max(largest, float(np.abs(values[op.slot][1 : 1 + n]).max()))
    found = levels(plan)
    off = max((max(abs(found[e.x][i] - _level(e.scales)[i]) for i in (0, 1)) for e in plan.evaluations), default=0.0)
    result = rows.get(plan.result, start)
    return largest, float(np.abs(result[1 : 1 + n]).sum()), off


def amplification(plan: Program, k: Array, last: int | None = None) -> Array:
    """How far any state of `d(x / alpha) / d(log-SNR) = -k x / alpha` exceeds the four before it, for each k (real or
    complex): at most 1 where the plan is stable. Noise that the plan draws is left out. With `last`, only that
    many states at the end count, which the start no longer affects."""
    k = np.asarray(k, dtype=complex)
    size: list[Array] = []

    def answer(op: Evaluate, x: Array) -> Array:
        alpha = _level(op.scales)[0]
        return (1 - k) * x / alpha if alpha > 0 else np.zeros_like(x)  # at alpha = 0: eps = x / sigma

    # At sigma = 0 the problem's solution is 0, and any remainder looks large; at alpha = 0 it is infinite.
    found = {slot: alpha for slot, (alpha, sigma) in grid_states(plan) if alpha > 0 and sigma > 0}
    with np.errstate(over="ignore", invalid="ignore"):
        for op, values in _play(plan, np.ones(k.shape, complex), answer, lambda op: np.zeros(k.shape, complex)):
            if op.slot in found:
                size.append(np.abs(values[op.slot]) / found[op.slot])
        worst = np.zeros(k.shape)
        for i in range(1 if last is None else max(1, len(size) - last), len(size)):
            before = np.max(size[max(0, i - 4) : i], axis=0)
            worst = np.fmax(worst, np.where(np.isfinite(size[i]), size[i], np.inf) / np.maximum(before, 1e-300))
    return worst


def stability(plan: Program) -> float:
    """The stability radius: see `Check`; at most 1000."""
    k = np.geomspace(0.01, 1000.0, 4001)
    stable = amplification(plan, k) <= GROWTH
    return 0.0 if not stable[0] else float(k[-1] if stable.all() else k[np.argmin(stable) - 1])
