"""A caption in a small vocabulary of words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewstep.core.arguments import check_kind, check_whole
from fewstep.core.errors import suggest
from fewstep.core.methods import Method

METHODS = (Method("text", claim="a caption of a vocabulary's words, or none", use="Text"),)

MOTION = "moving"  # the word of captions of clips that those of pictures do not have


@dataclass(frozen=True)
class Text:
    """A caption of at most `length` words of a vocabulary. None and "" mean "no caption", in tensors all zeros.

    In tensors, word i of the vocabulary is the index i + 1, and zeros pad to `length`.
    """

    guides: ClassVar[bool] = True
    vocabulary: tuple[str, ...]
    length: int

    def __post_init__(self) -> None:
        check_kind("vocabulary", self.vocabulary, Sequence[str])
        check_whole("length", self.length)
        object.__setattr__(self, "vocabulary", tuple(self.vocabulary))  # a list, in a configuration

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
        if MOTION in words and MOTION not in self._index:
            raise ValueError(f"{caption!r} asks for motion, but this model makes still pictures: leave {MOTION!r} out")
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
