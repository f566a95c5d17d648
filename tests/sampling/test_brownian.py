"""brownian: one path a sample, seen at other points by other step counts."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.core.noise import Noise
from fewstep.processes.flow import Flow
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.sample import sample

pytest.importorskip("torchsde")
from fewstep.sampling.brownian import BrownianNoise  # noqa: E402

F64 = torch.float64


def increments(made, seed, first, shape):
    """The increments of the path in c = (alpha / sigma)^2, with their spans."""
    source = BrownianNoise(made, seed, first)
    found = {}
    for op in made.ops:
        if getattr(op, "span", None) is not None:
            a, b = (math.exp(2 * VP().log_snr(t)) for t in op.span)
            found[op.span] = source.normal(op.draw, shape, "cpu", F64) * math.sqrt(b - a)
    return found


def test_half_steps_add_up_to_the_whole_step():
    process = VP()
    coarse_times = [process.time(-2.3 + 0.9 * i) for i in range(5)]
    fine_times = [process.time(-2.3 + 0.45 * i) for i in range(9)]
    coarse = increments(plan(process, "ddpm", timesteps=coarse_times), 3, 2, (2, 4))
    fine = increments(plan(process, "dpmpp-2m-sde", timesteps=fine_times), 3, 2, (2, 4))
    assert len(coarse) == 4 and len(fine) == 8
    parts = list(fine.values())
    for k, whole in enumerate(coarse.values()):
        torch.testing.assert_close(parts[2 * k] + parts[2 * k + 1], whole, rtol=2e-3, atol=2e-3)


def test_noise_is_standard_normal_independent_and_the_samples_own():
    made = plan(Flow(), "ddpm", 7)  # from alpha = 0: the first step's noise comes from the whole path before it
    source = BrownianNoise(made, 1, 0)
    draws = [op.draw for op in made.ops if getattr(op, "draw", None)]
    z = torch.stack([source.normal(k, (40, 30), "cpu", F64) for k in draws])
    assert z.shape == (6, 40, 30) and float(z.mean().abs()) < 0.05
    assert z.var(dim=(1, 2)).sub(1).abs().max() < 0.2
    assert (z[1:] * z[:-1]).mean(dim=(1, 2)).abs().max() < 0.12
    other = BrownianNoise(made, 1, 25)
    torch.testing.assert_close(other.normal(draws[2], (3, 30), "cpu", F64), z[2, 25:28], rtol=1e-9, atol=1e-9)


def test_the_picture_stays_when_the_step_count_changes(make_mixture):
    model = make_mixture(VP(), (3,))

    def change(brownian):
        x, y = (sample(model, 6, steps=n, solver="dpmpp-2m-sde", brownian=brownian, dtype=F64) for n in (40, 80))
        return float((x - y).norm() / y.norm())

    assert change(True) < 0.4 * change(False)


def test_churn_is_no_stretch_of_the_path(make_mixture):
    from fewstep.processes.ve import EDM

    made = plan(EDM(), "heun", 4, churn=2.0)
    source = BrownianNoise(made, 5, 1)
    assert torch.equal(source.normal(1, (2, 3)), Noise(5, 1).normal(1, (2, 3)))


def test_a_plan_without_noise_is_refused():
    with pytest.raises(ValueError, match="'ddim' adds no noise"):
        BrownianNoise(plan(VP(), "ddim", 3))
