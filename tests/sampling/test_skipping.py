"""adaptive-diffusion: off at delta 0, each sample's own, and forecasts through each sample's own evaluations."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.caching.ab_cache import ab_cache, log_snr_of
from fewstep.caching.forecast import coordinate_at
from fewstep.core.denoiser import Denoiser
from fewstep.core.live import around
from fewstep.core.noise import Noise
from fewstep.core.prediction import Prediction, conversion, scales
from fewstep.processes.flow import Flow
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.skipping import reuse, skip

F64 = torch.float64
STD = 0.7


def start(n: int = 4, seed: int = 3, dtype=F64):
    return Noise(seed).normal(0, (n, 2, 3), "cpu", dtype)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("solver", ["ddim", "plms", "dpmpp-2m", "unipc-3", "heun", "ab-4", "ddpm"])
def test_no_delta_is_the_plan_bit_for_bit(solver, order, make_mixture):
    model, made = make_mixture(VP(), (2, 3)), plan(VP(), solver, 8)
    wanted = made(model, start(), seed=3, dtype=F64)
    result = skip(made, 0.0, order=order).run(model, start(), seed=3, dtype=F64)
    assert torch.equal(result.samples, wanted) and result.nfe == made.nfe
    assert not bool(result.report["skipped"].any())


def by_hand(made, delta, most):
    """Algorithm 1: the last eps of each sample, where its states are smooth."""
    levels = [tuple(op.scales) for op in made.evaluations]

    def solver(live, play):
        states, in_a_row, eps, kind, count = [], None, None, "", 0

        def answer(live, i, x):
            nonlocal states, in_a_row, eps, kind, count
            states = [*states[-3:], x / math.hypot(*levels[i][:2])]
            smooth = torch.zeros(len(x), dtype=torch.bool)
            if count >= 3:
                a, b, c, d = states
                third = (d - 3 * c + 3 * b - a).flatten(1).norm(dim=1)
                smooth = (third < delta * (d - c).flatten(1).norm(dim=1)) & (in_a_row < most)
            else:
                in_a_row = torch.zeros(len(x), dtype=torch.long)
            in_a_row, count = torch.where(smooth, in_a_row + 1, 0), count + 1
            if not smooth.any():
                prediction = live.evaluate(x, made.evaluations[i].t)
                kind, value = prediction.kind, prediction.value
            else:
                p, q = conversion("eps", kind, *levels[i])
                value = p * x + q * eps
                rows = torch.nonzero(~smooth)[:, 0]
                if len(rows):
                    value[rows] = live.evaluate(x[rows], made.evaluations[i].t, rows).value
            p, q = conversion(kind, "eps", *levels[i])
            fresh = p * x + q * value
            eps = fresh if eps is None else torch.where(smooth.view(-1, 1, 1), eps, fresh)
            return value, kind

        return play(answer)

    return around(made, "by hand", solver)


@pytest.mark.parametrize("predicts", ["x0", "eps"])
@pytest.mark.parametrize(
    ("process", "solver", "delta"), [(VP(), "dpmpp-2m", 0.5), (VP(), "ddpm", 2), (Flow(), "ddim", 1)]
)
def test_order_1_is_the_papers_algorithm_bit_for_bit(process, solver, delta, predicts, make_mixture):
    made = plan(process, solver, 30, strength=0.99)
    model = make_mixture(process, (2, 3), predicts)
    for dtype in (F64, torch.float32):
        wanted = by_hand(made, delta, 3).run(model, start(6), seed=1, dtype=dtype)
        found = skip(made, delta, 3).run(model, start(6), seed=1, dtype=dtype)
        assert torch.equal(found.samples, wanted.samples) and found.nfe == wanted.nfe
        assert bool(found.report["skipped"].any())


@pytest.mark.parametrize(("order", "coordinate"), [(1, "eps"), (2, "own"), (3, "x0"), (3, "own")])
@pytest.mark.parametrize(("solver", "delta"), [("dpmpp-2m", 0.3), ("ab-4", 0.3), ("heun", 2.0)])
def test_each_sample_is_the_plan_of_its_own_skipping(order, coordinate, solver, delta, make_mixture):
    """What stands in is ab-cache's forecast through the sample's own evaluations."""
    model, made = make_mixture(VP(), (2, 3)), plan(VP(), solver, 30)
    result = skip(made, delta, 2, order, coordinate, STD).run(model, start(6), dtype=F64)
    skipped = result.report["skipped"].T
    assert len({tuple(row.tolist()) for row in skipped}) > 2  # they differ
    for i, row in enumerate(skipped):
        alone = ab_cache(made, skipped=row.nonzero()[:, 0].tolist(), order=order, coordinate=coordinate, data_std=STD)
        wanted = alone(model, start(6)[i : i + 1], dtype=F64)
        torch.testing.assert_close(result.samples[i : i + 1], wanted, rtol=1e-8, atol=1e-8)


class Polynomial(Denoiser):
    """Its prediction in a coordinate is a polynomial of log-SNR, whatever the state."""

    def __init__(self, coordinate, degree, process):
        super().__init__()
        self.coordinate, self.degree, self.process = coordinate, degree, process

    def forward(self, x, t, **condition):
        levels = tuple(float(c) for c in scales(self.process, t))
        u = log_snr_of(levels)
        p, q = conversion(coordinate_at(self.coordinate, *levels[:2], STD), "x0", *levels)
        return Prediction(p * x + q * sum((0.3 * u) ** n for n in range(self.degree + 1)), "x0", x, t, self.process)


@pytest.mark.parametrize("coordinate", ["eps", "own", "v"])
@pytest.mark.parametrize("order", [2, 3, 4])
def test_a_polynomial_along_the_run_is_forecast_exactly(order, coordinate):
    process = VP()
    made = plan(process, "ddim", timesteps=[process.time(1.0 - 3.0 * (1 - i / 20) ** 1.2) for i in range(21)])
    model = Polynomial(coordinate, order - 1, process)
    result = skip(made, 0.03, 2, order, coordinate, STD).run(model, start(6), dtype=F64)
    assert result.report["nfe_per_sample"].max() < 15
    torch.testing.assert_close(result.samples, made(model, start(6), dtype=F64), rtol=1e-9, atol=1e-9)


def test_enough_evaluations_at_finite_log_snr_come_first(make_mixture):
    """A flow begins at alpha = 0, which is nothing to forecast from: order 4 makes five before the first is skipped."""
    made, model = plan(Flow(), "ddim", 12), make_mixture(Flow(), (2, 3))
    for order, first in ((1, 3), (2, 3), (3, 4), (4, 5)):
        result = skip(made, 1e9, 1, order).run(model, start(), dtype=F64)
        assert result.report["skipped"][:, 0].int().tolist() == [0] * first + ([1, 0] * 6)[: 12 - first]
        assert bool(torch.isfinite(result.samples).all())


def test_it_checks_its_numbers():
    made = plan(VP(), "ddim", 3)
    for options, message in (
        ({"delta": -1}, "delta must not be negative, got -1"),
        ({"most": 0}, "most must be a whole number of at least 1, got 0"),
        ({"order": 0}, "order must be a whole number of at least 1, got 0"),
        ({"coordinate": "velocty"}, "unknown coordinate 'velocty': did you mean 'velocity'"),
        ({"data_std": -1.0}, "data_std must be positive and finite, got -1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            skip(made, **options)
    with pytest.raises(ValueError, match="has no table; only a plan has"):
        skip(skip(made))
    assert skip(made, 0.1).name == "ddim, skipping 0.1"
    assert skip(made, 0.1, order=3, coordinate="own").name == "ddim, skipping 0.1, order 3 in own"


@pytest.mark.parametrize("order", [1, 3])
def test_skipping_is_each_samples_own_and_is_counted(order, make_mixture):
    model, made = make_mixture(VP(), (2, 3)), plan(VP(), "dpmpp-2m", 40)
    together = skip(made, 0.3, order=order).run(model, start(6), dtype=F64)
    each = [skip(made, 0.3, order=order).run(model, start(6)[i : i + 1], dtype=F64) for i in range(6)]
    torch.testing.assert_close(together.samples, torch.cat([one.samples for one in each]), rtol=1e-9, atol=1e-9)
    counts = together.report["nfe_per_sample"]
    assert counts.tolist() == [one.nfe for one in each] and len(set(counts.tolist())) > 1
    assert torch.equal(counts, made.nfe - together.report["skipped"].sum(0)) and counts.max() < made.nfe


def test_the_error_falls_with_delta_and_runs_of_skips_are_capped(make_mixture):
    model, made = make_mixture(VP(), (2, 3)), plan(VP(), "ddim", 50)
    whole = made(model, start(16), dtype=F64)
    errors = []
    for delta in (0.02, 0.1, 0.5):
        result = skip(made, delta).run(model, start(16), dtype=F64)
        errors.append(float((result.samples - whole).norm()))
    assert errors == sorted(errors) and errors[0] < errors[-1]
    skipped = skip(made, 1e9, most=2).run(model, start(2), dtype=F64).report["skipped"][:, 0].tolist()
    assert skipped == [False] * 3 + ([True, True, False] * 16)[:47]


def test_reuse_is_the_plan_with_the_last_eps(make_mixture):
    """DDIM with every second evaluation reused is DDIM on every second time: a constant eps carries over both steps."""
    process = VP()
    model, made = make_mixture(process, (2, 3)), plan(process, "ddim", 8, end="min")
    half = plan(process, "ddim", timesteps=made.times[::2])
    rewritten = reuse(made, (1, 3, 5, 7))
    assert type(rewritten).from_json(rewritten.to_json()) == rewritten
    assert rewritten.nfe == 4
    wanted = half(model, start(), dtype=F64)
    torch.testing.assert_close(rewritten(model, start(), dtype=F64), wanted, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="evaluations 1 to 7 can be skipped, not 0"):
        reuse(made, (0,))
