"""The adapter of SpeedUpNet: nothing at first, its sums by hand, and files that fit other weights."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F

import fewstep as fs
from fewstep.conditions.label import Label
from fewstep.conditions.negative import Negative
from fewstep.conditions.number import Number
from fewstep.conditions.text import Text
from fewstep.core.student import Student
from fewstep.denoisers.folder import load_model, save_model
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.denoisers.sun import Sun, _Both, load_sun, save_sun
from fewstep.networks.common import Attend
from fewstep.networks.mlp import MLP
from fewstep.networks.unet import UNet
from fewstep.processes.flow import Flow

WORDS = ("a", "red", "blue", "circle", "square")


def reading(seed: int = 0, width: int = 8, **options) -> NetworkDenoiser:
    """A network that reads captions, all of whose weights are drawn."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = UNet(2, 8, [width, 8], attention=[8, 4], classes=None, vocabulary=5, captions=4, embedding=8)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return NetworkDenoiser(network, Flow(), "velocity", (2, 8, 8), {"text": Text(WORDS, 4)}, **options).eval()


def moved(model: Sun, seed: int = 1) -> Sun:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.adapter.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


X = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(2))
T = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)


def asked(model, **given):
    named = model.check_condition({"text": ["a red circle", "a blue square", ""]} | given, 3, X.device)
    return model(X, T, **named).value.detach()


def test_at_zero_it_is_the_base_bit_for_bit():
    base = reading()
    model = Sun(base).eval()
    assert model.conditions["guidance"] == Number(1.0, 4.0, 2.5)
    assert model.conditions["negative"] == Negative(base.conditions["text"])
    assert list(model.adapter.seconds) == ["down/0/attn0/core", "down/1/attn0/core", "mid/attn/core",
                                           "up/0/attn0/core", "up/1/attn0/core"]  # fmt: skip
    assert torch.equal(asked(model, negative="blue", guidance=4.0), asked(base))
    mlp = NetworkDenoiser(MLP((2,), 8, 2, 3), Flow(), "velocity", (2,), {"label": Label(3)})
    x = torch.randn(4, 2)
    named = {"label": torch.tensor([0, 1, 2, 3])}
    assert torch.equal(Sun(mlp)(x, T[0], **named).value, mlp(x, T[0], **named).value)


def test_it_hears_negative_and_scale_and_leaves_the_base_alone():
    base = reading()
    before = asked(base)
    model = moved(Sun(base))
    plain = asked(model)
    assert torch.equal(plain, asked(model, negative="", guidance=2.5)) and torch.equal(asked(base), before)
    for given in ({"negative": "red"}, {"guidance": 1.0}, {"negative": ["red", "", ""]}):
        assert float((asked(model, **given) - plain).abs().max()) > 1e-4
    one = asked(model, negative=["red", "", ""])
    assert torch.equal(one[1:], plain[1:]) or float((one[1:] - plain[1:]).abs().max()) < 1e-6


def test_the_added_attention_by_hand():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 4, generator=generator, dtype=torch.float64) for n in (5, 7, 7))
    key, value = (torch.randn(2, 3, 2, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    gate = torch.randn(2, 3, 1, 4, generator=generator, dtype=torch.float64)
    out = _Both(Attend(), key, value, gate)(q, k, v, 2)
    own = F.scaled_dot_product_attention(q, k, v)
    for b in range(2):
        for h in range(3):
            other = torch.softmax(q[b, h] @ key[b, h].T / 2, dim=1) @ value[b, h]
            like = (other - other.mean()) / other.std() * own[b, h].std() + own[b, h].mean()
            assert float(like.mean() - own[b, h].mean()) == pytest.approx(0, abs=1e-12)
            torch.testing.assert_close(out[b, h], own[b, h] + gate[b, h] * like)


def test_the_model_saves_and_loads(tmp_path):
    model = moved(Sun(reading(), 1.0, 3.0, Student("denoiser", "sun", guidance=(1.0, 3.0))))
    loaded = load_model(save_model(model, tmp_path / "sun"))
    assert loaded.student == model.student and loaded.conditions["guidance"] == Number(1.0, 3.0, 2.0)
    assert torch.equal(asked(loaded, negative="red"), asked(model, negative="red"))
    with pytest.raises(ValueError, match="guidance is inside"):
        fs.guide(loaded, "cfg", scale=2.0)


def test_the_adapter_alone_fits_other_weights_of_the_same_network(tmp_path):
    model = moved(Sun(reading(0), 1.0, 3.0))
    file = save_sun(model, tmp_path / "sun.safetensors")
    assert sum(p.numel() for p in model.adapter.parameters()) * 4 < file.stat().st_size < 200_000
    other = reading(5)
    plugged = load_sun(other, file)
    assert plugged.model is other
    for name, value in plugged.adapter.state_dict().items():
        assert torch.equal(value, model.adapter.state_dict()[name])
    assert torch.equal(asked(load_sun(reading(0), file), negative="red"), asked(model, negative="red"))
    assert float((asked(plugged, negative="red") - asked(other)).abs().max()) > 1e-4
    with pytest.raises(ValueError, match=r"is an adapter for another network: it has width \[8, 8\], not \[16, 8\]"):
        load_sun(reading(width=16), file)
    (tmp_path / "bad").write_text(json.dumps({}))
    for name in ("bad", "none"):
        with pytest.raises(ValueError, match=f"{name} is no adapter of 'sun'"):
            load_sun(other, tmp_path / name)


def test_what_it_cannot_stand_on():
    plain = NetworkDenoiser(MLP((2,), 8, 1), Flow(), "velocity", (2,))
    with pytest.raises(ValueError, match="leads away from captions or labels: .* this one has no conditions"):
        Sun(plain)
    with pytest.raises(ValueError, match=r"this one has \['guidance', 'negative', 'text'\]"):
        Sun(Sun(reading()).model.__class__(reading().network, Flow(), conditions=Sun(reading()).conditions))
    with pytest.raises(ValueError, match="stands on fewstep's own networks, and Sun is none"):
        Sun(Sun(reading()))
