"""Measure a model's samples: against its data, against the labels asked for, and against the exact end of its ODE."""

from __future__ import annotations

import functools
import inspect
import math
import time
from collections.abc import Callable, Sequence
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
    device = model.device
    originals, condition = _conditions(model, real, n, seed)
    bar: Bar = progress if callable(progress) else _bars() if progress else _silent

    begin = time.perf_counter()
    samples, nfe = solve(chosen, model, n, seed, condition, device, bar)
    seconds = time.perf_counter() - begin
    out: dict[str, Any] = {
        "plan": chosen.name,
        "about": dict(chosen.about),
        "n": n,
        "seed": seed,
        "noise_version": VERSION,
        "planned_nfe": chosen.nfe,
        "actual_nfe": nfe,
        "seconds": seconds,
        "data": real.spec.name if real is not None else None,
        "features": features,
        "figures": {},
        "notes": notes,
    }
    with bar("metrics", len(wanted)) as advance:
        for metric in wanted:
            if "reference" not in metric.facts["needs"]:
                assert real is not None
                out["figures"] |= _figure(metric, samples, real, originals, condition, features, seed)
                advance()
    for metric in wanted:
        if "reference" in metric.facts["needs"]:
            out["figures"][metric.name] = _endpoint(metric, chosen, model, samples, seed, condition, device, bar)
    return out


def solve(
    plan: Sampler,
    model: Denoiser,
    n: int,
    seed: int,
    condition: dict[str, Tensor],
    device: torch.device,
    bar: Bar,
    text: str | None = None,
) -> tuple[Tensor, float]:
    """The plan's samples for the first n noises of a seed, on the CPU, and the evaluations made for each."""
    if model.shape is None:
        raise ValueError("this denoiser takes any shape: only models with a shape of their own can be evaluated")
    parts, made = [], 0
    with bar(text or f"{n} samples, {plan.name}", -(-n // BATCH) * plan.nfe) as advance:
        for begin in range(0, n, BATCH):
            count = min(BATCH, n - begin)
            source = Noise(seed, begin)
            noise = model.process.start(functools.partial(source.normal, shape=(count, *model.shape), device=device))
            named: dict[str, Any] = {name: value[begin : begin + count] for name, value in condition.items()}
            result = plan.run(model, noise, seed=seed, first=begin, callback=lambda *_: advance(), **named)
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


def _figure(
    metric: Method,
    samples: Tensor,
    real: Dataset,
    originals: Tensor | None,
    condition: dict[str, Tensor],
    features: str,
    seed: int,
) -> dict[str, Any]:
    """A metric's figure by its name and, of one whose card says so, the figure of real data that were held out."""
    options = {"features": features, "seed": seed, "value_range": real.spec.value_range}
    function = metric.load()
    takes = inspect.signature(function).parameters
    measure = functools.partial(function, **{name: options[name] for name in options if name in takes})

    def needed(need: str) -> Any:
        if need == "data":
            return real.images
        if need == "pairs":
            return originals
        given = condition[need].cpu()
        if need == "label":
            return given
        assert real.spec.text is not None
        return [real.spec.text.words(row) for row in given.tolist()]

    beside = [needed(need) for need in metric.facts["needs"]]
    found = {metric.name: measure(samples, *beside).as_dict()}
    if metric.facts.get("held_out") and is_built_in(real.spec.name):
        held_out = measure(open_built_in(real.spec.name, "validation").images, *beside).as_dict()
        found[f"validation_{metric.name}"] = {key: held_out[key] for key in ("value", "n", "features")}
    return found


def _endpoint(
    metric: Method,
    plan: Sampler,
    model: Denoiser,
    samples: Tensor,
    seed: int,
    condition: dict[str, Tensor],
    device: torch.device,
    bar: Bar,
) -> dict[str, Any]:
    if plan.about.get("strength", 1.0) != 1.0:
        raise ValueError("the plan starts in the middle, from a clean sample: its end point cannot be compared here")
    n = len(samples)
    runs = []
    for nfe in (COARSE, FINE):
        reference = reference_plan(model.process, plan, nfe)
        runs.append(
            solve(reference, model, n, seed, condition, device, bar, f"reference, {reference.nfe} evaluations")[0]
        )
    coarse, fine = runs
    measure = metric.load()
    estimate = measure(coarse, fine).value
    return measure(samples, fine).as_dict() | {"reference_nfe": FINE, "reference_error": estimate}


class _silent:
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

    class Stage(_silent):
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
