"""Decisions row by row: what runs is what is reported, company changes nothing, rows may be put in another order."""

from __future__ import annotations

import pytest
import torch

import fewstep as fs
from fewstep.caching.dynamic import AGE, polynomial, relative
from fewstep.caching.first_block import first_block
from fewstep.caching.teacache import teacache
from fewstep.conditions.label import Label
from fewstep.conditions.picture import Picture
from fewstep.core.memory import Memory, Together, ask
from fewstep.core.noise import Noise
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.guidance.adaptive import adaptive
from fewstep.guidance.cfg import cfg
from fewstep.networks.reference import ReferenceDiT
from fewstep.processes.ve import EDM
from fewstep.sampling.build import plan
from fewstep.sampling.mixed import Request, run_mixed

CLOSE = {"rtol": 0, "atol": 5e-6}
# Thresholds at which some rows run and others do not.
CACHES = {
    "first-block": lambda model, **options: first_block(model, threshold=0.7, **options),
    "front of 2, back of 1": lambda model: first_block(model, front=2, back=1, threshold=0.7, most=3),
    "teacache": lambda model, **options: teacache(model, 0.2, **options),
}


def noise(n, seed=0):
    return Noise(seed).normal(0, (n, 1, 8, 8))


class Rows:
    """Counts the rows that a module runs on, while it lasts."""

    def __init__(self, module):
        self.module, self.calls = module, []

    def __enter__(self):
        self.hook = self.module.register_forward_hook(lambda _, args, out: self.calls.append(len(out)))
        return self

    def __exit__(self, *_):
        self.hook.remove()


@pytest.mark.parametrize("name", CACHES)
def test_what_is_reported_is_what_runs(dit, name):
    made, label, model = plan(dit.process, "ddim", 16), list(range(6)), CACHES[name](dit)
    model.cost([model.recipe.gate.part])  # which is counted by running it
    with Rows(dit.network.block[2]["mlp"]) as inside, Rows(dit.network.block[0]["attn"]) as first:
        found = made.run(model, noise(6), label=label)
    report = found.report
    assert sum(inside.calls) == 6 * report["whole"] and report["whole"] + report["part"] == 16
    assert 6 * 16 > sum(inside.calls) and any(0 < n < 6 for n in inside.calls)
    assert sum(first.calls) == (sum(inside.calls) if name == "teacache" else 6 * 16)
    assert report["forecast"] == 0 and report["whole"] < report["cost"] < 16 and report["bytes"] > 0


@pytest.mark.parametrize("name", CACHES)
def test_a_sample_decides_alone_as_in_company(dit, name):
    made, model, label = plan(dit.process, "ddim", 16), CACHES[name](dit), list(range(6))
    together = made.run(model, noise(6), label=label)
    alone = [made.run(model, noise(6)[k : k + 1], label=label[k]) for k in range(6)]
    assert sum(one.report["whole"] for one in alone) == pytest.approx(6 * together.report["whole"])
    assert len({one.report["whole"] for one in alone}) > 1
    torch.testing.assert_close(torch.cat([one.samples for one in alone]), together.samples, **CLOSE)


@pytest.mark.parametrize(
    "wrap",
    [
        CACHES["first-block"],
        CACHES["teacache"],
        lambda model: cfg(first_block(model, threshold=0.7), 2.0),
        lambda model: teacache(adaptive(model, 2.0, 0.2), 0.2),
    ],
)
def test_requests_of_other_lengths_stay_apart(dit, wrap):
    model = wrap(dit)
    requests = [
        Request(plan(dit.process, "ddim", 12), noise(2, 1), {"label": 3}, seed=1),
        Request(plan(dit.process, "dpmpp-2m", 9), noise(2, 2), {"label": [5, 6]}, seed=2),
    ]
    alone = [r.plan(model, r.noise, seed=r.seed, **r.condition) for r in requests]
    for found, wanted in zip(run_mixed(requests, model), alone, strict=True):
        torch.testing.assert_close(found, wanted, **CLOSE)


