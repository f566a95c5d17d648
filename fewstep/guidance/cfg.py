"""Classifier-free guidance: the step from the unconditional prediction to the conditional one, made longer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.conditions.negative import Negative
from fewstep.conditions.prompt import Prompt
from fewstep.core.condition import Condition
from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.guidance.common import method
from fewstep.guidance.guided import Guided
from fewstep.guidance.parts import Call, Rule, Source

METHODS = (
    Method(
        "cfg",
        paper="Classifier-Free Diffusion Guidance (Ho and Salimans, 2022)",
        arxiv="2207.12598",
        claim="samples follow their label or caption more closely",
        use="cfg",
        facts={"wraps": True, "changes": ("plan", "conditions"), "linear": True},
    ),
)

AWAY = "negative"  # the condition by which a caller sets what guidance leads away from
Away = str | Sequence[str | None] | Mapping[str, Any] | None


@method("cfg")
def cfg(model: Denoiser, scale: float | Callable[[Any], Any] = 2.0, negative: Away = None) -> tuple[Source, Rule]:
    """`empty + scale (conditional - empty)`, both in one call of twice the batch (Ho and Salimans, equation 6, whose w
    is `scale - 1`), or in one call each where the prompts differ in length.

    Scale 1 is the base, in one call of its own, bit for bit; 0 ignores the condition. "Empty" is no label and no
    caption, or what `negative` says instead: `negative="blurry"` for the caption, `["blurry", "dark"]` for that of each
    sample, or a mapping of conditions (`{"label": 3}`), whose lists are one for each sample too. The condition
    `negative` says it anew for a run. A picture or a number that goes with the sample stays. The rule is linear, so it
    is the same in every kind of prediction.

    The options of all methods (`interval`, `clamp`, `rescale`) are those of `fewstep.guidance.common.method`.

    Raises:
        ValueError: a model without a label or caption, a scale that is no number, negative or not finite, a `negative`
            that is neither captions nor a mapping, or that the model does not take.
    """
    return Empty(model, negative), Rule()


class Empty(Source):
    """The model under its empty conditions, or under what `negative` says instead."""

    branch = "empty"

    def __init__(self, model: Denoiser, negative: Away = None):
        # Around a guided model the condition `negative` is that one's.
        self.takes = not any(isinstance(kind, Negative) for kind in model.conditions.values())
        inside = model.model if isinstance(model, Guided) else model
        if not any(kind.guides for kind in inside.conditions.values()):
            raise ValueError("guidance needs a model that is conditioned on a label or a caption; this one is not")
        self.negative = _named(negative, inside)
        self.each = any(_count(inside.conditions[name], value) > 1 for name, value in self.negative.items())
        # The empty condition, one row for all where it is the same for all: checking it at every evaluation would read
        # tensors, and a count of rows in it would be the only batch size of an exported program.
        self._empty: tuple[tuple[torch.device, frozenset[str]], dict[str, Tensor]] | None = None

    def adds(self, model: Denoiser) -> dict[str, Condition]:
        if not self.takes:
            return {}
        found: dict[str, Condition] = {}
        text = self.negative.get("text")
        for name, kind in model.conditions.items():
            if kind.guides:
                usual = self.negative.get(name, text if isinstance(kind, Prompt) else None)
                found[f"{AWAY}_{name}"] = Negative(kind, usual)
        return found

    def take(self, condition: dict[str, Any], model: Denoiser) -> dict[str, Any] | None:
        """What the conditions say to lead away from, by the model's own names; None for nothing."""
        if not self.takes:
            return None
        said, known = condition.pop(AWAY, None), {f"{AWAY}_{name}" for name in model.conditions}
        parts = [name for name in condition if name in known]
        found = {name[len(AWAY) + 1 :]: condition.pop(name) for name in parts}
        found = {name: value for name, value in found.items() if value is not None}
        return None if said is None and not found else _named(said, model) | found

    def checked(
        self, said: Any, condition: Mapping[str, Tensor], model: Denoiser, batch: int, device: torch.device
    ) -> dict[str, Tensor]:
        if not self.takes or (said is None and not self.each):
            return {}
        empty = self._whole(condition, self.negative if said is None else said, model, batch, device)
        guiding = [name for name, kind in model.conditions.items() if kind.guides]
        return {f"{AWAY}_{name}": empty[name] for name in guiding if name in empty}

    def shares(self, call: Call, condition: Mapping[str, Any]) -> dict[str, Tensor] | None:
        own = call.condition
        if self.takes:
            away = {name: condition[key] for name in own if (key := f"{AWAY}_{name}") in condition}
            if away:
                return away
        return self._usual(own, call.model, call.x.shape[0], call.x.device)

    def _whole(
        self,
        condition: Mapping[str, Tensor],
        away: Mapping[str, Any],
        model: Denoiser,
        batch: int,
        device: torch.device,
    ) -> dict[str, Tensor]:
        """All conditions of the empty branch; those that go with the sample, a picture or a number, stay."""
        kept = {name: value for name, value in condition.items() if name in model.conditions}
        kept = {name: value for name, value in kept.items() if not model.conditions[name].guides}
        try:
            return model.check_condition(kept | dict(away), batch, device)
        except ValueError as error:
            raise ValueError(f"{AWAY}: {error}") from None

    def _usual(
        self, condition: Mapping[str, Tensor], model: Denoiser, batch: int, device: torch.device
    ) -> dict[str, Tensor]:
        """The empty conditions; those that go with the sample, a picture or a number, are not among them."""
        kept = {name: value for name, value in condition.items() if not model.conditions[name].guides}
        key, known = (device, frozenset(kept)), self._empty
        if known is None or known[0] != key or any(len(rows) not in (1, batch) for rows in known[1].values()):
            try:
                one = {name: value[:1] for name, value in kept.items()}
                named = self._whole(one, self.negative, model, 1, device)
            except ValueError:  # what is negative differs from row to row
                named = self._whole(kept, self.negative, model, batch, device)
            apart = {name: value for name, value in named.items() if name not in kept or name in self.negative}
            self._empty = known = key, apart
        return {name: rows.expand(batch, *rows.shape[1:]) for name, rows in known[1].items()}


def _named(negative: Any, model: Denoiser) -> dict[str, Any]:
    """What to lead away from by the model's conditions; `ValueError` for what they are not."""
    found = negative
    captions = isinstance(negative, list | tuple) and all(isinstance(one, str | None) for one in negative)
    if isinstance(negative, str) or (captions and negative):
        found = {"text": list(negative) if captions else negative}
    if not isinstance(found, Mapping | None):
        wanted = "a caption, one for each sample, or a mapping of conditions such as {'label': 3}"
        raise ValueError(f"{AWAY} must be {wanted}, got {negative!r}")
    for name in found or {}:
        if name not in model.conditions:
            raise ValueError(f"{AWAY}: {suggest('condition', name, model.conditions)}")
    return dict(found or {})


def _count(kind: Condition, value: Any) -> int:
    """For how many samples a value speaks."""
    if not isinstance(value, Tensor):
        return len(value) if isinstance(value, list | tuple) else 1
    try:
        return len(kind.check(AWAY, value, 1, value.device))
    except ValueError:
        return len(value)
