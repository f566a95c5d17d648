"""Whether a method takes a measurement: what the cards say, asked before anything is run."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method, card, methods
from fewstep.denoisers.calibration import Calibration
from fewstep.operators.noise import NoiseModel
from fewstep.operators.operator import LinearOperator, Operator

FARTHEST = 3.0  # times what data of the range measure: y beyond it is in other units
GREYS = 255  # the other units that pictures come in


def takers(fact: str, value: str, form: str | None = None, latents: bool = False) -> str:
    """The methods of data, or of latents, whose card has a value among a fact's, and that need nothing special, as they
    are said."""
    states = "latents" if latents else "data"
    found = [
        one.name
        for one in methods("restorer", room="restoration")
        if value in one.facts[fact]
        and states in one.facts.get("states", ("data",))
        and not one.facts.get("needs")
        and form in (None, one.facts["form"])
    ]
    return ", ".join(found[:-1]) + (" and " if len(found) > 1 else "") + found[-1]


def check_linear(method: Any, operator: Operator, latents: bool = False) -> None:
    """`ValueError` for an operator that is not linear, which names the methods that take one."""
    if not isinstance(operator, LinearOperator):
        others = takers("measures", "nonlinear", latents=latents)
        raise ValueError(f"{method!r} takes a linear operator, and {operator} is none: {others} take it")


def check_fits(method: str, step: Any, model: Denoiser, operator: Operator, law: NoiseModel, y: Tensor) -> None:
    """`ValueError` for an operator, a noise or a measurement that a method does not take, with those that do."""
    about, latents = card(method, "restorer", room="restoration")[0], model.facts.autoencoder is not None
    if "nonlinear" not in about.facts["measures"]:
        check_linear(method, operator, latents)
    _check_noise(about, step, law, latents)
    law.variance(torch.zeros(1, *operator.out, dtype=torch.float64))  # deviations of another shape are said here
    counted = getattr(law, "counted", None)
    if counted is not None:
        held = operator.holds
        counted(y if held is None else torch.where(held.to(y.device), y, law.low))  # type: ignore[attr-defined]
    own = getattr(step, "calibration", None)
    if isinstance(own, Calibration):
        own.check(model.process.config(), tuple(model.shape or ()))


def _check_noise(about: Method, step: Any, law: NoiseModel, latents: bool) -> None:
    takes = about.facts["noise"]
    if getattr(law, "none", False) and "none" not in takes:
        others = takers("noise", "none", None if latents else "moments", latents)
        raise ValueError(f"{about.name!r} divides by the noise: without noise {others} will do")
    # What changes x0 alone takes the variance of other noise where the model's x0 lies; a chain takes what it says.
    chained = about.facts["form"] != "moments" or getattr(step, "walk", None) is not None
    if getattr(law, "covariance", None) is None and "poisson" not in takes and chained:
        name, others = type(law).__name__, takers("noise", "poisson", latents=latents)
        raise ValueError(f"{about.name!r} takes Gaussian noise, not {name}: {others} take it")


def warn_of_units(model: Denoiser, operator: Operator, law: NoiseModel, y: Tensor) -> None:
    """A warning where y is far beyond what the operator makes of data in the model's range."""
    if model.value_range is None or not y.numel() or model.facts.autoencoder is not None:
        return
    low, high = model.value_range
    flat = torch.ones(1, *(operator.shape or ()), dtype=y.dtype, device=y.device)
    most = max(float(operator(flat * low).abs().amax()), float(operator(flat * high).abs().amax()), abs(low), abs(high))
    size, std = float(y.abs().amax()), getattr(law, "std", None)
    if size <= FARTHEST * most:
        return
    told = ""
    if isinstance(std, int | float) and std > 0:
        told = f"; the noise of {std:g} is {std / (high - low):.2%} of the range if it is in the data's units, and"
        told += f" {std / GREYS:.2%} if it is in greys, 0 to {GREYS}"
    warnings.warn(
        f"y reaches {size:.3g}, and data of {low:g} to {high:g} are measured as {most:.3g} at most: y seems to be in"
        f" other units{told}",
        stacklevel=4,
    )
