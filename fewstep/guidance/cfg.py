"""Classifier-free guidance: the step from the unconditional prediction to the conditional one, made longer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from fewstep.conditions.negative import Negative
from fewstep.conditions.number import Number
from fewstep.conditions.prompt import Prompt
from fewstep.core.condition import Condition
from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.errors import suggest
from fewstep.core.memory import AnyMemory, Memory, Part, Together, ask, routed
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction, expand

METHODS = (
    Method(
        "cfg",
        paper="Classifier-Free Diffusion Guidance (Ho and Salimans, 2022)",
        arxiv="2207.12598",
        claim="samples follow their label or caption more closely",
        use="Guided",
        facts={"wraps": True, "changes": ("plan", "conditions")},
    ),
)

SCALE = "guidance"  # the condition by which a caller or a plan sets the scale
AWAY = "negative"  # the condition by which a caller sets what guidance leads away from
_EACH = "scale of each row"  # its name while rows are routed


class Guided(Wrapper):
    """`empty + scale (conditional - empty)`, both in one call of twice the batch (Ho and Salimans, equation 6, whose w
    is `scale - 1`), or in one call each where the prompts differ in length.

    The condition `guidance` sets the scale for a run, for each sample (a list), or for each evaluation (the numbers of
    a plan, `fs.plan(..., guidance=[...])`); without it `scale` holds. For a model that has a condition `guidance` of
    its own, distilled into it, the condition sets that one.

    Scale 1 is the base, in one call of its own, bit for bit; 0 ignores the condition. "Empty" is no label and no
    caption, or what `negative` says instead: `negative="blurry"` for the caption, `["blurry", "dark"]` for that of each
    sample, or a mapping of conditions (`{"label": 3}`), whose lists are one for each sample too. The condition
    `negative` says it anew for a run. A picture or a number that goes with the sample stays. The rule is linear, so it
    is the same in every kind of prediction.

    Raises:
        ValueError: a model without a label or caption, a scale that is no number, negative or not finite, a `negative`
            that is neither captions nor a mapping, or that the model does not take.
    """

    scale: float
    takes_scale: bool
    negative: dict[str, Any]
    takes_negative: bool
    each: bool  # whether `negative` differs from sample to sample
    _parts: tuple[str, ...]

    def __init__(
        self, model: Denoiser, scale: float, negative: str | Sequence[str | None] | Mapping[str, Any] | None = None
    ):
        if not any(kind.guides for kind in model.conditions.values()):
            raise ValueError("guidance needs a model that is conditioned on a label or a caption; this one is not")
        if isinstance(scale, bool) or not isinstance(scale, Real) or not 0 <= scale < float("inf"):
            raise ValueError(f"the guidance scale must be at least 0 and finite, got {scale!r}")
        self.negative = _named(negative, model)
        own: dict[str, Condition] = {} if SCALE in model.conditions else {SCALE: Number(0.0, None, float(scale))}
        # Around a guided model, `negative` is that one's.
        self.takes_negative = not any(isinstance(kind, Negative) for kind in model.conditions.values())
        if self.takes_negative:
            text = self.negative.get("text")
            for name, kind in model.conditions.items():
                if kind.guides:
                    usual = self.negative.get(name, text if isinstance(kind, Prompt) else None)
                    own[f"{AWAY}_{name}"] = Negative(kind, usual)
        self.each = any(_count(model.conditions[name], value) > 1 for name, value in self.negative.items())
        super().__init__(
            model,
            plan=None if scale != 1 else model.plan,  # the model's plan was found for its own predictions
            conditions={**model.conditions, **own},
        )
        self.scale, self.takes_scale = float(scale), SCALE in own
        self._parts = tuple(name for name in model.conditions if f"{AWAY}_{name}" in own)
        # The empty condition, one row for all where it is the same for all: checking it at every evaluation would read
        # tensors, and a count of rows in it would be the only batch size of an exported program.
        self._empty: tuple[tuple[torch.device, frozenset[str]], dict[str, Tensor]] | None = None

    @property
    def carries(self) -> bool:
        return True

    def describe(self) -> dict[str, Any]:
        return self.model.describe() | {"guidance scale": self.scale, "negative": self.negative}

    def config(self) -> dict[str, Any]:
        return {"model": self.model, "scale": self.scale, "negative": self.negative}

    def check_condition(self, condition: Mapping[str, Any], batch: int, device: torch.device) -> dict[str, Tensor]:
        """As the model's, and `guidance` where it is given (without it `scale` holds), and what to lead away from where
        `negative` is given or differs from sample to sample, as `negative_text` and so on."""
        rest = dict(condition)
        scale = rest.pop(SCALE, None) if self.takes_scale else None
        away = self._away(rest)
        named = self.model.check_condition(rest, batch, device)
        if scale is not None:
            named[SCALE] = self.conditions[SCALE].check(SCALE, scale, batch, device)
        if away is not None or (self.each and self.takes_negative):
            empty = self._checked(named, self.negative if away is None else away, batch, device)
            named |= {f"{AWAY}_{name}": value for name, value in empty.items() if f"{AWAY}_{name}" in self.conditions}
        return named

    def _away(self, condition: dict[str, Any]) -> dict[str, Any] | None:
        """What the conditions say to lead away from, taken out of them, by the model's own names; None for nothing."""
        if not self.takes_negative:
            return None
        said = condition.pop(AWAY, None)
        parts = [name for name in condition if name.startswith(f"{AWAY}_") and name in self.conditions]
        found = {name[len(AWAY) + 1 :]: condition.pop(name) for name in parts}
        found = {name: value for name, value in found.items() if value is not None}
        return None if said is None and not found else _named(said, self.model) | found

    def _checked(
        self, condition: Mapping[str, Tensor], away: Mapping[str, Any], batch: int, device: torch.device
    ) -> dict[str, Tensor]:
        """All conditions of the empty branch; those that go with the sample, a picture or a number, stay."""
        kept = {name: value for name, value in condition.items() if name in self.model.conditions}
        kept = {name: value for name, value in kept.items() if not self.model.conditions[name].guides}
        try:
            return self.model.check_condition(kept | dict(away), batch, device)
        except ValueError as error:
            raise ValueError(f"{AWAY}: {error}") from None

    def forward(self, x: Tensor, t: Tensor, *, memory: AnyMemory | None = None, **condition: Any) -> Prediction:
        scale = condition.pop(SCALE, None) if self.takes_scale else None

        def told(part: Memory | Part) -> float | None:
            """The scale as a number on the host, or None where only the tensor has it."""
            return part.given.get(SCALE, self.scale) if self.takes_scale else self.scale

        if memory is None:
            alone = self.scale if scale is None else None
            return self._answer(alone == 1, alone, x, t, None, condition | {_EACH: scale})

        def answer(plain: bool, x: Tensor, t: Tensor, memory: AnyMemory, condition: dict[str, Any]) -> Prediction:
            scales = {told(part) for part in memory.parts()}
            return self._answer(plain, scales.pop() if len(scales) == 1 else None, x, t, memory, condition)

        return routed(memory, lambda part: told(part) == 1, answer, x, t, condition | {_EACH: scale})

    def _answer(
        self,
        plain: bool,
        scale: float | None,
        x: Tensor,
        t: Tensor,
        memory: AnyMemory | None,
        condition: dict[str, Any],
    ) -> Prediction:
        """`scale` is one number for all rows, or None where `condition` has one for each."""
        scales = condition.pop(_EACH)
        given = None if memory is None else memory.branch("given")
        away = {name: condition.pop(f"{AWAY}_{name}") for name in self._parts if f"{AWAY}_{name}" in condition}
        if plain:
            return ask(self.model, x, t, given, condition)
        rows = x.shape[0]  # neither len() nor chunk(): they would fix an exported program's batch
        empty = away or self._empty_condition(condition, rows, x.device)
        apart = None if memory is None else memory.branch("empty")
        if all(value.shape[1:] == condition[name].shape[1:] for name, value in empty.items()):
            both = {name: torch.cat([value, empty.get(name, value)]) for name, value in condition.items()}
            twice = None if given is None or apart is None else Together([given, apart])
            times = t if t.ndim == 0 else torch.cat([t, t])
            answer = ask(self.model, torch.cat([x, x]), times, twice, both)
            conditional, nothing = answer.value[:rows], answer.value[rows:]
        else:  # prompts of another length, which share no call
            answer = ask(self.model, x, t, given, condition)
            conditional, nothing = answer.value, ask(self.model, x, t, apart, condition | empty).to(answer.kind)
        weight: Any = scale if scale is not None else expand(scales, x).to(nothing.dtype)
        # The answer's other fields are those of the conditional half.
        return answer.part(slice(rows)).replaced(torch.lerp(nothing, conditional, weight), x=x, t=t)

    def _empty_condition(self, condition: Mapping[str, Tensor], batch: int, device: torch.device) -> dict[str, Tensor]:
        """The empty conditions; those that go with the sample, a picture or a number, are not among them."""
        kept = {name: value for name, value in condition.items() if not self.model.conditions[name].guides}
        key, known = (device, frozenset(kept)), self._empty
        if known is None or known[0] != key or any(len(rows) not in (1, batch) for rows in known[1].values()):
            try:
                named = self._checked({name: value[:1] for name, value in kept.items()}, self.negative, 1, device)
            except ValueError:  # what is negative differs from row to row
                named = self._checked(kept, self.negative, batch, device)
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
