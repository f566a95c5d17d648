"""Relic: what is rounded comes back, and the level it is denoised from is the one that its rounding error has."""

from __future__ import annotations

import pytest
import torch
from restoration.problems import PROCESSES, D, mixture, normal

import fewstep as fs
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.processes.vp import VP
from fewstep.restoration.codec import batches
from fewstep.restoration.relic import Relic


def coded(model, x, **options):
    codec = Relic(**options)
    return codec, codec.encode(model, x, None, {}, 256)


@pytest.mark.parametrize("shape", [(D,), (3, 2, 4)])
@pytest.mark.parametrize("step", [0.05, 1.0, 8.0])
def test_what_was_rounded_comes_back(shape, step):
    x = normal(20, *shape, seed=1).cumsum(1).float()
    model = GaussianMixture(torch.ones(1), torch.zeros(1, *shape), 1.0, VP())
    codec, payload = coded(model, x, step=step, nfe=0)
    level, rounded = codec.rounded(model, payload, 20)
    deviation = x.transpose(0, 1).flatten(1).double().std(1, correction=0).view(1, -1, *[1] * (x.ndim - 2))
    error = (rounded - x).abs() / (step * deviation)
    assert float(error.max()) <= 0.5 + 1e-3
    assert level == pytest.approx(float((rounded - x).double().square().mean().sqrt()), rel=1e-4)
    assert torch.equal(codec.decode(model, payload, 20, {}, 256), rounded)


def test_finer_steps_cost_as_many_bits_as_they_should():
    """Halving the step of a Gaussian costs one bit a number, and 1 deviation costs its entropy of 2.1."""
    model, x = GaussianMixture(torch.ones(1), torch.zeros(1, 2), 1.0, VP()), normal(4000, 2, seed=2)
    each = [8 * len(coded(model, x, step=step)[1]) / x.numel() for step in (1.0, 0.5, 0.25)]
    assert each == pytest.approx([2.1, 3.05, 4.05], abs=0.08)


@pytest.mark.parametrize("process", PROCESSES, ids=["vp", "flow"])
def test_the_matched_level_is_the_one_of_the_least_error(process):
    """With one evaluation, a posterior mean: of 7 levels around the matched one no other has the smaller error."""
    model = mixture(process)
    x = model.sample(3000, seed=3).float()
    codec, payload = coded(model, x, step=1.0, nfe=1)
    level, rounded = codec.rounded(model, payload, len(x))
    levels = [level * 2 ** (k / 2) for k in range(-3, 4)]
    errors = [float((codec.denoised(model, rounded, one, {}, 3000) - x).square().mean()) for one in levels]
    assert errors.index(min(errors)) == 3
    assert errors[3] < float((rounded - x).square().mean())


def test_it_is_the_tail_of_a_plan():
    model, x = mixture(), normal(5, D, seed=4).float()
    codec, payload = coded(model, x, step=0.7, nfe=3, solver="dpmpp-2m")
    level, rounded = codec.rounded(model, payload, 5)
    found = codec.decode(model, payload, 5, {}, 2)
    t = [float(model.process.time(-torch.tensor(level).double().log()))]
    t = [t[0] + (model.process.t_zero - t[0]) * k / 3 for k in range(4)]
    plan = fs.plan(model.process, "dpmpp-2m", timesteps=t)
    start = rounded * float(model.process.alpha(t[0]) / model.process.sigma(t[0]))
    assert torch.allclose(found, plan(model, start), atol=1e-5)
    assert [part for part, _ in batches(model, 5, {}, 2)] == [slice(0, 2), slice(2, 4), slice(4, 5)]


def test_what_rounding_did_not_change_stays():
    model, x = mixture(), torch.zeros(3, D)
    codec, payload = coded(model, x)
    assert torch.equal(codec.decode(model, payload, 3, {}, 256), x)


def test_bad_input_is_said():
    for options in ({"step": 0.0}, {"step": float("nan")}):
        with pytest.raises(ValueError, match="step must be above 0"):
            Relic(**options)
    with pytest.raises(ValueError, match="nfe must be a whole number of at least 0, got -1"):
        Relic(nfe=-1)
    with pytest.raises(ValueError, match="step=1e-06 is too small"):
        coded(mixture(), normal(20, D), step=1e-6)
    with pytest.raises(ValueError, match="'relic' runs the tail of a plan, and 'pc' is none"):
        coded(mixture(), normal(2, D), solver="pc")
    with pytest.raises(ValueError, match="a level of .* is none of this process"):
        coded(mixture(), 1e6 * normal(20, D), step=1.0)
    with pytest.raises(ValueError, match="unknown solver 'dimm': did you mean 'ddim'"):
        coded(mixture(), normal(2, D), solver="dimm")
