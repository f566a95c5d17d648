"""The Plan: what a solver compiles to. A straight-line program of three operations, immutable, and a small file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from fewstep.core.arguments import checked
from fewstep.core.bands import Bands
from fewstep.core.check import Check, check
from fewstep.core.files import read_text, write
from fewstep.core.methods import find
from fewstep.core.model import Callback
from fewstep.core.ops import (
    Combine,
    Draw,
    Evaluate,
    Number,
    Op,
    Spread,
    check_program,
    in_band,
    merge,
    number_from_json,
    number_to_json,
    op_from_json,
    op_to_json,
    per_band,
    program_of,
    told,
)
from fewstep.core.process import process_from_config
from fewstep.core.run import blame, execute
from fewstep.core.sampler import Run, Sampler
from fewstep.core.table import Table, lower
from fewstep.core.words import number_of

# The second holds numbers per band, or numbers given to the network; the third was the format of plans with bands.
FORMAT, FURTHER, BANDED = "fewstep-plan-1", "fewstep-plan-2", "fewstep-banded-plan-1"


@dataclass(frozen=True)
class Plan(Sampler):
    """A sampling program for one process, solver and grid of times.

    `plan(model, noise, label=3)` runs it; `print(plan)` shows it as a table; `plan.nfe` is the number of network
    evaluations, `plan.times` the grid, decreasing. Slot 0 is the start: `start = (alpha, sigma)` at the first time,
    by which the initial noise (and, for a start in the middle, the clean sample) is scaled. `about` says how the plan
    was made (solver, options, rule of the times). `spread` says which elements have which of the plan's numbers, for a
    process with bands of noise levels; None where the numbers are floats.
    """

    ops: tuple[Op, ...]
    result: int
    times: tuple[float, ...]
    start: tuple[Number, Number]
    process: Mapping[str, Any]
    about: Mapping[str, Any] = field(default_factory=dict)
    spread: Spread | None = None

    @cached_property
    def evaluations(self) -> tuple[Evaluate, ...]:
        return tuple(op for op in self.ops if isinstance(op, Evaluate))

    @property
    def nfe(self) -> int:
        """Network evaluations of one run."""
        return len(self.evaluations)

    @property
    def stochastic(self) -> bool:
        return any(isinstance(op, Draw) for op in self.ops)

    @cached_property
    def table(self) -> Table:
        """The plan lowered to stages of one evaluation and one fused combination (core/table.py)."""
        return lower(self.ops, self.result, self.spread)

    def band(self, number: int) -> Plan:
        """The plan of one band alone, whose numbers are floats; the plan itself where it has no bands."""
        if self.spread is None:
            return self
        process = process_from_config(dict(self.process))
        assert isinstance(process, Bands)
        start = in_band(self.start[0], number), in_band(self.start[1], number)
        config = process.bands[number].config()
        return replace(self, ops=program_of(self.ops, number), start=start, process=config, spread=None)

    def check(self) -> Check:
        """Order, warm-up loss, largest coefficient and stability radius, read off the operations; printable.

        Those of the first band, where there are several.
        """
        return check(self.band(0))

    @property
    def moments(self) -> tuple[float, ...]:
        return tuple(op.t for op in self.evaluations)

    def execute(self, run: Run) -> tuple[Tensor, int]:
        return execute(self.table, run)

    def blame(self, again: Callable[[Callback], Run]) -> ValueError:
        return blame(self.table, again)

    def __str__(self) -> str:
        """The plan as a table: one row per evaluation, with the state it feeds next as a combination."""
        names, rows, evaluation = {0: "x"}, [], 0
        for op in self.ops:
            if isinstance(op, Draw):
                names[op.slot] = f"z{op.draw}"
            elif isinstance(op, Combine):
                names[op.slot] = "result" if op.slot == self.result else f"x{op.slot}"
                text = " ".join(f"{in_band(c, 0):+.6g} {names[slot]}" for slot, c in op.terms)
                rows.append(f"            {names[op.slot]} = {text}")
            else:
                evaluation += 1
                alpha, sigma = (in_band(scale, 0) for scale in op.scales[:2])
                log_snr = math.log(alpha / sigma) if alpha > 0 and sigma > 0 else math.copysign(math.inf, alpha - sigma)
                outputs = ", ".join(f"{kind}{evaluation}" for kind, _ in op.outputs)
                names |= {slot: f"{kind}{evaluation}" for kind, slot in op.outputs}
                given = "".join(f", {name}={value:.6g}" for name, value in op.given)
                given += "" if op.latent is None else f", latent={names[op.latent]}"
                rows.append(
                    f"{evaluation:4d}  {outputs} = model({names[op.x]}, t={op.t:.6g}{given})  alpha {alpha:.4g}"
                    f"  sigma {sigma:.4g}  log-SNR {log_snr:.3g}"
                )
        about = ", ".join(f"{key} {value}" for key, value in self.about.items() if not isinstance(value, dict))
        head = f"Plan: {number_of(self.nfe, 'evaluation')}, {self.process.get('process')} process, {about}"
        head += f"; {self.spread.bands} bands, of which the first:" if self.spread else ""
        return "\n".join([head, *rows])

    def to_json(self) -> str:
        """The plan as JSON text, in which every number is exact (floats round-trip)."""
        data: dict[str, Any] = {
            "format": FURTHER if self.spread or any(told(op) for op in self.evaluations) else FORMAT,
            "about": dict(self.about),
            "process": dict(self.process),
            "times": list(self.times),
            "start": [number_to_json(number) for number in self.start],
            "result": self.result,
            "ops": [op_to_json(op) for op in self.ops],
        }
        if self.spread:
            data["spread"] = {
                "index": list(self.spread.index),
                "shape": list(self.spread.shape),
                "bands": self.spread.bands,
            }
        return json.dumps(data)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan of `to_json`. Raises `ValueError` for anything else: missing parts, slots used before they exist."""
        try:
            return cls._from_data(json.loads(text))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
            raise ValueError(f"not a fewstep plan: {error}") from None

    @classmethod
    def _from_data(cls, data: dict[str, Any]) -> Plan:
        if data.get("format") == BANDED:
            clock, *bands = (cls._from_data(entry) for entry in (data["clock"], *data["parts"]))
            ops, result = merge([(band.ops, band.result) for band in bands], clock.name)
            alpha, sigma = (per_band([in_band(band.start[i], 0) for band in bands]) for i in (0, 1))
            spread = Spread(tuple(map(int, data["index"])), tuple(map(int, data["shape"])), len(bands))
            return cls(ops, result, clock.times, (alpha, sigma), clock.process, clock.about, spread)
        if data.get("format") not in (FORMAT, FURTHER):
            raise ValueError(f"format {data.get('format')!r}, expected {FORMAT!r} or {FURTHER!r}")
        shape = data.get("spread")
        plan = cls(
            ops=tuple(op_from_json(entry) for entry in data["ops"]),
            result=int(data["result"]),
            times=tuple(float(t) for t in data["times"]),
            start=(number_from_json(data["start"][0]), number_from_json(data["start"][1])),
            process=data["process"],
            about=data["about"],
            spread=Spread(tuple(map(int, shape["index"])), tuple(map(int, shape["shape"])), int(shape["bands"]))
            if shape
            else None,
        )
        check_program(plan.ops, plan.result, plan.times, plan.start, plan.spread.bands if plan.spread else None)
        return plan

    def as_diffusers_scheduler(self, like: Any = None) -> Any:
        """The plan as the scheduler of a diffusers pipeline (`fewstep.hub.diffusers_scheduler`).

        like: the pipeline's present scheduler, which states what the network predicts and is checked against the plan's
        process: `pipe.scheduler = plan.as_diffusers_scheduler(pipe.scheduler)`.
        """
        return find("diffusers-scheduler", "export")(self, like)

    @checked
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON, whole or not at all."""
        write(path, self.to_json())

    @classmethod
    @checked
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan; `ValueError` names the file if it is none, or cannot be read."""
        try:
            return cls.from_json(read_text(path))
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def as_plan(sampler: Sampler) -> Plan:
    """The sampler, where its operations are needed; `ValueError` unless it is a plan."""
    if not isinstance(sampler, Plan):
        raise ValueError(f"{sampler.name!r} has no table; only a plan has")
    return sampler
