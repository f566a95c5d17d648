"""Composed models: the product of the reverse kernels, exact laws of products and negations, names, calls, messages."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import fewstep as fs
from fewstep.conditions.label import Label
from fewstep.conditions.number import Number
from fewstep.core.denoiser import Denoiser
from fewstep.core.memory import Memory, ask
from fewstep.core.prediction import Prediction
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP

F64 = torch.float64
EYE = torch.eye(2, dtype=F64)


class Labelled(Denoiser):
    """A Gaussian under each label, and another under none. Counts calls and rows."""

    def __init__(self, laws: list[tuple[Any, Any]], process: Any, name: str = "label", predicts: str = "x0"):
        super().__init__()
        self.process, self.shape, self.name = process, (2,), name
        self.conditions = {name: Label(len(laws) - 1), "size": Number(default=0.0)}
        self.laws = [
            GaussianMixture(torch.ones(1), torch.as_tensor(mean, dtype=F64)[None], cov, process, predicts)
            for mean, cov in laws
        ]
        self.predicts, self.calls = predicts, []

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        self.calls.append(len(x))
        found = torch.stack([law(x, t).value for law in self.laws])
        return Prediction(found[condition[self.name], torch.arange(len(x))], self.predicts, x, t, self.process)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=F64)


def along(axis: int, low: float, high: float, name: str = "label", process: Any = None, **options: Any) -> Labelled:
    """Labels 0 and 1 narrow one axis of a standard normal about `low` and `high`."""
    variances = torch.ones(2, dtype=F64)
    variances[axis] = 0.25
    laws = [(place * EYE[axis], variances.diag()[None]) for place in (low, high)]
    return Labelled([*laws, (torch.zeros(2), EYE[None])], process or VP(), name, **options)


def kernel(process: Any, eps: Tensor, x: Tensor, t: float, s: float) -> tuple[Tensor, float]:
    """Mean and variance of the ancestral kernel from t to s."""
    at, st, as_, ss = process.alpha(t), process.sigma(t), process.alpha(s), process.sigma(s)
    x0, ratio = (x - st * eps) / at, at / as_
    beta = st**2 - ratio**2 * ss**2
    return (ratio * ss**2 * x + as_ * beta * x0) / st**2, ss**2 * beta / st**2


def test_the_kernel_is_the_product_of_the_experts_kernels():
    process, x, t, s = VP(), normal(5, 2), 0.6, 0.5
    experts = [
        GaussianMixture(torch.ones(1), mean[None], var, process, kind)
        for mean, var, kind in zip(normal(3, 2), (0.3, 1.0, 2.0), ("x0", "eps", "eps"), strict=True)
    ]
    shares = [0.2, 0.5, 0.3]
    mix = fs.guide(experts[0], "compose", others=experts[1:], reliability=shares)
    time = torch.tensor(t, dtype=F64)
    precision, weighted = 0.0, torch.zeros_like(x)
    for share, expert in zip(shares, experts, strict=True):
        mean, variance = kernel(process, expert(x, time).eps, x, t, s)
        precision, weighted = precision + share / variance, weighted + share * mean / variance
    found, variance = kernel(process, mix(x, time).eps, x, t, s)
    torch.testing.assert_close(found, weighted / precision, rtol=0, atol=1e-10)
    assert math.isclose(1 / precision, variance)


def test_labels_enter_the_product_by_their_weights():
    one, two = along(0, -1.0, 1.0), along(1, -2.0, 0.5, "label", predicts="eps")
    x, t, (w, v), (a, b) = normal(4, 2), torch.tensor([0.3, 0.5, 0.7, 0.9], dtype=F64), (1.5, -0.7), (0.8, 0.2)
    mix = fs.guide(one, "compose", others=[two], weights=[w, v], reliability=[a, b])
    named = mix.check_condition({"label": [0, 1, 0, 1], "label_2": 1}, 4, x.device)
    assert set(mix.conditions) == {"label", "label_2", "size"}
    size = torch.zeros(4)
    none = torch.full((4,), 2)
    given = one(x, t, label=named["label"], size=size).eps, two(x, t, label=named["label_2"], size=size).eps
    empty = [model(x, t, label=none, size=size).eps for model in (one, two)]
    expected = a * empty[0] + b * empty[1] + w * (given[0] - empty[0]) + v * (given[1] - empty[1])
    torch.testing.assert_close(mix(x, t, **named).eps, expected, rtol=0, atol=1e-12)
    weights, answers = mix.terms(x, t, None, named)
    assert math.isclose(sum(weights), 1) and len(weights) == 4
    summed = sum(weight * answer.eps for weight, answer in zip(weights, answers, strict=True))
    torch.testing.assert_close(summed, expected, rtol=0, atol=1e-12)


def test_a_product_of_independent_conditions_is_the_joint_law():
    mix = fs.guide(along(0, -1.0, 1.0), "compose", others=[along(1, -2.0, 0.5)])
    joint = GaussianMixture(torch.ones(1), torch.tensor([[1.0, -2.0]]), 0.25, VP())
    noise = normal(6, 2)
    plan = fs.plan(VP(), "dpmpp-2m", steps=8)
    made = plan(mix, noise, dtype=F64, label=1, label_2=0)
    torch.testing.assert_close(made, plan(joint, noise, dtype=F64), rtol=0, atol=1e-10)


def test_a_negative_weight_leads_away():
    """N(0, b^2) under none and N(m, a^2) under a label: the flow's variance, and a mean on the other side."""
    a2, b2, edm = 1.0, 0.5, EDM(sigma_min=1e-3, sigma_max=300.0)
    model = Labelled([(torch.tensor([2.0, 0.0]), a2), (torch.zeros(2), b2)], edm)
    mix = fs.guide(model, "compose", others=[{"label": 0}], weights=[0.0, -1.0])
    x, t = normal(3, 2), torch.tensor(0.7, dtype=F64)
    score = mix(x, t, **mix.check_condition({}, 3, x.device)).score
    mean, s2 = torch.tensor([2.0, 0.0], dtype=F64), 0.7**2
    torch.testing.assert_close(score, -2 * x / (b2 + s2) + (x - mean) / (a2 + s2))
    made = fs.plan(edm, "dpmpp-3m", steps=300)(mix, torch.tensor([[0.0, 0.0], [0.0, 1.0]], dtype=F64), dtype=F64)
    assert float(made[0, 0]) < -0.5  # away from the label's mean
    assert float((made[1, 1] - made[0, 1]) ** 2) == pytest.approx(b2**2 / a2, rel=5e-3)


