"""A model beside an operator: whether they fit, and the operator in the model's coordinates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.conditions.picture import Picture
from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.memory import AnyMemory, ask
from fewstep.core.methods import methods
from fewstep.core.pictures import data_shape
from fewstep.core.prediction import Prediction
from fewstep.operators.covariance import Covariance
from fewstep.operators.noise import NoiseModel
from fewstep.operators.operator import LinearOperator, Operator
from fewstep.operators.solve import prox


def check_pair(model: Denoiser, operator: Operator) -> None:
    """`ValueError` unless the operator measures the model's data; the operator is bound to their shape."""
    if not isinstance(operator, Operator):
        raise ValueError(f"operator must be one of fewstep.operators, got {operator!r}")
    if "y" in model.conditions:
        raise ValueError(
            "this model is conditioned on a measurement y already, and restores by itself: leave the operator out"
        )
    if model.shape is None:
        raise ValueError("this model takes any shape: restoration needs one that is known")
    shape = data_shape(model)
    if shape is None:
        raise ValueError("this model's autoencoder does not say what shape its data have")
    operator.fit(shape)


def check_states(model: Denoiser, method: Any) -> None:
    """`ValueError` unless a method, by its name or a step of moments, works on what the model's samples are.

    A card's `states` are "data", as by default, "latents" or both.
    """
    cards = [one for one in methods("restorer", room="restoration") if not one.facts.get("needs")]
    takes = {one.name: one.facts.get("states", ("data",)) for one in cards}
    named = isinstance(method, str)
    own, name = takes.get(method, ("data",)) if named else ("data",), method if named else type(method).__name__
    samples, other = ("data", "latents") if model.facts.autoencoder is None else ("latents", "data")
    if samples not in own:
        *most, last = (one for one, states in takes.items() if samples in states)
        able = f"{', '.join(most)} and {last}"
        raise ValueError(f"this model's samples are {samples}, and {name!r} is for {other}: {able} restore with it")


def plain(model: Denoiser) -> bool:
    """Whether a model's states are its data."""
    while isinstance(model, Wrapper):
        model = model.model
    return type(model).decode is Denoiser.decode


class _Decoded(Operator):
    """A measurement of what a state decodes to, `A decode(x)`."""

    def __init__(self, operator: Operator, model: Denoiser):
        super().__init__()
        self.operator, self.data = operator, data_shape(model)
        self.decode = model.decode  # the model is no part of the operator

    @property
    def holds(self) -> Tensor | None:
        return self.operator.holds

    def config(self) -> dict[str, Any]:
        return self.operator.config()

    def prepare(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.operator.measured(self.data)

    def act(self, x: Tensor) -> Tensor:
        return self.operator(self.decode(x))  # type: ignore[no-any-return]

    def __str__(self) -> str:
        return str(self.operator)


class _LinearlyDecoded(_Decoded, LinearOperator):
    """That of a linear A and a linear decoder, with the adjoint and all that follows from it."""


def in_coordinates(operator: Operator, model: Denoiser) -> Operator:
    """The operator of a model's states: itself, or `A decode`.

    Of latents `A decode` counts as nonlinear, whatever A is. `ValueError` where A is linear and other coordinates are
    not.
    """
    assert model.shape is not None
    latents = model.facts.autoencoder is not None
    if plain(model) and not latents:
        return operator
    if latents or not isinstance(operator, LinearOperator):
        return _Decoded(operator, model).fit(model.shape)
    a, b = torch.randn(2, 1, *model.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    try:
        parts = model.decode(a), model.decode(b), model.decode(2 * a - 3 * b), model.decode(torch.zeros_like(a))
        linear = torch.allclose(parts[2], 2 * parts[0] - 3 * parts[1], rtol=1e-6, atol=1e-8) and not parts[3].any()
    except (KeyError, TypeError):  # its coordinates depend on a condition
        linear = False
    if not linear:
        raise ValueError(
            "this model's coordinates are not linear in the data: no linear measurement is one of its states"
        )
    return _LinearlyDecoded(operator, model).fit(model.shape)


@dataclass(frozen=True)
class Problem:
    """What a chain restores: the model as it was given, A in its coordinates, and the law of the noise.

    The measurements `(B, *measured)` are a run's condition `y`. `of_data` is A of the data, whatever the coordinates.
    """

    model: Denoiser
    operator: Any
    law: NoiseModel

    @property
    def noise(self) -> Covariance:
        """S; `ValueError` for noise that is not Gaussian."""
        own = getattr(self.law, "covariance", None)
        if not isinstance(own, Covariance):
            raise ValueError(f"this method takes Gaussian noise, not {type(self.law).__name__}")
        return own

    @property
    def of_data(self) -> Operator:
        """A of data `(B, *data)`."""
        return self.operator.operator if isinstance(self.operator, _Decoded) else self.operator

    def energy(self, y: Tensor) -> Tensor:
        """What the noise alone leaves of `|y - A x|^2`, in the mean, `()` or `(B,)`, where y lies."""
        held = self.operator.holds
        return self.noise.mean().to(y.device) * (math.prod(self.operator.out) if held is None else int(held.sum()))

    def ratio(self, y: Tensor) -> float:
        """The variance of the noise over that of the data, which counts as 1 where it is not known."""
        return float(self.law.variance(y).mean()) / (self.model.facts.data_std or 1.0) ** 2


def brought(operator: LinearOperator, x: Tensor, y: Tensor, ratio: float) -> Tensor:
    """x moved to its measurement: the mode under a normal prior around x, of a variance of the noise's over `ratio`.

    Without noise that is `x + A^+ (y - A x)`; with it, small singular values divide no noise.
    """
    return x + operator.pinv(y - operator(x)) if ratio == 0 else prox(operator, x, y, ratio)


class Measured(Wrapper):
    """A model whose runs carry a measurement, the condition `y` `(B, *measured)`: for the loops, which read it."""

    def __init__(self, model: Denoiser, operator: Operator):
        check_pair(model, operator)
        conditions = {**model.conditions, "y": Picture(operator.measured())}
        super().__init__(model, plan=None, solver=None, timesteps=None, conditions=conditions)
        self.operator = operator

    def check_condition(self, condition: Mapping[str, Any], batch: int, device: torch.device) -> dict[str, Tensor]:
        rest = dict(condition)
        y = self.conditions["y"].check("y", rest.pop("y", None), batch, device)
        return self.model.check_condition(rest, batch, device) | {"y": self.operator.received(y)}

    def forward(self, x: Tensor, t: Tensor, *, memory: AnyMemory | None = None, **condition: Any) -> Prediction:
        condition.pop("y", None)
        return ask(self.model, x, t, memory, condition)
