"""Token merging: attention, and perceptrons, over fewer tokens, of which each may stand for several alike ones."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.core.arguments import shown
from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.memory import AnyMemory, ask
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction
from fewstep.networks.attention import attentions, choose, grid_of, places
from fewstep.networks.blocks import networks_of
from fewstep.networks.common import as_pair
from fewstep.networks.surgery import InPlaceOf, replaced

METHODS = (
    Method(
        "token-merging",
        kind="cache",
        paper="Token Merging for Fast Stable Diffusion (Bolya and Hoffman, 2023)",
        arxiv="2303.17604",
        claim="attention over half of the tokens takes less time, and is nearer to the whole than none",
        use="TokenMerging",
        facts={"wraps": True, "keeps": False},
    ),
)


class Merging:
    """The matching of one block's tokens `(B, N, C)` in one call (Bolya and Hoffman, sections 3 and 4).

    Of the grid of N tokens, one in each cell of `stride` is a destination, all others are sources. A source is matched
    with the destination of largest cosine; the `int(ratio N)` sources of largest cosine are merged with theirs. A
    merged token is the mean of the tokens that it stands for. Each sample is matched by itself, and nothing is read
    from the device.
    """

    def __init__(self, ratio: float, size: Sequence[int], stride: tuple[int, int], seed: int) -> None:
        self.ratio, self.size, self.stride, self.seed = ratio, tuple(size), stride, seed
        self.sizes: Tensor | None = None  # (B, M): how many tokens each stands for; None where none is merged
        self._given: Tensor | None = None
        self._made: Tensor | None = None
        self._place: Tensor | None = None  # (B N,): where each token is among the B M merged ones

    def merged(self, x: Tensor) -> Tensor:
        """`(B, M, C)`, the destinations first; the same tensor is matched once."""
        if self._made is None or x is not self._given:
            self.match(x)
            self._given, self._made = x, self._mean(x)
        return self._made

    def restored(self, y: Tensor) -> Tensor:
        """`(B, N, C)`: each token's answer among those `(B, M, C)` of the merged ones."""
        if self._place is None:
            return y
        return y.flatten(0, 1)[self._place].unflatten(0, (y.shape[0], -1))

    def match(self, x: Tensor) -> None:
        """Decides which tokens are merged, by the likeness of those of x."""
        batch, tokens = x.shape[:2]
        sides = _sides(tokens, self.size, self.stride, self.seed)
        to, of = (side.to(x.device, non_blocking=True) for side in sides)
        count = min(int(self.ratio * tokens), len(of))
        if not count:
            self._place = self.sizes = None
            return
        unit = F.normalize(x.detach(), dim=2)
        best, nearest = (unit.index_select(1, of) @ unit.index_select(1, to).mT).max(2)
        # In a stable order, so that equals do not depend on the batch.
        rank = best.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        where = torch.where(rank < count, nearest, len(to) + rank - count)
        own = torch.arange(len(to), device=x.device).expand(batch, -1)
        place = torch.empty(batch, tokens, dtype=torch.long, device=x.device)
        place = place.index_copy(1, to, own).index_copy(1, of, where)
        left = tokens - count
        self._place = (place + left * torch.arange(batch, device=x.device)[:, None]).flatten()
        sizes = x.new_zeros(batch * left).index_add(0, self._place, x.new_ones(batch * tokens))
        self.sizes = sizes.view(batch, left)

    def _mean(self, x: Tensor) -> Tensor:
        if self._place is None or self.sizes is None:
            return x
        total = x.new_zeros(self.sizes.numel(), x.shape[2]).index_add(0, self._place, x.flatten(0, 1))
        return total.view(*self.sizes.shape, -1) / self.sizes[:, :, None]


class Merged(InPlaceOf):
    """A layer whose input is merged before, and whose output is restored after it, where these are asked for."""

    def __init__(self, layer: nn.Module, merging: Merging, before: bool = False, after: bool = False) -> None:
        super().__init__(layer)
        self.layer, self.merging, self.before, self.after = layer, merging, before, after

    def forward(self, x: Tensor, *args: Any, **named: Any) -> Tensor:
        out: Tensor = self.layer(self.merging.merged(x) if self.before else x, *args, **named)
        return self.merging.restored(out) if self.after else out


