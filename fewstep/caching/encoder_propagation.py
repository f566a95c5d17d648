"""Encoder propagation: a UNet's way down runs at key evaluations, and between them its way up alone, all at once."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fewstep.caching.ahead import Ahead, Network
from fewstep.caching.method import method
from fewstep.caching.parts import Kept, Part, Standing, Store, Void
from fewstep.caching.recipe import Recipe
from fewstep.caching.schedule import Keys, every, listed, not_negative, share, whole_number
from fewstep.core.denoiser import Denoiser
from fewstep.core.memory import AnyMemory, Memory
from fewstep.core.memory import Part as Rows
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction, conversion, expand, scales
from fewstep.networks.blocks import networks_of
from fewstep.networks.surgery import Block, InPlaceOf

METHODS = (
    Method(
        "encoder-propagation",
        kind="cache",
        paper="Faster Diffusion: Rethinking the Role of UNet Encoder in Diffusion Models (Li et al., 2023)",
        arxiv="2312.09608",
        claim="a UNet's way down runs at key evaluations, and the ways up until the next key in one batch",
        use="encoder_propagation",
        facts={"wraps": True},
    ),
)

KEYS, LENGTH = (0, 1, 2, 3, 5, 10, 15, 25, 35), 50  # the paper's, of DDIM's 50 steps
SPARSE = 5  # evaluations from key to key in a run of unknown length
ENCODER, DECODED, BEGUN = "encoder", "decoded", "begun"


@method("encoder-propagation")
def encoder_propagation(
    model: Denoiser,
    keys: int | Sequence[int] | None = None,
    order: int = 1,
    batched: bool = True,
    inject: float = 0.0,
    since: float = 0.5,
) -> Recipe:
    """The model, whose UNet runs whole at key evaluations; in between only the decoder runs, on what the encoder said.

    The encoder is the way down and the middle, and what is kept is all that it hands to the way up: the skips and the
    bottleneck. The decoder is given the time and the conditions of its own evaluation, but does not see the state, so
    the decoders of all evaluations up to the next key run in one batch at the key (Li et al., section 3.3). What they
    say is the network's answer: the preconditioning around it goes by the state at its own evaluation. Where the times
    of a run are not known beforehand the decoders run one by one; forecasts need the later times alone, so they go with
    both. With keys=1 it is the model itself, bit for bit.

    With z the run's first state, at unit variance, and share a = `inject`, every clean sample x0 late in the run
    becomes that of the step of DDIM from `x + a z` at the same noise (the paper adds 0.003 of it for lost texture): `x0
    + a z n / alpha / (1 - r)`, n^2 = alpha^2 + sigma^2, r how much of sigma / alpha the step leaves.

    Args:
        keys: the evaluations at which the encoder runs, or every so many; None for the paper's, dense at first: 0, 1,
            2, 3, 5, 10, 15, 25 and 35 of 50, scaled to the run. The first one is always among them.
        order: of the forecast of what the encoder said; 1 is the paper's reuse.
        batched: the decoders run in one batch; it takes as many times the memory.
        inject, since: the share of the first state, and the fraction of the run from which on it is added.

    Raises:
        ValueError: a number outside its range, a network that is no UNet, or one whose way up sees more than what the
            way down and the middle say.
    """
    order, a, since = whole_number("order", order), not_negative("inject", inject), share("since", since)
    chosen = _keys(keys)
    blocks = networks_of(model)[0]
    encoder = _encoder(model, blocks)
    parts: dict[str, Part] = {ENCODER: encoder}
    root = encoder.blocks[0].path.rpartition(".")[0]
    if batched and (not root or isinstance(model.get_submodule(root), Denoiser)):
        raise ValueError("the denoiser is its network itself, so its answers cannot be told apart: give batched=False")
    decoded = Network(DECODED, (Block(root),), False)

    def later(number: int, count: int) -> Sequence[int]:
        found = number + 1
        while found < count and not chosen(found, count):
            found += 1
        return range(number + 1, found) if batched else ()

    ahead = Ahead(DECODED, ENCODER, later, lambda answer, memory: _injected(answer, memory, a, since))
    return Recipe(
        parts | {DECODED: decoded},
        lambda n, count: () if chosen(n, count) else (DECODED if batched and count else ENCODER,),
        {ENCODER: order, DECODED: 1},
        never=keys == 1 and a == 0,
        ahead=ahead,
    )


def _keys(keys: int | Sequence[int] | None) -> Keys:
    if keys is None:
        return lambda n, count: n in {k * count // LENGTH for k in KEYS} if count else n % SPARSE == 0
    if isinstance(keys, int):
        return every(whole_number("keys", keys))
    for key in keys:
        whole_number("a key", key, 0)
    return listed(list(keys))


def _injected(answer: Prediction, memory: AnyMemory, a: float, since: float) -> Prediction:
    """The answer with a share of the run's first state added to its clean sample, late in the run."""
    if a == 0:
        return answer
    process, t = answer.process, answer.t
    if any(run.number == 0 for run in memory.parts()):
        alpha, sigma = process.alpha(t.double()), process.sigma(t.double())
        memory.keep(BEGUN, answer.x / expand((alpha**2 + sigma**2).sqrt(), answer.x))
    rates = [_rate(run, since, process) for run in memory.parts()]
    begun = memory.get(BEGUN)
    if begun is None or not any(rates):
        return answer
    each = torch.tensor([rate for rate, run in zip(rates, memory.parts(), strict=True) for _ in range(run.rows)])
    alpha, sigma, dalpha, dsigma = scales(process, t.double())
    factor = conversion("x0", answer.kind, alpha, sigma, dalpha, dsigma)[1]
    moved = expand(torch.as_tensor(a * factor * each.to(begun.device).double()), begun) * begun
    return answer.replaced(answer.value + moved.to(answer.value.dtype))


