"""`fewstep.searching.evaluate`: on models whose answers are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fewstep.conditions.label import Label
from fewstep.conditions.picture import Picture
from fewstep.core.denoiser import Denoiser
from fewstep.core.prediction import Prediction
from fewstep.data import digits
from fewstep.data.dataset import Dataset, DataSpec
from fewstep.data.open import open_data
from fewstep.data.shapes import render_caption
from fewstep.denoisers.dataset import DatasetDenoiser
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan as make_plan
from fewstep.searching.evaluate import evaluate, metric_names, reference_plan
from fewstep.searching.problem import known_data


class Pixelwise(Denoiser):
    """Independent pixels N(0, 0.5^2), whose ODE has the solution x(0) = x(t) 0.5 / sqrt(sigma^2 + 0.25 alpha^2)."""

    def __init__(self, process, shape=(1, 3, 5), label=False, data=None, value_range=(-1.0, 1.0)):
        super().__init__()
        self.process, self.shape, self.data, self.value_range = process, shape, data, value_range
        self.conditions = {"label": Label(10)} if label else {}
        self.seen: list[Tensor] = []

    def forward(self, x, t, **condition):
        if "label" in condition:
            self.seen.append(condition["label"])
        alpha, sigma = (f(t).to(x.dtype) for f in (self.process.alpha, self.process.sigma))
        return Prediction(x * (0.25 * alpha / (0.25 * alpha**2 + sigma**2)), "x0", x, t, self.process)


def relative(a, b):
    return float((a - b).flatten(1).norm(dim=1).mean() / b.flatten(1).norm(dim=1).mean())


@pytest.mark.parametrize("process", [VP(), EDM()], ids=["vp", "edm"])
@pytest.mark.parametrize("end", ["zero", "min"])
def test_the_endpoint_error_is_the_distance_from_the_exact_end(process, end):
    from fewstep.core.noise import Noise

    model = Pixelwise(process)
    plan = make_plan(process, "ddim", steps=4, end=end)
    found = evaluate(model, plan, n=9, seed=5, metrics=["endpoint"])["figures"]["endpoint"]
    noise = Noise(5).normal(0, (9, 1, 3, 5), dtype=torch.float64)
    first, last = plan.times[0], plan.times[-1]
    a, s = process.alpha(first), process.sigma(first)
    a0, s0 = process.alpha(last), process.sigma(last)
    exact = noise * s * math.sqrt(s0**2 + 0.25 * a0**2) / math.sqrt(s**2 + 0.25 * a**2)
    truth = relative(plan(model, noise, dtype=torch.float64), exact)
    assert found["value"] == pytest.approx(truth, abs=3e-4) and truth > 0.02
    assert found["reference_error"] < 5e-4 and found["reference_nfe"] == 200 and found["n"] == 9


def test_the_reference_has_the_plans_own_ends():
    process = EDM()
    for times in ([80.0, 5.0, 0.3], [10.0, 1.0, 0.0], [7.0, 1.0, 0.002]):
        plan = make_plan(process, "ddim", timesteps=times)
        found = reference_plan(process, plan, 100)
        assert found.times[0] == times[0] and found.times[-1] == times[-1] and 15 < found.nfe <= 101
    whole = make_plan(process, "euler", steps=3, end="min")
    assert reference_plan(process, whole, 200).nfe == 200
    assert reference_plan(process, whole, 200).times[-1] == process.t_min


def test_labels_come_in_the_datas_proportions():
    model = Pixelwise(EDM(), (1, 8, 8), label=True, data="digits")
    images, labels = digits.load("train")
    out = evaluate(model, make_plan(model.process, "ddim", steps=1), n=len(images), metrics=["accuracy"])
    seen = torch.cat(model.seen)
    assert torch.equal(seen.bincount(minlength=10), labels.bincount(minlength=10))
    assert not torch.equal(seen, labels)  # shuffled
    assert out["figures"]["accuracy"]["n"] == len(images) and out["data"] == "digits"


@pytest.mark.slow
def test_the_training_images_themselves():
    """The optimal denoiser of the training images draws training images: the distance is that of real from real."""
    images, _ = digits.load("train")
    model = DatasetDenoiser(images, EDM())
    out = evaluate(model, make_plan(model.process, "dpmpp-2m", steps=12), n=400, data="digits")
    figures = out["figures"]
    assert set(figures) == {"frechet", "validation_frechet", "precision-recall", "sliced-wasserstein", "endpoint"}
    frechet = figures["frechet"]
    assert frechet["n"] == frechet["floor_n"] == 400 and frechet["features"] == "pixels"
    assert frechet["value"] < 1.2 * frechet["floor"]
    assert figures["validation_frechet"]["n"] == 360 and figures["validation_frechet"]["value"] > 0.2
    assert figures["precision-recall"]["precision"] > 0.95
    assert out["planned_nfe"] == out["actual_nfe"] == 12
    assert out["notes"] == [
        "no accuracy: the model takes no label: there is none to be right about",
        "no captions: the model reads no captions",
        "no psnr: the samples have no originals: those are in data=... with the pictures that the model takes",
    ]


def test_repeatable_and_by_seed():
    model = Pixelwise(EDM(), (1, 8, 8), label=True, data="digits")

    def value(seed):
        plan = make_plan(model.process, "ddim", steps=2)
        return evaluate(model, plan, n=300, metrics=["frechet"], seed=seed)["figures"]["frechet"]["value"]

    assert value(1) == value(1) != value(2)


def test_other_data(tmp_path):
    import numpy as np

    images = np.random.default_rng(0).normal(0, 0.3, (50, 3, 5)).clip(-1, 1).astype(np.float32)
    np.savez(tmp_path / "own.npz", images=images, value_range=np.array([-1.0, 1.0]))
    plan = make_plan(EDM(), "dpmpp-2m", steps=10)
    for data in (tmp_path / "own.npz", open_data(tmp_path / "own.npz")):
        out = evaluate(Pixelwise(EDM()), plan, n=40, metrics=["frechet"], data=data)
        assert out["data"] == "own" and out["figures"]["frechet"]["n_real"] == 45  # a tenth is held out
        assert "validation_frechet" not in out["figures"]
    with pytest.raises(ValueError, match=r"'own' has samples of \(1, 3, 5\), the model makes \(1, 4, 5\)"):
        evaluate(Pixelwise(EDM(), (1, 4, 5)), plan, n=40, metrics=["frechet"], data=tmp_path / "own.npz")
    with pytest.raises(ValueError, match="the model's samples in"):
        evaluate(Pixelwise(EDM(), value_range=(0.0, 1.0)), plan, n=40, metrics=["frechet"], data=tmp_path / "own.npz")


def test_what_does_not_apply_is_said():
    model, plan = Pixelwise(VP()), make_plan(VP(), "ddpm", steps=3)
    assert known_data(model) is None and known_data(Pixelwise(VP(), data="gone.npz")) is None
    out = evaluate(model, plan, n=5)
    assert out["figures"] == {} and len(out["notes"]) == len(metric_names())
    with pytest.raises(ValueError, match="'endpoint' does not apply: the plan draws noise"):
        evaluate(model, plan, n=5, metrics=["endpoint"])
    with pytest.raises(ValueError, match="'accuracy' does not apply: the model takes no label"):
        evaluate(model, plan, n=5, metrics=["accuracy"])
    with pytest.raises(ValueError, match="'accuracy' does not apply: what judges the samples knows the digits alone"):
        evaluate(Pixelwise(VP(), label=True), plan, n=5, metrics=["accuracy"])
    with pytest.raises(ValueError, match="'frechet' does not apply: the model's data set is not known"):
        evaluate(model, plan, n=5, metrics=["frechet"])


def test_bad_input():
    model = Pixelwise(VP())
    with pytest.raises(ValueError, match="unknown metric 'frechett': did you mean 'frechet'"):
        evaluate(model, metrics=["frechett"])
    with pytest.raises(ValueError, match="unknown features 'pixel'"):
        evaluate(model, features="pixel")
    with pytest.raises(ValueError, match="n must be a whole number of at least 2, got 1"):
        evaluate(model, n=1)
    model.shape = None
    with pytest.raises(ValueError, match="takes any shape"):
        evaluate(model, n=2, metrics=["endpoint"])


class Painter(Denoiser):
    """Answers with the picture that its caption asks for, whatever it is shown."""

    def __init__(self):
        super().__init__()
        data = open_data("shapes")
        self.process, self.shape, self.value_range, self.data = EDM(), (3, 32, 32), (-1.0, 1.0), "shapes"
        self.conditions = {"text": data.spec.text}

    def forward(self, x, t, text):
        captions = [self.conditions["text"].words(row) for row in text.tolist()]
        x0 = torch.stack([render_caption(caption, seed) for seed, caption in enumerate(captions)])
        return Prediction(x0.to(x), "x0", x, t, self.process)


@pytest.mark.slow
def test_captions_are_asked_for_and_read_back():
    out = evaluate(Painter(), make_plan(EDM(), "ddim", 2), n=24, metrics=["captions", "frechet"])
    assert out["figures"]["captions"]["value"] == 1.0 and out["features"] == "blocks"
    assert out["figures"]["frechet"]["features"] == "blocks"
    assert out["figures"]["frechet"]["value"] < 2 * out["figures"]["frechet"]["floor"]
    with pytest.raises(ValueError, match="'accuracy' does not apply: the model takes no label"):
        evaluate(Painter(), n=4, metrics=["accuracy"])


class Echo(Denoiser):
    """Answers with the picture that it is given: a restorer that leaves everything as it is."""

    def __init__(self):
        super().__init__()
        self.process, self.shape, self.value_range = EDM(), (1, 4, 4), (-1.0, 1.0)
        self.conditions = {"y": Picture((1, 4, 4))}

    def forward(self, x, t, y):
        return Prediction(y.to(x), "x0", x, t, self.process)


def test_a_model_that_takes_a_picture_is_measured_against_the_originals():
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(50, 1, 4, 4, generator=generator) - 0.5
    data = Dataset(DataSpec("pairs", (1, 4, 4), (-1.0, 1.0), None, 50), x0, given={"y": x0 + 0.02})
    out = evaluate(Echo(), make_plan(EDM(), "ddim", 2), n=60, data=data)  # more samples than pairs
    assert set(out["figures"]) == {
        "frechet", "precision-recall", "sliced-wasserstein", "psnr", "ssim", "energy-score", "endpoint"
    }  # fmt: skip
    # An error of 0.02 everywhere, whatever rows were taken: each sample is set beside its own original.
    assert out["figures"]["psnr"]["value"] == pytest.approx(20 * math.log10(2 / 0.02), abs=1e-3)
    assert out["figures"]["endpoint"]["value"] < 1e-6 and out["data"] == "pairs"
    alone = evaluate(Echo(), make_plan(EDM(), "ddim", 2), n=8, data=data, metrics=["endpoint"])
    assert set(alone["figures"]) == {"endpoint"}
    with pytest.raises(ValueError, match="this model needs y"):
        evaluate(Echo(), make_plan(EDM(), "ddim", 2), n=8, metrics=["endpoint"])
    with pytest.raises(ValueError, match="'psnr' does not apply: the samples have no originals"):
        evaluate(Echo(), make_plan(EDM(), "ddim", 2), n=8, metrics=["psnr"])
