"""The data set's optimal denoiser against a direct softmax. Method: dataset."""

from __future__ import annotations

import pytest
import torch

from fewstep.core.methods import find
from fewstep.denoisers.dataset import DatasetDenoiser
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan

F64 = torch.float64
GENERATOR = torch.Generator().manual_seed(5)
DATA = torch.randn(6, 2, 3, generator=GENERATOR, dtype=F64)
LABELS = torch.tensor([0, 1, 1, 2, 0, 1])
X = torch.randn(4, 2, 3, generator=GENERATOR, dtype=F64)


def direct(x, data, alpha, sigma):
    distance = (x[:, None] - alpha * data[None]).square().flatten(2).sum(-1)
    weights = torch.softmax(-distance / (2 * sigma**2), dim=1)
    return torch.einsum("bn,n...->b...", weights, data)


def test_it_is_registered():
    assert find("dataset") is DatasetDenoiser


@pytest.mark.parametrize("t", [0.05, 0.3, 0.8])
@pytest.mark.parametrize("process", [VP(), Flow(), EDM()], ids=lambda p: p.name)
def test_against_a_direct_softmax(process, t):
    model = DatasetDenoiser(DATA, process)
    expected = direct(X, DATA, process.alpha(t), process.sigma(t))
    torch.testing.assert_close(model(X, torch.tensor(t, dtype=F64)).x0, expected)
    torch.testing.assert_close(model(X, torch.full((4,), t, dtype=F64)).x0, expected)


def test_a_label_restricts_the_sum():
    process, t = VP(), 0.4
    model = DatasetDenoiser(DATA, process, LABELS)
    label = torch.tensor([1, 0, 3, 2])  # 3 is "no label"
    x0 = model(X, torch.tensor(t, dtype=F64), label=label).x0
    for i, rows in enumerate(([1, 2, 5], [0, 4], list(range(6)), [3])):
        torch.testing.assert_close(x0[i : i + 1], direct(X[i : i + 1], DATA[rows], process.alpha(t), process.sigma(t)))
    assert model.conditions["label"].classes == 3


def test_its_limits():
    model = DatasetDenoiser(DATA, Flow())
    noise = model(X, torch.tensor(1.0, dtype=F64)).x0
    torch.testing.assert_close(noise, DATA.mean(0).expand(4, 2, 3))
    near = DATA[[3, 0, 5, 2]] + 0.05 * X
    for t in (0.0, 1e-3):
        torch.testing.assert_close(model(near, torch.tensor(t, dtype=F64)).x0, DATA[[3, 0, 5, 2]])


def test_float32_data_and_tiny_sigma_stay_finite():
    model = DatasetDenoiser(DATA.float(), EDM())
    x0 = model(X.float(), torch.tensor(1e-4)).x0
    assert x0.dtype == torch.float32 and bool(torch.isfinite(x0).all())
    nearest = (X[:, None] - DATA[None]).square().flatten(2).sum(-1).argmin(1)
    torch.testing.assert_close(x0, DATA[nearest].float())


def test_samples_are_the_data():
    model = DatasetDenoiser(DATA, VP(), LABELS)
    noise = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    x = plan(model.process, "dpmpp-2m", 40)(model, noise, label=1, dtype=F64)
    distance = (x[:, None] - DATA[None]).flatten(2).norm(dim=-1)
    assert float(distance.min(1).values.max()) < 1e-2
    assert set(LABELS[distance.argmin(1)].tolist()) == {1}


@pytest.mark.parametrize(
    "data,labels,message",
    [
        (torch.zeros(3), None, r"data must be \(N, \*shape\) with N at least 1, got shape \(3,\)"),
        (torch.zeros(0, 3), None, "N at least 1"),
        (torch.zeros(3, 2), torch.zeros(2), r"labels must be 3 numbers, got shape \(2,\)"),
        (torch.zeros(3, 2), torch.tensor([0, 2, 2]), "each at least once: class 1"),
        (torch.zeros(3, 2), torch.tensor([0, -1, 1]), "labels must be 0 to K - 1"),
    ],
)
def test_bad_input(data, labels, message):
    with pytest.raises(ValueError, match=message):
        DatasetDenoiser(data, VP(), labels)
