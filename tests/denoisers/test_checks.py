"""A wrong convention is found and the right one is named. Method: check-denoiser."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sampled import sampled

import fewstep as fs
from fewstep.core.methods import find
from fewstep.core.prediction import KINDS, expand
from fewstep.data.digits import load
from fewstep.denoisers.checks import check_denoiser
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.denoisers.wrap import clock, input_scale, wrap
from fewstep.processes.discrete import Discrete
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP

F64 = torch.float64
PROCESSES = {"vp": VP(), "discrete": Discrete.linear(), "edm": EDM(), "flow": Flow()}
# Times on other scales, and the clock in its own units.
OTHERS = {
    "unit": lambda p, t: t / p.t_max,
    "thousands": lambda p, t: 999 * t / p.t_max,
    "reversed": lambda p, t: p.t_max - t,
}


def mixture(process):
    """Six components in twelve dimensions, standard deviations 0.05 to 0.4."""
    generator = torch.Generator().manual_seed(0)
    means = 0.5 * torch.randn(6, 12, generator=generator, dtype=F64)
    std = 0.05 + 0.35 * torch.rand(6, 12, generator=generator, dtype=F64)
    basis, _ = torch.linalg.qr(torch.randn(6, 12, 12, generator=generator, dtype=F64))
    return GaussianMixture(torch.ones(6), means, basis @ torch.diag_embed(std**2) @ basis.mT, process)


def inverse(process, name, u):
    """The process time of what a callable is given; as a network would, it takes anything for some time."""
    if name in OTHERS:
        scale = {"unit": process.t_max, "thousands": process.t_max / 999}
        return u * scale[name] if name in scale else process.t_max - u
    if name == "t":
        return u
    log_snr = {"sigma": lambda: -u.clamp_min(1e-9).log(), "log_sigma": lambda: -u, "log_snr": lambda: u}.get(
        name, lambda: -4 * u
    )()
    return process.time(log_snr.clamp(-20, 20))


def network(exact, kind, time="t", scale="state"):
    """The exact denoiser as a function of the time and input that this convention gives it."""
    process = exact.process
    factor = input_scale(process, scale, 0.5)

    def f(x, u):
        t = inverse(process, time, u.double()).clamp(process.t_min, process.t_max)
        value = exact(x / expand(factor(t), x), t).to(kind.removeprefix("-"))
        return -value if kind.startswith("-") else value

    return f


def stated(exact, f, kind, time="t", scale="state"):
    own = OTHERS.get(time)
    how = (lambda t: own(exact.process, t)) if own else time
    return wrap(f, exact.process, kind, exact.shape, time=how, scale_input=scale)


def verdict(process, truth, said, n=128):
    """The report on a function of the convention `truth` that is said to be of the convention `said`."""
    exact = mixture(process)
    return check_denoiser(stated(exact, network(exact, *truth), *said), exact.sample(n)), exact


def same(process, a, b):
    """Whether two kinds are one under this process."""
    return {a, b} in (
        [{"velocity", "flow"}, {"-velocity", "-flow"}]
        if process.name == "flow"
        else [{"velocity", "eps"}, {"-velocity", "-eps"}]
        if process.name == "edm"
        else []
    )


def test_it_is_registered():
    assert find("check-denoiser") is check_denoiser


@sampled("kind, process", KINDS, list(PROCESSES.values()))
def test_no_right_one_is_accused(process, kind):
    report, _ = verdict(process, (kind,), (kind,))
    assert report.ok and not report.advice, str(report)
    assert report.raise_if_wrong() is report and str(report).startswith("fits: Wrapped")


def rows(pairs: list[tuple[str, ...]]) -> list[Any]:
    """The first two of each process by default, the others slow."""
    found = []
    for i, pair in enumerate(pairs):
        before = sum(other[0] == pair[0] for other in pairs[:i])
        found.append(pytest.param(*pair, marks=[] if before < 2 else [pytest.mark.slow]))
    return found


KIND_PAIRS = [
    ("vp", "v", "eps"), ("vp", "eps", "v"), ("vp", "x0", "eps"), ("discrete", "eps", "x0"),
    ("discrete", "score", "eps"), ("edm", "x0", "eps"), ("edm", "eps", "v"), ("flow", "-velocity", "velocity"),
    ("flow", "eps", "flow"),
    ("flow", "velocity", "eps"), ("vp", "-eps", "eps"), ("edm", "eps", "score"),
]  # fmt: skip


@pytest.mark.parametrize("name, truth, said", rows(KIND_PAIRS))
def test_a_wrong_kind_is_named(name, truth, said):
    report, _ = verdict(PROCESSES[name], (truth,), (said,))
    assert not report.ok and report.advice.startswith("looks like predicts="), str(report)
    named = report.advice.split("'")[1]
    assert named == truth or same(PROCESSES[name], named, truth), report.advice
    with pytest.raises(ValueError, match="looks like"):
        report.raise_if_wrong()


TIME_PAIRS = [
    ("vp", "reversed", "t", "lambda t: 1 - t"), ("vp", "thousands", "t", "lambda t: 999 * t"),
    ("discrete", "unit", "t", "lambda t: t / 999"), ("discrete", "sigma", "t", "time='sigma'"),
    ("edm", "c_noise", "t", "time='c_noise'"), ("edm", "log_sigma", "c_noise", "time='log_sigma'"),
    ("vp", "t", "sigma", "time='t'"), ("flow", "thousands", "t", "lambda t: 999 * t"),
    ("vp", "log_snr", "log_sigma", "time='log_snr'"), ("flow", "reversed", "t", "lambda t: 1 - t"),
]  # fmt: skip


@pytest.mark.parametrize("name, truth, said, text", rows(TIME_PAIRS))
def test_a_wrong_time_is_named(name, truth, said, text):
    report, _ = verdict(PROCESSES[name], ("eps", truth), ("eps", said))
    assert not report.ok and text in report.advice and "predicts='eps'" in report.advice, str(report)


@pytest.mark.parametrize(
    "name, truth, said",
    [("edm", "vp", "state"), ("edm", "edm", "state"), ("vp", "alpha", "state"), ("edm", "state", "vp")],
)
def test_a_wrong_input_scale_is_named(name, truth, said):
    report, _ = verdict(PROCESSES[name], ("eps", "t", truth), ("eps", "t", said))
    wanted = f"scale_input={truth!r}"
    assert not report.ok and wanted in report.advice, str(report)


def test_two_mistakes_at_once_are_named():
    report, _ = verdict(VP(), ("v", "reversed"), ("eps", "t"))
    assert "predicts='v', time=lambda t: 1 - t" in report.advice, str(report)


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_every_pair_of_kinds(process):
    kinds = [*KINDS, *(f"-{kind}" for kind in KINDS)]
    for truth in kinds:
        for said in kinds:
            report, _ = verdict(process, (truth,), (said,))
            if truth == said or same(process, truth, said):
                assert report.ok, (truth, said, str(report))
            else:
                named = report.advice.split("'")[1]
                assert not report.ok and (named == truth or same(process, named, truth)), (truth, said, str(report))


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_every_pair_of_times(process):
    times = ["t", "sigma", "log_sigma", "log_snr", "c_noise", *OTHERS]
    levels = torch.linspace(process.t_min, process.t_max, 7, dtype=F64)[:-1]

    def given(name):
        return OTHERS[name](process, levels) if name in OTHERS else clock(process, name)(levels)

    for truth in times:
        for said in times:
            equal = torch.allclose(given(truth), given(said), rtol=1e-3)
            report, _ = verdict(process, ("eps", truth), ("eps", said))
            assert report.ok == equal, (truth, said, str(report))


def digits():
    """The embedded model as a function of EDM's state, sigma and a label, and its data."""
    model = fs.load("digits")
    return model, load("validation")


