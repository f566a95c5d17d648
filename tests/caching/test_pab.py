"""pab: attention runs at its own evaluations, and all else at every one. Method: pab."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fewstep as fs
from fewstep.caching.attention import attention_parts
from fewstep.caching.pab import pab
from fewstep.core.noise import Noise
from fewstep.hub.models import load
from fewstep.sampling.build import plan


def noise(n, seed=0):
    return Noise(seed).normal(0, (n, 1, 8, 8))


def ran(model, made, path, **options):
    """The evaluations at which a submodule runs, and the report."""
    calls, t = [], []
    cached = pab(model, **options)
    for names in {tuple(cached.recipe.schedule(n, made.nfe)) for n in range(made.nfe)}:
        cached.cost(names)
    hook = model.get_submodule(path).register_forward_hook(lambda *_: calls.append(len(t)))
    report = made.run(cached, noise(2), label=1, callback=lambda n, *_: t.append(n)).report
    hook.remove()
    return calls, report


def test_attention_stands_and_nothing_else(dit):
    made = plan(dit.process, "ddim", 10)
    calls, report = ran(dit, made, "network.block.2.attn", interval=3)
    assert calls == [0, 1, 3, 6, 9] and (report["whole"], report["part"]) == (5, 5)  # 0.2 to 0.9 are 2 to 8
    assert ran(dit, made, "network.block.2.mlp", interval=3)[0] == list(range(10))
    assert ran(dit, made, "network.block.2.attn", interval=4, start=0.0, stop=1.0)[0] == [0, 4, 8]
    assert 5 < report["cost"] < 10


def test_off_it_is_the_model_bit_for_bit(dit):
    made = plan(dit.process, "dpmpp-2m", 9)
    whole = made(dit, noise(2), label=2)
    assert torch.equal(made(pab(dit, 1), noise(2), label=2), whole)  # no attention is to words alone
    assert not torch.equal(made(pab(dit, 2), noise(2), label=2), whole)


def test_forecasts_are_nearer(dit):
    made = plan(dit.process, "ddim", 40)
    whole = made(dit, noise(8), label=3)
    errors = [float((made(pab(dit, 2, order=order), noise(8), label=3) - whole).norm()) for order in (1, 2)]
    assert errors[1] < errors[0]


def test_a_unet_has_attention_too():
    digits = load("digits")
    made = plan(digits.process, "ddim", 10)
    path = next(iter(attention_parts(digits)["self"].values())).blocks[0].path
    assert ran(digits, made, path)[0] == [0, 1, 2, 4, 6, 8, 9]


def test_bad_input(dit):
    with pytest.raises(ValueError, match="interval must be a whole number of at least 1, got 0"):
        pab(dit, 0)
    with pytest.raises(ValueError, match="start must lie before stop, got 0.5 and 0.5"):
        fs.cache(dit, "pab", start=0.5, stop=0.5)
    bare = fs.wrap(lambda x, t: x, dit.process, shape=(2,))
    bare.network = nn.Module()
    bare.network.blocks = {"mlp": nn.Linear(2, 2)}
    bare.network.mlp = bare.network.blocks["mlp"]
    with pytest.raises(ValueError, match="this network has no attention; its blocks are mlp"):
        pab(bare)
