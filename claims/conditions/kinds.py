"""Claims of the kinds of condition: what is wrong is refused where a cast lets it through, and they save as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from claims.common import Claim, Outcome, compared, experiment, tolerance
from fewstep.conditions.degraded import Degraded
from fewstep.conditions.label import Label
from fewstep.conditions.latent import Latent
from fewstep.conditions.negative import Negative
from fewstep.conditions.number import Number
from fewstep.conditions.picture import Picture
from fewstep.conditions.text import Text
from fewstep.conditions.time import Time
from fewstep.core.condition import Condition
from fewstep.core.config import built, config

BATCH, CPU, NAN = 4, torch.device("cpu"), float("nan")
WORDS = ("a", "red", "blue", "circle", "square")


def _accepted(check: Callable[[Any], Tensor], values: Sequence[Any]) -> int:
    count = 0
    for value in values:
        with suppress(ValueError, TypeError, RuntimeError):
            check(value)
            count += 1
    return count


@experiment
def _refused(seed: int, kind: Condition, cast: Callable[[Any], Tensor], what: str, wrong: Sequence[Any]) -> Outcome:
    """How many wrong values get through the check and through a cast to the tensor's shape."""
    figures = [_accepted(way, wrong) for way in (lambda value: kind.check("given", value, BATCH, CPU), cast)]
    return compared(figures, what, f"{len(wrong)} wrong values for {kind}, batch of {BATCH}", unit="values accepted")


@experiment
def _again(seed: int, kind: Condition, right: Sequence[Any]) -> Outcome:
    """The kind written as JSON and read back, on right values."""
    again = built(json.loads(json.dumps(config(kind))))
    pairs = [[one.check("given", value, BATCH, CPU) for one in (kind, again)] for value in right]
    lost = sum(not torch.equal(*pair) for pair in pairs) + (again != kind)
    return tolerance(lost, 0.5, f"{len(right)} values for {kind}, batch of {BATCH}", "values that differ")


def _words(caption: str) -> Tensor:
    """A lookup that knows no errors: words it does not have are empty, what is too long is cut."""
    row = [WORDS.index(word) + 1 if word in WORDS else 0 for word in caption.split()][:4]
    return torch.tensor(row + [0] * (4 - len(row))).expand(BATCH, 4)


ROWS: tuple[tuple[str, Condition, Callable[[Any], Tensor], str, list[Any], list[Any]], ...] = (
    ("label", Label(10), lambda value: torch.as_tensor(value).long().expand(BATCH), "a cast to whole numbers",
     [-1, 10, 2.5, True, [0, 1, 2, 11], [1.0, 2.0, 3.0, 4.0], [0, 1]], [3, None, [0, 1, 2, 9]]),
    ("negative", Negative(Label(10), 4), lambda value: torch.as_tensor(value).long().expand(BATCH),
     "a cast to whole numbers", [-1, 10, 2.5, True, [0, 1, 2, 11], [1.0, 2.0, 3.0, 4.0], [0, 1]],
     [3, None, [0, 1, 2, 9]]),
    ("number", Number(0.0, 10.0), lambda value: torch.as_tensor(value, dtype=torch.float32).expand(BATCH),
     "a cast to float32", [NAN, float("inf"), -0.1, 10.5, True, [1.0, NAN, 2.0, 3.0], [1.0, 2.0]],
     [0, 10.0, [1, 2, 3, 4.5]]),
    ("time", Time(0.0, 1.0), lambda value: torch.as_tensor(value, dtype=torch.float64).expand(BATCH),
     "a cast to float64", [NAN, float("inf"), -0.1, 1.5, True, [1.0, NAN, 0.5, 0.25], [1.0, 0.5]],
     [0, 1.0, [1, 0.5, 0.25, 0.125]]),
    ("latent", Latent(3), lambda value: torch.as_tensor(value, dtype=torch.float32).expand(BATCH, 3),
     "a cast to float32", [[1.0, NAN, 2.0], 1.0, True, [1.0, 2.0], [[1.0, 2.0, 3.0]] * 3],
     [[1, 2, 3], [[1, 2, 3]] * 4]),
    ("picture", Picture((1, 2, 2)), lambda value: torch.as_tensor(value).float().expand(BATCH, 1, 2, 2),
     "a cast to float32 and to the shape",
     [torch.zeros(1, 2, 1), torch.zeros(2), torch.zeros(()), torch.zeros(1, 2, 2).long(), 0.0, torch.zeros(3, 1, 2, 2)],
     [torch.ones(1, 2, 2), torch.ones(4, 1, 2, 2), torch.ones(1, 1, 2, 2)]),
    ("degraded", Degraded(data=(1, 4, 4), operator="downsample:2"),
     lambda value: torch.as_tensor(value).float().expand(BATCH, 1, 2, 2), "a cast to float32 and to the shape",
     [torch.zeros(1, 2, 1), torch.zeros(2), torch.zeros(()), torch.zeros(1, 2, 2).long(), 0.0, torch.zeros(3, 1, 2, 2)],
     [torch.ones(1, 2, 2), torch.ones(4, 1, 2, 2), torch.ones(1, 4, 4), torch.ones(4, 1, 4, 4)]),
    ("text", Text(WORDS, 4), _words, "a lookup that leaves out what it does not know",
     ["a green circle", "a circel", "a red circle a blue square", "redcircle"], ["a red circle", None, "", ["a"] * 4]),
)  # fmt: skip

CLAIMS = (
    *(Claim(name, "wrong values are refused that a cast lets through", _refused(kind, cast, what, wrong))
      for name, kind, cast, what, wrong, _ in ROWS),
    *(Claim(name, "is the same kind after JSON", _again(kind, right)) for name, kind, *_, right in ROWS),
)  # fmt: skip
