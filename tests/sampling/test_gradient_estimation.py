"""gradient-estimation and the admissible levels: ddim at gamma = 1, its formula, and the distance it promises."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.core.prediction import Prediction
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.timesteps.admissible import admissible, admissible_step

F64 = torch.float64


def test_gamma_1_is_ddim_bit_for_bit(make_mixture):
    process = VP()
    model, noise = make_mixture(process, (2, 3)), Noise(1).normal(0, (5, 2, 3))
    ours, theirs = plan(process, "gradient-estimation", 6, gamma=1.0), plan(process, "ddim", 6)
    assert ours.ops == theirs.ops
    assert torch.equal(ours(model, noise), theirs(model, noise))


def test_the_papers_algorithm(make_mixture):
    """x += (sigma_next - sigma) (2 eps - eps_last), written out where sigma is the time."""
    process = EDM()
    model, noise = make_mixture(process, (3,)), Noise(1).normal(0, (4, 3), "cpu", F64)
    times = [80.0, 20.0, 6.0, 1.5, 0.4, 0.05]
    x, last = noise * 80.0, None
    for a, b in zip(times, times[1:], strict=False):
        eps = model(x, torch.tensor(a, dtype=F64)).eps
        x = x + (b - a) * (eps if last is None else 2 * eps - last)
        last = eps
    made = plan(process, "gradient-estimation", timesteps=times)
    torch.testing.assert_close(made(model, noise, dtype=F64), x, rtol=1e-10, atol=1e-10)


class NearCircle(Denoiser):
    """The unit circle in the first two of seven dimensions: x0 misses the projection by `eta dist(x)`, towards x or
    away from it, whichever is the case of the bound."""

    def __init__(self, error: float):
        super().__init__()
        self.process, self.error = EDM(), error

    @staticmethod
    def project(x):
        return torch.cat((x[:, :2] / x[:, :2].norm(dim=1, keepdim=True), torch.zeros_like(x[:, 2:])), 1)

    def forward(self, x, t, **condition):
        nearest = self.project(x)
        return Prediction(nearest + self.error * (x - nearest), "x0", x, t, self.process)


def distance(x):
    return (x - NearCircle.project(x)).norm(dim=1)


@pytest.mark.parametrize("eta", [0.05, 0.3])
def test_the_distance_contracts_within_the_theorems_bound(eta):
    """A step's factor lies between 1 - beta (1 + eta) and 1 - beta (1 - eta); noise and distance stay within nu."""
    nu, steps = 2.0, 12
    beta = admissible_step(steps, eta, nu)
    start, size = Noise(0).normal(0, (6, 7), "cpu", F64), math.sqrt(7)
    sigmas = [50.0 * (1 - beta) ** k for k in range(steps + 1)]
    for error in (eta, -eta):
        made = plan(EDM(1e-9, 80.0), "gradient-estimation", timesteps=sigmas, gamma=1.0)
        model = NearCircle(error)
        model.process = EDM(1e-9, 80.0)
        scale = size * 50.0 / distance(start * 50.0)  # the start at distance sqrt(n) sigma, nearly
        seen = torch.stack(made.run(model, start * scale[:, None], dtype=F64, trajectory=True).trajectory)
        far = torch.stack([distance(x) for x in seen])
        ratio = far[1:] / far[:-1]
        assert bool((ratio <= 1 - beta * (1 - eta) + 1e-12).all())
        assert bool((ratio >= 1 - beta * (1 + eta) - 1e-12).all())
        assert float(ratio.mean()) == pytest.approx(1 - beta * (1 - error), abs=1e-9)  # the worst case is met
        apart = size * torch.tensor(sigmas, dtype=F64)[:, None] / far
        assert bool((apart <= nu * 1.05).all()) and bool((apart >= 1 / (nu * 1.05)).all())


@pytest.mark.parametrize("steps,eta,nu", [(1, 0.1, 2.0), (6, 0.05, 2.0), (20, 0.3, 1.5)])
def test_the_step_is_the_largest_admissible_one(steps, eta, nu):
    """(1/nu) prod (1 + b (eta - 1)) <= prod (1 - b) <= nu prod (1 - b (eta + 1)) over any last k steps."""
    beta = admissible_step(steps, eta, nu)

    def admitted(b: float) -> bool:
        return all(
            (1 + b * (eta - 1)) ** k / nu <= (1 - b) ** k * (1 + 1e-12)
            and (1 - b) ** k <= nu * max(1 - b * (eta + 1), 0.0) ** k * (1 + 1e-12)
            for k in range(1, steps + 1)
        )

    assert admitted(beta) and not admitted(beta * 1.001)


def test_many_steps_fall_by_the_limit_of_the_theorem():
    """(1 - beta)^n -> nu^(-1/eta) as n grows."""
    n = 100_000
    assert n * math.log1p(-admissible_step(n, 0.1, 2.0)) == pytest.approx(-math.log(2.0) / 0.1, rel=1e-3)


def test_the_rule_multiplies_sigma_over_alpha_by_one_factor():
    """ "admissible" on two processes: equal ratios but for the last step, and log-snr where the range is short."""
    for process in (EDM(), VP()):
        times = admissible(process, 7)
        ratio = [process.sigma(t) / process.alpha(t) for t in times[:-1]]
        for a, b in zip(ratio, ratio[1:], strict=False):
            assert b / a == pytest.approx(1 - admissible_step(6), rel=1e-6)
    wide = admissible(EDM(), 9, "min", eta=1e-3)
    assert wide == pytest.approx([80 * (0.002 / 80) ** (k / 9) for k in range(10)], rel=1e-9)


@pytest.mark.parametrize("bad", [{"eta": 0.0}, {"nu": 1.0}, {"steps": 0}])
def test_bad_bounds(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))}"):
        admissible_step(**({"steps": 4} | bad))
    with pytest.raises(ValueError, match="gamma must be above 0, got 0"):
        plan(VP(), "gradient-estimation", 4, gamma=0)
