"""Methods of guidance: functions that name a source and a rule, with the options that all of them take.

Methods around methods become one wrapper, whose sources share what calls they can.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

from torch import Tensor, nn

from fewstep.core.arguments import shown
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import find
from fewstep.core.process import Process
from fewstep.guidance.guided import Guided
from fewstep.guidance.parts import Guide, Rule, Source, level

Made = tuple[Source, Rule]


def method(name: str, zero: float | None = 1.0) -> Callable[[Callable[..., Made]], Callable[..., Guided]]:
    """Makes a method of guidance of a function `(model, scale, ...)` that gives its source and rule.

    All of them also take:
        scale: a number of at least 0, counted from `zero` (none), or a function of the log-SNR `log(alpha / sigma)`, of
            floats and tensors.
        interval: `(low, high)`, the noise levels sigma / alpha between which it acts (Kynkaanniemi et al., 2404.07724).
        clamp: True cuts the guided x0 to the model's value range, a pair to that range.
        rescale: `Guided.rescale`.

    Around a guided model the methods become one wrapper, whose clamp and rescaling are the last ones given.
    """

    def decorate(make: Callable[..., Made]) -> Callable[..., Guided]:
        own = inspect.signature(make)

        @functools.wraps(make)
        def guide(
            model: Denoiser,
            *args: Any,
            interval: tuple[float, float] | None = None,
            clamp: bool | tuple[float, float] = False,
            rescale: float = 0.0,
            **options: Any,
        ) -> Guided:
            bound = own.bind(model, *args, **options)
            bound.apply_defaults()
            said = {key: _plain(value) for key, value in bound.arguments.items() if key != "model"}
            scale = said["scale"] = check_scale(said["scale"])
            source, rule = make(**bound.arguments)
            if interval is not None:
                said["interval"] = interval = check_interval(interval, model.process)
            said |= {"clamp": clamp} if clamp is not False else {}
            said |= {"rescale": rescale} if rescale else {}
            within, phi = check_clamp(clamp, model), check_share("rescale", rescale)
            base, before = (model.model, model.guides) if isinstance(model, Guided) else (model, ())
            if isinstance(model, Guided):
                within, phi = within or model.clamp, phi or model.rescale
            return Guided(base, (*before, Guide(source, rule, scale, zero, interval, (name, said))), phi, within)

        more = [
            p for p in inspect.signature(guide, follow_wrapped=False).parameters.values() if p.kind is p.KEYWORD_ONLY
        ]
        guide.__signature__ = own.replace(  # type: ignore[attr-defined]
            parameters=[*own.parameters.values(), *more], return_annotation=Guided
        )
        guide.from_config = _from_config(guide)  # type: ignore[attr-defined]
        return guide

    return decorate


def _from_config(guide: Callable[..., Guided]) -> Callable[..., Guided]:
    def built(options: dict[str, Any], state: Mapping[str, Tensor]) -> Guided:
        rest = dict(options)
        also = rest.pop("also", ())
        guided = guide(**rest)
        for each in also:
            named = dict(each)
            guided = find(named.pop("method"), "guidance")(guided, **named)
        return guided

    return built


def _plain(value: Any) -> Any:
    """An option for saving: what says how it is made, by that."""
    return value.config() if hasattr(value, "config") and not isinstance(value, nn.Module) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def check_scale(scale: Any, name: str = "the guidance scale") -> Any:
    """A scale as a float, or the function that it is."""
    if callable(scale):
        return scale
    if not _is_number(scale) or not 0 <= scale < float("inf"):
        raise ValueError(f"{name} must be at least 0 and finite, got {scale!r}")
    return float(scale)


def check_interval(interval: Any, process: Process) -> tuple[float, float]:
    """Two noise levels that rise and that the process has between them."""
    pair = tuple(interval) if isinstance(interval, list | tuple) else ()
    if len(pair) != 2 or not all(map(_is_number, pair)):
        raise ValueError(f"interval must be two noise levels sigma / alpha, (low, high), got {shown(interval)}")
    low, high = float(pair[0]), float(pair[1])
    if not 0 <= low < high:
        raise ValueError(f"the noise levels of an interval must rise from 0 or more, got {low:g} to {high:g}")
    first, last = (level(process, t) for t in (process.t_min, process.t_max))
    if isinstance(first, tuple) or high < first or low > last:
        raise ValueError(
            f"interval ({low:g}, {high:g}) lies outside the process, whose noise levels are {first:.4g} to {last:.4g}"
        )
    return low, high


def check_clamp(clamp: Any, model: Denoiser) -> tuple[float, float] | None:
    """The range to cut to."""
    if clamp is False or clamp is None:
        return None
    if clamp is True:
        if model.value_range is None:
            raise ValueError("clamp needs the range of the data, which this model does not know: give (low, high)")
        return model.value_range
    pair = tuple(clamp) if isinstance(clamp, list | tuple) else ()
    if len(pair) != 2 or not pair[0] < pair[1]:
        raise ValueError(f"clamp must be True, False or a range (low, high), got {shown(clamp)}")
    return float(pair[0]), float(pair[1])


def check_share(name: str, value: Any) -> float:
    if not _is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be from 0 to 1, got {shown(value)}")
    return float(value)
