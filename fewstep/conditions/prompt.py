"""The prompt of a loaded pipeline, encoded once by the pipeline's own text encoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

REMEMBERED = 256  # prompts

# encode(prompts, device) -> the parts of each, as rows; None is the empty prompt, where a family has its own
Encode = Callable[[list[str | None], torch.device], Mapping[str, Tensor]]


class Encoder:
    """Prompts to tensors by `encode`, each prompt once; the last few hundred are remembered."""

    def __init__(self, encode: Encode):
        self.encode = encode
        self._known: dict[str | None, dict[str, Tensor]] = {}

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str | None], device: torch.device) -> dict[str, Tensor]:
        """The parts of the prompts, each `(len(prompts), ...)`, on the device."""
        if new := [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]:
            parts = self.encode(new, device)
            for row, prompt in enumerate(new):
                self._known[prompt] = {name: value[row] for name, value in parts.items()}
        rows = [self._known[prompt] for prompt in prompts]
        while len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]
        if len(rows) == 1:  # a view, which a whole batch shares
            return {name: value[None].to(device) for name, value in rows[0].items()}
        return {name: torch.stack([row[name] for row in rows]).to(device) for name in rows[0]}


class Prompt:
    """One tensor of an encoded prompt: its `part` "text" (the tokens' embeddings), "pooled" or "mask".

    Every part takes the prompt itself, so that each has its own empty value. `ndim` includes the batch axis; `width` is
    the last dimension, where that is known.
    """

    guides: ClassVar[bool] = True

    def __init__(self, encoder: Encoder, part: str, ndim: int, width: int | None = None):
        self.encoder, self.part, self.ndim, self.width = encoder, part, ndim, width

    def config(self) -> dict[str, Any]:
        return {"kind": "prompt", "part": self.part, "width": self.width}

    def check(self, name: str, value: Any, batch: int, device: torch.device) -> Tensor:
        """The part as `(batch, ...)`, from None, a prompt, a list of prompts, or the tensor itself.

        Raises:
            ValueError: a number of prompts other than `batch`, embeddings of the wrong shape, anything else.
        """
        if isinstance(value, Tensor):
            rows = value if value.ndim == self.ndim else value[None]
            if rows.ndim != self.ndim or self.width not in (None, rows.shape[-1]):
                wanted = ", ".join(
                    ["B", "tokens", str(self.width)] if self.ndim == 3 else ["B", str(self.width or "n")]
                )
                raise ValueError(f"{name} must be prompts or their embeddings ({wanted}), got {tuple(value.shape)}")
        else:
            prompts = [value] if value is None or isinstance(value, str) else value
            if not isinstance(prompts, Sequence) or not prompts or not all(isinstance(p, str | None) for p in prompts):
                raise ValueError(f"{name} must be a prompt or a list of prompts, got {value!r}")
            if len(prompts) not in (1, batch):
                raise ValueError(f"{name} must be one prompt or {batch} of them, got {len(prompts)}")
            rows = self.encoder(prompts, device)[self.part]
        if len(rows) not in (1, batch):
            raise ValueError(f"{name} must be one prompt or {batch} of them, got {len(rows)}")
        return rows.expand(batch, *rows.shape[1:]).to(device)


def complete(conditions: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The conditions given, with every part of the prompt that follows from `text`.

    Raises:
        ValueError: embeddings as `text` without the further tensors that belong to them.
    """
    named, parts = dict(given), [name for name, kind in conditions.items() if isinstance(kind, Prompt)]
    text = named.get("text")
    for name in parts:
        if named.get(name) is None and isinstance(text, Tensor):
            raise ValueError(f"text given as embeddings needs the {name} of the same prompt as well: {name}=...")
        if name not in named:
            named[name] = text
    return named
