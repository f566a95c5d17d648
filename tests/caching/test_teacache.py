"""teacache: the sum of changes by hand, the polynomial that is fitted, and what it refuses. Method: teacache."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

import fewstep as fs
from fewstep.caching.teacache import calibrate, teacache
from fewstep.core.noise import Noise
from fewstep.networks.surgery import InPlaceOf, replaced
from fewstep.sampling.build import plan


def noise(n, seed=0):
    return Noise(seed).normal(0, (n, 1, 8, 8))


class Listens(InPlaceOf):
    """Notes what a block of ours attends to, by hand."""

    def __init__(self, of, seen):
        super().__init__(of)
        self.inner, self.seen = of, seen

    def forward(self, x, embedding):
        scale, shift, _ = self.of.modulation(embedding)[:, None].chunk(3, dim=2)
        self.seen.append(self.of.norm(x) * (1 + scale) + shift)
        return self.inner(x, embedding)


@torch.no_grad()
def signals(model, states):
    """What the first block attends to at `(t, x)`."""
    seen = []
    heard = replaced(model, {"network.block.0.attn": Listens(model.get_submodule("network.block.0.attn"), seen)})
    for t, x in states:
        heard(x, torch.tensor(t), **model.check_condition({"label": 3}, len(x), x.device))
    return seen


@pytest.mark.parametrize("coefficients", [None, (2.0, 0.5, -0.01)])
def test_the_sum_of_changes_decides(dit, coefficients):
    made, states, whole = plan(dit.process, "ddim", 14), [], []
    calls = []
    hook = dit.network.block[2]["mlp"].register_forward_hook(lambda *_: calls.append(len(states)))
    model = teacache(dit, 0.3, coefficients)
    model.cost([model.recipe.gate.part])
    calls.clear()
    made(model, noise(1), label=3, callback=lambda n, t, x, p: states.append((t, x.clone())))
    hook.remove()
    seen, total = signals(dit, states), 0.0
    for n, now in enumerate(seen):
        change = float((now - seen[n - 1]).abs().sum() / seen[n - 1].abs().sum()) if n else 0.0
        total += max(float(np.polyval(coefficients or (1, 0), change)), 0.0)
        if n in (0, 13) or total >= 0.3:
            whole.append(n)
            total = 0.0
    assert calls == whole and 2 < len(whole) < 14


def test_off_it_is_the_model_bit_for_bit(dit):
    made = plan(dit.process, "dpmpp-2m", 6)
    whole = made(dit, noise(3), label=2)
    for off in ({"threshold": 0.0}, {"most": 0}):
        assert torch.equal(made(teacache(dit, **off), noise(3), label=2), whole)
    report = made.run(teacache(dit, 1e6), noise(3), label=2).report
    assert (report["whole"], report["part"]) == (2, 4)
    assert made.run(teacache(dit, 1e6, most=1), noise(3), label=2).report["whole"] == 4


def test_the_polynomial_is_the_least_squares_fit(dit):
    made, states = plan(dit.process, "ddim", 14), []
    made(dit, noise(4), label=3, callback=lambda n, t, x, p: states.append((t, x.clone())))
    seen = signals(dit, states)
    found = calibrate(dit, made, noise(4), degree=2, label=3)["coefficients"]
    again = calibrate(dit, made, noise(4), degree=2, label=3)["coefficients"]
    assert len(found) == 3 and found == again
    # At the least sum of squares no small step leads lower: the change of what the blocks add, by hand.
    added = []
    for t, x in states:
        into, out = [], []
        a = dit.network.block[0]["attn"].register_forward_pre_hook(lambda _, args, into=into: into.append(args[0]))
        b = dit.network.block[3]["mlp"].register_forward_hook(lambda _, args, o, out=out: out.append(o))
        with torch.no_grad():
            dit(x, torch.tensor(t), **dit.check_condition({"label": 3}, 4, x.device))
        a.remove()
        b.remove()
        added.append(out[0] - into[0])

    def changes(values):
        sizes = [((b - a).abs().flatten(1).sum(1) / a.abs().flatten(1).sum(1)) for a, b in pairwise(values)]
        return torch.cat(sizes).double().numpy()

    x, y = changes(seen), changes(added)
    np.testing.assert_allclose(found, np.polyfit(x, y, 2), rtol=1e-3, atol=1e-4)
    made.run(fs.cache(dit, "teacache", coefficients=found), noise(1), label=3)


def test_bad_input(dit):
    with pytest.raises(ValueError, match="threshold must be at least 0 and finite, got -0.1"):
        teacache(dit, -0.1)
    with pytest.raises(ValueError, match="coefficients must be finite numbers, at least one, got"):
        teacache(dit, coefficients=[float("nan")])
    with pytest.raises(ValueError, match="a UNet has 'deepcache'"):
        teacache(fs.load("digits"))
    with pytest.raises(ValueError, match="degree 4 needs more than 5 evaluations, got 5"):
        calibrate(dit, plan(dit.process, "ddim", 5), noise(1))
    with pytest.raises(ValueError, match="cached already"):
        calibrate(teacache(dit), plan(dit.process, "ddim", 9), noise(1))
    bare = replaced(dit, {"network.block.0": Bare()})
    with pytest.raises(ValueError, match="a Plain, does not say what it attends to.*'first-block' needs neither"):
        teacache(bare)


class Plain(torch.nn.Module):
    def forward(self, x, embedding):
        return x


class Bare(torch.nn.ModuleDict):
    def __init__(self):
        super().__init__({"attn": Plain(), "mlp": Plain()})