def test_questions_to_one_network_share_a_call_and_needless_ones_are_not_asked():
    model, x, t = along(0, -1.0, 1.0), normal(2, 2), torch.tensor(0.5, dtype=F64)
    mix = fs.guide(model, "compose", others=[model, {"label": 1}], weights=[1.0, 2.0, 0.5])
    assert set(mix.conditions) == {"label", "label_2", "label_3", "size"}
    named = mix.check_condition({"label": 0, "label_2": [1, 0]}, 2, x.device)
    assert named["label_3"].tolist() == [1, 1]
    memory = Memory(2, (0.5,), 0.0)
    memory.advance()
    answer = ask(mix, x, t, memory, named)
    assert model.calls == [8] and memory.seen == 8  # three labels and one empty answer
    model.calls.clear()
    size = torch.zeros(2)
    parts = [model(x, t, label=torch.tensor(row), size=size).eps for row in ([2, 2], [0, 0], [1, 0], [1, 1])]
    empty = parts[0]
    expected = empty + (parts[1] - empty) + 2 * (parts[2] - empty) + 0.5 * (parts[3] - empty)
    torch.testing.assert_close(answer.eps, expected, rtol=0, atol=1e-12)
    plain = fs.guide(model, "compose", others=[along(1, 0.0, 1.0)], weights=[1.0, 0.0], reliability=[1.0, 0.0])
    model.calls.clear()
    named = plain.check_condition({"label": 0}, 2, x.device)
    assert torch.equal(plain(x, t, **named).value, model(x, t, label=named["label"], size=size).value)
    assert model.calls == [2, 2]


