"""From names to a plan: `fs.plan(process, "dpmpp-2m", steps=8, timesteps="karras")`."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from fewstep.core.arguments import checked
from fewstep.core.bands import Bands
from fewstep.core.live import Loop
from fewstep.core.methods import Method, card, made, methods
from fewstep.core.plan import Plan, as_plan
from fewstep.core.process import Process
from fewstep.core.record import record
from fewstep.core.sampler import Sampler
from fewstep.processes.shifted import Shifted
from fewstep.sampling.auto import SDE, automatic, automatic_sde
from fewstep.sampling.tell import tell
from fewstep.timesteps.grid import check_times, make_times

DEFAULT_TIMES = "log-snr"
ADAPTIVE_STEPS = 1000


class _Clock(Shifted):
    """The shifted clock, cut where it would leave the process: from the process's first noise level to its last, or to
    `t_min` where a clock cannot reach that level (a table ends there)."""

    @property
    def t_max(self) -> float:  # type: ignore[override]
        log_snr = self.base.log_snr(self.base.t_max)
        return self.time(log_snr) if math.isfinite(log_snr) else self.base.t_max

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return max(self.base.t_min, self.time(self.base.log_snr(self.base.t_min)))


@checked
def plan(
    process: Process,
    solver: str | Callable[..., Any] | None = None,
    steps: int | None = None,
    timesteps: str | Sequence[float] | Callable[..., list[float]] | None = None,
    *,
    nfe: int | None = None,
    end: str = "zero",
    strength: float = 1.0,
    shift: float | None = None,
    guidance: float | Sequence[float | None] | None = None,
    **options: Any,
) -> Sampler:
    """A plan: a solver on a grid of times, traced for one process.

    Args:
        solver: a method's name (`fewstep methods` lists them; `unipc-3` is `unipc` of order 3), or a function
            `(trace, process, times, **options) -> Value`. None or "auto" takes what does best over many kinds of
            models: a universal plan, which places its evaluations itself, or a hand-made one
            (`fewstep.sampling.auto`); its options are `data_std` and `spectrum`, where they are known. "auto-sde" takes
            what does best with fresh noise at every step.
        steps: intervals of the grid (where no solver is named, evaluations); or give `nfe` instead: the largest plan
            with at most that many evaluations.
        timesteps: a rule's name, a function, or an explicit list of decreasing times (then `steps` is not needed); the
            solver's own, or "log-snr", by default.
        end: "zero" ends at the clean sample, "min" at the process's smallest noise.
        strength: start in the middle (image-to-image), at the noise level where this share of the rule's grid is left,
            counted in ever more steps: the same level for every number of steps, all of which lie below it. An explicit
            list is entered at that share of its steps, and so has fewer.
        shift: resolution shift of the grid (`Shifted`), not of the process the network was trained on.
        guidance: a guidance scale that the plan passes to the model (`fs.guide`) at its evaluations, one for all or one
            for each; None leaves the model's own. 1 is no guidance, in a call of half the rows.
        **options: the solver's own (order, eta, variant, ...).

    Raises:
        ValueError: unknown names (close ones offered), times that do not decrease, fewer steps than the solver needs.
    """
    if guidance is not None:
        rest: dict[str, Any] = {"nfe": nfe, "end": end, "strength": strength, "shift": shift, **options}
        return tell(plan(process, solver, steps, timesteps, **rest), guidance=guidance)
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be above 0 and at most 1, got {strength}")
    if solver is None or isinstance(solver, str) and solver == "auto":
        whole = timesteps is None and strength == 1.0 and shift is None
        n = steps if steps is not None else nfe
        solver, named, own = automatic(process, n, whole, options)
        timesteps = named if timesteps is None else timesteps
        if n and nfe is None and (timesteps is None or isinstance(timesteps, str) or callable(timesteps)):
            steps, nfe = None, n  # whatever the solver, as many evaluations
        return plan(process, solver, steps, timesteps, nfe=nfe, end=end, strength=strength, shift=shift, **own)
    if isinstance(solver, str) and solver == SDE:
        solver, named = automatic_sde(steps if steps is not None else nfe)
        whole = timesteps is None and strength == 1.0 and shift is None
        timesteps = named if whole else timesteps
    method = card(solver, "solver")[0] if isinstance(solver, str) else None
    own_times = method.facts.get("own_times") if method is not None else None
    if method is not None and own_times:
        if timesteps is not None or strength != 1.0 or shift is not None:
            raise ValueError(
                f"{solver!r} places its evaluations itself, from noise to data: leave timesteps, strength and shift out"
            )
        timesteps = _own_rule(method, own_times, options)
    elif timesteps is None:
        timesteps = DEFAULT_TIMES
    explicit = not isinstance(timesteps, str) and not callable(timesteps)
    if explicit:
        if steps is not None and steps != len(timesteps) - 1:  # type: ignore[arg-type]
            raise ValueError(f"{len(timesteps)} times are {len(timesteps) - 1} steps, but steps={steps}")  # type: ignore[arg-type]
        if nfe is not None:
            raise ValueError("explicit times fix the evaluations: give either timesteps as a list or nfe")
        steps = len(timesteps) - 1  # type: ignore[arg-type]
    elif method is not None and method.facts.get("adaptive"):
        if steps is not None or nfe is not None:
            raise ValueError(f"{solver!r} chooses its own steps: give it a tolerance instead of steps or nfe")
        steps = ADAPTIVE_STEPS  # of the grid, of which it uses only the two ends
    elif (steps is None) == (nfe is None):
        raise ValueError("give either steps or nfe")
    elif nfe is not None:
        rule = None if own_times else timesteps
        return _within(process, solver, nfe, rule, end=end, strength=strength, shift=shift, **options)
    assert steps is not None

    function = made("solver", solver, 3, **options) if isinstance(solver, str) else solver
    name = solver if isinstance(solver, str) else getattr(solver, "__name__", "solver")
    if shift is None or explicit:
        if explicit and shift is not None:
            raise ValueError("explicit times are used as they stand: shift them yourself, or name a rule")
        times = make_times(process, steps, timesteps, end, strength)
    else:
        if isinstance(process, Shifted):
            raise ValueError(f"the process is already shifted by {process.shift}: a shift is applied exactly once")
        shifted = _Clock(process, shift)
        times = make_times(shifted, steps, timesteps, end, strength)
        ends = {shifted.t_max: process.t_max, shifted.t_min: process.t_min, process.t_zero: process.t_zero}
        outer = ends.keys() & {times[0], times[-1]}
        times = [ends[t] if t in outer else process.time(shifted.log_snr(t)) for t in times]
        times = check_times(process, times)
    rule = (
        timesteps if isinstance(timesteps, str) else "explicit" if explicit else getattr(timesteps, "__name__", "rule")
    )
    about: dict[str, Any] = {"solver": name, "timesteps": rule, "steps": len(times) - 1, "end": end}
    about |= {key: value for key, value in (("shift", shift), ("strength", strength)) if value not in (None, 1.0)}
    about |= {"options": options} if options else {}
    facts = method.facts if method is not None else {}
    if not facts.get("live"):
        return record(function, process, times, options, about)
    adaptive = facts.get("adaptive")
    if isinstance(process, Bands):
        raise ValueError(f"{name!r} reads one noise level a step, but {process.name!r} has one for every element")
    most = options.get("max_nfe", inspect.signature(function).parameters["max_nfe"].default) if adaptive else None
    start = process.alpha(times[0]), process.sigma(times[0])
    noisy = bool(facts.get("stochastic"))
    return Loop(function, tuple(times), start, process.config(), about, options, most, noisy)


def _own_rule(method: Method, name: str, options: Mapping[str, Any]) -> Callable[..., list[float]]:
    """The times of a solver that brings its own, as a rule of its name."""
    place = getattr(import_module(method.module), name)

    def rule(process: Process, steps: int, end: str = "zero") -> list[float]:
        times: list[float] = place(process, steps, end, **options)
        return times

    rule.__name__ = method.name
    return rule


def fixed_plan(process: Process, *arguments: Any, **options: Any) -> Plan:
    """`plan`, where only a plan is accepted: `ValueError` for a solver that depends on the data as it runs."""
    return as_plan(plan(process, *arguments, **options))


def _within(process: Process, solver: Any, nfe: int, timesteps: Any, **rest: Any) -> Sampler:
    """The plan with the most steps that needs at most `nfe` evaluations."""
    if isinstance(nfe, bool) or int(nfe) != nfe or nfe < 1:
        raise ValueError(f"nfe must be a whole number of at least 1, got {nfe!r}")
    make = functools.partial(plan, process, solver, timesteps=timesteps, **rest)
    steps = int(nfe)
    candidate = make(steps=steps)
    while candidate.nfe > nfe:
        if steps == 1:
            name = solver if isinstance(solver, str) else getattr(solver, "__name__", "the solver")
            raise ValueError(f"{name!r} needs at least {candidate.nfe} evaluations, got nfe={nfe}")
        steps = max(1, min(steps - 1, steps * nfe // candidate.nfe))
        candidate = make(steps=steps)
    # Evaluations never fall as steps grow; the bound is for a solver that needs fewer than one per step.
    while steps < nfe + 1:
        try:
            larger = make(steps=steps + 1)
        except ValueError:  # a rule that cannot place more
            return candidate
        if larger.nfe > nfe:
            return candidate
        candidate, steps = larger, steps + 1
    return candidate


@functools.cache
def solver_names(live: bool = False) -> tuple[str, ...]:
    """Every solver for any model on any times, orders spelt out: those that make a plan, or the `live` ones, which
    depend on the data as they run. Not those for models that are told where a step goes (`to`) or draw (`latent`)."""
    names: list[str] = []
    for method in methods("solver"):
        facts = method.facts
        if bool(facts.get("live")) != live or any(facts.get(own) for own in ("own_times", "to", "latent")):
            continue
        orders = facts.get("orders")
        names += [f"{method.name}-{p}" for p in orders] if orders else [method.name]
    return tuple(names)
