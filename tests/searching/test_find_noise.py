"""The initial noise with the best reward: the optimum of a linear-Gaussian model, budgets, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import fewstep as fs
from fewstep.core.methods import find, methods
from fewstep.core.noise import Noise
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.guidance.cfg import cfg
from fewstep.hub.models import load
from fewstep.processes.pfgmpp import PFGMpp
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.searching.noise_search import FRESH, Search

F64 = torch.float64
SHAPE = (3,)
ROOT = torch.tensor([[1.0, 0.4, 0.0], [0.0, 1.1, -0.3], [0.2, 0.0, 0.9]], dtype=F64)
# One Gaussian: every plan is affine in the noise.
MODEL = GaussianMixture(torch.ones(1), torch.tensor([[0.5, -1.0, 0.2]]), (ROOT @ ROOT.mT)[None], VP())
TARGET = torch.tensor([1.0, 0.3, -0.4], dtype=F64)
SEEN = torch.tensor([[1.0, 0.3, 0.0], [-0.3, 1.0, 0.2], [0.0, -0.2, 1.0]], dtype=F64)
PLAN = fs.plan(MODEL.process, "ddim", 6)


def closeness(x: Tensor) -> Tensor:
    """Minus a quadratic loss of a linear observation."""
    return -(x @ SEEN.T - TARGET).square().sum(1)


def height(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1)


def affine(plan: fs.Plan, model: GaussianMixture = MODEL) -> tuple[Tensor, Tensor]:
    """M and b of the plan's samples `M noise + b`."""
    with torch.no_grad():
        found = plan(model, torch.cat([torch.zeros(1, 3, dtype=F64), torch.eye(3, dtype=F64)]), dtype=F64)
    return (found[1:] - found[0]).T, found[0]


def test_the_gradient_finds_the_optimum_of_a_linear_gaussian_model():
    matrix, offset = affine(PLAN)
    exact = torch.linalg.solve(SEEN @ matrix, TARGET - SEEN @ offset)
    found = fs.find_noise(MODEL, PLAN, closeness, "gradient", evaluations=6 * 300, n=2, dtype=F64,
                          options={"segment": 99, "rate": 0.3})  # fmt: skip
    torch.testing.assert_close(found.noise, exact.expand(2, 3), rtol=0, atol=1e-4)
    assert float(found.reward.min()) > -1e-7 and found.trace[-1].rows == 6 * 300
    torch.testing.assert_close(found.samples @ SEEN.T, TARGET.expand(2, 3), rtol=0, atol=1e-4)


def test_a_surrogate_finds_the_surrogates_optimum_and_the_plan_decodes_it():
    one = fs.plan(MODEL.process, nfe=1)
    matrix, offset = affine(one)
    exact = torch.linalg.solve(SEEN @ matrix, TARGET - SEEN @ offset)
    options = {"surrogate": one, "rate": 0.3}
    found = fs.find_noise(MODEL, PLAN, closeness, "ditto-2", evaluations=12 + 300, dtype=F64, options=options)
    torch.testing.assert_close(found.noise[0], exact, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.samples, PLAN(MODEL, found.noise, dtype=F64))
    assert [point.rows for point in found.trace] == [6, 312] and found.trace[0].reward < found.trace[1].reward
    # Another model as the surrogate, without a plan: its x0 at the first time, which hardly depends on the noise.
    student = GaussianMixture(torch.ones(1), torch.tensor([[0.5, -1.0, 0.2]]), (ROOT @ ROOT.mT)[None], VP())
    short = fs.find_noise(MODEL, fs.plan(MODEL.process, "ddim", 1), closeness, "ditto-2", evaluations=302, dtype=F64,
                          options={"surrogate": student, "rate": 1.0})  # fmt: skip
    assert float(short.reward) > float(short.trace[0].reward) + 0.01


