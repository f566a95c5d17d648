"""From names to plans: `fs.plan` and its messages."""

from __future__ import annotations

import math

import pytest
from sampled import sampled

from fewstep.core.plan import Plan
from fewstep.processes.cosine import Cosine
from fewstep.processes.discrete import Discrete
from fewstep.processes.flow import Flow
from fewstep.processes.shifted import Shifted
from fewstep.processes.ve import EDM, VE
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan, solver_names
from fewstep.sampling.ddim import ddim


def test_defaults():
    made = plan(VP(), steps=6)
    assert (made.about["solver"], made.about["timesteps"]) == ("universal", "universal")
    assert (made.nfe, len(made.times)) == (6, 7)
    made = plan(VP(), "dpmpp-3m", steps=6)
    assert (made.about["timesteps"], made.nfe, len(made.times)) == ("log-snr", 6, 7)
    assert made.times[-1] == VP().t_zero and plan(VP(), steps=6, end="min").times[-1] == VP().t_min


@sampled("name, process", solver_names(), [VP(), Flow()])
def test_nfe_finds_the_largest_plan(name, process):
    counts = {steps: plan(process, name, steps).nfe for steps in range(1, 14)}
    assert list(counts.values()) == sorted(counts.values())
    for nfe in (1, 2, 3, 4, 7, 12):
        best = max((steps for steps, count in counts.items() if count <= nfe), default=None)
        if best is None:
            with pytest.raises(ValueError, match=f"'{name}' needs at least {counts[1]} evaluations, got nfe={nfe}"):
                plan(process, name, nfe=nfe)
        else:
            made = plan(process, name, nfe=nfe)
            assert (made.about["steps"], made.nfe) == (best, counts[best])


def test_nfe_with_options_rules_and_strength():
    made = plan(EDM(), "heun", nfe=9, timesteps="karras", churn=3.0)
    assert made.nfe == 9 and made.about["options"] == {"churn": 3.0}
    assert plan(VP(), "ddim", nfe=5, strength=0.5).nfe == 5
    assert plan(Discrete.linear(steps=4), "ddim", nfe=4, timesteps="leading").nfe == 4  # the rule can place no more


def test_a_solver_that_needs_one_evaluation_in_all_ends():
    def jump(trace, process, times):
        return trace.evaluate(trace.start(), times[0]).x0

    made = plan(VP(), jump, nfe=3)
    assert (made.nfe, made.name) == (1, "jump")


def test_an_order_in_the_name_is_the_option():
    assert plan(VP(), "unipc-3", 6).ops == plan(VP(), "unipc", 6, order=3).ops
    assert plan(VP(), "unipc-3", 6).ops != plan(VP(), "unipc-2", 6).ops
    assert plan(VP(), "unipc-3", 6, variant="bh1").about["options"] == {"variant": "bh1"}


def test_a_solver_as_a_function():
    assert plan(VP(), ddim, 4).ops == plan(VP(), "ddim", 4).ops
    assert plan(VP(), ddim, 4, eta=0.5).ops == plan(VP(), "ddim", 4, eta=0.5).ops


def test_explicit_times():
    made = plan(VP(), "ddim", timesteps=[0.8, 0.5, 0.1])
    assert made.times == (0.8, 0.5, 0.1) and made.about["timesteps"] == "explicit" and made.nfe == 2
    assert plan(VP(), "ddim", 2, [0.8, 0.5, 0.1]) == made


def test_strength_is_the_noise_level_of_the_start():
    """The same for every number of steps, all below it; in time for `uniform`, in log-SNR for `log-snr`."""
    process = VP()
    low, high = process.log_snr(process.t_max), process.log_snr(process.t_min)
    for strength in (0.01, 0.31, 0.5, 0.999):
        level = process.time(high + strength * (low - high))
        for steps in (1, 2, 10):
            made = plan(process, "dpmpp-2m", steps, strength=strength)
            assert made.times[0] == level and made.nfe == steps
            assert made.start == (process.alpha(level), process.sigma(level))
    share = process.t_min + 0.4 * (process.t_max - process.t_min)
    assert plan(process, "ddim", 7, "uniform", strength=0.4).times[0] == share
    # Where the share is a whole number of steps of a larger grid, those are the steps.
    for rule in ("log-snr", "karras", "uniform", "quadratic", "beta"):
        whole = plan(process, "ddim", 20, rule, end="min").times
        assert plan(process, "ddim", 5, rule, strength=0.25, end="min").times == pytest.approx(whole[15:])
    assert plan(process, "ddim", 10, strength=1.0).times == plan(process, "ddim", 10).times


def test_strength_with_a_shift_and_with_explicit_times():
    for steps in (1, 6):  # s t / (1 + (s - 1) t) at t = 0.5
        made = plan(Flow(), "euler", steps, "uniform", shift=3.0, strength=0.5)
        assert made.nfe == steps and made.times[0] == pytest.approx(0.75, abs=1e-3)
    made = plan(VP(), "ddim", timesteps=[0.8, 0.6, 0.2, 0.0], strength=0.5)
    assert made.times == pytest.approx((0.4, 0.2, 0.0)) and made.about["steps"] == 2
    assert plan(VP(), "ddim", timesteps=[0.8, 0.6, 0.3, 0.0], strength=2 / 3).times == pytest.approx((0.6, 0.3, 0.0))


