"""Experts by time: who answers, and the folder.

Methods: experts.
"""

from __future__ import annotations

import json

import pytest
import torch

import fewstep as fs
from fewstep.conditions.label import Label
from fewstep.denoisers.experts import Experts
from fewstep.denoisers.folder import save_model
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.mlp import MLP
from fewstep.processes.flow import Flow
from fewstep.processes.vp import VP
from fewstep.sampling.sample import sample

F64 = torch.float64


def networks(count: int, predicts: tuple[str, ...] = ("eps",), classes: int | None = 3) -> list[NetworkDenoiser]:
    made = []
    for number in range(count):
        network = MLP((2,), width=8, depth=1, classes=classes).double()
        torch.nn.init.normal_(network.last.weight, generator=torch.Generator().manual_seed(number))
        conditions = {"label": Label(classes)} if classes else {}
        kind = predicts[number % len(predicts)]
        made.append(NetworkDenoiser(network, VP(), kind, (2,), conditions))
    return made


def test_each_time_has_its_expert():
    parts = networks(3)
    model = Experts(parts, (0.3, 0.7))
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    label = torch.tensor([0, 1, 2, 3, 0])
    for t, number in ((0.1, 0), (0.299, 0), (0.3, 1), (0.5, 1), (0.7, 2), (1.0, 2)):
        time = torch.tensor(t, dtype=F64)
        assert torch.equal(model(x, time, label=label).value, parts[number](x, time, label=label).value)


def test_a_batch_of_times_is_split_and_of_one_kind():
    parts = networks(3, ("v", "x0", "eps"))
    model = Experts(parts, (0.3, 0.7))
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    t, label = torch.tensor([0.9, 0.2, 0.5, 0.1, 0.95], dtype=F64), torch.tensor([0, 1, 2, 3, 0])
    together = model(x, t, label=label)
    for i, number in enumerate((2, 0, 1, 0, 2)):
        alone = parts[number](x[i : i + 1], t[i : i + 1], label=label[i : i + 1])
        torch.testing.assert_close(together.x0[i], alone.x0[0])
    together.value.sum().backward()
    assert all(part.network.last.weight.grad is not None for part in parts)


def test_an_expert_that_is_repeated_is_one_denoiser(smooth):
    model = Experts([smooth, smooth], (0.4,))
    x = sample(model, 6, steps=7, dtype=F64)
    torch.testing.assert_close(x, sample(smooth, 6, steps=7, dtype=F64), rtol=0, atol=0)


def test_folders_of_the_former_format_load(tmp_path):
    """Each expert in a folder of its own, and a list of them."""
    model = Experts(networks(2), (0.25,)).eval()
    for number, part in enumerate(model.denoisers):
        save_model(part, tmp_path / "model" / f"expert-{number}")
    about = {"format": "fewstep-experts-1", "experts": 2, "cuts": [0.25]}
    (tmp_path / "model" / "experts.json").write_text(json.dumps(about))
    again = fs.load(tmp_path / "model")
    x, t = torch.randn(3, 2, dtype=F64), torch.tensor([0.1, 0.5, 0.9], dtype=F64)
    label = torch.tensor([0, 1, 2])
    assert torch.equal(model(x, t, label=label).value, again(x, t, label=label).value) and not again.training
    (tmp_path / "model" / "experts.json").write_text("{}")
    with pytest.raises(ValueError, match="not a list of experts"):
        fs.load(tmp_path / "model")


def test_bad_input(smooth):
    with pytest.raises(ValueError, match="divided by 1 times"):
        Experts([smooth, smooth], ())
    with pytest.raises(ValueError, match="must rise"):
        Experts([smooth, smooth, smooth], (0.7, 0.3))
    with pytest.raises(ValueError, match="same process"):
        Experts([smooth, GaussianMixture(torch.ones(1), torch.zeros(1, 2), 1.0, Flow())], (0.5,))
    with pytest.raises(ValueError, match="same conditions"):
        Experts([*networks(1), *networks(1, classes=None)], (0.5,))
