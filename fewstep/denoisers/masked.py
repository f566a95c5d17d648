"""A denoiser whose network leaves out some of its blocks, other ones at each time."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction, joined

METHODS = (
    Method(
        "masked",
        paper="AutoDiffusion: Training-Free Optimization of Time Steps and Architectures (Li et al., 2023)",
        arxiv="2309.10438",
        claim="residual blocks left out by name at chosen times, without touching the network",
        use="MaskedDenoiser",
        facts={"wraps": True},
    ),
)


class Skip(nn.Module):
    """Stands for a block that is left out."""

    def forward(self, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        return x


def skippable(model: nn.Module) -> dict[str, str]:
    """The blocks that can be left out: name -> path in the model, in the order in which they run.

    They are those of the model's first submodule with a dictionary `skippable` of names and modules, each named by its
    path in that submodule: blocks that are called with their input first and return a tensor of its shape.

    Raises:
        ValueError: no submodule names its blocks.
    """
    for path, module in model.named_modules():
        names = getattr(module, "skippable", None)
        if isinstance(names, Mapping) and names:
            return {name: f"{path}.{name}" if path else name for name in names}
    raise ValueError(
        "no network in this model names the blocks that can be left out: give it a property `skippable`, a dictionary"
        " from the paths of residual blocks that keep their input's shape to the blocks"
    )


def without(module: nn.Module, paths: Iterable[str]) -> nn.Module:
    """The module with the submodules at these paths left out, sharing everything else with it, hooks included.

    Only the modules on the way to those left out are copied, and they shallowly: parameters and buffers stay one.
    """
    grouped: dict[str, list[str]] = {}
    for path in paths:
        head, _, rest = path.partition(".")
        grouped.setdefault(head, []).append(rest)
    if not grouped:
        return module
    clone = copy.copy(module)
    clone.__dict__["_modules"] = dict(module._modules)
    for head, rests in grouped.items():
        clone._modules[head] = Skip() if "" in rests else without(module.get_submodule(head), rests)
    return clone


class MaskedDenoiser(Wrapper):
    """`model` with `masks[t]`, names of blocks, left out at the times t; at other times, and without masks, `model`.

    A time is met within a relative 1e-6 of the clock, so that float32 times find their mask. The host decides what
    runs, so it reads the time at each evaluation. Threads may share it, and the model beside it: nothing is changed.

    Raises:
        ValueError: a model whose blocks have no names, a block that it does not have.
    """

    def __init__(self, model: Denoiser, masks: Mapping[float, Collection[str]]):
        super().__init__(model)
        self.masks = {float(t): tuple(names) for t, names in masks.items() if len(names)}
        self._paths = skippable(model) if self.masks else {}
        for name in (name for names in self.masks.values() for name in names):
            if name not in self._paths:
                raise suggest("block", name, self._paths)

    def mask(self, t: float) -> tuple[str, ...]:
        """The names of the blocks that are left out at time t."""
        near = min(self.masks, key=lambda key: abs(key - t), default=None)
        clock = abs(self.process.t_max - self.process.t_zero)
        return self.masks[near] if near is not None and abs(near - t) <= 1e-6 * max(abs(t), 1e-3 * clock) else ()

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        if not self.masks:
            return self.model(x, t, **condition)
        times = t.unique().tolist()
        if len(times) == 1:
            return self._at(times[0], x, t, condition)
        parts = []  # samples at different times, with masks of their own
        for time in times:
            rows = (t == time).nonzero().squeeze(1)
            named = {name: c[rows] if isinstance(c, Tensor) and c.ndim else c for name, c in condition.items()}
            parts.append((rows, self._at(time, x[rows], t[rows], named)))
        return joined(parts, x, t)

    def _at(self, time: float, x: Tensor, t: Tensor, condition: dict[str, Any]) -> Prediction:
        return without(self.model, [self._paths[name] for name in self.mask(time)])(x, t, **condition)


@torch.no_grad()
def flops(model: Denoiser, names: Collection[str] = ()) -> int:
    """Floating-point operations (two a multiply-add) of one evaluation of one sample, blocks left out by name.

    Counted by `torch.utils.flop_counter`: products and convolutions, attention included.

    Raises:
        ValueError: a model without a shape, blocks without names.
    """
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    if model.shape is None:
        raise ValueError("operations are counted on one sample, so the denoiser needs a shape: set model.shape = (...)")
    paths = skippable(model) if names else {}
    if unknown := [name for name in names if name not in paths]:
        raise suggest("block", unknown[0], paths)
    tensor = next(iter([*model.parameters(), *model.buffers()]), torch.zeros(()))
    dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    x = torch.zeros((1, *model.shape), device=tensor.device, dtype=dtype)
    condition = model.check_condition({}, 1, tensor.device)
    t = torch.tensor(model.process.t_max, device=tensor.device, dtype=dtype)

    def attention(query: Any, key: Any, value: Any, *rest: Any, out_shape: Any = None, **named: Any) -> int:
        return sdpa_flop_count(query, key, value)

    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # the counter leaves this one out
    with FlopCounterMode(display=False, custom_mapping={on_cpu: attention}) as counter:
        without(model, [paths[name] for name in names])(x, t, **condition)
    return counter.get_total_flops()
