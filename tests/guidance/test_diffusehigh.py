"""DiffuseHigh: the low band of x0 is the picture's at the guided evaluations, and afterwards it is the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fewstep as fs
from fewstep.core.memory import Memory, ask
from fewstep.core.noise import Noise
from fewstep.core.prediction import Prediction
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.guidance.diffusehigh import DiffuseHigh
from fewstep.guidance.haar import haar, low_band
from fewstep.networks.convolution import Convolution
from fewstep.networks.dit import DiT
from fewstep.processes.flow import Flow
from fewstep.processes.vp import VP

F64 = torch.float64
PICTURES = Noise(7).normal(0, (2, 1, 11, 14), dtype=F64).clamp(-1, 1)


def smooth(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(0.3 * x + 0.1 * x.roll(1, -1)) - 0.2


def any_size(predicts: str, process: Any = None) -> fs.Denoiser:
    return fs.wrap(smooth, process or VP(), predicts, (1, 11, 14))


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("predicts", ["x0", "eps", "v"])
def test_the_bands_agree_after_each_guided_evaluation(predicts, levels):
    model = any_size(predicts)
    high = DiffuseHigh(model, PICTURES, guided=3, levels=levels)
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def watch(number: int, t: float, x: Tensor, answer: Prediction) -> None:
        plain = model(x, torch.tensor(t, dtype=F64))
        seen.append((answer.x0.clone(), plain.x0.clone(), torch.equal(answer.value, plain.value)))

    plan = fs.plan(model.process, "dpmpp-2m", 6)
    plan(high, Noise(1).normal(0, (2, 1, 11, 14), dtype=F64), dtype=F64, callback=watch)
    assert len(seen) == 6
    for number, (x0, plain, same) in enumerate(seen):
        gap = float((low_band(x0, levels) - low_band(PICTURES, levels)).abs().max())
        assert (gap < 1e-6) == (number < 3) and same == (number >= 3)
        if number < 3:  # the details are the model's own
            for ours, theirs in zip(haar(x0)[1], haar(plain)[1], strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("predicts", ["eps", "velocity"])
def test_at_pure_noise_it_is_finite(predicts):
    high = DiffuseHigh(any_size(predicts, Flow()), PICTURES, 1)
    x, t = Noise(1).normal(0, (2, 1, 11, 14), dtype=F64), torch.tensor(1.0, dtype=F64)
    memory = Memory(2, (1.0,), 0.0)
    memory.advance()
    with torch.no_grad():
        answer = ask(high, x, t, memory, {})
    assert bool(torch.isfinite(answer.value).all())
    # x0 says nothing at alpha = 0 where eps is predicted; the low band of eps is x's own there.
    expected = x if predicts == "eps" else x - PICTURES
    torch.testing.assert_close(low_band(answer.value), low_band(expected), rtol=0, atol=1e-12)


def test_without_a_memory_or_guided_evaluations_it_is_the_model():
    model, x, t = any_size("v"), Noise(1).normal(0, (2, 1, 11, 14), dtype=F64), torch.tensor(0.5, dtype=F64)
    assert torch.equal(DiffuseHigh(model, PICTURES, 3)(x, t).value, model(x, t).value)
    plan = fs.plan(model.process, "ddim", 3)
    assert torch.equal(plan(DiffuseHigh(model, PICTURES, 0), x, dtype=F64), plan(model, x, dtype=F64))


def test_rows_have_their_own_pictures_and_requests_share_a_call():
    model = any_size("x0")
    plans, noise = [fs.plan(model.process, "ddim", k) for k in (2, 5)], Noise(1).normal(0, (2, 1, 11, 14), dtype=F64)
    both = DiffuseHigh(model, PICTURES, 2)
    for row in (0, 1):
        alone = DiffuseHigh(model, PICTURES[row], 2)
        torch.testing.assert_close(
            plans[1](both, noise, dtype=F64)[row], plans[1](alone, noise[row : row + 1], dtype=F64)[0]
        )
    with pytest.raises(ValueError, match="there are 2 pictures for 1 samples: give one for all, or one each"):
        plans[0](both, noise[:1], dtype=F64)
    one = DiffuseHigh(model, PICTURES[0], 2)
    mixed = fs.run_mixed([(plan, noise[k : k + 1]) for k, plan in enumerate(plans)], one, dtype=F64)
    for k, plan in enumerate(plans):
        torch.testing.assert_close(mixed[k], plan(one, noise[k : k + 1], dtype=F64))


def network(make: type[nn.Module], **options: Any) -> NetworkDenoiser:
    torch.manual_seed(0)
    return NetworkDenoiser(make(channels=1, **options), VP(), "v", (1, 8, 8))


def test_a_larger_picture_makes_larger_samples_and_a_fixed_network_is_refused():
    free = network(Convolution, width=8, depth=1)
    high = fs.guide(free, "diffusehigh", picture=torch.zeros(1, 12, 16), guided=1)
    assert high.shape == (1, 12, 16) and free.shape == (1, 8, 8)
    assert fs.sample(high, 3, steps=2, solver="ddim").shape == (3, 1, 12, 16)
    fixed = network(DiT, width=16, depth=1, classes=None)
    with pytest.raises(ValueError, match="the network 'dit' makes pictures of 8x8 alone: a larger one needs"):
        fs.guide(fs.guide(fixed, "diffusehigh", picture=torch.zeros(1, 8, 8)), "diffusehigh",
                 picture=torch.zeros(1, 16, 16))  # fmt: skip


@pytest.mark.parametrize(
    "options, message",
    [
        ({"guided": -1}, "guided must be a whole number of at least 0, got -1"),
        ({"levels": 0}, "levels must be a whole number of at least 1, got 0"),
        ({"picture": torch.zeros(3, 16, 16)}, r"the picture is \(3, 16, 16\) in the model's coordinates, its samples"),
        ({"picture": torch.full((1, 8, 8), 200.0)}, "picture must lie within -1 to 1"),
        ({"guides": 3}, "unknown option of the method of guidance 'diffusehigh' 'guides': did you mean 'guided'"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fs.guide(network(Convolution, width=8, depth=1), "diffusehigh", **{"picture": torch.zeros(1, 8, 8), **options})
