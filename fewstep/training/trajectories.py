"""A trained model's own runs of a plan, evaluation by evaluation: what something that stands in for a part of it learns
from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.denoiser import Denoiser
from fewstep.core.memory import Memory
from fewstep.core.mode import evaluating
from fewstep.core.model import Model
from fewstep.core.noise import Noise
from fewstep.core.plan import Plan
from fewstep.core.prediction import Prediction
from fewstep.core.program import drive, program
from fewstep.core.run import check_given
from fewstep.core.sampler import begin_run, memory_for, solver_of


@dataclass(frozen=True)
class Visit:
    """One evaluation of a run: its state `(n, *shape)` and time, the conditions, and the answer."""

    x: Tensor
    t: Tensor
    condition: Mapping[str, Any]
    answer: Prediction

    def some(self, rows: Tensor) -> tuple[Tensor, Tensor, dict[str, Any], Tensor]:
        """State, time, conditions and answered value of some of its samples, `(R,)` indices."""
        named = {name: v[rows] if isinstance(v, Tensor) and v.ndim else v for name, v in self.condition.items()}
        return self.x[rows], self.t, named, self.answer.value[rows]


@torch.no_grad()
def visits(
    model: Denoiser,
    plan: Plan,
    noises: Tensor,
    condition: Mapping[str, Any],
    seed: int = 0,
    after: Callable[[], None] | None = None,
) -> list[Visit]:
    """All evaluations of a plan's run from noises `(n, *shape)`; `after` is called after each one.

    Raises:
        ValueError: as the plan's `run`.
    """
    dtype = torch.float64 if noises.dtype == torch.float64 else torch.float32
    x, named = begin_run(plan, model, noises, None, dtype, condition)
    check_given(plan.table, model)
    memory, found = memory_for(model, len(x), condition, plan), list[Visit]()

    def answer(asked: tuple[Tensor, Tensor, Mapping[str, Tensor]]) -> tuple[Tensor, str]:
        state, t, given = asked
        own = {**named, **given}
        if memory is not None:
            memory.advance(given=plan.evaluations[len(found)].given)
        said = model(state, t, memory=memory, **own) if memory is not None else model(state, t, **own)
        found.append(Visit(state.clone(), t.clone(), own, said.replaced(said.value.clone())))
        if after is not None:
            after()
        return said.value, said.kind

    drive(program(plan.table, x, Noise(seed)), answer)
    return found


def again(model: Model, plan: Plan, run: list[Visit], rows: Tensor) -> Iterator[tuple[Prediction, Tensor]]:
    """A model that carries a memory at the states of a run of another, for some of its samples: evaluation by
    evaluation its answer and the other's value. Gradients reach the model through what it remembers as well."""
    memory = Memory(len(rows), plan.moments, plan.times[-1], None, solver_of(plan))
    for number, visit in enumerate(run):
        memory.advance(given=plan.evaluations[number].given)
        x, t, condition, value = visit.some(rows)
        yield model(x, t, memory=memory, **condition), value


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """A model in evaluation mode whose weights ask for no gradient; both are as they were at the end."""
    asked = [p for p in model.parameters() if p.requires_grad]
    with evaluating(model):
        model.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in asked:
                parameter.requires_grad_(True)
