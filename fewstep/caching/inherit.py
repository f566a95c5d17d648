"""Feature inheritance (A-SDM): between key evaluations blocks, layers or single units say what they said."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from fewstep.caching.attention import attention_modules
from fewstep.caching.method import method
from fewstep.caching.parts import Part, each
from fewstep.caching.recipe import Recipe
from fewstep.caching.schedule import Keys, every, share, whole_number, within
from fewstep.core.arguments import shown
from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.networks.blocks import networks_of
from fewstep.networks.condconv import CondConv2d
from fewstep.networks.surgery import Block

METHODS = (
    Method(
        "inherit",
        kind="cache",
        paper="A-SDM: Accelerating Stable Diffusion through Model Assembly and Feature Inheritance Strategies"
        " (Zhu et al., 2024)",
        arxiv="2406.00210",
        claim="between key evaluations chosen blocks, their layers or single units stand still",
        use="inherit",
        facts={"wraps": True},
    ),
)

GRANULARITIES, PATTERNS = ("block", "layer", "unit"), ("uniform", "staged")
# The way from a residual block's input to its second convolution, in our networks and in diffusers'.
BRANCH = ("norm1", "conv1", "modulation", "time_emb_proj", "norm2", "dropout", "conv2")
BESIDE = ("norm", "modulation", "ada", "time_emb")  # what only scales and shifts, by how its name begins


@method("inherit")
def inherit(
    model: Denoiser,
    interval: int = 2,
    granularity: str = "block",
    blocks: Sequence[str] | None = None,
    pattern: str | Sequence[tuple[float, int]] = "uniform",
    order: int = 1,
    start: float = 0.0,
    stop: float = 1.0,
) -> Recipe:
    """The model, of which at some evaluations chosen features are those of the last key evaluation.

    The granularity (Zhu et al., section on feature inheritance) says what is inherited:

    - "block": what each block adds that adds to its input and keeps its shape;
    - "layer": inside every residual block its branch, all but the skip, so that blocks that change their channels stand
      as well; of attention what it adds; in diffusers' transformer blocks each attention and each feed-forward;
    - "unit": one convolution or projection in each of these blocks (`units_of` says which), everything else is run, and
      what scales and shifts by the noise level is fresh.

    Key evaluations are those of `pattern`: "uniform", every `interval`-th; "staged", every `interval`-th in the first
    third of the run, with twice and three times as many evaluations inherited in a row in the second and the last:
    intervals 2, 3, 4 or 3, 5, 7. What the paper's stages are we could not see: pairs `(fraction, interval)` give any,
    from each fraction of the run its own interval in place of `interval`. Where the length of a run is not known,
    stages are whole. With intervals of 1 it is the model itself, bit for bit.

    Args:
        interval: evaluations from one key to the next, at least 1.
        blocks: names of the network's blocks; by default all that have such a feature.
        pattern: "uniform", "staged", or pairs whose fractions rise from 0.
        order: of the forecast of what is inherited; 1 is the paper's inheritance.
        start, stop: the fractions of the run between which features are inherited.

    Raises:
        ValueError: a number outside its range, an unknown granularity, pattern or block, a network that names no blocks
            or has none of these features.
    """
    interval, order = whole_number("interval", interval), whole_number("order", order)
    if granularity not in GRANULARITIES:
        raise suggest("granularity", granularity, GRANULARITIES)
    stages = stages_of(pattern, interval)
    keys = every(interval) if len(stages) == 1 else staged(stages)
    find = {"block": each, "layer": layers_of, "unit": units_of}[granularity]
    parts = find(model, blocks)
    if not parts:
        raise ValueError(f"this network has no {granularity} that could stand still")
    keys = within(keys, start, stop)
    return Recipe(
        parts,
        lambda number, count: () if keys(number, count) else tuple(parts),
        order,
        never=all(own == 1 for _, own in stages),
    )


def stages_of(pattern: str | Sequence[tuple[float, int]], interval: int) -> list[tuple[float, int]]:
    """The pairs of a pattern: from which fraction of the run on every how many evaluations are keys.

    Raises:
        ValueError: an unknown name, pairs whose fractions do not rise from 0 or whose intervals are below 1.
    """
    if isinstance(pattern, str):
        if pattern not in PATTERNS:
            raise suggest("pattern", pattern, PATTERNS)
        return [(k / 3, 1 + (interval - 1) * (k + 1)) for k in range(3 if pattern == "staged" else 1)]
    if not pattern or any(isinstance(pair, str) or len(tuple(pair)) != 2 for pair in pattern):
        raise ValueError(f"a pattern is {' or '.join(PATTERNS)}, or pairs (fraction, interval), got {shown(pattern)}")
    found = [(share("a pattern's fraction", at), whole_number("a pattern's interval", own)) for at, own in pattern]
    fractions = [at for at, _ in found]
    if fractions[0] != 0 or any(a >= b for a, b in zip(fractions, fractions[1:], strict=False)):
        raise ValueError(f"the fractions of a pattern must rise from 0, got {fractions}")
    return found if len(found) > 1 else [found[0], (1.0, found[0][1])]


def staged(stages: Sequence[tuple[float, int]]) -> Keys:
    """Every so many evaluations are whole, counted from the first of each stage, which is; all of an unknown length."""

    def found(number: int, count: int) -> bool:
        # The share of the run's evaluations before a stage, rounded up; less a hair, as 2 / 3 of 12 must be 8.
        firsts = [(math.ceil(at * count - 1e-9), own) for at, own in stages]
        first, own = next(pair for pair in reversed(firsts) if pair[0] <= number)
        return not count or (number - first) % own == 0

    return found


def layers_of(model: nn.Module, names: Sequence[str] | None = None) -> dict[str, Part]:
    """The layers of a network's blocks, or of those of these names: residual branches, attentions, feed-forwards.

    Raises:
        ValueError: a name without layers.
    """
    found = {name: _layers(model.get_submodule(block.path), name, block) for name, block in _blocks(model).items()}
    return {part.name: part for parts in _chosen(found, names).values() for part in parts}


def units_of(model: nn.Module, names: Sequence[str] | None = None) -> dict[str, Part]:
    """One unit of each of a network's blocks that have layers, or of those of these names.

    It is the first convolution over more than a pixel, else the largest linear layer, the first of equals: `conv1` of
    residual blocks (their second one would leave the first to run for nothing), the `qkv` of our attention and the
    `wide` of our perceptrons, in diffusers' the first projection of the feed-forward, or `to_q` of bare attention.

    Raises:
        ValueError: a name without units.
    """
    found = dict[str, list[Part]]()
    for name, block in _blocks(model).items():
        module = model.get_submodule(block.path)
        if _layers(module, name, block) and (unit := _unit(module)):
            inner = Block(f"{block.path}.{unit}", block.level)
            found[name] = [Part(f"{name}.{unit}", (inner,), False)]
    return {part.name: part for parts in _chosen(found, names).values() for part in parts}


def _blocks(model: nn.Module) -> dict[str, Block]:
    return networks_of(model)[0]


def _chosen(found: dict[str, list[Part]], names: Sequence[str] | None) -> dict[str, list[Part]]:
    """Those of these names, by default all that have any parts."""
    able = {name: parts for name, parts in found.items() if parts}
    for name in (name for name in names or () if name not in able):
        raise suggest("block", name, able)
    return able if names is None else {name: able[name] for name in names}


def _layers(module: nn.Module, name: str, block: Block) -> list[Part]:
    """The layers of one block."""
    if all(isinstance(module._modules.get(key), nn.Module) for key in ("conv1", "conv2")):
        # What changes the resolution inside a block lies between the first norm and the first convolution, and acts on
        # the skip as well: it needs its channels.
        moves = any(module._modules.get(key) is not None for key in ("upsample", "downsample"))
        way = [key for key in BRANCH[moves:] if module._modules.get(key) is not None]
        return [Part(name, tuple(Block(f"{block.path}.{key}", block.level) for key in way), False)]
    inside = [inner for inner, _ in attention_modules(module, block) if inner.path != block.path]
    inside += [
        Block(f"{block.path}.{path}", block.level)
        for path, _ in module.named_modules()
        if path.split(".")[-1] in ("ff", "ff_context")
    ]
    if inside:
        return [Part(name + inner.path.removeprefix(block.path), (inner,), False) for inner in inside]
    return [Part(name, (block,), True)] if block.skippable else []


def _unit(module: nn.Module) -> str | None:
    """The path of a block's unit."""
    inside = [
        (path, part)
        for path, part in module.named_modules()
        if not any(name.startswith(BESIDE) for name in path.split("."))
    ]
    for path, part in inside:
        if isinstance(part, CondConv2d) or (isinstance(part, nn.Conv2d) and max(part.kernel_size) > 1):
            return path
    linear = [(part.weight.numel(), path) for path, part in inside if isinstance(part, nn.Linear)]
    return max(linear, key=lambda pair: pair[0])[1] if linear else None
