"""What holds for every method of restoration, which enter by their cards."""

from __future__ import annotations

import inspect

import pytest
import torch
from restoration.problems import D, half, latent, mixture

import fewstep as fs
from fewstep.core.methods import methods
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP

F64 = torch.float64
CARDS = {card.name: card for card in methods("restorer", room="restoration")}
# Those that ask for nothing but a model, a linear operator and noise.
PLAIN = [name for name, card in CARDS.items() if not card.facts.get("needs")]
PROCESSES = {"vp": VP(), "flow": Flow(), "edm": EDM()}
FORMS, MEASURES = {"moments", "chain"}, {"linear", "nonlinear", "spectrum"}
NOISES, STATES = {"none", "gaussian", "poisson"}, {"data", "latents"}


def problem(name, process=None):
    own = latent if CARDS[name].facts.get("states") == ("latents",) else mixture
    model, a = own(process), half()
    fs.calibrate(model, model.sample(200, seed=1), n=200, levels=6)
    return model, a, a.measure(model.sample(3, seed=3), noise=0.1)


def restored(name, model, a, y, noise=0.1, least=6, **how):
    nfe = max(2 * int(getattr(CARDS[name].load()(), "each", 3)), CARDS[name].facts.get("least", 0))
    return fs.restore(model, y, a, noise, method=name, nfe=max(nfe, least), **{"dtype": F64, **how})


@pytest.mark.parametrize("name", CARDS)
def test_the_card_says_what_it_takes(name):
    facts = CARDS[name].facts
    assert facts["form"] in FORMS and set(facts["measures"]) <= MEASURES and set(facts["noise"]) <= NOISES
    assert set(facts.get("states", ("data",))) <= STATES
    assert CARDS[name].claim and len(CARDS[name].claim) < 100
    made = CARDS[name].load()
    assert made.__dataclass_params__.frozen and (hasattr(made, "walk") or "__call__" in vars(made))
    assert all(parameter.default is not parameter.empty for parameter in inspect.signature(made).parameters.values())


@pytest.mark.parametrize("name", PLAIN)
def test_each_measurement_is_restored_alone(name):
    """Sample j of measurement i is the same whatever stands beside it and however many there are at once."""
    model, a, y = problem(name)
    together = restored(name, model, a, y, n=2)
    assert together.shape == (3, 2, D) and bool(torch.isfinite(together).all())
    assert torch.equal(together, restored(name, model, a, y, n=2))
    assert torch.allclose(restored(name, model, a, y[:1], n=2)[0], together[0], rtol=1e-8, atol=1e-8)
    assert not torch.equal(together, restored(name, model, a, y, n=2, seed=1)) or CARDS[name].facts.get("mode")


@pytest.mark.parametrize("name", PLAIN)
def test_it_runs_on_every_process_from_pure_noise(name):
    process = PROCESSES[sorted(PROCESSES)[len(name) % len(PROCESSES)]]
    model, a, y = problem(name, process)
    x = restored(name, model, a, y, dtype=torch.float32)
    assert x.dtype == torch.float32 and x.shape == (3, D)
    assert float(x.abs().max()) < 20


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", PLAIN)
def test_it_runs_on_every_process(name, process):
    model, a, y = problem(name, PROCESSES[process])
    assert float(restored(name, model, a, y).abs().max()) < 20


@pytest.mark.parametrize("name", PLAIN)
def test_it_knows_what_was_measured(name):
    """Nearer to what was measured than the prior's own samples are."""
    model, a, y = problem(name)
    x = restored(name, model, a, y, n=4, least=20)
    prior = fs.sample(model, 12, steps=6, solver="ddpm", dtype=F64).reshape(3, 4, D)

    def left(x):
        return float((a(x.flatten(0, 1)) - y.repeat_interleave(4, 0)).square().mean())

    assert left(x) < 0.5 * left(prior)


@pytest.mark.parametrize("name", PLAIN)
def test_noise_free_measurements_are_taken_or_refused(name):
    model, a, _ = problem(name)
    y = a.measure(model.sample(3, seed=3))
    if "none" in CARDS[name].facts["noise"]:
        assert bool(torch.isfinite(restored(name, model, a, y, noise=0.0)).all())
    else:
        with pytest.raises(ValueError, match="noise"):
            restored(name, model, a, y, noise=0.0)


@pytest.mark.parametrize("name", PLAIN)
def test_it_works_on_what_its_card_says_and_on_nothing_else(name):
    states = CARDS[name].facts.get("states", ("data",))
    for kind, made in (("data", mixture), ("latents", latent)):
        model, a = made(), half()
        y = a.measure(model.sample(2, seed=3), noise=0.1)
        if kind not in states:
            with pytest.raises(ValueError, match=f"samples are {kind}, and '{name}' is for .*dps.* restore with it"):
                restored(name, model, a, y)
        elif kind == "latents":
            x = restored(name, model, a, y, least=20)
            off, blind = ((a(each) - y).square().mean() for each in (x, model.sample(2)))
            assert x.shape == (2, D) and off < blind
