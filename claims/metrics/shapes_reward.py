"""Claims of fewstep/metrics/shapes_reward.py."""

from __future__ import annotations

import torch

from claims.common import Claim, Outcome
from claims.metrics.shapes_verifier import altered
from fewstep.data.shapes import draw, render_specs, scenes
from fewstep.metrics.shapes_reward import soft_scores
from fewstep.metrics.shapes_verifier import check

N = 300


def _ranks(seed: int) -> Outcome:
    """Right pictures against others that differ in one attribute, each where it likes."""
    rows = torch.arange(seed * N, (seed + 1) * N)
    shown = scenes(rows, "validation")
    asked = [spec.caption for spec in shown]
    draws = torch.rand(N, 3, generator=torch.Generator().manual_seed(seed))
    wrong = render_specs([altered(spec, u) for spec, u in zip(shown, draws, strict=True)], seed)
    right = draw(rows, "validation")[0]
    lost = (soft_scores(right, asked) <= soft_scores(wrong, asked)).double().mean().item()
    return Outcome(lost, 1 / N, f"one in {N}", f"{N} pairs of pictures, one attribute apart", unit="pairs misjudged")


def _ascent(seed: int) -> Outcome:
    """Pictures of other captions, before and after the ascent."""
    n = 48
    rows = torch.arange(seed * n, (seed + 1) * n)
    asked, x = [spec.caption for spec in scenes(rows, "validation")], draw(rows, "train")[0]
    before = check(x, asked).full.double().mean().item()
    for _ in range(40):
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(soft_scores(x, asked).sum(), x)
        x = (x + 40 * gradient).detach()
    after = check(x, asked).full.double().mean().item()
    about = f"{n} pictures of other captions, 40 steps of 40 times the gradient"
    return Outcome(after, before, "the pictures before", about, better="high", unit="captions confirmed")


CLAIMS = (
    Claim("shapes-reward", "is higher on right pictures than on those wrong in one attribute", _ranks),
    Claim("shapes-reward", "leads pictures to what their captions ask", _ascent, quick=False),
)
