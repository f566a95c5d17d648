"""Guidance by the gradient of an energy of the noisy state, or of a loss, through the network, on what it predicts."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.core.arguments import shown
from fewstep.core.condition import Condition
from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.errors import suggest
from fewstep.core.memory import AnyMemory, ask
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction, conversion, expand, scales
from fewstep.core.process import Process

METHODS = (
    Method(
        "energy",
        paper="Universal Guidance for Diffusion Models (Bansal et al., 2023)",
        arxiv="2302.07121",
        claim="samples of p(x) exp(-energy): any differentiable energy of the state, or loss on the predicted x0",
        use="Energy",
        facts={"wraps": True, "changes": ("plan", "conditions")},
    ),
)

# (x, t, **condition) or (x0, **condition) to one number a sample, (B,).
PerSample = Callable[..., Tensor]

FIRST = 1e-4  # alpha / sigma of the noisiest time at which a gradient is taken


def begun(process: Process, t: Tensor) -> Tensor:
    """The times, those noisier than `alpha = 1e-4 sigma` moved there.

    At alpha = 0 an answer that predicts the noise says nothing of x0, and the score's change, of order alpha, is worth
    a change of x0 that only its limit tells. So that limit is taken, within 1e-4.
    """
    if process.log_snr(process.t_max) >= math.log(FIRST):
        return t
    return t.clamp(max=process.time(math.log(FIRST)))


def told(function: Callable[..., Any], condition: Mapping[str, Any], first: int) -> dict[str, Any]:
    """The conditions that a function takes besides its `first` arguments: those it names, or all."""
    parameters = list(inspect.signature(function).parameters.values())
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return dict(condition)
    names = {one.name for one in parameters[first:]}
    return {name: value for name, value in condition.items() if name in names}


def per_sample(what: str, value: Any, rows: int) -> Tensor:
    """`ValueError` unless there is one number a sample."""
    if not isinstance(value, Tensor) or value.shape != (rows,):
        raise ValueError(f"the {what} must return one number for each sample, ({rows},), got {shown(value)}")
    return value


def gradient(what: str, value: Tensor, x: Tensor, outer: bool) -> Tensor:
    """The gradient of a sum over samples in x; `ValueError` where there is none."""
    if not value.requires_grad:
        raise ValueError(f"the {what} has no gradient: it must be a differentiable function of what it is given")
    found = torch.autograd.grad(value.sum(), x, create_graph=outer, allow_unused=True)[0]
    if found is None:
        raise ValueError(f"the {what} has no gradient: it must be a differentiable function of what it is given")
    return found


def leaf(x: Tensor, outer: bool) -> Tensor:
    """x as something to differentiate by: itself where gradients pass through the whole, else apart."""
    return x if outer and x.requires_grad else x.detach().requires_grad_(True)


def twice(outer: bool) -> AbstractContextManager[None]:
    """Where a network's gradient is itself differentiated: the fused kernels of attention have no second derivative."""
    return sdpa_kernel(SDPBackend.MATH) if outer else nullcontext()


def freed(answer: Prediction, x: Tensor, t: Tensor) -> Prediction:
    """The answer without its graph, at x and t."""
    held = {one.name: getattr(answer, one.name) for one in fields(answer) if one.name not in ("x", "t", "value")}
    plain = {name: value.detach() for name, value in held.items() if isinstance(value, Tensor)}
    return answer.replaced(answer.value.detach(), x=x, t=t, **plain)


