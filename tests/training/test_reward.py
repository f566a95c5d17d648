"""Reward gradients through plans: against finite differences, and what tuning does with them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import find
from fewstep.core.noise import Noise
from fewstep.core.prediction import Prediction
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.metrics.rewards import ink, likeness, symmetry
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.training.reward import WAYS, path_divergence, reward_samples, tune

F64 = torch.float64


def learnable(model: GaussianMixture) -> GaussianMixture:
    """The mixture with its weights and centres as parameters."""
    for name in ("log_weights", "centres"):
        value = model._buffers.pop(name)
        setattr(model, name, nn.Parameter(value.clone()))
    return model


@pytest.fixture
def mixture(make_mixture):
    return learnable(make_mixture(VP(), shape=(3,)))


def noise(count: int = 5, seed: int = 0, shape=(3,)) -> torch.Tensor:
    return Noise(seed).normal(0, (count, *shape), "cpu", F64)


def bowl(x: torch.Tensor) -> torch.Tensor:
    return -(x - torch.tensor([0.5, -0.2, 0.1], dtype=x.dtype)).square().sum(1)


def gradients(model, made, method, last=1, **options) -> list[torch.Tensor]:
    x = reward_samples(model, noise(), made, method, last, **options)
    return list(torch.autograd.grad(bowl(x).sum(), list(model.parameters())))


@pytest.mark.parametrize("solver", ["dpmpp-2m", "heun", "ddpm"])
def test_the_full_gradient_is_that_of_finite_differences(mixture, solver):
    made = plan(mixture.process, solver, 5)
    found = gradients(mixture, made, "full")
    h = 1e-6
    for parameter, gradient in zip(mixture.parameters(), found, strict=True):
        flat = parameter.detach().view(-1)
        for k in range(0, flat.numel(), 6):
            ends = []
            for sign in (1, -1):
                flat[k] += sign * h
                ends.append(float(bowl(made(mixture, noise(), dtype=F64)).sum()))
                flat[k] -= sign * h
            assert float(gradient.view(-1)[k]) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("solver", ["dpmpp-2m", "ddpm"])
def test_truncation_at_all_evaluations_is_the_full_gradient(mixture, solver):
    made = plan(mixture.process, solver, 5)
    full = gradients(mixture, made, "full")
    for segment in (None, 1, 99):
        for a, b in zip(gradients(mixture, made, "truncated", 5, segment=segment), full, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(gradients(mixture, made, "truncated", 4)[0], full[0], rtol=1e-3)


@pytest.mark.parametrize("last", [1, 2])
def test_a_truncated_gradient_is_that_of_the_last_steps_from_a_fixed_state(mixture, last):
    """DDIM from the state that it has reached, with nothing known of how it came there."""
    made = plan(mixture.process, "ddim", 5)
    found = gradients(mixture, made, "truncated", last)
    states = made.run(mixture, noise(), dtype=F64, trajectory=True).trajectory
    x, process = states[5 - last], mixture.process
    for a, b in zip(made.times[5 - last : 5], made.times[6 - last :], strict=True):
        prediction = mixture(x, torch.tensor(a, dtype=F64))
        x = process.alpha(b) * prediction.x0 + process.sigma(b) * prediction.eps
    wanted = torch.autograd.grad(bowl(x).sum(), list(mixture.parameters()))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_truncated_samples_are_the_plans_own(mixture):
    for solver in ("dpmpp-2m", "ddpm"):
        made = plan(mixture.process, solver, 6)
        wanted = made(mixture, noise(), seed=4, first=2, dtype=F64)
        for method, last in (("full", 1), ("truncated", 1), ("truncated", 3)):
            x = reward_samples(mixture, noise(), made, method, last, seed=4, first=2)
            torch.testing.assert_close(x, wanted, rtol=1e-10, atol=1e-12)


def test_fewer_evaluations_are_made_with_a_gradient_than_without(mixture):
    """The last two of six, once each where they are one segment."""
    seen: list[bool] = []

    class Watched(Denoiser):
        process, shape = mixture.process, mixture.shape

        def forward(self, x, t, **condition) -> Prediction:
            seen.append(torch.is_grad_enabled())
            return mixture(x, t)

    made = plan(mixture.process, "dpmpp-2m", 6)
    bowl(reward_samples(Watched(), noise(), made, "truncated", 2, segment=2)).sum().backward()
    assert seen == [False] * 4 + [True] * 2


def test_the_renoised_gradient_is_that_of_one_prediction(mixture):
    made = plan(mixture.process, "dpmpp-2m", 6)
    found = reward_samples(mixture, noise(), made, "renoised", 1, seed=3)
    x0 = made(mixture, noise(), seed=3, dtype=F64)
    t = made.evaluations[-1].t
    eps = Noise(3).normal(-2, (5, 3), "cpu", F64)
    x = mixture.process.alpha(t) * x0 + mixture.process.sigma(t) * eps
    torch.testing.assert_close(found, mixture(x, torch.tensor(t, dtype=F64)).x0)
    several = reward_samples(mixture, noise(400), made, "renoised", 4, seed=3)
    assert several.shape == (400, 3) and bool(several.isfinite().all())


def test_the_adjoint_gradient_agrees_on_fine_grids(mixture):
    full = gradients(mixture, plan(mixture.process, "dpmpp-2m", 200), "full")
    adjoint = gradients(mixture, plan(mixture.process, "dpmpp-2m", 60), "adjoint")
    for a, b in zip(adjoint, full, strict=True):
        assert torch.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.999
        assert 0.97 < float(a.norm() / b.norm()) < 1.03


@pytest.mark.parametrize("process", [VP(), EDM()])
@pytest.mark.parametrize("kinds", [("x0", "x0"), ("eps", "x0")])
def test_the_divergence_is_that_of_gaussians_in_closed_form(process, kinds):
    """Both models run the same forward process, so the divergence of their paths is what the divergence of their
    marginals loses from the last time to the first."""
    means, variances = torch.tensor([[0.4, -0.3], [0.0, 0.2]], dtype=F64), torch.tensor([[0.3, 0.5], [0.4, 0.2]])
    ours, theirs = (
        GaussianMixture(torch.ones(1), means[k : k + 1], variances[k : k + 1].double(), process, kinds[k])
        for k in range(2)
    )
    high, low = process.time(-3.0), process.time(3.0)
    made = plan(process, "ddim", timesteps=[high, low])

    def between(t: float) -> float:
        alpha, sigma = process.alpha(t), process.sigma(t)
        (m, v), (n, w) = ((alpha * means[k], alpha**2 * variances[k].double() + sigma**2) for k in range(2))
        return float(0.5 * (v / w + (m - n) ** 2 / w - 1 - (v / w).log()).sum())

    count = 40_000
    u = (torch.arange(count, dtype=F64) + 0.5) / count
    u = u[torch.randperm(count, generator=torch.Generator().manual_seed(1))]
    found = path_divergence(ours, theirs, ours.sample(count, 0), noise(count, 5, (2,)), u, made)
    assert float(found.mean()) == pytest.approx(between(low) - between(high), rel=0.02)
    same = path_divergence(ours, ours, ours.sample(9, 0), noise(9, 5, (2,)), u[:9], made)
    assert float(same.abs().max()) == 0


@pytest.mark.parametrize("method", WAYS)
def test_tuning_raises_the_reward(mixture, method):
    made = plan(mixture.process, "dpmpp-2m", 6)
    before = float(bowl(made(mixture, noise(256, 9).float())).mean())
    found = find("draft")(mixture, bowl, made, steps=30, batch=32, lr=0.05, method=method, last=2, every=30, seed=1)
    after = float(bowl(made(mixture, noise(256, 9).float())).mean())
    assert after > before + 0.3 * abs(before)
    assert len(found.rewards) == 30 and found.best.step == 30 and not found.stopped
    assert [check.step for check in found.checks] == [0, 30]


def test_a_kept_model_stays_nearer(mixture):
    made, free, kept = plan(mixture.process, "dpmpp-2m", 6), mixture, copy.deepcopy(mixture)
    loose = tune(free, bowl, made, steps=30, batch=32, lr=0.05, method="full", keep=1e-9, every=30)
    tight = tune(kept, bowl, made, steps=30, batch=32, lr=0.05, method="full", keep=2.0, every=30)
    assert loose.divergences[0] == tight.divergences[0] == 0
    assert 0 < tight.divergences[-1] < 0.8 * loose.divergences[-1]
    assert loose.best.reward > tight.best.reward > loose.checks[0].reward


def test_the_verifier_ends_a_hacked_reward_at_the_best_weights(mixture):
    """The reward wants x_0 ever larger, the verifier wants it near 1: tuning passes it and is called back."""
    made = plan(mixture.process, "dpmpp-2m", 5)
    found = tune(
        mixture,
        lambda x: x[:, 0],
        made,
        steps=200,
        batch=32,
        lr=0.05,
        last=2,
        verify=lambda x: -(x[:, 0] - 1).square(),
        every=5,
        patience=2,
    )
    assert found.stopped and len(found.rewards) < 200
    assert found.best.verified == max(check.verified for check in found.checks)
    assert found.checks[-1].reward > found.best.reward and found.checks.index(found.best) == len(found.checks) - 3
    x = made(mixture, Noise(0, 200 * 32).normal(0, (128, 3)), seed=0, first=200 * 32)
    assert float(x[:, 0].mean()) == pytest.approx(found.best.reward, abs=1e-5)


def test_a_seed_gives_the_same_run_and_only_the_named_parameters_move(make_mixture):
    runs = []
    for seed in (1, 1, 2):
        model = learnable(make_mixture(VP(), shape=(3,)))
        weights = model.log_weights.detach().clone()
        made = plan(model.process, "ddpm", 4)
        found = tune(model, bowl, made, steps=4, batch=7, parameters=[model.centres], seed=seed, keep=0.1)
        assert torch.equal(model.log_weights, weights)
        runs.append((found.rewards, model.centres.detach()))
    assert runs[0][0] == runs[1][0] and torch.equal(runs[0][1], runs[1][1])
    assert runs[0][0] != runs[2][0]


def test_several_plans_take_turns_and_a_penalty_counts(mixture):
    process, seen = mixture.process, []
    plans = [plan(process, "dpmpp-2m", n) for n in (2, 3)]

    class Counted(Denoiser):
        shape = mixture.shape

        def __init__(self) -> None:
            super().__init__()
            self.process, self.inner = process, mixture

        def forward(self, x, t, **condition) -> Prediction:
            seen.append(len(x))
            return self.inner(x, t)

    tune(Counted(), bowl, plans, steps=4, batch=6, method="truncated", every=9, fresh=5)
    assert seen.count(6) == 2 * 2 + 2 * 3 and seen.count(5) == 2 * 3
    before = mixture.centres.detach().clone()
    tune(mixture, bowl, plans[0], steps=3, batch=6, lr=0.1, penalty=lambda named: 1e6 * mixture.centres.square().sum())
    assert mixture.centres.detach().norm() < before.norm()


def test_rewards_in_closed_form():
    x = torch.tensor([[[[-1.0, 1.0], [1.0, 1.0]]], [[[-1.0, -1.0], [0.0, 0.0]]]])
    assert ink(x).tolist() == [0.75, 0.25]
    assert symmetry(x).tolist() == [-2.0, 0.0]
    assert likeness(x, x[0]).tolist() == [0.0, -1.5]


def test_bad_input(mixture):
    made = plan(mixture.process, "dpmpp-2m", 4)
    with pytest.raises(ValueError, match="truncated"):
        tune(mixture, bowl, made, steps=1, method="truncate")
    with pytest.raises(ValueError, match="1 to 4 evaluations"):
        reward_samples(mixture, noise(), made, "truncated", 5)
    with pytest.raises(ValueError, match="at least 1"):
        tune(mixture, bowl, made, steps=0)
    with pytest.raises(ValueError, match="asks for gradients"):
        tune(mixture.requires_grad_(False), bowl, made, steps=1)
    with pytest.raises(ValueError, match="needs a plan"):
        tune(mixture, bowl, [], steps=1)
