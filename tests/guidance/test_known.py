"""Inpainting by what is known. Method: known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fewstep as fs
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import find
from fewstep.core.prediction import KINDS, Prediction
from fewstep.denoisers.wrap import wrap
from fewstep.guidance.known import Known
from fewstep.operators.mask import Inpaint
from fewstep.processes.flow import Flow
from fewstep.processes.vp import VP

SOLVERS = ("ddim", "dpmpp-2m", "unipc-3", "heun", "ddpm", "dpmpp-2m-sde")


class Latent(Denoiser):
    """Latents at half the size, two channels of them."""

    def __init__(self):
        super().__init__()
        self.process, self.shape, self.value_range = VP(), (2, 3, 5), (-1.0, 1.0)
        self.autoencoder = nn.Identity()

    def forward(self, x, t, **condition):
        return Prediction(torch.tanh(x), "eps", x, t, self.process)

    def encode(self, data, **condition):
        small = nn.functional.avg_pool2d(data, 2)
        return torch.cat([small, -small], dim=1)

    def decode(self, x, **condition):
        return nn.functional.interpolate(x[:, :1], scale_factor=2)


@pytest.fixture(scope="module")
def digits():
    model = fs.load("digits")
    picture = torch.linspace(-1, 1, 64).reshape(1, 8, 8)
    mask = torch.zeros(8, 8)
    mask[:, :5] = 1
    return model, picture, mask


def test_it_is_registered():
    assert find("known", room="guidance") is Known


@pytest.mark.parametrize("solver", SOLVERS)
def test_known_pixels_come_out_exact_and_the_others_are_drawn(digits, solver):
    model, picture, mask = digits
    guided = fs.guide(model, "known", picture=picture, mask=mask)
    x = fs.sample(guided, 3, steps=4, solver=solver, label=3, seed=2)
    assert torch.equal(x[:, :, :, :5], picture[:, :, :5].expand(3, 1, 8, 5))
    free = fs.sample(model, 3, steps=4, solver=solver, label=3, seed=2)
    assert float((x - free)[:, :, :, 5:].abs().mean()) > 1e-3  # the rest has seen the picture
    assert float(x[:, :, :, 5:].std()) > 0.1


@pytest.mark.parametrize("solver", ["dpmpp-3m", "ddpm"])
def test_an_empty_mask_is_the_base_bit_for_bit(digits, solver):
    model, picture, mask = digits
    guided = fs.guide(model, "known", picture=picture, mask=torch.zeros_like(mask))
    assert torch.equal(
        fs.sample(guided, 3, steps=3, solver=solver, label=1), fs.sample(model, 3, steps=3, solver=solver, label=1)
    )


def test_the_unknown_part_of_an_answer_is_the_models_own(digits):
    model, picture, mask = digits
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(1.5)
    label = torch.tensor([1, 2])
    made = Known(model, picture, mask)(x, t, label=label)
    base = model(x, t, label=label)
    assert torch.equal(made.value[..., 5:], base.value[..., 5:])
    torch.testing.assert_close(made.x0[..., :5], picture[..., :5].expand(2, 1, 8, 5))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_keeps_its_own_and_is_finite_in_pure_noise(kind):
    model = wrap(lambda x, t: 0.3 * x, Flow(), kind, (4,))
    clean, mask = torch.tensor([1.0, -2.0, 3.0, 0.5]), torch.tensor([1.0, 1.0, 0.0, 0.5])
    guided = Known(model, clean, mask)
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t in (torch.tensor(0.4), torch.tensor([0.1, 0.9])):
        made, base = guided(x, t), model(x, t)
        assert made.kind == kind
        torch.testing.assert_close(made.x0[:, :2], clean[:2].double().expand(2, 2), rtol=1e-5, atol=1e-5)
        middle = 0.5 * (base.x0[:, 3] + 0.5)
        torch.testing.assert_close(made.x0[:, 3], middle, rtol=1e-5, atol=1e-5)
    assert bool(torch.isfinite(guided(x, torch.tensor(1.0)).value).all())


def test_latents_are_known_by_area_and_pixels_pasted_at_full_resolution():
    model = Latent()
    picture = torch.linspace(-1, 1, 60).reshape(1, 6, 10)
    mask = torch.zeros(6, 10)
    mask[:3, :4] = 1
    guided = Known(model, picture, mask)
    _, small = guided._own(torch.zeros(1, 2, 3, 5), {})
    assert small.shape == (1, 1, 3, 5)
    assert torch.equal(small[0, 0], torch.tensor([[1.0, 1, 0, 0, 0], [0.5, 0.5, 0, 0, 0], [0.0, 0, 0, 0, 0]]))
    x = fs.sample(guided, 2, steps=3)
    assert x.shape == (2, 1, 6, 10) and torch.equal(x[:, :, :3, :4], picture[:, :3, :4].expand(2, 1, 3, 4))
    assert guided.describe()["known"] == "0.2 of the picture"


def test_one_picture_a_sample(digits):
    model, picture, mask = digits
    two = torch.stack([picture, -picture])
    x = fs.sample(Known(model, two, mask), 2, steps=2, label=0)
    assert torch.equal(x[..., :5], two[..., :5])
    with pytest.raises(ValueError, match="picture must be one for all or 3 of them, one for each sample, got 2"):
        fs.sample(Known(model, two, mask), 3, steps=2, label=0)


def each():
    """Three pictures of a latent model, three masks, and the samples under them."""
    pictures = torch.linspace(-1, 1, 180).reshape(3, 1, 6, 10)
    masks = torch.zeros(3, 1, 6, 10)
    for i in range(3):
        masks[i, :, : i + 2, :4] = 1
    return pictures, masks


def test_pictures_and_masks_of_each_sample_go_with_the_batch():
    pictures, masks = each()
    model = Latent()
    known = Known(model, pictures, masks)
    whole = fs.sample(known, 3, steps=3, seed=4)
    for batch in (1, 2):
        torch.testing.assert_close(fs.sample(known, 3, steps=3, seed=4, batch_size=batch), whole, atol=1e-6, rtol=0)
    for i in range(3):
        alone = fs.sample(Known(model, pictures[i], masks[i]), 1, steps=3, seed=4, first=i)
        torch.testing.assert_close(whole[i : i + 1], alone, atol=1e-6, rtol=0)
    plain = Known(model, torch.zeros(1, 6, 10), torch.zeros(6, 10))
    said = fs.sample(plain, 3, steps=3, seed=4, picture=list(pictures), mask=[m[0].numpy() for m in masks])
    torch.testing.assert_close(said, whole, atol=1e-6, rtol=0)


def test_requests_with_their_own_pictures_share_calls():
    pictures, masks = each()
    known = Known(Latent(), pictures[0], masks[0])
    noise = lambda seed, n: fs.Noise(seed).normal(0, (n, 2, 3, 5))  # noqa: E731
    requests = [
        (fs.plan(known.process, "ddim", 4), noise(0, 2), {"picture": pictures[1:], "mask": masks[1:]}),
        (fs.plan(known.process, "dpmpp-2m", 3), noise(1, 1), {}),
        (fs.plan(known.process, "heun", 2), noise(2, 1), {"picture": pictures[2]}),
    ]
    for made, (plan, x, given) in zip(fs.run_mixed(requests, known), requests, strict=True):
        torch.testing.assert_close(made, plan(known, x, **given), atol=1e-6, rtol=0)


def test_the_encoder_runs_once_in_a_run(monkeypatch):
    pictures, masks = each()
    known, calls = Known(Latent(), pictures, masks), []
    encode = Latent.encode
    monkeypatch.setattr(Latent, "encode", lambda *args, **named: calls.append(1) or encode(*args, **named))
    fs.sample(known, 3, steps=5)
    assert len(calls) == 1


def test_what_is_said_for_each_sample_is_counted():
    pictures, masks = each()
    with pytest.raises(ValueError, match="there are 3 pictures and 2 masks"):
        Known(Latent(), pictures, masks[:2])
    known = Known(Latent(), pictures[0], masks[0])
    with pytest.raises(ValueError, match="picture must be one for all or 4 of them"):
        fs.sample(known, 4, steps=2, picture=pictures)
    with pytest.raises(ValueError, match="mask must be one for all or 4 of them"):
        fs.sample(known, 4, steps=2, mask=masks)


def test_it_goes_with_guidance_and_a_start(digits):
    model, picture, mask = digits
    guided = Known(fs.guide(model, "cfg", scale=2.0), picture, mask)
    x = fs.sample(guided, 2, steps=4, label=5, init=picture.expand(2, 1, 8, 8), strength=0.5)
    assert torch.equal(x[..., :5], picture[..., :5].expand(2, 1, 8, 5))


def test_bad_input(digits):
    model, picture, mask = digits
    with pytest.raises(ValueError, match="picture must have shape"):
        fs.guide(model, "known", picture=torch.zeros(1, 9, 9), mask=mask)
    with pytest.raises(ValueError, match="the mask must have the picture's shape"):
        fs.guide(model, "known", picture=picture, mask=torch.zeros(4, 8))
    with pytest.raises(ValueError, match="must lie between 0 and 1, got 0 to 255"):
        fs.guide(model, "known", picture=picture, mask=255 * mask)
    with pytest.raises(ValueError, match="'known' needs mask"):
        fs.guide(model, "known", picture=picture)
    with pytest.raises(ValueError, match="mask names a file that does not exist: 'mask.png'"):
        fs.guide(model, "known", picture=picture, mask="mask.png")


def test_an_operators_mask_will_do(digits):
    model, picture, mask = digits
    for given in (Inpaint(mask), Inpaint("half", share=5 / 8)):
        known = Known(model, picture, given)
        assert torch.equal(known.mask, Known(model, picture, mask).mask)
        assert torch.equal(known.conditions["mask"].check("mask", given, 2, known.device)[1], known.mask[0])
