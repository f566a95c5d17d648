"""evodiff: its neutral weights, its projections, and the correction of least norm."""

from __future__ import annotations

import pytest
import torch

from fewstep.core.noise import Noise
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.evodiff import _projection

F64 = torch.float64


@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=lambda p: p.name)
@pytest.mark.parametrize("rule", ["log-snr", "karras"])
def test_neutral_weights_are_dpmpp_2m(process, rule, make_mixture):
    model = make_mixture(process, (2, 3))
    noise = Noise(1).normal(0, (5, 2, 3), "cpu", F64)
    neutral = plan(process, "evodiff", 8, rule, blend=0.0)(model, noise, dtype=F64)
    torch.testing.assert_close(neutral, plan(process, "dpmpp-2m", 8, rule)(model, noise, dtype=F64), rtol=0, atol=1e-6)
    assert float((plan(process, "evodiff", 8, rule)(model, noise, dtype=F64) - neutral).abs().max()) > 1e-3


def test_a_projection_is_each_samples_own():
    b = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(1))
    factors = torch.tensor([0.5, -1.5, 3.0])
    torch.testing.assert_close(_projection(factors[:, None, None] * b, b), factors.double())
    assert _projection(b, torch.zeros_like(b)).tolist() == [1, 1, 1]


def test_the_first_two_steps_by_hand(smooth):
    """Two steps: the first is DDIM, the second is checked against the formulas, correction included."""
    process = smooth.process
    times = [process.time(v) for v in (-1.0, -0.2, 0.5, 1.5)]
    seen = []
    noise = Noise(1).normal(0, (1, 2), "cpu", F64)

    def keep(count, t, x, prediction):
        seen.append((x.clone(), prediction.x0.clone()))

    result = plan(process, "evodiff", timesteps=times)(smooth, noise, dtype=F64, callback=keep)
    (x, d1), (_, d0), (probe, d2) = seen
    a, s = [process.alpha(t) for t in times], [process.sigma(t) for t in times]
    first = s[1] / s[0] * x + (a[1] - a[0] * s[1] / s[0]) * d1
    torch.testing.assert_close(seen[1][0], first)

    def weight(new, old, i):
        w = 0.5 * (1 - ((times[i] - process.t_min) / (process.t_max - process.t_min)) ** 2)
        rho = ((s[i + 1] / s[i]) / (s[i] / s[i - 1])) ** 0.5
        return (1 - w) * rho + w * float((new * old).sum() / (old * old).sum())

    zeta = weight(d0, d1, 1)
    k = (1 / (1 + torch.tensor(-abs(zeta) / 4).exp())) / (1 / (1 + torch.tensor(-0.25).exp()))
    backward = (d0 - zeta * d1) / (k * 0.8 / 0.7)
    push = a[2] - a[1] * s[2] / s[1]
    torch.testing.assert_close(probe, s[2] / s[1] * first + push * (d0 + 0.5 * backward))
    w_later = 0.5 * (1 - ((times[1] - process.t_min) / (process.t_max - process.t_min)) ** 2)
    rho = ((s[2] / s[1]) / (s[1] / s[0])) ** 0.5
    forward = d2 - ((1 - w_later) * rho + w_later * float((d2 * d0).sum() / (d0 * d0).sum())) * d0
    best = min(
        (float(((1 - eta) * forward + eta * backward).norm()), eta) for eta in torch.linspace(0, 1, 2001).tolist()
    )[1]
    corrected = s[2] / s[1] * first + push * (d0 + 0.5 * ((1 - best) * forward + best * backward))
    zeta = weight(d2, d0, 2)
    k = (1 / (1 + torch.tensor(-abs(zeta) / 4).exp())) / (1 / (1 + torch.tensor(-0.25).exp()))
    last = s[3] / s[2] * corrected + (a[3] - a[2] * s[3] / s[2]) * (d2 + 0.5 * (d2 - zeta * d0) / (k * 0.7 / 1.0))
    torch.testing.assert_close(result, last, rtol=1e-3, atol=1e-3)


def test_bad_options(smooth):
    with pytest.raises(ValueError, match="blend must be between 0 and 1, got 2"):
        plan(smooth.process, "evodiff", 4, blend=2.0)(smooth, Noise(1).normal(0, (2, 2)))