def test_guidance_outside_and_inside_are_the_same_bits(dit):
    made = plan(dit.process, "ddim", 9)
    outside = made.run(cfg(first_block(dit, threshold=0.7), 2.0), noise(3), label=4)
    inside = made.run(first_block(cfg(dit, 2.0), threshold=0.7), noise(3), label=4)
    assert torch.equal(outside.samples, inside.samples)
    assert {**outside.report, "rows": 0} == {**inside.report, "rows": 0} and 0 < inside.report["part"] < 9


@torch.no_grad()
def test_some_rows_run_and_the_others_are_given_what_was_added(dit):
    """Row 1 is as it was, so it stands; the others run, and are the model's, but for rounding on some processors."""
    model, t = first_block(dit, threshold=0.05), torch.tensor(1.0)
    condition = dit.check_condition({"label": [1, 2, 3]}, 3, t.device)
    memory, x = Memory(3, (1.0, 1.0), 0.0), noise(3)
    memory.advance()
    before = ask(model, x, t, memory, condition).value
    assert torch.equal(before, dit(x, t, **condition).value)
    y = noise(3, 5)
    y[1] = x[1]
    memory.advance()
    with Rows(dit.network.block[3]["attn"]) as inside:
        after = ask(model, y, t, memory, condition).value
    assert inside.calls == [2] and memory.report["whole"] == 2 - 1 / 3
    wanted = dit(y, t, **condition).value
    torch.testing.assert_close(after, wanted, **CLOSE)
    rows = dit(y[[0, 2]], t, label=condition["label"][[0, 2]]).value
    torch.testing.assert_close(after[[0, 2]], rows, rtol=1e-5, atol=1e-6)
    assert memory.kept[AGE].tolist() == [1, 2, 1]


@torch.no_grad()
@pytest.mark.parametrize("name", CACHES)
def test_what_is_kept_goes_with_its_rows(dit, name):
    """As particles are drawn anew: after the rows are put in another order, so are the answers."""
    model, order = CACHES[name](dit), torch.tensor([2, 0, 0, 3])
    condition = dit.check_condition({"label": [1, 2, 3, 4]}, 4, torch.device("cpu"))
    states = [noise(4, k) * s for k, s in enumerate((3.0, 2.5, 2.2))]
    found = []
    for moved in (False, True):
        memory, own = Memory(4, (3.0, 2.5, 2.2), 0.0), dict(condition)
        for k, (x, t) in enumerate(zip(states, (3.0, 2.5, 2.2), strict=True)):
            if k == 2 and moved:
                memory.change(lambda kept: kept[order])
                x, own = x[order], {key: value[order] for key, value in own.items()}
            memory.advance()
            answer = ask(model, x, torch.tensor(t), memory, own).value
        found.append(answer)
    torch.testing.assert_close(found[1], found[0][order], **CLOSE)


@torch.no_grad()
def test_memories_of_some_rows_and_of_several_runs(dit):
    """A call for some rows of one run and for all of another decides for each as for itself."""
    model, t = first_block(dit, threshold=0.7), torch.tensor(2.0)

    def call(memory, x):
        condition = dit.check_condition({"label": 3}, len(x), t.device)
        return ask(model, x, t, memory, condition).value

    def runs():
        memories = [Memory(3, (2.0,) * 3, 0.0), Memory(2, (2.0,) * 3, 0.0)]
        for number in range(2):
            for memory, rows in zip(memories, (3, 2), strict=True):
                memory.advance()
                if number == 0:
                    call(memory, noise(rows, rows))
        return memories

    rows, x = torch.tensor([0, 2]), [noise(3, 3)[[0, 2]] * 1.02, noise(2, 9)]
    one, two = runs()
    apart = [call(one[rows], x[0]), call(two, x[1])]
    one, two = runs()
    shared = call(Together([one[rows], two]), torch.cat(x))
    torch.testing.assert_close(shared, torch.cat(apart), **CLOSE)
    assert one.report["part"] == 0.4 * 2 and two.report["whole"] >= 1


