"""Kept references give the model's own answers: in runs, shared calls, guidance and routes. Method: reference."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fewstep as fs
from fewstep.caching.reference import KeptReferences
from fewstep.caching.token_merging import TokenMerging
from fewstep.conditions.label import Label
from fewstep.conditions.picture import Picture
from fewstep.core.facts import Facts
from fewstep.core.memory import Memory, Together, ask
from fewstep.core.noise import Noise
from fewstep.denoisers.experts import Experts
from fewstep.denoisers.masked import MaskedDenoiser
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.dit import DiT
from fewstep.networks.reference import ReferenceDiT
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.mixed import Request, run_mixed

CLOSE = {"rtol": 0, "atol": 1e-6}
SHAPE = (1, 4, 6)


class Counting(ReferenceDiT):
    """Counts the rows whose references are read."""

    seen = 0

    def read(self, y):
        type(self).seen += len(y)
        return super().read(y)


def made(references: int = 2, seed: int = 0) -> NetworkDenoiser:
    torch.manual_seed(seed)
    network = Counting(1, SHAPE[1:], 2, 32, 2, 3, references=references).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    shape = SHAPE if references == 1 else (references, *SHAPE)
    return NetworkDenoiser(network, VP(), "v", SHAPE, {"label": Label(3), "y": Picture(shape)})


def reading(run):
    """A run's answer, and for how many rows it read references."""
    Counting.seen = 0
    return run(), Counting.seen


def noise(n: int, seed: int = 0) -> torch.Tensor:
    return Noise(seed).normal(0, (n, *SHAPE))


def pictures(n: int, references: int = 2, seed: int = 9) -> torch.Tensor:
    shape = SHAPE if references == 1 else (references, *SHAPE)
    return Noise(seed).normal(0, (n, *shape))


@pytest.mark.parametrize("references", [1, 2])
def test_a_run_reads_them_once(references):
    model, y = made(references), pictures(3, references)
    kept, run = KeptReferences(model), plan(model.process, "dpmpp-2m", 6)
    whole, read = reading(lambda: run(model, noise(3), label=[0, 1, 2], y=y))
    found, once = reading(lambda: run(kept, noise(3), label=[0, 1, 2], y=y))
    torch.testing.assert_close(found, whole, **CLOSE)
    assert (read, once) == (18, 3)
    assert not torch.allclose(found, run(kept, noise(3), label=[0, 1, 2], y=y.flip(0)))
    x, t = noise(3), torch.tensor(0.4)
    named = model.check_condition({"label": 1, "y": y}, 3, x.device)
    value, read = reading(lambda: kept(x, t, **named).value)
    assert torch.equal(value, model(x, t, **named).value) and read == 3  # outside a run
    shared = run(kept, noise(3), label=1, y=y[0])  # one for all rows
    torch.testing.assert_close(shared, run(model, noise(3), label=1, y=y[:1].repeat_interleave(3, 0)), **CLOSE)


@pytest.mark.parametrize("wrap", [KeptReferences, lambda m: fs.guide(KeptReferences(m), "cfg", scale=2.0)])
def test_requests_of_other_lengths_stay_apart(wrap):
    model = wrap(made())
    requests = [
        Request(plan(model.process, "ddim", 7), noise(2, 1), {"label": 2, "y": pictures(2, seed=1)}),
        Request(plan(model.process, "dpmpp-2m", 4), noise(3, 2), {"label": [0, 1, 2], "y": pictures(3, seed=2)}),
        Request(plan(model.process, "ddim", 5), noise(1, 3), {"y": pictures(1, seed=3)}),
    ]
    alone = [r.plan(made(), r.noise, **r.condition) for r in requests]
    if wrap is not KeptReferences:
        alone = [r.plan(fs.guide(made(), "cfg", scale=2.0), r.noise, **r.condition) for r in requests]
    found, read = reading(lambda: run_mixed(requests, model))
    assert read == (6 if wrap is KeptReferences else 12)
    for one, wanted in zip(found, alone, strict=True):
        torch.testing.assert_close(one, wanted, **CLOSE)
    found, read = reading(lambda: run_mixed(requests, model, max_batch=3))  # in turns
    assert read == (6 if wrap is KeptReferences else 12)
    for one, wanted in zip(found, alone, strict=True):
        torch.testing.assert_close(one, wanted, **CLOSE)


@pytest.mark.parametrize("name", ["cfg", "adaptive", "pag"])
def test_guidance_inside_and_outside(name):
    model, y = made(), pictures(4)
    options = {"tolerance": 0.2} if name == "adaptive" else {}
    run = plan(model.process, "ddim", 6)

    def guided(inner):
        return fs.guide(inner, name, scale=2.0, **options)

    whole, read = reading(lambda: run(guided(model), noise(4), label=1, y=y))
    assert read > 24
    for stack in (guided(KeptReferences(model)), KeptReferences(guided(model))):
        found, once = reading(lambda stack=stack: run(stack, noise(4), label=1, y=y))
        torch.testing.assert_close(found, whole, **CLOSE)
        assert once == 8  # of each branch


def test_another_model_beside_has_its_own():
    model, weak, y = made(), made(seed=5), pictures(2)
    run = plan(model.process, "ddim", 4)
    guided = fs.guide(model, "autoguidance", weak=weak, scale=2.0)
    whole, read = reading(lambda: run(guided, noise(2), label=1, y=y))
    found, once = reading(lambda: run(KeptReferences(guided), noise(2), label=1, y=y))
    torch.testing.assert_close(found, whole, **CLOSE)
    assert (read, once) == (16, 4)
    experts = Experts([model, weak], [0.5])
    for stack in (KeptReferences(experts), Experts([KeptReferences(model), KeptReferences(weak)], [0.5])):
        found, once = reading(lambda stack=stack: run(stack, noise(2), label=1, y=y))
        torch.testing.assert_close(found, run(experts, noise(2), label=1, y=y), **CLOSE)
        assert once == 4


