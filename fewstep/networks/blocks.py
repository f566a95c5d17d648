"""The blocks of a network, named by path and in the order in which they run.

Networks of our own say what they are; those of diffusers are known by their build, and nothing of diffusers is
imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from torch import nn

from fewstep.networks.surgery import Block


def blocks_of(model: nn.Module) -> dict[str, Block]:
    """The blocks of a model by name, in the order in which they run, their paths leading from the model.

    They are those of the first submodule with a dictionary `blocks`, or `skippable`, from names to blocks, or with the
    build of one of diffusers' networks (`by_build`). Our networks name modules, called with their input first and
    returning the tensor alone, each by its path in the network; wrappers of other networks name `Block`s.

    Raises:
        ValueError: no submodule names its blocks.
    """
    if (found := next(_networks(model, ""), None)) is not None:
        return found
    raise ValueError(
        "no network in this model names its blocks, or is built like diffusers' (down_blocks and up_blocks, or"
        " transformer_blocks): give it a property `blocks`, a dictionary from paths to modules, and `skippable`, those"
        " that can be left out because they add to their input and keep its shape"
    )


def networks_of(model: nn.Module) -> list[dict[str, Block]]:
    """The blocks of every network in a model (experts have several), each as `blocks_of` has those of the first."""
    blocks_of(model)
    return list(_networks(model, ""))


def _networks(module: nn.Module, path: str) -> Iterator[dict[str, Block]]:
    """The blocks of the outermost submodules that name any."""
    blocks, skippable = (_named(module, name) for name in ("blocks", "skippable"))
    at = f"{path}." if path else ""
    if found := blocks or skippable or by_build(module):
        levels = _named(module, "levels")
        yield {
            name: replace(block, path=at + block.path)
            if isinstance(block, Block)
            else Block(at + name, levels.get(name, 0), skippable=name in skippable)
            for name, block in found.items()
        }
        return
    for name, child in module._modules.items():  # not `named_children`, which leaves out what lies at two paths
        if child is not None:
            yield from _networks(child, at + name)


def _named(module: nn.Module, attribute: str) -> Mapping[str, Any]:
    found = getattr(module, attribute, None)
    return found if isinstance(found, Mapping) else {}


def by_build(network: nn.Module) -> dict[str, Block]:
    """The blocks of a network that is built like one of diffusers': of stages down and up, or of transformer blocks.

    Blocks that norm their words as well (`norm1_context`) return these along with the pixels.
    """
    if isinstance(network.__dict__["_modules"].get("up_blocks"), nn.ModuleList) and _children(network, "down_blocks"):
        return stage_blocks(network)
    if not isinstance(network.__dict__["_modules"].get("transformer_blocks"), nn.ModuleList):
        return {}
    joint = any(hasattr(block, "norm1_context") for block in _children(network, "transformer_blocks"))
    return joint_blocks(network) if joint else transformer_blocks(network)


def stage_blocks(network: nn.Module) -> dict[str, Block]:
    """Those of UNet2DModel and UNet2DConditionModel: residual blocks, attentions and what changes the resolution.

    What runs beside the main path (the picture that a score-based UNet passes along its stages) is left out.
    """
    found: list[Block] = []
    deepest = len(_children(network, "down_blocks")) - 1
    for level, stage in enumerate(_children(network, "down_blocks")):
        found += _stage(stage, f"down_blocks.{level}", level)
    if (middle := getattr(network, "mid_block", None)) is not None:
        found += _stage(middle, "mid_block", deepest)
    for index, stage in enumerate(_children(network, "up_blocks")):
        found += _stage(stage, f"up_blocks.{index}", deepest - index)
    return {block.path: block for block in found}


def joint_blocks(network: nn.Module) -> dict[str, Block]:
    """Those of SD3Transformer2DModel and FluxTransformer2DModel, which return the words along with the pixels."""
    paths = [
        f"{name}.{index}"
        for name in ("transformer_blocks", "single_transformer_blocks")
        for index in range(len(_children(network, name)))
    ]
    return {path: Block(path, 0, "hidden_states", 1, True, "encoder_hidden_states") for path in paths}


def transformer_blocks(network: nn.Module) -> dict[str, Block]:
    """Those of DiTTransformer2DModel and PixArtTransformer2DModel: pixels in, pixels out."""
    paths = [f"transformer_blocks.{index}" for index in range(len(_children(network, "transformer_blocks")))]
    return {path: Block(path, skippable=True) for path in paths}


def _children(module: nn.Module, name: str) -> list[Any]:
    """The submodules in the list of this name, empty where the module has none."""
    return list(getattr(module, name, None) or ())


def _stage(stage: nn.Module, path: str, level: int) -> Iterator[Block]:
    """The blocks of one stage: residual blocks and attentions in turn, then the change of resolution."""
    residuals, attentions = (
        [(f"{path}.{name}.{index}", module) for index, module in enumerate(_children(stage, name))]
        for name in ("resnets", "attentions")
    )
    # Going up beside a picture, a stage attends once, after its residual blocks.
    turns = [[*residuals, *attentions]] if hasattr(stage, "resnet_up") else zip_longest(residuals, attentions)
    for name, module in (pair for turn in turns for pair in turn if pair is not None and pair[1] is not None):
        if ".attentions." in name:
            # Transformers return a tuple here, the bare attentions of pixel models their tensor.
            whole = type(module).__name__.endswith("Transformer2DModel")
            yield Block(name, level, output=0 if whole else None, skippable=True)
        else:
            yield _residual(module, name, level)
    beside = [name for name in ("resnet_down", "resnet_up") if hasattr(stage, name)]
    if beside:  # its samplers act only on the picture
        yield from (Block(f"{path}.{name}", level) for name in beside if getattr(stage, name) is not None)
        return
    for name in ("downsamplers", "upsamplers"):
        yield from (Block(f"{path}.{name}.{index}", level) for index in range(len(_children(stage, name))))


def _residual(module: Any, path: str, level: int) -> Block:
    """A residual block; it keeps its input's shape where its shortcut is the input itself."""
    plain = getattr(module, "conv_shortcut", None) is None
    same = not (getattr(module, "up", False) or getattr(module, "down", False))
    return Block(path, level, skippable=plain and same)
