"""Noises and conditions that samplers are scored on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.conditions.label import Label
from fewstep.conditions.picture import Picture
from fewstep.conditions.text import Text
from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.data.shapes import draw as draw_shapes
from fewstep.data.spec import open_data
from fewstep.processes.ve import EDM
from fewstep.searching.problem import conditions, draw

CPU = torch.device("cpu")


def model(kind: Any, data: str | None = None) -> Denoiser:
    made = Denoiser()
    made.process, made.shape, made.conditions, made.data = EDM(), (3, 2), {"given": kind}, data
    return made


def test_classes_come_in_turn():
    assert conditions(model(Label(4)), 3, 6, CPU)["given"].tolist() == [3, 0, 1, 2, 3, 0]


def test_captions_are_those_of_the_data():
    text = open_data("shapes").spec.text
    made = model(text, "shapes")
    made.conditions = {"text": text}
    found = conditions(made, 5, 4, CPU)["text"]
    assert torch.equal(found, draw_shapes(torch.arange(5, 9))[1])
    assert not conditions(model(Text(("a",), 3)), 0, 4, CPU)["given"].any()


def test_pictures_cannot_be_made_up():
    with pytest.raises(ValueError, match="this model needs given"):
        conditions(model(Picture((3,))), 0, 4, CPU)


def test_the_noise_is_that_of_the_process():
    class Loud(EDM):
        def start(self, normal: Any) -> Tensor:
            return 3 * normal(0)

    made = model(Label(2))
    made.process = Loud()
    noise, given = draw(made, 7, 2, 5, torch.float64)
    torch.testing.assert_close(noise, 3 * Noise(7, 2).normal(0, (5, 3, 2), CPU, torch.float64))
    assert given["given"].tolist() == [0, 1, 0, 1, 0]
