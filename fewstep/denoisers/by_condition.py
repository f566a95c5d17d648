"""Several students as one: each answers for its own part of the conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.conditions.label import Label
from fewstep.conditions.text import Text
from fewstep.core.denoiser import Denoiser
from fewstep.core.memory import AnyMemory, ask
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction, joined
from fewstep.core.student import Student
from fewstep.denoisers.experts import Several

METHODS = (
    Method(
        "by-condition",
        paper="Multi-student Diffusion Distillation for Better One-step Generators (Song et al., 2024)",
        arxiv="2410.23274",
        claim="several students, each for a part of the conditions, at the cost of one",
        use="ByCondition",
    ),
)


def check_parts(parts: Sequence[Sequence[int]], classes: int) -> None:
    """`ValueError` unless every class is in one part and in no other."""
    where: dict[int, int] = {}
    for number, part in enumerate(parts):
        if not part:
            raise ValueError(f"part {number} has no class")
        for label in part:
            if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < classes:
                raise ValueError(f"part {number} has {label!r}, which is no class: they are 0 to {classes - 1}")
            if label in where:
                again = "twice" if where[label] == number else f"and part {number}"
                raise ValueError(f"class {label} is in part {where[label]} {again}: every class is in one")
            where[label] = number
    if left := sorted(set(range(classes)) - set(where)):
        raise ValueError(f"class {left[0]} is in no part: every class is in one")


def word_counts(captions: Tensor, vocabulary: int) -> Tensor:
    """How often each word is in captions `(B, L)` of indices: `(B, vocabulary)` float32."""
    return F.one_hot(captions, vocabulary + 1).sum(1)[:, 1:].float()


def nearest(counts: Tensor, centres: Tensor) -> Tensor:
    """The centre (K, V) that is nearest to each of some word counts (B, V); of several the first."""
    return (counts[:, None] - centres).square().sum(2).argmin(1)


class ByCondition(Several):
    """Routes by the condition: each row of a batch to the student whose part its label or caption is in.

    A row costs one evaluation of one student, whatever their number. Which row is whose is read from the device, once
    an evaluation. All answers are of the first one's kind that has rows.

    Args:
        denoisers: at least one, of one process, shape and set of conditions.
        parts: the classes of each, which together are all of them; no label goes to the first.
        centres: in place of parts, for captions, the word counts (K, vocabulary) to which a caption's are compared: it
            goes to the nearest.
        student: what they are together, where they were distilled, or its configuration.

    Raises:
        ValueError: denoisers that do not go together, parts that leave a class out or name one twice, another number of
            them than of denoisers, a model without a label (a caption, for centres).
    """

    table: Tensor
    centres: Tensor

    def __init__(
        self,
        denoisers: Sequence[Denoiser],
        parts: Sequence[Sequence[int]] | None = None,
        centres: Tensor | Sequence[Sequence[float]] | None = None,
        student: Student | Mapping[str, Any] | None = None,
    ):
        super().__init__(denoisers)
        if student is not None:
            self.student = Student.from_config(student) if isinstance(student, Mapping) else student
        wanted = Label if centres is None else Text
        named = [name for name, kind in self.conditions.items() if isinstance(kind, wanted)]
        if not named:
            what = "label" if centres is None else "caption of words"
            raise ValueError(f"routing by condition needs a model that is conditioned on a {what}; this one is not")
        if (parts is None) == (centres is None):
            raise ValueError("give either parts, the classes of each student, or centres, of captions")
        count = len(parts) if parts is not None else len(centres)  # type: ignore[arg-type]
        if count != len(denoisers):
            raise ValueError(f"{len(denoisers)} denoisers have as many parts, got {count}")
        self.name = named[0]
        kind: Any = self.conditions[self.name]
        self.parts = None if parts is None else [[int(label) for label in part] for part in parts]
        if parts is not None:
            check_parts(parts, kind.classes)
            table = torch.zeros(kind.classes + 1, dtype=torch.long)  # the last: no label
            for number, part in enumerate(parts):
                table[list(part)] = number
            self.register_buffer("table", table, persistent=False)
        else:
            found = torch.as_tensor(centres, dtype=torch.float32)
            if found.shape != (count, len(kind.vocabulary)):
                wanted_shape = (count, len(kind.vocabulary))
                raise ValueError(f"centres must have shape {wanted_shape}, got {tuple(found.shape)}")
            self.register_buffer("centres", found, persistent=False)

    def config(self) -> dict[str, Any]:
        own: dict[str, Any] = {"denoisers": self.denoisers}
        own |= {"parts": self.parts} if self.parts is not None else {"centres": self.centres.tolist()}
        if self.student is None or self.student is self._expert(0).student:
            return own
        return own | {"student": self.student.config()}

    @property
    def carries(self) -> bool:
        return any(self._expert(k).carries for k in range(len(self.denoisers)))

    def route(self, condition: Mapping[str, Any], batch: int) -> Tensor:
        """Whose each row is, (B,) long."""
        said = condition.get(self.name)
        if said is None:
            said = self.conditions[self.name].check(self.name, None, batch, self.device)
        if self.parts is not None:
            return self.table[said]
        return nearest(word_counts(said, self.centres.shape[1]), self.centres)

    def forward(self, x: Tensor, t: Tensor, *, memory: AnyMemory | None = None, **condition: Any) -> Prediction:
        which = self.route(condition, len(x))
        numbers = which.unique().tolist()
        if len(numbers) == 1:
            return self._answer(numbers[0], x, t, memory, condition)
        answers = []
        for number in numbers:
            rows = (which == number).nonzero().squeeze(1)
            named = {name: v[rows] if isinstance(v, Tensor) and v.ndim else v for name, v in condition.items()}
            part = None if memory is None else memory[rows]
            answers.append((rows, self._answer(number, x[rows], t[rows] if t.ndim else t, part, named)))
        return joined(answers, x, t)

    def _answer(
        self, number: int, x: Tensor, t: Tensor, memory: AnyMemory | None, condition: Mapping[str, Any]
    ) -> Prediction:
        own = None if memory is None else memory.branch(f"student {number}")
        return ask(self._expert(number), x, t, own, condition)
