"""SAG and blur guidance: the degraded state, the mask by hand, the limit without noise, caches."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fewstep as fs
from fewstep.caching.deepcache import deepcache
from fewstep.conditions.label import Label
from fewstep.core.denoiser import Denoiser
from fewstep.core.prediction import Prediction
from fewstep.denoisers.experts import Experts
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.denoisers.masked import MaskedDenoiser
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.guidance.kinds import into
from fewstep.guidance.self_attention import blur_guidance, sag
from fewstep.networks.attention import blur
from fewstep.networks.unet import Attention, UNet
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan

F64 = torch.float64


class Seen(Denoiser):
    """Answers as another model does, in a kind, and remembers the states it was asked at."""

    def __init__(self, model: Denoiser, kind: str):
        super().__init__()
        self.inner, self.kind, self.states = model, kind, []
        self.process, self.shape = model.process, model.shape

    def forward(self, x, t, **condition):
        self.states.append(x)
        value = into(self.kind, self.inner(x, t))  # finite at both ends
        return Prediction(value, self.kind, x, t, self.process)


def pictures(process=None, n: int = 3) -> GaussianMixture:
    means = torch.randn(n, 1, 4, 6, generator=torch.Generator().manual_seed(0), dtype=F64)
    return GaussianMixture(torch.ones(n), means, 0.3, process or VP())


def unet_model(**options) -> NetworkDenoiser:
    torch.manual_seed(1)
    network = UNet(**({"channels": 1, "size": 8, "width": (8, 64), "attention": (4,), "classes": 3} | options))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return NetworkDenoiser(network.double().eval(), VP(), "v", (1, 8, 8), {"label": Label(3)})


X = torch.randn(2, 1, 4, 6, generator=torch.Generator().manual_seed(1), dtype=F64)
PIXELS = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(2), dtype=F64)
CONDITION = {"label": torch.tensor([0, 1, 3])}


@pytest.mark.parametrize("kind", ["x0", "eps", "v", "velocity", "score"])
@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=lambda process: process.name)
def test_blur_is_its_formula_in_every_kind(kind, process):
    model, t = Seen(pictures(process), kind), torch.tensor(0.6, dtype=F64)
    guided = blur_guidance(model, 1.3)(X, t)
    first, moved = model.states
    eps, x0 = model.inner(X, t).eps, model.inner(X, t).x0
    assert first is X and guided.kind == kind
    torch.testing.assert_close(moved, process.alpha(t) * blur(x0, 1.0, 4) + process.sigma(t) * eps)
    # The degraded state has the same eps as the first one: the noise is not drawn anew.
    kept = (moved - process.alpha(t) * blur(x0, 1.0, 4)) / process.sigma(t)
    torch.testing.assert_close(kept, eps, rtol=0, atol=1e-6)
    expected = eps + 1.3 * (eps - model.inner(moved, t).eps)
    torch.testing.assert_close(guided.eps, expected)


@pytest.mark.parametrize("kind", ["x0", "eps", "v", "velocity"])
def test_without_noise_it_is_the_model(kind):
    model = pictures(EDM())
    for sigma, tolerance in ((1e-4, 1e-3), (0.0, 1e-12)):
        t = torch.tensor(sigma, dtype=F64)
        guided = blur_guidance(Seen(model, kind), 2.0)(X, t)
        torch.testing.assert_close(guided.x0, model(X, t).x0, rtol=0, atol=tolerance)


def test_finite_where_alpha_or_sigma_is_zero():
    for kind in ("x0", "eps", "v", "velocity"):
        for process in (VP(), Flow()):
            for t in (0.0, 1.0):
                now = torch.tensor(t, dtype=F64)
                assert bool(torch.isfinite(blur_guidance(Seen(pictures(process), kind), 1.0)(X, now).value).all())


class TwoTokens(nn.Module):
    """One block of attention over a picture of two pixels, four channels in two heads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attn = Attention(4)
        self.attn.heads = 2
        nn.init.normal_(self.attn.out.weight)
        nn.init.normal_(self.attn.qkv.weight)

    @property
    def blocks(self):
        return {"attn": self.attn}

    def forward(self, x, noise):
        return self.attn(x, noise)


