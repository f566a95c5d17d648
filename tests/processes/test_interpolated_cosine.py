"""Simple diffusion's schedules, and what a shift by resolution keeps. Method: interpolated-cosine."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.core.noise import Noise
from fewstep.processes.cosine import Cosine
from fewstep.processes.interpolated_cosine import InterpolatedCosine
from fewstep.processes.shifted import Shifted

F64 = torch.float64
T = torch.linspace(0.02, 0.98, 25, dtype=F64)


@pytest.mark.parametrize("d", [64, 128, 256])
def test_the_papers_shift_is_shifted(d):
    """2 log(64 / d) of the log-SNR of powers, on the cosine `-2 log tan(pi t / 2)`."""
    wanted = -2 * torch.log(torch.tan(math.pi * T / 2)) + 2 * math.log(64 / d)
    torch.testing.assert_close(2 * Shifted(Cosine(s=0.0), d / 64).log_snr(T), wanted, rtol=1e-9, atol=1e-9)
    plain = InterpolatedCosine(resolution=d, low=64, high=64)
    torch.testing.assert_close(2 * plain.log_snr(T), wanted, rtol=1e-9, atol=1e-9)


def test_the_shift_keeps_the_snr_of_the_averaged_picture():
    """d x d pixels averaged to 8 x 8 have the SNR of the 8 x 8 schedule; unshifted, d/8 times it."""
    base, n = Shifted(Cosine(s=0.0), 8 / 64), 400
    small = Noise(1).normal(0, (1, 1, 8, 8), "cpu", F64)
    for d in (16, 32):
        large = small.repeat_interleave(d // 8, 2).repeat_interleave(d // 8, 3)
        noise = Noise(2).normal(0, (n, 1, d, d), "cpu", F64)
        process = Shifted(Cosine(s=0.0), d / 64)
        for t in (0.3, 0.7):
            averaged = torch.nn.functional.avg_pool2d(process.alpha(t) * large + process.sigma(t) * noise, d // 8)
            signal = averaged.mean(0)
            left = float((averaged - signal).square().mean() * n / (n - 1))
            scale = float((signal * small).mean() / small.square().mean())
            ratio = scale**2 / left
            assert ratio == pytest.approx(math.exp(2 * base.log_snr(t)), rel=0.05)
            exact = (process.alpha(t) / process.sigma(t)) ** 2 * (d // 8) ** 2
            assert exact == pytest.approx(math.exp(2 * base.log_snr(t)), rel=1e-12)


def test_the_interpolated_schedule_is_a_mean_of_two():
    process = InterpolatedCosine(resolution=512, low=32, high=256)
    low, high = (InterpolatedCosine(512, n, n).log_snr(T) for n in (32, 256))
    torch.testing.assert_close(process.log_snr(T), T * low + (1 - T) * high, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(process.alpha(T) ** 2 + process.sigma(T) ** 2, torch.ones_like(T), rtol=1e-13, atol=0)


@pytest.mark.parametrize("ends", [(32, 256), (64, 64), (1, 1e6)])
def test_the_inverse_is_exact_far_out(ends):
    process = InterpolatedCosine(64.0, *ends)
    t = torch.tensor([1e-9, 1e-4, 0.1, 0.5, 0.9, 1 - 1e-6], dtype=F64)
    torch.testing.assert_close(process.time(process.log_snr(t)), t, rtol=1e-9, atol=0)
    assert process.time(math.inf) == 0 and process.time(-math.inf) == 1
    assert process.alpha(1.0) == 0 and process.log_snr(0.0) == math.inf


def test_wrong_sizes():
    with pytest.raises(ValueError, match="0 < low <= high"):
        InterpolatedCosine(low=256, high=32)
    with pytest.raises(ValueError, match="t_max <= 1"):
        InterpolatedCosine(t_max=1.5)
