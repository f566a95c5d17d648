"""Noise-awareness guidance: away from what is answered where the noise level is not known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.denoiser import Denoiser
from fewstep.core.memory import ask
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction, conversion, expand, scales
from fewstep.core.process import Process
from fewstep.guidance.common import method
from fewstep.guidance.kinds import into
from fewstep.guidance.parts import Call, Rule, Source
from fewstep.networks.embedding import Embedding
from fewstep.networks.surgery import InPlaceOf, replaced

METHODS = (
    Method(
        "nag",
        paper="Mitigating the Noise Shift for Denoising Generative Models via Noise Awareness Guidance"
        " (Zhong et al., 2025)",
        arxiv="2510.12497",
        claim="few steps of ddpm come closer to the data, led by grad log p(t | x); solvers of the ODE do not",
        use="nag",
        facts={"wraps": True, "changes": ("plan", "conditions"), "linear": True},
    ),
)

_LEAST = 1e-6  # of alpha


@method("nag", zero=0.0)
def nag(
    model: Denoiser,
    scale: float | Callable[[Any], Any] = 0.5,
    null: Denoiser | None = None,
    classifier: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Source, Rule]:
    """`answer + scale (answer - answer without the noise level)` (Zhong et al., section 4): the difference of the two
    scores is `grad log p(t | x)`, so it draws a state to where its noise level is the nominal one.

    Without `null` and `classifier` the model's own network answers, its noise level hidden: it must be trained with
    `noise_dropout` (`NetworkDenoiser`). That costs another row, in a call of its own. What it learns is the mean of
    what it predicts over the likely levels, which is the gradient for scores alone: v and eps change with the level by
    themselves as well, and in two dimensions the exact means of v and eps (`fewstep.denoisers.noise_free.NoiseFree`)
    bring ddpm nothing, in sixteen as much as that of scores.

    It suits solvers that draw noise at each step. Those of the ODE get worse by it: their states carry the errors of
    the steps before, which they would remove later by themselves. Where alpha is 0 the state is the noise itself,
    nothing can have shifted, and the answer is the model's.

    Args:
        null: a denoiser of the same process and shape that does not look at the time.
        classifier: gives `grad log p(t | x)` itself, by its logits at its `times`, between which their logarithms are
            interpolated in log-SNR; beyond its times it is off. See `fewstep.training.noise_classifier`.

    Raises:
        ValueError: no source of the answer, or two; a `null` of another process or shape; a classifier without times,
            or of another process; as all methods.
    """
    if null is not None and classifier is not None:
        raise ValueError("give one source of the answer without a noise level: null or classifier, not both")
    if classifier is not None:
        return ByClassifier(model, classifier), Rule()
    if null is not None:
        for name, own, other in (("process", model.process, null.process), ("shape", model.shape, null.shape)):
            if own != other:
                raise ValueError(f"null must be of the model's {name}, {own}, got {other}")
        return Null(), Rule()
    if not hiding(model):
        raise ValueError(
            "nag needs an answer without the noise level: a network trained with noise_dropout, null=a denoiser that"
            " knows no time, or classifier=a noise-level classifier"
        )
    return Hidden(), Rule()


def hiding(model: nn.Module) -> list[str]:
    """The paths of the embeddings in a model that know an unknown noise level."""
    return [path for path, part in model.named_modules() if isinstance(part, Embedding) and part.unknown is not None]


class Unaware(InPlaceOf):
    """Stands for an embedding, and hides the noise level from it, and the target's."""

    def forward(self, noise: Tensor | None, label: Tensor | None, batch: int, **extras: Tensor | None) -> Tensor:
        shown = {name: value for name, value in extras.items() if name != "target"}
        return self.of(None, label, batch, **shown)  # type: ignore[no-any-return]


