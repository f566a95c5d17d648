"""Claims of caches that are found for an error: what is told before, what comes out, and what it costs.

Twelve settings: two solvers of twenty steps, three models and two errors. What is measured on is fresh: noises of
another stream than those that the search has seen, with conditions as it draws them.
"""

from __future__ import annotations

import functools
import itertools
import time

from torch import Tensor

from claims.caches import ASKED, UNIT, asked, fewer, model_of, run, steps_of, whole, words
from claims.common import Outcome, compared, experiment, gap, slow
from claims.parts import Denoiser
from fewstep.caching.common import Cached
from fewstep.metrics.caption_accuracy import caption_accuracy
from fewstep.metrics.digits_classifier import digits_classifier
from fewstep.searching.cache_budget import each_deviation, find_budget
from fewstep.searching.cache_edges import deviation

N, MANY, STEPS, AWAY = 64, 500, 20, 1000  # noises, noises of the bound, steps, and how far fresh seeds are from others
MODELS, SOLVERS, ERRORS = ("digits", "digits-dit", ASKED), ("ddim", "dpmpp-2m"), (0.02, 0.005)
SETTINGS = tuple(itertools.product(MODELS, SOLVERS, ERRORS))
CAPTIONS = 96


@functools.cache
def found(name: str, solver: str, error: float, seed: int) -> Cached:
    return find_budget(model_of(name), error, steps_of(name, solver, STEPS), seed=seed)


@functools.cache
def _apart(name: str, solver: str, error: float, seed: int, n: int) -> Tensor:
    """Each fresh sample's deviation."""
    made = run(found(name, solver, error, seed), name, steps_of(name, solver, STEPS), seed + AWAY, n)
    return each_deviation(made.samples, whole(name, solver, STEPS, seed + AWAY, n))


@functools.cache
def _fresh(name: str, solver: str, error: float, seed: int) -> float:
    made = run(found(name, solver, error, seed), name, steps_of(name, solver, STEPS), seed + AWAY, N)
    return deviation(made.samples, whole(name, solver, STEPS, seed + AWAY, N))


ABOUT = f"{len(SETTINGS)} settings: digits, digits-dit, shapes with captions; {', '.join(SOLVERS)} in {STEPS} steps"
ABOUT += "; errors of 0.02 and 0.005"


@experiment
def _told(seed: int, key: str, words_: str) -> Outcome:
    """In how many settings a figure of the search is within a factor of 1.5 of the deviation of fresh samples."""
    near = 0
    for name, solver, error in SETTINGS:
        told, fresh = float((found(name, solver, error, seed).figures or {})[key]), _fresh(name, solver, error, seed)
        near += max(told / fresh, fresh / told) <= 1.5
    about = f"{words_}, against {N} fresh noises; {ABOUT}"
    return compared([near, 10.5], "at least 11 of 12", about, "high", "settings within a factor of 1.5")


@experiment
def _kept(seed: int) -> Outcome:
    """The largest excess of the fresh deviation over what was asked, in what the deviations' spread allows."""
    worst = -float("inf")
    for name, solver, error in SETTINGS:
        apart = _apart(name, solver, error, seed, MANY)
        spread = float(apart.square().std() / (2 * error * N**0.5))  # of the root mean square of so many noises
        worst = max(worst, (_fresh(name, solver, error, seed) - error) / spread)
    about = f"deviation of {N} fresh noises less the error asked, in standard errors of the former; {ABOUT}"
    return compared([worst, 2.0], "two standard errors", about, unit="largest excess")


@experiment
def _covers(seed: int) -> Outcome:
    shares = []
    for name, solver, error in SETTINGS:
        bound = found(name, solver, error, seed).bound.value
        shares.append(float((_apart(name, solver, error, seed, MANY) <= bound).double().mean()))
    about = f"bounds for 0.9 of the samples, 95 % sure, from 100 noises; {ABOUT}"
    return compared([min(shares), 0.87], "at least 0.87 everywhere", about, "high", f"least share of {MANY} covered")


