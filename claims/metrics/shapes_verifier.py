"""Claims of fewstep/metrics/shapes_verifier.py."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from claims.claim import Claim, Outcome
from fewstep.data.captions import COLOURS, OPPOSITE, SHAPES, SIZES, Spec, Thing
from fewstep.data.shapes import draw, scenes
from fewstep.metrics.shapes_verifier import check

N = 2000


def _pictures(seed: int, n: int) -> tuple[Tensor, list[Spec]]:
    """Pictures of held-out combinations, and what they show with every attribute."""
    rows = torch.arange(seed * n, (seed + 1) * n)
    return draw(rows, "validation")[0], scenes(rows, "validation")


def _blurred(images: Tensor, sigma: float) -> Tensor:
    kernel = torch.exp(-0.5 * (torch.arange(-6, 7) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).repeat(3, 1)
    images = functional.pad(images, [6] * 4, mode="replicate")
    images = functional.conv2d(images, kernel.view(3, 1, 1, 13), groups=3)
    return functional.conv2d(images, kernel.view(3, 1, 13, 1), groups=3)


def _noisy(seed: int, n: int) -> Outcome:
    images, shown = _pictures(seed, n)
    images = images + 0.2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    share = check(images, [spec.caption for spec in shown]).full.float().mean().item()
    conditions = f"{n} held-out pictures, all attributes named, Gaussian noise of deviation 0.2"
    return Outcome(share, 0.99, "demand", conditions, better="high", unit="captions confirmed")


def _clean(seed: int) -> Outcome:
    images, shown = _pictures(seed, N)
    wrong = 1 - check(images, [spec.caption for spec in shown]).full.double().mean().item()
    return Outcome(
        wrong, 1 / N, "one in two thousand", f"{N} held-out pictures, all attributes named", unit="captions denied"
    )


def _blur(seed: int) -> Outcome:
    images, shown = _pictures(seed, N)
    share = check(_blurred(images, 1.0), [spec.caption for spec in shown]).full.float().mean().item()
    conditions = f"{N} held-out pictures, all attributes named, Gaussian blur of one pixel"
    return Outcome(share, 0.98, "demand", conditions, better="high", unit="captions confirmed")


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
    images, shown = _pictures(seed, N)
    draws = torch.rand(N, 3, generator=torch.Generator().manual_seed(seed))
    asked = [altered(spec, draw).caption for spec, draw in zip(shown, draws, strict=True)]
    noisy = images + 0.2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed + 1))
    share = check(noisy, asked).full.double().mean().item()
    conditions = f"{N} held-out pictures under noise of 0.2, one attribute of each caption changed"
    return Outcome(share, 0.001, "tolerance", conditions, unit="captions confirmed")


CLAIMS = (
    Claim("shapes-verifier", "confirms 99 % of captions under noise of 0.2", lambda seed: _noisy(seed, 400)),
    Claim("shapes-verifier", "reads clean pictures exactly", _clean, quick=False),
    Claim("shapes-verifier", "confirms 99 % of 2000 captions under noise", lambda seed: _noisy(seed, N), quick=False),
    Claim("shapes-verifier", "confirms 98 % of captions under a blur of one pixel", _blur, quick=False),
    Claim("shapes-verifier", "denies captions that are wrong in one attribute", _wrong, quick=False),
)
