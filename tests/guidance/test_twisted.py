"""The twisted sampler: the shift of each draw and its weight by hand, and the plans and rewards it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fewstep as fs
from fewstep.core.noise import Noise
from fewstep.core.ops import Combine, Draw, Evaluate
from fewstep.core.prediction import Prediction
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.guidance.twisted import amounts
from fewstep.processes.vp import VP
from fewstep.training.reward import reward_samples

F64 = torch.float64


def test_one_step_by_hand():
    """Two evaluations of ddpm on one Gaussian: states, weights and normaliser written out."""
    process = VP()
    model = GaussianMixture(torch.ones(1), torch.zeros(1, 3), 0.5**2, process)
    plan = fs.plan(process, "ddpm", steps=2)
    a, b = (op.t for op in plan.evaluations)
    c = [op for op in plan.ops if isinstance(op, Combine)][0]
    noise, z = (Noise(5).normal(draw, (1, 3), dtype=F64) for draw in (0, 1))
    target = torch.tensor([1.0, -1.0, 0.5], dtype=F64)

    def reward(x: Tensor, **condition: Tensor) -> Tensor:
        return x @ target

    def x0(x: Tensor, t: float) -> Tensor:
        return model(x, torch.tensor(t, dtype=F64)).x0

    def gain(t: float) -> float:
        alpha, sigma = process.alpha(t), process.sigma(t)
        return alpha * 0.25 / (alpha**2 * 0.25 + sigma**2)

    x = noise * plan.start[1]
    amount = amounts(plan.table)[0]
    draws = [op.slot for op in plan.ops if isinstance(op, Draw)]
    assert dict(c.terms)[draws[0]] == amount > 0 and amounts(plan.table)[-1] == 0
    shift = amount * 2.0 * gain(a) * target
    moved = z + shift
    terms = dict(c.terms)
    outputs = {slot: kind for kind, slot in [op for op in plan.ops if isinstance(op, Evaluate)][0].outputs}
    first = model(x, torch.tensor(a, dtype=F64))
    after = sum(
        coefficient * (x if slot == 0 else moved if slot == draws[0] else first.to(outputs[slot]))
        for slot, coefficient in terms.items()
    )
    log = 2 * reward(x0(after, b)) + (z.square().sum() - moved.square().sum()) / 2
    steered = fs.steer(plan, "tds", reward=reward, strength=2.0, particles=1)
    seen: list[Tensor] = []
    run = steered.run(model, noise, seed=5, dtype=F64, callback=lambda i, t, x, p: seen.append(x.clone()))
    torch.testing.assert_close(seen[1], after)
    log = log + 2 * (reward(run.samples) - reward(x0(after, b)))
    torch.testing.assert_close(run.report["log_normaliser"], log)


def test_it_shifts_only_when_it_is_asked():
    model = GaussianMixture(torch.ones(1), torch.zeros(1, 3), 0.5**2, VP())
    plan, noise = fs.plan(VP(), "dpmpp-2m-sde", steps=5), Noise(5).normal(0, (2, 3), dtype=F64)
    never = fs.steer(plan, "tds", reward=lambda x, **_: x[:, 0], particles=1, when=(9, 9, 1))
    assert torch.equal(never(model, noise, seed=5, dtype=F64), plan(model, noise, seed=5, dtype=F64))
    late = fs.steer(plan, "tds", reward=lambda x, **_: x[:, 0], particles=1, when=(3, 5, 1), strength=4.0)
    seen: list[Tensor] = []
    late.run(model, noise, seed=5, dtype=F64, callback=lambda i, t, x, p: seen.append(x.clone()))
    plain = plan.run(model, noise, seed=5, dtype=F64, trajectory=True).trajectory
    same = [torch.equal(ours, theirs) for ours, theirs in zip(seen, plain, strict=False)]
    assert same == [True, True, True, False, False]


def test_the_answers_hold_no_graph():
    model = GaussianMixture(torch.ones(1), torch.zeros(1, 3), 0.5**2, VP())
    seen: list[Prediction] = []
    steered = fs.steer(fs.plan(VP(), "ddpm", steps=3), "tds", reward=lambda x, **_: x[:, 0], particles=2)
    x = steered.run(model, torch.zeros(1, 3), callback=lambda i, t, x, p: seen.append(p)).samples
    assert not x.requires_grad and not any(p.value.requires_grad or p.x.requires_grad for p in seen)


def test_bad_input():
    model = GaussianMixture(torch.ones(1), torch.zeros(1, 3), 0.5**2, VP())
    plan = fs.plan(VP(), "ddpm", steps=3)
    with pytest.raises(ValueError, match="tds needs the reward's gradient, and this reward has none: take fk"):
        fs.steer(plan, "tds", reward=lambda x, **_: x[:, 0].round().detach()).run(model, torch.zeros(1, 3))
    # What else has several draws: a plan that adds the noise of a step in two parts.
    several = fs.plan(VP(), twice, steps=3)
    with pytest.raises(ValueError, match="tds steers plans with one draw an evaluation, and 'twice' has 2: take fk"):
        fs.steer(several, "tds")
    assert fs.steer(several, "fk", particles=2)(model, torch.zeros(1, 3)).shape == (1, 3)
    with pytest.raises(ValueError, match="no table"):  # what differentiates a plan's table
        reward_samples(model, torch.zeros(1, 3), fs.steer(plan), "full")


def twice(trace, process, times):
    """Two draws a step."""
    from itertools import pairwise

    x = trace.start()
    for a, b in pairwise(times):
        x0 = trace.evaluate(x, a).x0
        x = x0 if b == times[-1] else x0 * process.alpha(b) + (trace.noise() + trace.noise()) * (
            process.sigma(b) / 2**0.5
        )  # fmt: skip
    return x
