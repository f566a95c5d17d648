"""Claims of adaptors that stand in for the inside of a UNet: 8 steps of dpmpp-2m, every other evaluation whole."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from claims.caches import UNIT, asked, fresh, model_of, steps_of, words
from claims.common import Claim, Outcome, compared, experiment, frechet, gap, plan, slow, thrice
from claims.parts import Denoiser, Plan
from fewstep.caching.clockwork import Adaptor, clockwork
from fewstep.data.digits import load
from fewstep.training.clockwork import FittedAdaptor, fit_adaptor

NAME, SOLVER, STEPS, PERIOD = "digits", "dpmpp-2m", 8, 2
NOISES, TRAINED, WIDTH, APART = 512, 1500, 24, 1000  # of the fit; its seeds are so far from those of the measurement
N, MANY, STRENGTH = 64, 512, 0.6
ADAPTORS = ("identity", "forecast", "learned")
THERE = "learned there"  # fitted to runs from pictures of the training split, at the same strength
ABOUT = f"{STEPS} steps of {SOLVER}, whole every {PERIOD}, level 1"


@functools.cache
def fitted(seed: int, image: bool = False) -> FittedAdaptor:
    """The adaptor of a seed: of its noises, first weights and batches; image: of its runs from pictures."""
    return fit_adaptor(
        model_of(NAME),
        _plan(STEPS, image),
        fresh(NAME, APART + seed, NOISES),
        steps=TRAINED,
        period=PERIOD,
        width=WIDTH,
        seed=seed,
        **_start(seed, image, NOISES, "train"),
    )


@functools.cache
def _cached(adaptor: str, seed: int) -> Denoiser:
    """The model under a cache, or "whole"."""
    if adaptor == "whole":
        return model_of(NAME)
    learned = adaptor in ("learned", THERE)
    return clockwork(model_of(NAME), PERIOD, adaptor=fitted(seed, adaptor == THERE).adaptor if learned else adaptor)


def _start(seed: int, image: bool, n: int, split: str = "validation") -> dict[str, Any]:
    """What a run starts from: nothing, or digits of a split in an order of the seed; and their labels."""
    if not image:
        return asked(NAME, n)
    pictures, labels = load(split)
    rows = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed))[:n]
    return {"init": pictures[rows], "label": labels[rows]}


def _plan(steps: int, image: bool) -> Plan:
    return plan(model_of(NAME).process, SOLVER, steps, strength=STRENGTH) if image else steps_of(NAME, SOLVER, steps)


@functools.cache
def _drawn(adaptor: str, seed: int, image: bool = False, steps: int = STEPS, n: int = N) -> tuple[Tensor, float]:
    """Samples of a run, and what it cost in whole evaluations."""
    found = _plan(steps, image).run(_cached(adaptor, seed), fresh(NAME, seed, n), seed=seed, **_start(seed, image, n))
    return found.samples, found.report.get("cost", steps)


def _deviation(adaptor: str, seed: int, image: bool) -> float:
    return gap(_drawn(adaptor, seed, image)[0], _drawn("whole", seed, image)[0])


@experiment
def _cheaper(seed: int, adaptor: str) -> Outcome:
    saved = 1 - _drawn(adaptor, seed)[1] / STEPS
    return compared([saved, 0.25], "a quarter", f"digits, {ABOUT}, adaptor {adaptor}", "high", "share of operations")


def _nearer(adaptor: str, image: bool = False) -> Any:
    """Against the whole model in as many steps as cost no less."""

    def measure(seed: int) -> Outcome:
        cost = _drawn(adaptor, seed, image)[1]
        steps = math.ceil(cost - 1e-6)
        rival = gap(_drawn("whole", seed, image, steps)[0], _drawn("whole", seed, image)[0])
        about = f"{_words(image)}, adaptor {adaptor}: {cost:.2f} whole evaluations"
        return compared([_deviation(adaptor, seed, image), rival], f"{steps} whole steps", about, unit=UNIT)

    return thrice(measure)


def _against(ours: str, theirs: str, image: bool = False) -> Any:
    def measure(seed: int) -> Outcome:
        figures = [_deviation(one, seed, image) for one in (ours, theirs)]
        return compared(figures, f"the adaptor {theirs!r}", f"{_words(image)}, adaptor {ours}", unit=UNIT)

    return thrice(measure)


def _words(image: bool) -> str:
    start = f", from digits of the validation split at strength {STRENGTH:g}" if image else ""
    return f"{words(NAME, N)}{start}, {ABOUT}"


def _frechet(adaptor: str, seed: int) -> float:
    return frechet(_drawn(adaptor, seed, n=MANY)[0], load("all")[0], "digits").value


def _closer(ours: str, theirs: str, share: float = 1.0) -> Any:
    def measure(seed: int) -> Outcome:
        figures = [_frechet(ours, seed), share * _frechet(theirs, seed)]
        of = "" if share == 1 else f"{share:g} times that of "
        about = f"{words(NAME, MANY)}, {ABOUT}, adaptor {ours}"
        return compared(figures, of + theirs, about, unit="Frechet distance in the classifier's features")

    return thrice(measure)


@experiment
def _small(seed: int) -> Outcome:
    """What the adaptor costs beside what it replaces, of any weights."""
    kept, shallow = 64, 32  # channels of the digits' network
    arms = [clockwork(model_of(NAME), PERIOD, adaptor=one) for one in ("identity", Adaptor(kept, shallow, WIDTH))]
    without, with_one = (arm.cost(tuple(arm.recipe.parts)) for arm in arms)
    share = (with_one - without) / (1 - without)
    about = f"digits, level 1, width {WIDTH}, against the deeper levels"
    return compared([share, 0.2], "a fifth", about, unit="share of operations")


CLAIMS = (
    *(slow("clockwork", f"saves a quarter of the operations, {adaptor}", _cheaper(adaptor))
      for adaptor in ("identity", "learned")),
    *(slow("clockwork", f"{adaptor} is nearer to the whole run than fewer steps of equal cost{where}",
           _nearer(adaptor, image))
      for image, where in ((False, ""), (True, ", from a picture")) for adaptor in ADAPTORS),
    *(slow("clockwork", f"a learned adaptor is nearer to the whole run than {other}{where}",
           _against("learned", other, image))
      for image, where in ((False, ""), (True, ", from a picture")) for other in ADAPTORS[:2]),
    slow("clockwork", "an adaptor fitted to runs from pictures is nearer there than identity",
         _against(THERE, "identity", True)),
    slow("clockwork", "an adaptor fitted to runs from pictures is nearer there than fewer steps of equal cost",
         _nearer(THERE, True)),
    slow("clockwork", "a learned adaptor brings digits closer to the data than identity",
         _closer("learned", "identity")),
    *(slow("clockwork", f"digits of {adaptor} are within 5 % as close to the data as those of the whole model",
           _closer(adaptor, "whole", 1.05))
      for adaptor in ("identity", "learned")),
    Claim("feature-adaptor", "takes under a fifth of the operations of what it replaces", _small()),
)  # fmt: skip
