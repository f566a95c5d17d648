"""The wrapper that most methods of restoration are: a model's x0, moved by what a measurement says.

With `p(x0 | x_t)` taken for `N(x0_hat, C)` and a linear A, the mean given `y = A x0 + noise` of covariance S is

    E[x0 | x_t, y] = x0_hat + P A^T (A C A^T + S)^{-1} (y - A x0_hat),

P = C, or `P = (sigma^2 / alpha) J^T` with the Jacobian J of x0_hat in x_t, which are equal where C is exact. A method
is a choice of C and P; each is a file of its own, a `Step` that turns what is known at an evaluation (`At`) into the
move.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from fewstep.conditions.picture import Picture
from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.memory import AnyMemory, ask
from fewstep.core.methods import Method, card, made
from fewstep.core.prediction import Prediction, expand
from fewstep.core.process import Process
from fewstep.operators.covariance import Covariance, Elements, Same
from fewstep.operators.noise import NoiseModel, as_noise
from fewstep.operators.operator import LinearOperator, Operator
from fewstep.restoration.fits import check_linear
from fewstep.restoration.measured import check_pair, check_states, in_coordinates

METHODS = (
    Method(
        "posterior",
        kind="denoiser",
        claim="a model and a measurement as one denoiser: every plan, search and executor runs it",
        use="Moments",
    ),
)

MEASUREMENT = "y"  # the condition
LEAST_ALPHA = 1e-3  # of alpha / sigma: where a state holds less of the sample, the level at which it does is asked
FLAT = 1e30  # in place of an infinite variance


@dataclass
class At:
    """What is known at an evaluation: state x `(B, *shape)`, alpha and sigma `()` or `(B,)`, the model's x0, y and r.

    `noise` is the covariance S. With a step that pulls back by the Jacobian, x0 has a graph to x, and `pull` goes along
    it.
    """

    model: Denoiser
    process: Process
    x: Tensor
    t: Tensor
    alpha: Tensor
    sigma: Tensor
    x0: Tensor
    y: Tensor
    operator: LinearOperator
    law: NoiseModel

    @cached_property
    def r(self) -> Tensor:
        """What the model's x0 leaves of the measurement, `y - A x0_hat`."""
        return self.y - self.operator(self.x0.detach())

    @property
    def v(self) -> Tensor:
        """`(sigma / alpha)^2`, finite."""
        return ((self.sigma / self.alpha.clamp_min(1e-30)) ** 2).clamp_max(FLAT)

    @cached_property
    def noise(self) -> Covariance:
        """S; of noise that depends on the clean measurement, that of the model's."""
        own = getattr(self.law, "covariance", None)
        if isinstance(own, Covariance):
            return own
        return Elements(self.law.variance(self.operator(self.x0.detach())), batched=True)

    def pull(self, u: Tensor) -> Tensor:
        """`(sigma^2 / alpha) J^T A^T u` `(B, *shape)`: a vector product with the network."""
        (back,) = torch.autograd.grad(self.x0, self.x, self.operator.adjoint(u).to(self.x0.dtype), retain_graph=True)
        return expand(self.sigma**2 / self.alpha, back) * back


class Step(Protocol):
    """A choice of C and P: a frozen dataclass of options whose call gives the move of x0 `(B, *shape)`.

    jacobian: whether it needs the graph of x0.
    """

    jacobian: ClassVar[bool]

    def __call__(self, at: At) -> Tensor: ...


class Moments(Wrapper):
    """A model given a measurement: the condition `y` `(B, *measured)`; it answers in x0.

    Args:
        operator, noise: A, linear, and the law of its noise, or its standard deviation in the data's own units.
        method: the name of a step in this room ("pigdm"), or a step. options: those of the step.
        weight: a factor of the move; with 0 the answers are the model's, bit for bit.

    Raises:
        ValueError: an operator that is not linear or does not fit, a model that has a condition y already, whose
            coordinates are not linear or whose samples are latents, a method that needs noise where there is none.
    """

    def __init__(
        self,
        model: Denoiser,
        operator: Operator,
        noise: float | Tensor | NoiseModel = 0.0,
        method: str | Step = "pigdm",
        options: Mapping[str, Any] | None = None,
        weight: float = 1.0,
    ):
        check_states(model, method)
        check_pair(model, operator)
        check_linear(method, operator)
        assert isinstance(operator, LinearOperator)
        self.law = as_noise(noise)
        step = named_step(method, options or {}) if isinstance(method, str) else method
        check = getattr(step, "check", None)
        if check is not None:
            check(model, operator, self.law)
        conditions = {**model.conditions, MEASUREMENT: Picture(operator.measured())}
        super().__init__(model, plan=None, solver=None, timesteps=None, conditions=conditions)
        self.operator, self.method, self.step, self.weight = operator, method, step, float(weight)
        seen = in_coordinates(operator, model)
        assert isinstance(seen, LinearOperator)
        self.seen = seen

    def config(self) -> dict[str, Any]:
        if not isinstance(self.method, str) or not isinstance(getattr(self.law, "std", None), float | int):
            raise self.unsaved()
        options = {field.name: getattr(self.step, field.name) for field in dataclasses.fields(self.step)}  # type: ignore[arg-type]
        return {
            "model": self.model,
            "operator": self.operator,
            "noise": float(self.law.std),
            "method": self.method,
            "options": options,
            "weight": self.weight,
        }

    def describe(self) -> dict[str, Any]:
        return self.model.describe() | {"measured by": str(self.operator), "restored by": str(self.method)}

    @property
    def passes(self) -> int:
        """Network passes of an evaluation: a forward one, and two for each vector product."""
        return 1 + 2 * int(getattr(self.step, "products", int(self.step.jacobian)))

    def check_condition(self, condition: Mapping[str, Any], batch: int, device: torch.device) -> dict[str, Tensor]:
        rest = dict(condition)
        y = self.conditions[MEASUREMENT].check(MEASUREMENT, rest.pop(MEASUREMENT, None), batch, device)
        return self.model.check_condition(rest, batch, device) | {MEASUREMENT: y}

    def forward(self, x: Tensor, t: Tensor, *, memory: AnyMemory | None = None, **condition: Any) -> Prediction:
        y = condition.pop(MEASUREMENT)
        if self.weight == 0:
            return ask(self.model, x, t, memory, condition)
        process = self.process
        at_ = process.time(torch.full_like(t, LEAST_ALPHA, dtype=torch.float64).log())
        asked = torch.minimum(t.double(), at_.to(t.device)).to(t.dtype) if self.step.jacobian else t
        alpha, sigma = process.alpha(asked.double()), process.sigma(asked.double())
        with torch.set_grad_enabled(self.step.jacobian):
            state = x.detach().requires_grad_(True) if self.step.jacobian else x
            x0 = ask(self.model, state, asked, memory, condition).x0
            y = self.seen.received(y).to(x0.dtype)
            move = self.step(At(self.model, process, state, asked, alpha, sigma, x0, y, self.seen, self.law))
        moved = x0.detach() + self.weight * move.detach().to(x0.dtype)
        return Prediction(moved, "x0", x, t, process)


def named_step(method: str, options: Mapping[str, Any]) -> Any:
    """A method of the room with its options; `ValueError` for an unknown one of either (close names offered)."""
    card(method, "restorer", room="restoration")
    return made("restorer", method, **options)()


def same(variance: Tensor) -> Same:
    """`c I` of a number for all, or one for each sample."""
    return Same(variance.reshape(-1))
