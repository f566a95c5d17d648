"""PSLD's step, written out; without gluing it is DPS through the decoder."""

from __future__ import annotations

import pytest
import torch
from restoration.problems import D, half, latent, normal

import fewstep as fs
from fewstep.core.noise import Noise
from fewstep.processes.flow import Flow
from fewstep.processes.vp import VP
from fewstep.restoration.psld import PSLD
from fewstep.sampling.ddim import posterior

F64 = torch.float64


def step(model, a, y, x, start, end, zeta, gamma, s):
    """One step on a linear autoencoder `x = scale z B + mean`, with the adjoints by hand."""
    basis, scale = model.autoencoder.basis, model.autoencoder.scale
    t = torch.tensor(start, dtype=F64)
    z0 = model(x, t).x0
    r = y - a(model.decode(z0))
    # E(D(z0) + A^+ r) - z0 is what encodes A^+ r; A is a mask here, its own pseudo-inverse.
    off = (a(r) @ basis.mT) / scale
    down = -zeta * (a(r) @ basis.mT) * scale / r.norm() - gamma * (a(off @ basis) @ basis.mT) / off.norm()
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x, t).x0[0], x)[:, 0]
    _, of_x, of_x0 = posterior(model.process, start, end)
    alpha, sigma = model.process.alpha, model.process.sigma
    c = [(alpha(t) ** 2 + sigma(t) ** 2) ** 0.5 for t in (start, end)]
    return of_x * x + of_x0 * z0 + s - c[0] * c[1] * (down @ jacobian)


@pytest.mark.parametrize("process", [VP(), Flow()], ids=["vp", "flow"])
def test_it_is_algorithm_2(process):
    model, a, times = latent(process), half(), [0.6, 0.4, process.t_zero]
    y = a.measure(model.sample(1, seed=3))
    x = fs.restore(model, y, a, method="psld", options={"zeta": 0.7, "gamma": 0.3}, timesteps=times, dtype=F64)
    source = Noise(0)
    state = source.normal(0, (1, D), "cpu", F64) * process.sigma(0.6)
    for number, (start, end) in enumerate(zip(times[:-1], times[1:], strict=True), 1):
        s = posterior(process, start, end)[0]
        noise = s * source.normal(number, (1, D), "cpu", F64) if s else 0.0
        state = step(model, a, y, state, start, end, 0.7, 0.3, noise)
    assert torch.allclose(x, model.decode(state), atol=1e-9)


def test_without_gluing_it_is_dps():
    model, a = latent(), half()
    y = a.measure(model.sample(3, seed=3), noise=0.1)
    how = {"nfe": 5, "dtype": F64}
    mine = fs.restore(model, y, a, 0.1, method="psld", options={"gamma": 0.0, "zeta": 0.4}, **how)
    assert torch.equal(mine, fs.restore(model, y, a, 0.1, method="dps", options={"zeta": 0.4}, **how))
    assert not torch.allclose(mine, fs.restore(model, y, a, 0.1, method="psld", options={"zeta": 0.4}, **how))
    neither = fs.restore(model, y, a, 0.1, method="psld", options={"gamma": 0.0, "zeta": 0.0}, **how)
    assert torch.equal(neither, fs.sample(model, 3, solver="ddpm", timesteps="karras", **how))


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="zeta and gamma must be at least 0, got 1.0 and -1"):
        PSLD(gamma=-1)
    model, a = latent(), fs.operators.Clip()
    with pytest.raises(
        ValueError, match="'psld' takes a linear operator, and clip.* is none: dps, flowdps, resample and stsl"
    ):
        fs.restore(model, normal(1, D), a, 0.1, method="psld")