def test_best_is_the_best_of_as_many_runs():
    found = fs.find_noise(MODEL, PLAN, height, "best", evaluations=6 * 5 + 5, n=3, seed=4, first=2, dtype=F64)
    source = Noise(4, 2)
    noises = [source.normal(draw, (3, 3), "cpu", F64) for draw in (0, FRESH, FRESH + 4, FRESH + 8, FRESH + 12)]
    with torch.no_grad():
        every = torch.stack([height(PLAN(MODEL, noise, dtype=F64)) for noise in noises])
    torch.testing.assert_close(found.reward, every.amax(0))
    torch.testing.assert_close(found.noise, torch.stack(noises)[every.argmax(0), torch.arange(3)])
    assert [point.rows for point in found.trace] == [6, 30]
    torch.testing.assert_close(found.trace[0].reward, every[0])
    plain = fs.find_noise(MODEL, PLAN, height, "best", evaluations=6, seed=4, dtype=F64)
    torch.testing.assert_close(plain.samples, fs.sample(MODEL, 1, plan=PLAN, seed=4, dtype=F64))


def test_zero_order_moves_its_pivot_among_neighbours():
    options = {"neighbours": 2, "radius": 0.6}
    found = fs.find_noise(MODEL, PLAN, height, "zero-order", evaluations=6 * 4, n=2, dtype=F64, options=options)
    pivot, source = Noise(0).normal(0, (2, 3), "cpu", F64), Noise(0)
    value = height(PLAN(MODEL, pivot, dtype=F64))
    for numbers in ((0, 1), (2,)):  # the second round has one run left
        nearby = [0.8 * pivot + 0.6 * source.normal(FRESH + 4 * k, (2, 3), "cpu", F64) for k in numbers]
        for near in nearby:
            other = height(PLAN(MODEL, near, dtype=F64))
            pivot, value = torch.where((other > value)[:, None], near, pivot), torch.maximum(value, other)
    torch.testing.assert_close(found.noise, pivot)
    torch.testing.assert_close(found.reward, value)
    rewards = torch.stack([point.reward for point in found.trace])
    assert bool((rewards.diff(dim=0) >= 0).all()) and len(found.trace) == 3


@pytest.mark.parametrize("method", [card.name for card in methods("noise-search")])
def test_a_sample_does_not_depend_on_its_batch(method):
    noisy = fs.plan(MODEL.process, "ddpm", 4)
    options = {"surrogate": fs.plan(MODEL.process, "ddim", 1)} if method == "ditto-2" else {}
    asked = {"evaluations": 40, "seed": 3, "dtype": F64, "options": options}
    both = fs.find_noise(MODEL, noisy, closeness, method, n=2, first=7, **asked)
    alone = fs.find_noise(MODEL, noisy, closeness, method, n=1, first=8, **asked)
    torch.testing.assert_close(both.noise[1:], alone.noise)
    torch.testing.assert_close(both.reward[1:], alone.reward)
    assert bool((both.reward >= both.trace[0].reward).all()) and both.trace[-1].rows <= 40
    torch.testing.assert_close(both.samples, noisy(MODEL, both.noise, seed=3, first=7, dtype=F64))


def test_conditions_decoding_and_the_rows_of_a_guided_model():
    model = cfg(load("digits"), 2.0)
    plan = fs.plan(model.process, "ddim", 2)
    asked: list[Tensor] = []

    def ink(x: Tensor, label: Tensor, **rest: Tensor) -> Tensor:
        asked.append(label)
        return x.flatten(1).mean(1)

    found = fs.find_noise(model, plan, ink, "best", evaluations=11, n=2, label=[3, 5])
    assert [point.rows for point in found.trace] == [4, 8]  # two rows an evaluation: two runs
    assert all(torch.equal(label, torch.tensor([3, 5])) for label in asked)
    fast = {"surrogate": fs.plan(model.process, "ddim", 1)}
    found = fs.find_noise(model, plan, ink, "ditto-2", evaluations=12, n=2, options=fast, label=3, guidance=1.5)
    assert [point.rows for point in found.trace] == [4, 12]  # two runs, and two gradients of two rows
    assert found.samples.shape == (2, 1, 8, 8) and found.samples.dtype == torch.float32
    with pytest.raises(ValueError, match="one run takes 4 evaluations a sample: 3 are too few"):
        fs.find_noise(model, plan, ink, "best", evaluations=3)


