"""PAG and SEG: against attention written out on two tokens, their ends, and together with other methods."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import fewstep as fs
from fewstep.conditions.label import Label
from fewstep.core.memory import Memory, ask
from fewstep.denoisers.experts import Experts
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.denoisers.masked import MaskedDenoiser
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.guidance.perturbed_attention import pag, seg
from fewstep.networks.attention import Identity
from fewstep.networks.surgery import replaced
from fewstep.networks.unet import Attention, UNet
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan

F64 = torch.float64


class TwoTokens(nn.Module):
    """One block of attention over a picture of two pixels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attn = Attention(4)
        nn.init.normal_(self.attn.out.weight)

    @property
    def blocks(self):
        return {"attn": self.attn}

    def forward(self, x, noise):
        return self.attn(x, noise)


def two_tokens() -> NetworkDenoiser:
    return NetworkDenoiser(TwoTokens().double().eval(), VP(), "eps", (4, 1, 2))


def by_hand(model: NetworkDenoiser, x: torch.Tensor, how: str) -> torch.Tensor:
    """The network's answer with softmax, identity or mean-query attention, token by token."""
    block, width = model.network.attn, 4
    tokens = block.norm(x).flatten(2).transpose(1, 2)
    q, k, v = (tokens @ block.qkv.weight.T + block.qkv.bias).split(width, dim=2)
    out = torch.zeros_like(v)
    for b in range(len(x)):
        for i in range(2):
            asks = q[b].mean(0) if how == "mean" else q[b, i]
            weights = [math.exp(float(asks @ k[b, j]) / math.sqrt(width)) for j in range(2)]
            if how == "identity":
                weights = [float(i == j) for j in range(2)]
            out[b, i] = sum(w * v[b, j] for j, w in enumerate(weights)) / sum(weights)
    return x + (out @ block.out.weight.T + block.out.bias).transpose(1, 2).reshape(x.shape)


def unet_model(**options) -> NetworkDenoiser:
    torch.manual_seed(1)
    network = UNet(**({"channels": 1, "size": 8, "width": (8, 8), "attention": (4,), "classes": 3} | options))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return NetworkDenoiser(network.double().eval(), VP(), "v", (1, 8, 8), {"label": Label(3)})


@pytest.fixture
def case():
    model = unet_model()
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=F64)
    return model, x, torch.tensor(0.6, dtype=F64), {"label": torch.tensor([0, 1, 2])}


@pytest.mark.parametrize("name, how", [("pag", "identity"), ("seg", "mean")])
def test_two_tokens_by_hand(name, how):
    model = two_tokens()
    x = torch.randn(3, 4, 1, 2, generator=torch.Generator().manual_seed(2), dtype=F64)
    t = torch.tensor(0.4, dtype=F64)
    with torch.no_grad():
        own, weak = by_hand(model, x, "softmax"), by_hand(model, x, how)
        torch.testing.assert_close(model(x, t).value, own)
        found = fs.guide(model, name, scale=1.7)(x, t)
        assert found.kind == "eps"
        torch.testing.assert_close(found.value, own + 1.7 * (own - weak))


@torch.no_grad()
def test_ends(case):
    model, x, t, condition = case
    base = model(x, t, **condition).value
    for guided in (pag(model, 0.0), seg(model, 0.0), seg(model, 3.0, blur=0.0)):
        assert torch.equal(guided(x, t, **condition).value, base)
    far, mean = (seg(model, 3.0, blur=b)(x, t, **condition).value for b in (1e4, math.inf))
    torch.testing.assert_close(far, mean)
    near = seg(model, 3.0, blur=0.3)(x, t, **condition).value
    assert 0 < float((near - base).norm()) < float((mean - base).norm())


def test_named_blocks(case):
    model, x, t, condition = case
    names = ["down.1.attn0", "up.1.attn0"]
    weak = replaced(model, {f"network.{name}.core": Identity() for name in names})
    expected = model(x, t, **condition).value * 3 - weak(x, t, **condition).value * 2
    torch.testing.assert_close(pag(model, 2.0, names)(x, t, **condition).value, expected)


