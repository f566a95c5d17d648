"""Autoguidance: away from a weaker version of the model, trained less or smaller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fewstep.conditions.picture import Picture
from fewstep.core.denoiser import Denoiser
from fewstep.core.memory import ask
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction
from fewstep.guidance.common import method
from fewstep.guidance.kinds import into
from fewstep.guidance.parts import Call, Rule, Source

METHODS = (
    Method(
        "autoguidance",
        paper="Guiding a Diffusion Model with a Bad Version of Itself (Karras et al., 2024)",
        arxiv="2406.02507",
        claim="samples come closer to the data without a condition, led away from an early checkpoint",
        use="autoguidance",
        facts={"wraps": True, "changes": ("plan", "conditions"), "linear": True},
    ),
)


@method("autoguidance")
def autoguidance(model: Denoiser, weak: Denoiser, scale: float | Callable[[Any], Any] = 2.0) -> tuple[Source, Rule]:
    """`weak + scale (answer - weak)` under the same conditions (Karras et al., equation 3).

    Scale 1 is the model bit for bit; so is any with the model itself as the weak one. Each is a call of its own.

    Args:
        weak: a model of the same shape, process and conditions (or fewer of them) with the same faults, only larger: an
            earlier checkpoint, or a smaller network trained for less long.

    The options of all methods (`interval`, `clamp`, `rescale`) are those of `fewstep.guidance.common.method`.

    Raises:
        ValueError: a weak model of another shape or process, or with conditions that the model does not have; a scale
            that is no number, negative or not finite.
    """
    for name in ("process", "shape"):
        own, other = getattr(model, name), getattr(weak, name)
        if own != other and None not in (own, other):
            raise ValueError(f"the weak model must have the model's {name}, {own}, got {other}")
    for name, kind in weak.conditions.items():
        if name not in model.conditions:
            if kind.guides or isinstance(kind, Picture):
                raise ValueError(f"the weak model takes {name!r}, which the model does not")
        elif model.conditions[name] != kind and (kind.guides or isinstance(kind, Picture)):
            raise ValueError(
                f"the weak model must take {name!r} as the model does, {model.conditions[name]}, got {kind}"
            )
    return Weaker(), Rule()


class Weaker(Source):
    """The answer of the option `weak`."""

    def answer(self, call: Call, strong: Prediction) -> Prediction:
        weak = call.modules.get_submodule("weak")
        assert isinstance(weak, Denoiser)
        shared = {name: value for name, value in call.condition.items() if name in weak.conditions}
        found = ask(weak, call.x, call.t, call.memory, shared)
        # Through another kind by what stays finite where alpha or sigma is 0.
        return found if found.kind == strong.kind else strong.replaced(into(strong.kind, found))
