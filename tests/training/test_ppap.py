"""ppap: experts of a guide by noise range."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fewstep as fs
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.processes.ve import EDM
from fewstep.training.experts import range_cuts
from fewstep.training.noise_levels import NoiseLevels
from fewstep.training.ppap import GuideExperts, fit_experts, match, seen

LEVELS = NoiseLevels(EDM(), "log-normal", mean=0.0, std=1.0)
MODEL = GaussianMixture(torch.ones(2), torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), 0.09, EDM(), dtype=torch.float32)


def guide() -> nn.Module:
    """The exact classifier of the clean mixture in one layer, behind one that adapters may bend."""
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.7)
    return net


@pytest.fixture(scope="module")
def made():
    clean = guide()
    return clean, fit_experts(MODEL, clean, 3, 2, steps=40, samples=MODEL.sample(500, 1), levels=LEVELS, batch=128)


def test_the_experts_match_the_guide_better_than_the_guide_itself(made):
    clean, experts = made
    x0, generator = MODEL.sample(600, 2), torch.Generator().manual_seed(3)
    t = LEVELS.quantile((torch.arange(600) + 0.5) / 600)
    x = (x0 + t[:, None] * torch.randn(600, 2, generator=generator)).float()
    wanted = clean(x0).log_softmax(1)

    def divergence(logits: torch.Tensor) -> float:
        return float((wanted.exp() * (wanted - logits.log_softmax(1))).sum(1).mean())

    with torch.no_grad():
        assert divergence(experts.logits(x, t)) < 0.7 * divergence(clean(seen(EDM(), x, t, float(x0.std()))))


def test_each_time_has_its_own_expert(made):
    clean, experts = made
    assert experts.cuts.tolist() == pytest.approx(range_cuts(LEVELS, (1 / 3, 2 / 3)))
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    low, high = experts.cuts.tolist()
    t = torch.tensor([low / 2, low, (low + high) / 2, high * 3], dtype=torch.float64)
    with torch.no_grad():
        each = experts.logits(x, t)
        for row in range(4):
            torch.testing.assert_close(each[[row]], experts.logits(x[[row]], t[row]))
        for number, time in enumerate((low / 2, low, high)):  # a time at a cut goes to the noisier side
            net = copy.deepcopy(clean)
            for path, a, b in zip(experts.paths, experts.down, experts.up, strict=True):
                net.get_submodule(path).weight += b[number] @ a[number]
            now = torch.tensor(time, dtype=torch.float64)
            torch.testing.assert_close(experts.logits(x, now), net(seen(EDM(), x, now, experts.data_std)))
    assert experts.share == pytest.approx((2 * (2 + 8) + 2 * (8 + 2)) / 42)
    assert not any(parameter.requires_grad for parameter in experts.parameters())


def test_convolutions_have_the_weights_that_peft_gives():
    from fewstep.training.lora import add_lora

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Flatten(), nn.Linear(48, 2))

    base = Holder()
    plain, tuned = base.network, add_lora(base, 2)
    layers = {path: layer for path, layer in tuned.network.named_modules() if hasattr(layer, "lora_A")}
    for layer in layers.values():
        nn.init.normal_(layer.lora_B["default"].weight)
    adapters = {
        path: (layer.lora_A["default"].weight.detach()[None], layer.lora_B["default"].weight.detach()[None])
        for path, layer in layers.items()
    }
    experts = GuideExperts(plain, EDM(), [], adapters, 1.0)
    x, t = torch.randn(3, 2, 4, 4), torch.tensor(0.0)
    torch.testing.assert_close(experts.logits(x, t), tuned.network(x), rtol=1e-4, atol=1e-5)


def test_log_probability_is_of_the_class_and_nothing_without_one(made):
    _, experts = made
    x, t = torch.randn(4, 2), torch.tensor(0.7)
    label = torch.tensor([0, 1, 2, 1])
    found = experts.log_probability(x, t, label=label)
    wanted = experts.logits(x, t).log_softmax(1)
    torch.testing.assert_close(found[[0, 1, 3]], wanted[[0, 1, 3], [0, 1, 1]])
    assert found[2] == 0 and torch.equal(experts.log_probability(x, t), torch.zeros(4))
    here = x.requires_grad_(True)
    (slope,) = torch.autograd.grad(experts.log_probability(here, t, label=label).sum(), here)
    assert bool((slope[[0, 1, 3]] != 0).all()) and bool((slope[2] == 0).all())


def test_the_samples_are_the_models_own_and_the_run_follows_from_the_seed():
    clean = guide()
    state = torch.get_rng_state()
    one, two = (fit_experts(MODEL, clean, 2, 1, steps=2, samples=16, batch=4, seed=5) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.up, two.up, strict=True))
    assert all(not p.grad_fn and p.grad is None for p in clean.parameters())


def test_bad_input():
    with pytest.raises(ValueError, match="ranges must be a whole number of at least 1, got 0"):
        fit_experts(MODEL, guide(), 0, steps=1)
    with pytest.raises(ValueError, match="rank must be a whole number"):
        fit_experts(MODEL, guide(), 1, 0, steps=1)
    with pytest.raises(ValueError, match="needs clean samples to noise, got none"):
        fit_experts(MODEL, guide(), 1, steps=1, samples=torch.zeros(0, 2))
    with pytest.raises(ValueError, match=r"a guide must answer logits \(B, C\), got \(3,\)"):
        match(nn.Flatten(0), guide(), EDM(), torch.zeros(3, 1), LEVELS, 1.0, steps=1)


def test_they_guide_as_a_classifier(made):
    """As an object or by their function; each sample goes to where its label is likelier."""
    _, experts = made
    label = torch.arange(64) % 2
    one, other = (
        fs.sample(fs.guide(MODEL, "classifier", log_probability=given, classes=2, scale=3.0), 64, steps=6,
                  solver="ddim", label=label.tolist())
        for given in (experts, experts.log_probability)
    )  # fmt: skip
    plain = fs.sample(MODEL, 64, steps=6, solver="ddim")
    assert torch.equal(one, other)
    t = torch.full((64,), 0.01)
    with torch.no_grad():
        surer = experts.log_probability(one, t, label=label) - experts.log_probability(plain, t, label=label)
    assert float(surer.mean()) > 0.2
