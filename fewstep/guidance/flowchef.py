"""Steering by the gradient of a loss on the predicted x0 alone: nothing runs backward through the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.core.arguments import check_whole
from fewstep.core.condition import Condition
from fewstep.core.denoiser import Denoiser
from fewstep.core.memory import AnyMemory, ask
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction, conversion, expand, scales
from fewstep.guidance.energy import PerSample, Steered, begun, checked_strength, gradient, leaf, per_sample, told

METHODS = (
    Method(
        "flowchef",
        paper="Steering Rectified Flow Models in the Vector Field for Controlled Image Generation (Patel et al., 2024)",
        arxiv="2412.00100",
        claim="steering by a loss on x0 without a backward pass through the network: its time and memory stay",
        use="FlowChef",
        facts={"wraps": True, "changes": ("plan", "conditions")},
    ),
)


class FlowChef(Steered):
    """The answer at a state moved by `-rate grad loss(x0)`, the velocity held still (Patel et al., algorithm 1).

    In the coordinates of the rectified flow, `z = x / (alpha + sigma)`, into which every Gaussian process goes over,
    `x0 = z - tau v` with the model's velocity `v = eps - x0` and `tau = sigma / (alpha + sigma)`. With v held, x0 moves
    as z does: the gradient in x0 is that in z, without the network's Jacobian. So `repeat` times
    `x0 <- x0 - rate grad loss(x0)`, and that x0 is the answer at the state that the solver has, in the answer's own
    kind: any solver takes it. A step of ddim in rectified time from tau to tau' then takes on the share
    `(tau - tau') / tau` of the move, and the last step all of it; the paper's Euler steps, which keep the moved state,
    are those of the rate `rate tau / (tau - tau')`.

    Args:
        loss: `(x0, **condition) -> (B,)`, differentiable; of the conditions it gets those that it names, or all by
            `**`.
        rate: at least 0, which is the model bit for bit. For a squared error `|A x0 - y|^2 / 2`, 1 over the largest
            eigenvalue of `A^T A` or less. repeat: steps of descent in one evaluation.
        conditions: kinds of the conditions that the loss takes and the model does not.

    Raises:
        ValueError: a rate that is negative or not finite, repeat below 1; as it runs, a loss that does not return one
            number a sample or has no gradient.
    """

    loss: PerSample
    rate: float
    repeat: int

    def __init__(
        self,
        model: Denoiser,
        loss: PerSample,
        rate: float = 1.0,
        repeat: int = 1,
        conditions: Mapping[str, Condition] | None = None,
    ):
        super().__init__(model, checked_strength("rate", rate), conditions)
        self.loss, self.rate, self.repeat = loss, float(rate), check_whole("repeat", repeat)

    def describe(self) -> dict[str, Any]:
        return self.model.describe() | {"rate": self.rate, "repeat": self.repeat}

    def config(self) -> dict[str, Any]:
        own = {"rate": self.rate, "repeat": self.repeat, "conditions": self.added}
        return {"model": self.model, "loss": self.loss} | own

    def forward(self, x: Tensor, t: Tensor, *, memory: AnyMemory | None = None, **condition: Any) -> Prediction:
        inner, at = self.inner(condition), begun(self.process, t)
        if self.rate == 0:
            return ask(self.model, x, t, memory, inner)
        outer, named = torch.is_grad_enabled(), told(self.loss, condition, 1)
        answer = ask(self.model, x, at, memory, inner)
        before = answer.x0
        x0 = before
        with torch.enable_grad():
            for _ in range(self.repeat):
                place = leaf(x0, outer)
                value = per_sample("loss", self.loss(place, **named), len(x))
                x0 = x0 - self.rate * gradient("loss", value, place, outer).to(x0.dtype)
        change = x0 - before if outer else (x0 - before).detach()
        factor = torch.as_tensor(conversion("x0", answer.kind, *scales(self.process, at))[1])
        # Without noise the state is the sample, and nothing moves it.
        factor = torch.where(factor.isfinite(), factor, torch.zeros_like(factor))
        return answer.replaced(answer.value + expand(factor, x) * change, x=x, t=t)
