"""Feynman-Kac steering against exact tilted laws: the normaliser, what telescopes, and the distance to the law."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

import fewstep as fs
from fewstep.core.noise import Noise
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.guidance.feynman_kac import POTENTIALS
from fewstep.processes.vp import VP

F64 = torch.float64
A, B = torch.tensor([[0.8, 0.2], [0.2, 0.4]], dtype=F64), torch.tensor([0.6, -0.4], dtype=F64)


def mixture() -> GaussianMixture:
    generator = torch.Generator().manual_seed(0)
    return GaussianMixture(torch.ones(5), 0.8 * torch.randn(5, 2, generator=generator, dtype=F64), 0.3**2, VP())


def reward(x: Tensor, **condition: Tensor) -> Tensor:
    return x @ B - 0.5 * ((x @ A) * x).sum(1)


@functools.cache
def steered(
    method: str, k: int, n: int, strength: float = 1.0, steps: int = 15, **options: object
) -> tuple[Tensor, Tensor]:
    model = mixture()
    plan = fs.plan(model.process, "dpmpp-2m-sde", steps=steps)
    own = fs.steer(plan, method, reward=reward, strength=strength, particles=k, **options)
    run = own.run(model, Noise(2).normal(0, (n, 2), dtype=F64), seed=2, dtype=F64)
    return run.samples, run.report["log_normaliser"]


@pytest.mark.parametrize("method,potential", [("fk", "difference"), ("fk", "importance"), ("tds", None)])
def test_the_normaliser_is_the_exact_one_within_three_errors(method, potential):
    options = {"potential": potential} if potential else {}
    # Of so many steps that the plan's own error is below that of the mean.
    _, log_z = steered(method, 4, 600, steps=60, **options)
    z = (log_z - mixture().tilted(A, B)[1]).exp()
    assert abs(float(z.mean()) - 1) < 3 * float(z.std()) / 600**0.5


def mmd(x: Tensor, y: Tensor) -> float:
    """The maximum mean discrepancy of two sets of samples, by a Gaussian kernel of width 0.5, without its bias."""

    def mean(a: Tensor, b: Tensor, own: bool) -> float:
        k = (-torch.cdist(a, b).square() / 0.5).exp()
        return float((k.sum() - k.diagonal().sum()) / (len(a) * (len(a) - 1)) if own else k.mean())

    return max(mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False), 0.0) ** 0.5


def test_it_is_nearer_to_the_tilted_law_than_the_best_of_as_many():
    strong = 8.0
    exact = mixture().tilted(strong * A, strong * B)[0].sample(1500, seed=1)
    found = {
        (name, k): mmd(steered(method, k, 600, strong, **options)[0], exact)
        for name, method, options in (("fk", "fk", {}), ("tds", "tds", {}), ("best", "fk", {"potential": "best"}))
        for k in (2, 8)
    }
    assert found["fk", 8] < found["best", 8] and found["tds", 8] < found["best", 8], found
    assert found["fk", 8] < found["fk", 2] and found["tds", 8] < found["tds", 2], found


@pytest.mark.parametrize("potential", POTENTIALS)
def test_the_weights_telescope_to_the_reward(potential):
    model = mixture()
    plan = fs.plan(model.process, "ddpm", steps=6)
    own = fs.steer(plan, "fk", reward=reward, strength=3.0, potential=potential, threshold=0.0, particles=5, keep=True)
    run = own.run(model, Noise(3).normal(0, (4, 2), dtype=F64), seed=3, dtype=F64)
    x, logs = run.report["particles"], run.report["log_weights"]
    torch.testing.assert_close(logs, 3 * reward(x.flatten(0, 1)).view(4, 5))
    assert int(run.report["resampled"].sum()) == 0
    if potential == "best":
        assert torch.equal(run.samples, x[torch.arange(4), logs.argmax(1)])


def test_levels_of_max_and_sum_by_hand():
    model, levels = mixture(), iter([1.0, 3.0, 2.0, 5.0])
    logs = {}
    for potential in ("difference", "max", "sum"):
        seen, levels = [], iter([1.0, 3.0, 2.0, 5.0])

        def told(x: Tensor, levels=levels, **condition: Tensor) -> Tensor:
            return torch.tensor([next(levels), 0.0], dtype=F64)

        plan = fs.plan(model.process, "ddpm", steps=3)
        own = fs.steer(plan, "fk", reward=told, potential=potential, particles=2, threshold=0.0)
        run = own.run(model, Noise(3).normal(0, (1, 2), dtype=F64), dtype=F64)
        seen = run.report["ess"][:, 0]
        spent = {"difference": [1, 3, 2], "max": [1, 4, 7], "sum": [1, 5, 11]}[potential]
        for size, total in zip(seen, spent, strict=True):
            w = torch.tensor([total, 0.0], dtype=F64).exp()
            torch.testing.assert_close(size, w.sum() ** 2 / (w**2).sum())
        logs[potential] = float(run.report["log_normaliser"])
    assert len({round(one, 9) for one in logs.values()}) == 1  # log of the mean of e^5 and 1 for all


def test_an_unknown_potential():
    with pytest.raises(ValueError, match="unknown potential 'diference': did you mean 'difference'"):
        fs.steer(fs.plan(VP(), "ddpm", 3), "fk", potential="diference")