def test_it_goes_with_other_wrappers():
    model, y = made(), pictures(2)
    run = plan(model.process, "ddim", 4)
    masks = {run.moments[2]: ["block.0.mlp", "block.1.attn"]}
    for wrap in (lambda m: MaskedDenoiser(m, masks), lambda m: TokenMerging(m, 0.5)):
        whole = run(wrap(model), noise(2), label=1, y=y)
        assert not torch.allclose(whole, run(model, noise(2), label=1, y=y), atol=1e-4)
        for stack in (wrap(KeptReferences(model)), KeptReferences(wrap(model))):
            found, once = reading(lambda stack=stack: run(stack, noise(2), label=1, y=y))
            torch.testing.assert_close(found, whole, **CLOSE)
            assert once == 2


@torch.no_grad()
def test_rows_apart_before_all_are_known():
    model, y, x, t = made(), pictures(3), noise(3), torch.tensor(0.4)
    kept, memory = KeptReferences(model), Memory(3, (0.4, 0.3), 0.0)
    memory.advance()
    for rows in (torch.tensor([2]), torch.tensor([0, 1]), torch.tensor([0, 1])):
        named = {"label": torch.tensor([1] * len(rows)), "y": y[rows]}
        value, read = reading(lambda rows=rows, named=named: ask(kept, x[rows], t, memory[rows], named).value)
        torch.testing.assert_close(value, model(x[rows], t, **named).value, **CLOSE)
        assert read == len(rows) and not memory.kept  # nothing is kept for rows that were not seen
    named = {"label": torch.tensor([1, 2, 0]), "y": y}
    ask(kept, x, t, memory, named)
    rows = torch.tensor([2, 0])
    some = {"label": torch.tensor([0, 1]), "y": y[rows]}
    value, read = reading(lambda: ask(kept, x[rows], t, memory[rows], some).value)
    torch.testing.assert_close(value, model(x[rows], t, **some).value, **CLOSE)
    assert read == 0
    fresh = Memory(2, (0.4,), 0.0)
    fresh.advance()
    both = Together([memory[rows], fresh])  # those that are known and those that are not in one call
    named = {"label": torch.tensor([0, 1, 2, 2]), "y": torch.cat([y[rows], y[1:]])}
    x4 = noise(4, 7)
    value, read = reading(lambda: ask(kept, x4, t, both, named).value)
    torch.testing.assert_close(value, model(x4, t, **named).value, **CLOSE)
    assert read == 2 and list(fresh.kept) == ["references 0"]


def test_threads_share_one_object():
    model = KeptReferences(made())
    plans = [plan(model.process, "ddim", n) for n in (4, 6)]
    wanted = [p(made(), noise(2, k), label=k, y=pictures(2, seed=k)) for k, p in enumerate(plans)]
    found = [None, None]

    def work(k):
        for _ in range(3):
            found[k] = plans[k](model, noise(2, k), label=k, y=pictures(2, seed=k))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.names.add(op.overloadpacket.__name__)
        return op(*args, **(kwargs or {}))


@torch.no_grad()
def test_it_wraps_as_all_wrappers_do():
    model, x, t = made(), noise(3).double(), torch.tensor(0.4, dtype=torch.float64)
    kept, before = KeptReferences(model), set(vars(model))
    assert all(getattr(kept.facts, name) is getattr(model.facts, name) for name in Facts.__dataclass_fields__)
    assert kept.carries and (kept.device, kept.dtype) == (model.device, model.dtype)
    assert [id(p) for p in kept.parameters()] == [id(p) for p in model.parameters()]
    assert kept.describe() == model.describe() | {"references": "read once a run"}
    memory, named = Memory(3, (0.4, 0.4), 0.0), model.check_condition({"label": 1, "y": pictures(3)}, 3, x.device)
    for _ in range(2):
        memory.advance()
        with Seen() as seen:
            answer = ask(kept, x, t, memory, named)
        assert answer.kind == "v" and answer.value.dtype == torch.float64 and answer.x is x and answer.t is t
        assert "addmm" in seen.names and not seen.names & {"_local_scalar_dense", "nonzero", "equal", "is_nonzero"}
    assert memory.kept["references 0"].dtype == torch.float32 and set(vars(model)) == before
    twin = copy.deepcopy(kept)
    assert torch.equal(twin(x, t, **named).value, kept(x, t, **named).value)


def test_bad_input():
    plain = NetworkDenoiser(DiT(1, SHAPE[1:], 2, 32, 2, 3), VP(), "v", SHAPE, {"label": Label(3)})
    for model in (plain, made(0)):
        with pytest.raises(ValueError, match="this model has no references to keep: its network must be a Reference"):
            KeptReferences(model)
    for model in (KeptReferences(made()), fs.guide(KeptReferences(made()), "cfg", scale=2.0)):
        with pytest.raises(ValueError, match="the references of this model are kept already"):
            KeptReferences(model)
    run = plan(VP(), "ddim", 2)
    with pytest.raises(ValueError, match=r"this model needs y, a tensor \(2, 1, 4, 6\)"):
        run(KeptReferences(made()), noise(2), label=1)
    with pytest.raises(ValueError, match=r"y must have shape \(2, 1, 4, 6\)"):
        run(KeptReferences(made()), noise(2), label=1, y=pictures(3, 1))
