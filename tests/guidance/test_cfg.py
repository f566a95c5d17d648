"""Classifier-free guidance, "cfg", against the closed form of a mixture with labels."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fewstep as fs
from fewstep.conditions.label import Label
from fewstep.conditions.picture import Picture
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import find
from fewstep.core.prediction import Prediction
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.guidance.cfg import cfg
from fewstep.processes.vp import VP
from fewstep.sampling.sample import choose_plan


class Labelled(Denoiser):
    """The mixture of two Gaussians, and each of them under its label."""

    def __init__(self) -> None:
        super().__init__()
        self.process, self.shape = VP(), (2,)
        means = torch.tensor([[-1.0, 0.5], [1.5, 0.0]])
        self.parts = [GaussianMixture(torch.ones(1), mean[None], 0.04, self.process) for mean in means]
        self.whole = GaussianMixture(torch.ones(2), means, 0.04, self.process)
        self.conditions = {"label": Label(2), "y": Picture((2,))}

    def forward(self, x: torch.Tensor, t: torch.Tensor, **condition: Any) -> Prediction:
        answers = torch.stack([model(x, t).value for model in (*self.parts, self.whole)])
        value = answers[condition["label"], torch.arange(len(x))] + 0 * condition["y"]
        return Prediction(value, "x0", x, t, self.process)


@pytest.fixture
def case():
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    condition = {"label": torch.tensor([0, 1, 1, 0, 2]), "y": torch.zeros(5, 2, dtype=torch.float64)}
    return Labelled(), x, torch.tensor(0.6, dtype=torch.float64), condition


def test_registered_and_by_name(case):
    assert find("cfg", room="guidance") is cfg
    assert fs.guide(case[0], "cfg", scale=3.0).scale == 3.0


@pytest.mark.parametrize("kind", ["x0", "eps", "v", "score"])
def test_the_formula_holds_in_every_kind(case, kind):
    model, x, t, condition = case
    empty = model(x, t, **condition | {"label": torch.full((5,), 2)}).to(kind)
    given = model(x, t, **condition).to(kind)
    guided = cfg(model, 3.5)(x, t, **condition).to(kind)
    torch.testing.assert_close(guided, empty + 3.5 * (given - empty), rtol=1e-9, atol=1e-9)


def test_ends(case):
    model, x, t, condition = case
    assert torch.equal(cfg(model, 1.0)(x, t, **condition).value, model(x, t, **condition).value)
    nothing = model(x, t, **condition | {"label": torch.full((5,), 2)}).value
    torch.testing.assert_close(cfg(model, 0.0)(x, t, **condition).value, nothing, rtol=0, atol=0)
    rows = t.expand(5)
    torch.testing.assert_close(cfg(model, 2.0)(x, rows, **condition).value, cfg(model, 2.0)(x, t, **condition).value)


def test_one_call_of_twice_the_batch(case):
    model, x, t, condition = case
    seen: list[int] = []
    model.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    cfg(model, 2.0)(x, t, **condition)
    cfg(model, 1.0)(x, t, **condition)
    assert seen == [10, 5]


def test_sampling_goes_further_towards_the_label(case):
    """Two Gaussians that overlap: the further out, the surer the other one is excluded."""
    model, n = case[0], 200
    for part, mean in zip(model.parts, ([-0.2, 0.0], [0.2, 0.0]), strict=True):
        part.means.copy_(torch.tensor([mean]))
        part.centres.copy_(part.means @ part.basis)
    model.whole = GaussianMixture(torch.ones(2), torch.tensor([[-0.2, 0.0], [0.2, 0.0]]), 0.04, model.process)
    y, shares = torch.zeros(2), []
    for scale in (0.0, 1.0, 3.0):
        x = fs.sample(fs.guide(model, "cfg", scale=scale), n, steps=10, label=1, y=y, dtype=torch.float64)
        shares.append(float((x[:, 0] > 0).double().mean()))
    assert 0.35 < shares[0] < 0.65 and 0.75 < shares[1] < 0.93 and shares[2] > 0.95


def test_faulty_arguments(case):
    with pytest.raises(ValueError, match="the guidance scale must be at least 0 and finite, got -1"):
        fs.guide(case[0], "cfg", scale=-1)
    with pytest.raises(ValueError, match="unknown option of the method of guidance 'cfg' 'weight'"):
        fs.guide(case[0], "cfg", weight=2)
    with pytest.raises(ValueError, match="unknown method of guidance 'cgf': did you mean 'cfg'"):
        fs.guide(case[0], "cgf", scale=2)
    with pytest.raises(ValueError, match="conditioned on a label or a caption"):
        fs.guide(case[0].whole, "cfg", scale=2)


def test_negative_takes_the_place_of_nothing(case):
    model, x, t, condition = case
    against = model(x, t, **condition | {"label": torch.ones(5, dtype=torch.long)}).value
    expected = torch.lerp(against, model(x, t, **condition).value, 2.5)
    torch.testing.assert_close(cfg(model, 2.5, negative={"label": 1})(x, t, **condition).value, expected)
    with pytest.raises(ValueError, match="condition 'text'"):
        cfg(model, 2.0, negative="blurry")


def test_a_negative_of_each_sample_goes_with_the_batch(case):
    model = case[0]
    y, away = torch.zeros(2), [1, 0, 1, 1]
    guided = cfg(model, 2.5, negative={"label": away})
    draw = lambda model, n=4, **said: fs.sample(model, n, steps=3, label=0, y=y, seed=3, dtype=torch.float64, **said)  # noqa: E731
    whole = draw(guided)
    for batch in (1, 3):
        torch.testing.assert_close(draw(guided, batch_size=batch), whole)
    for i, label in enumerate(away):
        torch.testing.assert_close(draw(cfg(model, 2.5, {"label": label}), 1, first=i), whole[i : i + 1])
    plain = cfg(model, 2.5)
    torch.testing.assert_close(draw(plain, negative={"label": away}), whole)
    torch.testing.assert_close(draw(plain, negative_label=away, batch_size=2), whole)
    both = cfg(model, 2.5, negative={"label": 1})
    assert torch.equal(draw(both), draw(cfg(model, 2.5), negative={"label": 1}))
    with pytest.raises(ValueError, match="negative: label must be one number or 3 of them, got shape .4,."):
        draw(guided, 3)
    with pytest.raises(ValueError, match="negative: label must be one number or 4 of them"):
        draw(plain, negative={"label": [1, 0]})


def test_requests_with_their_own_negatives_share_calls(case):
    model = case[0]
    guided = cfg(model, 2.0, negative={"label": 1})
    noise = lambda seed, n: fs.Noise(seed).normal(0, (n, 2), dtype=torch.float64)  # noqa: E731
    y = torch.zeros(2, dtype=torch.float64)
    requests = [
        (fs.plan(model.process, "ddim", 4), noise(0, 2), {"label": 0, "y": y, "negative": {"label": [0, 2]}}),
        (fs.plan(model.process, "dpmpp-2m", 3), noise(1, 1), {"label": 0, "y": y}),
        (fs.plan(model.process, "heun", 2), noise(2, 3), {"label": 1, "y": y, "guidance": [1.0, 2.0, 4.0]}),
    ]
    made = fs.run_mixed(requests, guided, dtype=torch.float64)
    for samples, (plan, x, given) in zip(made, requests, strict=True):
        torch.testing.assert_close(samples, plan(guided, x, dtype=torch.float64, **given))


def test_negatives_of_another_kind_are_refused(case):
    for wrong in (3, [], [1, 2], 1.5, object()):
        with pytest.raises(ValueError, match="negative must be a caption, one for each sample, or a mapping"):
            cfg(case[0], 2.0, negative=wrong)
    with pytest.raises(ValueError, match="negative: unknown condition 'labl': did you mean 'label'"):
        cfg(case[0], 2.0, negative={"labl": 1})
    for scale in ("3", None, True, [2.0]):
        with pytest.raises(ValueError, match="the guidance scale must be at least 0 and finite, got"):
            cfg(case[0], scale)


def test_without_a_solver_the_plan_is_one_for_guided_models(case):
    digits = fs.load("digits")
    assert choose_plan(cfg(digits, 2.0)).about["options"]["spectrum"] == "mild, guided"
    model = case[0]  # what takes a picture is not drawn from noise alone
    assert choose_plan(cfg(model, 2.0)).name == "dpmpp-3m"
    assert choose_plan(cfg(model, 2.0), solver="dpmpp-2m").name == "dpmpp-2m"
