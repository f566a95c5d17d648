"""Reward tuning of a text encoder: what moves, what is anchored, and what lies between two encoders."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fewstep.conditions.label import Label
from fewstep.conditions.text import Text
from fewstep.core.methods import find
from fewstep.core.noise import Noise
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.processes.ve import EDM
from fewstep.sampling.build import plan
from fewstep.training.text_encoder import interpolate_encoders, tune_text_encoder

SHAPE, WORDS = (3, 4, 4), ("red", "green", "small", "disc")
CAPTIONS = ["red disc", "small green disc", ""]


def denoiser(seed: int = 0) -> NetworkDenoiser:
    torch.manual_seed(seed)
    network = find("unet")(
        channels=3, size=4, width=(8,), attention=(4,), classes=None, vocabulary=len(WORDS), captions=3, embedding=16
    )
    for parameter in network.parameters():
        if parameter.abs().max() == 0:  # the branches start at zero: words would not show
            nn.init.normal_(parameter, std=0.3)
    conditions = {"text": Text(WORDS, 3)}
    return NetworkDenoiser(network, EDM(), "x0", SHAPE, conditions, precondition="edm").eval()


def chain(model: NetworkDenoiser):
    return plan(model.process, "dpmpp-2m", timesteps="karras", nfe=3)


def redness(x: torch.Tensor, **condition: torch.Tensor) -> torch.Tensor:
    return x[:, 0].flatten(1).mean(1) - x[:, 1].flatten(1).mean(1)


def measured(model: NetworkDenoiser, reward, count: int = 30) -> float:
    noise, text = Noise(5).normal(0, (count, *SHAPE)), (CAPTIONS * count)[:count]
    return float(reward(chain(model)(model, noise, text=text)).mean())


@pytest.mark.parametrize(
    "method",
    ["renoised", *(pytest.param(name, marks=pytest.mark.slow) for name in ("truncated", "full"))],
)
def test_the_reward_rises_and_only_the_encoder_moves(method):
    model = denoiser()
    before = copy.deepcopy(model.state_dict())
    found = find("textcraftor")(
        model, redness, CAPTIONS, chain(model), steps=30, batch=16, lr=1e-2, method=method, every=30, fresh=16
    )
    assert measured(found.model, redness) > measured(model, redness) + 0.02
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for name, value in found.model.state_dict().items():
        assert name.startswith("network.text.") or torch.equal(before[name], value), name
    assert all(parameter.requires_grad for parameter in found.model.parameters())


@pytest.mark.slow
def test_rewards_are_weighted_and_know_the_caption():
    model = denoiser()

    def asked(x, text, **_):
        """Redness where the caption says red (word 1), its opposite elsewhere."""
        return torch.where((text == 1).any(1), 1.0, -1.0) * redness(x)

    options = {"steps": 30, "batch": 16, "lr": 1e-2, "every": 30, "fresh": 16}
    found = tune_text_encoder(
        model, [(2.0, asked), (0.0, redness)], ["red disc", "green disc"], chain(model), **options
    )
    noise = Noise(5).normal(0, (20, *SHAPE))

    def gap(model) -> float:
        red, green = (
            float(redness(chain(model)(model, noise, text=text)).mean()) for text in ("red disc", "green disc")
        )
        return red - green

    assert gap(found.model) > gap(model) + 0.02
    single = tune_text_encoder(
        model, lambda x, **c: 2 * asked(x, **c), ["red disc", "green disc"], chain(model), **options
    )
    assert found.rewards == pytest.approx(single.rewards, rel=1e-4)


def test_the_anchor_holds_the_words():
    model, text = denoiser(), torch.tensor([[1, 4, 0], [3, 2, 4], [0, 0, 0]])
    moved = []
    for anchor in (0.0, 3.0):
        options = {"steps": 20, "batch": 16, "lr": 1e-2, "every": 20, "fresh": 16, "anchor": anchor}
        tuned = tune_text_encoder(model, redness, CAPTIONS, chain(model), **options).model
        with torch.no_grad():
            cosine = torch.cosine_similarity(tuned.network.text(text), model.network.text(text), dim=2)
        moved.append(float((1 - cosine).mean()))
    assert 1e-4 < moved[1] < 0.1 * moved[0]


def test_between_two_encoders():
    one, other = denoiser(), denoiser()
    for parameter in other.network.text.parameters():
        nn.init.normal_(parameter, std=0.2)
    noise = Noise(5).normal(0, (4, *SHAPE))

    def answer(model) -> torch.Tensor:
        return chain(model)(model, noise, text="red disc")

    assert torch.equal(answer(interpolate_encoders(one, other, 0.0)), answer(one))
    torch.testing.assert_close(answer(interpolate_encoders(one, other, 1.0)), answer(other), rtol=1e-4, atol=1e-5)
    middle = interpolate_encoders(one, other, 0.25).network.text.word.weight
    torch.testing.assert_close(middle, 0.75 * one.network.text.word.weight + 0.25 * other.network.text.word.weight)
    with pytest.raises(ValueError, match="between 0 and 1"):
        interpolate_encoders(one, other, 1.5)
    wide = find("unet")(channels=3, size=4, width=(8,), attention=(4,), classes=None, vocabulary=9, captions=3)
    with pytest.raises(ValueError, match="different shapes"):
        interpolate_encoders(one, NetworkDenoiser(wide, EDM(), "x0", SHAPE), 0.5)


def test_bad_input():
    network = find("unet")(channels=1, size=4, width=(8,), attention=(), classes=3)
    plain = NetworkDenoiser(network, EDM(), "x0", (1, 4, 4), {"label": Label(3)})
    with pytest.raises(ValueError, match="no text encoder"):
        tune_text_encoder(plain, redness, CAPTIONS, chain(plain), steps=1)
    model = denoiser()
    for rewards, captions in (([], CAPTIONS), (redness, [])):
        with pytest.raises(ValueError, match="needs"):
            tune_text_encoder(model, rewards, captions, chain(model), steps=1)
    with pytest.raises(ValueError, match="anchor"):
        tune_text_encoder(model, redness, CAPTIONS, chain(model), steps=1, anchor=-1.0)
