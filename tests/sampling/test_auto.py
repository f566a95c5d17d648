"""What is taken where no solver is named."""

from __future__ import annotations

import pytest
import torch

import fewstep as fs
from fewstep.processes.discrete import Discrete
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling import auto
from fewstep.sampling.sample import choose_plan
from fewstep.searching.zoo import mixture

F64 = torch.float64


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_the_concentration_of_a_gaussian_is_that_of_its_covariance(power, monkeypatch):
    monkeypatch.setattr(auto, "NOISES", 4000)
    monkeypatch.setattr(auto, "MEASURED_AT", -6.0)
    model = mixture(1, 16, 1, power, 1.0)
    model.process = EDM(sigma_max=1e4)
    c = model.variances[0].double()
    expected = 16 * float((c**2).sum() / c.sum() ** 2)
    assert auto.concentration(model) == pytest.approx(expected, rel=0.1)


def test_a_model_is_asked_once(monkeypatch):
    model = mixture(2, 4, 3, 1.0, 0.1)
    calls, forward = [], model.forward
    monkeypatch.setattr(model, "forward", lambda x, t, **c: (calls.append(len(x)), forward(x, t, **c))[1])
    assert auto.concentration(model) == auto.concentration(model)
    assert calls == [auto.NOISES]
    model.means.mul_(0.5)  # as training does
    auto.concentration(model)
    assert calls == [auto.NOISES] * 2


@pytest.mark.parametrize(
    "name, guided, spectrum",
    [("digits", 1, "mild"), ("shapes", 1, "steep"), ("digits", 2, "mild, guided"), ("shapes", 2, "steep, guided")],
)
def test_the_spectra_of_the_models_that_come_with_it(name, guided, spectrum):
    model = fs.load(name)
    assert auto.spectrum(fs.guide(model, "cfg", scale=2.0) if guided > 1 else model) == spectrum


def test_nothing_named_is_the_universal_plan_of_the_model():
    model = fs.load("digits")
    chosen = choose_plan(model, steps=5)
    assert chosen.about["solver"] == chosen.about["timesteps"] == "universal"
    assert chosen.about["options"] == {"data_std": model.data_std, "spectrum": "mild"}
    named = choose_plan(model, steps=5, solver="universal")
    assert named.to_json() == chosen.to_json()
    assert choose_plan(model, nfe=5).to_json() == chosen.to_json()
    assert choose_plan(model, steps=5, solver="auto").to_json() == chosen.to_json()
    assert choose_plan(model).nfe == 10


@pytest.mark.parametrize("n", [1, 4, 12, 13, 14, 16, 19, 21, 50])
@pytest.mark.parametrize("process", [EDM(), VP()], ids=lambda process: process.name)
def test_every_number_of_steps_has_a_plan(process, n):
    assert fs.plan(process, steps=n).nfe == n
    assert fs.plan(process, nfe=n).nfe == n


@pytest.mark.parametrize(
    "spectrum, n, taken",
    [
        ("mild", 13, auto.WHOLE),
        ("mild", 20, auto.WHOLE),
        ("mild", 21, auto.HAND_MADE[-1][1]),
        ("steep", 14, auto.WHOLE),
        ("steep", 16, auto.HAND_MADE[-1][1]),
        ("steep, guided", 16, auto.WHOLE_GUIDED),
        ("mild, guided", 14, auto.WHOLE_GUIDED),
        ("mild, guided", 30, auto.HAND_MADE[-1][1]),
    ],
)
def test_what_is_taken_where_no_row_is(spectrum, n, taken):
    made = fs.plan(VP(), steps=n, data_std=0.5, spectrum=spectrum)
    assert (made.about["solver"], made.about["timesteps"]) == taken and made.nfe == n


def test_a_solver_with_fresh_noise_by_the_number_of_steps():
    model = fs.load("digits")
    for n, (solver, rule) in ((3, auto.STOCHASTIC[0][1]), (5, auto.STOCHASTIC[1][1]), (11, auto.STOCHASTIC[2][1])):
        made = choose_plan(model, n, solver="auto-sde")
        assert (made.about["solver"], made.about["timesteps"], made.nfe) == (solver, rule, n)
        assert made.to_json() == fs.plan(model.process, "auto-sde", nfe=n).to_json()
    named = fs.plan(model.process, "auto-sde", steps=6, timesteps="karras")
    assert (named.about["solver"], named.about["timesteps"]) == ("dpmpp-2m-sde", "karras")
    noise = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0))
    made = choose_plan(model, 5, solver="auto-sde")
    assert not torch.equal(made(model, noise, seed=0, label=3), made(model, noise, seed=1, label=3))
    with pytest.raises(ValueError, match="option"):
        fs.plan(model.process, "auto-sde", steps=5, spectrum="mild")


def test_a_rule_or_a_strength_that_is_named_takes_a_hand_made_solver():
    model = fs.load("digits")
    for asked in ({"timesteps": "karras"}, {"timesteps": [80.0, 1.0, 0.0]}, {"strength": 0.5, "steps": 6}):
        asked = asked if "steps" in asked or isinstance(asked["timesteps"], list) else {**asked, "steps": 6}
        assert choose_plan(model, **asked).about["solver"] in {solver for _, (solver, _) in auto.HAND_MADE}


def test_a_restorer_takes_a_hand_made_solver():
    class Given(torch.nn.Module):
        def forward(self, x, t, y):
            return y

    from fewstep.conditions.picture import Picture

    model = fs.wrap(Given(), EDM(), predicts="x0", shape=(1, 4, 4), conditions={"y": Picture((1, 4, 4))})
    assert auto.facts(model) == {"spectrum": None}
    assert choose_plan(model, steps=5).about["solver"] == auto.HAND_MADE[0][1][0]


def test_a_process_that_does_not_begin_at_noise_takes_a_hand_made_solver():
    assert fs.plan(EDM(sigma_max=1.0), steps=5).about["solver"] != "universal"


def test_options_belong_to_a_solver():
    with pytest.raises(ValueError, match="option where no solver is named 'order'"):
        fs.plan(EDM(), steps=5, order=2)


def test_a_process_that_begins_late_has_rows_of_its_own():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    table = Discrete(tuple(torch.cumprod(1 - betas, 0).tolist()))  # of Stable Diffusion
    for spectrum in ("mild", "steep"):
        made = fs.plan(table, steps=5, data_std=1.0, spectrum=spectrum)
        assert made.about["options"]["spectrum"] == "late"
        assert fs.plan(VP(), steps=5, spectrum=spectrum).about["options"]["spectrum"] == spectrum
    guided = fs.plan(table, steps=5, data_std=1.0, spectrum="steep, guided")
    assert guided.about["options"]["spectrum"] == "late, guided"
