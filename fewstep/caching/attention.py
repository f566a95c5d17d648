"""The attention of a network as parts that may stand still: of the picture to itself, and to a caption."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from fewstep.caching.parts import Part
from fewstep.core.denoiser import Denoiser
from fewstep.networks.blocks import networks_of
from fewstep.networks.surgery import Block

ITSELF, CROSS = "self", "cross"


def attention_parts(model: Denoiser) -> dict[str, dict[str, Part]]:
    """The attention in the first network of a model, by kind and then by name: "self" of the picture to itself and
    jointly with words, "cross" to words alone.

    In our networks a part is a block of attention, of which what it adds is kept, its gate included. In diffusers' it
    is the module of attention inside a block, before gates, of which the answer is kept.

    Raises:
        ValueError: a network that names no blocks, or has no attention.
    """
    blocks, found = networks_of(model)[0], {ITSELF: dict[str, Part](), CROSS: dict[str, Part]()}
    for name, block in blocks.items():
        module = model.get_submodule(block.path)
        if module._modules.get("core") is not None and block.skippable:
            found[ITSELF][name] = Part(name, (block,), True)
            continue
        for inner, attention in attention_modules(module, block):
            kind = CROSS if getattr(attention, "is_cross_attention", False) else ITSELF
            found[kind][inner.path] = Part(inner.path, (inner,), False)
    if not any(found.values()):
        raise ValueError(f"this network has no attention; its blocks are {', '.join(list(blocks)[:6])}")
    return found


def attention_modules(module: nn.Module, block: Block) -> Iterator[tuple[Block, nn.Module]]:
    """The attention modules of diffusers in a block; joint ones return the picture and the words."""
    for name, part in module.named_modules():
        if all(isinstance(getattr(part, key, None), nn.Module) for key in ("to_q", "to_k")):
            path = f"{block.path}.{name}" if name else block.path
            joint = getattr(part, "added_kv_proj_dim", None) is not None
            yield Block(path, block.level, 0, 0 if joint else None, beside=1 if joint else None), part
