"""The blocks of diffusers' networks, named by path and in the order in which they run (`Family.blocks`)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from torch import nn

from fewstep.networks.surgery import Block


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