def test_loops_and_starts_of_two_draws():
    exact = GaussianMixture(torch.ones(1), torch.zeros(1, 3), 0.25, EDM())
    loop = fs.plan(exact.process, "rk-adaptive")
    found = fs.find_noise(exact, loop, height, "best", evaluations=3 * loop.nfe, dtype=F64)
    assert float(found.reward) >= float(found.trace[0].reward) and found.trace[-1].rows <= 3 * loop.nfe
    with pytest.raises(ValueError, match="has no table; only a plan has"):
        fs.find_noise(exact, loop, height, "gradient", evaluations=5 * loop.nfe, dtype=F64)
    process = PFGMpp()
    model = fs.wrap(lambda x, t: 0.5 * x, process, "x0", (3,))
    search = Search(model, fs.plan(process, "ddim", 2), height, 9, (2, 0, 0), (3,), F64, {})
    assert len({float(search.draw(k)[0, 0]) for k in (None, 0, 1, 2)}) == 4


def wrong_shape(x: Tensor) -> Tensor:
    return x


def not_finite(x: Tensor) -> Tensor:
    return torch.tensor([0.0, math.nan])[: len(x)] if len(x) > 1 else x[:, 0]


def no_gradient(x: Tensor) -> Tensor:
    return x.detach().sum(1)


@pytest.mark.parametrize(
    "method, reward, asked, message",
    [
        ("zeroth-order", height, {}, "unknown noise-search 'zeroth-order': did you mean 'zero-order'"),
        ("best", height, {"options": {"radius": 1}}, "the noise-search 'best' has no options, got 'radius'"),
        ("zero-order", height, {"options": {"neighbour": 1}}, "'neighbour': did you mean 'neighbours'"),
        ("zero-order", height, {"options": {"neighbours": 0}}, "neighbours must be a whole number of at least 1"),
        ("zero-order", height, {"options": {"radius": 1.5}}, "radius must be above 0 and at most 1, got 1.5"),
        ("gradient", height, {"options": {"rate": 0.0}}, "rate must be positive and finite, got 0.0"),
        ("gradient", no_gradient, {}, "the reward has no gradient in the samples: take 'best' or 'zero-order'"),
        ("gradient", height, {"evaluations": 20}, "two runs and a gradient takes 24 evaluations a sample: 20 are too"),
        ("ditto-2", height, {}, "the noise-search 'ditto-2' needs surrogate="),
        ("ditto-2", height, {"options": {"surrogate": load}}, "surrogate of the noise-search 'ditto-2' must be a deno"),
        ("best", height, {"evaluations": 5}, "one run takes 6 evaluations a sample: 5 are too few"),
        ("best", height, {"evaluations": 0}, "evaluations must be a whole number of at least 1, got 0"),
        ("best", wrong_shape, {}, r"the reward must return a number a sample, \(2,\), got a tensor of shape \(2, 3\)"),
        ("best", not_finite, {"first": 4}, "the reward of sample 5 is not finite: nan"),
        ("best", height, {"label": 3}, "this model is unconditional: it takes no 'label'"),
    ],
)
def test_what_is_refused(method, reward, asked, message):
    with pytest.raises(ValueError, match=message):
        fs.find_noise(MODEL, PLAN, reward, method, **{"evaluations": 60, "n": 2, "dtype": F64, **asked})


def test_a_surrogate_of_another_shape_and_a_model_of_any_shape():
    other = GaussianMixture(torch.ones(1), torch.zeros(1, 2), 0.25, VP())
    with pytest.raises(ValueError, match=r"the surrogate's samples are \(2,\), the model's \(3,\)"):
        fs.find_noise(MODEL, PLAN, height, "ditto-2", evaluations=60, dtype=F64, options={"surrogate": other})
    model = fs.wrap(lambda x, t: 0.5 * x, VP(), "x0")
    with pytest.raises(ValueError, match="takes any shape: say which"):
        fs.find_noise(model, PLAN, height, evaluations=60)
    assert fs.find_noise(model, PLAN, height, evaluations=60, shape=[4]).noise.shape == (1, 4)
    assert find("zero-order", "noise-search").__name__ == "zero_order"
