"""A pipeline as a diffusers folder that loads again: adapters merged, wrappers taken off, names compared before."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

# Projections that diffusers fuses into one, by the name of that one, in the order of its rows.
FUSED = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
}


class Saved:
    """A pipeline that `save_pretrained` writes in the plain form of its networks; the pipeline itself stays as it is.

    networks: the networks to write in place of the pipeline's own, by their components' names.
    """

    def __init__(self, pipeline: Any, networks: Mapping[str, nn.Module] | None = None):
        self.pipeline, self.networks = pipeline, dict(networks or {})

    def save_pretrained(self, folder: str | os.PathLike[str], **options: Any) -> None:
        """Write the folder, in safetensors.

        Raises:
            ValueError: before anything is written, for a network that would not load again.
        """
        shown = copy.copy(self.pipeline)
        for name, part in (self.pipeline.components | self.networks).items():
            if isinstance(part, nn.Module):
                made = plain(part)
                _check(name, made)
                if made is not getattr(shown, name):
                    setattr(shown, name, made)
        shown.save_pretrained(folder, **(options | {"safe_serialization": True}))


def plain(network: nn.Module) -> nn.Module:
    """A network without what was put around or into it: the network itself where that is nothing, otherwise a copy.

    Low-rank adapters that act are added to the weights at their present scales, projections fused into one are taken
    apart, and what `torch.compile` returned gives way to what it was given.
    """
    whole: Any = getattr(network, "_orig_mod", network)
    compiled = [module for module in whole.modules() if hasattr(module, "_orig_mod")]
    if not compiled and not any(_changed(module) for module in whole.modules()):
        return whole  # type: ignore[no-any-return]
    memo: dict[int, Any] = {}
    for module in compiled:
        memo[id(module)] = copy.deepcopy(module._orig_mod, memo)
    made = copy.deepcopy(whole, memo)
    if callable(getattr(made, "merge_and_unload", None)):  # PEFT's own model around a network
        made = made.merge_and_unload()
    for path, layer in list(made.named_modules()):
        if hasattr(layer, "base_layer") and hasattr(layer, "disable_adapters"):
            parent, _, name = path.rpartition(".")
            setattr(made.get_submodule(parent), name, _merged(layer))
    for module in made.modules():
        for name in FUSED:
            if isinstance(getattr(module, name, None), nn.Linear):
                _take_apart(module, name)
        if hasattr(module, "fused_projections"):
            module.fused_projections = False
        if hasattr(module, "peft_config"):
            del module.peft_config
        if hasattr(module, "_hf_peft_config_loaded"):
            module._hf_peft_config_loaded = False
    return made  # type: ignore[no-any-return]


def _changed(module: nn.Module) -> bool:
    """Whether a module has adapters or fused projections."""
    return hasattr(module, "base_layer") or bool(getattr(module, "fused_projections", False))


def _merged(layer: Any) -> nn.Module:
    """The layer under adapters with those that act added to its weights."""
    if layer.disable_adapters:
        if layer.merged:
            layer.unmerge()
    elif left := [name for name in layer.active_adapters if name not in layer.merged_adapters]:
        layer.merge(adapter_names=left)
    found: nn.Module = layer.get_base_layer()
    return found


@torch.no_grad()
def _take_apart(attention: Any, name: str) -> None:
    """Write the rows of a fused projection back into the projections that it was made of, and drop it."""
    fused, begin = getattr(attention, name), 0
    for own in (getattr(attention, part) for part in FUSED[name]):
        rows = slice(begin, begin := begin + len(own.weight))
        own.weight.copy_(fused.weight[rows])
        if fused.bias is not None and own.bias is not None:
            own.bias.copy_(fused.bias[rows])
    delattr(attention, name)


def _check(name: str, network: Any) -> None:
    """`ValueError` unless the network is one that loads again from what it writes."""
    kind = type(network)
    if kind.__module__.partition(".")[0] not in ("diffusers", "transformers"):
        raise ValueError(
            f"the component {name} cannot be saved: {kind.__name__} is code of its own, which is never loaded"
        )
    if any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers())):
        raise ValueError(
            f"the weights of the component {name} are offloaded: load the model without offload to save it"
        )
    with torch.device("meta"):
        own = copy.deepcopy(network.config)  # which transformers writes into
        fresh = kind.from_config(own) if hasattr(kind, "from_config") else kind(own)
    expected, has = (_shapes(module.state_dict()) for module in (fresh, network))
    if lost := [key for key in has if key not in expected]:
        raise ValueError(
            f"the component {name} cannot be saved: loading would not find a place for {lost[0]}{_more(lost)};"
            " what was put into the network must be merged or removed first"
        )
    if wrong := [key for key in expected if has.get(key) != expected[key]]:
        there = f"of shape {has[wrong[0]]}" if wrong[0] in has else "missing"
        raise ValueError(
            f"the component {name} cannot be saved: loading expects {wrong[0]} of shape {expected[wrong[0]]}, which is"
            f" {there}{_more(wrong)}"
        )


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
