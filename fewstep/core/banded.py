"""Plans for processes whose noise level differs from element to element (core/bands.py).

A solver's coefficients are then one number a band: the solver is traced once for each, and the programs, alike but for
their numbers, are run as one on coefficients of the sample's shape.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NoReturn

import torch
from torch import Tensor

from fewstep.core.bands import Bands
from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise, Source
from fewstep.core.plan import Combine, Draw, Evaluate, Plan
from fewstep.core.prediction import Prediction, conversion
from fewstep.core.process import Process, Time
from fewstep.core.run import Callback, Result, _bar, begin_run, check_answer
from fewstep.core.trace import Solver, Trace

BANDED = "fewstep-banded-plan-1"


class _Follow(Process):
    """A band that takes the times which a solver works out from the clock, so that all bands are evaluated together.

    `process.time(x)` of a number is noted in `log`, or answered from `given`, what the clock said at that point.
    """

    name = "follow"

    def __init__(self, band: Process, given: Sequence[float] | None = None):
        self.band, self.given = band, None if given is None else iter(given)
        self.log: list[float] = []
        self.t_min, self.t_max, self.t_zero = band.t_min, band.t_max, band.t_zero

    def _apply(self, name: str, t: Time) -> Time:
        if name != "_time" or isinstance(t, Tensor):
            return self.band._apply(name, t)
        value = self.band._apply(name, t) if self.given is None else next(self.given, math.nan)
        self.log.append(value)
        return value

    @property
    def table_steps(self) -> int | None:
        return self.band.table_steps

    def config(self) -> dict[str, Any]:
        return self.band.config()


def record_bands(
    solver: Solver, process: Bands, times: Sequence[float], options: dict[str, Any], about: dict[str, Any]
) -> Banded:
    """Trace a solver on each band.

    Times that a solver places itself, between those of the grid, are the clock's for all bands. Single-step solvers of
    order 3 and above assume where in log-SNR those times lie, so under bands of different schedules they are of order
    2; multistep solvers look, and keep their order.
    """

    def trace(band: Process) -> Plan:
        traced = Trace(band)
        return traced.plan(solver(traced, band, list(times), **options), times, about)

    def all_bands(one: Callable[[Process], Plan]) -> tuple[Plan, ...]:
        known: dict[Process, Plan] = {}
        return tuple(known[band] if band in known else known.setdefault(band, one(band)) for band in process.bands)

    clock = _Follow(process.clock)
    first = trace(clock)
    parts = all_bands(trace)
    grids = [[op.t for op in part.evaluations] for part in (first, *parts)]
    if any(grid != grids[0] for grid in grids):
        parts = all_bands(lambda band: trace(_Follow(band, clock.log)))
    made = Banded(
        first.ops,
        first.result,
        first.times,
        first.start,
        process.config(),
        about,
        parts=parts,
        index=process.index,
        shape=process.shape,
    )
    _ = made.steps  # the programs must be alike: seen now rather than when it runs
    return made


Key = tuple[Any, ...]


@dataclass(frozen=True)
class Step:
    """One operation of all bands. Slots are named by what they are: ("state", number), ("draw", number),
    (kind, evaluation). `bands` `(K, numbers)` holds a combination's coefficients, or an evaluation's scales."""

    op: Evaluate | Combine | Draw
    slot: Key
    terms: tuple[Key, ...]
    bands: tuple[tuple[float, ...], ...] = ()
    wanted: tuple[frozenset[str], ...] = ()  # kinds that each band reads of an evaluation
    freed: tuple[Key, ...] = ()


@dataclass(frozen=True)
class Banded(Plan):
    """A plan for a process with bands: `parts` are the bands' own plans, of which the inherited fields are the clock's.

    It runs, prints, saves and loads as any plan. It has no table: executors that take one apart refuse it.
    """

    parts: tuple[Plan, ...] = field(kw_only=True)
    index: tuple[int, ...] = field(kw_only=True)
    shape: tuple[int, ...] = field(kw_only=True)

    @cached_property
    def table(self) -> NoReturn:  # type: ignore[override]
        raise ValueError(
            f"a plan for {len(self.parts)} bands of noise levels has coefficients for every element and so no table:"
            " run it with plan.run"
        )

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The parts as one program, with what each step frees; `ValueError` where the parts are not alike."""
        programs = list({id(part): part for part in self.parts}.values())  # equal bands share a plan
        number = {id(part): n for n, part in enumerate(programs)}
        columns = [number[id(part)] for part in self.parts]
        rows = list(zip(*(_named(part) for part in programs), strict=False))
        if any(len(part.ops) != len(self.parts[0].ops) for part in programs):
            raise _unlike(self.name)
        merged = []
        for row in rows:
            lead = row[0]
            same = [(type(step.op), step.slot, getattr(step.op, "t", None)) for step in row]
            if any(entry != same[0] for entry in same):
                raise _unlike(self.name)
            if isinstance(lead.op, Evaluate):
                if any(step.terms != lead.terms for step in row):
                    raise _unlike(self.name)
                bands, wanted, terms = [s.bands[0] for s in row], [s.wanted[0] for s in row], lead.terms
            else:
                wanted = []
                terms = tuple(dict.fromkeys(term for step in row for term in step.terms))
                given = [dict(zip(step.terms, step.bands[0] if step.bands else (), strict=False)) for step in row]
                bands = [tuple(own.get(term, 0.0) for term in terms) for own in given]
            spread = tuple(bands[c] for c in columns)
            merged.append(Step(lead.op, lead.slot, terms, spread, tuple(wanted[c] for c in columns) if wanted else ()))
        return _with_lifetimes(merged, _result(self.parts[0]))

    @cached_property
    def _tensors(self) -> dict[Key, list[Tensor]]:
        return {}

    def _gather(self, key: Key, columns: Callable[[], list[list[float]]], like: Tensor) -> list[Tensor]:
        """Numbers of the bands, a list a column, as tensors `(1, *shape)`; one transfer, then cached."""
        key = (*key, like.device, like.dtype)
        if key not in self._tensors:
            numbers = columns()
            values = torch.tensor(numbers, dtype=torch.float64).reshape(len(numbers), len(self.parts))
            spread = values[:, torch.tensor(self.index)].reshape(-1, 1, *self.shape)
            self._tensors[key] = list(spread.to(like.device, like.dtype).unbind())
        return self._tensors[key]

    def _weights(self, like: Tensor) -> Iterator[Tensor]:
        """The coefficients of all combinations, in order."""

        def columns() -> list[list[float]]:
            combined = [step for step in self.steps if isinstance(step.op, Combine)]
            return [[band[j] for band in step.bands] for step in combined for j in range(len(step.terms))]

        return iter(self._gather(("weights",), columns, like))

    def _conversions(self, source: str, like: Tensor) -> dict[Key, tuple[Tensor, Tensor]]:
        """P and Q of every prediction that is read, for a network that predicts `source`."""
        evaluated = [step for step in self.steps if isinstance(step.op, Evaluate)]
        keys = [(step, kind) for step in evaluated for kind in sorted(frozenset().union(*step.wanted) - {source})]

        def columns() -> list[list[float]]:
            found: list[list[float]] = []
            for step, kind in keys:
                # A band that does not read this kind, which it may not be able to say, gets zeros.
                pairs = [
                    _pair(source, kind, scales, step.op) if kind in wanted else (0.0, 0.0)
                    for scales, wanted in zip(step.bands, step.wanted, strict=True)
                ]
                found += [[p for p, _ in pairs], [q for _, q in pairs]]
            return found

        flat = self._gather(("conversions", source), columns, like)
        return {(kind, step.slot[1]): (flat[2 * i], flat[2 * i + 1]) for i, (step, kind) in enumerate(keys)}

    @torch.no_grad()
    def run(
        self,
        model: Denoiser,
        noise: Tensor,
        *,
        seed: int = 0,
        first: int = 0,
        init: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        callback: Callback | None = None,
        progress: bool = False,
        trajectory: bool = False,
        source: Source | None = None,
        **condition: Any,
    ) -> Result:
        """As `fewstep.core.run.run`."""
        begin = time.perf_counter()
        _, named = begin_run(self, model, noise, init, dtype, condition)
        if tuple(noise.shape[1:]) != self.shape:
            raise ValueError(f"the plan is for samples of shape {self.shape}, got noise of shape {tuple(noise.shape)}")
        x = noise.to(dtype)
        alpha, sigma = self._gather(("start",), lambda: [[part.start[i] for part in self.parts] for i in (0, 1)], x)
        x = x * sigma if init is None else x * sigma + init.to(dtype) * alpha
        kept: list[Tensor] = []
        with _bar(progress, self) as advance:

            def watch(count: int, t: float, state: Tensor, prediction: Prediction) -> None:
                if trajectory:
                    kept.append(state.clone())
                if callback is not None:
                    callback(count, t, state, prediction)
                if advance is not None:
                    advance()

            drawn = source or Noise(seed, first)
            samples = self._execute(model, x, drawn, named, watch)
        if not math.isfinite(float(samples.sum())) and not bool(torch.isfinite(samples).all()):
            self._execute(model, x, drawn, named, _blame)
            raise ValueError("the samples are not finite, although every answer of the network is")
        if trajectory:
            kept.append(samples)
        return Result(samples, self.nfe, self.nfe, time.perf_counter() - begin, tuple(kept))

    def _execute(
        self, model: Denoiser, x: Tensor, source: Source, condition: Mapping[str, Tensor], watch: Callback
    ) -> Tensor:
        times = torch.tensor([op.t for op in self.evaluations], dtype=x.dtype, device=x.device).unbind()
        weights, count = self._weights(x), 0
        slots: dict[Key, Tensor] = {("state", 0): x}
        for step in self.steps:
            if isinstance(step.op, Evaluate):
                state = slots[step.terms[0]]
                prediction = model(state, times[count], **condition)
                count += 1
                if prediction.value.shape != state.shape:
                    check_answer(prediction.value, state, count, step.op.t)
                watch(count, step.op.t, state, prediction)
                value = prediction.value.to(x.dtype)
                conversions = self._conversions(prediction.kind, x)
                for kind in frozenset().union(*step.wanted):
                    key = (kind, step.slot[1])
                    if kind == prediction.kind:
                        slots[key] = value
                    else:
                        p, q = conversions[key]
                        slots[key] = torch.addcmul(p * state, q, value)
            elif isinstance(step.op, Draw):
                slots[step.slot] = source.normal(step.op.draw, tuple(x.shape), x.device, x.dtype)
            else:
                made = torch.zeros_like(x)
                for term in step.terms:
                    made.addcmul_(next(weights), slots[term])
                slots[step.slot] = made
            for key in step.freed:
                slots.pop(key, None)
        return slots[_result(self.parts[0])]

    def __str__(self) -> str:
        head, *rows = super().__str__().split("\n")
        return "\n".join([f"{head}; {len(self.parts)} bands, of which the clock's:", *rows])

    def to_json(self) -> str:
        """The plan as JSON text: the clock's, and those of the bands."""
        return json.dumps(
            {
                "format": BANDED,
                "clock": json.loads(super().to_json()),
                "parts": [json.loads(part.to_json()) for part in self.parts],
                "index": list(self.index),
                "shape": list(self.shape),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Banded:
        """The plan of `to_json`; `ValueError` for anything else."""
        try:
            data = json.loads(text)
            if data.get("format") != BANDED:
                raise ValueError(f"format {data.get('format')!r}, expected {BANDED!r}")
            clock, *parts = (Plan.from_json(json.dumps(entry)) for entry in (data["clock"], *data["parts"]))
            index, shape = (tuple(int(n) for n in data[name]) for name in ("index", "shape"))
            if not parts or len(index) != math.prod(shape) or not all(0 <= i < len(parts) for i in index):
                raise ValueError(f"{len(parts)} bands, {len(index)} elements and shape {shape} do not fit each other")
            same: dict[str, Plan] = {}
            made = cls(
                clock.ops,
                clock.result,
                clock.times,
                clock.start,
                clock.process,
                clock.about,
                parts=tuple(same.setdefault(part.to_json(), part) for part in parts),
                index=index,
                shape=shape,
            )
            _ = made.steps
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a fewstep plan: {error}") from None
        return made


def _unlike(name: str) -> ValueError:
    return ValueError(
        f"the solver {name!r} does different things under the bands' processes (other evaluations, states or noise),"
        " so they cannot run as one: another solver, or bands that are pure noise and clean at the same times"
    )


def _named(part: Plan) -> list[Step]:
    """The operations with named slots. Names do not depend on which kinds of prediction were asked for."""
    names: dict[int, Key] = {0: ("state", 0)}
    read = {slot for op in part.ops if isinstance(op, Combine) for slot, _ in op.terms}
    steps, states, evaluations = [], 0, 0
    for op in part.ops:
        if isinstance(op, Evaluate):
            evaluations += 1
            names |= {slot: (kind, evaluations) for kind, slot in op.outputs}
            kinds = frozenset(kind for kind, slot in op.outputs if slot in read)
            steps.append(Step(op, ("evaluation", evaluations), (names[op.x],), (op.scales,), (kinds,)))
        elif isinstance(op, Draw):
            names[op.slot] = ("draw", op.draw)
            steps.append(Step(op, names[op.slot], ()))
        else:
            states += 1
            names[op.slot] = ("state", states)
            terms = tuple(names[slot] for slot, _ in op.terms)
            steps.append(Step(op, names[op.slot], terms, (tuple(c for _, c in op.terms),)))
    return steps


def _result(part: Plan) -> Key:
    """The name of the result's slot."""
    states = [0, *(op.slot for op in part.ops if isinstance(op, Combine))]
    return ("state", states.index(part.result))


def _with_lifetimes(steps: Sequence[Step], result: Key) -> tuple[Step, ...]:
    """Each step with the slots that nobody reads after it."""
    seen, found = {result}, []
    for step in reversed(steps):
        made = [(kind, step.slot[1]) for kind in frozenset().union(*step.wanted)] if step.wanted else [step.slot]
        freed = tuple(key for key in dict.fromkeys((*step.terms, *made)) if key not in seen)
        seen.update(step.terms)
        seen.update(made)
        found.append(Step(step.op, step.slot, step.terms, step.bands, step.wanted, freed))
    return tuple(reversed(found))


def _pair(source: str, kind: str, scales: tuple[float, ...], op: Any) -> tuple[float, float]:
    alpha, sigma, dalpha, dsigma = scales
    try:
        return conversion(source, kind, alpha, sigma, dalpha, dsigma)
    except ZeroDivisionError:
        raise ValueError(
            f"a prediction of {source!r} says nothing about {kind!r} at t = {op.t:g}, where a band has"
            f" alpha = {alpha:g} and sigma = {sigma:g}: it must predict v, velocity or x0 to start from pure noise,"
            " or start a little later"
        ) from None


def _blame(count: int, t: float, x: Tensor, prediction: Prediction) -> None:
    if not bool(torch.isfinite(prediction.value).all()):
        what = "received" if not bool(torch.isfinite(x).all()) else "returned"
        raise ValueError(f"the network {what} values that are not finite at evaluation {count}, t = {t:.6g}")
