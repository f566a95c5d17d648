"""pc: the Langevin corrector's law, and the predictor it falls back to."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.core.live import Live
from fewstep.core.noise import Noise
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.processes.flow import Flow
from fewstep.processes.ve import VE
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.ddim import ddim
from fewstep.sampling.pc import langevin

F64 = torch.float64


@pytest.mark.parametrize("process", [VP(), VE()], ids=lambda p: p.name)
def test_langevin_leaves_the_exact_law(process):
    """The marginal N(alpha m, v) with v = alpha^2 c + sigma^2 stays, up to the step's own v / (1 - tau / (2 v))."""
    d, n, snr, t = 12, 6000, 0.16, 0.4
    model = GaussianMixture(torch.ones(1), torch.full((1, d), 0.3), 0.5, process)
    alpha, sigma = process.alpha(t), process.sigma(t)
    v = alpha**2 * 0.5 + sigma**2
    x = alpha * 0.3 + math.sqrt(v) * Noise(1).normal(0, (n, d), "cpu", F64)
    live = Live(model, process, x, Noise(2), {})
    for _ in range(60):  # memory fades as (1 - tau / v)^k
        x = langevin(live, x, t, snr)
    spread = v / (1 - (snr * sigma) ** 2 / v)
    assert float(x.mean()) == pytest.approx(alpha * 0.3, abs=4 * math.sqrt(spread / (n * d)))
    assert float(x.var()) == pytest.approx(spread, rel=4 * math.sqrt(2 / (n * d)))
    assert live.nfe == 60


def test_langevin_finds_the_law_from_elsewhere():
    process = VP()
    model = GaussianMixture(torch.ones(1), torch.full((1, 32), 0.3), 0.5, process)
    t = 0.4
    x = torch.full((200, 32), 2.0, dtype=F64)
    live = Live(model, process, x, Noise(2), {})
    for _ in range(300):
        x = langevin(live, x, t, 0.2)
    v = process.alpha(t) ** 2 * 0.5 + process.sigma(t) ** 2
    spread = v / (1 - (0.2 * process.sigma(t)) ** 2 / v)
    assert float(x.mean()) == pytest.approx(process.alpha(t) * 0.3, abs=0.05)
    assert float(x.var()) == pytest.approx(spread, rel=0.06)


@pytest.mark.parametrize("process", [VP(), Flow()], ids=lambda p: p.name)
@pytest.mark.parametrize("predictor,eta", [("ddpm", 1.0), ("ddim", 0.0)])
def test_without_corrections_it_is_the_predictor_bit_for_bit(predictor, eta, process, make_mixture):
    model = make_mixture(process, (2, 3))
    noise = Noise(3).normal(0, (5, 2, 3))
    made = plan(process, "pc", 7, predictor=predictor, corrections=0)
    alone = ddim(Live(model, process, noise * made.start[1], Noise(4), {}), process, made.times, eta=eta)
    assert torch.equal(made(model, noise, seed=4), alone)


def test_evaluations():
    """One for each predictor step and each correction; the clean end is not corrected."""
    assert plan(VP(), "pc", 6).nfe == 6 + 5
    assert plan(VP(), "pc", 6, corrections=3).nfe == 6 + 15
    assert plan(VP(), "pc", 6, end="min").nfe == 12
    assert plan(VP(), "pc", nfe=21).nfe == 21


def test_bad_options(smooth):
    noise = Noise(2).normal(0, (4, 2))
    with pytest.raises(ValueError, match="unknown predictor 'ddmp': did you mean 'ddpm'"):
        plan(smooth.process, "pc", 4, predictor="ddmp")(smooth, noise)
    with pytest.raises(ValueError, match="corrections"):
        plan(smooth.process, "pc", 4, corrections=-1)(smooth, noise)
    with pytest.raises(ValueError, match="snr must be positive"):
        plan(smooth.process, "pc", 4, snr=0.0)(smooth, noise)