def test_mixed_requests_are_their_runs_alone():
    mix = fs.guide(along(0, -1.0, 1.0), "compose", others=[along(1, -2.0, 0.5), {"label": 1}], weights=[1.0, 2.0, -0.5])
    plans = [fs.plan(VP(), "dpmpp-2m", steps=n) for n in (3, 5)]
    noises, told = (normal(2, 2), normal(3, 2)), ({"label": 0}, {"label_2": 1, "label_3": 0})
    found = fs.run_mixed(list(zip(plans, noises, told, strict=True)), mix, dtype=F64)
    for made, plan, noise, own in zip(found, plans, noises, told, strict=True):
        torch.testing.assert_close(made, plan(mix, noise, dtype=F64, **own), rtol=0, atol=1e-12)


def test_composed_models_compose():
    inner = [fs.guide(along(k, -1.0, 1.0), "compose", others=[along(k, 0.0, 1.0, "kind")]) for k in (0, 1)]
    outer = fs.guide(inner[0], "compose", others=[inner[1]])
    assert set(outer.conditions) == {"label", "kind", "size", "label_2", "kind_2"}
    again = fs.guide(outer, "compose", others=[outer])
    assert {"label", "label_2", "label_3", "label_2_2"} <= set(again.conditions)
    x, t = normal(2, 2), torch.tensor(0.4, dtype=F64)
    named = again.check_condition({"label": 0, "label_3": 1}, 2, x.device)
    assert bool(again(x, t, **named).value.isfinite().all())


@pytest.mark.parametrize("t", [0.0, 1.0])
def test_at_the_ends_it_is_finite_and_gradients_flow(t):
    process = fs.find("flow", "process")()
    mix = fs.guide(along(0, -1.0, 1.0, process=process), "compose", others=[along(1, 0.0, 1.0, process=process)])
    x = normal(3, 2).requires_grad_()
    answer = mix(x, torch.tensor(t, dtype=F64), **mix.check_condition({"label": 1}, 3, x.device))
    assert bool(answer.value.isfinite().all())
    (slope,) = torch.autograd.grad(answer.value.sum(), x)
    assert slope.shape == x.shape and bool(slope.isfinite().all())


def test_messages():
    model = along(0, -1.0, 1.0)
    for others, message in (
        ([], "compose needs other models or conditions in a list"),
        ([along(0, -1.0, 1.0, process=EDM())], "composed models must have the same process"),
        ([GaussianMixture(torch.ones(1), torch.zeros(1, 3), 1.0, VP())], "must have the same shape"),
        ([{"labl": 1}], "unknown condition of member 2 'labl': did you mean 'label'"),
    ):
        with pytest.raises(ValueError, match=message):
            fs.guide(model, "compose", others=others)
    for options, message in (
        ({"weights": [1.0]}, r"weights must be 2 finite numbers, one for each model, got \[1.0\]"),
        ({"weights": [1.0, math.inf]}, "weights must be 2 finite numbers"),
        ({"reliability": [0.5, 0.6]}, r"the reliabilities must sum to 1, got \[0.5, 0.6\] \(sum 1.1\)"),
        ({"weight": [1.0, 1.0]}, "did you mean 'weights'"),
    ):
        with pytest.raises(ValueError, match=message):
            fs.guide(model, "compose", others=[model], **options)
    mix = fs.guide(model, "compose", others=[model])
    with pytest.raises(ValueError, match="unknown condition 'label2': did you mean"):
        mix.check_condition({"label2": 1}, 2, torch.device("cpu"))
