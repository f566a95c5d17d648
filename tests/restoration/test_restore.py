"""`fs.restore`: shapes, reports, models that restore by themselves, coordinates, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from restoration.problems import D, half, mixture, normal, wide
from torch import nn

import fewstep as fs
from fewstep.conditions.label import Label
from fewstep.conditions.picture import Picture
from fewstep.core.denoiser import Denoiser
from fewstep.core.prediction import Prediction
from fewstep.denoisers.coordinates import DCT, CoordinateDenoiser
from fewstep.hub.pipeline import PipelineDenoiser
from fewstep.processes.vp import VP


@pytest.fixture(scope="module")
def model():
    made = mixture()
    fs.calibrate(made, made.sample(64, seed=1), n=64, levels=4)
    return made


def test_shapes_and_the_report(model):
    a = wide()
    y = a.measure(model.sample(3, seed=3), noise=0.1)
    assert fs.restore(model, y, a, 0.1, nfe=4).shape == (3, D)
    told = fs.restore(model, y, a, 0.1, n=5, nfe=4, report=True)
    assert told.samples.shape == (3, 5, D) and told.residual.shape == (3, 5)
    assert torch.allclose(told.mean, told.samples.mean(1)) and bool((told.std > 0).all())
    left = (y[:, None].float() - a(told.samples.flatten(0, 1)).reshape(3, 5, -1)).square().mean(-1).sqrt()
    assert torch.allclose(told.residual, left, atol=1e-6)
    assert (told.nfe, told.passes, told.noise, told.method) == (4, 12, 0.1, "calibrated")


def test_evaluations_are_those_that_are_told(model):
    a = wide()
    y = a.measure(model.sample(2, seed=3), noise=0.1)

    class Counting(type(model)):
        calls = 0

        def forward(self, x, t, **condition):
            Counting.calls += 1
            return super().forward(x, t, **condition)

    counted = mixture()
    counted.__class__ = Counting
    counted.calibration = model.calibration
    for method in ("calibrated", "pigdm", "dps", "ddrm", "daps", "particles"):
        Counting.calls = 0
        told = fs.restore(counted, y, a, 0.1, method=method, nfe=7, report=True)
        assert Counting.calls == told.nfe == 7, method


def test_only_what_was_seen_counts_in_a_residual(model):
    a = half()
    y = a.measure(model.sample(400, seed=3), noise=0.1)
    assert bool((y[:, a.mask == 0] == 0).all())
    told = fs.restore(model, y, a, 0.1, nfe=6, report=True)
    exact = fs.restore(model, y, a, 0.1, method="exact", solver="dpmpp-2m", nfe=10, report=True)
    assert float(exact.residual.mean()) == pytest.approx(0.1, rel=0.3)
    assert float(told.residual.mean()) < 0.3
    # What is put where nothing was seen does not matter.
    dirty = y + 100 * (a.mask == 0)
    assert torch.equal(fs.restore(model, dirty, a, 0.1, nfe=6), told.samples[:, 0])


def test_final_brings_the_result_to_the_measurement(model):
    a = wide()
    y = a.measure(model.sample(3, seed=3))
    x = fs.restore(model, y, a, method="pigdm", nfe=4, final="project", dtype=torch.float64)
    assert float((a(x) - y).abs().max()) < 1e-10


class Given(Denoiser):
    """Answers with its condition y, whatever the state is."""

    def __init__(self):
        super().__init__()
        self.process, self.shape, self.conditions = VP(), (D,), {"y": Picture((D,))}

    def forward(self, x, t, y, **condition):
        return Prediction(y.to(x), "x0", x, t, self.process)


def test_a_model_that_is_conditioned_restores_by_itself():
    y = normal(2, D).float()
    assert torch.allclose(fs.restore(Given(), y, nfe=3), y, atol=1e-5)
    assert fs.restore(Given(), y, n=3, nfe=3).shape == (2, 3, D)
    assert fs.restore(Given(), y, n=3, nfe=3, report=True).residual is None
    with pytest.raises(ValueError, match="restores by itself"):
        fs.restore(Given(), y, half(), 0.1)


class Centre(nn.Module):
    """A network of pixels that always answers the same picture."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x, noise, **condition):
        return self.scale * torch.tanh(x)

    def config(self):
        return {}


