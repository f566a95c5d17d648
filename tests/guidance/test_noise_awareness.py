"""Noise-awareness guidance, "nag": against Bayes' rule, in its three ways to an answer without the noise level."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import fewstep as fs
from fewstep.conditions.label import Label
from fewstep.core.memory import Memory
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.denoisers.noise_free import NoiseFree
from fewstep.guidance.noise_awareness import grad_log_level, hiding, nag
from fewstep.networks.mlp import MLP
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.training.noise_classifier import NoiseClassifier, exact_levels, noise_times

F64 = torch.float64
KINDS = ["x0", "eps", "v", "score"]


@pytest.fixture
def x():
    return torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=F64)


def levels(process, count: int = 12):
    low, high = max(process.log_snr(process.t_max), -4.0), min(process.log_snr(process.t_min), 4.0)
    return process.time(torch.linspace(high, low, count, dtype=F64))


def log_posterior(mixture, times, x, t):
    """log p(t | x) of a time beside the levels, up to what does not depend on x."""
    density = torch.stack([mixture.log_likelihood(x, level) for level in times], 1)
    return mixture.log_likelihood(x, t) - density.logsumexp(1)


@pytest.mark.parametrize("process", [VP(), Flow()], ids=["vp", "flow"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_adds_the_gradient_of_the_noise_levels_posterior(make_mixture, x, process, kind):
    mixture = make_mixture(process, predicts="eps" if kind == "eps" else "x0")
    times, t = levels(process), torch.tensor(0.37, dtype=F64)
    guided = nag(mixture, 0.7, null=NoiseFree(mixture, times))
    here = x.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(log_posterior(mixture, times, here, t).sum(), here)
    change = guided(x, t).to(kind) - mixture(x, t).to(kind)
    by_score = {"x0": process.sigma(t) ** 2 / process.alpha(t), "eps": -process.sigma(t), "score": 1.0}
    by_score["v"] = -process.sigma(t) * by_score["x0"] + process.alpha(t) * by_score["eps"]
    torch.testing.assert_close(change, 0.7 * by_score[kind] * slope, rtol=1e-8, atol=1e-10)


def test_a_classifiers_gradient_is_the_same_at_its_levels_and_lies_between_them(make_mixture, x):
    process = EDM()  # alpha is 1, so that x / alpha is the state
    mixture, times = make_mixture(process), noise_times(process, 9, 0.1, 5.0)
    logits = exact_levels(mixture, times)

    def classifier(y: torch.Tensor) -> torch.Tensor:
        return logits(y)

    classifier.times, classifier.process = times, process  # type: ignore[attr-defined]
    exact = nag(mixture, 1.0, null=NoiseFree(mixture, times))
    by_classifier = nag(mixture, 1.0, classifier=classifier)
    for t in times[1:-1]:
        time = torch.tensor(t, dtype=F64)
        torch.testing.assert_close(by_classifier(x, time).value, exact(x, time).value, rtol=1e-8, atol=1e-9)
    snr = [process.log_snr(t) for t in times]
    ends, middle = (torch.tensor(times[k], dtype=F64) for k in (3, 4)), process.time((snr[3] + snr[4]) / 2)
    a, b = (grad_log_level(classifier, process, snr, x, t) for t in ends)
    between = grad_log_level(classifier, process, snr, x, torch.tensor(middle, dtype=F64))
    torch.testing.assert_close(between, (a + b) / 2)
    each = torch.tensor([times[3], times[4], middle, 60.0, 0.01, times[0]], dtype=F64)
    rows = by_classifier(x, each).value - mixture(x, each).value
    assert bool((rows[3:5] == 0).all()) and bool((rows[[0, 1, 2, 5]] != 0).all())  # beyond its times it is off


def test_without_a_level_it_goes_through_a_module_and_its_gradient(x):
    process = VP()
    model = NetworkDenoiser(MLP((2,)), process, "v", (2,))
    classifier = NoiseClassifier(process, noise_times(process, 5, 0.1, 5.0), (2,), width=8).double()
    guided = nag(model.double(), 1.0, classifier=classifier)
    assert guided.classifier is classifier
    here = x.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(guided(here, torch.tensor(0.5, dtype=F64)).value.sum(), here)
    assert bool((slope != 0).all())
    with torch.no_grad():
        assert torch.equal(
            copy.deepcopy(guided)(x, torch.tensor(0.5, dtype=F64)).value, guided(x, torch.tensor(0.5, dtype=F64)).value
        )


def trained(**options: Any) -> NetworkDenoiser:
    torch.manual_seed(0)
    model = NetworkDenoiser(MLP((2,), classes=3), VP(), "v", (2,), {"label": Label(3)}, noise_dropout=0.1, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.double().eval()


def test_a_network_with_its_noise_level_hidden_is_the_weak_one(x):
    model, t, label = trained(), torch.tensor(0.4, dtype=F64), torch.tensor([0, 1, 2, 3, 3, 1])
    assert hiding(model) == ["network.embedding"]
    null = model.network(x, None, label)
    value = model(x, t, label=label).value
    torch.testing.assert_close(nag(model, 0.5)(x, t, label=label).value, value + 0.5 * (value - null))
    memory = Memory(6, (0.4,), 0.0)
    memory.advance()
    in_a_run = nag(model, 0.5)(x, t, memory=memory, label=label).value
    assert torch.equal(in_a_run, nag(model, 0.5)(x, t, label=label).value) and memory.seen == 12


def test_it_adds_to_classifier_free_guidance(x):
    model, t, label = trained(), torch.tensor(0.4, dtype=F64), torch.tensor([0, 1, 2, 0, 2, 1])
    both = fs.guide(fs.guide(model, "cfg", scale=2.0), "nag", scale=0.5)
    given, empty = model(x, t, label=label).value, model(x, t, label=torch.full((6,), 3)).value
    null = model.network(x, None, label)
    torch.testing.assert_close(both(x, t, label=label).value, given + (given - empty) + 0.5 * (given - null))


@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=["vp", "edm", "flow"])
def test_it_is_finite_where_there_is_nothing_or_all_of_the_noise(make_mixture, x, process):
    mixture = make_mixture(process)
    guided = nag(mixture, 1.0, null=NoiseFree(mixture, levels(process)))
    for t in (process.t_max, process.t_min, process.t_zero):
        time = torch.tensor(t, dtype=F64)
        answer, base = guided(x, time), mixture(x, time)
        assert bool(torch.isfinite(answer.value).all())
        if not process.sigma(t) or not process.alpha(t):
            torch.testing.assert_close(answer.value, base.value, atol=1e-6, rtol=1e-6)


def test_bad_input(make_mixture):
    mixture = make_mixture(VP())
    null = NoiseFree(mixture, levels(VP()))
    with pytest.raises(ValueError, match="nag needs an answer without the noise level: a network trained with noise_d"):
        nag(mixture)
    with pytest.raises(ValueError, match="null or classifier, not both"):
        nag(mixture, null=null, classifier=lambda y: y)
    with pytest.raises(ValueError, match="null must be of the model's process"):
        nag(make_mixture(EDM()), null=null)
    with pytest.raises(ValueError, match=r"null must be of the model's shape, \(3,\), got \(2,\)"):
        nag(make_mixture(VP(), (3,)), null=null)
    with pytest.raises(ValueError, match="classifier needs its times"):
        nag(mixture, classifier=lambda y: y)
    with pytest.raises(ValueError, match="the noise-level classifier is for"):
        nag(mixture, classifier=NoiseClassifier(EDM(), (5.0, 1.0), (2,)))
    with pytest.raises(ValueError, match="the guidance scale must be at least 0"):
        nag(mixture, -1.0, null=null)
