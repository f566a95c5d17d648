"""lacon: against a head and a model whose gradients are written out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fewstep as fs
from fewstep.core.denoiser import Denoiser
from fewstep.core.memory import Memory
from fewstep.core.prediction import Prediction, expand
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.guidance.lacon import features, lacon, told
from fewstep.networks.dit import DiT
from fewstep.networks.unet import UNet
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP

F64 = torch.float64


class Scaled(nn.Module):
    """A linear head: features times a number; it ignores the noise level."""

    def __init__(self, factor: float = 1.0):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return self.factor * x


class Gaussian(Denoiser):
    """The exact denoiser of N(0, 1) data: x0 = alpha x / (alpha^2 + sigma^2)."""

    def __init__(self, process: Any, kind: str = "x0"):
        super().__init__()
        self.process, self.shape, self.kind = process, (1, 2, 2), kind

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        alpha, sigma = expand(self.process.alpha(t), x), expand(self.process.sigma(t), x)
        x0 = Prediction(alpha * x / (alpha**2 + sigma**2), "x0", x, t, self.process)
        return Prediction(x0.to(self.kind), self.kind, x, t, self.process)


@pytest.fixture
def x():
    return torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=F64)


TARGET = torch.arange(4, dtype=F64).reshape(1, 2, 2)


@pytest.mark.parametrize("kind", ["x0", "eps", "v"])
@pytest.mark.parametrize("repeat", [1, 2, 3])
def test_it_goes_down_the_gradient_of_the_heads_error(x, kind, repeat):
    """Without blocks a linear head sees a x / norm, whose error has the gradient a / norm (a x / norm - target)."""
    process, t, a, scale = VP(), torch.tensor(0.45, dtype=F64), 1.7, 0.3
    alpha, sigma = process.alpha(t), process.sigma(t)
    per = a / (alpha**2 + sigma**2).sqrt()
    here = x
    for _ in range(repeat - 1):
        here = here - sigma**2 * scale * per * (per * here - TARGET)
    score = -here / (alpha**2 + sigma**2) - scale * per * (per * here - TARGET)
    x0 = (here + sigma**2 * score) / alpha
    answer = lacon(Gaussian(process, kind), Scaled(a), TARGET, scale=scale, repeat=repeat)(x, t)
    torch.testing.assert_close(answer.x0, x0, rtol=1e-8, atol=1e-9)
    assert answer.kind == kind


def test_one_target_for_each_sample_and_a_window(x):
    model, targets = Gaussian(EDM()), torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    each = lacon(model, Scaled(), targets, scale=0.5)
    t = torch.tensor([2.0, 1.0, 0.5], dtype=F64)
    for row in range(3):
        one = lacon(model, Scaled(), targets[row], scale=0.5)(x[[row]], t[row]).value
        torch.testing.assert_close(each(x, t).value[[row]], one)
    early = lacon(model, Scaled(), targets, scale=0.5, interval=(0.8, 80.0))(x, t).value
    assert torch.equal(early[:2], each(x, t).value[:2])
    torch.testing.assert_close(early[2], model(x, t).value[2])
    with pytest.raises(ValueError, match="there are 3 targets for 2 samples"):
        each(x[:2], t[0])


def network(**options: Any) -> NetworkDenoiser:
    torch.manual_seed(0)
    unet = UNet(channels=1, size=4, width=(8, 8), attention=(), classes=None)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return NetworkDenoiser(unet, VP(), "v", (1, 4, 4), **options).eval()


def test_features_are_those_of_the_blocks_and_the_model_stays():
    model, x, t = network(), torch.randn(2, 1, 4, 4), torch.tensor(0.5)
    answer, maps = features(model, ("mid.res1", "up.0.res0"), x, t, {}, (4, 4))
    assert maps.shape == (2, 16, 4, 4) and torch.equal(answer.value, model(x, t).value)
    seen: dict[str, Tensor] = {}
    hook = model.network.up[0]["res0"].register_forward_hook(lambda *args: seen.update(up=args[2]))
    model(x, t)
    hook.remove()
    torch.testing.assert_close(maps[:, 8:], seen["up"])
    assert torch.equal(told(VP(), t, 2), (-VP().log_snr(t.double()) / 4).float().expand(2))


def test_through_a_network_it_is_the_same_gradient():
    model, head, names, t = network().double(), Scaled(), ("mid.res1", "up.0.res0"), torch.tensor(0.5, dtype=F64)
    target = torch.ones(16, 4, 4, dtype=F64)
    guided = fs.guide(model, "lacon", head=head, target=target, blocks=names, scale=0.1)
    x = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(2), dtype=F64).requires_grad_(True)
    error = 0.5 * (features(model, names, x, t, {}, (4, 4))[1] - target).square().sum()
    (slope,) = torch.autograd.grad(error, x)
    answer = guided(x, t)
    torch.testing.assert_close(answer.score - model(x, t).score, -0.1 * slope, rtol=1e-8, atol=1e-9)
    (further,) = torch.autograd.grad(answer.value.sum(), x)
    memory = Memory(4, (0.5,), 0.0)
    memory.advance()
    with torch.no_grad():
        assert torch.equal(guided(x, t, memory=memory).value, guided(x, t).value) and memory.seen == 8
    assert bool(torch.isfinite(further).all()) and bool((further != 0).any())


def test_at_the_ends_it_is_finite(x):
    for process in (VP(), Flow(), EDM()):
        guided, model = lacon(Gaussian(process), Scaled(), TARGET, repeat=2), Gaussian(process)
        for t in (process.t_max, process.t_zero):
            time = torch.tensor(t, dtype=F64)
            assert bool(torch.isfinite(guided(x, time).value).all())
            if not process.alpha(t) or not process.sigma(t):
                torch.testing.assert_close(guided(x, time).value, model(x, time).value, rtol=1e-5, atol=1e-5)


def test_bad_input():
    model = network()
    with pytest.raises(ValueError, match="unknown block 'mid.res'.*did you mean 'mid.res"):
        lacon(model, Scaled(), TARGET, ["mid.res"])
    with pytest.raises(ValueError, match="repeat must be a whole number of at least 1"):
        lacon(model, Scaled(), TARGET, repeat=0)
    with pytest.raises(ValueError, match="target must be a map"):
        lacon(model, Scaled(), torch.zeros(4))
    tokens = NetworkDenoiser(DiT(1, 4, 2, 8, 1, None), VP(), "v", (1, 4, 4))
    with pytest.raises(ValueError, match="features of 'block.0.attn' must be maps"):
        lacon(tokens, Scaled(), torch.zeros(1, 4, 4), ["block.0.attn"])(torch.zeros(1, 1, 4, 4), torch.tensor(0.5))
