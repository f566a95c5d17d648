"""Pairwise sample optimisation: the log-ratio of students in closed form, and what pairs do to a Gaussian one."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import find
from fewstep.core.noise import Noise
from fewstep.core.prediction import Prediction
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.training.pairwise import log_ratio, pairwise, rollout, transitions


class Linear(Denoiser):
    """x0 = w x + b, elementwise."""

    shape = (3,)

    def __init__(self, process, w=0.3, b=0.2):
        super().__init__()
        self.process = process
        self.w, self.b = nn.Parameter(torch.tensor(w)), nn.Parameter(torch.full((3,), b))

    def forward(self, x, t, **condition) -> Prediction:
        return Prediction(self.w * x + self.b, "x0", x, t, self.process)


def student(process, last: bool = True) -> list[float]:
    times = [process.t_max, process.time(0.0), process.time(1.5)]
    return [*times, process.t_zero] if last else times


@pytest.mark.parametrize("process", [VP(), EDM(), Flow()])
def test_posterior_steps_are_ddims_with_eta_one(process):
    made = plan(process, "ddim", timesteps=student(process), eta=1.0)
    model, noise = Linear(process), Noise(3).normal(0, (4, 3))
    states = rollout(model, transitions(process, student(process), "posterior"), 4, seed=3)
    torch.testing.assert_close(states[-1], made(model, noise, seed=3), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("noise", ["fresh", "posterior"])
@pytest.mark.parametrize("process", [VP(), EDM(), Flow()])
def test_the_chain_around_data_has_the_forward_marginals(process, noise):
    chain = transitions(process, student(process), noise)
    count = 20_000
    data = torch.tensor([0.7, -0.2, 0.1]).expand(count, 3)
    states = rollout(Linear(process), chain, count, data=data)
    for t, x in zip(student(process), states, strict=True):
        error = process.sigma(t) / math.sqrt(count) + 1e-6
        assert (x.mean(0) - process.alpha(t) * data[0]).abs().max() < 5 * error
        assert (x.std(0) - process.sigma(t)).abs().max() < 5 * error
    assert torch.equal(states[-1], data)
    correlation = torch.corrcoef(torch.stack([states[1][:, 0], states[2][:, 0]]))[0, 1]
    assert abs(correlation) < 0.03 if noise == "fresh" else correlation > 0.1


@pytest.mark.parametrize("noise", ["fresh", "posterior"])
@pytest.mark.parametrize("process", [VP(), EDM(), Flow()])
def test_the_log_ratio_is_that_of_the_densities(process, noise):
    chain = transitions(process, student(process), noise)
    model, base = Linear(process), Linear(process, 0.28, 0.1)
    states = rollout(model, chain, 5, seed=1)
    found = log_ratio(model, base, chain, states, last_std=0.4)
    wanted = torch.zeros(5, dtype=torch.float64)
    for step, x, y in zip(chain, states[:-1], states[1:], strict=True):
        for which, sign in ((model, 1), (base, -1)):
            mean = step.mean(x, which(x, torch.tensor(step.a)).x0).double()
            std = torch.tensor(step.std if step.std > 0 else 0.4, dtype=torch.float64)
            wanted += sign * Normal(mean, std).log_prob(y.double()).sum(1)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-3)
    assert float(log_ratio(model, copy.deepcopy(model), chain, states, 0.4).detach().abs().max()) == 0
    without = log_ratio(model, base, chain, states)
    shorter = log_ratio(model, base, chain[:-1], states[:-1])
    assert torch.equal(without, shorter) and not torch.allclose(without, found)


def test_its_mean_under_the_student_is_the_divergence():
    """KL(student | base) of the first step, both with b's apart: sum of (alpha db)^2 / (2 std^2)."""
    process = VP()
    chain = transitions(process, student(process)[:2])
    model, base = Linear(process, 0.3, 0.5), Linear(process, 0.3, 0.2)
    states = rollout(model, chain, 40_000)
    found = log_ratio(model, base, chain, states).detach().double()
    wanted = 3 * (chain[0].of_x0 * 0.3) ** 2 / (2 * chain[0].std ** 2)
    assert float(found.mean()) == pytest.approx(wanted, abs=5 * math.sqrt(2 * wanted / len(found)))
    assert float(found.neg().exp().mean()) == pytest.approx(1.0, rel=0.03)


@pytest.mark.parametrize("noise", ["fresh", "posterior"])
def test_online_pairs_raise_the_score_and_offline_pairs_move_towards_the_preferred(noise):
    process = VP()
    times = student(process)

    def mean(model) -> float:
        return float(rollout(model, transitions(process, times, noise), 2000, seed=9)[-1][:, 0].mean())

    model = Linear(process)
    before = mean(model)
    made = find("pso")(
        model, times, steps=60, score=lambda x: x[:, 0], batch=64, lr=0.02, beta=0.5, noise=noise, last_std=0.5
    )
    assert mean(model) > before + 0.2
    assert made.right[0] == 0 and sum(made.right[-10:]) / 10 > 0.6 and made.losses[-1] < math.log(2)

    model = Linear(process)

    def pairs(count, generator):
        x = 0.3 * torch.randn(2, count, 3, generator=generator)
        return x[0] + torch.tensor([1.0, 0.0, 0.0]), x[1] - torch.tensor([1.0, 0.0, 0.0]), {}

    pairwise(model, times, steps=60, pairs=pairs, batch=64, lr=0.02, beta=0.5, noise=noise, last_std=0.5)
    assert mean(model) > before + 0.2


def test_equal_scores_teach_nothing_and_a_seed_repeats():
    process = VP()
    model = Linear(process)
    before = copy.deepcopy(model.state_dict())
    pairwise(model, student(process), steps=3, score=lambda x: torch.zeros(len(x)), batch=4, lr=0.1)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    runs = []
    for seed in (0, 0, 1):
        model = Linear(process)
        made = pairwise(
            model, student(process), steps=3, score=lambda x: x[:, 0], batch=4, seed=seed, parameters=[model.b]
        )
        assert model.w.item() == pytest.approx(0.3)
        runs.append((made.losses, model.b.detach()))
    assert runs[0][0] == runs[1][0] and torch.equal(runs[0][1], runs[1][1]) and runs[0][0] != runs[2][0]


def test_bad_input():
    process = VP()
    model = Linear(process)
    with pytest.raises(ValueError, match="either pairs"):
        pairwise(model, student(process), steps=1)
    with pytest.raises(ValueError, match="decreasing"):
        transitions(process, [0.2, 0.5])
    with pytest.raises(ValueError, match="posterior"):
        transitions(process, [0.5, 0.2], "posteriors")
    chain = transitions(process, [process.t_max, process.t_zero])
    with pytest.raises(ValueError, match="last_std"):
        log_ratio(model, model, chain, rollout(model, chain, 2))