def test_the_mask_of_two_tokens_by_hand():
    """The token that receives more than the mean is blurred, the other one is not."""
    model = NetworkDenoiser(TwoTokens().double().eval(), VP(), "eps", (4, 1, 2))
    t, x = torch.tensor(0.4, dtype=F64), torch.randn(4, 4, 1, 2, generator=torch.Generator().manual_seed(3), dtype=F64)
    block, states = model.network.attn, []
    model.network.register_forward_hook(lambda module, args, out: states.append(args[0]))
    with torch.no_grad():
        guided = sag(model, 0.9)(x, t)
        _, moved = states
        tokens = block.norm(x).flatten(2).transpose(1, 2)
        q, k, _ = (tokens @ block.qkv.weight.T + block.qkv.bias).split(4, dim=2)
        mask = torch.zeros(4, 1, 1, 2, dtype=F64)
        for b in range(4):
            received = [0.0, 0.0]
            for head in (slice(0, 2), slice(2, 4)):
                for i in range(2):
                    scores = [math.exp(float(q[b, i, head] @ k[b, j, head]) / math.sqrt(2)) for j in range(2)]
                    for j in range(2):
                        received[j] += scores[j] / sum(scores) / 2
            assert sum(received) == pytest.approx(2)
            mask[b, 0, 0] = torch.tensor([float(one > 1) for one in received])
        assert mask.sum((1, 2, 3)).tolist() == [1.0] * 4 and 0 < float(mask[:, :, :, 0].mean()) < 1
        own = model(x, t)
        degraded = torch.where(mask > 0, blur(own.x0, 1.0, 4), own.x0)
        torch.testing.assert_close(moved, VP().alpha(t) * degraded + VP().sigma(t) * own.eps)
        torch.testing.assert_close(guided.value, own.eps + 0.9 * (own.eps - model(moved, t).eps))


def test_the_mask_is_brought_to_the_pictures_size():
    model, states, t = unet_model(), [], torch.tensor(0.5, dtype=F64)
    model.network.register_forward_hook(lambda module, args, out: states.append(args[0]))
    maps: list[torch.Tensor] = []

    def record(module, args):
        q, k = args[:2]
        maps.append((q @ k.transpose(2, 3) / math.sqrt(q.shape[3])).softmax(3).mean(1))

    handle = model.network.mid["attn"].core.register_forward_pre_hook(record)
    own = model(PIXELS, t, **CONDITION)
    handle.remove()
    states.clear()
    sag(model, 1.0, threshold=1.02)(PIXELS, t, **CONDITION)
    assert len(states) == 2
    received = maps[0].sum(1).reshape(3, 1, 4, 4)
    mask = F.interpolate((received > 1.02).double(), scale_factor=2, mode="nearest")
    assert 0 < float(mask.mean()) < 1
    expected = own.x + VP().alpha(t) * mask * (blur(own.x0, 1.0, 4) - own.x0)
    torch.testing.assert_close(states[1], expected)


def test_ends_and_thresholds():
    model, t = unet_model(), torch.tensor(0.5, dtype=F64)
    base = model(PIXELS, t, **CONDITION).value
    assert torch.equal(sag(model, 0.0)(PIXELS, t, **CONDITION).value, base)
    assert torch.equal(blur_guidance(model, 0.0)(PIXELS, t, **CONDITION).value, base)
    everywhere = blur_guidance(model, 1.0)(PIXELS, t, **CONDITION).value
    torch.testing.assert_close(sag(model, 1.0, threshold=0.0)(PIXELS, t, **CONDITION).value, everywhere)
    torch.testing.assert_close(sag(model, 1.0, threshold=1e3)(PIXELS, t, **CONDITION).value, base)  # nowhere
    rows = sag(model, 1.0)(PIXELS, t.expand(3), **CONDITION).value
    torch.testing.assert_close(rows, sag(model, 1.0)(PIXELS, t, **CONDITION).value)


