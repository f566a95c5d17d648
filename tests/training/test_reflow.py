"""Reflow: pairs are the ends of the plan, and training on straight pairs makes one step exact."""

from __future__ import annotations

import pytest
import torch

from fewstep.conditions.label import Label
from fewstep.core.methods import find
from fewstep.core.noise import Noise
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.mlp import MLP
from fewstep.processes.flow import Flow
from fewstep.sampling.build import plan
from fewstep.training.fit import fit, rows_of
from fewstep.training.objective import Objective
from fewstep.training.reflow import Paired, pairs, reflow


def student(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NetworkDenoiser(MLP(width=32, depth=2, **options), Flow(), "velocity", shape=(2,))


def test_pairs_are_a_runs_two_ends_whatever_the_batch(make_mixture):
    model = make_mixture(Flow())
    made = plan(Flow(), "heun", 6)
    whole, parts = pairs(model, 7, made, seed=3), pairs(model, 7, made, seed=3, batch_size=3)
    assert torch.equal(whole.noise, Noise(3).normal(0, (7, 2))) and torch.equal(whole.noise, parts.noise)
    assert torch.equal(whole.x0, made(model, whole.noise)) and torch.allclose(whole.x0, parts.x0, atol=1e-6)


def test_conditions_go_with_their_pairs():
    model = student(classes=3)
    model.conditions = {"label": Label(3)}
    made = pairs(model, 5, plan(Flow(), "ddim", 2), label=torch.tensor([0, 1, 2, 0, 1]), batch_size=2)
    assert made.condition["label"].tolist() == [0, 1, 2, 0, 1]


def test_the_samples_own_noise_replaces_the_drawn_one():
    model = student()
    x0, own, drawn = torch.randn(3, 6, 2)
    t = torch.rand(6, dtype=torch.float64)
    ours = Paired(Objective(model))(x0, drawn, t, {"noise": own})
    assert torch.equal(ours, Objective(model)(x0, own, t, {}))


def test_a_flow_trained_on_a_monotone_pairing_needs_one_step():
    """x0 = m + s eps: the velocity `eps - x0` is a function of x_t, so there is nothing to average."""
    noise = torch.randn(512, 2, generator=torch.Generator().manual_seed(0))
    x0 = 0.4 + 0.5 * noise
    model = student()
    trained = fit(model, rows_of(x0, noise=noise), objective=Paired(Objective(model)), steps=300, batch=128, lr=5e-3)
    fresh = torch.randn(100, 2, generator=torch.Generator().manual_seed(1))
    one = plan(Flow(), "ddim", 1)(trained, fresh)
    assert float((one - 0.4 - 0.5 * fresh).square().mean().sqrt()) < 0.05


def test_reflow_leaves_the_teacher_alone_and_starts_from_it():
    assert find("reflow", "training") is reflow
    teacher = student()
    before = [parameter.clone() for parameter in teacher.parameters()]
    made = reflow(teacher, plan(Flow(), "ddim", 2), n=20, steps=2, batch=4, lr=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))
    changed = [float((a - b).detach().abs().max()) for a, b in zip(before, made.parameters(), strict=True)]
    assert 0 < max(changed) < 0.01


def test_bad_input_is_refused(make_mixture):
    model = make_mixture(Flow())
    with pytest.raises(ValueError, match="draws noise as it runs"):
        pairs(model, 4, plan(Flow(), "dpmpp-2s-ancestral", 4))
    with pytest.raises(ValueError, match="at least 1"):
        pairs(model, 0, plan(Flow(), "ddim", 4))
    nowhere = GaussianMixture(torch.ones(1), torch.zeros(1, 2), 1.0, Flow())
    nowhere.shape = None
    with pytest.raises(ValueError, match="shape known"):
        pairs(nowhere, 4, plan(Flow(), "ddim", 4))
