"""Measure a model's samples: against its data, against the labels asked for, and against the exact end of its ODE."""

from __future__ import annotations

import functools
import inspect
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.conditions.label import Label
from fewstep.conditions.picture import Picture
from fewstep.conditions.text import Text
from fewstep.core.arguments import checked
from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.core.methods import Method, card, methods
from fewstep.core.noise import VERSION, Noise
from fewstep.core.process import Process
from fewstep.core.sampler import Sampler
from fewstep.data.dataset import Dataset
from fewstep.data.open import is_built_in, open_built_in
from fewstep.metrics.features import find_features
from fewstep.sampling.build import plan as make_plan
from fewstep.sampling.sample import choose_plan
from fewstep.searching.problem import data_for, known_data, own_data
from fewstep.searching.reference import SOLVER, TIMES
from fewstep.timesteps.grid import make_times

# What a metric's card may need beside the samples, in the order in which metrics are taken, and why one is left out
# where there is none of it.
NEEDS = {
    "data": "the model's data set is not known: name it (--data FOLDER or FILE.npz)",
    "label": "the model takes no label: there is none to be right about",
    "text": "the model reads no captions",
    "pairs": "the samples have no originals: those are in data=... with the pictures that the model takes",
    "reference": "the plan draws noise, so it has no exact end; take a deterministic solver",
}
COARSE, FINE = 100, 200  # evaluations of the two reference runs
BATCH = 256
WIDEST = 1024  # numbers of a sample compared in pixels: the covariance of more is slow, and needs more samples

Bar = Callable[[str, int], Any]  # (text, parts) -> a context manager whose value advances it by one part


@checked
def evaluate(
    model: Denoiser,
    plan: Sampler | None = None,
    n: int = 1000,
    metrics: Sequence[str] | None = None,
    features: str | None = None,
    seed: int = 0,
    progress: bool | Bar = False,
    *,
    data: str | Path | Dataset | None = None,
) -> dict[str, Any]:
    """Draw n samples by a plan and measure them.

    Args:
        plan: by default the model's own, or ten steps of what does best over many kinds of models.
        metrics: of `metric_names()`; by default all that apply to the model, the plan and the data.
        features: the space of the comparisons with data: "pixels", "blocks" (pictures averaged down to 8x8; the
            default for those of more than 1024 numbers) or, for 8x8 digits, "digits".
        seed: of the noises, the order of the labels, and the floor's rows.
        progress: True for bars on stderr, or a function that makes them.
        data: what to compare with: a name, a folder of images, an `.npz`, or a `Dataset`. By default what the
            model was trained on. The training split counts. A model that takes a picture needs a `Dataset` with
            them: `given={"y": pictures}`.

    Returns:
        A JSON dictionary: the facts of the run, `figures` by metric (each with its n), and `notes`.

        Labels and captions are those of the training split, in a shuffled order. `frechet` carries the floor of real
        against real data; `validation_frechet` is what the held-out real images score against the training split in
        the same features: a perfect generator scores about that, not zero, at that n. `endpoint` is the error against
        the same ODE, from the same noises to the same last time, solved with 200 evaluations; `reference_error` is
        how far that solution is from the one with 100, in the same measure.

    Raises:
        ValueError: an unknown metric or features, one that does not apply, data that do not fit or are not known.
    """
    job = prepare(model, plan, n, metrics, features, seed, data)
    bar: Bar = progress if callable(progress) else _bars() if progress else silent

    begin = time.perf_counter()
    samples, nfe = job.samples(bar)
    out = job.facts(nfe, time.perf_counter() - begin)
    with bar("metrics", len(job.metrics)) as advance:
        for metric in job.metrics:
            if "reference" not in metric.facts["needs"]:
                out["figures"] |= {metric.name: measured(metric, job, samples)} | held_out(metric, job)
                advance()
    for metric in job.metrics:
        if "reference" in metric.facts["needs"]:
            out["figures"][metric.name] = _endpoint(metric, job, samples, bar)
    return out