def test_the_embedded_model_is_not_accused():
    model, (images, _) = digits()
    report = check_denoiser(model, images[:32])
    assert report.ok, str(report)
    assert report.conventions[0][1] < 0.7


@pytest.mark.slow
def test_the_embedded_model_with_its_labels_is_not_accused():
    model, (images, labels) = digits()
    assert check_denoiser(model, images[:32], condition={"label": labels[:32]}, seed=3).ok


@pytest.mark.slow
def test_a_trained_network_told_wrongly():
    base, (images, _) = digits()

    def eps_at_999(x, t):  # an eps network under VP that wants its time from 0 to 999
        t = (t / 999).double()
        alpha, sigma = (expand(c, x) for c in (VP().alpha(t), VP().sigma(t)))
        x0 = base(x / alpha, VP().sigma(t) / VP().alpha(t), label=torch.full((len(x),), 10)).x0
        return (x - alpha * x0) / sigma

    model = wrap(eps_at_999, VP(), "v", (1, 8, 8))
    report = check_denoiser(model, images[:32])
    assert not report.ok and "predicts='eps', time=lambda t: 999 * t:" in report.advice, str(report)
    model = wrap(eps_at_999, VP(), "eps", (1, 8, 8), time=lambda t: 999 * t)
    assert check_denoiser(model, images[:32]).ok


SLOWLY = [pytest.param(kind, "eps", marks=pytest.mark.slow) for kind in ("x0", "-eps")]


@pytest.mark.parametrize("truth, said", [("eps", "eps"), ("v", "eps"), *SLOWLY])
def test_without_data(truth, said):
    exact = mixture(VP())
    report = check_denoiser(stated(exact, network(exact, truth), said))
    assert report.undecided and "give data" in report.undecided[0]
    assert report.ok == (truth == said), str(report)
    if truth != said:
        assert f"looks like predicts={truth!r}" in report.advice, str(report)


def test_an_untrained_network_fits_no_convention():
    torch.manual_seed(0)
    model = wrap(torch.nn.Sequential(torch.nn.Linear(12, 12)).forward, VP())
    model.function, inner = (lambda x, t: inner(x)), model.function
    report = check_denoiser(model, mixture(VP()).sample(64).float())
    assert not report.ok and report.advice.startswith("no convention fits") and "trained" in report.advice


def test_training_mode_comes_back():
    exact = mixture(VP())
    check_denoiser(exact.train(), exact.sample(16))
    assert exact.training


def test_bad_input():
    exact = mixture(VP())
    with pytest.raises(ValueError, match="at least 16 samples, got 3"):
        check_denoiser(exact, exact.sample(3))
    with pytest.raises(ValueError, match="float tensor"):
        check_denoiser(exact, torch.zeros(20, 12, dtype=torch.long))
    with pytest.raises(ValueError, match="do not fit the model"):
        check_denoiser(exact, torch.zeros(20, 5))
    with pytest.raises(ValueError, match="any shape: give data"):
        check_denoiser(wrap(lambda x, t: x, VP()))
    assert math.isfinite(check_denoiser(exact, exact.sample(20)).conventions[0][1])
