"""What is wrong with a network, data or a mode of derivatives is said before the work."""

from __future__ import annotations

import copy

import pytest
import torch
from distillation.short import Twice
from torch import nn

from fewstep.conditions.label import Label
from fewstep.data.dataset import Dataset, DataSpec
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.distillation.checks import check_answers
from fewstep.distillation.distill import distill
from fewstep.networks.mlp import MLP
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM

FEW = {"iterations": 2, "batch": 4, "judge": False}


def of_flow(predicts):
    return NetworkDenoiser(MLP((2,), 8, 2, 3), Flow(), predicts, (2,), {"label": Label(3)}, data_std=0.5)


@pytest.mark.parametrize("name", ["boot", "consistency", "dmd2", "flow-map", "progressive"])
@pytest.mark.parametrize("predicts", ["eps", "score"])
def test_a_network_that_says_nothing_of_x0_at_the_start(name, predicts, points, tmp_path):
    said = f"predicts '{predicts}', which says nothing of x0 at the start 1, where alpha is 0: let it predict v"
    with pytest.raises(ValueError, match=said):
        distill(of_flow(predicts), name, start=1.0, data=points, out=tmp_path / "run", **FEW)
    assert not list(tmp_path.iterdir())
    check_answers(of_flow(predicts), 0.9)
    check_answers(of_flow("v"), 1.0)


def test_data_of_another_shape_range_or_number_of_classes(teacher, tmp_path):
    def data(shape=(2,), classes=3, value_range=(-1.0, 1.0)):
        return Dataset(
            DataSpec("other", shape, value_range, classes, 12), torch.zeros(12, *shape), torch.arange(12) % 2
        )

    def refused(said, **changes):
        with pytest.raises(ValueError, match=said):
            distill(teacher, "dmd2", data=data(**changes), out=tmp_path / "run", **FEW)
        assert not list(tmp_path.iterdir())

    refused(r"the data 'other' has samples of \(3,\), the model makes \(2,\)", shape=(3,))
    refused("the data 'other' have 4 classes, and the model's label has 3", classes=4)
    refused("the data 'other' have 2 classes, and the model's label has 3", classes=2)
    refused(r"the data 'other' lies in \(0.0, 1.0\), the model's samples in", value_range=(0.0, 1.0))


class Plain(nn.Module):
    """A network of one's own, which names no blocks."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(2, 2)

    def forward(self, x, noise, label=None):
        return self.last(x)


@pytest.mark.parametrize("name", ["dmd2", "f-distill", "scott", "tscd"])
def test_a_discriminator_on_a_network_that_names_no_blocks(name, points, tmp_path):
    model = NetworkDenoiser(Plain(), EDM(), "x0", (2,), {"label": Label(3)}, "edm", 0.5)
    with pytest.raises(ValueError, match="no network in this model names its blocks"):
        distill(model, name, data=points, out=tmp_path / "run", **FEW)
    assert not list(tmp_path.iterdir())


class Doubled(nn.Module):
    def forward(self, x):
        return Twice.apply(x)


@pytest.mark.parametrize("name", ["scm", "mean-flow", "flow-map", "dmf"])
def test_a_network_without_forward_mode(name, teacher, tmp_path):
    model = copy.deepcopy(teacher)
    model.network.last = nn.Sequential(model.network.last, Doubled())
    with pytest.raises(ValueError, match='the network has no forward mode: use tangent="difference"'):
        distill(model, name, out=tmp_path / "run", **FEW)
    assert not list(tmp_path.iterdir())