@dataclass(frozen=True)
class Evaluation:
    """What is to be measured, with everything chosen and checked: what `evaluate` takes, and `notes` on what is not."""

    model: Denoiser
    plan: Sampler
    n: int
    seed: int
    metrics: list[Method]
    notes: list[str]
    features: str
    real: Dataset | None
    originals: Tensor | None
    condition: dict[str, Tensor]

    def samples(self, bar: Bar, first: int = 0, last: int | None = None) -> tuple[Tensor, float]:
        """Samples `first` to `last - 1`, and the evaluations made for each; `first` is a multiple of the batch."""
        return self.solved(self.plan, bar, first, last)

    def solved(
        self, plan: Sampler, bar: Bar, first: int = 0, last: int | None = None, text: str | None = None
    ) -> tuple[Tensor, float]:
        """The same by another plan."""
        last = self.n if last is None else last
        rows = {name: value[first:last] for name, value in self.condition.items()}
        return solve(plan, self.model, last - first, self.seed, rows, self.model.device, bar, text, first)

    def references(self, bar: Bar, first: int = 0, last: int | None = None) -> list[Tensor]:
        """The ends of the same ODE in 100 and in 200 evaluations, from the same noises; `ValueError` without one."""
        if self.plan.about.get("strength", 1.0) != 1.0:
            raise ValueError(
                "the plan starts in the middle, from a clean sample: its end point cannot be compared here"
            )
        plans = [reference_plan(self.model.process, self.plan, nfe) for nfe in (COARSE, FINE)]
        return [self.solved(p, bar, first, last, f"reference, {p.nfe} evaluations")[0] for p in plans]

    def facts(self, nfe: float, seconds: float) -> dict[str, Any]:
        """What `evaluate` returns, without its figures."""
        return {
            "plan": self.plan.name,
            "about": dict(self.plan.about),
            "n": self.n,
            "seed": self.seed,
            "noise_version": VERSION,
            "planned_nfe": self.plan.nfe,
            "actual_nfe": nfe,
            "seconds": seconds,
            "data": self.real.spec.name if self.real is not None else None,
            "features": self.features,
            "figures": {},
            "notes": list(self.notes),
        }

    def captions(self, first: int = 0, last: int | None = None) -> list[str]:
        """The captions that were asked for, in words."""
        assert self.real is not None and self.real.spec.text is not None
        return [self.real.spec.text.words(row) for row in self.condition["text"][first:last].tolist()]


def prepare(
    model: Denoiser,
    plan: Sampler | None = None,
    n: int = 1000,
    metrics: Sequence[str] | None = None,
    features: str | None = None,
    seed: int = 0,
    data: str | Path | Dataset | None = None,
) -> Evaluation:
    """What `evaluate` with these arguments measures; it raises what `evaluate` does."""
    if isinstance(n, bool) or n != int(n) or n < 2:
        raise ValueError(f"n must be a whole number of at least 2, got {n!r}")
    if features is not None:
        find_features(features)
    for name in metrics or ():
        if name not in metric_names():
            raise suggest("metric", name, metric_names())
    chosen = plan if plan is not None else choose_plan(model)
    wanted, notes = _applicable(model, chosen, metrics, data)
    compared = any(need != "reference" for metric in wanted for need in metric.facts["needs"])
    real = None
    if compared or (data is not None and _takes_pictures(model)):
        own = own_data(model) if data is None else data
        assert own is not None
        real = data_for(model, own)
    if features is None:
        features = "pixels" if math.prod(model.shape or ()) <= WIDEST else "blocks"
    originals, condition = _conditions(model, real, n, seed)
    return Evaluation(model, chosen, n, seed, wanted, notes, features, real, originals, condition)