class Weighed(nn.Module):
    """`Attend` in which a merged token counts against the words of a caption as often as the tokens it stands for.

    `log s` is added to the score of a key that stands for s tokens (Bolya et al., 2210.09461, equation 1). Without
    words it is left out, as in the paper on Stable Diffusion, whose words have an attention of their own.
    """

    def __init__(self, merging: Merging) -> None:
        super().__init__()
        self.merging = merging

    def forward(self, q: Tensor, k: Tensor, v: Tensor, words: int) -> Tensor:
        sizes = self.merging.sizes
        if not words or sizes is None:
            return F.scaled_dot_product_attention(q, k, v)
        mask = F.pad(sizes.log(), (0, words)).to(q.dtype)[:, None, None]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class TokenMerging(Wrapper):
    """The model, some of whose blocks attend over fewer tokens: alike ones are merged before and copied apart after.

    Tokens are merged where they enter a block's attention, before its projections to queries, keys and values, and
    what attention answers is copied to all tokens that were merged into one, behind its last projection; the sum with
    the block's own input keeps them apart (Bolya and Hoffman, section 3). The matching looks at these entering tokens,
    which are normalised already. The words of a caption are never merged. Each block matches by itself.

    The paper draws the destinations anew in each block and step. Here they are drawn once from `seed`, differently for
    each block and equally for all evaluations and samples: the model stays a function of its input, as solvers of
    higher order and comparisons between runs need. Cells cut by the grid's edge have a destination too.

    A block whose attention something else replaces or reads (a rule of guidance) is left whole in that call.

    Args:
        ratio: the share of tokens that are merged, 0 to `1 - 1 / (rows * columns)` of the stride; 0 is the model, bit
            for bit.
        blocks: the attention blocks, by name; by default those of the finest resolution that has any.
        stride: rows and columns of the cells of the grid.
        seed: from which the destinations are drawn.
        perceptron: whether the perceptrons of the same layers (`mlp` of our transformers, `ff` of diffusers') are run
            on merged tokens as well, each with a matching of its own.

    Raises:
        ValueError: a ratio below 0 or with more merged than there are sources, a stride that is no pair of whole
            numbers, a negative seed; a network without attention, an unknown block, one whose projections have other
            names than those of our networks and of diffusers' `Attention`, `perceptron` where there is none.
    """

    def __init__(
        self,
        model: Denoiser,
        ratio: float = 0.5,
        blocks: Sequence[str] | None = None,
        stride: int | Sequence[int] = (2, 2),
        seed: int = 0,
        perceptron: bool = False,
    ):
        super().__init__(model)
        self.stride = as_pair(stride, "stride")
        cell = self.stride[0] * self.stride[1]
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio <= 1 - 1 / cell:
            raise ValueError(
                f"ratio must be 0 to {1 - 1 / cell:g}, as one token in each cell of {self.stride[0]}x{self.stride[1]}"
                f" stays and no more can be merged than there are beside it, got {shown(ratio)}"
            )
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ValueError(f"seed must be a whole number of at least 0, got {shown(seed)}")
        self.ratio, self.seed, self.perceptron = float(ratio), seed, bool(perceptron)
        self.blocks = None if blocks is None else list(choose(attentions(model), blocks))
        found = attentions(model)
        levels = [min(block.level for block in network.values()) for network in found]
        finest = [n for network, low in zip(found, levels, strict=True) for n, b in network.items() if b.level == low]
        self._names = self.blocks or list(dict.fromkeys(finest))
        self._parts((1, 1))

    def config(self) -> dict[str, Any]:
        names = ("model", "ratio", "blocks", "stride", "seed", "perceptron")
        return {name: getattr(self, name) for name in names} | {"stride": list(self.stride)}

    def describe(self) -> dict[str, Any]:
        return self.model.describe() | {"merged tokens": f"{self.ratio:.0%} in {', '.join(self._names)}"}

    def forward(self, x: Tensor, t: Tensor, *, memory: AnyMemory | None = None, **condition: Any) -> Prediction:
        if not self.ratio:
            return ask(self.model, x, t, memory, condition)
        # Made for each call, as a matching belongs to one; a copy costs microseconds.
        found = replaced(self.model, self._parts(x.shape[2:]))
        assert isinstance(found, Denoiser)
        return ask(found, x, t, memory, condition)

    def _parts(self, size: Sequence[int]) -> dict[str, nn.Module]:
        """What replaces which modules of the model, for pictures of this height and width."""
        parts: dict[str, nn.Module] = {}
        blocks = [block for blocks in networks_of(self.model) for name, block in blocks.items() if name in self._names]
        number = 0
        for path in (path for block in blocks for path in places(self.model, block)):
            one, two = (Merging(self.ratio, size, self.stride, self.seed + number) for _ in range(2))
            number += 1
            if type(self.model.get_submodule(path)).__name__ in ("Attend", "Attention"):
                parts |= self._attention(path, one)
            if self.perceptron:
                parts |= self._perceptron(path.removesuffix(".core"), two)
        return parts

    def _attention(self, path: str, merging: Merging) -> dict[str, nn.Module]:
        at = path.removesuffix(".core")
        ours = path != at
        fused = getattr(self.model.get_submodule(at), "fused_projections", False)
        first = ["qkv"] if ours else ["to_qkv"] if fused else ["to_q", "to_k", "to_v"]
        last = "out" if ours else "to_out.0"
        found = {name: self._module(f"{at}.{name}") for name in (*first, last)}
        if isinstance(found[last], Merged):
            return {}
        if missing := next((name for name, module in found.items() if module is None), None):
            raise ValueError(f"the tokens of {at!r} cannot be merged: it has no projection {missing!r}")
        parts = {f"{at}.{name}": Merged(found[name], merging, before=True) for name in first}  # type: ignore[arg-type]
        parts[f"{at}.{last}"] = Merged(found[last], merging, after=True)  # type: ignore[arg-type]
        return {**parts, path: Weighed(merging)} if ours else {**parts}

    def _perceptron(self, at: str, merging: Merging) -> dict[str, nn.Module]:
        above = at.rpartition(".")[0]
        if (whole := self._module(f"{above}.ff")) is not None:
            made = Merged(whole, merging, before=True, after=True)
            return {} if isinstance(whole, Merged) else {f"{above}.ff": made}
        wide, out = (self._module(f"{above}.mlp.{name}") for name in ("wide", "out"))
        if isinstance(self._module(f"{above}.mlp"), InPlaceOf) or isinstance(out, Merged):
            return {}  # something stands in its place
        if wide is None or out is None:
            raise ValueError(f"there is no perceptron beside {at!r} (`mlp` or `ff`): leave out perceptron=True")
        return {
            f"{above}.mlp.wide": Merged(wide, merging, before=True),
            f"{above}.mlp.out": Merged(out, merging, after=True),
        }

    def _module(self, path: str) -> nn.Module | None:
        here: nn.Module | None = self.model
        for name in path.split("."):
            here = None if here is None else here._modules.get(name)
        return here


@functools.lru_cache(1024)
def _sides(tokens: int, size: tuple[int, int], stride: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    """The indices of destinations and of sources among the tokens of a picture of this height and width."""
    with torch.inference_mode(False):  # what is kept may be differentiated with later
        rows, columns = grid_of(tokens, size)
        down, right = torch.arange(0, rows, stride[0]), torch.arange(0, columns, stride[1])
        drawn = torch.rand(2, len(down), len(right), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        row = down[:, None] + (drawn[0] * (rows - down).clamp(max=stride[0])[:, None]).long()
        column = right + (drawn[1] * (columns - right).clamp(max=stride[1])).long()
        to = (row * columns + column).flatten()
        taken = torch.zeros(tokens, dtype=torch.bool).index_fill(0, to, True)
        return to, (~taken).nonzero().squeeze(1)
