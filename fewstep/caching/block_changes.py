"""What block caching goes by: how much each block changes over a plan's evaluations, or how much that matters."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.caching.branches import branches
from fewstep.caching.common import Cached
from fewstep.caching.method import check_alone
from fewstep.caching.recipe import Recipe
from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.core.memory import Memory, ask
from fewstep.core.noise import Noise
from fewstep.core.plan import Plan, as_plan
from fewstep.core.program import Program, program
from fewstep.core.run import check_given
from fewstep.core.sampler import Sampler, begin_run, memory_for, solver_of
from fewstep.networks.surgery import replaced

MEASURES = ("change", "end")


@torch.no_grad()
def calibrate(
    model: Denoiser, plan: Sampler, noises: Tensor, measure: str = "change", **condition: Any
) -> dict[str, Any]:
    """The changes for a cache: `fs.cache(model, "block-caching", delta=0.2, **calibrate(model, plan, noises))`.

    "change" is the paper's, the mean over samples of `|y_n - y_(n-1)|_1 / |y_n|_1`, y what the block adds (Wimbauer et
    al., equation 4), in one run of the plan. "end" is the deviation of the samples, relative to their norm, when the
    block alone stands at evaluation n alone. It tells what matters from what merely changes, and takes half a run for
    every block and evaluation. The first number is 0.

    Args:
        noises: `(B, *shape)` to run from; a handful will do. condition: of the samples.

    Returns:
        `changes` by block, and the `times` and `solver` of the plan that they hold for.

    Raises:
        ValueError: an unknown measure, a cached model, a network that names no blocks, a sampler without a table; under
            guidance, for "change", one whose calls vary in their rows (calibrate the model inside).
    """
    if measure not in MEASURES:
        raise suggest("measure", measure, MEASURES)
    check_alone(model)
    made = as_plan(plan)
    found = (relative_changes if measure == "change" else end_deviations)(model, made, noises, condition)
    return {"changes": found, "times": list(made.moments), "solver": solver_of(made)}


def _dtype(noises: Tensor) -> torch.dtype:
    return torch.float64 if noises.dtype == torch.float64 else torch.float32


def relative_changes(
    model: Denoiser, plan: Plan, noises: Tensor, condition: Mapping[str, Any]
) -> dict[str, list[float]]:
    """From one answer of each block to the next."""
    parts, store, modules = branches(model), dict[str, Tensor](), dict[str, Any]()
    for part in parts.values():
        modules |= part.keeping(model, store)
    graft = replaced(model, modules)
    assert isinstance(graft, Denoiser)
    seen: dict[str, list[Tensor | None]] = {name: [] for name in parts}

    def read(*_: Any) -> None:
        for name, values in seen.items():
            values.append(store.get(name))
        store.clear()  # experts of other times leave nothing

    plan.run(graft, noises, dtype=_dtype(noises), callback=read, **condition)
    return {name: [0.0, *(_change(a, b) for a, b in itertools.pairwise(values))] for name, values in seen.items()}


def _change(old: Tensor | None, new: Tensor | None) -> float:
    """From one answer of a block to the next, 0 where it was not asked."""
    if old is None or new is None:
        return 0.0
    if old.shape != new.shape:
        raise ValueError("the calls of the network vary in their rows: calibrate the model inside the guidance")
    change, size = (value.float().flatten(1).abs().sum(1) for value in (new - old, new))
    return float((change / size.clamp_min(1e-12)).mean())


def end_deviations(model: Denoiser, plan: Plan, noises: Tensor, condition: Mapping[str, Any]) -> dict[str, list[float]]:
    """Of the samples, when one block alone stands at one evaluation alone, by block and evaluation.

    The whole run goes on from evaluation to evaluation, and at each one tries every block: the same run from there on,
    with a memory of its own, after what came before is given to the plan again.
    """
    parts, standing = branches(model), dict[int, tuple[str, ...]]()
    cached = Cached(
        model, Recipe(parts, lambda number, count: standing.get(number, ()), rows=()), ("block-caching", {})
    )
    start, named = begin_run(plan, cached, noises, None, _dtype(noises), condition)
    check_given(plan.table, cached)
    answers: list[tuple[Tensor, str]] = []

    def evaluate(number: int, asked: Any, memory: Memory) -> tuple[Tensor, str]:
        x, t, given = asked
        memory.advance(given=plan.evaluations[number].given)
        answer = ask(cached, x, t, memory, {**named, **given})
        return answer.value, answer.kind

    def run(first: int, memory: Memory) -> Tensor:
        """The samples of a run whose first evaluations are known."""
        steps: Program = program(plan.table, start, Noise(0))
        asked = next(steps)
        for number in range(plan.nfe):
            answer = answers[number] if number < first else evaluate(number, asked, memory)
            if number == len(answers):
                answers.append((answer[0].clone(), answer[1]))
            try:
                asked = steps.send(answer)
            except StopIteration as stop:
                samples: Tensor = stop.value
        return samples

    def remembers() -> Memory:
        memory = memory_for(cached, len(start), condition, plan)
        assert memory is not None
        return memory

    whole = run(0, remembers())
    found = {name: [0.0] for name in parts}
    memory, steps = remembers(), program(plan.table, start, Noise(0))
    asked = next(steps)
    for number in range(plan.nfe - 1):
        evaluate(number, asked, memory)
        asked = steps.send(answers[number])
        for name, values in found.items():
            standing[number + 1] = (name,)
            samples = run(number + 1, memory.fork(number, copy.deepcopy))
            values.append(float((samples.double() - whole.double()).norm() / whole.double().norm()))
        standing.clear()
    return found
