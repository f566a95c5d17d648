"""The Plan: what a solver compiles to. A straight-line program of three operations, immutable, and a small file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.core.errors import suggest

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.core.check import Check
    from fewstep.core.denoiser import Denoiser
    from fewstep.core.process import Process
    from fewstep.core.table import Table

FORMAT = "fewstep-plan-1"


@dataclass(frozen=True)
class Evaluate:
    """Evaluate the denoiser on slot `x` at time `t`; `outputs` are the (kind, slot) pairs wanted.

    `scales` are alpha, sigma and their derivatives at t, for the conversion of whatever kind the denoiser predicts.
    """

    x: int
    t: float
    outputs: tuple[tuple[str, int], ...]
    scales: tuple[float, float, float, float]


@dataclass(frozen=True)
class Combine:
    """Slot = sum of coefficient times slot."""

    slot: int
    terms: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Draw:
    """Slot = standard normal noise, draw number `draw` of the sample's stream.

    `span` are the times between which the step adds it, where it is a stretch of the reverse SDE's Brownian path.
    """

    slot: int
    draw: int
    span: tuple[float, float] | None = None


Op = Evaluate | Combine | Draw


@dataclass(frozen=True)
class Plan:
    """A sampling program for one process, solver and grid of times.

    `plan(model, noise, label=3)` runs it; `print(plan)` shows it as a table; `plan.nfe` is the number of network
    evaluations, `plan.times` the grid, decreasing. Slot 0 is the start: `start = (alpha, sigma)` at the first time,
    by which initial noise (and, for a start in the middle, the clean sample) are scaled. `about` says how the plan
    was made (solver, options, rule of the times).
    """

    ops: tuple[Op, ...]
    result: int
    times: tuple[float, ...]
    start: tuple[float, float]
    process: Mapping[str, Any]
    about: Mapping[str, Any] = field(default_factory=dict)

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

    @property
    def name(self) -> str:
        return str(self.about.get("solver", "plan"))

    @cached_property
    def table(self) -> Table:
        """The plan lowered to stages of one evaluation and one fused combination (core/table.py)."""
        from fewstep.core.table import lower

        return lower(self)

    def _operations(self) -> tuple[Op, ...]:
        return self.ops

    def check(self) -> Check:
        """Order, warm-up loss, largest coefficient and stability radius, read off the operations; printable."""
        from fewstep.core.check import check

        return check(self)

    def fits(self, process: Process) -> bool:
        """Whether the plan was made for this process (the same kind and parameters)."""
        if self.__dict__.get("_fitted") is not process:  # remembered: comparing a long table costs more than a step
            if process.config() != dict(self.process):
                return False
            self.__dict__["_fitted"] = process
        return True

    def __call__(self, model: Denoiser, noise: Tensor, **options: Any) -> Tensor:
        """Run and return the samples; the options are those of `fewstep.core.run.run`."""
        return self.run(model, noise, **options).samples

    def run(self, model: Denoiser, noise: Tensor, **options: Any) -> Any:
        """Run and return a `Result`: samples, planned and actual NFE, seconds, the trajectory where asked for."""
        from fewstep.core.run import run

        return run(self, model, noise, **options)

    def __str__(self) -> str:
        """The plan as a table: one row an evaluation, with the state it feeds next as a combination."""
        names, rows, evaluation = {0: "x"}, [], 0
        for op in self.ops:
            if isinstance(op, Draw):
                names[op.slot] = f"z{op.draw}"
            elif isinstance(op, Combine):
                names[op.slot] = "result" if op.slot == self.result else f"x{op.slot}"
                text = " ".join(f"{c:+.6g} {names[slot]}" for slot, c in op.terms)
                rows.append(f"            {names[op.slot]} = {text}")
            else:
                evaluation += 1
                alpha, sigma = op.scales[:2]
                log_snr = math.log(alpha / sigma) if alpha > 0 and sigma > 0 else math.copysign(math.inf, alpha - sigma)
                outputs = ", ".join(f"{kind}{evaluation}" for kind, _ in op.outputs)
                names |= {slot: f"{kind}{evaluation}" for kind, slot in op.outputs}
                rows.append(
                    f"{evaluation:4d}  {outputs} = model({names[op.x]}, t={op.t:.6g})  alpha {alpha:.4g}"
                    f"  sigma {sigma:.4g}  log-SNR {log_snr:.3g}"
                )
        about = ", ".join(f"{key} {value}" for key, value in self.about.items() if not isinstance(value, dict))
        head = f"Plan: {self.nfe} evaluations, {self.process.get('process')} process, {about}"
        return "\n".join([head, *rows])

    def to_json(self) -> str:
        """The plan as JSON text, in which every number is exact (floats round-trip)."""
        ops: list[list[Any]] = []
        for op in self.ops:
            if isinstance(op, Evaluate):
                ops.append(["evaluate", op.x, op.t, [list(pair) for pair in op.outputs], list(op.scales)])
            elif isinstance(op, Combine):
                ops.append(["combine", op.slot, [list(pair) for pair in op.terms]])
            else:
                ops.append(["draw", op.slot, op.draw, list(op.span) if op.span else None])
        return json.dumps(
            {
                "format": FORMAT,
                "about": dict(self.about),
                "process": dict(self.process),
                "times": list(self.times),
                "start": list(self.start),
                "result": self.result,
                "ops": ops,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan of `to_json`. Raises `ValueError` for anything else: missing parts, slots used before they exist."""
        try:
            data = json.loads(text)
            if data.get("format") == "fewstep-banded-plan-1":
                from fewstep.core.banded import Banded

                return Banded.from_json(text)
            if data.get("format") != FORMAT:
                raise ValueError(f"format {data.get('format')!r}, expected {FORMAT!r}")
            plan = cls(
                ops=tuple(_op(entry) for entry in data["ops"]),
                result=int(data["result"]),
                times=tuple(float(t) for t in data["times"]),
                start=(float(data["start"][0]), float(data["start"][1])),
                process=data["process"],
                about=data["about"],
            )
            plan._check()
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(f"not a fewstep plan: {error}") from None
        return plan

    def _check(self) -> None:
        from fewstep.core.prediction import KINDS

        known, states = {0}, {0}  # the network is fed states (the start and combinations), and the result is one
        numbers = [*self.times, *self.start]
        for op in self.ops:
            used: list[int] = []
            if isinstance(op, Evaluate):
                used = [op.x]
            elif isinstance(op, Combine):
                used = [slot for slot, _ in op.terms]
            if unknown := [slot for slot in used if slot not in known]:
                raise ValueError(f"slot {unknown[0]} is used before it is made")
            if isinstance(op, Evaluate):
                if op.x not in states:
                    raise ValueError(f"slot {op.x} is evaluated, but it is no state")
                if other := [kind for kind, _ in op.outputs if kind not in KINDS]:
                    raise suggest("prediction kind", other[0], KINDS)
                numbers.append(op.t)
            elif isinstance(op, Combine):
                states.add(op.slot)
                numbers += [c for _, c in op.terms]
            made = [slot for _, slot in op.outputs] if isinstance(op, Evaluate) else [op.slot]
            if twice := [slot for slot in made if slot in known or made.count(slot) > 1]:
                raise ValueError(f"slot {twice[0]} is made twice")
            known.update(made)
        if self.result not in states:
            what = "no state" if self.result in known else "never made"
            raise ValueError(f"the result, slot {self.result}, is {what}")
        if not all(map(math.isfinite, numbers)):
            raise ValueError("a time or a coefficient is not finite")

    def as_diffusers_scheduler(self, like: Any = None) -> Any:
        """The plan as the scheduler of a diffusers pipeline (`fewstep.hub.diffusers_scheduler`).

        like: the pipeline's present scheduler, which says what the network predicts and is held against the plan's
        process: `pipe.scheduler = plan.as_diffusers_scheduler(pipe.scheduler)`.
        """
        from fewstep.core.methods import find

        return find("diffusers-scheduler", "export")(self, like)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON, under a temporary name first."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(self.to_json(), "utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan; `ValueError` names the file if it is none."""
        try:
            return cls.from_json(Path(path).read_text("utf-8"))
        except (ValueError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: {error}") from None


def _op(entry: list[Any]) -> Op:
    name = entry[0]
    if name == "evaluate":
        _, x, t, outputs, scales = entry
        alpha, sigma, dalpha, dsigma = (float(value) for value in scales)
        return Evaluate(int(x), float(t), tuple((str(k), int(s)) for k, s in outputs), (alpha, sigma, dalpha, dsigma))
    if name == "combine":
        return Combine(int(entry[1]), tuple((int(slot), float(c)) for slot, c in entry[2]))
    if name == "draw":
        _, slot, draw, span = entry
        return Draw(int(slot), int(draw), None if span is None else (float(span[0]), float(span[1])))
    raise ValueError(f"unknown operation {name!r}")
