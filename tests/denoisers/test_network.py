"""A network with its process: preconditioning, loss pairs, conditions. Method: network."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fewstep.conditions.label import Label
from fewstep.conditions.time import Time
from fewstep.core.methods import find
from fewstep.core.prediction import KINDS
from fewstep.core.student import Student
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.hub.models import load, save
from fewstep.networks.mlp import MLP
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.thresholding import Thresholded

F64 = torch.float64


class Recorder(nn.Module):
    """Returns what `answer` makes of its inputs and remembers them."""

    def __init__(self, answer=lambda x, noise: x, dtype=F64):
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=dtype))
        self.answer = answer

    def forward(self, x, noise, label=None):
        self.seen = (x, noise, label)
        return self.answer(x, noise) * self.weight


def pair(batch=3):
    return torch.randn(2, batch, 2, 4, 5, generator=torch.Generator().manual_seed(0), dtype=F64)


def test_it_is_registered():
    assert find("network") is NetworkDenoiser


def test_edm_table_1():
    """c_skip, c_out, c_in, c_noise of EDM's Table 1, on EDM's process."""
    d = 0.7
    network = Recorder(lambda x, noise: torch.tanh(x) + noise.reshape(-1, 1, 1, 1))
    model = NetworkDenoiser(network, EDM(), "x0", (2, 4, 5), precondition="edm", data_std=d)
    x, sigma = pair()[0] * 3, torch.tensor([0.01, 0.9, 30.0], dtype=F64)
    prediction = model(x, sigma)
    s = sigma.reshape(-1, 1, 1, 1)
    c_in, c_noise = 1 / (s**2 + d**2).sqrt(), sigma.log() / 4
    c_skip, c_out = d**2 / (s**2 + d**2), s * d / (s**2 + d**2).sqrt()
    torch.testing.assert_close(network.seen[0], c_in * x)
    torch.testing.assert_close(network.seen[1], c_noise)
    expected = c_skip * x + c_out * (torch.tanh(c_in * x) + c_noise.reshape(-1, 1, 1, 1))
    assert prediction.kind == "x0"
    torch.testing.assert_close(prediction.value, expected)


@pytest.mark.parametrize("process", [EDM(), VP(), Flow()], ids=lambda p: p.name)
def test_a_perfect_network_gives_x0(process):
    """If F is the target of `loss_pair`, the denoiser answers x0: loss and preconditioning belong together."""
    x0, eps = pair()
    t = torch.tensor([process.t_min * 1.1, 0.3, 0.9], dtype=F64)
    network = Recorder()
    model = NetworkDenoiser(network, process, "x0", (2, 4, 5), precondition="edm", data_std=0.6)
    _, target = model.loss_pair(x0, eps, t)
    network.answer = lambda x, noise: target
    x = process.alpha(t).reshape(-1, 1, 1, 1) * x0 + process.sigma(t).reshape(-1, 1, 1, 1) * eps
    torch.testing.assert_close(model(x, t).x0, x0)
    output, target = model.loss_pair(x0, eps, t)
    assert torch.equal(output, target)


def test_inputs_and_targets_have_unit_variance():
    process, d = VP(), 0.6
    generator = torch.Generator().manual_seed(1)
    x0 = d * torch.randn(4, 1, 100, 100, generator=generator, dtype=F64)
    eps = torch.randn(4, 1, 100, 100, generator=generator, dtype=F64)
    network = Recorder()
    model = NetworkDenoiser(network, process, "x0", (1, 100, 100), precondition="edm", data_std=d)
    _, target = model.loss_pair(x0, eps, torch.tensor([0.002, 0.2, 0.5, 1.0], dtype=F64))
    for tensor in (network.seen[0], target):
        torch.testing.assert_close(tensor.std((1, 2, 3)), torch.ones(4, dtype=F64), rtol=0, atol=0.03)


def test_the_edm_loss_is_karras_weighted_error():
    """|F - target|^2 = lambda(sigma) |D - x0|^2 with lambda = (sigma^2 + d^2) / (sigma d)^2."""
    d, (x0, eps), sigma = 0.5, pair(), torch.tensor([0.05, 1.0, 20.0], dtype=F64)
    network = Recorder(lambda x, noise: torch.sin(3 * x))
    model = NetworkDenoiser(network, EDM(), "x0", (2, 4, 5), precondition="edm", data_std=d)
    output, target = model.loss_pair(x0, eps, sigma)
    denoised = model(x0 + sigma.reshape(-1, 1, 1, 1) * eps, sigma).x0
    weight = (sigma**2 + d**2) / (sigma * d) ** 2
    torch.testing.assert_close(
        (output - target).square().sum((1, 2, 3)), weight * (denoised - x0).square().sum((1, 2, 3))
    )


def test_the_edm_target_keeps_float32_digits_at_small_sigma():
    x0, eps = pair()
    t = torch.full((3,), 0.002, dtype=F64)
    model = NetworkDenoiser(Recorder(dtype=torch.float32), EDM(), "x0", (2, 4, 5), precondition="edm")
    exact, rounded = (model.loss_pair(x0.to(dtype), eps.to(dtype), t)[1] for dtype in (F64, torch.float32))
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded.double(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_targets_are_the_definitions(kind):
    process, (x0, eps), t = VP(), pair(), torch.tensor([0.1, 0.5, 0.9], dtype=F64)
    network = Recorder(lambda x, noise: 2 * x)
    model = NetworkDenoiser(network, process, kind, (2, 4, 5))
    output, target = model.loss_pair(x0, eps, t)
    alpha, sigma, dalpha, dsigma = (
        getattr(process, name)(t).reshape(-1, 1, 1, 1) for name in ("alpha", "sigma", "dalpha", "dsigma")
    )
    definitions = {
        "x0": x0, "eps": eps, "v": alpha * eps - sigma * x0,
        "velocity": dalpha * x0 + dsigma * eps, "score": -eps / sigma,
        "flow": eps - x0,
    }  # fmt: skip
    torch.testing.assert_close(target, definitions[kind])
    torch.testing.assert_close(output, 2 * (alpha * x0 + sigma * eps))
    torch.testing.assert_close(network.seen[1], t)


def test_pure_noise_has_a_finite_noise_level():
    network = Recorder()
    model = NetworkDenoiser(network, Flow(), "x0", (2, 4, 5), precondition="edm")
    value = model(pair()[0], torch.tensor(1.0, dtype=F64)).x0
    assert bool(torch.isfinite(network.seen[1]).all()) and bool(torch.isfinite(value).all())


def test_the_network_works_in_its_own_dtype():
    network = Recorder(dtype=torch.bfloat16)
    model = NetworkDenoiser(network, VP(), "eps", (2, 4, 5))
    value = model(pair()[0].float(), torch.tensor(0.123456789)).value
    assert network.seen[0].dtype == torch.bfloat16 and value.dtype == torch.float32
    assert network.seen[1].dtype == torch.float32 and network.seen[1].shape == (3,)


def test_conditions_reach_the_network():
    network = Recorder()
    model = NetworkDenoiser(network, VP(), "eps", (2, 4, 5), conditions={"label": Label(10)})
    made, noise = plan(VP(), "ddim", 2), pair()[0]
    made(model, noise, label=3, dtype=F64)
    assert network.seen[2].tolist() == [3, 3, 3]
    made(model, noise, dtype=F64)
    assert network.seen[2].tolist() == [10, 10, 10]
    for condition, message in (
        ({"label": 11}, "label 11 is out of range: 0 to 9"),
        ({"labels": 1}, "unknown condition 'labels': did you mean 'label'"),
    ):
        with pytest.raises(ValueError, match=message):
            made(model, noise, **condition)
    with pytest.raises(ValueError, match="this model is unconditional: it takes no 'label'"):
        made(NetworkDenoiser(network, VP(), "eps", (2, 4, 5)), noise, label=1)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"predicts": "epsilon"}, "unknown prediction kind 'epsilon': did you mean 'eps'"),
        ({"precondition": "edn"}, "unknown precondition 'edn': did you mean 'edm'"),
        ({"precondition": "edm", "predicts": "v"}, "EDM's preconditioning predicts 'x0', not 'v'"),
        ({"data_std": 0.0}, "data_std must be positive, got 0.0"),
        ({"data_std": math.nan}, "data_std must be positive, got nan"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        NetworkDenoiser(Recorder(), VP(), **options)


def test_noise_dropout_hides_levels_in_training_alone():
    network = MLP((2,), width=8)
    names = set(network.state_dict())
    plain = NetworkDenoiser(MLP((2,), width=8), VP(), "v", (2,))
    assert "noise_dropout" not in plain.config() and set(plain.network.state_dict()) == names
    model = NetworkDenoiser(network, VP(), "v", (2,), noise_dropout=0.25)
    assert model.config()["noise_dropout"] == 0.25
    assert set(network.state_dict()) - names == {"embedding.unknown"}
    x0, eps, t = torch.randn(2000, 2), torch.randn(2000, 2), torch.full((2000,), 0.5, dtype=F64)
    torch.manual_seed(0)
    hidden = model.train()._task(x0, eps, t)[1].isnan()
    assert hidden.float().mean() == pytest.approx(0.25, abs=0.03)
    assert not bool(model.eval()._task(x0, eps, t)[1].isnan().any())
    output, target = model.train().loss_pair(x0, eps, t[0])  # one time for all is hidden row by row as well
    (output - target).square().mean().backward()
    assert bool(torch.isfinite(network.first.weight.grad).all())
    edm = NetworkDenoiser(MLP((2,), width=8), EDM(), "x0", (2,), precondition="edm", noise_dropout=0.5).train()
    assert bool(edm._task(x0, eps, t)[1].isnan().any())


def test_noise_dropout_refuses_what_it_cannot_hide_from():
    with pytest.raises(ValueError, match="noise_dropout must be at least 0 and below 1, got 1"):
        NetworkDenoiser(MLP((2,)), VP(), noise_dropout=1.0)
    with pytest.raises(ValueError, match="noise_dropout needs a network with the noise embedding"):
        NetworkDenoiser(Recorder(), VP(), noise_dropout=0.1)


class Aimed(Recorder):
    """A recorder that is also told where to go."""

    def forward(self, x, noise, label=None, target=None):
        self.seen = (x, noise, target)
        target = noise if target is None else target
        return self.answer(x, noise) * self.weight + target.reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("precondition", ["none", "edm"])
@pytest.mark.parametrize("process", [EDM(), VP(), Flow()], ids=lambda p: p.name)
def test_the_time_to_go_to_is_seen_as_the_states_own(process, precondition):
    network = Aimed(lambda x, noise: torch.tanh(x))
    model = NetworkDenoiser(network, process, "x0", (2, 4, 5), {"to": Time()}, precondition)
    x, t = pair()[0], torch.tensor([process.t_max, 0.5, 0.3], dtype=F64)
    to = torch.tensor([0.2, math.nan, process.t_zero], dtype=F64)
    there = model(x, t, to=to).value
    target = network.seen[2].clone()
    model(x, torch.where(to.isnan(), t, to).clamp(min=process.t_min))  # the clean end as the smallest noise
    assert torch.equal(target, network.seen[1]) and bool(torch.isfinite(target).all())
    usual = model(x, t).value
    assert network.seen[2] is None and torch.equal(there[1], usual[1])
    assert bool(((there - usual).abs()[[0, 2]] > 0.04).all())
    none = model.check_condition({}, 3, x.device)
    assert torch.equal(model(x, t, **none).value, usual) and torch.equal(
        model(x, t[2], **none).value, model(x, t[2]).value
    )
    # What a plan tells in float32 is what the network would see as a time in float32.
    assert torch.equal(model(x, t.float(), to=to.float()).value, model(x, t.float(), to=to.float().double()).value)


def test_a_maps_loss_is_that_of_the_ordinary_denoiser():
    x0, eps = pair()
    t = torch.tensor([0.3, 0.5, 0.9], dtype=F64)
    network = Aimed(lambda x, noise: torch.tanh(x))
    model = NetworkDenoiser(network, VP(), "eps", (2, 4, 5), {"to": Time(), "label": Label(3)})
    named = model.check_condition({"label": [0, 1, 2]}, 3, x0.device)
    output, target = model.loss_pair(x0, eps, t, **named)
    assert network.seen[2] is None and torch.equal(target, eps)
    x = VP().alpha(t).reshape(-1, 1, 1, 1) * x0 + VP().sigma(t).reshape(-1, 1, 1, 1) * eps
    torch.testing.assert_close(output, model(x, t, **named).value, rtol=1e-12, atol=1e-12)


def test_a_student_is_saved_with_its_network(tmp_path):
    student = Student(
        "jump", "dmd2", "digits", start=3.3, times=(3.3, 0.4), guidance=2.0, iterations=7, evaluations=42.0
    )
    model = NetworkDenoiser(MLP((3,)), VP(), shape=(3,), student=student)
    again = load(save(model, tmp_path / "student"))
    assert again.student == student and again.facts.student == student and Thresholded(again).student is again.student
    assert "student" not in NetworkDenoiser(MLP((3,)), VP(), shape=(3,)).config()
    assert again.describe()["student"]["method"] == "dmd2"
    path = tmp_path / "student" / "config.json"
    path.write_text(path.read_text().replace('"dmd2"', '"dmd3"'))
    with pytest.raises(ValueError, match="config.json was changed by hand or damaged"):
        load(tmp_path / "student")
