"""The wrapper of caches: forecasts of the output, in runs and shared calls, and what is counted and held."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor

import fewstep as fs
from fewstep.caching.ab_cache import ab_cache
from fewstep.caching.common import Cached
from fewstep.caching.parts import cut, each
from fewstep.caching.recipe import ANSWER, OUTPUT, Recipe
from fewstep.conditions.label import Label
from fewstep.core.memory import Memory
from fewstep.core.noise import Noise
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.denoisers.operations import operations
from fewstep.networks.surgery import replaced
from fewstep.networks.temporal import TemporalUNet
from fewstep.processes.vp import VP

F64 = torch.float64


def cached(model, every: int = 2, order: int = 1, coordinate: str = "own", parts=None):
    parts = {OUTPUT: ANSWER} if parts is None else parts
    names = tuple(parts)[:1]
    recipe = Recipe(parts, lambda k, n: () if k % every == 0 else names, order, coordinate=coordinate)
    return Cached(model, recipe, ("budget", {"every": every}))


def noise(n: int, shape: tuple[int, ...] = (2,)) -> Tensor:
    return Noise(0).normal(0, (n, *shape), "cpu", F64)


def polynomial(degree: int, process):
    """A model whose eps is a polynomial in log-SNR, whatever the state."""

    def eps(x: Tensor, t: Tensor) -> Tensor:
        snr = process.log_snr(t).view(-1, 1)
        return sum((0.3 / (k + 1)) * snr**k for k in range(degree + 1)) * torch.ones_like(x)

    return fs.wrap(eps, process, "eps", (2,))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_an_output_that_is_a_polynomial_is_forecast_exactly(order):
    process = VP()
    plan = fs.plan(process, "dpmpp-2m", 24)
    for degree in (order - 1, order):
        model = polynomial(degree, process)
        whole = plan(model, noise(2), dtype=F64)
        seen: list[Tensor] = []
        found = plan(
            cached(model, order=order, coordinate="eps"), noise(2), dtype=F64,
            callback=lambda n, t, x, p, seen=seen: seen.append(p.eps.clone()),
        )  # fmt: skip
        # The forecast has its order once it has so many answers to go by.
        exact = [float(process.log_snr(torch.tensor(t, dtype=F64))) for t in plan.moments]
        off = [
            abs(float(e[0, 0]) - sum(0.3 / (k + 1) * u**k for k in range(degree + 1)))
            for e, u in zip(seen, exact, strict=True)
        ]
        late = max(off[2 * order :])
        assert (late < 1e-9) == (degree < order), (degree, order, late)
        assert bool(torch.isfinite(found).all()) and found.shape == whole.shape


@pytest.mark.parametrize("order, coordinate", [(1, "eps"), (2, "x0"), (3, "own")])
def test_it_is_the_plan_that_forecasts_its_evaluations(order, coordinate):
    """Against the plan whose evaluations are combinations."""
    mixture = GaussianMixture(torch.ones(2), torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), 0.3, VP())
    plan = fs.plan(VP(), "dpmpp-2m", 12)
    ours = plan(cached(mixture, order=order, coordinate=coordinate), noise(3), dtype=F64)
    theirs = ab_cache(plan, 2, order, coordinate)(mixture, noise(3), dtype=F64)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_requests_with_other_keeps_share_a_call():
    """Runs of 12 and 9 evaluations: the weights of a call differ from row to row."""
    model = cached(polynomial(3, VP()), order=3, coordinate="eps")
    plans = [fs.plan(VP(), "ddim", 12), fs.plan(VP(), "dpmpp-2m", 9)]
    requests = [(plan, noise(2)) for plan in plans]
    for found, plan in zip(fs.run_mixed(requests, model, dtype=F64), plans, strict=True):
        assert torch.equal(found, plan(model, noise(2), dtype=F64))


def test_what_is_held_is_what_is_counted():
    digits = fs.load("digits")
    part = cut(digits, 1)
    plan = fs.plan(digits.process, "ddim", 12)
    for order in (1, 3):
        result = plan.run(cached(digits, order=order, parts={part.name: part}), noise(2, (1, 8, 8)).float(), label=3)
        assert result.report["bytes"] == order * 2 * 64 * 8 * 8 * 4  # what comes up to the finest level, in float32
        assert (result.report["whole"], result.report["part"], result.report["forecast"]) == (6, 6, 0)
    model = cached(digits, parts={part.name: part})
    store: dict[str, Tensor] = {}
    with torch.no_grad():
        t = torch.tensor(1.0)
        replaced(digits, part.keeping(digits, store))(torch.zeros(1, 1, 8, 8), t, label=torch.tensor([3]))
    share = operations(replaced(digits, part.standing(digits, store))) / operations(digits)
    assert math.isclose(model.cost((part.name,)), share, rel_tol=1e-3)
    assert math.isclose(result.report["cost"], 6 + 6 * share, rel_tol=1e-3)


def test_a_short_plan_is_warned_of():
    digits = fs.load("digits")
    part = cut(digits, 1)
    with pytest.warns(UserWarning, match=r"a plan of 6 evaluations leaves little to save.*as dear as 4.2 whole ones"):
        fs.plan(digits.process, "ddim", 6)(cached(digits, parts={part.name: part}), noise(1, (1, 8, 8)).float())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fs.plan(digits.process, "ddim", 9)(cached(digits, parts={part.name: part}), noise(1, (1, 8, 8)).float())


def test_a_fork_of_a_memory_goes_on_by_itself():
    memory = Memory(2, (3.0, 2.0, 1.0), 0.0)
    memory.advance()
    memory.keep("a", torch.ones(2))
    memory.branch("weak").keep("b", torch.zeros(2))
    memory.notes["n"] = [1]
    other = memory.fork(1, list)
    assert other.number == 1 and other.t == 2.0 and torch.equal(other.get("a"), torch.ones(2))
    assert other.branch("weak").get("b") is not None and other.notes["n"] == [1]
    other.keep("a", torch.zeros(2))
    other.notes["n"].append(2)
    other.report["x"] = 1
    assert torch.equal(memory.get("a"), torch.ones(2)) and memory.notes["n"] == [1] and not memory.report
    made = other.once("k", lambda: object())
    assert other.branch("weak").once("k", lambda: object()) is made
    memory.forget("a")
    memory.forget("a")
    assert memory.get("a") is None


def test_more_than_may_be_kept():
    digits = fs.load("digits")
    plan = fs.plan(digits.process, "ddim", 12)
    need = plan.run(fs.cache(digits, "deepcache", order=2), noise(2, (1, 8, 8)).float()).report["bytes"]
    plan(fs.cache(digits, "deepcache", order=2, most_bytes=need), noise(2, (1, 8, 8)).float())
    with pytest.raises(ValueError, match=rf"takes {need} bytes in this run, more than most_bytes, {need - 1}: a lower"):
        plan(fs.cache(digits, "deepcache", order=2, most_bytes=need - 1), noise(2, (1, 8, 8)).float())


class Growing(torch.nn.Module):
    """A network of one block, whose answer grows from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.calls = Tail(), 0
        self.blocks = self.skippable = {"block": self.block}

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return self.block(torch.cat([x] * self.calls, 1))[:, : x.shape[1]]


