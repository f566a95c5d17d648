"""Attention under control: rules that stand in the place of `Attend`, where they go, and a blur over a grid.

A rule is a module called like `fewstep.networks.common.Attend`, `(q, k, v, words)`. `attended(model, ...)` is the model
with rules in named blocks, sharing all else with it (`fewstep.networks.surgery`). In our networks a rule takes the
place of a block's `core`; diffusers' modules `Attention` give way to one that does the same with their weights
(`SelfAttention`), where they attend from the picture to itself.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.errors import suggest
from fewstep.networks.blocks import networks_of
from fewstep.networks.common import Attend
from fewstep.networks.surgery import Block, InPlaceOf, replaced

Rule = Callable[[nn.Module, str], nn.Module]  # a block's present rule and path, to the one in its place


class Identity(nn.Module):
    """Each token of the picture reads itself alone: its own value (Ahn et al., 2403.17377, equation 14)."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, words: int) -> Tensor:
        return v[:, :, : q.shape[2]]


class Blurred(nn.Module):
    """Attention whose queries are blurred over the picture's grid (Hong, 2408.00760, section 4.2).

    std: of the Gaussian, in tokens; infinite for the mean of all queries. size: height and width of the picture, whose
    proportions are those of the grid. core: what attends.
    """

    def __init__(self, std: float, size: Sequence[int], core: nn.Module) -> None:
        super().__init__()
        self.std, self.size, self.core = std, tuple(size), core

    def forward(self, q: Tensor, k: Tensor, v: Tensor, words: int) -> Tensor:
        grid = q.transpose(2, 3).unflatten(3, grid_of(q.shape[2], self.size))
        return self.core(blur(grid, self.std).flatten(3).transpose(2, 3), k, v, words)


class Recorded(nn.Module):
    """The rule `core`, which also appends softmax attention's maps, their mean over heads, to a list.

    A map is `(B, N, N + words)`: what each of the N tokens of the picture reads of each, then of each word.
    """

    def __init__(self, core: nn.Module, maps: list[Tensor]) -> None:
        super().__init__()
        self.core, self.maps = core, maps

    def forward(self, q: Tensor, k: Tensor, v: Tensor, words: int) -> Tensor:
        self.maps.append((q / math.sqrt(q.shape[3]) @ k.transpose(2, 3)).softmax(3).mean(1))
        return self.core(q, k, v, words)


class SelfAttention(InPlaceOf):
    """In the place of diffusers' `Attention`: the same, with the rule `core` between its projections."""

    def __init__(self, of: nn.Module, core: nn.Module) -> None:
        super().__init__(of)
        self.core = core

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        of = self.of
        if encoder_hidden_states is not None or attention_mask is not None:
            raise ValueError("this attention is called with other tokens or a mask: no rule can take its place")
        x = hidden_states if of.spatial_norm is None else of.spatial_norm(hidden_states, temb)
        tokens = x.flatten(2).transpose(1, 2) if x.ndim == 4 else x
        if of.group_norm is not None:
            tokens = of.group_norm(tokens.transpose(1, 2)).transpose(1, 2)
        fused = getattr(of, "fused_projections", False)
        three = of.to_qkv(tokens).chunk(3, 2) if fused else (of.to_q(tokens), of.to_k(tokens), of.to_v(tokens))
        q, k, v = (each.unflatten(2, (of.heads, -1)).transpose(1, 2) for each in three)
        q = q if of.norm_q is None else of.norm_q(q)
        k = k if of.norm_k is None else of.norm_k(k)
        if not of.scale_qk:
            q = q * math.sqrt(q.shape[3])
        out = of.to_out[1](of.to_out[0](self.core(q, k, v, 0).transpose(1, 2).flatten(2).to(q.dtype)))
        if x.ndim == 4:
            out = out.transpose(1, 2).reshape(hidden_states.shape)
        return (out + hidden_states if of.residual_connection else out) / of.rescale_output_factor


def places(model: nn.Module, block: Block) -> list[str]:
    """The paths at which the rules of a block lie."""
    module = model.get_submodule(block.path)
    if module._modules.get("core") is not None and not isinstance(module, SelfAttention):
        return [f"{block.path}.core"]
    found = [name for name, part in module.named_modules() if _reads_itself(name, part)]
    return [f"{block.path}.{name}" if name else block.path for name in found]


def _reads_itself(name: str, part: nn.Module) -> bool:
    """Whether it is diffusers' attention of a picture to itself: a block of its own, or a transformer's first."""
    if isinstance(part, SelfAttention):
        return True
    if type(part).__name__ != "Attention" or (name and name.split(".")[-1] != "attn1"):
        return False
    return not getattr(part, "is_cross_attention", True) and getattr(part, "added_kv_proj_dim", 0) is None


