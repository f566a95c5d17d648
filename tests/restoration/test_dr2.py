"""DR2: one noising where it begins at its end, and low frequencies of the measurement there."""

from __future__ import annotations

import pytest
import torch
from restoration.problems import D, half, mixture, normal

import fewstep as fs
from fewstep.core.noise import Noise
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.restoration.dr2 import DR2, level_time

F64 = torch.float64
IDENTITY = fs.operators.Identity()


def restored(model, y, nfe, **options):
    seen = []
    from fewstep.restoration.restore import chain

    denoiser, sampler, _ = chain(model, fs.operators.Identity(), 0.0, "dr2", nfe, options=options)
    watch = lambda number, t, x, prediction: seen.append((t, x.clone(), prediction.x0))  # noqa: E731
    x = sampler(denoiser, normal(len(y), D, seed=6), y=y, dtype=F64, seed=4, callback=watch)
    return x, seen


@pytest.mark.parametrize("process", [VP(), Flow(), EDM()], ids=["vp", "flow", "edm"])
def test_where_it_begins_at_its_end_it_is_one_noising(process):
    model, y = mixture(process), normal(3, D, seed=5)
    x, seen = restored(model, y, 5, factor=2, begin=0.7, end=0.7)
    assert len(seen) == 1
    t = level_time(process, 0.7)
    z = Noise(4).normal(1, (3, D), dtype=F64)
    state = process.alpha(t) * y + process.sigma(t) * z
    assert float(process.sigma(t) / process.alpha(t)) == pytest.approx(0.7)
    assert torch.allclose(x, model(state, torch.tensor(t, dtype=F64)).x0)


def test_low_frequencies_are_the_noised_measurements():
    model, y = mixture(), normal(3, D, seed=5)
    _, seen = restored(model, y, 4, factor=3, begin=3.0, end=0.4)
    t, x, _ = seen[-1]
    z = Noise(4).normal(1 + 2 * 3, (3, D), dtype=F64)  # of the start, and of step and measurement three times
    noised = model.process.alpha(t) * y + model.process.sigma(t) * z
    blocks = fs.operators.Downsample(3).fit((D,))
    assert torch.allclose(blocks(x), blocks(noised), atol=1e-6)
    assert len(seen) == 4 and float((blocks.null(x) - blocks.null(noised)).abs().max()) > 0.1


def test_the_enhancer_is_last_and_what_does_not_fit_is_said():
    model, y = mixture(), normal(2, D, seed=5)
    plain = fs.restore(model, y, IDENTITY, method="dr2", options={"factor": 2}, nfe=3)
    twice = fs.restore(model, y, IDENTITY, method="dr2", options={"factor": 2, "enhance": lambda x: 2 * x}, nfe=3)
    assert torch.equal(twice, 2 * plain)
    with pytest.raises(ValueError, match="takes the sample itself"):
        fs.restore(model, y, half(), method="dr2")
    with pytest.raises(ValueError, match="4"):
        fs.restore(model, y, IDENTITY, method="dr2", options={"factor": 4})
    with pytest.raises(ValueError, match="begin must be at least end"):
        DR2(begin=0.1, end=0.5)
    with pytest.raises(ValueError, match="is none of this process"):
        level_time(EDM(), 1e9)