def test_the_maps_are_those_of_the_given_rows_of_a_shared_call():
    model = unet_model()
    both = fs.guide(fs.guide(model, "cfg", scale=2.0), "sag", scale=1.0)
    t = torch.tensor(0.5, dtype=F64)
    single = [guided(PIXELS, t, **CONDITION).value for guided in (fs.guide(model, "cfg", scale=2.0), sag(model, 1.0))]
    expected = single[0] + single[1] - model(PIXELS, t, **CONDITION).value
    torch.testing.assert_close(both(PIXELS, t, **CONDITION).value, expected)
    result = plan(model.process, "ddim", 2).run(both, PIXELS, label=1, dtype=F64)
    assert result.report["rows"] == 6
    twice = fs.guide(sag(model, 1.0), "sag", scale=0.5, blocks=["down.1.attn0"])  # each records its own
    more = sag(model, 0.5, blocks=["down.1.attn0"])(PIXELS, t, **CONDITION).value
    expected = single[1] + more - model(PIXELS, t, **CONDITION).value
    torch.testing.assert_close(twice(PIXELS, t, **CONDITION).value, expected)
    torch.testing.assert_close(fs.guide(sag(model, 1.0), "sag", scale=1.0)(PIXELS, t, **CONDITION).value,
                               2 * single[1] - model(PIXELS, t, **CONDITION).value)  # fmt: skip


def test_batches_and_mixed_calls_are_single_runs():
    model = unet_model()
    guided = sag(model, 1.0)
    made = plan(model.process, "ddim", 3)
    whole = made(guided, PIXELS, label=1, dtype=F64)
    torch.testing.assert_close(made(guided, PIXELS[1:2], label=1, dtype=F64), whole[1:2])
    requests = [(made, PIXELS, {"label": 1}), (plan(model.process, "dpmpp-2m", 4), PIXELS[:1], {"label": 0})]
    for around in (guided, sag(Experts([model, copy.deepcopy(model)], [0.5]), 1.0)):
        mixed = fs.run_mixed(requests, around, dtype=F64)
        torch.testing.assert_close(mixed[0], whole)
        torch.testing.assert_close(mixed[1], requests[1][0](guided, PIXELS[:1], label=0, dtype=F64))


def test_with_caches_and_masks():
    model = unet_model()
    made = plan(model.process, "ddim", 4)
    inside = made(sag(deepcache(model, 2), 1.0), PIXELS, label=1, dtype=F64)
    outside = made(deepcache(sag(model, 1.0), 2), PIXELS, label=1, dtype=F64)
    whole = made(sag(model, 1.0), PIXELS, label=1, dtype=F64)
    assert bool(torch.isfinite(inside).all()) and not torch.equal(inside, whole)
    torch.testing.assert_close(inside, outside)
    t = torch.tensor(0.5, dtype=F64)
    masked = MaskedDenoiser(model, {0.5: ["mid.attn"]})
    assert torch.equal(sag(masked, 1.0)(PIXELS, t, **CONDITION).value, masked(PIXELS, t, **CONDITION).value)


def test_faulty_arguments():
    model = unet_model()
    for threshold in (-1.0, math.nan):
        with pytest.raises(ValueError, match="threshold must be at least 0 .1 is the mean attention."):
            fs.guide(model, "sag", threshold=threshold)
    with pytest.raises(ValueError, match="unknown block 'mid.at': did you mean 'mid.attn'"):
        fs.guide(model, "sag", blocks=["mid.at"])
    with pytest.raises(ValueError, match="this network has no attention"):
        fs.guide(unet_model(attention=()), "sag")
    flat = GaussianMixture(torch.ones(1), torch.zeros(1, 2), 1.0, VP())
    for name in ("sag", "blur"):
        with pytest.raises(ValueError, match="a blur needs pictures .C, H, W.; this model's samples are .2,."):
            fs.guide(flat, name)
        with pytest.raises(ValueError, match="the guidance scale must be at least 0"):
            fs.guide(model, name, scale=-1.0)
    experts = sag(Experts([model, copy.deepcopy(model)], [0.5]), 1.0)
    with pytest.raises(ValueError, match="the network computed its attention in parts"):
        experts(PIXELS, torch.tensor([0.2, 0.7, 0.8], dtype=F64), **CONDITION)
