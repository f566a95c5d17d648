"""Patch workers: equal to one worker where all is fresh, one evaluation old by hand, over gloo. Methods: pcpp,
distrifusion."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from scale.together import together
from torch import Tensor, nn
from torch.nn import functional as F

import fewstep as fs
from fewstep.conditions.label import Label
from fewstep.core.denoiser import Denoiser
from fewstep.core.memory import Memory
from fewstep.core.noise import Noise
from fewstep.denoisers.experts import Experts
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.hub.models import load
from fewstep.networks.dit import DiT
from fewstep.networks.reference import ReferenceDiT
from fewstep.networks.unet import UNet
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.mixed import run_mixed
from fewstep.scale.divided import strips_of
from fewstep.scale.patches import PatchParallel, distrifusion, pcpp, sample
from fewstep.scale.strips import Strips
from fewstep.scale.workers import Group

STEPS = 5
LABELS = torch.tensor([0, 2, 1])


def shaken(network: nn.Module, scale: float = 0.1) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def transformer(size: Any = (28, 12), patch: int = 4, width: int = 64, channels: int = 3) -> NetworkDenoiser:
    """By default of 7x3 tokens, which no number of workers but 7 divides."""
    torch.manual_seed(0)
    network = shaken(DiT(channels, size, patch, width, 2, 3))
    return NetworkDenoiser(network, VP(), "v", (channels, *network.size), {"label": Label(3)})


def noises(model: Denoiser, n: int = 3) -> Tensor:
    return Noise(4).normal(0, (n, *model.shape))


def drawn(model: Denoiser, noise: Tensor | None = None, steps: int = STEPS, **more: Any) -> Tensor:
    noise = noises(model) if noise is None else noise
    return plan(model.process, "ddim", steps)(model, noise, label=LABELS[: len(noise)], **more)


def report(model: Denoiser, steps: int = STEPS) -> dict[str, int]:
    return plan(model.process, "ddim", steps).run(model, noises(model), label=LABELS).report["patches"]


@pytest.mark.parametrize("workers", [2, 3, 4, 7])
def test_all_fresh_is_one_worker(workers):
    base = transformer()
    torch.testing.assert_close(drawn(distrifusion(base, workers, None)), drawn(base), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("workers", [2, 4])
def test_all_fresh_is_one_worker_on_pictures_of_32(workers):
    base = transformer(32)
    torch.testing.assert_close(drawn(distrifusion(base, workers, None)), drawn(base), rtol=1e-5, atol=1e-5)


def test_one_worker_is_the_model_bit_for_bit():
    base = transformer()
    for model in (distrifusion(base, 1), distrifusion(base, 1, None), pcpp(base, 1, 0)):
        assert not model.carries and torch.equal(drawn(model), drawn(base))


def test_the_first_evaluations_are_the_models_and_so_is_all_of_a_shorter_run():
    base = transformer()
    for warmup, steps in ((1, 1), (3, 3), (2, 1)):
        found = drawn(pcpp(base, 4, 1, warmup), steps=steps)
        torch.testing.assert_close(found, drawn(base, steps=steps), rtol=1e-5, atol=1e-5)
    assert float((drawn(pcpp(base, 4, 1, 3), steps=4) - drawn(base, steps=4)).abs().max()) > 1e-5


@pytest.mark.parametrize("workers", [2, 3, 7])
def test_the_widest_border_is_the_whole_stale_map_exactly(workers):
    base = transformer()
    widest = strips_of(base.network, workers).widest
    assert torch.equal(drawn(pcpp(base, workers, widest)), drawn(distrifusion(base, workers)))
    assert not torch.equal(drawn(pcpp(base, workers, widest - 1)), drawn(distrifusion(base, workers)))


@pytest.mark.parametrize("border, warmup", [(None, 1), (1, 1), (1, 0), (0, 2), (2, 0)])
def test_it_is_masked_attention_over_the_map_of_the_evaluation_before(border, warmup):
    """The network written out: every token attends through a mask to [this evaluation's map, the one before]."""
    base, workers, rows, columns = transformer(), 3, 7, 3
    parts = Strips(rows, columns, workers)
    owner = torch.tensor(
        [next(w for w in range(workers) if i // columns in parts.own(w)) for i in range(rows * columns)]
    )
    own = owner[:, None] == owner
    seen = torch.tensor([[j // columns in parts.seen(int(w), border) for j in range(rows * columns)] for w in owner])
    found, memory = PatchParallel(base, workers, border, warmup), Memory(3, [0.9, 0.7, 0.5], 0.1)
    before: list[Tensor] = []
    for number, t in enumerate(memory.times):
        x = Noise(number).normal(0, (3, *base.shape))
        memory.advance()
        answer = found(x, torch.tensor(t), label=LABELS, memory=memory).value
        network, now = base.network, []
        tokens = network.tokens(x)
        embedding = F.silu(network.embedding(torch.full((3,), t), LABELS, 3))
        for index, pair in enumerate(network.block):
            inside, gate = pair["attn"].entering(tokens, embedding)
            q, k, v = pair["attn"].qkv(inside).unflatten(2, (3, pair["attn"].heads, -1)).permute(2, 0, 3, 1, 4)
            now.append(torch.stack((k, v)))
            if number < warmup:
                mask, keys, values = torch.ones_like(own), k, v
            elif number == 0:
                mask, keys, values = own, k, v
            else:
                mask = torch.cat((own, seen & ~own), 1)
                keys, values = torch.cat((now[-1], before[index]), 3)
            read = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask).transpose(1, 2).flatten(2)
            tokens = tokens + gate * pair["attn"].out(read)
            tokens = pair["mlp"](tokens, embedding)
        before = now
        torch.testing.assert_close(answer, network.picture(tokens, embedding), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_error_grows_as_the_border_shrinks():
    model = load("digits-dit")
    noise, label = Noise(0).normal(0, (32, *model.shape)), torch.arange(32) % 10
    made = plan(model.process, "ddim", 10)
    whole = made(model, noise, label=label)
    errors = [float((made(pcpp(model, 4, border), noise, label=label) - whole).norm()) for border in (3, 2, 1, 0)]
    errors.append(float((made(pcpp(model, 4, 0, 0), noise, label=label) - whole).norm()))
    assert errors == sorted(errors) and errors[3] > 2 * errors[0] > 0


@pytest.mark.parametrize("border, warmup", [(None, 1), (1, 1), (2, 0), (0, 1), (1, None)])
def test_bytes_are_the_closed_form(border, warmup):
    base = transformer()
    model = PatchParallel(base, 3, border, warmup)
    found, parts = report(model), strips_of(base.network, 3)
    whole, less = (parts.bytes(far, width=64, depth=2, batch=3) for far in (None, border))
    first = STEPS if warmup is None else warmup
    assert found["bytes"] == first * whole + max(STEPS - 1 - first, 0) * less  # the last one sends nothing
    assert found["output bytes"] == STEPS * 3 * 3 * 28 * 12 * 4 * 2
    assert (found["synchronous"], found["stale"]) == (first, STEPS - first)


def sides(model: PatchParallel, workers: int, **more: Any) -> tuple[list[Any], Any]:
    """The samples and reports of each worker over gloo, and of all in this process."""
    noise = noises(model)
    made = plan(model.process, "ddim", STEPS)

    def task(group: Group) -> Any:
        return made.run(model.on(group), noise, label=LABELS, **more)

    return together(task, workers), made.run(model, noise, label=LABELS, **more)


@pytest.mark.parametrize("workers, border, warmup", [(2, None, 1), (3, 1, 1), (3, 2, 0), (2, 0, 2), (3, None, None)])
def test_over_gloo_it_is_the_same(workers, border, warmup):
    found, here = sides(PatchParallel(transformer(), workers, border, warmup), workers)
    for one in found:
        torch.testing.assert_close(one.samples, here.samples, rtol=1e-5, atol=1e-6)
        assert torch.equal(one.samples, found[0].samples)
    for name in ("bytes", "output bytes"):
        assert sum(one.report["patches"][name] for one in found) == here.report["patches"][name]
    assert all(one.report["patches"]["stale"] == here.report["patches"]["stale"] for one in found)


def test_in_bfloat16_the_bytes_are_half():
    base = transformer()
    found, here = sides(PatchParallel(copy.deepcopy(base).bfloat16(), 2, 1), 2)
    torch.testing.assert_close(found[0].samples, here.samples, rtol=0.02, atol=0.02)
    assert 2 * here.report["patches"]["bytes"] == report(PatchParallel(base, 2, 1))["bytes"]
    assert sum(one.report["patches"]["bytes"] for one in found) == here.report["patches"]["bytes"]


@pytest.mark.parametrize("way", ["inside", "around"])
def test_guidance_has_a_map_for_each_branch(way):
    base = transformer()

    def made(workers: int, border: int | None, warmup: int | None) -> Denoiser:
        divide = lambda model: PatchParallel(model, workers, border, warmup)  # noqa: E731
        return divide(fs.guide(base, "cfg", scale=2.0)) if way == "around" else fs.guide(divide(base), "cfg", scale=2.0)

    torch.testing.assert_close(drawn(made(3, None, None)), drawn(made(1, None, 1)), rtol=1e-5, atol=2e-5)
    # Each branch by itself, which is guidance by hand over two divided models.
    strong, weak = PatchParallel(base, 3, 1), PatchParallel(base, 3, 1)
    memory, own = Memory(3, [0.9, 0.6], 0.1), [Memory(3, [0.9, 0.6], 0.1) for _ in range(2)]
    model, empty = made(3, 1, 1), torch.full((3,), 3)
    for number, t in enumerate(map(torch.tensor, (0.9, 0.6))):
        x = Noise(number).normal(0, (3, *base.shape))
        for one in (memory, *own):
            one.advance()
        a, b = strong(x, t, label=LABELS, memory=own[0]).value, weak(x, t, label=empty, memory=own[1]).value
        answer = model(x, t, label=LABELS, memory=memory).value
        torch.testing.assert_close(answer, b + 2.0 * (a - b), rtol=1e-4, atol=1e-5)


def test_guidance_over_gloo():
    model = PatchParallel(fs.guide(transformer(), "cfg", scale=2.0), 2, 1)
    found, here = sides(model, 2)
    torch.testing.assert_close(found[1].samples, here.samples, rtol=1e-5, atol=2e-6)
    assert sum(one.report["patches"]["bytes"] for one in found) == here.report["patches"]["bytes"]


def test_requests_in_shared_calls_are_those_alone():
    base = transformer()
    model = pcpp(base, 3, 1)
    requests = [(plan(VP(), "ddim", steps), noises(base, steps - 2), {"label": steps % 3}) for steps in (3, 5, 4)]
    alone = [made(model, noise, **asked) for made, noise, asked in requests]
    for ours, theirs in zip(run_mixed(requests, model), alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    over = together(lambda group: run_mixed(requests, model.on(group), max_batch=4), 3)
    for ours, theirs in zip(over[2], alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_samples_that_join_a_run_later_begin_fresh():
    """Rows that are asked for at some evaluations only, as a mask of samples may."""
    base = transformer()
    model, memory, t = pcpp(base, 3, 1), Memory(3, [0.9, 0.8, 0.7], 0.1), torch.tensor(0.5)
    x = noises(base)
    for rows in (torch.tensor([0, 2]), torch.tensor([1])):
        memory.advance()
        answer = model(x[rows], t, label=LABELS[rows], memory=memory[rows]).value
        torch.testing.assert_close(answer, base(x[rows], t, label=LABELS[rows]).value, rtol=1e-5, atol=1e-5)
    memory.advance()
    assert not torch.allclose(model(2 * x, t, label=LABELS, memory=memory).value, base(2 * x, t, label=LABELS).value)


def test_experts_each_have_a_map():
    first, second = transformer(), transformer(width=32)
    experts = Experts([first, second], [0.5])
    torch.testing.assert_close(drawn(distrifusion(experts, 2, None)), drawn(experts), rtol=1e-5, atol=1e-5)
    found = report(distrifusion(experts, 2))
    assert found["synchronous"] == 2 and found["stale"] == STEPS - 2


def test_caches_and_patch_workers_refuse_each_other():
    base = transformer()
    with pytest.raises(ValueError, match="divided among workers, by 'pcpp'"):
        fs.cache(pcpp(base, 3), "taylorseer")
    with pytest.raises(ValueError, match="is cached already"):
        distrifusion(fs.cache(base, "taylorseer"))


def test_without_a_run_it_is_the_model():
    base = transformer()
    x, t = noises(base), torch.tensor(0.5)
    assert torch.equal(pcpp(base, 3)(x, t, label=LABELS).value, base(x, t, label=LABELS).value)


def test_the_gradient_is_the_models_where_all_is_fresh_and_none_over_processes():
    base = transformer()
    found = []
    for model in (base, distrifusion(base, 3, None)):
        x, memory = noises(base).requires_grad_(), Memory(3, [0.5])
        memory.advance()
        named = {"memory": memory} if model.carries else {}
        found.append(torch.autograd.grad(model(x, torch.tensor(0.5), label=LABELS, **named).value.square().sum(), x)[0])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)

    def task(group: Group) -> None:
        memory = Memory(3, [0.5])
        memory.advance()
        model = distrifusion(base, 2).on(group)
        model(noises(base).requires_grad_(), torch.tensor(0.5), label=LABELS, memory=memory)

    assert all("no gradient leads through other processes" in str(one) for one in together(task, 2))


def test_bad_input():
    base = transformer()
    for workers in (0, 8):
        with pytest.raises(ValueError, match="workers must be a whole number from 1 to 7, the rows of .* 7x3 tokens"):
            distrifusion(base, workers)
    for border in (-1, 5):
        with pytest.raises(ValueError, match="border must be a whole number from 0 to 4"):
            pcpp(base, 2, border)
    with pytest.raises(ValueError, match="warmup must be a whole number of at least 0, or None, got -1"):
        distrifusion(base, 2, -1)
    with pytest.raises(ValueError, match="pcpp needs a border and a warm-up"):
        pcpp(base, 2, 1, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="already"):
        pcpp(pcpp(base))
    unet = NetworkDenoiser(UNet(1, 8, (8,), 1, (), None), VP(), shape=(1, 8, 8))
    with pytest.raises(ValueError, match="the transformer 'dit' .* which this model lacks: its network is UNet"):
        distrifusion(unet)
    referred = NetworkDenoiser(ReferenceDiT(1, 8, 2, 32, 2, None), VP(), shape=(1, 8, 8))
    with pytest.raises(ValueError, match="its network is ReferenceDiT"):
        distrifusion(referred)
    with pytest.raises(ValueError, match="under the rule Blurred, which looks at the whole picture"):
        drawn(fs.guide(pcpp(base), "seg", scale=2.0))
    wrong = together(lambda group: pcpp(base, 3).on(group), 2)
    assert all("divided among 3 workers, and the group has 2" in str(one) for one in wrong)


def test_it_says_what_it_is():
    base = transformer()
    assert pcpp(base, 3, 2).describe()["patches"] == "3 workers, each of which sees a border of 2"
    assert distrifusion(base).made_by == ("parallel", "distrifusion") and pcpp(base).made_by[1] == "pcpp"


@pytest.mark.slow
def test_processes_draw_the_same_pictures():
    model = pcpp(load("digits-dit"), 2, 1)
    options = {"label": 3, "steps": STEPS, "solver": "ddim", "seed": 1}
    found = sample(model, 4, timeout=120, **options)
    torch.testing.assert_close(found, fs.sample(model, 4, **options), rtol=1e-6, atol=1e-6)
