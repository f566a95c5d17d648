"""FlowDPS's step, written out, on a flow and in its units elsewhere."""

from __future__ import annotations

import pytest
import torch
from restoration.problems import D, half, latent

import fewstep as fs
from fewstep.core.noise import Noise
from fewstep.processes.flow import Flow
from fewstep.restoration.flowdps import FlowDPS

F64 = torch.float64


def test_it_is_algorithm_1():
    """On a flow, `alpha = 1 - t` and `sigma = t`; a mask in turned coordinates is fitted by one exact step."""
    model, a, times = latent(Flow()), half(), [0.7, 0.3, 0.0]
    y = a.measure(model.sample(2, seed=3))
    found = fs.restore(model, y, a, method="flowdps", timesteps=times, dtype=F64)
    basis, scale, source = model.autoencoder.basis, model.autoencoder.scale, Noise(0)
    x = source.normal(0, (2, D), "cpu", F64) * 0.7
    for number, (t, s) in enumerate([(0.7, 0.3), (0.3, 0.0)], 1):
        z0 = model(x, torch.tensor(t, dtype=F64)).x0
        z1 = (x - (1 - t) * z0) / t
        z0 = z0 + t * a(y - a(model.decode(z0))) @ basis.mT / scale
        x = (1 - s) * z0
        if s:
            x = x + s * (s**0.5 * z1 + (1 - s) ** 0.5 * source.normal(number, (2, D), "cpu", F64))
    assert torch.allclose(found, model.decode(x), atol=1e-8)


def test_other_operators_and_bad_options():
    model = latent()
    a = fs.operators.Magnitude(fs.operators.Identity()).fit((D,))
    y = a.measure(model.sample(3, seed=3), noise=0.1)
    told = fs.restore(model, y, a, 0.1, method="flowdps", nfe=20, n=4, dtype=F64, report=True)
    assert told.nfe == told.passes == 20 and float(told.residual.mean()) < 0.3
    with pytest.raises(ValueError, match="inner must be at least 1, got 0"):
        FlowDPS(inner=0)