def test_with_cfg_three_rows_a_sample(case):
    model, x, t, condition = case
    both = fs.guide(fs.guide(model, "cfg", scale=2.0), "pag", scale=1.0)
    given, empty = (model(x, t, label=label).value for label in (condition["label"], torch.full((3,), 3)))
    weak = replaced(model, {"network.mid.attn.core": Identity()})(x, t, **condition).value
    torch.testing.assert_close(both(x, t, **condition).value, empty + 2 * (given - empty) + given - weak)
    other = fs.guide(fs.guide(model, "pag", scale=1.0), "cfg", scale=2.0)
    torch.testing.assert_close(other(x, t, **condition).value, both(x, t, **condition).value)
    seen: list[int] = []
    model.network.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    for guided in (both, other):
        result = plan(model.process, "ddim", 2).run(guided, x, label=1, dtype=F64)
        assert result.report["rows"] == 6 and seen == [6, 3, 6, 3]
        seen.clear()


def test_batches_and_mixed_calls_are_single_runs(case):
    model, x, _, _ = case
    guided = fs.guide(fs.guide(model, "seg", scale=1.0, interval=(0.1, 3.0)), "cfg", scale=2.0)
    made = plan(model.process, "ddim", 3)
    whole = made(guided, x, label=1, dtype=F64)
    torch.testing.assert_close(made(guided, x[1:2], label=1, dtype=F64), whole[1:2])
    requests = [(made, x, {"label": 1}), (plan(model.process, "dpmpp-2m", 4), x[:1], {"label": 0})]
    mixed = fs.run_mixed(requests, guided, dtype=F64)
    torch.testing.assert_close(mixed[0], whole)
    torch.testing.assert_close(mixed[1], requests[1][0](guided, x[:1], label=0, dtype=F64))


def test_it_goes_around_other_wrappers(case):
    model, x, t, condition = case
    expected = pag(model, 2.0)(x, t, **condition).value
    experts = Experts([model, copy.deepcopy(model)], [0.5])
    for time in (0.3, 0.6):  # of each expert
        now = torch.tensor(time, dtype=F64)
        torch.testing.assert_close(
            pag(experts, 2.0)(x, now, **condition).value, pag(model, 2.0)(x, now, **condition).value
        )
    masked = MaskedDenoiser(pag(model, 2.0), {0.6: ["mid.attn"]})  # where the block is left out, nothing is perturbed
    memory = Memory(3, (0.6,), 0.0)
    memory.advance()
    base = MaskedDenoiser(model, {0.6: ["mid.attn"]})
    assert torch.equal(ask(masked, x, t, memory, condition).value, ask(base, x, t, memory, condition).value)
    assert not torch.equal(expected, model(x, t, **condition).value)


def test_gradients_and_graphs(case):
    model, x, t, condition = case
    x = x.requires_grad_()
    for name in ("pag", "seg"):
        [grad] = torch.autograd.grad(fs.guide(model, name, scale=1.0)(x, t, **condition).value.sum(), x)
        assert bool(torch.isfinite(grad).all()) and float(grad.abs().sum()) > 0


def test_faulty_arguments(case):
    model = case[0]
    with pytest.raises(ValueError, match="unknown block 'mid.att': did you mean 'mid.attn'"):
        fs.guide(model, "pag", blocks=["mid.att"])
    with pytest.raises(ValueError, match="blocks of the method of guidance 'pag' must be a list of texts"):
        fs.guide(model, "pag", blocks="mid.attn")
    with pytest.raises(ValueError, match="unknown option of the method of guidance 'pag' 'blur'"):
        fs.guide(model, "pag", blur=1.0)
    for blur in (-1.0, math.nan):
        with pytest.raises(ValueError, match="blur must be at least 0, in tokens"):
            fs.guide(model, "seg", blur=blur)
    for name in ("pag", "seg"):
        with pytest.raises(ValueError, match="the guidance scale must be at least 0 and finite, got -1"):
            fs.guide(model, name, scale=-1)
        with pytest.raises(ValueError, match="this network has no attention"):
            fs.guide(unet_model(attention=()), name)
        with pytest.raises(ValueError, match="no network in this model names its blocks"):
            fs.guide(GaussianMixture(torch.ones(1), torch.zeros(1, 2), 1.0, VP()), name)
