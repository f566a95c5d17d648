"""What is read off a plan: orders, warm-up, coefficients, stability."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fewstep.core.check import amplification, grid_states, levels, stability
from fewstep.core.plan import Plan
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan


@pytest.mark.parametrize("process", [VP(), Flow(), EDM()], ids=lambda p: p.name)
@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("heun", 2), ("dpmpp-2m", 2), ("dpmpp-3m", 3), ("ab-4", 4)])
def test_order_and_single_steps_are_measured(process, solver, order):
    found = plan(process, solver, 8).check()
    assert found.order == pytest.approx(order, abs=0.2)
    assert found.steady == pytest.approx(order, abs=0.25)
    assert found.warm_up_loss == pytest.approx(0, abs=0.21)
    assert found.stated == str(order)


def test_a_first_order_start_shows_as_warm_up_loss(monkeypatch):
    """Without the corrected start the third-order solver keeps its third-order steps and measures 2."""
    import fewstep.sampling.common as common
    import fewstep.sampling.dpmpp as dpmpp
    from fewstep.sampling.common import Frame, step

    def uncorrected(trace, process, times, frame, order):
        x, points = trace.start(), []
        for a, b in zip(times, times[1:], strict=False):
            points.append((a, trace.evaluate(x, a)))
            x = step(process, frame, x, a, b, points[-order:])
        return x

    monkeypatch.setattr(dpmpp, "adams_bashforth", uncorrected)
    found = plan(VP(), "dpmpp-3m", 8).check()
    assert common.adams_bashforth is not uncorrected and Frame("x0", "log_snr").kind == "x0"
    assert found.order == pytest.approx(2, abs=0.15) and found.steady == pytest.approx(3, abs=0.15)
    assert found.warm_up_loss == pytest.approx(1, abs=0.25)
    assert "warm-up loss         1.0" in str(found) or "warm-up loss         0.9" in str(found)


def test_levels_are_those_of_the_process():
    made = plan(VP(), "unipc-3", 7)
    states = grid_states(made)
    assert len(states) == len(made.times) == 8 and states[0][0] == 0 and states[-1][0] == made.result
    for (slot, (alpha, sigma)), t in zip(states, made.times, strict=True):
        assert alpha == pytest.approx(VP().alpha(t), abs=1e-12) and sigma == pytest.approx(VP().sigma(t), abs=1e-12)
        assert levels(made)[slot] == pytest.approx((alpha, sigma), abs=1e-12)
    assert made.check().off_level < 1e-12
    noisy = levels(plan(VP(), "dpmpp-2s-sde", 5))[plan(VP(), "dpmpp-2s-sde", 5).result]
    assert noisy == pytest.approx((1, 0), abs=1e-12)


def test_ddim_is_stable_as_its_amplification_factor_says():
    """On equal log-SNR steps h, DDIM multiplies x / alpha by 1 - k (1 - e^-h): stable up to k = 2 / (1 - e^-h)."""
    process, h = VP(), 0.4
    times = [process.time(-1.0 + h * i) for i in range(9)]
    made = plan(process, "ddim", timesteps=times)
    assert stability(made) == pytest.approx(2 / (1 - math.exp(-h)), rel=3e-3)
    k = np.array([1.0 + 2.0j, 3.0 - 1.0j])
    np.testing.assert_allclose(amplification(made, 4 * k), np.abs(1 - 4 * k * (1 - math.exp(-h))), rtol=1e-9)


def test_coefficients_of_an_extrapolation():
    """2M extrapolates: its guess at equal steps is 1.5 x0 - 0.5 x0_last."""
    process = VP()
    times = [process.time(-1.0 + 0.5 * i) for i in range(4)]
    found = plan(process, "dpmpp-2m", timesteps=times).check()
    first = plan(process, "ddim", timesteps=times).check()
    assert found.largest == pytest.approx(1.5 * first.largest, rel=1e-9)
    assert first.gain == pytest.approx(process.alpha(times[-1]) - process.sigma(times[-1]) / process.sigma(times[0])
                                       * process.alpha(times[0]), rel=1e-9)  # fmt: skip


def test_a_stochastic_or_unknown_plan_has_no_order():
    noisy = plan(VP(), "dpmpp-2m-sde", 6).check()
    assert noisy.order is None and noisy.warm_up_loss is None and noisy.stability > 1
    made = plan(VP(), "dpmpp-2m", 6)
    learned = Plan.from_json(made.to_json().replace('"solver": "dpmpp-2m"', '"solver": "learned"')).check()
    assert learned.order is None and learned.largest == made.check().largest
    assert "order                measured unknown" in str(learned)
