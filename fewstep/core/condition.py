"""What a denoiser may be conditioned on: a class, a caption or a picture. Each knows its empty value and its checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from fewstep.core.errors import suggest


class Condition(Protocol):
    """A kind of condition: turns what a caller gives into a tensor of `batch` rows, or raises `ValueError`.

    `guides`: whether it has an empty value from which guidance leads away, as captions and labels have.
    """

    guides: ClassVar[bool]

    def check(self, name: str, value: Any, batch: int, device: torch.device) -> Tensor: ...

    def config(self) -> dict[str, Any]:
        """JSON from which `condition_from_config` makes it again."""
        ...


@dataclass(frozen=True)
class Label:
    """A class label in [0, classes); None means "no label", which in tensors is the index `classes`."""

    guides: ClassVar[bool] = True
    classes: int

    def config(self) -> dict[str, Any]:
        return {"kind": "label", "classes": self.classes}

    def check(self, name: str, value: Any, batch: int, device: torch.device) -> Tensor:
        """The condition as a `(batch,)` long tensor; `ValueError` when out of range or of another length."""
        if value is None:
            value = self.classes
        elif isinstance(value, int) and value == self.classes:
            raise ValueError(f"{name} {value} is out of range: 0 to {value - 1}, or None for no label")
        try:
            labels = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{name} must be whole numbers, got {value!r}") from None
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise ValueError(f"{name} must be whole numbers, got {labels.dtype}")
        if labels.ndim > 1 or (labels.ndim == 1 and labels.shape[0] not in (1, batch)):
            raise ValueError(f"{name} must be one number or {batch} of them, got shape {tuple(labels.shape)}")
        if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) > self.classes):
            bad = int(labels.min()) if int(labels.min()) < 0 else int(labels.max())
            raise ValueError(f"{name} {bad} is out of range: 0 to {self.classes - 1}, or None for no label")
        return labels.long().expand(batch).to(device)


@dataclass(frozen=True)
class Text:
    """A caption of at most `length` words of a vocabulary. None and "" mean "no caption", in tensors all zeros.

    In tensors word i of the vocabulary is the index i + 1; 0 fills up to `length`.
    """

    guides: ClassVar[bool] = True
    vocabulary: tuple[str, ...]
    length: int

    def config(self) -> dict[str, Any]:
        return {"kind": "text", "vocabulary": list(self.vocabulary), "length": self.length}

    @cached_property
    def _index(self) -> dict[str, int]:
        return {word: number + 1 for number, word in enumerate(self.vocabulary)}

    def tokens(self, caption: str) -> list[int]:
        """The indices of a caption's words, `length` of them; `ValueError` for an unknown word or too many words."""
        words = caption.lower().replace(",", " ").split()
        if len(words) > self.length:
            raise ValueError(f"a caption has at most {self.length} words, got {len(words)}: {caption!r}")
        for word in words:
            if word not in self._index:
                raise suggest("word", word, self.vocabulary)
        return [self._index[word] for word in words] + [0] * (self.length - len(words))

    def words(self, tokens: Sequence[int]) -> str:
        """The caption of a row of indices."""
        return " ".join(self.vocabulary[token - 1] for token in tokens if token)

    def check(self, name: str, value: Any, batch: int, device: torch.device) -> Tensor:
        """The condition as `(batch, length)` long; from None, a caption, a list of captions, or indices."""
        if value is None:
            value = ""
        if isinstance(value, str):
            value = [value]
        if isinstance(value, Tensor):
            rows = value if value.ndim == 2 else value[None]
            if rows.is_floating_point() or rows.ndim != 2 or rows.shape[1] != self.length:
                raise ValueError(
                    f"{name} must be captions or whole numbers ({batch}, {self.length}),"
                    f" got shape {tuple(value.shape)} of {value.dtype}"
                )
            if rows.numel() and (int(rows.min()) < 0 or int(rows.max()) > len(self.vocabulary)):
                raise ValueError(f"{name} holds indices outside 0 to {len(self.vocabulary)}")
        elif isinstance(value, Sequence) and all(isinstance(entry, str | None) for entry in value) and value:
            rows = torch.tensor([self.tokens(entry or "") for entry in value])
        else:
            raise ValueError(f"{name} must be a caption or a list of captions, got {value!r}")
        if len(rows) not in (1, batch):
            raise ValueError(f"{name} must be one caption or {batch} of them, got {len(rows)}")
        return rows.long().expand(batch, self.length).to(device)


@dataclass(frozen=True)
class Picture:
    """A tensor that goes with every sample, such as the degraded picture to restore. It has no empty value."""

    guides: ClassVar[bool] = False
    shape: tuple[int, ...]

    def config(self) -> dict[str, Any]:
        return {"kind": "picture", "shape": list(self.shape)}

    def check(self, name: str, value: Any, batch: int, device: torch.device) -> Tensor:
        """The condition as `(batch, *shape)`; one of `shape` alone stands for the whole batch."""
        wanted = ", ".join(map(str, self.shape))
        if value is None:
            raise ValueError(f"this model needs {name}, a tensor ({wanted}) or (B, {wanted})")
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise ValueError(f"{name} must be a float tensor ({batch}, {wanted}), got {type(value).__name__}")
        rows = value if value.ndim == len(self.shape) + 1 else value[None]
        if tuple(rows.shape[1:]) != tuple(self.shape) or len(rows) not in (1, batch):
            raise ValueError(f"{name} must have shape ({batch}, {wanted}), got {tuple(value.shape)}")
        return rows.expand(batch, *self.shape).to(device)


def condition_from_config(config: Mapping[str, Any]) -> Condition:
    """The condition of a configuration; `ValueError` for an unknown kind."""
    kind = config.get("kind")
    if kind == "label":
        return Label(int(config["classes"]))
    if kind == "text":
        return Text(tuple(config["vocabulary"]), int(config["length"]))
    if kind == "picture":
        return Picture(tuple(config["shape"]))
    raise suggest("kind of condition", str(kind), ("label", "text", "picture"))