def middle(blocks: dict[str, Block]) -> list[str]:
    """Of some blocks of a network those in its middle: in a UNet those between its ways down and up, or of the coarsest
    level that has any; where all are of one level, as in a transformer, the middle third, at least one."""
    names = list(blocks)
    if inner := [name for name in names if name.split(".")[0] in ("mid", "mid_block")]:
        return inner
    coarsest = max(block.level for block in blocks.values())
    if coarsest > min(block.level for block in blocks.values()):
        return [name for name, block in blocks.items() if block.level == coarsest]
    return names[len(names) // 3 : max(len(names) - len(names) // 3, 1)]


def choose(found: Sequence[dict[str, Block]], names: Sequence[str] | None) -> list[str]:
    """These names of blocks of some networks, or those in the `middle` of each.

    Raises:
        ValueError: no names, or one that no network has (close ones are offered).
    """
    if names is None:
        return list(dict.fromkeys(name for blocks in found for name in middle(blocks)))
    if isinstance(names, str) or not names:
        raise ValueError(f"blocks must be a list of names, at least one, got {names!r}")
    for name in names:
        if not any(name in blocks for blocks in found):
            raise suggest("block", name, (known for blocks in found for known in blocks))
    return list(names)


def attentions(model: nn.Module) -> list[dict[str, Block]]:
    """The blocks whose attention takes a rule, of each network in the model that has any.

    Raises:
        ValueError: no network names its blocks, none has attention, or none but joint attention of words and picture
            (SD3, Flux), which has no tokens of the picture alone.
    """
    networks = networks_of(model)
    found = [{name: block for name, block in blocks.items() if places(model, block)} for blocks in networks]
    if any(found):
        return [blocks for blocks in found if blocks]
    joint = {type(model.get_submodule(block.path)).__name__ for b in networks for block in b.values() if block.beside}
    if joint:
        raise ValueError(
            f"the attention of this network ({', '.join(sorted(joint))}) is joint, of words and picture: what changes"
            " or reads a picture's attention to itself cannot guide it; 'slg', which leaves blocks out, can"
        )
    raise ValueError(f"this network has no attention; its blocks are {', '.join(networks[0])}")


def attended(model: nn.Module, names: Sequence[str], rule: Rule) -> nn.Module:
    """The model with `rule(present one, path)` in the blocks of these names in all its networks.

    A block that something has put out of the way, a mask or a cache, has no rule and is left as it is.
    """
    parts: dict[str, nn.Module] = {}
    chosen = [block for blocks in networks_of(model) for name, block in blocks.items() if name in names]
    for path in (path for block in chosen for path in places(model, block)):
        present = model.get_submodule(path)
        if path.endswith(".core"):
            parts[path] = rule(present, path)
        elif isinstance(present, SelfAttention):
            parts[path] = SelfAttention(present.of, rule(present.core, path))
        else:
            parts[path] = SelfAttention(present, rule(Attend(), path))
    return replaced(model, parts)


def grid_of(tokens: int, size: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of so many tokens, in the proportions of a picture of this height and width.

    Of the divisors the nearest is taken: levels of odd sizes are rounded.
    """
    wanted = math.log(size[0] / size[1])
    pairs = [(rows, tokens // rows) for rows in range(1, tokens + 1) if tokens % rows == 0]
    return min(pairs, key=lambda pair: abs(math.log(pair[0] / pair[1]) - wanted))


def blur(x: Tensor, std: float, reach: int | None = None) -> Tensor:
    """`x (..., H, W)` under a Gaussian of this standard deviation in pixels, as far as `reach` pixels each way.

    Pictures go on mirrored beyond their edges, which are repeated: their mean stays, and a wide Gaussian tends to it.
    An infinite one is that mean, and one of 0 changes nothing.
    """
    if std == 0:
        return x
    rows, columns = (_weights(n, std, reach).to(x.device, x.dtype, non_blocking=True) for n in x.shape[-2:])
    return rows @ x @ columns.T


@functools.lru_cache(256)
def _weights(n: int, std: float, reach: int | None) -> Tensor:
    """`(n, n)`, symmetric: how much each of n pixels in a row reads of each."""
    with torch.inference_mode(False):  # what is kept may be differentiated later
        if reach is None and std > 20 * n:  # to less than rounding
            return torch.full((n, n), 1 / n, dtype=torch.float64)
        far = reach if reach is not None else math.ceil(9 * std)
        steps = torch.arange(-far, far + 1)
        heights = torch.exp(-0.5 * (steps.double() / std) ** 2)
        # By distance modulo the mirrored row's period, which is 2 n.
        by_distance = torch.zeros(2 * n, dtype=torch.float64).index_add(0, steps % (2 * n), heights / heights.sum())
        own, other = torch.arange(n)[:, None], torch.arange(n)
        return by_distance[(other - own) % (2 * n)] + by_distance[(2 * n - 1 - other - own) % (2 * n)]