def test_a_model_in_other_coordinates_is_measured_in_the_datas():
    shape = (1, 4, 4)
    model = CoordinateDenoiser(Centre(), VP(), DCT(shape), "x0", shape)
    mask = torch.zeros(shape)
    mask[..., :2] = 1
    a = fs.operators.Inpaint(mask)
    y = a.measure(torch.rand(2, *shape))
    x = fs.restore(model, y, a, method="ddnm", nfe=4)
    assert torch.allclose(x[..., :2], y[..., :2], atol=1e-5)  # in pixels, though its states are frequencies


def test_conditions_go_to_each_measurements_samples():
    seen = []

    class Told(Denoiser):
        def __init__(self):
            super().__init__()
            self.process, self.shape, self.conditions = VP(), (2,), {"label": Label(5)}

        def forward(self, x, t, label, **condition):
            seen.append(label.tolist())
            return Prediction(torch.zeros_like(x), "x0", x, t, self.process)

    fs.restore(Told(), torch.zeros(2, 2), fs.operators.Identity(), method="ddnm", n=2, nfe=1, label=[1, 3])
    assert seen == [[1, 1, 3, 3]]


def test_a_run_that_leaves_the_data_is_stopped_and_named(model):
    class Wild(type(model)):
        def forward(self, x, t, **condition):
            return Prediction(torch.full_like(x, 1e6), "x0", x, t, self.process)

    wild = mixture()
    wild.__class__ = Wild
    y = wide().measure(model.sample(1, seed=3), noise=0.1)
    with pytest.raises(ValueError, match=r"left the data's range at evaluation 1 \(t = .*a smaller weight"):
        fs.restore(wild, y, wide(), 0.1, method="diffpir", nfe=3)


def test_latents_are_refused_by_pixel_methods(model):
    latent = mixture()
    latent.autoencoder = nn.Identity()
    with pytest.raises(ValueError, match="samples are latents"):
        fs.restore(latent, torch.zeros(1, 3), wide(), 0.1, method="pigdm")


@pytest.fixture(scope="module")
def pipeline():
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from claims.pipelines import matching, tiny

    return PipelineDenoiser(tiny("StableDiffusionPipeline", matching("dpmpp-2m", "StableDiffusionPipeline")), size=16)


@pytest.mark.parametrize("method", ["psld", "resample", "flowdps", "stsl", "dps"])
def test_a_pipeline_restores_pictures_through_its_autoencoder(pipeline, method):
    op = fs.operators.Downsample(2)
    y = op.measure(fs.sample(pipeline, 1, steps=3, seed=1, text="a cat"), noise=0.05)
    how = {"method": method, "nfe": 8, "text": "a cat", "n": 2, "report": True}
    fits = method in ("resample", "flowdps")
    told = fs.restore(pipeline, y, op, 0.05, **how, options={} if fits else {"zeta": 5.0})
    assert told.samples.shape == (1, 2, 3, 16, 16) and not told.samples.requires_grad
    if fits:
        assert float(told.residual.max()) < 0.06
    else:  # an untrained network says little of how its x0 moves with the state
        blind = fs.restore(pipeline, y, op, 0.05, **how, options={"zeta": 0.0})
        assert float(told.residual.square().mean()) < float(blind.residual.square().mean())
    if method == "psld":
        with pytest.raises(ValueError, match="samples are latents, and 'calibrated' is for data"):
            fs.restore(pipeline, y, op, 0.05)
        with pytest.raises(ValueError, match=r"measures samples of shape \(3, 16, 16\), not"):
            op(torch.zeros(1, *pipeline.shape))
        assert fs.calibrate(pipeline, n=16, levels=2).values.shape == (2, *pipeline.shape)


def test_a_picture_in_one_tile_is_restored_alike(pipeline):
    op = fs.operators.Downsample(2)
    y = op.measure(torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) - 0.5)
    whole = fs.restore(pipeline, y, op, method="psld", nfe=3)
    pipeline.autoencoder.tile = 16  # no smaller than the picture: the same numbers, another way
    tiled = fs.restore(pipeline, y, op, method="psld", nfe=3)
    pipeline.autoencoder.tile = None
    assert torch.allclose(whole, tiled, atol=1e-5)
