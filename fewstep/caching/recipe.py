"""What a method of caching says of a model: parts, when they stand still, and how they are forecast."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fewstep.caching.forecast import OWN
from fewstep.caching.parts import Part
from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.memory import Memory
from fewstep.core.memory import Part as Rows
from fewstep.networks.surgery import Block

OUTPUT = "output"  # the part that is the whole model: at its evaluations nothing is run
ANSWER = Part(OUTPUT, (), False)
Schedule = Callable[[int, int], Sequence[str]]  # (number, evaluations of the run, 0 if unknown) -> parts that stand


@dataclass(frozen=True)
class Recipe:
    """What a method of caching says of a model: the parts that may stand still, when, and how they are forecast.

    Attributes:
        parts: by name, the whole answer (`ANSWER`) among them.
        order: of the forecasts, one number or one a part.
        never: it leaves nothing out, whatever the run.
        coordinate: in which the output is forecast.
        checks: `(memory)` is called at a run's first evaluation.
        offset: `(memory)` is how many evaluations of the schedule lie before the run's first.
        orders: `(number, part)`, the order of a forecast at an evaluation of the schedule, where that is not `order`;
            nothing stands before so many answers are kept.
        rows: the schedule in words, one an evaluation, of a cache that was calibrated.
        bound: what is known of the deviation from the whole model, of such a cache.
        figures: what else was measured, as JSON.
    """

    parts: Mapping[str, Part]
    schedule: Schedule
    order: int | Mapping[str, int] = 1
    never: bool = False
    coordinate: str = OWN
    checks: Callable[[Memory | Rows], None] | None = None
    offset: Callable[[Memory | Rows], int] | None = None
    orders: Callable[[int, str], int] | None = None
    rows: Sequence[str] | None = None
    bound: Any = None
    figures: Mapping[str, Any] | None = None


def innermost(model: Denoiser, parts: Mapping[str, Part]) -> str:
    """The path of the innermost denoiser that holds the parts, "" for the model itself.

    Of parts without blocks that is the one that wraps no other.
    """
    paths = [part.blocks[-1].path for name, part in parts.items() if name != OUTPUT]
    if not paths:
        at, inner = "", model
        while isinstance(inner, Wrapper) and list(inner.children()) == [inner.model]:
            at, inner = f"{at}.model" if at else "model", inner.model
        return at
    names = paths[0].split(".")
    holders = [".".join(names[:n]) for n in range(1, len(names))]
    found = [holder for holder in holders if isinstance(model.get_submodule(holder), Denoiser)]
    return found[-1] if found else ""


def moved(recipe: Recipe, prefix: str) -> Recipe:
    """The recipe for the denoiser at a path."""

    def block(one: Block) -> Block:
        return replace(one, path=one.path.removeprefix(prefix))

    parts = {name: replace(part, blocks=tuple(map(block, part.blocks))) for name, part in recipe.parts.items()}
    return replace(recipe, parts=parts)
