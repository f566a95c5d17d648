"""What a claim is, and how the claims are found.

A file `claims/ROOM/TOPIC.py` answers for methods of `fewstep/ROOM`. It holds a tuple `CLAIMS`.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

from fewstep.core.methods import Method, card, methods

FOLDER = Path(__file__).resolve().parent
P = ParamSpec("P")


@dataclass(frozen=True)
class Outcome:
    """Two figures of one kind: `ours`, the method's, and `theirs`, of what it is held `against`.

    `better` is "low" or "high". `against` names the other method, or says that the figure is a tolerance; `conditions`
    says what was measured and on what, evaluations included. `spread` holds the standard deviations of both figures
    over seeds, where each is a mean of several.

    Raises:
        ValueError: a figure that is not finite, or another word than "low" and "high".
    """

    ours: float
    theirs: float
    against: str
    conditions: str
    better: str = "low"
    unit: str = ""
    spread: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.ours) and math.isfinite(self.theirs)):
            raise ValueError(f"the figures of a claim must be finite, got {self.ours} and {self.theirs}")
        if self.better not in ("low", "high"):
            raise ValueError(f"better is 'low' or 'high', got {self.better!r}")

    @property
    def holds(self) -> bool:
        """Whether ours is strictly better."""
        return self.ours < self.theirs if self.better == "low" else self.ours > self.theirs


Run = Callable[[int], Outcome]


@functools.cache
def card_of(method: str, file: str) -> Method:
    """The card of a claim's method, whose name may have an order (unipc-3); where several kinds have the name, the one
    in the room of the claim's file."""
    several = {found.room for found in methods() if found.name == method}
    return card(method, room=Path(file).parts[1] if len(several) > 1 else None)[0]


@dataclass(frozen=True)
class Claim:
    """A sentence about a registered method and the experiment `run(seed)` that decides it.

    `quick` ones take under two seconds, a shared reference aside, and run in the test suite. Everything random in the
    experiment follows from `seed`. Seeds, sizes and budgets were fixed before the outcome was seen; a claim that does
    not hold stays.
    """

    method: str
    sentence: str
    run: Run
    quick: bool = True
    seed: int = 0
    file: str = ""  # where it was collected from

    @property
    def card(self) -> Method:
        return card_of(self.method, self.file)

    @property
    def name(self) -> str:
        return f"{self.method}: {self.sentence}"


slow = functools.partial(Claim, quick=False)


def files() -> list[Path]:
    """The claim files, in order of their paths."""
    return sorted(path for path in FOLDER.rglob("*.py") if path.parent != FOLDER)


def collect(words: list[str] | None = None) -> list[Claim]:
    """All claims, or those whose method, its file or their own contains one of the words, sorted by these."""
    found: list[Claim] = []
    for path in files():
        module = import_module(".".join(path.relative_to(FOLDER.parent).with_suffix("").parts))
        found += [replace(claim, file=path.relative_to(FOLDER.parent).as_posix()) for claim in module.CLAIMS]
    words = [word.lower() for word in words or []]
    about = {claim.name: f"{claim.method} {claim.card.file} {claim.file}" for claim in found}
    kept = [claim for claim in found if not words or any(word in about[claim.name] for word in words)]
    return sorted(kept, key=lambda claim: (claim.card.file, claim.method, claim.sentence))


def experiment(measure: Callable[Concatenate[int, P], Outcome]) -> Callable[P, Run]:
    """`measure(seed, *row)` as `measure(*row)`, the `run` of a claim: a row of a table says everything but the seed."""

    @functools.wraps(measure)
    def row(*args: P.args, **options: P.kwargs) -> Run:
        return lambda seed: measure(seed, *args, **options)

    return row


def compared(figures: Sequence[float], against: str, conditions: str, better: str = "low", unit: str = "") -> Outcome:
    """Two figures, ours first."""
    ours, theirs = figures
    return Outcome(ours, theirs, against, conditions, better, unit)


def tolerance(worst: float, limit: float, conditions: str, unit: str = "largest error") -> Outcome:
    """A figure against a tolerance."""
    return Outcome(worst, limit, "tolerance", conditions, unit=unit)


@experiment
def over_seeds(
    seed: int, run: Callable[[int], Sequence[float]], against: str, conditions: str, better: str = "low", unit: str = ""
) -> Outcome:
    """`run(seed)` gives both figures; their means over three seeds, with their standard deviations."""
    sides = list(zip(*(map(float, run(number)) for number in (seed, seed + 1, seed + 2)), strict=True))
    (ours, theirs), (first, second) = map(statistics.fmean, sides), map(statistics.stdev, sides)
    return Outcome(ours, theirs, against, f"{conditions}; mean of 3 seeds", better, unit, (first, second))


def thrice(run: Run) -> Run:
    """The experiment on three seeds: means of its figures with their standard deviations, and the first's words."""

    def whole(seed: int) -> Outcome:
        found = [run(number) for number in (seed, seed + 1, seed + 2)]
        sides = [one.ours for one in found], [one.theirs for one in found]
        (ours, theirs), (first, second) = map(statistics.fmean, sides), map(statistics.stdev, sides)
        about = f"{found[0].conditions}; mean of 3 seeds"
        return replace(found[0], ours=ours, theirs=theirs, conditions=about, spread=(first, second))

    return whole


def arms(
    figure: Callable[[Any, int], float], ours: Any, theirs: Any, against: str, conditions: str, better: str = "low",
    unit: str = "",
) -> Run:  # fmt: skip
    """`figure(arm, seed)` of two arms of one training, by name: their means over three seeds."""
    return over_seeds(lambda s: [figure(arm, s) for arm in (ours, theirs)], against, conditions, better, unit)
