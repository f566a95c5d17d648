"""Classifier-free guidance: the step from the unconditional prediction to the conditional one, made longer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.conditions.number import Number
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
        facts={"wraps": True, "changes": ("plan", "solver", "conditions")},
    ),
)

SCALE = "guidance"  # the condition by which a caller or a plan sets the scale
_EACH = "scale of each row"  # its name while rows are routed


class Guided(Wrapper):
    """`empty + scale (conditional - empty)`, both in one call of twice the batch (Ho and Salimans, equation 6, whose w
    is `scale - 1`).

    The condition `guidance` sets the scale for a run, for each sample (a list), or for each evaluation (the numbers of
    a plan, `fs.plan(..., guidance=[...])`); without it `scale` holds. For a model that has a condition `guidance` of
    its own, distilled into it, the condition sets that one.

    Scale 1 is the base, in one call of its own, bit for bit; 0 ignores the condition. "Empty" is no label and no
    caption, or what `negative` says instead (`negative="blurry"` for the caption, or a mapping of conditions); a
    picture or a number that goes with the sample stays. The rule is linear, so it is the same in every kind of
    prediction.

    The extrapolated prediction changes fast with the noise level, and solvers of high order overshoot: at scales above
    1 the default solver is ddim.

    Raises:
        ValueError: a model without a label or caption, a scale that is negative or not finite, a negative caption for
            a model that reads none.
    """

    def __init__(self, model: Denoiser, scale: float, negative: str | Mapping[str, Any] | None = None):
        if not any(kind.guides for kind in model.conditions.values()):
            raise ValueError("guidance needs a model that is conditioned on a label or a caption; this one is not")
        if not 0 <= scale < float("inf"):
            raise ValueError(f"the guidance scale must be at least 0 and finite, got {scale}")
        own = {} if SCALE in model.conditions else {SCALE: Number(0.0, None, float(scale))}
        super().__init__(
            model,
            plan=None if scale != 1 else model.plan,  # the model's plan was found for its own predictions
            solver="ddim" if scale > 1 else model.solver,
            conditions={**model.conditions, **own},
        )
        self.scale, self.takes_scale = float(scale), bool(own)
        self.negative = {"text": negative} if isinstance(negative, str) else dict(negative or {})
        for name in self.negative:
            if name not in model.conditions:
                raise suggest("condition", name, model.conditions)
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
        """As the model's, and `guidance` where it is given: without it `scale` holds."""
        rest = dict(condition)
        scale = rest.pop(SCALE, None) if self.takes_scale else None
        named = self.model.check_condition(rest, batch, device)
        return named if scale is None else named | {SCALE: self.conditions[SCALE].check(SCALE, scale, batch, device)}

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
        if plain:
            return ask(self.model, x, t, given, condition)
        empty = self._empty_condition(condition, x.shape[0], x.device)
        both = {name: torch.cat([value, empty.get(name, value)]) for name, value in condition.items()}
        twice = None if given is None or memory is None else Together([given, memory.branch("empty")])
        times = t if t.ndim == 0 else torch.cat([t, t])
        answer = ask(self.model, torch.cat([x, x]), times, twice, both)
        rows = x.shape[0]  # neither len() nor chunk(): they would fix an exported program's batch
        conditional, nothing = answer.value[:rows], answer.value[rows:]
        weight: Any = scale if scale is not None else expand(scales, x).to(nothing.dtype)
        # The answer's other fields are those of the conditional half.
        return answer.part(slice(rows)).replaced(torch.lerp(nothing, conditional, weight), x=x, t=t)

    def _empty_condition(self, condition: Mapping[str, Tensor], batch: int, device: torch.device) -> dict[str, Tensor]:
        """The empty conditions; those that go with the sample, a picture or a number, are not among them."""
        kept = {name: value for name, value in condition.items() if not self.model.conditions[name].guides}
        key, known = (device, frozenset(kept)), self._empty
        if known is None or known[0] != key or any(len(rows) not in (1, batch) for rows in known[1].values()):
            try:
                one = {name: value[:1] for name, value in kept.items()}
                named = self.model.check_condition(one | self.negative, 1, device)
            except ValueError:  # what is negative differs from row to row
                named = self.model.check_condition(kept | self.negative, batch, device)
            apart = {name: value for name, value in named.items() if name not in kept or name in self.negative}
            self._empty = known = key, apart
        return {name: rows.expand(batch, *rows.shape[1:]) for name, rows in known[1].items()}