def test_a_shift_is_the_flows_formula_applied_once():
    s, n = 3.0, 8
    made = plan(Flow(), "euler", n, "uniform", shift=s)
    expected = [s * t / (1 + (s - 1) * t) for t in (1 - k / n for k in range(n + 1))]
    assert made.times == pytest.approx(expected, abs=1e-12)
    assert made.process == Flow().config() and made.about["shift"] == s
    with pytest.raises(ValueError, match="the process is already shifted by 3.0: a shift is applied exactly once"):
        plan(Shifted(Flow(), 3.0), "euler", n, shift=2.0)
    # A process that is shifted already is sampled on its own clock.
    assert plan(Shifted(Flow(), s), "euler", n, "uniform").times == pytest.approx([1 - k / n for k in range(n + 1)])
    own = plan(Shifted(Flow(), s), "ddim", n, "uniform")
    assert [e.scales[1] for e in own.evaluations] == pytest.approx(expected[:-1], abs=1e-12)


@pytest.mark.parametrize(
    "arguments,options,message",
    [
        (("dpm++2m", 4), {}, r"unknown solver 'dpm\+\+2m': did you mean 'dpmpp-2m'"),
        (("karras", 4), {}, "unknown solver 'karras'"),
        (("ddim", 4, "karas"), {}, "unknown timestep rule 'karas': did you mean 'karras'"),
        (("ddim", 4), {"etta": 1.0}, "unknown option of the solver 'ddim' 'etta': did you mean 'eta'"),
        (("euler", 4), {"eta": 1.0}, "the solver 'euler' has no options, got 'eta'"),
        (("ddim", 4), {"eta": 1.5}, "eta must be between 0 and 1, got 1.5"),
        (("heun", 4), {"churn": -1.0}, "churn must not be negative, got -1.0"),
        (("dpmpp-2m-sde", 4), {"eta": -1.0}, "eta must not be negative, got -1.0"),
        (("dpm-solver-4", 4), {}, "dpm-solver has order 1, 2 or 3, got 4"),
        (("unipc-0", 4), {}, "the order of 'unipc' must be at least 1, got 0"),
        (("unipc", 4), {"order": 0}, "the order must be at least 1, got 0"),
        (("ab", 4), {"order": -2}, "the order must be at least 1, got -2"),
        (("unipc-3", 4), {"order": 2}, "the order is in the name already: 'unipc-3', got order=2 as well"),
        (("unipc", 4), {"variant": "bh3"}, "unknown UniPC variant 'bh3': did you mean 'bh"),
        (("ddim",), {}, "give either steps or nfe"),
        (("ddim", 4), {"nfe": 4}, "give either steps or nfe"),
        (("ddim", 0), {}, "steps must be a whole number of at least 1, got 0"),
        (("ddim",), {"nfe": 0}, "nfe must be a whole number of at least 1, got 0"),
        (("ddim",), {"nfe": 2.5}, "nfe must be a whole number, got 2.5"),
        (("ddim", 4), {"strength": 0.0}, "strength must be above 0 and at most 1, got 0.0"),
        (("ddim", 4), {"strength": math.nan}, "strength must be above 0 and at most 1, got nan"),
        (("ddim", 4), {"shift": -2.0}, "the shift must be a positive number, got -2.0"),
        (("ddim", 4), {"end": "max"}, "unknown end 'max'"),
        (("ddim", 3, [1.0, 0.5]), {}, "2 times are 1 steps, but steps=3"),
        (("ddim", None, [1.0, 0.5]), {"nfe": 1}, "explicit times fix the evaluations"),
        (("ddim", None, [0.5, 1.0]), {}, "times must decrease strictly"),
        (("ddim", None, [1.0, 0.5]), {"shift": 3.0}, "explicit times are used as they stand: shift them yourself"),
    ],
)
def test_messages(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        plan(VP(), *arguments, **options)


def test_a_plan_is_a_plan():
    assert isinstance(plan(VP(), "ddim", 2), Plan)


@pytest.mark.parametrize("shift", [0.5, 3.0])
def test_a_shift_works_on_every_process_and_stays_inside_it(shift):
    """The grid starts and ends where the process does; in between it is noisier on the whole for a shift above 1."""
    for process in (VP(), Cosine(), VE(), EDM(), Flow(), Discrete.linear()):
        for end in ("zero", "min"):
            plain = plan(process, "ddim", 20, "uniform", end=end).times
            moved = plan(process, "ddim", 20, "uniform", end=end, shift=shift).times
            assert moved[0] == process.t_max and moved[-1] == plain[-1]
            change = [process.log_snr(a) - process.log_snr(b) for a, b in zip(moved[1:-1], plain[1:-1], strict=True)]
            total = sum(change) * (1 if shift < 1 else -1)
            # Equal steps in sigma (EDM) have no scale, so there a shift of the clock between fixed ends is no change.
            assert total > -1e-9 if process.name == "edm" else total > 0, (process.name, end)
