"""Encoder propagation: decoders in one batch are those one by one, of our UNets and diffusers'. Methods:
encoder-propagation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sampled import sampled
from torch import Tensor, nn

import fewstep as fs
from fewstep.caching.encoder_propagation import encoder_propagation
from fewstep.conditions.label import Label
from fewstep.core.denoiser import Denoiser
from fewstep.core.memory import Memory, ask
from fewstep.core.noise import Noise
from fewstep.core.prediction import Prediction
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.denoisers.operations import operations
from fewstep.networks.blocks import blocks_of
from fewstep.networks.surgery import Keep, Skip, Stored, replaced
from fewstep.networks.unet import UNet
from fewstep.processes.vp import VP


class Foreign(Denoiser):
    """A network of diffusers' as a denoiser, called in either of its forms."""

    def __init__(self, network: nn.Module, form: str) -> None:
        super().__init__()
        self.network, self.form, self.words = network, form, type(network).__name__ == "UNet2DConditionModel"
        self.process, self.shape, self.conditions = VP(), (2, 8, 8), {"label": Label(3)}

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        time, named = 1000 * t.expand(len(x)), {"class_labels": condition["label"]}
        if self.words:
            words = torch.linspace(-1, 1, 18, dtype=x.dtype).view(1, 3, 6)
            named = {"encoder_hidden_states": words * (1 + condition["label"].view(-1, 1, 1))}
        if self.form == "tuple":
            value = self.network(x, time, return_dict=False, **named)[0]
        else:
            value = self.network(x, time, **named).sample
        return Prediction(value, "eps", x, t, self.process)


