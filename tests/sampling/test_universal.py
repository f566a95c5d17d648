"""Universal plans: their algebra, their errors, and what they are for."""

from __future__ import annotations

import math

import pytest
import torch

import fewstep as fs
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.universal import counts, row, rows, universal_times
from fewstep.searching.candidates import score
from fewstep.searching.reference import solve

F64 = torch.float64
COUNTS = {
    "small": [*range(1, 13), 15],
    "mild": range(1, 13),
    "steep": range(2, 10),
    "late": [*range(2, 13), 15, 20],
    "mild, guided": range(2, 11),
    "steep, guided": range(2, 11),
    "late, guided": [4, 5],
}
ALL = [(spectrum, n) for spectrum, counts in COUNTS.items() for n in counts]


@pytest.mark.parametrize("spectrum, n", ALL)
def test_each_row_is_whole(spectrum, n):
    found = row(n, spectrum)
    assert len(found.log_snr) == len(found.carry) == len(found.mix) == n
    assert all(later > earlier for earlier, later in zip(found.log_snr, found.log_snr[1:], strict=False))
    for i, weights in enumerate(found.mix):
        assert len(weights) == i + 1
        assert sum(weights) == pytest.approx(1, abs=1e-5)
    assert all(math.isfinite(value) for value in (*found.log_snr, *found.carry, *sum(found.mix, ())))


def test_no_other_rows_are_there():
    assert sorted((s, n) for s, by_count in rows().items() for n in by_count) == sorted(ALL)


@pytest.mark.parametrize("process", [EDM(), VP(), Flow()], ids=lambda process: process.name)
@pytest.mark.parametrize("n", [1, 5, 12])
def test_a_constant_answer_is_the_sample(process, n):
    """The rows of weights sum to 1, so that what the network says about the mean is kept, on every process."""

    def network(x, t):
        return torch.full_like(x, 0.7)

    model = fs.wrap(network, process, predicts="x0", shape=(3,))
    x = fs.plan(process, "universal", n)(model, torch.randn(4, 3, dtype=F64), dtype=F64)
    assert float((x - 0.7).abs().max()) < 2e-5 * n


@pytest.mark.parametrize("n", [2, 6, 12])
def test_every_process_gives_the_same_samples(n, make_mixture):
    noise = torch.randn(8, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    samples = [
        fs.plan(process, "universal", n)(make_mixture(process, (2,)), noise, dtype=F64)
        for process in (EDM(), VP(), Flow())
    ]
    for other in samples[1:]:
        assert float((other - samples[0]).abs().max()) < 1e-8


def test_the_data_set_in_other_units_gives_the_same_samples_in_them():
    noise = torch.randn(8, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    means, samples = torch.tensor([[0.5, -0.2], [-0.4, 0.3], [0.1, 0.6]], dtype=F64), []
    for unit in (1.0, 3.0):
        model = GaussianMixture(torch.ones(3), unit * means, 0.01 * unit**2, EDM())
        plan = fs.plan(model.process, "universal", 5, data_std=0.5 * unit)
        samples.append(plan(model, noise, dtype=F64) / unit)
    assert float((samples[0] - samples[1]).abs().max()) < 1e-9


def test_what_a_process_does_not_reach_is_moved_to_where_it_begins():
    process = EDM(sigma_max=5.0)
    times = universal_times(process, 8, data_std=1.0, spectrum="steep")
    assert times[0] == 5.0 and times[-1] == 0
    assert all(b < a for a, b in zip(times, times[1:], strict=False))
    times = universal_times(EDM(sigma_min=0.5), 8, end="min")
    assert times[-1] == 0.5 and all(b < a for a, b in zip(times, times[1:], strict=False))
    with pytest.raises(
        ValueError, match="'universal' needs a process of more noise levels: 'edm' has log-SNR -4.38 to"
    ):
        universal_times(EDM(sigma_min=79.0), 8)


def test_the_end_may_be_the_smallest_noise(make_mixture):
    model = make_mixture(EDM(), (2,))
    noise = torch.randn(8, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    clean, noisy = (fs.plan(EDM(), "universal", 6, end=end)(model, noise, dtype=F64) for end in ("zero", "min"))
    assert 0 < float((clean - noisy).abs().max()) < 0.05


@pytest.fixture(scope="module")
def digits():
    model = fs.load("digits")
    return model, solve(model, 11, 0, 48, 100, torch.float32)


@pytest.mark.parametrize("nfe", [5, pytest.param(8, marks=pytest.mark.slow)])
def test_digits_in_few_evaluations(digits, nfe):
    """Fitted once for all, it has at most two thirds of the error of the best plan made by hand."""
    model, problem = digits
    mine = score(fs.plan(model.process, "universal", nfe=nfe, data_std=model.data_std), model, problem)
    others = [("dpmpp-2m", "short"), ("vab-3", "short"), ("dpmpp-3m", "log-snr"), ("unipc-2", "log-snr")]
    best = min(score(fs.plan(model.process, s, nfe=nfe, timesteps=rule), model, problem) for s, rule in others)
    assert mine < 2 / 3 * best


@pytest.mark.parametrize(
    "options, message",
    [
        ({"steps": 13}, "'universal' has plans of 1 to 12 evaluations, not of 13"),
        ({"steps": 5, "spectrum": "step"}, "unknown spectrum 'step': did you mean 'steep'"),
        ({"steps": 5, "data_std": 0.0}, "data_std must be positive, got 0.0"),
        ({"steps": 5, "timesteps": "karras"}, "'universal' places its evaluations itself"),
        ({"steps": 5, "strength": 0.5}, "'universal' places its evaluations itself"),
        ({"steps": 5, "shift": 3.0}, "'universal' places its evaluations itself"),
        ({"steps": 5, "order": 2}, "order"),
    ],
)
def test_what_it_cannot_do_is_said(options, message):
    with pytest.raises(ValueError, match=message):
        fs.plan(EDM(), "universal", **options)


def test_counts_are_spelt_out():
    assert counts([1, 2, 3, 5, 8, 9]) == "1 to 3, 5 and 8 to 9"
    assert counts([4]) == "4"
