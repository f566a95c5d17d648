"""Claims of fewstep/metrics/sliced_wasserstein.py."""

from __future__ import annotations

import torch

from claims.common import F64, Claim, Outcome, compared, sliced_wasserstein, tolerance

DIM, DIRECTIONS = 16, 64


def _shift(seed: int) -> Outcome:
    generator = torch.Generator().manual_seed(seed)
    rows, move = torch.randn(500, DIM, generator=generator, dtype=F64), torch.randn(DIM, generator=generator, dtype=F64)
    wanted = float(move.norm()) / DIM**0.5
    found = sliced_wasserstein(rows + move, rows, projections=DIRECTIONS).value
    free = torch.nn.functional.normalize(torch.randn(DIM, DIRECTIONS, generator=generator, dtype=F64), dim=0)
    usual = float((move @ free).square().mean().sqrt())  # a shift moves every projection by itself alone
    errors = abs(found / wanted - 1), abs(usual / wanted - 1)
    about = f"a shift d in {DIM} dimensions gives |d| / {DIM**0.5:g}; 500 rows, {DIRECTIONS} directions"
    return compared(errors, "independent directions", about, unit="relative error")


def _unequal_sizes(seed: int) -> Outcome:
    """Repeating rows changes no distribution, so 300 against 200 rows is 600 against 600."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(n, 1, generator=generator, dtype=F64) for n in (300, 200))
    wanted = float((a.repeat(2, 1).sort(0).values - b.repeat(3, 1).sort(0).values).square().mean().sqrt())
    found = sliced_wasserstein(a, b, projections=1).value
    return tolerance(abs(found / wanted - 1), 1e-12, "300 and 200 rows in one dimension", "relative error")


CLAIMS = (
    Claim("sliced-wasserstein", "frames of directions measure a shift without error", _shift),
    Claim("sliced-wasserstein", "is exact for sets of two sizes", _unequal_sizes),
)
