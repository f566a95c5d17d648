"""What one evaluation of a model costs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fewstep.conditions.picture import Picture
from fewstep.core.denoiser import Denoiser


@torch.no_grad()
def operations(model: nn.Module) -> int:
    """Floating-point operations (two per multiply-add) of one evaluation of one sample by a denoiser.

    Counted by `torch.utils.flop_counter` as it runs: products and convolutions, attention included.

    Raises:
        ValueError: a model without a shape.
    """
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    assert isinstance(model, Denoiser)
    if model.shape is None:
        raise ValueError("operations are counted on one sample, so the denoiser needs a shape: set model.shape = (...)")
    tensor = next(iter([*model.parameters(), *model.buffers()]), torch.zeros(()))
    dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    x = torch.zeros((1, *model.shape), device=model.device, dtype=dtype)  # not the tensor's: weights may be elsewhere
    pictures = {name: kind for name, kind in model.conditions.items() if isinstance(kind, Picture)}
    condition = model.check_condition({name: torch.zeros(kind.shape) for name, kind in pictures.items()}, 1, x.device)
    t = torch.tensor(model.process.t_max, device=x.device, dtype=dtype)

    def attention(query: Any, key: Any, value: Any, *rest: Any, out_shape: Any = None, **named: Any) -> int:
        return sdpa_flop_count(query, key, value)

    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # the counter leaves this one out
    with FlopCounterMode(display=False, custom_mapping={on_cpu: attention}) as counter:
        model(x, t, **condition)
    return counter.get_total_flops()
