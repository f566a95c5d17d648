"""SinDDM: the detail of each scale, and pictures of any size out of one."""

from __future__ import annotations

import pytest
import torch

from fewstep.core.methods import find
from fewstep.core.noise import Noise
from fewstep.core.prediction import Prediction
from fewstep.data.pyramid import Pyramid
from fewstep.sampling.build import plan
from fewstep.training.fit import fit
from fewstep.training.single_image import SingleImage

F64 = torch.float64


@pytest.fixture
def texture():
    """Stripes of two widths, (2, 30, 40)."""
    y, x = torch.meshgrid(torch.arange(30.0), torch.arange(40.0), indexing="ij")
    return torch.stack([torch.sin(x / 5) * torch.cos(y / 7), torch.sin(x * 1.3 + y)]).mul(0.8)


def make(pyramid):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SingleImage(pyramid, width=8, depth=2)


def test_the_loss_and_the_sampler_mean_the_same_state_and_prediction(texture):
    """The state of the loss is the sampler's, and a network that is right in the loss gives the sampler its x0."""
    pyramid = Pyramid(texture, factor=1.5, coarsest=12)
    model = make(pyramid)
    for scale in (0, 2):
        x0, y = pyramid.sharp(scale), pyramid.blurred(scale)
        eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
        seen = []
        model.network.register_forward_hook(lambda module, inputs, out, seen=seen: seen.append(inputs))
        share = torch.tensor([0.6], dtype=F64)
        _, target = model.loss_pair(x0, eps, share, y=y, scale=torch.tensor([scale]))
        detail = model.detail(scale, y)
        process = detail.process
        t = share * process.t_max
        u = process.alpha(t).float() * (x0 - y) + process.sigma(t).float() * eps
        prediction = detail(u, t[0])
        for ours, theirs in zip(seen[0], seen[1], strict=True):
            assert torch.allclose(ours.float(), theirs.float(), atol=1e-5)
        right = Prediction(target + y, prediction.kind, u, t, process)
        assert torch.allclose(right.x0, x0 - y, atol=1e-5) and torch.allclose(right.eps, eps, atol=1e-5)


def test_a_network_that_knows_the_picture_draws_it_at_every_scale(texture):
    """With the exact answer for a law of one picture, `eps - x` at x_t, every scale ends at the picture itself."""
    pyramid = Pyramid(texture, factor=1.5, coarsest=12)

    class Knows(torch.nn.Module):
        def forward(self, x, noise, label):
            sharp = pyramid.sharp(int(label[0]))
            y = pyramid.blurred(int(label[0]))
            t = noise[:, None, None, None]
            gamma = t / pyramid.starts[int(label[0])] if label[0] else torch.zeros_like(t)
            return (x - (1 - t) * torch.lerp(sharp, y, gamma)) / t - sharp

    model = make(pyramid)
    model.network = Knows()
    samples = model.sample(2, steps=4, seed=5)
    assert torch.allclose(samples, texture.expand(2, -1, -1, -1), atol=1e-3)


def test_it_trains_and_makes_other_sizes(texture):
    assert find("sinddm", "training") is SingleImage
    pyramid = Pyramid(texture, factor=1.5, coarsest=12, crop=16)
    losses = []
    model = fit(
        make(pyramid), pyramid, steps=80, batch=4, lr=1e-2, watch=lambda step, loss: losses.append(float(loss.mean()))
    )
    assert sum(losses[-20:]) < 0.9 * sum(losses[:20])
    samples = model.sample(3, (20, 50), steps=2)
    assert samples.shape == (3, 2, 20, 50) and samples.abs().max() <= 1
    assert torch.equal(samples, model.sample(3, (20, 50), steps=2))
    assert torch.allclose(samples[:1], model.sample(1, (20, 50), steps=2), atol=1e-5)
    assert not torch.equal(samples, model.sample(3, (20, 50), steps=2, seed=1))


def test_the_detail_starts_where_the_noise_is_as_strong(texture):
    pyramid = Pyramid(texture, factor=1.5, coarsest=12)
    model = make(pyramid)
    for scale in (1, 2):
        process = model.detail(scale, pyramid.blurred(scale)).process
        assert process.t_max == pyramid.starts[scale] and process.alpha(process.t_max) == 0
    coarsest = model.detail(0, pyramid.blurred(0))
    assert coarsest.process.name == "flow"
    x, t = torch.randn(3, 2, 13, 18, generator=torch.Generator().manual_seed(0)), torch.tensor([0.2, 0.5, 1.0])
    assert torch.equal(model(x, t).x0, coarsest(x, t).x0)  # the model itself is the denoiser of where all begins


def test_every_solver_runs_a_scale(texture):
    """From alpha = 0 at sigma < 1 to sigma = 0."""
    pyramid = Pyramid(texture, factor=1.5, coarsest=12)
    level = make(pyramid).detail(2, pyramid.blurred(2))
    noise = Noise(0).normal(0, (1, 2, 30, 40))
    for solver in ("ddim", "dpmpp-2m", "heun", "unipc-3", "vab-3", "deis-2"):
        for steps in (1, 7):
            assert torch.isfinite(plan(level.process, solver, steps)(level, noise)).all(), solver


def test_bad_input_is_refused(texture):
    model = make(Pyramid(texture, coarsest=20))
    with pytest.raises(ValueError, match="at least 2, got 1 and"):
        model.sample(1, (1, 5))
    with pytest.raises(ValueError, match="draws noise at every step"):
        model.sample(1, solver="dpmpp-2s-ancestral")
