"""FasterCache: attention is forecast at some evaluations, and under guidance the empty answer follows the given one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fewstep.caching.attention import attention_parts
from fewstep.caching.method import method
from fewstep.caching.recipe import Recipe
from fewstep.caching.schedule import Keys, every, not_negative, whole_number, within
from fewstep.core.condition import Condition
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction, conversion, expand, scales
from fewstep.guidance.bands import low_pass
from fewstep.guidance.cfg import Empty
from fewstep.guidance.guided import Guided
from fewstep.guidance.parts import Call, Host, Source
from fewstep.networks.surgery import replaced

METHODS = (
    Method(
        "faster-cache",
        kind="cache",
        paper="FasterCache: Training-Free Video Diffusion Model Acceleration with High Quality (Lv et al., 2024)",
        arxiv="2410.19355",
        claim="forecasts attention, and under guidance makes empty answers of given ones and what set them apart",
        use="faster_cache",
        facts={"wraps": True},
    ),
)

LOW, HIGH = "low @guidance", "high @guidance"  # the bands of what sets the empty answer apart from the given one


@method("faster-cache")
def faster_cache(
    model: Denoiser,
    interval: int = 2,
    guidance: int = 5,
    gain: float = 0.2,
    start: float = 1 / 3,
    stop: float = 1.0,
) -> Recipe:
    """The model, whose attention is forecast at some evaluations, and whose guidance makes most empty answers up.

    Attention runs at every `interval`-th evaluation and is forecast linearly in log-SNR in between, through the last
    two answers (Lv et al., equation 4, extrapolate by a weight that rises over the run). Around guidance by an empty
    condition, "cfg" or another, the empty answer is asked for at every `guidance`-th evaluation only, where attention
    runs as well. In between it is the given one and what set the two apart when both were asked, in eps:
    `empty = given + w1 low + w2 high` (equations 9 to 11), where `w1 = 1 + gain` in the first half of the run,
    `w2 = 1 + gain` in the second, and both are 1 else. Low is what is left at half the size
    (`fewstep.guidance.bands.low_pass`; the paper takes Fourier's frequencies). With both intervals 1 it is the model
    itself, bit for bit.

    Args:
        interval, guidance: at least 1. Without guidance the second has no effect.
        gain: by how much what differs is enlarged.
        start, stop: the fractions of the run between which anything is left out.

    Raises:
        ValueError: a number outside its range, a network without attention.
    """
    interval, guidance = whole_number("interval", interval), whole_number("guidance", guidance)
    gain = not_negative("gain", gain)
    parts = {name: part for kind in attention_parts(model).values() for name, part in kind.items()}
    path = _guided(model) if guidance > 1 else None
    asked = within(every(guidance), start, stop)
    runs = within(every(interval), start, stop)

    def standing(number: int, count: int) -> tuple[str, ...]:
        whole = runs(number, count) or (path is not None and guidance > 1 and asked(number, count))
        return () if whole else tuple(parts)

    return Recipe(
        parts,
        standing,
        2,
        never=interval == 1 and path is None,
        around=None if path is None else lambda made: _cheaper(made, path, asked, gain),
    )


def _guided(model: Denoiser) -> str | None:
    """The path of the first guidance by an empty condition in a model, None where there is none."""
    for name, module in model.named_modules():
        if isinstance(module, Guided) and any(type(guide.source) is Empty for guide in module.guides):
            return name
    return None


def _cheaper(model: Denoiser, path: str, asked: Keys, gain: float) -> Denoiser:
    """The model with guidance at a path whose empty answers are asked for at some evaluations only."""
    guided = model.get_submodule(path) if path else model
    own = replaced(guided, {"model": guided.model})  # type: ignore[dict-item]
    assert isinstance(guided, Guided) and isinstance(own, Guided)
    own.guides = tuple(
        replace(guide, source=MadeUp(guide.source, guided.branch(i), asked, gain))
        if type(guide.source) is Empty
        else guide
        for i, guide in enumerate(guided.guides)
    )
    found = replaced(model, {path: own}) if path else own
    assert isinstance(found, Denoiser)
    return found


class MadeUp(Source):
    """The answers of a source at some evaluations, and in between the given answer and what set them apart.

    name: of the method's branch of the memory. asked: at which evaluations it is.
    """

    def __init__(self, source: Source, name: str, asked: Keys, gain: float):
        self.source, self.name, self.asked, self.gain = source, name, asked, gain
        self.__dict__["branch"] = source.branch

    def host(self, part: Host) -> tuple[float, float] | None:
        """The weights of the two bands; None where the source is asked."""
        if part is None or self.asked(part.number, len(part.times)) or not part.branch(self.name).notes.get(MadeUp):
            return None
        place = part.number / len(part.times) if part.times else None
        return 1 + self.gain * (place is not None and place < 0.5), 1 + self.gain * (place is not None and place >= 0.5)

    def adds(self, model: Denoiser) -> dict[str, Condition]:
        return self.source.adds(model)

    def take(self, condition: dict[str, Any], model: Denoiser) -> Any:
        return self.source.take(condition, model)

    def checked(
        self, said: Any, condition: Mapping[str, Tensor], model: Denoiser, batch: int, device: torch.device
    ) -> dict[str, Tensor]:
        return self.source.checked(said, condition, model, batch, device)

    def shares(self, call: Call, condition: Mapping[str, Any]) -> dict[str, Tensor] | None:
        return self.source.shares(call, condition) if call.decided[0] is None else None

    def answer(self, call: Call, strong: Prediction) -> Prediction:
        if call.decided[0] is None:
            return self.source.answer(call, strong)
        assert call.memory is not None
        low, high = (call.memory.get(name) for name in (LOW, HIGH))
        assert low is not None and high is not None
        first, second = call.decided[0]
        return strong.replaced(strong.value + _per("eps", strong.kind, strong) * (first * low + second * high))

    def seen(self, call: Call, strong: Prediction, weak: Prediction) -> None:
        if call.decided[0] is None and call.memory is not None:
            apart = _per(strong.kind, "eps", strong) * (weak.to(strong.kind) - strong.value)
            low = low_pass(apart, 1)
            call.memory.keep(LOW, low)
            call.memory.keep(HIGH, apart - low)
            for part in call.memory.parts():
                part.notes[MadeUp] = True


def _per(source: str, target: str, at: Prediction) -> Tensor:
    """By how much answers of one kind differ, at one state, for a difference of 1 in another kind."""
    factor = conversion(source, target, *scales(at.process, at.t))[1]
    return expand(torch.as_tensor(factor), at.x)