class Hidden(Source):
    """The model's own network, its noise level hidden."""

    branch = "noise-free"

    def answer(self, call: Call, strong: Prediction) -> Prediction:
        parts: dict[str, nn.Module] = {path: Unaware(call.model.get_submodule(path)) for path in hiding(call.model)}
        return _like(strong, ask(replaced(call.model, parts), call.x, call.t, call.memory, call.condition))  # type: ignore[arg-type]


class Null(Source):
    """Another denoiser, that does not look at the time; it gets those of the model's conditions that it takes."""

    branch = "noise-free"

    def answer(self, call: Call, strong: Prediction) -> Prediction:
        null = call.modules.get_submodule("null")
        assert isinstance(null, Denoiser)
        own = {name: value for name, value in call.condition.items() if name in null.conditions}
        return _like(strong, ask(null, call.x, call.t, call.memory, own))


def _like(strong: Prediction, weak: Prediction) -> Prediction:
    """A weak answer in the kind of the strong one; the strong one itself where alpha is 0 and they are of two kinds."""
    if weak.kind == strong.kind:
        return weak
    known = expand(strong.process.alpha(strong.t), strong.x) > 0
    return strong.replaced(torch.where(known, into(strong.kind, weak), strong.value))


class ByClassifier(Source):
    """The model's answer less `grad log p(t | x)`, that of a noise-level classifier, in its kind."""

    branch = "noise-free"

    def __init__(self, model: Denoiser, classifier: Callable[[Tensor], Tensor]):
        times = getattr(classifier, "times", None)
        if times is None or len(times) < 2:
            raise ValueError("a noise-level classifier needs its times, two or more: logits (B, K) of x / alpha at K")
        if (process := getattr(classifier, "process", model.process)) != model.process:
            raise ValueError(f"the noise-level classifier is for {process}, the model has {model.process}")
        self.levels = tuple(model.process.log_snr(float(t)) for t in times)
        # A module is the wrapper's, which moves and copies it.
        self.function = None if isinstance(classifier, nn.Module) else classifier

    def answer(self, call: Call, strong: Prediction) -> Prediction:
        classifier = self.function or call.modules.get_submodule("classifier")
        process, t = strong.process, strong.t
        slope = grad_log_level(classifier, process, self.levels, call.x, t)
        alpha, sigma, dalpha, dsigma = scales(process, t)
        # Of the score, through the other kinds; infinite in x0 where alpha is 0, where the slope is 0 as well.
        factor = torch.as_tensor(conversion("score", strong.kind, alpha.clamp_min(_LEAST), sigma, dalpha, dsigma)[1])
        return strong.replaced(strong.value - expand(factor, slope) * slope)


def grad_log_level(
    classifier: Callable[[Tensor], Tensor], process: Process, levels: Sequence[float], x: Tensor, t: Tensor
) -> Tensor:
    """`grad_x log p(t | x)` `(B, *shape)` of a classifier of `x / alpha`, its `levels` in log-SNR, rising; 0 beyond."""
    known = torch.tensor(levels, dtype=torch.float64).to(x.device, non_blocking=True)
    nominal = process.log_snr(t.double()).expand(x.shape[0]).contiguous()
    after = torch.searchsorted(known, nominal).clamp(1, len(levels) - 1)
    low, high = known[after - 1], known[after]
    inside = (nominal >= known[0] - 1e-9) & (nominal <= known[-1] + 1e-9)
    share = torch.where(inside, (nominal - low) / (high - low), 0.0)
    alpha = expand(process.alpha(t).clamp_min(_LEAST), x)
    further = torch.is_grad_enabled()
    with torch.enable_grad():
        here = x if x.requires_grad else x.detach().requires_grad_(True)
        log_p = classifier(here / alpha).log_softmax(1)
        ends = [log_p.gather(1, (after - one).unsqueeze(1)).squeeze(1) for one in (1, 0)]
        between = torch.lerp(ends[0], ends[1], share.to(log_p.dtype))
        (slope,) = torch.autograd.grad(between.sum(), here, create_graph=further)
    return torch.where(expand(inside.to(x.dtype), x) > 0, slope, 0.0)
