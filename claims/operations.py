"""What a call costs: floating-point operations, and seconds beside those of another call."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def _attention(query: Any, key: Any, value: Any, *rest: Any, out_shape: Any = None, **named: Any) -> int:
    return sdpa_flop_count(query, key, value)


def operations(call: Callable[[], Any]) -> int:
    """Of products, convolutions and attention, two per multiply-add."""
    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # the counter leaves this one out
    with FlopCounterMode(display=False, custom_mapping={on_cpu: _attention}) as counter, torch.no_grad():
        call()
    return counter.get_total_flops()


def seconds(calls: Sequence[Callable[[], Any]], turns: int) -> list[float]:
    """The least that each call took in several turns, one after another in one process."""
    taken: list[list[float]] = [[] for _ in calls]
    with torch.no_grad():
        for call in calls:  # once before: what is made at first is not measured
            call()
        for _ in range(turns):
            for call, own in zip(calls, taken, strict=True):
                begin = time.perf_counter()
                call()
                own.append(time.perf_counter() - begin)
    return [min(own) for own in taken]
