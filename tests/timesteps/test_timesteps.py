"""Rules of the grid: each against its formula, and strictly decreasing for every process, length and end.

Methods: uniform, log-snr, karras, quadratic, exponential, polyexponential, beta, leading, linspace, trailing,
short, admissible.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from sampled import sampled
from scipy import stats

from fewstep.core.methods import methods
from fewstep.processes.cosine import Cosine
from fewstep.processes.discrete import Discrete
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM, VE
from fewstep.processes.vp import VP, SubVP
from fewstep.timesteps import rules
from fewstep.timesteps.grid import check_times, make_times

RULES = [method.name for method in methods("timesteps")]
ZERO_TERMINAL = Discrete.from_betas([1e-4 + 1e-4 * i for i in range(200)], zero_terminal=True)
PROCESSES = [VP(), SubVP(), Cosine(), Cosine(t_max=1.0), VE(), EDM(), Flow(), Discrete.linear(), ZERO_TERMINAL]
DDPM = Discrete.linear()


def test_every_rule_is_in_this_file():
    for rule in RULES:
        assert f'"{rule}"' in Path(__file__).read_text("utf-8"), rule


@sampled("rule, process, end", RULES, PROCESSES, ["zero", "min"])
def test_one_to_a_hundred_steps_fall_strictly_to_the_end(rule, process, end):
    every = range(1, 51) if process.table_steps is None else (1, 2, 3, 4, 5, 7, 11, 20, 33, 50)  # tables are slower
    for steps in (*every, 100):
        times = make_times(process, steps, rule, end)
        assert len(times) == steps + 1
        assert all(t > s for t, s in zip(times, times[1:], strict=False))
        assert times[-1] == (process.t_zero if end == "zero" else process.t_min)
        if rule == "admissible" and -math.inf < process.log_snr(process.t_max) < -5:
            assert process.log_snr(times[0]) == pytest.approx(-5, rel=1e-6)
        elif rule not in ("leading", "short"):
            assert times[0] == pytest.approx(process.t_max, rel=1e-12)


@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=lambda p: p.name)
def test_uniform_and_quadratic(process):
    u = np.linspace(1, 0, 8)
    np.testing.assert_allclose(make_times(process, 7, "uniform"), process.t_max * u, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(make_times(process, 7, "quadratic"), process.t_max * u**2, rtol=1e-12, atol=1e-15)
    low = make_times(process, 7, "uniform", "min")
    np.testing.assert_allclose(low, process.t_min + (process.t_max - process.t_min) * u, rtol=1e-12)


def test_the_clean_time_off_the_clock_is_one_jump():
    assert make_times(VE(), 5, "uniform") == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0, -1.0])
    assert make_times(DDPM, 4, "uniform") == pytest.approx([999, 666, 333, 0, -1])
    assert make_times(DDPM, 1, "uniform") == [999, -1]


@pytest.mark.parametrize("process", [VP(), EDM(), DDPM], ids=lambda p: p.name)
def test_log_snr_and_its_other_name(process):
    for rule in ("log-snr", "exponential"):
        level = [process.log_snr(t) for t in make_times(process, 9, rule, "min")]
        np.testing.assert_allclose(np.diff(level), (level[-1] - level[0]) / 9, rtol=1e-6)


def test_polyexponential():
    process = EDM()
    u = np.linspace(1, 0, 10)
    expected = np.exp(u**1.5 * math.log(80 / 0.002) + math.log(0.002))
    np.testing.assert_allclose(make_times(process, 9, "polyexponential", "min"), expected, rtol=1e-9)


@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=lambda p: p.name)
def test_short_is_log_snr_over_the_middle(process):
    times = make_times(process, 5, "short")
    np.testing.assert_allclose(
        [process.log_snr(t) for t in times[:-1]], np.linspace(-1.6, 2.0, 5), rtol=1e-9, atol=1e-9
    )
    assert make_times(process, 1, "short") == [process.time(-1.6), process.t_zero]


@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=lambda p: p.name)
def test_admissible_has_the_theorems_longest_steps(process):
    """beta = c / (eta + c), c = 1 - nu^(-1/n): eta = 0.05, nu = 2; the last step goes straight to the end."""
    times = make_times(process, 7, "admissible")
    c = 1 - 2 ** (-1 / 6)
    level = np.array([process.log_snr(t) for t in times[1:-1]])  # a start at alpha = 0 has none
    np.testing.assert_allclose(np.diff(level), -math.log(1 - c / (0.05 + c)), rtol=1e-6)
    assert level[-1] < process.log_snr(process.t_min)
    if math.isinf(process.log_snr(process.t_max)):  # its first step lands where the next levels count from -5
        stride = level[1] - level[0]
        assert level[0] == pytest.approx(-5 + stride, rel=1e-9) and times[0] == process.t_max


def test_karras_is_edm_equation_5():
    n, rho, low, high = 10, 7, 0.002, 80.0
    i = np.arange(n)
    expected = (high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    np.testing.assert_allclose(make_times(EDM(), n, "karras"), [*expected, 0.0], rtol=1e-9)


@pytest.mark.parametrize("process", [VP(), DDPM], ids=lambda p: p.name)
def test_karras_on_other_processes_is_in_sigma_over_alpha(process):
    times = make_times(process, 8, "karras", "min")
    root = [(process.sigma(t) / process.alpha(t)) ** (1 / 7) for t in times]
    np.testing.assert_allclose(np.diff(root), (root[-1] - root[0]) / 8, rtol=1e-5)


def test_beta_are_quantiles():
    expected = stats.beta(0.6, 0.6).ppf(np.linspace(1, 0, 8))
    np.testing.assert_allclose(make_times(Flow(), 7, "beta"), expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("n", [1, 3, 7, 10, 30, 50])
def test_discrete_conventions_are_diffusers_unrounded(n):
    """`timestep_spacing` in diffusers' schedulers over 1000 steps, before rounding, then the clean sample."""
    leading = (np.arange(0, n) * (1000 // n))[::-1]
    assert make_times(DDPM, n, "leading") == [*leading, -1.0]
    linspace = np.linspace(0, 999, n)[::-1] if n > 1 else [999.0]
    np.testing.assert_allclose(make_times(DDPM, n, "linspace"), [*linspace, -1.0], rtol=1e-12, atol=1e-10)
    trailing = np.array([1000 * k / n for k in range(n, 0, -1)]) - 1
    np.testing.assert_allclose(make_times(DDPM, n, "trailing"), [*trailing, -1.0], rtol=1e-12)


def test_discrete_conventions_by_hand():
    assert make_times(DDPM, 4, "leading") == [750, 500, 250, 0, -1]
    assert make_times(DDPM, 4, "trailing") == [999, 749, 499, 249, -1]
    assert make_times(DDPM, 4, "linspace") == pytest.approx([999, 666, 333, 0, -1])
    assert make_times(DDPM, 4, "leading", "min") == [800, 600, 400, 200, 0]
    assert make_times(DDPM, 4, "linspace", "min") == pytest.approx([999, 749.25, 499.5, 249.75, 0])


def test_conventions_on_a_continuous_clock():
    process = Flow()
    scale = (1 - 1e-3) / 999
    assert make_times(process, 4, "trailing") == pytest.approx([1e-3 + scale * i for i in (999, 749, 499, 249)] + [0])


def test_a_start_at_pure_noise_is_spaced_from_just_below():
    process = Flow()
    times = make_times(process, 5, "log-snr", "min")
    assert (times[0], times[-1]) == (1.0, process.t_min)
    level = [process.log_snr(t) for t in times[1:]]
    np.testing.assert_allclose(np.diff(level), np.diff(level)[0], rtol=1e-6)


@sampled("rule, process", RULES, PROCESSES)
def test_a_share_begins_at_one_level_whatever_the_steps(rule, process):
    """Exactly one, which rises with the share, and every count of steps from there to either end."""
    firsts = []
    for share in (0.001, 0.3, 0.99):
        grids = [make_times(process, n, rule, end, share) for n in (1, 2, 7, 50) for end in ("zero", "min")]
        assert [len(grid) - 1 for grid in grids] == [1, 1, 2, 2, 7, 7, 50, 50]
        assert len({grid[0] for grid in grids}) == 1
        firsts.append(grids[0][0])
    assert firsts == sorted(set(firsts)) and process.t_min < firsts[0] and firsts[-1] < process.t_max


def test_a_share_of_a_function_and_of_a_list():
    def squares(process, steps, end):
        return [process.t_max * (1 - k / steps) ** 2 for k in range(steps + (end == "zero"))] + (
            [] if end == "zero" else [process.t_min]
        )

    for n in (1, 3, 10):
        times = make_times(Flow(), n, squares, "zero", 0.5)
        assert times == pytest.approx([0.25 * (1 - k / n) ** 2 for k in range(n + 1)], abs=1e-3)
    assert make_times(Flow(), 4, [1, 0.5, 0.25, 0.1, 0.0], share=0.625) == pytest.approx([0.375, 0.25, 0.1, 0.0])
    with pytest.raises(ValueError, match="share must be above 0 and at most 1, got 0"):
        make_times(Flow(), 4, "uniform", "zero", 0)

    def only_three(process, steps, end):
        raise ValueError("no")

    with pytest.raises(ValueError, match="the rule 'only_three' cannot begin in the middle here"):
        make_times(Flow(), 4, only_three, "zero", 0.5)


def test_explicit_lists_and_functions():
    assert make_times(VP(), 99, [1, 0.5, 0.25]) == [1.0, 0.5, 0.25]
    assert make_times(VP(), 2, np.array([0.9, 0.5, 0.0])) == [0.9, 0.5, 0.0]
    assert make_times(VP(), 3, lambda process, steps, end: rules.karras(process, steps, end, rho=3.0))[0] == 1.0


@pytest.mark.parametrize(
    "times,message",
    [
        ([1.0], r"at least two times, got \[1.0\]"),
        ([], "at least two times"),
        ([1.0, 0.5, 0.5], r"times must decrease strictly: times\[1\] = 0.5 is followed by 0.5"),
        ([0.1, 0.9], r"times\[0\] = 0.1 is followed by 0.9"),
        ([1.0, math.nan, 0.1], "decrease strictly"),
        ([math.inf, 1.0], "times must be finite"),
        ([1.5, 0.5], "times must lie between 0 and 1, got 1.5 ... 0.5"),
        ([1.0, -0.5], "times must lie between 0 and 1"),
    ],
)
def test_bad_lists(times, message):
    with pytest.raises(ValueError, match=message):
        check_times(VP(), times)
    with pytest.raises(ValueError, match=message):
        make_times(VP(), 2, times)


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, "abc", None, math.nan])
def test_bad_steps(steps):
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1, got"):
        make_times(VP(), steps, "karras")