def shaken(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def foreign(name: str, form: str) -> Denoiser:
    diffusers = pytest.importorskip("diffusers")
    stages: dict[str, Any] = {"block_out_channels": (8, 8, 16), "layers_per_block": 2, "norm_num_groups": 4}
    if name == "UNet2DModel":
        stages |= {"down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"), "num_class_embeds": 4}
        stages |= {"up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D")}
    else:
        stages |= {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D")}
        stages |= {"up_block_types": ("UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D")}
        stages |= {"cross_attention_dim": 6, "attention_head_dim": 4}
    return Foreign(shaken(getattr(diffusers, name)(8, 2, 2, **stages)), form).eval()


def ours() -> Denoiser:
    network = UNet(2, 8, (8, 8, 16), 2, (2, 4), 3)
    return NetworkDenoiser(shaken(network), VP(), "x0", (2, 8, 8), {"label": Label(3)}, precondition="edm").eval()


MODELS = {
    "unet": ours,
    "UNet2DModel": lambda: foreign("UNet2DModel", "sample"),
    "UNet2DConditionModel": lambda: foreign("UNet2DConditionModel", "tuple"),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request: Any) -> Denoiser:
    return MODELS[request.param]()


@pytest.fixture(scope="module")
def digits() -> Denoiser:
    return fs.load("digits")


def noise(n: int, shape: tuple[int, ...] = (2, 8, 8)) -> Tensor:
    return Noise(0).normal(0, (n, *shape))


@sampled("model, rate", list(MODELS), [(3, 2), (None, 1), ((0, 1, 5), 2)], indirect=["model"])
def test_decoders_in_one_batch_are_those_one_by_one(model, rate):
    keys, order = rate
    plan = fs.plan(model.process, "dpmpp-2m", 10)
    found = [
        plan.run(encoder_propagation(model, keys, order, batched), noise(3), label=[0, 1, 2])
        for batched in (True, False)
    ]
    torch.testing.assert_close(
        found[0].samples, found[1].samples, rtol=0, atol=1e-6 * float(found[1].samples.abs().max())
    )
    assert found[0].report["cost"] == found[1].report["cost"] < 10
    assert not torch.equal(found[0].samples, plan(model, noise(3), label=[0, 1, 2]))


def test_between_keys_only_the_way_up_runs(digits):
    """Every answer by hand, on the encoder of evaluation 0 or 4; what was left out is what it costs less."""
    blocks, plan = blocks_of(digits), fs.plan(digits.process, "ddim", 7)
    seen: list[tuple[float, Tensor, Tensor]] = []
    cached = encoder_propagation(digits, 4)
    plan(
        cached,
        noise(2, (1, 8, 8)),
        label=[1, 7],
        callback=lambda n, t, x, p: seen.append((t, x.clone(), p.value.clone())),
    )
    handed = [blocks[name].path for name in ("down.0.res0", "down.1.attn0", "mid.res1")]
    store: dict[str, Tensor] = {}
    keeps = replaced(digits, {path: Keep(digits.get_submodule(path), store, path) for path in handed})
    stands = replaced(digits, {path: Stored(store, path, digits.get_submodule(path)) for path in handed})
    named = digits.check_condition({"label": [1, 7]}, 2, torch.device("cpu"))
    with torch.no_grad():
        for k, (t, x, value) in enumerate(seen):
            wanted = (stands if k % 4 else keeps)(x, torch.tensor(t), **named).value
            torch.testing.assert_close(value, wanted, rtol=0, atol=1e-6)
            assert torch.equal(value, digits(x, torch.tensor(t), **named).value) == (k % 4 == 0)
    store |= {path: kept[:1] for path, kept in store.items()}
    inside = ("network.first", *(blocks[name].path for name in ("down.0.down", "down.1.res0", "mid.res0", "mid.attn")))
    nothing = {path: Skip() for path in inside}  # what only leads to what is kept; its shapes do not matter
    share = operations(replaced(stands, nothing)) / operations(digits)
    assert cached.cost(("encoder",)) == cached.cost(("decoded",)) == pytest.approx(share, rel=1e-6)
    assert share < 0.5


def test_the_papers_keys_are_scaled_to_the_run(digits):
    for steps, keys in ((50, [0, 1, 2, 3, 5, 10, 15, 25, 35]), (20, [0, 1, 2, 4, 6, 10, 14])):
        cached = encoder_propagation(digits)
        assert [n for n in range(steps) if not cached.recipe.schedule(n, steps)] == keys
    assert [n for n in range(12) if not cached.recipe.schedule(n, 0)] == [0, 5, 10]  # of a run of unknown length


def test_what_was_decoded_is_let_go(digits):
    """At order 1 the skips go as soon as the decoders ran, and every answer after its evaluation."""
    plan, cached = fs.plan(digits.process, "ddim", 9), encoder_propagation(digits, 4)
    named, held = digits.check_condition({"label": 3}, 2, torch.device("cpu")), []
    memory, x = Memory(2, plan.moments), noise(2, (1, 8, 8))
    with torch.no_grad():
        for t in plan.moments:
            memory.advance()
            ask(cached, x, torch.tensor(t), memory, named)
            held.append(sorted(memory.kept))
    assert held[0] == ["decoded @1", "decoded @2", "decoded @3"] and held[2] == ["decoded @2", "decoded @3"]
    assert held[4] == ["decoded @5", "decoded @6", "decoded @7"]
    assert held[8] == [f"encoder {k} @8" for k in range(3)]  # nothing follows


def test_plans_that_tell_the_network_other_numbers_are_decoded_anew(digits):
    """An answer that was made for one number of the plan does not stand in for another's."""
    guided = fs.guide(digits, "cfg", scale=2.0)
    even = fs.plan(digits.process, "ddim", 9, guidance=[2.0] * 9)
    uneven = fs.plan(digits.process, "ddim", 9, guidance=[2.0] * 5 + [3.0] * 4)
    runs = [plan.run(encoder_propagation(guided, 3), noise(2, (1, 8, 8)), label=4) for plan in (even, uneven)]
    assert runs[0].report["whole"] == 3 and runs[1].report["whole"] == 4


def test_a_run_whose_times_nobody_knows_decodes_one_by_one(digits):
    cached, x = encoder_propagation(digits, 3), noise(2, (1, 8, 8))
    named, found = digits.check_condition({"label": 3}, 2, x.device), []
    for times in ((), (5.0, 3.0, 2.0, 1.0)):
        memory = Memory(2, times)
        with torch.no_grad():
            for t in (5.0, 3.0, 2.0, 1.0):
                memory.advance(t)
                found.append(ask(cached, x, torch.tensor(t), memory, named).value)
    for alone, batched in zip(found[:4], found[4:], strict=True):
        torch.testing.assert_close(alone, batched, rtol=0, atol=1e-6)
    assert not torch.equal(found[1], digits(x, torch.tensor(3.0), **named).value)


def test_the_first_state_is_added_as_the_paper_adds_it():
    """z_t + a z_T before each step of DDIM in the second half of the run, whose network is as it was."""
    model = ours()
    plan = fs.plan(model.process, "ddim", 6)
    a, x = 0.05, noise(2)
    cached, seen = encoder_propagation(model, 2, inject=a), []
    found = plan(cached, x, label=1, callback=lambda n, t, x, p: seen.append(x.clone()))
    process, times = model.process, [*plan.moments, plan.times[-1]]
    plain = encoder_propagation(model, 2)
    with torch.no_grad():
        answers: list[Tensor] = []
        plan(plain, x, label=1, callback=lambda n, t, x, p: answers.append(p.eps.clone()))
    alpha, sigma = (lambda t: float(process.alpha(t))), (lambda t: float(process.sigma(t)))
    first = seen[0] / math.hypot(alpha(times[0]), sigma(times[0]))
    # Up to the middle nothing is added; the first step after it starts from the same state, and so has the same eps.
    assert torch.equal(seen[3], _states(plan, plain, x)[3])
    t, s = times[3], times[4]
    moved = seen[3] + a * first * math.hypot(alpha(t), sigma(t))
    wanted = alpha(s) / alpha(t) * moved + (sigma(s) - alpha(s) / alpha(t) * sigma(t)) * answers[3]
    torch.testing.assert_close(seen[4], wanted, rtol=1e-4, atol=1e-4)
    assert not torch.equal(found, plan(plain, x, label=1))
    whole = encoder_propagation(model, 1, inject=0.0)
    assert torch.equal(plan(whole, x, label=1), plan(model, x, label=1))


def _states(plan: Any, model: Denoiser, x: Tensor) -> list[Tensor]:
    found: list[Tensor] = []
    plan(model, x, label=1, callback=lambda n, t, x, p: found.append(x.clone()))
    return found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keys": 0}, "keys must be a whole number of at least 1, got 0"),
        ({"keys": [0, -2]}, "a key must be a whole number of at least 0, got -2"),
        ({"order": 0}, "order must be a whole number"),
        ({"inject": -0.1}, "inject must be at least 0 and finite"),
        ({"since": 1.5}, "since is a fraction of the run"),
    ],
)
def test_bad_numbers(digits, options, message):
    with pytest.raises(ValueError, match=message):
        encoder_propagation(digits, **options)


def test_networks_that_it_cannot_take():
    with pytest.raises(ValueError, match="this needs a UNet, whose blocks lie on a way down"):
        encoder_propagation(fs.load("digits-dit"))
    diffusers = pytest.importorskip("diffusers")
    stages = {"down_block_types": ("SkipDownBlock2D",) * 2, "up_block_types": ("SkipUpBlock2D",) * 2}
    network = diffusers.UNet2DModel(8, 2, 2, block_out_channels=(32, 32), norm_num_groups=4, **stages)
    with pytest.raises(ValueError, match="the way up of this network sees more than what the way down says: SkipDown"):
        encoder_propagation(Foreign(network, "sample"))

    class Itself(Denoiser):
        """A denoiser that is its network."""

        process, shape = VP(), (2, 8, 8)

        def __init__(self) -> None:
            super().__init__()
            inner = UNet(2, 8, (8, 16), 1, (), None)
            for name, module in inner.named_children():
                setattr(self, name, module)
            self.blocks = inner.blocks

    with pytest.raises(ValueError, match="the denoiser is its network itself.*give batched=False"):
        encoder_propagation(Itself())
    assert encoder_propagation(Itself(), batched=False).recipe.parts["encoder"].counts == (0, 1, 0, 1, 0, 1)
