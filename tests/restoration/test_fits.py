"""Bad input of `fs.restore`: one line, at once, with what would do."""

from __future__ import annotations

import warnings

import pytest
import torch
from restoration.problems import D, half, mixture, wide

import fewstep as fs
from fewstep.core.prediction import Prediction
from fewstep.denoisers.calibration import Calibration
from fewstep.operators.noise import Gaussian, Poisson
from fewstep.processes.flow import Flow
from fewstep.restoration.ddrm import check_spectrum
from fewstep.restoration.fits import takers


@pytest.fixture(scope="module")
def model():
    made = mixture()
    fs.calibrate(made, made.sample(64, seed=1), n=64, levels=4)
    return made


def test_what_a_method_does_not_take_names_those_that_do(model):
    a, x = wide(), model.sample(2, seed=3).abs()
    y, same = a.measure(x, noise=0.1), fs.operators.Identity().fit((D,))
    magnitude = fs.operators.Magnitude(half()).fit((D,))
    counts = torch.round(10 * x) / 10
    other = Calibration("number", torch.tensor([0.0, 1.0]), torch.ones(2), Flow().config())
    small = Calibration("elements", torch.tensor([0.0, 1.0]), torch.ones(2, 3), model.process.config())
    linear = r"takes a linear operator, and magnitude\(inpaint:<6>\) is none: ads, daps, dps, .* take it"
    cases = [
        (lambda m=m: fs.restore(model, magnitude(x), magnitude, 0.1, method=m), f"'{m}' {linear}")
        for m in ("calibrated", "pigdm", "ddrm", "cdim", "particles", "pigdm-official")
    ]
    cases += [
        (lambda: fs.posterior(model, magnitude, 0.1, "pigdm"), linear),
        (lambda: fs.restore(model, y, a, method="tmpd"), "'tmpd' divides by the noise: without noise .*ddnm.* will do"),
        (lambda: fs.restore(model, x, same, method="dmid"), "'dmid' divides by the noise"),
        (
            lambda: fs.restore(model, counts, same, Poisson(10)),
            "'calibrated' takes Gaussian noise, not Poisson: .*daps",
        ),
        (lambda: fs.restore(model, x, same, Poisson(10), method="dps"), "whole counts of at least 0, .* off a whole"),
        (lambda: fs.restore(model, -counts - 1, same, Poisson(10), method="dps"), "whole counts .* got -"),
        (lambda: fs.restore(model, y, a, torch.full((4,), 0.1), method="dps"), r"noise of shape \(4,\) does not fit"),
        (lambda: fs.restore(model, y, a, torch.full((4,), 0.1)), r"noise of shape \(4,\) does not fit"),
        (lambda: fs.restore(model, y, a, 0.1, options={"calibration": other}), "of another process"),
        (lambda: fs.restore(model, y, a, 0.1, method="daps", options={"calibration": small}), "of another shape"),
        (lambda: fs.restore(model, y, a, 0.1, particles=1), "at least 2 particles, got 1"),
        (lambda: fs.restore(model, x, same, 0.1, method="ads", options={"budget": 0}), "budget must be at least 1"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


def test_an_operator_without_known_singular_values_says_its_size_and_the_limit():
    a = fs.operators.Linear(lambda x: 2 * x, (5000,)).fit((5000,))
    with pytest.raises(ValueError, match=r"'ddrm' needs the singular values of .* up to 4096 columns: it has 5000"):
        check_spectrum("ddrm", a, Gaussian(0.1))


def test_masks_that_see_nothing_are_refused():
    for make in (fs.operators.Inpaint, fs.operators.Fourier):
        with pytest.raises(ValueError, match="0 everywhere: nothing is measured|sees something, got 0 to 0"):
            make(torch.zeros(4))


def test_counts_behind_a_hole_do_not_matter(model):
    a, law = half(), Poisson(10.0, low=-0.55)
    y = a.measure(model.sample(2, seed=3), law)
    assert fs.restore(model, y, a, law, method="dps", nfe=3).shape == (2, D)


def test_those_that_take_something_are_read_from_the_cards():
    assert "dps" in takers("measures", "nonlinear") and "calibrated" not in takers("measures", "nonlinear")
    assert "blind-dps" not in takers("noise", "none")  # it needs a blur


def test_other_units_are_warned_of_in_both_readings():
    digits, a = fs.load("digits"), fs.operators.Downsample(2)
    y = a.measure(torch.rand(1, 1, 8, 8) * 2 - 1)
    with pytest.warns(
        UserWarning, match=r"in other units; the noise of 5 is 250.00% of the range .* 1.96% if it is in"
    ):
        fs.restore(digits, (y + 1) * 127.5, a, 5.0, method="diffpir", nfe=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fs.restore(digits, y, a, 0.05, method="ddnm", nfe=2)
        large = fs.operators.Fourier("random", acceleration=2)
        fs.restore(digits, large.measure(torch.ones(1, 1, 8, 8)), large, method="ddnm", nfe=2)


@pytest.mark.parametrize("kind", ["x0", "eps"])
def test_a_run_that_leaves_the_data_is_stopped_with_what_may_tame_it(model, kind):
    class Wild(type(model)):
        def forward(self, x, t, **condition):
            return Prediction(0 * x + 1e6, kind, x, t, self.process)

    wild = mixture()
    wild.__class__, wild.calibration = Wild, model.calibration
    y = wide().measure(model.sample(1, seed=3), noise=0.1)
    for method, way in (("calibrated", "pull.*: .*covariance"), ("dps", "a smaller zeta or method='calibrated'")):
        with pytest.raises(ValueError, match=rf"left the data's range at evaluation \d+ \(t = [\d.]+\).*{way}"):
            fs.restore(wild, y, wide(), 0.1, method=method, nfe=6)
