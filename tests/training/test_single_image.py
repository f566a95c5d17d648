"""SinDDM: the pyramid, the process of the detail, and pictures of any size out of one."""

from __future__ import annotations

import pytest
import torch

from fewstep.core.methods import find
from fewstep.core.noise import Noise
from fewstep.core.prediction import Prediction
from fewstep.sampling.build import plan
from fewstep.training.fit import fit
from fewstep.training.single_image import Blend, Level, Pyramid, SingleImage, scaled

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


def test_the_process_of_the_detail():
    process = Blend(0.3)
    t = torch.linspace(1e-3, 0.2999, 31, dtype=F64, requires_grad=True)
    assert process.alpha(0.0) == 1 and process.sigma(0.0) == 0 and process.alpha(0.3) == 0
    assert (process.log_snr(t).diff() < 0).all()
    assert torch.allclose(process.log_snr(t), (process.alpha(t) / process.sigma(t)).log())
    assert torch.allclose(process.time(process.log_snr(t)), t, atol=1e-13)
    (dalpha,) = torch.autograd.grad(process.alpha(t).sum(), t)
    assert torch.allclose(process.dalpha(t), dalpha) and (process.dsigma(t) == 1).all()
    # From no detail (T) to all of it: finite at both ends.
    assert process.time(-torch.inf) == pytest.approx(0.3) and process.time(800.0) == 0
    with pytest.raises(ValueError, match="t_max < 1"):
        Blend(1.0)


def test_the_pyramid(texture):
    pyramid = Pyramid(texture, factor=1.5, coarsest=12)
    assert pyramid.scales == 3 and pyramid.sizes() == [(13, 18), (20, 27), (30, 40)]
    assert torch.equal(pyramid.sharp(2)[0], texture) and not pyramid.blurred(0).any()
    for scale in (1, 2):
        assert torch.equal(pyramid.blurred(scale), scaled(pyramid.sharp(scale - 1), pyramid.sizes()[scale]))
        detail = float((pyramid.sharp(scale) - pyramid.blurred(scale)).square().mean().sqrt())
        start, process = pyramid.starts[scale], pyramid.process(scale)
        assert start / (1 - start) == pytest.approx(detail, rel=1e-5)  # noise as strong as the detail
        assert process.t_max == start and process.alpha(start) == 0
    assert pyramid.starts[0] == 1.0 and pyramid.process(0).name == "flow"
    assert pyramid.sizes((60, 20))[-1] == (60, 20)


def test_a_batch_is_crops_of_one_scale_beside_the_coarser_picture(texture):
    pyramid = Pyramid(texture, factor=1.5, coarsest=12, crop=16)
    generator = torch.Generator().manual_seed(0)
    scales = set()
    for _ in range(20):
        x0, condition = pyramid(4, generator)
        scale = int(condition["scale"][0])
        scales.add(scale)
        assert x0.shape == condition["y"].shape == (4, 2, min(16, pyramid.sizes()[scale][0]), 16)
        sharp, blurred = pyramid.sharp(scale)[0], pyramid.blurred(scale)[0]
        places = sharp.unfold(1, x0.shape[2], 1).unfold(2, 16, 1)  # (C, h, w, H, W)
        for crop, beside in zip(x0, condition["y"], strict=True):
            match = (places == crop[:, None, None]).all(0).all(-1).all(-1).nonzero()
            assert len(match) == 1
            i, j = match[0].tolist()
            assert torch.equal(beside, blurred[:, i : i + x0.shape[2], j : j + 16])
    assert scales == {0, 1, 2}


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
        process = pyramid.process(scale)
        t = share * process.t_max
        u = process.alpha(t).float() * (x0 - y) + process.sigma(t).float() * eps
        prediction = Level(model.network, process, scale, y)(u, t[0])
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


def test_every_solver_runs_a_scale(texture):
    """From alpha = 0 at sigma < 1 to sigma = 0."""
    pyramid = Pyramid(texture, factor=1.5, coarsest=12)
    level = Level(make(pyramid).network, pyramid.process(2), 2, pyramid.blurred(2))
    noise = Noise(0).normal(0, (1, 2, 30, 40))
    for solver in ("ddim", "dpmpp-2m", "heun", "unipc-3", "vab-3", "deis-2"):
        for steps in (1, 7):
            assert torch.isfinite(plan(level.process, solver, steps)(level, noise)).all(), solver


def test_bad_input_is_refused(texture):
    with pytest.raises(ValueError, match="float tensor"):
        Pyramid(texture[0])
    with pytest.raises(ValueError, match="coarsest 2 to 30"):
        Pyramid(texture, coarsest=31)
    with pytest.raises(ValueError, match="factor must be above 1"):
        Pyramid(texture, factor=1.0)
    model = make(Pyramid(texture, coarsest=20))
    with pytest.raises(ValueError, match="its own sample"):
        model(torch.zeros(1, 2, 8, 8), torch.tensor(0.5))
    with pytest.raises(ValueError, match="at least 2, got 1 and"):
        model.sample(1, (1, 5))
    with pytest.raises(ValueError, match="draws noise at every step"):
        model.sample(1, solver="dpmpp-2s-ancestral")
