"""A model beside an operator: whether they fit, and the operator in the model's coordinates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.conditions.picture import Picture
from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.memory import AnyMemory, ask
from fewstep.core.prediction import Prediction
from fewstep.operators.covariance import Covariance
from fewstep.operators.noise import NoiseModel
from fewstep.operators.operator import LinearOperator, Operator


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
    if model.facts.autoencoder is not None:
        raise ValueError(
            "this model's samples are latents: a method for latents restores with it (psld, resample, flowdps)"
        )
    operator.fit(model.shape)


def plain(model: Denoiser) -> bool:
    """Whether a model's states are its data."""
    while isinstance(model, Wrapper):
        model = model.model
    return type(model).decode is Denoiser.decode


class _Decoded(LinearOperator):
    """A measurement of what a state decodes to, `A decode(x)`."""

    def __init__(self, operator: LinearOperator, model: Denoiser):
        super().__init__()
        self.operator = operator
        self.decode = model.decode  # the model is no part of the operator

    @property
    def holds(self) -> Tensor | None:
        return self.operator.holds

    def config(self) -> dict[str, Any]:
        return self.operator.config()

    def prepare(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.operator.measured(shape)

    def act(self, x: Tensor) -> Tensor:
        return self.operator(self.decode(x))

    def __str__(self) -> str:
        return str(self.operator)


def in_coordinates(operator: LinearOperator, model: Denoiser) -> LinearOperator:
    """The operator of a model's states: itself, or `A decode`; `ValueError` where decoding is not linear."""
    assert model.shape is not None
    if plain(model):
        return operator
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
    return _Decoded(operator, model).fit(model.shape)


@dataclass(frozen=True)
class Problem:
    """What a chain restores: the model as it was given, A in its coordinates, and the law of the noise.

    The measurements `(B, *measured)` are a run's condition `y`.
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


class Measured(Wrapper):
    """A model whose runs carry a measurement, the condition `y` `(B, *measured)`: for the loops, which read it."""

    def __init__(self, model: Denoiser, operator: Operator):
        check_pair(model, operator)
        conditions = {**model.conditions, "y": Picture(operator.measured(model.shape))}
        super().__init__(model, plan=None, solver=None, timesteps=None, conditions=conditions)
        self.operator = operator

    def check_condition(self, condition: Mapping[str, Any], batch: int, device: torch.device) -> dict[str, Tensor]:
        rest = dict(condition)
        y = self.conditions["y"].check("y", rest.pop("y", None), batch, device)
        return self.model.check_condition(rest, batch, device) | {"y": self.operator.received(y)}

    def forward(self, x: Tensor, t: Tensor, *, memory: AnyMemory | None = None, **condition: Any) -> Prediction:
        condition.pop("y", None)
        return ask(self.model, x, t, memory, condition)
