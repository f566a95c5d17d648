"""taylorseer: forecasts of what each block adds, and how they relate to the paper's polynomial. Method: taylorseer."""

from __future__ import annotations

import math

import pytest
import torch

import fewstep as fs
from fewstep.caching.taylorseer import taylorseer
from fewstep.core.lagrange import lagrange
from fewstep.core.memory import Memory, ask
from fewstep.core.noise import Noise
from fewstep.networks.blocks import blocks_of
from fewstep.networks.surgery import InPlaceOf, replaced
from fewstep.sampling.build import plan


def noise(n, seed=0):
    return Noise(seed).normal(0, (n, 1, 8, 8))


def paper(values, s):
    """Liu et al., equation 9: the Taylor polynomial with finite differences, newest value first, s intervals on."""
    total, differences = 0.0, list(values)
    for i in range(len(values)):
        total += s**i / math.factorial(i) * differences[0]
        differences = [a - b for a, b in zip(differences, differences[1:], strict=False)]
    return total


def test_the_papers_polynomial_is_ours_for_a_line_alone():
    def line(x):
        return 3 - 2 * x

    def parabola(x):
        return x * x - x

    for f, count, same in ((line, 2, True), (line, 3, True), (parabola, 3, False)):
        nodes = [0.0, -3.0, -6.0][:count]
        for at in (1.0, 2.0):
            ours = sum(w * f(node) for w, node in zip(lagrange(nodes, at), nodes, strict=True))
            assert ours == pytest.approx(f(at))
            assert (paper([f(node) for node in nodes], at / 3) == pytest.approx(f(at))) is same


class Polynomial(InPlaceOf):
    """In the place of a block: adds what is a polynomial in log-SNR, of which the embedding here knows nothing."""

    def __init__(self, of, now, coefficients):
        super().__init__(of)
        self.now, self.coefficients = now, coefficients

    def forward(self, x, embedding):
        return x + sum(c * self.now["snr"] ** k for k, c in enumerate(self.coefficients))


@torch.no_grad()
@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_forecast_through_k_points_is_exact_for_degree_k_minus_1(dit, order):
    """Whatever the steps are: blocks that add polynomials in log-SNR are forecast to rounding."""
    now, times = {}, [3.0, 2.0, 1.6, 1.1, 0.7, 0.5, 0.31, 0.2, 0.15]
    names = [f"network.{name}" for name in blocks_of(dit)]
    coefficients = torch.randn(len(names), order, 32, generator=torch.Generator().manual_seed(1))
    modules = {n: Polynomial(dit.get_submodule(n), now, c) for n, c in zip(names, coefficients, strict=True)}
    model = replaced(dit, modules)
    cached, memory, x = taylorseer(model, 2, order), Memory(1, times, 0.0), noise(1)
    condition, gaps = dit.check_condition({"label": 3}, 1, x.device), []
    for t in times:
        memory.advance()
        now["snr"] = float(dit.process.log_snr(t))
        found = ask(cached, x, torch.tensor(t), memory, condition).value
        gaps.append(float((found - model(x, torch.tensor(t), **condition).value).abs().max()))
    assert all(gap == 0 for gap in gaps[::2])
    assert max(gaps[2 * order - 1 :: 2]) < 2e-6 and (order == 1 or max(gaps[1 : 2 * order - 2 : 2]) > 1e-3)


def test_no_block_runs_at_a_forecast(dit):
    made, cached = plan(dit.process, "ddim", 11), taylorseer(dit, 3, 2, start=0.2)
    cached.cost(tuple(cached.recipe.parts))
    calls, t = [], []
    hooks = [m.register_forward_hook(lambda *_: calls.append(len(t))) for m in dit.network.blocks.values()]
    report = made.run(cached, noise(2), label=1, callback=lambda n, *_: t.append(n)).report
    for hook in hooks:
        hook.remove()
    assert sorted(set(calls)) == [0, 1, 2, 3, 6, 9] and all(calls.count(n) == 8 for n in set(calls))
    assert (report["whole"], report["part"]) == (6, 5) and 6 < report["cost"] < 6.5
    assert report["bytes"] == 8 * 2 * (2 * 16 * 32 * 4)  # blocks, points, rows of tokens


def test_off_it_is_the_model_and_orders_help(dit):
    made = plan(dit.process, "ddim", 24)
    assert torch.equal(made(taylorseer(dit, 1), noise(2), label=3), made(dit, noise(2), label=3))
    digits = fs.load("digits-dit")
    whole = made(digits, noise(8), label=3)
    errors = [float((made(taylorseer(digits, 2, order), noise(8), label=3) - whole).norm()) for order in (1, 2, 3)]
    assert errors[0] > 1.5 * errors[1] > 1.5 * errors[2] > 0


def test_bad_input(dit):
    with pytest.raises(ValueError, match="order must be from 1 to 4, got 5"):
        taylorseer(dit, order=5)
    with pytest.raises(ValueError, match="interval of the cache 'taylorseer' must be a whole number, got 0.5"):
        fs.cache(dit, "taylorseer", interval=0.5)
    with pytest.raises(ValueError, match="no network in this model names its blocks"):
        taylorseer(fs.wrap(lambda x, t: x, dit.process, shape=(2,)))
