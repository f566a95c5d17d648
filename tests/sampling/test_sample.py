"""`fs.sample`: a sample is the seed's, whatever its batch; and what is refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fewstep.conditions.label import Label
from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.core.prediction import Prediction
from fewstep.guidance.guide import guide
from fewstep.hub.models import load
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.sample import choose_plan, sample

F64 = torch.float64


class PerElement(Denoiser):
    """A denoiser without a matrix product: bit for bit the same in every batch. x0 moves with the label."""

    def __init__(self, shape=(2, 5)):
        super().__init__()
        self.process, self.shape = VP(), shape
        self.conditions = {"label": Label(4)}
        self.batches = []

    def forward(self, x, t, label=None):
        self.batches.append(len(x))
        return Prediction(x * 0.5 + label.to(x.dtype).reshape(-1, 1, 1) * 0.25, "x0", x, t, self.process)


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-3m", "unipc-3", "dpmpp-2m-sde", "heun"])
def test_sample_i_depends_on_nothing_but_seed_and_number(solver):
    model = PerElement()
    together = sample(model, 9, steps=5, solver=solver, seed=3)
    assert together.shape == (9, 2, 5) and together.dtype == torch.float32
    assert torch.equal(sample(model, 9, steps=5, solver=solver, seed=3, batch_size=4), together)
    assert torch.equal(sample(model, 9, steps=5, solver=solver, seed=3, batch_size=1), together)
    assert torch.equal(sample(model, 4, steps=5, solver=solver, seed=3), together[:4])
    assert torch.equal(sample(model, 2, steps=5, solver=solver, seed=3, first=6), together[6:8])
    assert not torch.allclose(sample(model, 9, steps=5, solver=solver, seed=4), together)


def test_a_model_with_matrix_products_is_close(make_mixture):
    model = make_mixture(VP(), (2, 5))
    together = sample(model, 7, steps=6, seed=1)
    torch.testing.assert_close(sample(model, 7, steps=6, seed=1, batch_size=3), together, rtol=1e-5, atol=1e-5)


def test_batches():
    model = PerElement()
    sample(model, 10, steps=1, solver="ddim", batch_size=4)
    assert model.batches == [4, 4, 2]


def test_it_is_the_plan_by_hand(make_mixture):
    model = make_mixture(VP(), (2, 5))
    made = plan(VP(), "dpmpp-2m-sde", 5, "karras", eta=0.5)
    by_hand = made(model, Noise(8, 2).normal(0, (3, 2, 5)), seed=8, first=2)
    drawn = sample(model, 3, steps=5, solver="dpmpp-2m-sde", timesteps="karras", options={"eta": 0.5}, seed=8, first=2)
    assert torch.equal(drawn, by_hand)
    assert torch.equal(sample(model, 3, plan=made, seed=8, first=2), by_hand)
    assert sample(model, 3, steps=2, dtype=F64).dtype == F64


def test_labels_follow_their_samples_through_the_batches():
    model = PerElement()
    labels = [3, 0, 1, 2, 3, 1, 0]
    each = sample(model, 7, steps=3, label=labels, batch_size=3)
    for i, label in enumerate(labels):
        assert torch.equal(sample(model, 1, steps=3, first=i, label=label)[0], each[i])
    assert not torch.equal(sample(model, 7, steps=3), each)


def test_the_models_own_plan_is_the_default():
    model = PerElement()
    assert choose_plan(model).nfe == 10
    model.plan = own = plan(VP(), "unipc-2", 4, "karras")
    assert choose_plan(model) is own and choose_plan(model, nfe=4) is own and choose_plan(model, steps=4) is own
    assert torch.equal(sample(model, 3), sample(model, 3, plan=own))
    for other in (
        choose_plan(model, steps=6),
        choose_plan(model, nfe=5),
        choose_plan(model, steps=4, solver="ddim"),
        choose_plan(model, timesteps="uniform"),
        choose_plan(model, strength=0.5),
        choose_plan(model, order=2, solver="ab"),
    ):
        assert other != own


def test_init_and_strength(make_mixture):
    model = make_mixture(VP(), (2, 5))
    clean = model.sample(4, seed=0).float()
    out = sample(model, 4, steps=10, init=clean, strength=0.3, seed=2)
    made = plan(VP(), steps=10, strength=0.3)
    assert torch.equal(out, made(model, Noise(2).normal(0, (4, 2, 5)), seed=2, init=clean))
    assert torch.equal(sample(model, 4, plan=made, init=clean, seed=2), out)
    torch.testing.assert_close(
        sample(model, 4, steps=10, init=clean, strength=0.3, seed=2, batch_size=3), out, rtol=1e-4, atol=1e-5
    )
    # The less strength, the nearer to where it started.
    distance = [float((sample(model, 4, steps=20, init=clean, strength=s) - clean).norm()) for s in (0.05, 0.4, 0.95)]
    assert distance == sorted(distance) and distance[0] < 0.3 * distance[2]


def test_any_shape_needs_a_shape():
    class Any(Denoiser):
        process = VP()

        def forward(self, x, t):
            return Prediction(0 * x, "x0", x, t, self.process)

    assert sample(Any(), 3, steps=2, shape=(4, 2)).shape == (3, 4, 2)
    with pytest.raises(ValueError, match="this denoiser takes any shape: say which, with shape="):
        sample(Any(), 3)


@pytest.mark.parametrize(
    "n,options,message",
    [
        (0, {}, "n must be a whole number of at least 1, got 0"),
        (2.5, {}, "n must be a whole number, got 2.5"),
        (True, {}, "n must be a whole number, got True"),
        (3, {"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        (3, {"strength": 0.5}, r"strength below 1 starts from a clean batch: give init=\(n, \*shape\)"),
        (
            3,
            {"init": torch.zeros(2, 2, 5), "strength": 0.5},
            r"init must hold one sample or 3 samples, got shape \(2, 2, 5\)",
        ),
        (3, {"init": torch.zeros(3, 2, 5)}, "at strength 1 nothing of init is left: give a strength below 1"),
        (3, {"solver": "dimm"}, "unknown solver 'dimm': did you mean 'ddim'"),
        (3, {"steps": 3, "nfe": 3}, "give either steps or nfe"),
        (3, {"label": 9}, "label 9 is out of range: 0 to 3"),
        (3, {"label": [0, 1]}, r"label must be one number or 3 of them, got shape \(2,\)"),
        (3, {"lable": 1}, "unknown condition 'lable': did you mean 'label'"),
        (3, {"shape": (2, 4)}, r"noise of shape \(3, 2, 4\) does not fit the model"),
        (3, {"plan": plan(VP(), "ddim", 2), "steps": 8}, "give either plan or those"),
        (3, {"plan": plan(VP(), "ddim", 2), "options": {"eta": 1.0}}, "give either plan or those"),
    ],
)
def test_messages(n, options, message):
    with pytest.raises(ValueError, match=message):
        sample(PerElement(), n, **options)


@pytest.mark.parametrize("name, scale", [("digits", 3.0), ("shapes", None)])
def test_threads_share_a_model_and_its_plans(name, scale):
    """Each thread's samples are bit for bit those that it draws alone, at other conditions and other batch sizes."""

    def opened():
        model = load(name)
        model = model if scale is None else guide(model, "cfg", scale=scale)
        return model, [plan(model.process, solver, 2) for solver in ("dpmpp-2m", "dpmpp-2m-sde", "heun")]

    def draw(i, model, plans):
        told = {"label": i % 10} if name == "digits" else {"text": f"a {['red', 'blue'][i % 2]} circle"}
        return sample(model, 1 + i % 3, plan=plans[i % 3], seed=i, **told)

    shared, own = opened(), opened()
    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(lambda i: draw(i, *shared), range(12)))
    assert all(torch.equal(one, draw(i, *own)) for i, one in enumerate(drawn))
