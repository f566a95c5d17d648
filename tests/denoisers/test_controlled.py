"""A model that a picture controls: itself at first, its files, the command line's picture, and what is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

import fewstep as fs
from fewstep.core.pictures import for_model
from fewstep.core.student import Student
from fewstep.denoisers.boundary import Boundary
from fewstep.denoisers.controlled import Controlled, layout_of
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.mlp import MLP
from fewstep.networks.temporal import TemporalUNet
from fewstep.processes.flow import Flow
from fewstep.report.grid import png_bytes
from tests.distillation.clips import SHAPE, model


def moved(seed=1):
    made = Controlled(model()).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.adapter.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return made


PICTURE = torch.linspace(-1, 1, 32).reshape(2, 4, 4)


def test_at_zero_samples_are_the_bases_bit_for_bit():
    base = model()
    base.student, base.plan = Student("jump", "lcm", start=40.0), fs.plan(base.process, "multistep-consistency", 3)
    made = Controlled(base)
    assert made.student == base.student and made.plan == base.plan and made.conditions["picture"].shape == SHAPE[1:]
    ours = fs.sample(made, 3, label=1, picture=PICTURE, seed=4)
    assert torch.equal(ours, fs.sample(base, 3, label=1, seed=4))


def test_each_sample_has_its_own_picture_and_the_base_none():
    made = moved()
    pictures = torch.stack([PICTURE, -PICTURE, PICTURE])
    three = fs.sample(made, 3, label=1, picture=pictures, steps=2)
    other = fs.sample(made, 3, label=1, picture=PICTURE, steps=2)
    same = [torch.equal(a, b) or float((a - b).abs().max()) < 1e-5 for a, b in zip(three, other, strict=True)]
    assert same == [True, False, True]
    assert torch.equal(fs.sample(made.model, 3, label=1, steps=2), fs.sample(model(), 3, label=1, steps=2))


def test_a_layout_tells_each_frame_its_own(tmp_path):
    made = Controlled(model(), control="layout").eval()
    layout = layout_of(torch.linspace(-1, 1, 2 * SHAPE[0] * 32).reshape(2, *SHAPE))
    assert made.conditions["layout"].shape == tuple(layout.shape[1:]) == (SHAPE[0], 1, *SHAPE[2:])
    own = fs.sample(made, 2, label=1, layout=layout, steps=2, seed=4)
    assert torch.equal(own, fs.sample(model(), 2, label=1, steps=2, seed=4))
    with torch.no_grad():
        for parameter in made.adapter.parameters():
            parameter.add_(0.1)
    fs.save(made, tmp_path / "it")
    loaded = fs.load(tmp_path / "it")
    x, t = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.tensor(1.0)
    asked = {"label": torch.ones(2, dtype=torch.long), "layout": layout}
    assert torch.equal(made(x, t, **asked).x0, loaded(x, t, **asked).x0)
    # Of a network without attention between frames, one frame's layout moves that frame and its neighbours.
    changed = asked | {"layout": layout.clone()}
    changed["layout"][1, -1] += 1
    moved = (made(x, t, **changed).x0 - made(x, t, **asked).x0).abs().flatten(2).amax(2)
    assert not moved[0].any() and moved[1, -1] > 1e-4


def test_a_layout_is_grey_and_coarse():
    clips = torch.randn(2, 3, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    layout = layout_of(clips)
    assert layout.shape == (2, 3, 1, 8, 10)
    torch.testing.assert_close(
        layout[..., :4, :4], clips[..., :4, :4].mean((2, 3, 4), keepdim=True).expand(2, 3, 1, 4, 4)
    )
    assert torch.equal(layout[..., 0, 0], layout[..., 3, 3])


def test_it_describes_itself_with_its_network():
    made = moved()
    told = made.describe()
    assert told["network"] == "temporal-unet" and list(told["conditions"]) == ["label", "picture"]
    assert told["denoiser"] == "Controlled" and told["parameters"] > made.model.describe()["parameters"]


def test_it_comes_back_from_its_folder(tmp_path):
    made = Controlled(model(), Student("jump", "animate-control", start=40.0, guidance=2.0)).eval()
    with torch.no_grad():
        for parameter in made.adapter.parameters():
            parameter.add_(0.1)
    loaded = fs.load(fs.save(made, tmp_path / "it"))
    assert loaded.student == made.student and made.model.student is None
    asked = {"label": [0, 1], "picture": PICTURE, "steps": 2}
    assert torch.equal(fs.sample(loaded, 2, **asked), fs.sample(made, 2, **asked))


def test_a_file_is_its_picture():
    network = TemporalUNet(3, 8, (8,), attention=(), classes=None, embedding=8, frames=2)
    made = Controlled(NetworkDenoiser(network, Flow(), "velocity", (2, 3, 8, 8)))
    assert for_model_of(made).shape == (3, 8, 8)
    with pytest.raises(ValueError, match="samples are no pictures"):
        for_model_of(made.model)


def for_model_of(made):
    return for_model(io.BytesIO(png_bytes(np.full((16, 16, 3), 200, np.uint8))), made, "it")


def test_what_is_refused():
    made = moved()
    for value, match in [
        (None, r"this model needs picture, a tensor \(2, 4, 4\)"),
        (torch.zeros(2, 4, 5), r"picture must have shape \(2, 4, 4\) or \(B, 2, 4, 4\), got \(2, 4, 5\)"),
        (torch.zeros(5, 2, 4, 4), r"picture must have shape \(2, 4, 4\) or \(3, 2, 4, 4\), got \(5, 2, 4, 4\)"),
    ]:
        with pytest.raises(ValueError, match=match):
            fs.sample(made, 3, label=1, picture=value)
    with pytest.raises(ValueError, match="stands on fewstep's own UNets, and NetworkDenoiser is around none"):
        Controlled(NetworkDenoiser(MLP((2,), 8, 1), Flow(), "velocity", (2,)))
    with pytest.raises(ValueError, match=r"reads a picture already: its conditions are \['label', 'picture'\]"):
        Controlled(made)


def test_what_is_around_the_network_stays_around_it():
    base = model()
    base.precondition = "none"
    around = Boundary(base)
    x, t = torch.randn(2, *SHAPE), torch.tensor(0.7, dtype=torch.float64)
    label = torch.tensor([0, 1])
    made = Controlled(around)
    picture = PICTURE.expand(2, -1, -1, -1)
    assert torch.equal(made(x, t, label=label, picture=picture).x0, around(x, t, label=label).x0)
    with torch.no_grad():
        for parameter in made.adapter.parameters():
            parameter.add_(0.1)
    apart = made(x, t, label=label, picture=picture).x0 - around(x, t, label=label).x0
    assert float(apart.detach().abs().max()) > 1e-3
