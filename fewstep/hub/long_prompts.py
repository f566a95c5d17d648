"""How long a prompt is for the encoder that reads it, and prompts in several windows of that length."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.conditions.prompt import Encode, Measure
from fewstep.hub.components import quiet


def measured(
    tokenizer: Any, limit: int, long: bool = False, prepare: Callable[[str], str] = str
) -> Callable[[str], Measure]:
    """What a prompt is beside an encoder that reads `limit` tokens, those that begin and end it among them.

    long: the prompt is read in windows, and nothing of it is cut off. prepare: what is done to a prompt first.
    """
    room = limit - tokenizer.num_special_tokens_to_add()

    def measure(prompt: str) -> Measure:
        tokens = _tokens(tokenizer, prepare(prompt))
        if long:
            return Measure(max(1, -(-len(tokens) // room)))
        return Measure(1, str(tokenizer.decode(tokens[room:])).strip() if len(tokens) > room else "")

    return measure


def quietly(encode: Encode) -> Encode:
    """The same without what diffusers and transformers log of prompts that are cut, which is said here already."""

    @functools.wraps(encode)
    def encoded(*given: Any) -> Mapping[str, Tensor]:
        with quiet():
            return encode(*given)

    return encoded


def windows(tokenizer: Any, prompts: list[str], count: int) -> tuple[Tensor, Tensor]:
    """Prompts as `count` windows of tokens each, `(B, count, length)` long, and which of these a prompt fills,
    `(B, count)` bool. Every window begins and ends as a prompt of its own does."""
    limit, first, last = tokenizer.model_max_length, tokenizer.bos_token_id, tokenizer.eos_token_id
    ids = torch.full((len(prompts), count, limit), tokenizer.pad_token_id)
    used = torch.zeros(len(prompts), count, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        tokens = _tokens(tokenizer, prompt)
        for window in range(count):
            part = tokens[window * (limit - 2) : (window + 1) * (limit - 2)]
            ids[row, window, : len(part) + 2] = torch.tensor([first, *part, last])
            used[row, window] = bool(part) or window == 0
    return ids, used


def in_windows(encode: Callable[[Tensor], Tensor], ids: Tensor, used: Tensor) -> Tensor:
    """The embeddings `(B, count length, width)` of windows, which `encode` takes as `(N, length)`; zeros in those that
    the prompt does not fill."""
    text = encode(ids.flatten(0, 1)).unflatten(0, ids.shape[:2])
    return (text * used.to(text)[:, :, None, None]).flatten(1, 2)


def attended(text: Tensor, limit: int) -> Tensor | None:
    """Which tokens of `(B, tokens, width)` a network may attend to, `(B, tokens)` bool: all but the zeros after a
    prompt that takes fewer windows than others of its batch. None where there is one window."""
    return (text != 0).any(-1) if text.shape[1] > limit else None


def _tokens(tokenizer: Any, prompt: str) -> list[int]:
    found: list[int] = tokenizer(prompt, add_special_tokens=False, truncation=False, verbose=False).input_ids
    return found
