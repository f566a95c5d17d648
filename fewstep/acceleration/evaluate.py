"""Measure a model's samples: against its data, against the labels asked for, and against the exact end of its ODE."""

from __future__ import annotations

import functools
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
from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.core.noise import Noise
from fewstep.core.plan import Plan
from fewstep.core.process import Process
from fewstep.data.spec import BUILT_IN, Dataset, open_data
from fewstep.metrics.features import find_features
from fewstep.sampling.build import plan as make_plan
from fewstep.sampling.sample import choose_plan
from fewstep.searching.reference import SOLVER, TIMES
from fewstep.timesteps.grid import make_times

METRICS = ("frechet", "precision-recall", "sliced-wasserstein", "accuracy", "captions", "endpoint")
AGAINST_DATA = METRICS[:3]
COARSE, FINE = 100, 200  # evaluations of the two reference runs
BATCH = 256
WIDEST = 1024  # numbers of a sample compared in pixels: the covariance of more is slow, and needs more samples

Bar = Callable[[str, int], Any]  # (text, parts) -> a context manager whose value advances it by one part


def evaluate(
    model: Denoiser,
    plan: Plan | None = None,
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
        plan: the model's own by default, or ten steps of the default solver.
        metrics: of `METRICS`; by default all that apply to the model, the plan and the features.
        features: the space of the comparisons with data: "pixels", "blocks" (pictures averaged down to 8x8; the
            default for those of more than 1024 numbers) or, for 8x8 digits, "digits".
        seed: of the noises, the order of the labels, and the floor's rows.
        progress: True for bars on stderr, or a function that makes them.
        data: what to compare with: a name, a folder of images, an `.npz`, or a `Dataset`. By default what the
            model was trained on. The training split counts.

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
        if name not in METRICS:
            raise suggest("metric", name, METRICS)
    chosen = plan if plan is not None else choose_plan(model)
    wanted, notes = _applicable(model, chosen, metrics, data)
    real = _data(model, data) if set(wanted) & {*AGAINST_DATA, "accuracy", "captions"} else None
    if features is None:
        features = "pixels" if math.prod(model.shape or ()) <= WIDEST else "blocks"
    device = model.device
    condition = _conditions(model, real, n, seed, device)
    bar: Bar = progress if callable(progress) else _bars() if progress else _silent

    begin = time.perf_counter()
    samples, nfe = solve(chosen, model, n, seed, condition, device, bar)
    seconds = time.perf_counter() - begin
    out: dict[str, Any] = {
        "plan": chosen.name,
        "about": dict(chosen.about),
        "n": n,
        "seed": seed,
        "planned_nfe": chosen.nfe,
        "actual_nfe": nfe,
        "seconds": seconds,
        "data": real.spec.name if real is not None else None,
        "features": features,
        "figures": {},
        "notes": notes,
    }
    with bar("metrics", len(wanted)) as advance:
        for name in wanted:
            if name != "endpoint":
                assert real is not None
                out["figures"] |= _figure(name, samples, real, features, seed, condition)
                advance()
    if "endpoint" in wanted:
        out["figures"]["endpoint"] = _endpoint(chosen, model, samples, seed, condition, device, bar)
    return out


def solve(
    plan: Plan,
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
            named = {name: value[begin : begin + count] for name, value in condition.items()}
            result = plan.run(model, noise, seed=seed, first=begin, callback=lambda *_: advance(), **named)
            parts.append(model.decode(result.samples, **named).cpu())
            made += result.nfe
    return torch.cat(parts), made / len(parts)


def reference_plan(process: Process, plan: Plan, nfe: int) -> Plan:
    """The same stretch of the same ODE, third order, in `nfe` steps: from the plan's first time to its last."""
    first, last = plan.times[0], plan.times[-1]
    for end, time_ in (("zero", process.t_zero), ("min", process.t_min)):
        if first == process.t_max and last == time_:
            return make_plan(process, SOLVER, nfe=nfe, timesteps=TIMES, end=end)
    # Another stretch: as many steps as it takes of the whole grid, between the plan's own ends.
    grid = [t for t in make_times(process, nfe, TIMES, "zero" if last < process.t_min else "min") if first > t > last]
    return make_plan(process, SOLVER, timesteps=[first, *grid, last])


def known_data(model: Denoiser) -> str | None:
    """The data set the model was trained on, where it can be opened here, or None."""
    name = getattr(model, "data", None)
    return name if isinstance(name, str) and (name in BUILT_IN or Path(name).exists()) else None


def _applicable(
    model: Denoiser, plan: Plan, metrics: Sequence[str] | None, data: object
) -> tuple[list[str], list[str]]:
    """The metrics to take, and a note for each left out; `ValueError` where one that was asked for does not apply."""
    source = known_data(model)
    known = data is not None or source is not None
    reasons = {}
    if not known:
        reasons = dict.fromkeys(AGAINST_DATA, "the model's data set is not known: name it (--data FOLDER or FILE.npz)")
    if plan.stochastic:
        reasons["endpoint"] = "the plan draws noise, so it has no exact end; take a deterministic solver"
    if "text" not in model.conditions:
        reasons["captions"] = "the model reads no captions"
    elif source != "shapes":
        reasons["captions"] = "the verifier that ships reads the captions of shapes"
    if "label" not in model.conditions:
        reasons["accuracy"] = "the model takes no label: there is none to be right about"
    elif source != "digits":
        reasons["accuracy"] = "the classifier that ships is for the 8x8 digits"
    if metrics is None:
        return [name for name in METRICS if name not in reasons], [f"no {name}: {why}" for name, why in reasons.items()]
    for name in metrics:
        if name in reasons:
            raise ValueError(f"the metric {name!r} does not apply: {reasons[name]}")
    return list(dict.fromkeys(metrics)), []


def _data(model: Denoiser, data: str | Path | Dataset | None) -> Dataset:
    """The training split, checked against the model."""
    if isinstance(data, Dataset):
        real = data
    else:
        source = str(data if data is not None else known_data(model))
        folder = Path(source).is_dir()
        assert model.shape is not None
        grey: dict[str, Any] = {"mode": "L" if model.shape[0] == 1 else "RGB", "size": tuple(model.shape[1:])}
        real = open_data(source, **grey) if folder else open_data(source)
    if real.spec.shape != model.shape:
        raise ValueError(f"the data {real.spec.name!r} has samples of {real.spec.shape}, the model makes {model.shape}")
    if model.value_range is not None and real.spec.value_range != tuple(model.value_range):
        raise ValueError(
            f"the data {real.spec.name!r} lies in {real.spec.value_range}, the model's samples in {model.value_range}"
        )
    return real


def _conditions(model: Denoiser, real: Dataset | None, n: int, seed: int, device: torch.device) -> dict[str, Tensor]:
    """A label or caption for each sample in the proportions of the data: theirs, shuffled, again and again.

    Without such data the classes come in turn, and captions are empty.
    """
    found = {}
    for name, kind in model.conditions.items():
        if isinstance(kind, Label) and (real is None or real.labels is None or int(real.labels.max()) >= kind.classes):
            found[name] = torch.arange(n, device=device) % kind.classes
        elif real is None or isinstance(kind, Picture) or (isinstance(kind, Text) and real.spec.text != kind):
            found[name] = kind.check(name, None, n, device)
        else:
            shuffle = torch.Generator().manual_seed(seed)
            order = torch.cat([torch.randperm(len(real), generator=shuffle) for _ in range(-(-n // len(real)))])
            found[name] = real.batch(order[:n])[1][name].to(device)
    return found


def _figure(
    name: str, samples: Tensor, real: Dataset, features: str, seed: int, condition: dict[str, Tensor]
) -> dict[str, Any]:
    if name == "captions":
        from fewstep.metrics.caption_accuracy import caption_accuracy

        assert real.spec.text is not None
        captions = [real.spec.text.words(row) for row in condition["text"].tolist()]
        return {name: caption_accuracy(samples, captions).as_dict()}
    images = real.images
    if name == "precision-recall":
        from fewstep.metrics.precision_recall import precision_recall

        return {name: precision_recall(samples, images, features).as_dict()}
    if name == "sliced-wasserstein":
        from fewstep.metrics.sliced_wasserstein import sliced_wasserstein

        return {name: sliced_wasserstein(samples, images, features, seed=seed).as_dict()}
    if name == "accuracy":
        from fewstep.metrics.accuracy import class_accuracy

        return {name: class_accuracy(samples, condition["label"].cpu()).as_dict()}
    from fewstep.metrics.frechet import frechet

    found = {name: frechet(samples, images, features, seed).as_dict()}
    if real.spec.name in BUILT_IN:
        held_out = open_data(real.spec.name, split="validation").images
        measured = frechet(held_out, images, features, seed)
        found["validation_frechet"] = {"value": measured.value, "n": measured.n, "features": measured.features}
    return found


def _endpoint(
    plan: Plan,
    model: Denoiser,
    samples: Tensor,
    seed: int,
    condition: dict[str, Tensor],
    device: torch.device,
    bar: Bar,
) -> dict[str, Any]:
    from fewstep.metrics.endpoint import endpoint_error

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
    estimate = endpoint_error(coarse, fine).value
    return endpoint_error(samples, fine).as_dict() | {"reference_nfe": FINE, "reference_error": estimate}


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
