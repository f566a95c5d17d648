"""assembly: before training it is the pruned model, training lowers its loss, and it comes back from a file."""

from __future__ import annotations

import functools

import pytest
import torch

import fewstep as fs
from fewstep.compression.assembly import Distillation, assemble, pruned
from fewstep.conditions.label import Label
from fewstep.core.noise import Noise
from fewstep.denoisers.experts import Experts
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.denoisers.operations import operations
from fewstep.networks.blocks import blocks_of
from fewstep.networks.condconv import CondConv2d
from fewstep.networks.dit import DiT
from fewstep.networks.surgery import without
from fewstep.networks.unet import UNet
from fewstep.processes.ve import EDM

DROP = ["mid.res0", "mid.attn"]


@functools.cache
def model() -> NetworkDenoiser:
    torch.manual_seed(0)
    network = UNet(1, 4, (8, 16), 1, (2,), 3, dropout=0.5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return NetworkDenoiser(network, EDM(), "x0", (1, 4, 4), {"label": Label(3)}, "edm", noise_dropout=0.1).eval()


def data(count=16):
    return torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1


def answers(one, n=3):
    x, t = Noise(3).normal(0, (n, 1, 4, 4)), torch.tensor([0.1, 1.0, 20.0])
    with torch.no_grad():
        return one(x, t, label=torch.tensor([0, 2, 3])).value


@pytest.mark.parametrize("experts", [1, 4])
def test_before_training_it_is_the_pruned_model(experts):
    made = pruned(model(), DROP, experts)
    blocks = blocks_of(model())
    left_out = without(model(), [blocks[name] for name in DROP])
    torch.testing.assert_close(answers(made), answers(left_out), rtol=0, atol=2e-6 if experts > 1 else 0)
    assert not torch.allclose(answers(made), answers(model()), atol=1e-3)
    routed = [one for one in made.modules() if isinstance(one, CondConv2d)]
    assert len(routed) == (6 if experts > 1 else 0)  # down.1.res0, mid.res1 and up.1.res0, two each
    mixing = sum(2 * experts * (one.weight[0].numel() + one.out + one.route.in_features) for one in routed)
    assert operations(made) == operations(left_out) + mixing and operations(left_out) < operations(model())


def test_training_lowers_the_distillation_loss_and_leaves_the_model(tmp_path):
    teacher, before = model(), {name: value.clone() for name, value in model().state_dict().items()}
    made = assemble(teacher, DROP, data(), experts=2, steps=40, batch=16, lr=3e-3, seed=1)
    torch.testing.assert_close(teacher.state_dict(), before, rtol=0, atol=0)
    x0, t = data(), torch.logspace(-2, 1.5, 16)
    eps, condition = Noise(4).normal(0, x0.shape), {"label": torch.arange(16) % 4}
    with torch.no_grad():
        losses = [float(Distillation(one, teacher)(x0, eps, t, condition).mean())
                  for one in (made, pruned(teacher, DROP, 2))]  # fmt: skip
    assert losses[0] < 0.8 * losses[1]
    kernels = [one.weight for one in made.modules() if isinstance(one, CondConv2d)]
    assert all(float((kernel[0] - kernel[1]).abs().max()) > 0 for kernel in kernels)
    again = fs.load(fs.save(made, tmp_path / "made"))
    assert torch.equal(answers(again), answers(made)) and again.network.drop == tuple(DROP)
    assert not any("mid.res0" in name for name in again.state_dict())
    same = assemble(teacher, DROP, data(), experts=2, steps=40, batch=16, lr=3e-3, seed=1)
    assert torch.equal(answers(same), answers(made))


def test_the_loss_of_the_model_against_itself_is_zero():
    x0 = data(4)
    loss = Distillation(pruned(model(), []), model())(x0, torch.randn_like(x0), torch.full((4,), 0.5), {})
    assert loss.shape == (4,) and not bool(loss.any())


def test_a_small_model_early_and_the_whole_one_late():
    """Costs what their evaluations cost, and is each in its range."""
    whole, small = model(), pruned(model(), DROP, 2)
    plan = fs.plan(whole.process, "ddim", 6)
    cut = (plan.moments[2] + plan.moments[3]) / 2
    both, seen = Experts([whole, small], [cut]), []
    noise = Noise(0).normal(0, (2, 1, 4, 4))
    plan(both, noise, label=1, callback=lambda n, t, x, p: seen.append((t, x.clone(), p.value.clone())))
    assert [t > cut for t, _, _ in seen] == [True] * 3 + [False] * 3
    for t, x, value in seen:
        with torch.no_grad():
            assert torch.equal(
                value, (small if t > cut else whole)(x, torch.tensor(t), label=torch.tensor([1, 1])).value
            )


def test_bad_input():
    with pytest.raises(ValueError, match="unknown block 'mid.atn': did you mean 'mid.attn'"):
        pruned(model(), ["mid.atn"])
    with pytest.raises(ValueError, match="unknown block 'up.0.res0'"):
        assemble(model(), ["up.0.res0"], data(), steps=1)
    with pytest.raises(ValueError, match="experts must be"):
        pruned(model(), DROP, 0)
    with pytest.raises(ValueError, match="have 2 kernels already"):
        pruned(pruned(model(), DROP, 2), ["mid.res1"])
    with pytest.raises(ValueError, match="in a UNet of fewstep's, got DiT"):
        pruned(NetworkDenoiser(DiT(1, 4, 2, 8, 1, None), EDM()), [])
    with pytest.raises(ValueError, match="steps and batch must be at least 1"):
        assemble(model(), DROP, data(), steps=0)
