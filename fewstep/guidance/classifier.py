"""Classifier guidance: the gradient of a noisy sample's log-probability of a label, added to the score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from fewstep.conditions.label import Label
from fewstep.core.condition import Condition
from fewstep.core.denoiser import Denoiser
from fewstep.core.memory import AnyMemory, ask
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction, expand
from fewstep.core.process import Process
from fewstep.guidance.energy import Steered, begun, checked_strength, gradient, leaf, moved, per_sample, told

METHODS = (
    Method(
        "classifier",
        paper="Diffusion Models Beat GANs on Image Synthesis (Dhariwal and Nichol, 2021)",
        arxiv="2105.05233",
        claim="a model without labels sampled by label, by the gradient of a classifier of noisy samples",
        use="Classified",
        facts={"wraps": True, "changes": ("plan", "conditions")},
    ),
)


class Levels(Protocol):
    """A classifier of noise levels, as `training/noise_classifier.py` has: logits `(B, K)` of `y = x / alpha`, each of
    the `times` equally likely beforehand."""

    process: Process
    times: Sequence[float]

    def __call__(self, y: Tensor) -> Tensor: ...


def level_log_probability(levels: Levels) -> Callable[..., Tensor]:
    """`(x, t) -> log p(the level of t | x)` `(B,)`: linear in log-SNR between levels, beyond them the last one's."""
    known = torch.tensor([levels.process.log_snr(float(t)) for t in levels.times], dtype=torch.float64)

    def log_probability(x: Tensor, t: Tensor) -> Tensor:
        alpha = expand(levels.process.alpha(t), x)
        found = torch.log_softmax(levels(x / alpha), 1).to(x.dtype)
        at, rising = levels.process.log_snr(t).expand(len(x)), known.to(x.device)
        above = torch.searchsorted(rising, at.contiguous()).clamp(1, len(rising) - 1)
        share = ((at - rising[above - 1]) / (rising[above] - rising[above - 1])).clamp(0, 1).to(x.dtype)
        low, high = (found.gather(1, place[:, None])[:, 0] for place in (above - 1, above))
        return torch.lerp(low, high, share)

    return log_probability


class Classified(Steered):
    """The score plus `scale grad log p_t(label | x)` (Dhariwal and Nichol, equation 14 and algorithm 2).

    At scale 1 that is the score of the conditional law, by Bayes' rule; above it the label counts as often. Rows whose
    label is empty are the model's own.

    Args:
        log_probability: `(x, t, **condition) -> (B,)` of the noisy state, differentiable; of the conditions it gets
            those that it names, or all by `**`. Or a classifier of noise levels (`fewstep.training.noise_classifier`):
            the score is then led to where a sample looks as noisy as it is. Or an object with such a method, as
            `fewstep.training.ppap.fit_experts` gives.
        classes: labels that the function knows, where the model has no condition `label`: the wrapper has one then.
        scale, normalise, conditions: as of `energy`.

    Raises:
        ValueError: a scale that is negative or not finite; as it runs, a function that does not return one number a
            sample or has no gradient.
    """

    log_probability: Callable[..., Tensor]
    classes: int | None
    scale: float
    normalise: bool

    def __init__(
        self,
        model: Denoiser,
        log_probability: Callable[..., Tensor],
        classes: int | None = None,
        scale: float = 1.0,
        normalise: bool = False,
        conditions: Mapping[str, Condition] | None = None,
    ):
        added = dict(conditions or {}) | ({} if classes is None else {"label": Label(classes)})
        super().__init__(model, checked_strength("scale of the gradient", scale), added)
        self.log_probability, self.classes = log_probability, classes
        self.scale, self.normalise = float(scale), normalise
        levels: Any = log_probability
        leveled = hasattr(log_probability, "times") and hasattr(log_probability, "process")
        # The experts of a guide (`fewstep.training.ppap.fit_experts`) have such a function.
        function = getattr(log_probability, "log_probability", log_probability)
        self._function: Any = level_log_probability(levels) if leveled else function

    def describe(self) -> dict[str, Any]:
        return self.model.describe() | {"gradient scale": self.scale}

    def config(self) -> dict[str, Any]:
        rest = {name: kind for name, kind in self.added.items() if name != "label" or self.classes is None}
        own = {"scale": self.scale, "normalise": self.normalise, "conditions": rest}
        return {"model": self.model, "log_probability": self.log_probability, "classes": self.classes} | own

    def forward(self, x: Tensor, t: Tensor, *, memory: AnyMemory | None = None, **condition: Any) -> Prediction:
        at, outer = begun(self.process, t), torch.is_grad_enabled()
        answer = ask(self.model, x, t, memory, self.inner(condition))
        if self.scale == 0:
            return answer
        named = told(self._function, condition, 2)
        empty = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for name, kind in self.conditions.items():
            if isinstance(kind, Label) and name in named:
                empty = empty | (named[name] == kind.classes)
                named[name] = named[name].clamp(max=kind.classes - 1)
        with torch.enable_grad():
            place = leaf(x, outer)
            value = per_sample("log-probability", self._function(place, at, **named), len(x))
            found = gradient("log-probability", torch.where(empty, torch.zeros_like(value), value), place, outer)
        return moved(answer, -found, at, self.scale, self.normalise)
