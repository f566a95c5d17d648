"""Claims of fewstep/metrics/shapes_verifier.py."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from claims.common import Claim, Outcome, experiment, tolerance
from fewstep.data.captions import COLOURS, OPPOSITE, SHAPES, SIZES, Spec, Thing
from fewstep.data.shapes import draw, scenes
from fewstep.metrics.shapes_verifier import check

N = 2000
NOISE = "Gaussian noise of deviation 0.2"


def _pictures(seed: int, n: int = N) -> tuple[Tensor, list[Spec]]:
    """Pictures of held-out combinations, and what they show with every attribute."""
    rows = torch.arange(seed * n, (seed + 1) * n)
    return draw(rows, "validation")[0], scenes(rows, "validation")


def _noisy(images: Tensor, seed: int) -> Tensor:
    return images + 0.2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))


def _blurred(images: Tensor, seed: int) -> Tensor:
    kernel = torch.exp(-0.5 * torch.arange(-6, 7) ** 2)
    kernel = (kernel / kernel.sum()).repeat(3, 1)
    images = functional.pad(images, [6] * 4, mode="replicate")
    images = functional.conv2d(images, kernel.view(3, 1, 1, 13), groups=3)
    return functional.conv2d(images, kernel.view(3, 1, 13, 1), groups=3)


@experiment
def _confirmed(seed: int, n: int, changed: Callable[[Tensor, int], Tensor], least: float, by: str) -> Outcome:
    """How many pictures still show what they showed."""
    images, shown = _pictures(seed, n)
    share = check(changed(images, seed), [spec.caption for spec in shown]).full.float().mean().item()
    about = f"{n} held-out pictures, all attributes named, {by}"
    return Outcome(share, least, "demand", about, better="high", unit="captions confirmed")


def _clean(seed: int) -> Outcome:
    images, shown = _pictures(seed)
    wrong = 1 - check(images, [spec.caption for spec in shown]).full.double().mean().item()
    about = f"{N} held-out pictures, all attributes named"
    return Outcome(wrong, 1 / N, "one in two thousand", about, unit="captions denied")


def altered(spec: Spec, draw: Tensor) -> Spec:
    """The spec with one attribute of one thing, or the relation, changed; `draw` is three numbers in [0, 1)."""
    which, what, value = draw.tolist()
    k = int(which * len(spec.things))
    thing = spec.things[k]
    kinds = ("colour", "shape", "size", "relation")[: 3 + len(spec.things) // 2]
    kind = kinds[int(what * len(kinds))]
    if kind == "relation":
        return Spec(spec.things, None, OPPOSITE[str(spec.relation)])
    words = {"colour": COLOURS, "shape": SHAPES, "size": SIZES}[kind]
    others = [word for word in words if word != getattr(thing, kind)]
    changed = Thing(**(vars(thing) | {kind: others[int(value * len(others))]}))
    return Spec((*spec.things[:k], changed, *spec.things[k + 1 :]), spec.place, spec.relation)


def _wrong(seed: int) -> Outcome:
    images, shown = _pictures(seed)
    draws = torch.rand(N, 3, generator=torch.Generator().manual_seed(seed))
    asked = [altered(spec, draw).caption for spec, draw in zip(shown, draws, strict=True)]
    share = check(_noisy(images, seed + 1), asked).full.double().mean().item()
    about = f"{N} held-out pictures under noise of 0.2, one attribute of each caption changed"
    return tolerance(share, 0.001, about, "captions confirmed")


CLAIMS = (
    Claim("shapes-verifier", "confirms 99 % of captions under noise of 0.2", _confirmed(400, _noisy, 0.99, NOISE)),
    Claim("shapes-verifier", "reads clean pictures exactly", _clean, quick=False),
    Claim("shapes-verifier", "confirms 99 % of 2000 captions under noise",
          _confirmed(N, _noisy, 0.99, NOISE), quick=False),
    Claim("shapes-verifier", "confirms 98 % of captions under a blur of one pixel",
          _confirmed(N, _blurred, 0.98, "Gaussian blur of one pixel"), quick=False),
    Claim("shapes-verifier", "denies captions that are wrong in one attribute", _wrong, quick=False),
)  # fmt: skip
