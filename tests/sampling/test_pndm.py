"""pndm and plms: the paper's weights on equal steps, its starts, and the exactness they promise."""

from __future__ import annotations

import pytest
import torch

from fewstep.core.noise import Noise
from fewstep.processes.ve import EDM
from fewstep.sampling.build import plan

F64 = torch.float64


def coefficients(made, evaluation: int) -> list[float]:
    """What the combination after an evaluation gives to the four newest eps, newest first, over the step's length."""
    combine = [op for op in made.ops if hasattr(op, "terms")][evaluation]
    eps = [e.outputs[0][1] for e in made.evaluations]
    terms = dict(combine.terms)
    step = made.times[-1] - made.times[-2]  # EDM: sigma is the time, and all steps are equal here
    return [terms[slot] / step for slot in reversed(eps) if slot in terms]


def test_plms_has_the_papers_weights_on_equal_steps():
    times = [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    made = plan(EDM(), "plms", timesteps=times)
    assert made.nfe == 6  # one more than steps: the first step is made twice
    last = len([op for op in made.ops if hasattr(op, "terms")]) - 1
    assert coefficients(made, last) == pytest.approx([55 / 24, -59 / 24, 37 / 24, -9 / 24], abs=1e-12)
    assert coefficients(made, last - 1) == pytest.approx([55 / 24, -59 / 24, 37 / 24, -9 / 24], abs=1e-12)
    assert coefficients(made, last - 2) == pytest.approx([23 / 12, -16 / 12, 5 / 12], abs=1e-12)


def test_pndm_starts_with_three_runge_kutta_steps():
    times = [8.0, 7.0, 6.0, 5.0, 4.0, 3.0]
    made = plan(EDM(), "pndm", timesteps=times)
    assert made.nfe == 3 * 4 + 2
    assert [e.t for e in made.evaluations[:4]] == [8.0, 7.5, 7.5, 7.0]
    last = len([op for op in made.ops if hasattr(op, "terms")]) - 1
    assert coefficients(made, last) == pytest.approx([55 / 24, -59 / 24, 37 / 24, -9 / 24], abs=1e-12)


@pytest.mark.parametrize("name", ["pndm", "plms"])
def test_a_constant_eps_is_followed_exactly(name):
    """Then the transfer is exact whatever the grid: x / alpha moves by eps times the change of sigma / alpha."""
    from fewstep.core.denoiser import Denoiser
    from fewstep.core.prediction import Prediction
    from fewstep.processes.vp import VP

    class Constant(Denoiser):
        def __init__(self):
            super().__init__()
            self.process = VP()

        def forward(self, x, t, **condition):
            return Prediction(torch.full_like(x, 0.7), "eps", x, t, self.process)

    process = VP()
    made = plan(process, name, 7, "karras", end="min")
    noise = Noise(1).normal(0, (3, 5), "cpu", F64)
    x = made(Constant(), noise, dtype=F64)
    ratio = [process.sigma(t) / process.alpha(t) for t in (made.times[0], made.times[-1])]
    start = noise * process.sigma(made.times[0]) / process.alpha(made.times[0])
    exact = process.alpha(made.times[-1]) * (start + 0.7 * (ratio[1] - ratio[0]))
    torch.testing.assert_close(x, exact, rtol=1e-10, atol=1e-10)


def last_weights(name: str, times: list[float], **options) -> list[float]:
    made = plan(EDM(), name, timesteps=times, **options)
    return coefficients(made, len([op for op in made.ops if hasattr(op, "terms")]) - 1)


def test_ipndm_and_s_pndm_have_the_weights_of_their_order():
    times = [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    wanted = {
        1: [1.0],
        2: [3 / 2, -1 / 2],
        3: [23 / 12, -16 / 12, 5 / 12],
        4: [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    }
    for order, weights in wanted.items():
        assert last_weights("ipndm", times, order=order) == pytest.approx(weights, abs=1e-12)
        assert last_weights("plms", times, order=order) == pytest.approx(weights, abs=1e-12)
    assert plan(EDM(), "ipndm", timesteps=times).nfe == 6
    with pytest.raises(ValueError, match="those of 1 to 4 steps, got order 5"):
        plan(EDM(), "ipndm", 8, order=5)


def test_ipndm_starts_as_the_trapezoidal_rule():
    """With two predictions the first step takes their mean: x_1 = x_0 + h (e_0 + e_1) / 2 where sigma is the time."""
    made = plan(EDM(), "ipndm", timesteps=[4.0, 3.0, 2.0])
    last = [op for op in made.ops if hasattr(op, "terms")][-1]
    e0, e1 = (e.outputs[0][1] for e in made.evaluations)
    terms = dict(last.terms)
    assert terms[0] == pytest.approx(1.0)
    assert (terms[e0], terms[e1]) == pytest.approx((-0.5 + 0.5, -0.5 - 1.5))
