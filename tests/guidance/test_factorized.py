"""Factorized: each part of a sample has the law of its own condition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fewstep as fs
from fewstep.conditions.label import Label
from fewstep.core.denoiser import Denoiser
from fewstep.core.prediction import Prediction
from fewstep.denoisers.coordinates import DCT
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.guidance.factorized import projector
from fewstep.processes.vp import VP

F64 = torch.float64
SIZE = (1, 4, 4)
LOW = (torch.arange(4)[:, None] + torch.arange(4) < 3).to(F64)  # the low frequencies


class Two(Denoiser):
    """Two Gaussians that are diagonal in the DCT, one for each label."""

    def __init__(self, kind: str = "x0") -> None:
        super().__init__()
        self.process, self.shape, self.conditions, self.kind = VP(), SIZE, {"label": Label(2)}, kind
        generator = torch.Generator().manual_seed(0)
        self.dct = DCT(SIZE)
        self.means = torch.randn(2, *SIZE, generator=generator, dtype=F64)
        self.variances = 0.2 + torch.rand(2, *SIZE, generator=generator, dtype=F64)
        self.laws = [
            GaussianMixture(torch.ones(1), mean[None], variance.reshape(1, -1), self.process, kind)
            for mean, variance in zip(self.means, self.variances, strict=True)
        ]
        self.calls = 0

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        self.calls += 1
        y = self.dct.encode(x, {})
        found = torch.stack([law(y, t).value for law in self.laws])
        value = self.dct.decode(found[condition["label"] % 2, torch.arange(len(x))], {})
        return Prediction(value, self.kind, x, t, self.process)


def low(x: Tensor) -> Tensor:
    dct = DCT(tuple(x.shape[1:]))
    return dct.decode(dct.encode(x, {}) * LOW.to(x.dtype), {})


def high(x: Tensor) -> Tensor:
    return x - low(x)


def test_samples_have_one_law_in_the_low_band_and_the_other_in_the_high_one():
    """The map from noise to samples is affine: what it does to zero and to the unit vectors gives both moments."""
    model = Two()
    hybrid = fs.guide(model, "factorized", parts=[(low, {"label": 0}), (high, {"label": 1})])
    noise = torch.cat([torch.zeros(1, 16, dtype=F64), torch.eye(16, dtype=F64)]).reshape(17, *SIZE)
    made = fs.plan(VP(), "dpmpp-3m", steps=40)(hybrid, noise, dtype=F64)
    assert model.calls == 40  # both conditions in one call
    found = model.dct.encode(made, {}).reshape(17, 16)
    mean, variance = (torch.where(LOW.bool(), part[0], part[1]).flatten() for part in (model.means, model.variances))
    covariance = (found[1:] - found[0]).T @ (found[1:] - found[0])
    assert float(((found[0] - mean) / variance.sqrt()).abs().max()) < 0.02
    assert float((covariance.diagonal() / variance - 1).abs().max()) < 0.02
    assert float((covariance - covariance.diagonal().diag()).abs().max()) < 1e-10


def test_a_run_says_the_conditions_anew():
    model = Two()
    hybrid = fs.guide(model, "factorized", parts=[("low-1", {"label": 0}), ("high-1", {"label": 1})])
    assert set(hybrid.conditions) == {"label", "label_2"}
    x, t = torch.randn(2, *SIZE, generator=torch.Generator().manual_seed(2), dtype=F64), torch.tensor(0.5, dtype=F64)
    for told, labels in (({}, ([0, 0], [1, 1])), ({"label": 1, "label_2": [0, 1]}, ([1, 1], [0, 1]))):
        answer = hybrid(x, t, **hybrid.check_condition(told, 2, x.device)).eps
        parts = [model(x, t, label=torch.tensor(row)).eps for row in labels]
        expected = projector("low-1")(parts[0]) + projector("high-1")(parts[1])
        torch.testing.assert_close(answer, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["x0", "eps"])
def test_a_fixed_part_is_that_of_a_real_picture(kind):
    picture = torch.randn(SIZE, generator=torch.Generator().manual_seed(3), dtype=F64)
    hybrid = fs.guide(Two(kind), "factorized", parts=[(low, {}), (high, {"label": 1})], fixed=(0, picture))
    noise = fs.Noise(seed=4).normal(0, (5, *SIZE), dtype=F64)
    plan, clean = fs.plan(VP(), "ddim", steps=6), picture.float().double()
    trajectory = plan.run(hybrid, noise, dtype=F64, trajectory=True).trajectory
    own = (trajectory[0] - VP().alpha(plan.times[0]) * clean) / VP().sigma(plan.times[0])  # the run's own noise
    for t, x in zip(plan.times, trajectory, strict=True):
        reference = VP().alpha(t) * clean + VP().sigma(t) * own
        torch.testing.assert_close(low(x), low(reference), rtol=0, atol=1e-6)
    for t in (0.0, 1.0):
        answer = hybrid(noise, torch.tensor(t, dtype=F64), **hybrid.check_condition({}, 5, noise.device))
        assert bool(answer.value.isfinite().all())


@pytest.mark.parametrize(
    "names",
    [("low-1", "high-1"), ("low", "high"), ("grey", "colour"), ("left", "right"), ("top", "bottom"),
     ("motion-5", "still-5"), ("all",)],
)  # fmt: skip
def test_named_projectors_sum_to_the_identity(names):
    x = torch.randn(2, 3, 7, 6, generator=torch.Generator().manual_seed(5), dtype=F64)
    parts = [projector(name)(x) for name in names]
    torch.testing.assert_close(sum(parts[1:], parts[0]), x, rtol=0, atol=1e-14)
    assert all(part.shape == x.shape for part in parts)


def test_what_the_projectors_keep():
    x = torch.arange(12.0).reshape(1, 2, 2, 3)
    assert projector("grey")(x)[0, 0].tolist() == projector("grey")(x)[0, 1].tolist() == x.mean(1)[0].tolist()
    assert projector("left")(x)[0, 0].tolist() == [[0, 0, 0], [3, 0, 0]]
    assert projector("top")(x)[0, 1].tolist() == [[6, 7, 8], [0, 0, 0]]
    assert projector("motion-3")(x)[0, 0].tolist() == [[1, 1, 1], [4, 4, 4]]


def test_messages():
    model = Two()
    for parts, message in (
        ([], "parts must be pairs of a projector and a condition"),
        ([("low",)], "2 values|pairs of a projector"),
        ([("lo", {}), ("high", {})], "unknown projector 'lo': did you mean 'low-2'"),
        ([("grey-2", {}), ("colour", {})], "unknown projector 'grey-2'"),
        ([("low-0", {}), ("high", {})], "the number of a projector must be at least 1, got 'low-0'"),
        ([("low-1", {}), ("high-2", {})], "the projectors must sum to the identity; their sum is off by"),
        ([("low-1", {"labl": 0}), ("high-1", {})], "unknown condition of member 1 'labl'"),
        ([(lambda x: x[:, :, :2], {}), (high, {})], r"must keep the shape \(1, 4, 4\), got \(1, 2, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            fs.guide(model, "factorized", parts=parts)
    pair = [("low-1", {}), ("high-1", {})]
    with pytest.raises(ValueError, match="fixed names one of 2 parts, from 0, and leaves others; got 2"):
        fs.guide(model, "factorized", parts=pair, fixed=(2, torch.zeros(SIZE)))
    with pytest.raises(ValueError, match="picture"):
        fs.guide(model, "factorized", parts=pair, fixed=(0, torch.zeros(1, 2, 2)))
