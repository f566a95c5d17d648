"""Claims of token merging: what it saves, and what it costs beside no attention at all and beside merging by chance."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from claims.common import Denoiser, Outcome, compared, gap, over_seeds, plan, slow
from claims.operations import seconds
from claims.trained import NetworkDenoiser, fresh
from fewstep.caching.token_merging import Merging, TokenMerging
from fewstep.core.noise import Noise
from fewstep.data.shapes import captions
from fewstep.denoisers.masked import flops
from fewstep.hub.models import load
from fewstep.metrics.shapes_verifier import check
from fewstep.networks.attention import Identity, attended, attentions
from fewstep.networks.dit import DiT
from fewstep.processes.vp import VP

NFE, SAMPLES, TURNS = 12, 64, 15
SIDE, WIDTH, DEPTH, BATCH = 32, 256, 4, 4


class _ByChance(Merging):
    """The same number of tokens merged, whichever they are."""

    def match(self, x: Tensor) -> None:
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(self.seed), dtype=x.dtype)
        super().match(noise)


class _Chance(TokenMerging):
    def _parts(self, size: Any) -> dict[str, nn.Module]:
        parts = super()._parts(size)
        for part in parts.values():
            part.merging.__class__ = _ByChance  # type: ignore[union-attr]
        return parts


@functools.cache
def _random(seed: int) -> NetworkDenoiser:
    """A transformer of 256 tokens, no weight of which is zero."""
    network = fresh(DiT, seed, channels=3, size=SIDE, patch=2, width=WIDTH, depth=DEPTH, classes=None)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return NetworkDenoiser(network.eval(), VP(), "v", (3, SIDE, SIDE))


def _faster(perceptron: bool) -> Any:
    """Seconds of an evaluation in units of the whole model's: the least of several, taken in turns in one process."""

    def measure(seed: int) -> Outcome:
        model = _random(seed)
        models = [TokenMerging(model, 0.5, perceptron=perceptron), model]
        x, t = Noise(seed).normal(0, (BATCH, *model.shape)), torch.tensor(0.5)
        with torch.no_grad():
            off = gap(*(one(x, t).value for one in models))
        ours, theirs = seconds([functools.partial(one, x, t) for one in models], TURNS)
        where = "attention and perceptrons" if perceptron else "attention"
        about = (
            f"dit of {(SIDE // 2) ** 2} tokens, width {WIDTH}, depth {DEPTH}, random weights, {BATCH} samples, one"
            f" thread: half of the tokens merged in {where}; {1000 * theirs:.0f} ms whole; the answer differs by"
            f" {off:.1%}"
        )
        return compared([ours / theirs, 1.0], "the whole model", about, unit="seconds of the whole model's")

    return measure


@functools.cache
def _noises(name: str, seed: int) -> tuple[Denoiser, Tensor, dict[str, Any]]:
    model = load(name)
    asked = {"label": torch.arange(SAMPLES) % 10} if name == "digits" else {"text": captions(torch.arange(SAMPLES))}
    return model, Noise(seed).normal(0, (SAMPLES, *model.shape)), asked


@functools.cache
def _samples(name: str, way: str, ratio: float, seed: int) -> Tensor:
    model, noise, asked = _noises(name, seed)
    return plan(model.process, "ddim", NFE)(_way(model, way, ratio), noise, **asked)


def _way(model: Denoiser, way: str, ratio: float) -> Denoiser:
    if way == "none":
        found = attended(model, TokenMerging(model)._names, lambda core, path: Identity())
        assert isinstance(found, Denoiser)
        return found
    return {"merged": TokenMerging, "chance": _Chance}[way](model, ratio) if way != "whole" else model


def _about(name: str, other: str, ratio: float) -> str:
    model = load(name)
    whole, ours, theirs = (flops(_way(model, way, ratio)) for way in ("whole", "merged", other))
    blocks = len(TokenMerging(model)._names), sum(map(len, attentions(model)))
    return (
        f"embedded {name}, {ratio:.0%} of the tokens merged in {blocks[0]} of {blocks[1]} attentions, {NFE} evaluations"
        f" of ddim, {SAMPLES} noises; {ours / whole:.1%} of the operations against {theirs / whole:.1%}"
    )


def _nearer(name: str, other: str, ratio: float) -> Any:
    """How far whole runs lie from the whole model's."""

    def figures(seed: int) -> list[float]:
        whole = _samples(name, "whole", 0.0, seed)
        return [gap(_samples(name, way, ratio, seed), whole) for way in ("merged", other)]

    def run(seed: int) -> Outcome:
        against = {"none": "identity in place of these attentions", "chance": "as many merged by chance"}[other]
        about = _about(name, other, ratio)
        return over_seeds(figures, against, about, unit="relative difference from the whole run")(seed)

    return run


def _shown(seed: int) -> Outcome:
    """Captions that pictures show, with tokens merged and with the attention left out."""

    def figures(number: int) -> list[float]:
        text = _noises("shapes", number)[2]["text"]
        return [float(check(_samples("shapes", way, 0.75, number).clamp(-1, 1), text).full.float().mean())
                for way in ("merged", "none")]  # fmt: skip

    text = _noises("shapes", seed)[2]["text"]
    whole = float(check(_samples("shapes", "whole", 0.0, seed).clamp(-1, 1), text).full.float().mean())
    about = f"{_about('shapes', 'none', 0.75)}; the whole model on the first seed: {whole:.2f}"
    against = "identity in place of these attentions"
    return over_seeds(figures, against, about, "high", "share of captions shown in full")(seed)


CLAIMS = (
    slow("token-merging", "an evaluation takes less time", _faster(False)),
    slow("token-merging", "an evaluation takes less time, perceptrons merged too", _faster(True)),
    *(slow("token-merging", f"{name} stay nearer to the whole model's than {words}, {ratio:.0%} merged",
           _nearer(name, other, ratio))
      for name in ("digits", "shapes") for ratio in (0.5, 0.75)
      for other, words in (("none", "without that attention"), ("chance", "by merging other tokens"))),
    slow("token-merging", "more captions are shown than without that attention", _shown),
)  # fmt: skip
