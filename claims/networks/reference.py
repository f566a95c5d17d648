"""Claims of the transformer with references: a picture has the colour of one reference and the shape of another."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from claims.common import Claim, Outcome, compared, plan, slow, thrice, tolerance
from claims.operations import operations
from claims.trained import NetworkDenoiser, NoiseLevels, fit, fresh
from fewstep.caching.reference import KeptReferences
from fewstep.conditions.picture import Picture
from fewstep.core.noise import Noise
from fewstep.data.captions import COLOURS, SHAPES
from fewstep.data.shapes_render import SIDE, render
from fewstep.metrics.shapes_verifier import check
from fewstep.networks.reference import ReferenceDiT
from fewstep.networks.surgery import Keep, replaced
from fewstep.processes.ve import EDM

STEPS, BATCH, RATE = 1000, 32, 3e-3  # about a minute on one core
SAMPLES, NFE, SHORT = 240, 20, 8
STD = 0.34  # standard deviation of the pictures' values
NETWORK: dict[str, Any] = {"channels": 3, "size": SIDE, "patch": 8, "width": 64, "depth": 3, "classes": None}
SPREAD = 4.0  # pixels over which the things in references lie


class FullDiT(ReferenceDiT):
    """The same weights with full attention: references attend to the picture, and know the noise level.

    Their number among the references is added to their tokens.
    """

    def forward(self, x: Tensor, noise: Tensor | None, label: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        assert y is not None
        own, beside = self.tokens(x), self.tokens(y.flatten(0, 1)).unflatten(0, y.shape[:2])
        tokens = torch.cat([own, (beside + self.kind.weight[:, None]).flatten(1, 2)], dim=1)
        embedding = F.silu(self.embedding(noise, label, x.shape[0]))
        for pair in self.block:
            for module in pair.values():  # type: ignore[operator]
                tokens = module(tokens, embedding)
        return self.picture(tokens[:, : own.shape[1]], embedding)


ARMS = {"semi": ReferenceDiT, "full": FullDiT}


def _scenes(colour: Tensor, shape: Tensor, spread: float, generator: torch.Generator) -> Tensor:
    """One large thing in each picture, near its centre."""
    n = len(colour)
    centre = SIDE / 2 + spread * (torch.rand(n, 1, 2, generator=generator) - 0.5)
    return render(colour[:, None], shape[:, None], torch.ones(n, 1, dtype=torch.long), centre, torch.ones(n, 1))


def _draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, list[str]]:
    """Pictures, the two references of each, and what they show."""
    colour = torch.randint(len(COLOURS), (2, n), generator=generator)
    shape = torch.randint(len(SHAPES), (2, n), generator=generator)
    y = torch.stack([_scenes(colour[r], shape[r], SPREAD, generator) for r in range(2)], dim=1)
    told = [f"a {COLOURS[c]} {SHAPES[s]}" for c, s in zip(colour[0].tolist(), shape[1].tolist(), strict=True)]
    return _scenes(colour[0], shape[1], 0.0, generator), y, told


@functools.cache
def _trained(arm: str, seed: int) -> NetworkDenoiser:
    network = fresh(ARMS[arm], seed, **NETWORK, references=2)
    shape = (3, SIDE, SIDE)
    model = NetworkDenoiser(network, EDM(), "x0", shape, {"y": Picture((2, *shape))}, "edm", STD)

    def draw(n: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        x0, y, _ = _draw(n, generator)
        return x0, {"y": y}

    levels = NoiseLevels(model.process, "log-normal", 0.5, 1.6)  # those of the embedded model of such pictures
    return fit(model, draw, steps=STEPS, batch=BATCH, lr=RATE, levels=levels, seed=seed)


@functools.cache
def _shown(arm: str, nfe: int, seed: int) -> float:
    """The share of samples that show one thing, of the first reference's colour and of the second's shape."""
    _, y, told = _draw(SAMPLES, torch.Generator().manual_seed(seed + 1000))
    model = _trained(arm, seed)
    noise = Noise(seed).normal(0, (SAMPLES, 3, SIDE, SIDE))
    x = plan(model.process, "dpmpp-2m", nfe)(KeptReferences(model) if arm == "semi" else model, noise, y=y)
    return float(check(x.clamp(-1, 1), told).full.float().mean())


ABOUT = (
    f"the colour of one picture and the shape of another, {STEPS} steps of {BATCH} for either kind of attention, equal"
    f" weights, {SAMPLES} samples by dpmpp-2m"
)
FOLLOWED = "share of pictures with the asked colour and shape"


def _as_good(seed: int) -> Outcome:
    semi, full = (_shown(arm, NFE, seed) for arm in ARMS)
    about = f"{ABOUT} in {NFE} evaluations; first seed: {semi:.3f} with semi-attention, {full:.3f} with full attention"
    return tolerance(full - semi, 0.05, about, f"loss against full attention of the {FOLLOWED}")


def _followed(seed: int) -> Outcome:
    """Against the chance of being right by any known shape in any known colour."""
    figures = _shown("semi", NFE, seed), 1 / (len(COLOURS) * len(SHAPES))
    return compared(figures, "chance", f"{ABOUT} in {NFE} evaluations", "high", FOLLOWED)


def _cheap(seed: int) -> Outcome:
    """At equal operations of the run: full attention in as many evaluations as take no fewer."""
    semi, full = (_trained(arm, seed) for arm in ARMS)
    _, y, _ = _draw(1, torch.Generator().manual_seed(seed))
    noise = Noise(seed).normal(0, (1, 3, SIDE, SIDE))
    cost = operations(lambda: plan(semi.process, "dpmpp-2m", SHORT)(KeptReferences(semi), noise, y=y))
    each = operations(lambda: plan(full.process, "dpmpp-2m", SHORT)(full, noise, y=y)) / SHORT
    nfe = math.ceil(cost / each)
    figures = _shown("semi", SHORT, seed), _shown("full", nfe, seed)
    about = f"{ABOUT}, {SHORT} evaluations with references read once, {cost / each / nfe:.0%} of the others' operations"
    return compared(figures, f"{nfe} evaluations with full attention", about, "high", FOLLOWED)


def _apart(seed: int) -> Outcome:
    """How much what references say changes with the noise level, random weights."""
    generator = torch.Generator().manual_seed(seed)
    x, (_, y, _), found = torch.randn(4, 3, SIDE, SIDE, generator=generator), _draw(4, generator), []
    for arm in ARMS:
        network = fresh(ARMS[arm], seed, **NETWORK, references=2).eval()
        own = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=own))
            path, said = "keys" if arm == "semi" else f"block.{NETWORK['depth'] - 1}.attn.qkv", []
            for noise in (-0.5, 0.5):
                store: dict[str, Tensor] = {}
                at = network.get_submodule(path)
                replaced(network, {path: Keep(at, store, "said")})(x, torch.full((4,), noise), None, y)
                whole = store["said"]
                said.append(whole[:, -1] if arm == "semi" else whole[:, (SIDE // 8) ** 2 :, NETWORK["width"] :])
        found.append(float((said[1] - said[0]).norm() / said[0].norm()))
    about = "keys and values of references in the last block at two noise levels, random weights"
    return compared(found, "full attention", about, unit="relative change")


CLAIMS = (
    Claim("reference-dit", "what references say does not change with the noise level", _apart),
    slow("reference-dit", "pictures have the colour of one reference and the shape of the other", thrice(_followed)),
    slow("reference-dit", "loses no more than a twentieth against full attention", thrice(_as_good)),
    slow("reference-dit", "shows more at equal operations than full attention", thrice(_cheap)),
)  # fmt: skip