def test_changes():
    before, now = (
        torch.tensor([[1.0, -1.0], [0.0, 0.0], [2.0, 2.0]]),
        torch.tensor([[1.5, -1.0], [1.0, 0.0], [2.0, 2.0]]),
    )
    assert relative(now, before).tolist() == [0.25, float("inf"), 0.0]
    assert polynomial((2.0, -1.0, 3.0), torch.tensor([0.0, 2.0])).tolist() == [3.0, 9.0]
    half = relative(now.half(), before.half())
    assert half.dtype == torch.float32 and half[0] == 0.25


def test_it_says_that_it_reads_and_is_no_graph(dit):
    assert "once an evaluation" in first_block(dit).describe()["reads the device"]
    for model in (first_block(dit), first_block(cfg(dit, 2.0))):
        with pytest.raises(ValueError, match="'first-block' decides by what it has computed .* no graph can"):
            fs.compile(plan(dit.process, "ddim", 4), model)


@pytest.mark.parametrize("kind, thresholds", [
    ("DiTPipeline", (0.2, 0.15)),
    ("PixArtAlphaPipeline", (0.15, 0.3)),
    ("FluxPipeline", (0.35, 0.1)),
    ("StableDiffusion3Pipeline", (0.45, 0.1)),
])  # fmt: skip
def test_transformers_of_diffusers(kind, thresholds):
    """Rows are chosen among pictures, words and embeddings, whose blocks take them in several ways."""
    pytest.importorskip("diffusers")
    from claims.pipelines import matching, tiny
    from fewstep.hub.pipeline import PipelineDenoiser

    deeper = {"num_single_layers": 2} if kind == "FluxPipeline" else {"num_layers": 3}
    model = PipelineDenoiser(tiny(kind, matching("ddim", kind), **deeper), size=16)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    asked = {"text": ["a cat", "the red dog", "a mat"]} if "text" in model.conditions else {"label": [3, 1, 2]}
    condition = model.check_condition(asked, 3, torch.device("cpu"))
    words = condition["text"].shape[1] if "text" in condition else -1
    condition = {key: v[:, :7] if v.ndim > 1 and v.shape[1] == words else v for key, v in condition.items()}
    made, noises = plan(model.process, "ddim", 10), Noise(0).normal(0, (3, *model.shape))
    whole = made(model, noises, **condition)
    for wrap, threshold in zip((first_block, teacache), thresholds, strict=True):
        cached = wrap(model, threshold=threshold)
        together = made.run(cached, noises, **condition)
        assert together.report["whole"] != int(together.report["whole"])  # some rows run where others do not
        for k in range(3):
            own = {key: value[k : k + 1] for key, value in condition.items()}
            alone = made(cached, noises[k : k + 1], **own)
            torch.testing.assert_close(alone, together.samples[k : k + 1], rtol=1e-5, atol=1e-5)
        assert 0 < float((together.samples - whole).norm() / whole.norm()) < 0.05


@torch.no_grad()
@pytest.mark.parametrize("wrap", [lambda model: first_block(model, threshold=0.6), lambda model: teacache(model, 0.2)])
def test_blocks_that_are_called_with_more_than_an_embedding(wrap):
    """Rows are chosen among the keys and values of references as well."""
    torch.manual_seed(0)
    network = ReferenceDiT(channels=1, size=8, width=32, depth=4, classes=10, references=2)
    for parameter in network.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    conditions = {"label": Label(10), "y": Picture((2, 1, 8, 8))}
    model = NetworkDenoiser(network, EDM(), "x0", (1, 8, 8), conditions, precondition="edm").eval()
    made, cached = plan(model.process, "ddim", 16), wrap(model)
    given = {"label": [1, 2, 3], "y": torch.randn(3, 2, 1, 8, 8)}
    together = made.run(cached, noise(3), **given)
    assert together.report["whole"] != int(together.report["whole"])
    for k in range(3):
        alone = made(cached, noise(3)[k : k + 1], label=given["label"][k], y=given["y"][k : k + 1])
        torch.testing.assert_close(alone, together.samples[k : k + 1], **CLOSE)
