"""first-block and dbcache by hand: what judges, what stands, for how long, and what they refuse. Methods: first-block,
dbcache."""

from __future__ import annotations

import pytest
import torch

import fewstep as fs
from fewstep.caching.first_block import dbcache, first_block
from fewstep.core.noise import Noise
from fewstep.networks.blocks import blocks_of
from fewstep.networks.surgery import InPlaceOf, Keep, replaced
from fewstep.sampling.build import plan


def noise(n, seed=0):
    return Noise(seed).normal(0, (n, 1, 8, 8))


class Adds(InPlaceOf):
    """In the place of a block: adds a tensor to its input."""

    def __init__(self, value):
        super().__init__(None)
        self.value = value

    def forward(self, x, embedding):
        return x + self.value


@torch.no_grad()
@pytest.mark.parametrize("front, back", [(1, 0), (2, 1)])
def test_it_is_what_the_description_says(dit, front, back):
    """A run of one sample, decided and computed by hand from the network's own blocks."""
    threshold, seen = 0.7, []
    made = plan(dit.process, "ddim", 12)
    made(
        first_block(dit, front, back, threshold),
        noise(1),
        label=3,
        callback=lambda n, t, x, p: seen.append((t, x.clone(), p.value.clone())),
    )
    blocks, kept, stood = list(blocks_of(dit)), None, 0
    condition = dit.check_condition({"label": 3}, 1, torch.device("cpu"))
    first, last = blocks[2 * front - 1], blocks[-2 * back - 1]
    for t, x, value in seen:
        store = {}
        paths = {name: f"network.{name}" for name in ("block.0.attn", first, last)}
        modules = {path: Keep(dit.get_submodule(path), store, name) for name, path in paths.items()}
        into = {}
        modules[paths["block.0.attn"]].register_forward_pre_hook(lambda _, args, into=into: into.update(x=args[0]))
        whole = replaced(dit, modules)(x, torch.tensor(t), **condition).value
        changed, added = store[first] - into["x"], store[last] - store[first]
        if kept is not None and (changed - kept[0]).abs().sum() < threshold * kept[0].abs().sum():
            inside = blocks[2 * front : len(blocks) - 2 * back]
            parts = {f"network.{name}": Adds(torch.zeros(())) for name in inside[:-1]}
            wanted = replaced(dit, parts | {f"network.{inside[-1]}": Adds(kept[1])})(
                x, torch.tensor(t), **condition
            ).value
            stood += 1
        else:
            kept, wanted = (changed, added), whole
        torch.testing.assert_close(value, wanted, rtol=0, atol=2e-6)
    assert 0 < stood < 11


def test_off_it_is_the_model_bit_for_bit(dit):
    made = plan(dit.process, "dpmpp-2m", 6)
    whole = made(dit, noise(3), label=2)
    for off in ({"threshold": 0.0}, {"most": 0}, {"warmup": 6}):
        assert torch.equal(made(first_block(dit, **off), noise(3), label=2), whole)
    assert torch.equal(made(dbcache(dit), noise(3), label=2), whole)  # eight evaluations are whole at first
    x, condition = noise(3), dit.check_condition({"label": 2}, 3, torch.device("cpu"))
    cached = first_block(dit, threshold=9.0)
    assert torch.equal(cached(x, torch.tensor(1.0), **condition).value, dit(x, torch.tensor(1.0), **condition).value)


def test_how_often_and_from_when_on(dit):
    made = plan(dit.process, "ddim", 13)
    report = made.run(first_block(dit, threshold=1e6, warmup=3, most=1), noise(2), label=1).report
    assert (report["whole"], report["part"]) == (8, 5)
    report = made.run(first_block(dit, threshold=1e6), noise(2), label=1).report
    assert (report["whole"], report["part"]) == (1, 12)
    report = made.run(dbcache(dit, threshold=1e6), noise(2), label=1).report
    assert (report["whole"], report["part"]) == (8, 5)
    assert dbcache(dit).recipe.gate.part == "blocks 1 to 3" and dbcache(dit, 2, 1).recipe.gate.part == "blocks 2 to 2"


def test_the_higher_the_threshold_the_less_runs(dit):
    made = plan(dit.process, "ddim", 12)
    whole = made(dit, noise(8), label=3)
    found = [made.run(first_block(dit, threshold=threshold), noise(8), label=3) for threshold in (0.5, 0.7, 1.0)]
    errors = [float((one.samples - whole).norm() / whole.norm()) for one in found]
    costs = [one.report["cost"] for one in found]
    assert 0 < errors[0] < errors[2] < 1 and 12 > costs[0] > costs[1] > costs[2] > 1


def test_bad_input(dit):
    with pytest.raises(ValueError, match="front must be a whole number of at least 1, got 0"):
        first_block(dit, 0)
    with pytest.raises(ValueError, match="at least one of the 4 blocks, got 3 and 1"):
        first_block(dit, 3, 1)
    with pytest.raises(ValueError, match="threshold must be at least 0 and finite, got -1"):
        fs.cache(dit, "dbcache", threshold=-1.0)
    with pytest.raises(ValueError, match="a UNet has 'deepcache'"):
        fs.cache(fs.load("digits"), "first-block")
    with pytest.raises(ValueError, match="cached already, by 'first-block'"):
        first_block(first_block(dit))
