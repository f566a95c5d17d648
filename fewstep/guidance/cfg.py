"""Classifier-free guidance: the step from the unconditional prediction to the conditional one, made longer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction

METHODS = (
    Method(
        "cfg",
        paper="Classifier-Free Diffusion Guidance (Ho and Salimans, 2022)",
        arxiv="2207.12598",
        claim="samples follow their label or caption more closely",
        use="Guided",
        facts={"wraps": True, "changes": ("plan", "solver")},
    ),
)


class Guided(Wrapper):
    """`empty + scale (conditional - empty)`, both in one call of twice the batch (Ho and Salimans, equation 6, whose w
    is `scale - 1`).

    Scale 1 is the base, in one call of its own, bit for bit; 0 ignores the condition. "Empty" is no label and no
    caption, or what `negative` says instead (`negative="blurry"` for the caption, or a mapping of conditions); a
    picture or a number that goes with the sample stays. The rule is linear and says the same in every kind of
    prediction.

    What it extrapolates changes fast with the noise level, and solvers of high order overshoot: at scales above 1 the
    solver is ddim where none is asked for.

    Raises:
        ValueError: a model without a label or caption, a scale that is negative or not finite, a negative caption for
            a model that reads none.
    """

    def __init__(self, model: Denoiser, scale: float, negative: str | Mapping[str, Any] | None = None):
        # The model's plan was found for what it predicts itself.
        changed = {"plan": None if scale != 1 else model.plan, "solver": "ddim" if scale > 1 else model.solver}
        super().__init__(model, **changed)
        if not any(kind.guides for kind in model.conditions.values()):
            raise ValueError("guidance needs a model that is conditioned on a label or a caption; this one is not")
        if not 0 <= scale < float("inf"):
            raise ValueError(f"the guidance scale must be at least 0 and finite, got {scale}")
        self.scale = float(scale)
        self.negative = {"text": negative} if isinstance(negative, str) else dict(negative or {})
        for name in self.negative:
            if name not in model.conditions:
                raise suggest("condition", name, model.conditions)

    def describe(self) -> dict[str, Any]:
        return self.model.describe() | {"guidance scale": self.scale, "negative": self.negative}

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        if self.scale == 1:
            return self.model(x, t, **condition)
        kept = {name: value for name, value in condition.items() if not self.conditions[name].guides}
        empty = self.model.check_condition(kept | self.negative, len(x), x.device)
        both = {name: torch.cat([value, empty[name]]) for name, value in condition.items()}
        answer = self.model(torch.cat([x, x]), t if t.ndim == 0 else torch.cat([t, t]), **both)
        given, nothing = answer.value.chunk(2)
        # What the answer says beside its value is that of the conditional half.
        return answer.part(slice(len(x))).replaced(torch.lerp(nothing, given, self.scale), x=x, t=t)
