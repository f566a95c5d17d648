"""Claims of fewstep/metrics/precision_recall.py."""

from __future__ import annotations

import torch

from claims.common import F64, Claim, Outcome, tolerance
from fewstep.metrics.precision_recall import precision_recall

MODES, ROWS = 8, 200


def _ring(modes: int, seed: int) -> torch.Tensor:
    """ROWS points round each of the first modes on a circle, well apart."""
    generator = torch.Generator().manual_seed(seed)
    angle = 2 * torch.pi * torch.arange(modes, dtype=F64).repeat_interleave(ROWS) / MODES
    centres = torch.stack((angle.cos(), angle.sin()), 1)
    return 3 * centres + 0.1 * torch.randn(len(angle), 2, generator=generator, dtype=F64)


def _lost_modes(seed: int) -> Outcome:
    full, lost = (precision_recall(_ring(modes, seed), _ring(MODES, seed + 1)) for modes in (MODES, 6))
    about = f"2 of 8 modes lost: recall {full.recall:.3f} to {lost.recall:.3f}, precision {full.precision:.3f} to"
    about += f" {lost.precision:.3f}, {ROWS} points a mode"
    return tolerance(abs(lost.recall / full.recall - 0.75), 0.05, about, "|share of recall kept - 3/4|")


def _strays(seed: int) -> Outcome:
    real, samples = _ring(MODES, seed + 1), _ring(MODES, seed)
    good = precision_recall(samples, real)
    samples[::4] *= 0.1  # a quarter moved to the empty middle
    bad = precision_recall(samples, real)
    about = f"a quarter of the samples moved between the modes: precision {good.precision:.3f} to {bad.precision:.3f},"
    about += f" recall {good.recall:.3f} to {bad.recall:.3f}"
    return tolerance(abs(bad.precision / good.precision - 0.75), 0.05, about, "|share of precision kept - 3/4|")


CLAIMS = (
    Claim("precision-recall", "losing a quarter of the modes costs a quarter of the recall", _lost_modes),
    Claim("precision-recall", "a quarter of stray samples costs a quarter of the precision", _strays),
)
