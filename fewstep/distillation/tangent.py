"""Derivatives along a direction: what consistency models in continuous time and flow maps learn from.

A total derivative along a trajectory, `d/dt f(x_t, t) = (d_x f) dx/dt + d_t f`, is one product of f's Jacobian with the
vector `(dx/dt, 1)`. Forward mode has it exactly, in one pass along with the value (Geng et al., "Mean Flows for
One-step Generative Modeling", 2025, arXiv:2505.13447, algorithm 1). Two more values have it to order h^2, from any
function: in float32 best to three or four digits, as rounding is divided by h.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from fewstep.core.errors import suggest

MODES = ("jvp", "difference")
# What torch says where forward mode ends, if that is a RuntimeError: a function of one's own that has none.
ENDS = ("forward mode", "forward AD", "functorch", "jvp")


def tangent(
    function: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    directions: tuple[Tensor, ...],
    mode: str = "jvp",
    *,
    h: float = 1e-3,
    keep: bool = False,
) -> tuple[Tensor, Tensor]:
    """`function(*inputs)` and its derivative along the directions, `sum_i (d f / d input_i) direction_i`.

    The value has the gradient that it has by itself, in parameters and inputs; the derivative is a constant, as the
    targets of sCM and MeanFlow are, unless it is to `keep` its own gradient, as the Lagrangian loss of flow maps needs.

    Args:
        function: of as many tensors as `inputs`, to one tensor; conditions and labels are bound to it beforehand.
        inputs: floating tensors. directions: of the same shapes, dtypes and devices; zeros for an input that stays.
        mode: "jvp", by forward mode, with attention written out (the math kernel: the fused ones have none); or
            "difference", `(f(x + h v) - f(x - h v)) / (2 h)`, for networks without forward mode: those with fused
            attention of their own; quantised ones, whose rounding has derivative zero in forward mode; and compiled
            ones, which forward mode runs uncompiled.
        h: the step of a difference to either side, in units of the directions; times near an end must leave room.
        keep: whether the derivative has a gradient. In mode "jvp" it is right for all that our networks are made of;
            through batch or instance norm in training torch has it wrong, and "difference" right.

    Raises:
        ValueError: an unknown mode, directions unlike the inputs, h that is not positive, a function without forward
            mode in mode "jvp".
    """
    if mode not in MODES:
        raise suggest("tangent", mode, MODES)
    shapes = [[tuple(one.shape) for one in several] for several in (inputs, directions)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"directions must have the shapes of the inputs, {shapes[0]}, got {shapes[1]}")
    if mode == "jvp":
        value, slope = _forward_mode(function, inputs, directions, keep)
        return value, slope if keep else slope.detach()
    if not h > 0:
        raise ValueError(f"h must be positive, got {h}")
    value = function(*inputs)
    with torch.set_grad_enabled(keep and torch.is_grad_enabled()):
        ahead = function(*(x + h * v for x, v in zip(inputs, directions, strict=True)))
        behind = function(*(x - h * v for x, v in zip(inputs, directions, strict=True)))
        return value, (ahead - behind) / (2 * h)


class WrittenOut(TorchFunctionMode):
    """Layer norm from its parts: of torch's own the derivative along a direction is right, but that derivative's
    gradient is not, since it takes mean and deviation for constants (github.com/pytorch/pytorch/issues/196700)."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        norm = func in (functional.layer_norm, torch.layer_norm)
        return (_layer_norm if norm else func)(*args, **(kwargs or {}))


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    axes = tuple(range(-len(normalized_shape), 0))
    centred = input - input.mean(axes, keepdim=True)
    out = centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + eps)
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def _forward_mode(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], directions: tuple[Tensor, ...], keep: bool
) -> tuple[Tensor, Tensor]:
    try:
        with sdpa_kernel(SDPBackend.MATH), WrittenOut() if keep else nullcontext():
            return torch.func.jvp(function, inputs, directions)  # type: ignore[return-value]
    except (NotImplementedError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        if not isinstance(error, NotImplementedError) and not any(word in reason for word in ENDS):
            raise
        raise ValueError(f'the network has no forward mode: use tangent="difference" ({reason})') from error
