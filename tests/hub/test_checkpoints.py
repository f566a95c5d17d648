"""EDM and k-diffusion networks against the papers' formulas. Method: checkpoint."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import fewstep as fs
from fewstep.core.methods import find
from fewstep.hub.checkpoints import PRECONDITIONS, Preconditioned, load_checkpoint
from fewstep.processes.discrete import Discrete

F64 = torch.float64
SIGMAS = torch.tensor([0.01, 0.3, 2.5, 40.0], dtype=F64)
X = torch.randn(4, 2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=F64)
TABLE = Discrete.linear().alphas_cumprod


class Net(nn.Module):
    """Mixes what it is given; keeps the time."""

    def __init__(self, channels=2, out=2):
        super().__init__()
        self.inner = nn.Conv2d(channels, out, 1)
        self.seen = None

    def forward(self, x, noise, class_labels=None, class_cond=None):
        self.seen, self.label = noise, class_labels if class_labels is not None else class_cond
        return self.inner(x) * torch.cos(noise).view(-1, 1, 1, 1)


def network(out=2):
    torch.manual_seed(1)
    return Net(out=out).double()


def wide(value):
    return value.view(-1, 1, 1, 1)


def table_1(name, net, x, s, d=0.5):
    """D(x; sigma), written out by hand."""
    if name == "EDMPrecond":
        n = (s**2 + d**2).sqrt()
        return wide(d**2 / n**2) * x + wide(s * d / n) * net(x / wide(n), s.log() / 4)
    if name == "VPPrecond":
        t = ((0.1**2 + 2 * 19.9 * (1 + s**2).log()).sqrt() - 0.1) / 19.9
        return x - wide(s) * net(x / wide((s**2 + 1).sqrt()), 999 * t)
    if name == "VEPrecond":
        return x + wide(s) * net(x, (s / 2).log())
    if name == "Denoiser":
        n = (s**2 + d**2).sqrt()
        return wide(d**2 / n**2) * x + wide(s * d / n) * net(x / wide(n), s)
    if name == "VDenoiser":
        n = (s**2 + 1).sqrt()
        return x / wide(n**2) - wide(s / n) * net(x / wide(n), s.atan() * 2 / math.pi)
    raise AssertionError(name)


def test_it_is_registered():
    assert find("checkpoint") is load_checkpoint


@pytest.mark.parametrize("name", ["EDMPrecond", "VPPrecond", "VEPrecond", "Denoiser", "VDenoiser"])
def test_the_formulas(name):
    net = network()
    made = Preconditioned(net, name)(X, SIGMAS)
    torch.testing.assert_close(made, table_1(name, net, X, SIGMAS), rtol=1e-10, atol=1e-10)


def test_the_discrete_one_interpolates_steps_in_log_sigma():
    net = network()
    made = Preconditioned(net, "DiscreteEpsDDPMDenoiser", alphas_cumprod=TABLE)
    kept = torch.tensor(TABLE, dtype=F64)
    sigmas = ((1 - kept) / kept).sqrt()
    torch.testing.assert_close(made.noise(sigmas[[0, 7, 500, 999]]), torch.tensor([0.0, 7, 500, 999], dtype=F64))
    between = (sigmas[41] * sigmas[42]).sqrt()
    torch.testing.assert_close(made.noise(between[None]), torch.tensor([41.5], dtype=F64))
    s = sigmas[[3, 100, 400, 900]]
    expected = X - wide(s) * net(X / wide((s**2 + 1).sqrt()), torch.tensor([3.0, 100, 400, 900], dtype=F64))
    torch.testing.assert_close(made(X, s), expected)


def test_improved_ddpm_takes_the_nearest_step_and_drops_the_variance():
    net = network(out=4)
    made = Preconditioned(net, "iDDPMPrecond")
    u = made.sigmas
    assert len(u) == 1001 and u[-1] == 0 and bool((u[:-1] > u[1:]).all())

    def bar(j):
        return math.sin(0.5 * math.pi * j / 1000 / 1.008) ** 2

    u_999 = math.sqrt(1 / max(bar(999) / bar(1000), 0.001) - 1)
    u_998 = math.sqrt((u_999**2 + 1) / max(bar(998) / bar(999), 0.001) - 1)
    torch.testing.assert_close(u[[999, 998]], torch.tensor([u_999, u_998], dtype=F64))
    assert made.noise(u[[0, 10, 999]] * 1.0001).tolist() == [999, 989, 0]
    answer = made(X, SIGMAS)
    nearest = made.noise(SIGMAS)
    expected = X - wide(SIGMAS) * net(X / wide((SIGMAS**2 + 1).sqrt()), nearest)[:, :2]
    torch.testing.assert_close(answer, expected)


@pytest.fixture
def files(tmp_path):
    """An EMA's weights under a prefix, with EDM's configuration beside them."""
    net = network().float()
    tensors = {f"ema.{key}": value for key, value in net.state_dict().items()}
    save_file({**tensors, "step": torch.zeros(1)}, tmp_path / "net.safetensors")
    config = {"class_name": "training.networks.EDMPrecond", "img_channels": 2, "img_resolution": 8, "sigma_data": 0.7}
    (tmp_path / "net.json").write_text(json.dumps(config))
    return net, tmp_path / "net.safetensors"


def test_a_file_with_a_prefix_and_edms_configuration(files):
    net, path = files
    model = load_checkpoint(Net(), path, prefix="ema.")
    assert model.shape == (2, 8, 8) and model.process.config() == {
        "process": "edm",
        "sigma_min": 0.002,
        "sigma_max": 80.0,
    }
    x, t = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(0.9)
    with torch.no_grad():
        expected = table_1("EDMPrecond", net, x, torch.full((3,), 0.9), d=0.7)
        torch.testing.assert_close(model(x, t).x0, expected)
    assert fs.sample(model, 2, steps=3).shape == (2, 2, 8, 8)


def test_k_diffusions_configuration_and_labels(files):
    net, path = files
    config = {
        "model": {"type": "image_v1", "input_channels": 2, "input_size": [8, 4], "sigma_data": 0.5, "sigma_max": 10.0},
        "dataset": {"num_classes": 3},
    }
    inner = Net()
    model = load_checkpoint(inner, path, config, prefix="ema.")
    assert model.shape == (2, 8, 4) and model.process.t_max == 10.0 and model.conditions["label"].classes == 3
    fs.sample(model, 2, steps=1, label=[2, 0], solver="ddim")
    assert inner.label.tolist() == [2, 0] and inner.seen[0] == 10.0
    inner = Net()
    model = load_checkpoint(inner, path, {"precondition": "VPPrecond", "classes": 3, "shape": (2, 8, 4)}, prefix="ema.")
    fs.sample(model, 1, steps=1)
    assert inner.label.tolist() == [[0.0, 0.0, 0.0]]
    fs.sample(model, 1, steps=1, label=1)
    assert inner.label.tolist() == [[0.0, 1.0, 0.0]]


def test_what_does_not_fit_is_named_in_one_line(files, tmp_path):
    _, path = files
    with pytest.raises(ValueError, match=r"2 missing \('inner.weight' first\), 3 that.*give prefix='ema\.'"):
        load_checkpoint(Net(), path)
    with pytest.raises(ValueError, match=r"1 of another shape \('inner.weight': \(2, 2, 1, 1\), .*\(2, 3, 1, 1\)"):
        load_checkpoint(Net(3), path, prefix="ema.")
    with pytest.raises(ValueError, match=r"no tensor of .* begins with 'model\.'; they begin with 'ema\.', 'step\.'"):
        load_checkpoint(Net(), path, prefix="model.")
    with pytest.raises(ValueError, match="unknown precondition 'EdmPrecond': did you mean .*'EDMPrecond'"):
        load_checkpoint(Net(), path, {"precondition": "EdmPrecond"}, prefix="ema.")
    with pytest.raises(ValueError, match=f"names no precondition: give one of {PRECONDITIONS[0]}"):
        load_checkpoint(Net(), path, {}, prefix="ema.")
    with pytest.raises(ValueError, match="needs alphas_cumprod"):
        load_checkpoint(Net(), path, {"precondition": "DiscreteEpsDDPMDenoiser"}, prefix="ema.")
    with pytest.raises(ValueError, match="there is no file .*none.safetensors"):
        load_checkpoint(Net(), tmp_path / "none.safetensors", {"precondition": "Denoiser"})


def test_pickles_and_broken_files(files, tmp_path):
    _, path = files
    torch.save({"w": torch.zeros(2)}, tmp_path / "a.pt")
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.pt").read_bytes())
    for name in ("a.pt", "b.safetensors"):
        with pytest.raises(ValueError, match="is a pickle, which can run code and is never loaded.*save_file"):
            load_checkpoint(Net(), tmp_path / name, {"precondition": "Denoiser"})
    (tmp_path / "c.safetensors").write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match="is not safetensors"):
        load_checkpoint(Net(), tmp_path / "c.safetensors", {"precondition": "Denoiser"})
    (tmp_path / "net.json").write_text("{")
    with pytest.raises(ValueError, match="net.json is not JSON"):
        load_checkpoint(Net(), path, prefix="ema.")
    (tmp_path / "net.json").unlink()
    with pytest.raises(ValueError, match="there is no file .*net.json: give config="):
        load_checkpoint(Net(), path, prefix="ema.")
