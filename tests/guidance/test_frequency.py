"""Frequency-decoupled guidance, "fdg"."""

from __future__ import annotations

import pytest
import torch
from scaled import Scaled

import fewstep as fs
from fewstep.guidance.bands import bands
from fewstep.guidance.cfg import cfg
from fewstep.guidance.frequency import fdg
from fewstep.processes.vp import VP

X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
T, LABEL = torch.tensor(0.4, dtype=torch.float64), torch.zeros(2, dtype=torch.long)


def test_each_band_has_its_scale():
    model = Scaled(VP(), shape=(1, 8, 8))
    c, u = (model(X, T, label=LABEL + n).value for n in (0, 2))
    fine, middle, coarse = zip(bands(c, 3), bands(u, 3), strict=True)
    expected = sum(b + w * (a - b) for w, (a, b) in ((4.0, fine), (2.5, middle), (1.0, coarse)))
    torch.testing.assert_close(fdg(model, 4.0, (0.0, 0.5, 1.0))(X, T, label=LABEL).value, expected)


def test_equal_scales_are_cfg():
    model = Scaled(VP(), shape=(1, 8, 8))
    for shares in ((1.0,), (1.0, 1.0, 1.0)):
        made = fdg(model, 3.0, shares)(X, T, label=LABEL).value
        torch.testing.assert_close(made, cfg(model, 3.0)(X, T, label=LABEL).value, rtol=1e-6, atol=1e-6)


def test_faulty_shares():
    model = Scaled(VP(), shape=(1, 8, 8))
    for shares, message in (
        ((), "a share of the scale for each band"),
        ((1.0, -1.0), "each share of 'fdg' must be at"),
    ):
        with pytest.raises(ValueError, match=message):
            fs.guide(model, "fdg", scale=2.0, shares=shares)