def test_numbers_that_are_whole_will_do():
    assert (
        make_times(VP(), np.int64(3), "uniform") == make_times(VP(), 3.0, "uniform") == make_times(VP(), 3, "uniform")
    )


def test_bad_names_and_rules():
    with pytest.raises(ValueError, match="unknown timestep rule 'karas': did you mean 'karras'"):
        make_times(VP(), 4, "karas")
    with pytest.raises(ValueError, match="unknown timestep rule 'ddim'"):
        make_times(VP(), 4, "ddim")
    with pytest.raises(ValueError, match="unknown end 'clean': a grid ends at 'zero'"):
        make_times(VP(), 4, "karras", "clean")
    with pytest.raises(ValueError, match="the rule 'leading' cannot place 50 steps here: times must decrease strictly"):
        make_times(Discrete.linear(steps=40), 50, "leading")
    with pytest.raises(ValueError, match="the rule 'trailing' cannot place 40 steps here: it gives 40 times, not 41"):
        make_times(Discrete.linear(steps=40), 40, "trailing", "min")
    with pytest.raises(ValueError, match="the rule 'short' cannot place 4 steps here: it gives 3 times, not 5"):

        def short(process, steps, end):
            return [1.0, 0.5, 0.0]

        make_times(VP(), 4, short)


@pytest.mark.parametrize("process", [VP(), Flow()], ids=lambda p: p.name)
def test_no_rule_in_time_evaluates_below_the_smallest_time(process):
    """A network was trained down to t_min: only the end of the grid may lie below it."""
    for steps in (5, 31, 50, 200):
        for rule in ("uniform", "quadratic", "beta"):
            assert make_times(process, steps, rule)[-2] >= process.t_min * (1 - 1e-12)
