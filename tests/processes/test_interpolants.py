"""Stochastic interpolants' curves and latent noise. Method: interpolant."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.core.process import process_from_config
from fewstep.processes.interpolants import GAMMAS, PATHS, Interpolant

F64 = torch.float64
PAIRS = [(p, g) for p in PATHS for g in GAMMAS if p != "encoding-decoding" or g == "sin2"]
each = pytest.mark.parametrize("process", [Interpolant(path=p, latent=g) for p, g in PAIRS], ids=str)
INNER = torch.linspace(0.013, 0.987, 40, dtype=F64)  # off 1/2, where encoding becomes decoding


@each
def test_the_ends_are_the_two_densities(process):
    a, b, _, _ = process.curve(torch.tensor([0.0, 1.0], dtype=F64))
    torch.testing.assert_close(a, torch.tensor([1.0, 0.0], dtype=F64), rtol=0, atol=1e-15)
    torch.testing.assert_close(b, torch.tensor([0.0, 1.0], dtype=F64), rtol=0, atol=1e-15)
    assert process.gamma(0.0) == 0 and process.gamma(1.0) == 0
    assert process.latent == "zero" or process.gamma(0.4) > 0


@each
def test_slopes_by_differences(process):
    h = 1e-6
    a, b, da, db = process.curve(INNER)
    above, below = process.curve(INNER + h), process.curve(INNER - h)
    torch.testing.assert_close(da, (above[0] - below[0]) / (2 * h), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(db, (above[1] - below[1]) / (2 * h), rtol=1e-6, atol=1e-8)
    square = (process.gamma(INNER + h) ** 2 - process.gamma(INNER - h) ** 2) / (4 * h)
    torch.testing.assert_close(process.gamma_dgamma(INNER), square, rtol=1e-6, atol=1e-8)


@each
def test_the_frame_holds_any_velocity(process):
    """alpha sigma' - sigma alpha' is never near 0, so every pair (x, v) has its (X0, X1)."""
    t = torch.linspace(0, 1, 101, dtype=F64)
    det = process.alpha(t) * process.dsigma(t) - process.sigma(t) * process.dalpha(t)
    assert float(det.min()) > 0.99


def test_the_latent_noises_are_the_papers():
    t = 0.3
    found = [Interpolant(latent=g).gamma(t) for g in ("brownian", "quadratic", "sin2")]
    assert found == pytest.approx([math.sqrt(0.42), 0.21, math.sin(0.3 * math.pi) ** 2], rel=1e-14)


@each
def test_config(process):
    assert process_from_config(process.config()) == process


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "linaer"}, "did you mean 'linear'"),
        ({"latent": "browning"}, "did you mean 'brownian'"),
        ({"path": "encoding-decoding"}, "needs 'sin2', not 'zero'"),
    ],
)
def test_wrong_names(options, message):
    with pytest.raises(ValueError, match=message):
        Interpolant(**options)