def solve(
    plan: Sampler,
    model: Denoiser,
    n: int,
    seed: int,
    condition: dict[str, Tensor],
    device: torch.device,
    bar: Bar,
    text: str | None = None,
    first: int = 0,
) -> tuple[Tensor, float]:
    """The plan's samples for n noises of a seed, from number `first` on, on the CPU; the evaluations made of each."""
    if model.shape is None:
        raise ValueError("this denoiser takes any shape: only models with a shape of their own can be evaluated")
    parts, made = [], 0
    with bar(text or f"{n} samples, {plan.name}", -(-n // BATCH) * plan.nfe) as advance:
        for begin in range(0, n, BATCH):
            count = min(BATCH, n - begin)
            source = Noise(seed, first + begin)
            noise = model.process.start(functools.partial(source.normal, shape=(count, *model.shape), device=device))
            named: dict[str, Any] = {name: value[begin : begin + count] for name, value in condition.items()}
            result = plan.run(model, noise, seed=seed, first=first + begin, callback=lambda *_: advance(), **named)
            parts.append(model.decode(result.samples, **named).cpu())
            made += result.nfe
    return torch.cat(parts), made / len(parts)


def reference_plan(process: Process, plan: Sampler, nfe: int) -> Sampler:
    """The same stretch of the same ODE, third order, in `nfe` steps: from the plan's first time to its last."""
    first, last = plan.times[0], plan.times[-1]
    for end, time_ in (("zero", process.t_zero), ("min", process.t_min)):
        if first == process.t_max and last == time_:
            return make_plan(process, SOLVER, nfe=nfe, timesteps=TIMES, end=end)
    # Another stretch: as many steps as it takes of the whole grid, between the plan's own ends.
    grid = [t for t in make_times(process, nfe, TIMES, "zero" if last < process.t_min else "min") if first > t > last]
    return make_plan(process, SOLVER, timesteps=[first, *grid, last])


def metric_names() -> tuple[str, ...]:
    """Every metric that `evaluate` takes: those whose cards need nothing else than `NEEDS`."""
    order = list(NEEDS)
    cards = [card for card in methods("metric") if set(card.facts["needs"]) <= set(NEEDS)]
    return tuple(card.name for card in sorted(cards, key=lambda card: min(map(order.index, card.facts["needs"]))))


def _applicable(
    model: Denoiser, plan: Sampler, metrics: Sequence[str] | None, data: object
) -> tuple[list[Method], list[str]]:
    """The metrics to take, and a note for each left out; `ValueError` where one that was asked for does not apply."""
    source = known_data(model)
    present = {
        "data": data is not None or source is not None,
        "label": "label" in model.conditions,
        "text": "text" in model.conditions,
        "pairs": data is not None and _takes_pictures(model),
        "reference": not plan.stochastic,
    }
    reasons = {}
    for name in metric_names():
        facts = card(name, "metric")[0].facts
        if missing := [need for need in facts["needs"] if not present[need]]:
            reasons[name] = NEEDS[missing[0]]
        elif facts.get("of") not in (None, source):
            reasons[name] = f"what judges the samples knows the {facts['of']} alone"
    for name in metrics or ():
        if name in reasons:
            raise ValueError(f"the metric {name!r} does not apply: {reasons[name]}")
    names = dict.fromkeys(metrics) if metrics is not None else [n for n in metric_names() if n not in reasons]
    notes = [] if metrics is not None else [f"no {name}: {why}" for name, why in reasons.items()]
    return [card(name, "metric")[0] for name in names], notes


def _takes_pictures(model: Denoiser) -> bool:
    return any(isinstance(kind, Picture) for kind in model.conditions.values())


def _conditions(model: Denoiser, real: Dataset | None, n: int, seed: int) -> tuple[Tensor | None, dict[str, Tensor]]:
    """The images of n rows of the data, shuffled, again and again, and the conditions that go with them.

    So labels and captions come in the data's proportions. Without such data there are no images, the classes come in
    turn, and captions are empty. Images are given for models that take a picture: their samples' originals.
    """
    rows, images = torch.arange(n), None
    named: dict[str, Tensor] = {}
    if real is not None and model.conditions:
        shuffle = torch.Generator().manual_seed(seed)
        order = [torch.randperm(len(real), generator=shuffle) for _ in range(-(-n // len(real)))]
        images, named = real.batch(torch.cat(order)[:n])
    found = {}
    for name, kind in model.conditions.items():
        value = named.get(name)
        if isinstance(kind, Label) and (real is None or real.labels is None or int(real.labels.max()) >= kind.classes):
            value = rows % kind.classes
        elif isinstance(kind, Text) and (real is None or real.spec.text != kind):
            value = None
        found[name] = kind.check(name, value, n, model.device)
    return images if _takes_pictures(model) else None, found


def measured(metric: Method, job: Evaluation, samples: Tensor) -> dict[str, Any]:
    """A metric's result on samples, or on others in their place, with what its card says it needs beside them."""
    assert job.real is not None
    options = {"features": job.features, "seed": job.seed, "value_range": job.real.spec.value_range}
    function = metric.load()
    takes = inspect.signature(function).parameters
    real, condition = job.real, job.condition
    found: dict[str, Callable[[], Any]] = {
        "data": lambda: real.images,
        "pairs": lambda: job.originals,
        "label": lambda: condition["label"].cpu(),
        "text": job.captions,
    }
    beside = [found[need]() for need in metric.facts["needs"]]
    result: dict[str, Any] = function(
        samples, *beside, **{name: options[name] for name in options if name in takes}
    ).as_dict()
    return result


def held_out(metric: Method, job: Evaluation) -> dict[str, Any]:
    """The figure of real data that were held out, by its name, of a metric whose card asks for it."""
    assert job.real is not None
    if not metric.facts.get("held_out") or not is_built_in(job.real.spec.name):
        return {}
    found = measured(metric, job, open_built_in(job.real.spec.name, "validation").images)
    return {f"validation_{metric.name}": {key: found[key] for key in ("value", "n", "features")}}


def _endpoint(metric: Method, job: Evaluation, samples: Tensor, bar: Bar) -> dict[str, Any]:
    coarse, fine = job.references(bar)
    measure = metric.load()
    estimate = measure(coarse, fine).value
    return measure(samples, fine).as_dict() | {"reference_nfe": FINE, "reference_error": estimate}


class silent:
    """No bar: what `progress=False` means."""

    def __init__(self, text: str, total: int) -> None:
        pass

    def __enter__(self) -> Callable[[], None]:
        return lambda: None

    def __exit__(self, *_: object) -> None:
        pass


def _bars() -> Bar:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    class Stage(silent):
        def __init__(self, text: str, total: int) -> None:
            console = Console(stderr=True)
            columns = (*Progress.get_default_columns(), MofNCompleteColumn())
            self.bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
            self.task = self.bar.add_task(text, total=total)

        def __enter__(self) -> Callable[[], None]:
            self.bar.start()
            return lambda: self.bar.advance(self.task)

        def __exit__(self, *_: object) -> None:
            self.bar.stop()

    return Stage