def _rate(run: Memory | Rows, since: float, process: Any) -> float:
    """`n / alpha / (1 - r)` at a run's evaluation, 0 where nothing is added."""
    t, s = run.step
    if t is None or s is None or not run.times or run.number < since * len(run.times):
        return 0.0
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    left = float(process.sigma(s)) / float(process.alpha(s)) * alpha / sigma if alpha > 0 and sigma > 0 else 1.0
    return (alpha**2 + sigma**2) ** 0.5 / alpha / (1 - left) if left < 1 else 0.0


@dataclass(frozen=True)
class Encoder(Part):
    """What a way up is given: of each block of the way down and the middle, `counts` says how many tensors are kept of
    it: none of what only leads to others, its value, or all that a stage of diffusers passes on."""

    counts: tuple[int, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(f"{self.name} {k}" for k in range(sum(self.counts)))

    def _each(self, model: nn.Module) -> list[tuple[Block, nn.Module, tuple[str, ...]]]:
        keys, found = list(self.keys), []
        for block, count in zip(self.blocks, self.counts, strict=True):
            found.append((block, model.get_submodule(block.path), tuple(keys[:count])))
            del keys[:count]
        return found

    def keeping(self, model: nn.Module, store: Store) -> dict[str, nn.Module]:
        return {
            block.path: Passing(module, store, keys) if _stage(module) else Kept(module, block, store, keys, None)
            for block, module, keys in self._each(model)
            if keys
        }

    def standing(self, model: nn.Module, store: Store, adaptor: nn.Module | None = None) -> dict[str, nn.Module]:
        return {
            block.path: Passed(module, store, keys)
            if _stage(module)
            else Standing(module, block, store, keys, False)
            if keys
            else Void(module)
            for block, module, keys in self._each(model)
        }


def _stage(module: nn.Module) -> bool:
    """Whether it is a stage of diffusers' way down, which returns its value and a tuple of skips."""
    return isinstance(module._modules.get("resnets"), nn.ModuleList) and hasattr(module, "downsamplers")


class Passing(InPlaceOf):
    """Runs a stage of diffusers' way down, and keeps its skips, of which the last is its value."""

    def __init__(self, of: nn.Module, store: Store, keys: Sequence[str]):
        super().__init__(of)
        self.inner, self.store, self.keys = of, store, keys

    def forward(self, *args: Any, **named: Any) -> Any:
        value, skips = self.inner(*args, **named)
        self.store.update(zip(self.keys, skips, strict=True))
        return value, skips


class Passed(InPlaceOf):
    """Replaces a stage of diffusers' way down by the skips in the store."""

    def __init__(self, of: nn.Module, store: Store, keys: Sequence[str]):
        super().__init__(of)
        self.store, self.keys = store, keys

    def forward(self, *args: Any, **named: Any) -> Any:
        skips = tuple(self.store[key] for key in self.keys)
        return skips[-1], skips


def _encoder(model: nn.Module, blocks: Mapping[str, Block]) -> Encoder:
    """The encoder of a UNet: its first layer, its way down and its middle."""
    first = next(iter(blocks.items()))
    if first[0].startswith("down."):
        root = first[1].path.removesuffix(first[0])
        names = [name for name in blocks if name.startswith(("down.", "mid."))]
        last = [name for name in names if name.startswith("mid.")][-1]
        chosen = [Block(f"{root}first"), *(blocks[name] for name in names)]
        return Encoder(
            ENCODER, tuple(chosen), False, (0, *(int(_skips(name, names) or name == last) for name in names))
        )
    path = next((block.path for block in blocks.values() if "down_blocks." in block.path), "")
    root = path.partition("down_blocks.")[0]
    network = model.get_submodule(root.rstrip("."))
    if not path or "conv_in" not in network._modules or network._modules.get("mid_block") is None:
        raise ValueError(
            "this needs a UNet, whose blocks lie on a way down, in a middle and on a way up; the network's blocks are "
            + ", ".join(list(blocks)[:6])
        )
    stages, ups = (list(network.get_submodule(name).children()) for name in ("down_blocks", "up_blocks"))
    for stage in (*stages, *ups):
        if hasattr(stage, "skip_conv") or hasattr(stage, "resnet_up") or not hasattr(stage, "resnets"):
            raise ValueError(
                f"the way up of this network sees more than what the way down says: {type(stage).__name__} is not known"
            )
    counts = [len(stage.resnets) + len(stage.downsamplers or ()) for stage in stages]  # type: ignore[arg-type]
    paths = ["conv_in", *(f"down_blocks.{i}" for i in range(len(stages))), "mid_block"]
    return Encoder(ENCODER, tuple(Block(root + path) for path in paths), False, (1, *counts, 1))


def _skips(name: str, names: Sequence[str]) -> bool:
    """Whether the value of a block of our way down is a skip: the last of those with its number at its level."""
    head, _, block = name.rpartition(".")
    number = block.lstrip(string.ascii_letters)
    last = [other for other in names if other in {f"{head}.{kind}{number}" for kind in ("res", "attn", "time")}][-1:]
    return head.startswith("down.") and number.isdecimal() and last == [name]