def checked_strength(name: str, value: Any) -> float:
    """`ValueError` unless it is a finite number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"the {name} must be at least 0 and finite, got {value!r}")
    return float(value)


def moved(answer: Prediction, found: Tensor, at: Tensor, scale: float, normalise: bool) -> Prediction:
    """The answer whose score is less by `scale found`, `(B, *shape)`, at the times `at`.

    In each kind it changes by what the score's change is worth there: in eps by `scale sigma found`. normalise: that
    change is `scale` times as long as eps.
    """
    x, numbers = answer.x, scales(answer.process, at)
    # Finite at sigma = 0, where the score is not.
    worth = expand(torch.as_tensor(conversion("score", answer.kind, *numbers)[1]), x)
    if normalise:
        p, q = conversion(answer.kind, "eps", *numbers)
        eps = expand(torch.as_tensor(p), x) * x + expand(torch.as_tensor(q), x) * answer.value
        change = (expand(torch.as_tensor(numbers[1]), x) * found).flatten(1).norm(dim=1)
        ratio = eps.flatten(1).norm(dim=1) / change.clamp_min(torch.finfo(x.dtype).tiny)
        # No gradient, or no noise, has no direction.
        found = found * expand(torch.where(change > 0, ratio, torch.zeros_like(ratio)), x)
    return answer.replaced(answer.value - scale * worth * found.to(answer.value.dtype))


class Steered(Wrapper):
    """Base of guidance by a function's gradient: the model's conditions, and those of the function beside them.

    strength: at 0 the wrapper is the model. added: the kinds of the function's conditions; one that the model has too
    is the model's.
    """

    added: dict[str, Condition]

    def __init__(self, model: Denoiser, strength: float, added: Mapping[str, Condition] | None):
        kinds = {**dict(added or {}), **model.conditions}
        super().__init__(model, plan=model.plan if strength == 0 else None, conditions=kinds)
        self.added = dict(added or {})

    @property
    def carries(self) -> bool:
        return True

    def check_condition(self, condition: Mapping[str, Any], batch: int, device: torch.device) -> dict[str, Tensor]:
        extra = {name: kind for name, kind in self.added.items() if name not in self.model.conditions}
        for name in condition:
            if extra and name not in self.conditions:
                raise suggest("condition", name, self.conditions)
        found = {name: kind.check(name, condition.get(name), batch, device) for name, kind in extra.items()}
        rest = {name: value for name, value in condition.items() if name not in extra}
        return found | self.model.check_condition(rest, batch, device)

    def inner(self, condition: Mapping[str, Any]) -> dict[str, Any]:
        """The model's share of the conditions."""
        own = set(self.added) - set(self.model.conditions)
        return {name: value for name, value in condition.items() if name not in own}

    def encode(self, data: Tensor, **condition: Any) -> Tensor:
        return self.model.encode(data, **self.inner(condition))

    def decode(self, x: Tensor, **condition: Any) -> Tensor:
        return self.model.decode(x, **self.inner(condition))


class Energy(Steered):
    """The score of `p_t(x) exp(-scale energy(x, t))`, or the same with `loss` of the predicted x0 as the energy.

    An energy on the state is exact: where `exp(-energy)` is the noised law of a likelihood, samples follow the
    posterior. A loss stands for `-log p(y | x0)`; taken at the mean of x0, its gradient runs through the network (a
    product with the Jacobian), and the posterior is approximate (Chung et al., 2209.14687; for classifiers and
    segmentations Bansal et al., section 3.1).

    Args:
        energy: `(x, t, **condition) -> (B,)` of the noisy state `(B, *shape)`, t a scalar or `(B,)`; differentiable.
        loss: `(x0, **condition) -> (B,)`, in its place. Either gets those conditions that it names, or all by `**`.
        scale: at least 0, which is the model bit for bit.
        normalise: the change of eps has `scale` times the length of eps, in the gradient's direction.
        conditions: kinds of the conditions that the function takes and the model does not.

    Raises:
        ValueError: neither or both functions, a scale that is negative or not finite; as it runs, a function that does
            not return one number a sample or has no gradient.
    """

    energy: PerSample | None
    loss: PerSample | None
    scale: float
    normalise: bool

    def __init__(
        self,
        model: Denoiser,
        energy: PerSample | None = None,
        loss: PerSample | None = None,
        scale: float = 1.0,
        normalise: bool = False,
        conditions: Mapping[str, Condition] | None = None,
    ):
        if (energy is None) == (loss is None):
            raise ValueError("give either energy=(x, t) -> (B,) or loss=(x0) -> (B,)")
        super().__init__(model, checked_strength("scale of the gradient", scale), conditions)
        self.energy, self.loss = energy, loss
        self.scale, self.normalise = float(scale), normalise

    def describe(self) -> dict[str, Any]:
        return self.model.describe() | {"gradient scale": self.scale}

    def config(self) -> dict[str, Any]:
        own = {"scale": self.scale, "normalise": self.normalise, "conditions": self.added}
        return {"model": self.model, "energy": self.energy, "loss": self.loss} | own

    def forward(self, x: Tensor, t: Tensor, *, memory: AnyMemory | None = None, **condition: Any) -> Prediction:
        at, outer, inner = begun(self.process, t), torch.is_grad_enabled(), self.inner(condition)
        if self.scale == 0:
            return ask(self.model, x, t, memory, inner)
        with torch.enable_grad():
            place = leaf(x, outer)
            if self.energy is not None:
                value = per_sample("energy", self.energy(place, at, **told(self.energy, condition, 2)), len(x))
                found = gradient("energy", value, place, outer)
            else:
                assert self.loss is not None
                with twice(outer):
                    answer = ask(self.model, place, at, memory, inner)
                value = per_sample("loss", self.loss(answer.x0, **told(self.loss, condition, 1)), len(x))
                found = gradient("loss", value, place, outer)
        if self.energy is not None:
            answer = ask(self.model, x, t, memory, inner)
        else:
            answer = answer.replaced(answer.value, x=x, t=t) if outer else freed(answer, x, t)
        return moved(answer, found, at, self.scale, self.normalise)
