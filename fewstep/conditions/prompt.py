"""The prompt of a loaded pipeline, encoded once by the pipeline's own text encoders."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

REMEMBERED = 256  # prompts
SHOWN = 60  # characters of a prompt in a warning

# encode(prompts, device) -> the parts of each, as rows; None is the empty prompt, where a family has its own. For
# prompts that take several windows of the encoder's length, encode(prompts, device, windows).
Encode = Callable[..., Mapping[str, Tensor]]

# Tokenizers keep how they pad and cut in themselves, and several pipelines may share one.
_ENCODING = threading.RLock()


class Measure(NamedTuple):
    """A prompt beside what its encoder reads: the windows it takes, and what is cut off."""

    windows: int = 1
    cut: str = ""


class Encoder:
    """Prompts to tensors by `encode`, each prompt once; the last few hundred are remembered. Threads may share it.

    measure: how long a prompt is; what is cut off one is said in a warning, once per prompt. Prompts of one call are
    encoded in as many windows as the longest of them takes.
    """

    def __init__(self, encode: Encode, measure: Callable[[str], Measure] | None = None):
        self.encode, self.measure = encode, measure
        self._known: dict[tuple[str | None, int], dict[str, Tensor]] = {}
        self._windows: dict[str | None, int] = {}

    def __call__(self, prompts: Sequence[str | None], device: torch.device) -> dict[str, Tensor]:
        """The parts of the prompts, each `(len(prompts), ...)`, on the device."""
        rows = self._remembered(prompts)
        if rows is None:
            with _ENCODING:
                rows = self._remembered(prompts) or self._encoded(prompts, device)
        if len(rows) == 1:  # a view, which a whole batch shares
            return {name: value[None].to(device) for name, value in rows[0].items()}
        return {name: torch.stack([row[name] for row in rows]).to(device) for name in rows[0]}

    def _remembered(self, prompts: Sequence[str | None]) -> list[dict[str, Tensor]] | None:
        """The parts of each prompt, if all are known; other threads may add and forget some meanwhile."""
        windows = [self._windows.get(prompt) for prompt in prompts]
        most = max((n for n in windows if n is not None), default=1)
        rows = [self._known.get((prompt, most)) for prompt in prompts]
        found = [row for row in rows if row is not None]
        return found if len(found) == len(rows) and None not in windows else None

    def _encoded(self, prompts: Sequence[str | None], device: torch.device) -> list[dict[str, Tensor]]:
        """The parts of each prompt, those that are new encoded together. One thread at a time."""
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._windows:
                self._windows[prompt] = self._measured(prompt)
        most = max(self._windows[prompt] for prompt in prompts)
        if new := [prompt for prompt in dict.fromkeys(prompts) if (prompt, most) not in self._known]:
            # Not in inference mode: what is remembered may be needed with gradients later.
            with torch.inference_mode(False), torch.no_grad():
                parts = self.encode(new, device) if most == 1 else self.encode(new, device, most)
            for value in parts.values():
                if not bool(value.isfinite().all()):
                    dtype = str(value.dtype).removeprefix("torch.")
                    raise ValueError(
                        f"the text encoder's answer is not finite: it overflows in {dtype}; load the model"
                        " with dtype=torch.bfloat16 or torch.float32"
                    )
            for row, prompt in enumerate(new):
                self._known[prompt, most] = {name: value[row] for name, value in parts.items()}
        rows = [self._known[prompt, most] for prompt in prompts]
        _forget(self._known)
        _forget(self._windows)
        return rows

    def _measured(self, prompt: str | None) -> int:
        if self.measure is None or not prompt:
            return 1
        windows, cut = self.measure(prompt)
        if cut:
            shown = prompt if len(prompt) <= SHOWN else f"{prompt[:SHOWN]}..."
            warnings.warn(
                f"the prompt {shown!r} is longer than the text encoder reads, and {cut!r} is cut off;"
                " load the model with long_prompts=True (--long-prompts) to have all of it read",
                stacklevel=2,
            )
        return windows


def _forget(memory: dict[Any, Any]) -> None:
    """Leave only what was added last."""
    for old in list(memory)[: max(0, len(memory) - REMEMBERED)]:
        del memory[old]


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
