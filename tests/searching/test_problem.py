"""Noises and conditions that samplers are scored on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from fewstep.conditions.label import Label
from fewstep.conditions.picture import Picture
from fewstep.conditions.text import Text
from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.data.dataset import Dataset, DataSpec
from fewstep.data.open import open_data
from fewstep.data.shapes import draw as draw_shapes
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.temporal import TemporalUNet
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.searching.problem import conditions, data_for, draw

CPU = torch.device("cpu")


def model(kind: Any, data: str | None = None) -> Denoiser:
    made = Denoiser()
    made.process, made.shape, made.conditions, made.data = EDM(), (3, 2), {"given": kind}, data
    return made


def test_classes_come_in_turn():
    assert conditions(model(Label(4)), None, torch.arange(3, 9))["given"].tolist() == [3, 0, 1, 2, 3, 0]


def test_conditions_that_are_given_stand_in_for_those_of_the_data():
    own = {"given": torch.tensor([3, 0, 3])}
    assert conditions(model(Label(4)), None, torch.arange(3), own)["given"].tolist() == [3, 0, 3]
    # They come in turn by the numbers of the noises, and pictures need no data then.
    assert draw(model(Label(4)), 0, 4, 5, torch.float32, given=own)[1]["given"].tolist() == [0, 3, 3, 0, 3]
    pictures = {"given": torch.randn(2, 3, 2)}
    found = draw(model(Picture((3, 2))), 0, 0, 3, torch.float32, given=pictures)[1]["given"]
    assert torch.equal(found, pictures["given"][[0, 1, 0]])
    with pytest.raises(ValueError, match="given 9 is out of range"):
        conditions(model(Label(4)), None, torch.arange(1), {"given": torch.tensor([9])})


def test_captions_are_those_of_the_data():
    text = open_data("shapes").spec.text
    made = model(text, "shapes")
    made.conditions = {"text": text}
    found = conditions(made, None, torch.arange(5, 9))["text"]
    assert torch.equal(found, draw_shapes(torch.arange(5, 9))[1])
    assert not conditions(model(Text(("a",), 3)), None, torch.arange(4))["given"].any()


def pairs(n: int, shape: tuple[int, ...] = (3, 2)) -> Dataset:
    """n samples of zeros, and with each a picture that holds the sample's number."""
    pictures = torch.arange(float(n)).view(-1, *[1] * len(shape)).expand(n, *shape)
    return Dataset(DataSpec("pairs", shape, (-1.0, 1.0), None, n), torch.zeros(n, *shape), given={"given": pictures})


def test_pictures_are_those_of_the_data_row_by_row():
    made = model(Picture((3, 2)))
    assert conditions(made, pairs(5), torch.arange(3, 7))["given"][:, 0, 0].tolist() == [3, 4, 0, 1]
    _, given = draw(made, 0, 4, 3, torch.float32, pairs(5))
    assert given["given"][:, 2, 1].tolist() == [4, 0, 1]


def test_labels_of_data_that_are_given_come_before_classes_in_turn():
    data = Dataset(DataSpec("own", (3, 2), (-1.0, 1.0), 4, 3), torch.zeros(3, 3, 2), torch.tensor([2, 2, 0]))
    made = model(Label(4))
    made.conditions = {"label": Label(4)}
    assert conditions(made, data, torch.arange(1, 5))["label"].tolist() == [2, 0, 2, 2]
    made.conditions = {"label": Label(2)}
    with pytest.raises(ValueError, match="the data have labels up to 2, but the model has 2 classes"):
        conditions(made, Dataset(data.spec, data.raw, torch.tensor([2, 2, 2])), torch.arange(2))


def test_pictures_cannot_be_made_up():
    with pytest.raises(ValueError, match=r"this model needs given, .*: give data=.*given=\{'given': pictures\}"):
        conditions(model(Picture((3, 2))), None, torch.arange(4))


def test_data_fit_the_model(tmp_path):
    made = model(Label(2))
    assert data_for(made, pairs(2)).spec.name == "pairs"
    with pytest.raises(ValueError, match=r"'pairs' has samples of \(4, 4\), the model makes \(3, 2\)"):
        data_for(made, pairs(2, (4, 4)))
    made.value_range = (0.0, 1.0)
    with pytest.raises(ValueError, match="the model's samples in"):
        data_for(made, pairs(2))
    made.shape, made.value_range = (1, 8, 8), None
    assert data_for(made, "digits").spec.n == 1437
    for number in range(12):
        Image.new("RGB", (20, 12), (number, 0, 0)).save(tmp_path / f"{number}.png")
    assert data_for(made, tmp_path, size=8).spec.shape == (1, 8, 8)  # grey, as the model's
    with pytest.raises(ValueError, match=r"has samples of \(1, 4, 4\)"):
        data_for(made, tmp_path, size=4)


def test_the_noise_is_that_of_the_process():
    class Loud(EDM):
        def start(self, normal: Any) -> Tensor:
            return 3 * normal(0)

    made = model(Label(2))
    made.process = Loud()
    noise, given = draw(made, 7, 2, 5, torch.float64)
    torch.testing.assert_close(noise, 3 * Noise(7, 2).normal(0, (5, 3, 2), CPU, torch.float64))
    assert given["given"].tolist() == [0, 1, 0, 1, 0]


def test_the_data_of_clips_are_opened_by_name():
    network = TemporalUNet(3, 16, (8,), attention=(), classes=None, patch=4, embedding=8)
    model = NetworkDenoiser(network, VP(), "v", (8, 3, 16, 16), value_range=(-1.0, 1.0))
    assert data_for(model, "moving").spec.shape == (8, 3, 16, 16)