@experiment
def _nearer(seed: int, name: str, solver: str, error: float) -> Outcome:
    figures = found(name, solver, error, seed).figures or {}
    count, rival = fewer(name, solver, figures["cost"], seed + AWAY, N)
    reference = whole(name, solver, STEPS, seed + AWAY, N)
    ours = [_fresh(name, solver, error, seed), gap(rival, reference)]
    about = f"{words(name, N)}, {STEPS} steps of {solver}, an error of {error:g} asked: {figures['cost']:.1f} whole"
    return compared(ours, f"{count} steps of the solver, no cheaper", f"{about} evaluations", unit=UNIT)


@functools.cache
def _half(name: str, seed: int) -> tuple[Cached, Denoiser]:
    from fewstep.searching.cache_budget import within_cost

    made = within_cost(model_of(name), steps_of(name, "ddim", STEPS), STEPS / 2, seed, 0)
    assert made is not None
    return made, model_of(name)


@experiment
def _guided(seed: int) -> Outcome:
    """Half of the evaluations of guided digits."""
    name = "digits guided"
    made = run(_half(name, seed)[0], name, steps_of(name, "ddim", STEPS), seed + AWAY, N)
    off = gap(made.samples, whole(name, "ddim", STEPS, seed + AWAY, N))
    about = f"{words(name, N)}, {STEPS} steps of ddim, {made.report['cost']:.1f} whole evaluations"
    return compared([off, 0.04], "at most 0.04", about, unit=UNIT)


@experiment
def _classes(seed: int) -> Outcome:
    """The share of guided digits whose class the classifier reads as asked, cached less whole, in standard errors."""
    name, n = "digits guided", 360
    made = run(_half(name, seed)[0], name, steps_of(name, "ddim", STEPS), seed + AWAY, n)
    labels = asked(name, n)["label"]
    shares = [
        float((digits_classifier()(x).argmax(1) == labels).double().mean())
        for x in (made.samples, whole(name, "ddim", STEPS, seed + AWAY, n))
    ]
    error = max((shares[1] * (1 - shares[1]) / n) ** 0.5, 1 / n)
    about = f"{words(name, n)}, half of the evaluations of {STEPS} steps of ddim: {shares[0]:.3f} and {shares[1]:.3f}"
    return compared([abs(shares[0] - shares[1]) / error, 2.0], "two standard errors", about, unit="difference")


@functools.cache
def _scenes(seed: int) -> tuple[float, float, float]:
    """Guided shapes with captions: accuracy cached and whole, and the cached run's share of the seconds."""
    name = "shapes guided"
    least, read = [float("inf")] * 2, [0.0] * 2
    for _ in range(2):
        for i, model in enumerate(_half(name, seed)):
            begin = time.process_time()
            x = run(model, name, steps_of(name, "ddim", STEPS), seed + AWAY, CAPTIONS).samples
            least[i] = min(least[i], time.process_time() - begin)
            read[i] = float(caption_accuracy(x, asked(name, CAPTIONS)["text"]).value)
    return read[0], read[1], least[0] / least[1]


@experiment
def _captions(seed: int) -> Outcome:
    ours, theirs, share = _scenes(seed)
    about = f"{words('shapes guided', CAPTIONS)}, {STEPS} steps of ddim, half of the evaluations: {ours:.3f}, whole"
    about += f" {theirs:.3f}, in {share:.2f} of the seconds"
    return compared([theirs - ours, 0.03], "at most 0.03", about, unit="caption accuracy lost")


@experiment
def _time(seed: int) -> Outcome:
    about = f"{words('shapes guided', CAPTIONS)}, {STEPS} steps of ddim, half of the evaluations"
    return compared([_scenes(seed)[2], 0.6], "at most 0.6", about, unit="share of the whole run's processor seconds")


CLAIMS = (
    slow("budget", "what it tells of the error holds on fresh noises", _told("error", "the error told")),
    slow("budget", "so does the sum of squares that it chooses by",
         _told("predicted", "the root of the sum of squares")),
    slow("budget", "fresh samples are within the error asked", _kept()),
    slow("budget", "its bound covers what it says", _covers()),
    *(slow("budget", f"is nearer than fewer steps of {solver} at its cost, {name.split()[0]}, error {error:g}",
           _nearer(name, solver, error))
      for name, solver, error in SETTINGS),
    slow("budget", "halves the evaluations of guided digits", _guided()),
    slow("budget", "and keeps their classes", _classes()),
    slow("budget", "halves those of guided scenes and keeps their captions", _captions()),
    slow("budget", "in three fifths of the time", _time()),
)  # fmt: skip
