"""What a method of caching says of a model: parts, when they stand still, and how they are forecast."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from fewstep.caching.ahead import Ahead
from fewstep.caching.dynamic import Gate
from fewstep.caching.forecast import OWN
from fewstep.caching.parts import Part
from fewstep.core.denoiser import Denoiser
from fewstep.core.memory import Memory
from fewstep.core.memory import Part as Rows
from fewstep.networks.surgery import Block

OUTPUT = "output"  # the part that is the whole model: at its evaluations nothing is run
ANSWER = Part(OUTPUT, (), False)
Schedule = Callable[[int, int], Sequence[str]]  # (number, evaluations of the run, 0 if unknown) -> parts that stand


@dataclass(frozen=True)
class Bound:
    """A tolerance that holds for a share of fresh samples, as sure as `sure`, whatever the law of the errors.

    The deviations of `noises` exchangeable noises were measured; the least one that at least the share lie below with
    this confidence is `value`, infinite where so few noises cannot tell.
    """

    value: float
    share: float
    sure: float
    noises: int

    def __str__(self) -> str:
        of = f"{10 * self.share:g} of 10" if (10 * self.share).is_integer() else f"{self.share:.0%}"
        return f"{self.sure:.0%} sure: {of} fresh samples within {self.value:.2g}"


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
        adjust: `(key, value, [(evaluation of the schedule, rows), ...])` is what stands in the place of a forecast.
        ahead: a part whose answers for later evaluations are made at an earlier one.
        gate: what decides for each sample whether its part, which the schedule lets stand, does.
        around: what else changes in a model that has the network inside, such as its guidance: `(model) -> model`.
        adaptor: what a part that stands makes of what is kept of it: `(kept, shallow, noise) -> feature`
            (`parts.Adapted`).
        most_bytes: that may be kept in a run; None for any number.
        bound: what is known of the deviation from the whole model, where the cache was found for an error.
        figures: what else was measured then, as JSON.
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
    adjust: Callable[[str, Tensor, Sequence[tuple[int, int]]], Tensor] = lambda key, value, at: value
    ahead: Ahead | None = None
    gate: Gate | None = None
    around: Callable[[Denoiser], Denoiser] | None = None
    adaptor: nn.Module | None = None
    most_bytes: int | None = None
    bound: Bound | None = None
    figures: Mapping[str, Any] | None = None


def moved(recipe: Recipe, prefix: str) -> Recipe:
    """The recipe for the denoiser at a path."""

    def block(one: Block) -> Block:
        return replace(one, path=one.path.removeprefix(prefix))

    parts = {name: replace(part, blocks=tuple(map(block, part.blocks))) for name, part in recipe.parts.items()}
    return replace(recipe, parts=parts)