class Tail(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x


def test_a_network_that_changes_its_shapes_is_named():
    model = fs.wrap(Growing(), VP(), "eps", (2,))
    parts = each(model)
    recipe = Recipe(parts, lambda number, count: () if number < 3 else ("block",), 2)
    with pytest.raises(ValueError, match=r"'block' was \(1, 2\) at evaluation 0 and is \(1, 4\) at 1: a network whose"):
        fs.plan(VP(), "ddim", 12)(Cached(model, recipe, ("budget", {})), noise(1), dtype=F64)


def test_answers_that_are_not_finite_are_named():
    """Forecast ones as well: by their evaluation and time."""
    process = VP()
    model = fs.wrap(lambda x, t: x / (process.log_snr(t).view(-1, 1) > 1.0).logical_not().to(x), process, "eps", (2,))
    with pytest.raises(ValueError, match=r"the network returned values that are not finite at evaluation \d+, t = "):
        fs.plan(process, "ddim", 12)(cached(model), noise(2), dtype=F64)


CACHES = {"deepcache": {}, "clockwork": {}, "taylorseer": {}, "inherit": {}, "encoder-propagation": {"keys": 2}}


@pytest.mark.parametrize("name", CACHES)
def test_clips_share_calls_as_if_alone(name):
    """Inside a network of clips each frame is a row, and the memory of a run has a row for each clip."""
    torch.manual_seed(0)
    network = TemporalUNet(2, 4, (8, 8), attention=(2,), classes=3, embedding=8, frames=3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    base = NetworkDenoiser(network, VP(), "v", (3, 2, 4, 4), {"label": Label(3)}).eval()
    model = fs.cache(fs.guide(base, "cfg", scale=2.0), name, **CACHES[name])
    plans, rows = (fs.plan(VP(), "ddim", 4), fs.plan(VP(), "ddim", 6)), (2, 3)
    asked = [Noise(k).normal(0, (n, 3, 2, 4, 4), "cpu", torch.float32) for k, n in enumerate(rows)]
    labels = [{"label": torch.arange(n) % 3} for n in rows]
    alone = [plan(model, x, **named) for plan, x, named in zip(plans, asked, labels, strict=True)]
    for found, wanted in zip(fs.run_mixed(list(zip(plans, asked, labels, strict=True)), model), alone, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    whole = plans[1](model.model, asked[1], **labels[1])
    assert 1e-4 < float((alone[1] - whole).norm() / whole.norm()) < 0.5
