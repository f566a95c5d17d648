"""DDCM: indices are the argmax, decoding is the encoder's run again, and codebooks keep the law of the noise."""

from __future__ import annotations

import math

import pytest
import torch
from restoration.problems import D, half, mixture, normal

import fewstep as fs
from fewstep.core.noise import Noise
from fewstep.restoration.ddcm import DDCM, Choosing, Codebook, draws_of, left_of


def entry(seed, k, draw, *shape):
    return (-1) ** k * Noise(seed, k // 2).normal(draw, (1, *shape))[0]


def book(seed, entries, draw, *shape):
    return torch.stack([entry(seed, k, draw, *shape) for k in range(entries)])


def test_64_random_codebooks_have_unit_variance():
    """A draw with random indices is standard normal, and entries of one codebook are what they are said to be."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(16, (64, 500), generator=generator)
    drawn = torch.stack([Codebook(chosen, seed=3).normal(d, (500, 12)) for d in range(64)])
    for row in range(20):
        assert torch.equal(drawn[5, row], entry(3, int(chosen[5, row]), 5, 12))
    effective = 64 * 8  # vectors whose squares are not equal
    assert drawn.mean((0, 1)).abs().max() < 4 / math.sqrt(64 * 500)  # pairs have no mean of their own
    assert (drawn.var((0, 1)) - 1).abs().max() < 4 * math.sqrt(2 / effective)
    other = torch.stack([Codebook(chosen, seed=4).normal(d, (500, 12)) for d in range(64)])
    assert abs(float((drawn * other).mean())) < 0.02


def test_the_choice_is_the_argmax(monkeypatch):
    wanted = normal(5, 2, 3, seed=1).float()
    known = book(7, 33, 4, 2, 3)
    best = (wanted.flatten(1) @ known.flatten(1).T).argmax(1)
    for numbers in (1 << 22, 50):  # at once, and eight entries at a time
        monkeypatch.setattr("fewstep.restoration.ddcm.AT_ONCE", numbers)
        source = Choosing(33, 7, lambda x0: wanted)
        made = source.normal(4, (5, 2, 3))
        assert torch.equal(source.chosen[4], best) and torch.equal(made, known[best])


def test_each_index_is_the_argmax_of_what_is_left():
    """The run written out: DDPM's steps, with the entry of the largest product with x0 - x0_hat."""
    model, codec = mixture(), DDCM(entries=16, nfe=5, seed=2)
    x = model.sample(4, seed=3).float()
    plan = codec.plan(model)
    source = Choosing(16, 2, lambda x0: left_of(x, None, model, x0))
    seen = []
    codec.run(model, plan, source, 4, {}, lambda *told: (source.watch(*told), seen.append(told[3].x0.clone())))
    assert draws_of(plan) == [0, 1, 2, 3, 4] == sorted(source.chosen) and len(seen) == 5
    for draw, x0 in enumerate([torch.zeros(4, D), *seen[:-1]]):
        assert torch.equal(source.chosen[draw], ((x - x0) @ book(2, 16, draw, D).T).argmax(1)), draw


@pytest.mark.parametrize("solver", ["ddpm", "dpmpp-2m-sde", "sa-solver"])
def test_decoding_is_the_same_run(solver):
    model, codec = mixture(), DDCM(entries=32, nfe=6, solver=solver)
    x = model.sample(7, seed=5).float()
    plan = codec.plan(model)
    source = Choosing(32, 0, lambda x0: left_of(x, None, model, x0))
    run = codec.run(model, plan, source, 7, {}, source.watch)
    payload = codec.encode(model, x, None, {}, 256)
    assert torch.equal(codec.decode(model, payload, 7, {}, 256), run)
    assert 8 * len(payload) <= 7 * len(draws_of(plan)) * 5 + 10
    parts = codec.encode(model, x, None, {}, 3)
    assert torch.allclose(codec.decode(model, parts, 7, {}, 3), run, atol=1e-5)


def test_more_bits_come_nearer():
    model = mixture()
    x = model.sample(200, seed=6).float()

    def error(entries, nfe):
        codec = DDCM(entries=entries, nfe=nfe)
        return float((codec.decode(model, codec.encode(model, x, None, {}, 256), 200, {}, 256) - x).square().mean())

    few, many, longer = error(4, 10), error(64, 10), error(64, 30)
    assert longer < many < few


def test_a_measurement_is_met_by_what_is_decoded():
    """Towards `A^T (y - A x0)`: a restored picture in as many bits."""
    model, a = mixture(), half()
    x = model.sample(100, seed=7).float()
    y = a(x)
    codec = DDCM(entries=64, nfe=20)
    made = codec.decode(model, codec.encode(model, y, a, {}, 256), 100, {}, 256)
    other = fs.sample(model, 100, solver="ddpm", steps=20)
    assert float((a(made) - y).square().mean()) < 0.2 * float((a(other) - y).square().mean())
    zero = torch.zeros(100, D)
    assert torch.equal(left_of(y, a, model, None), a.adjoint(y))
    assert torch.equal(left_of(y, a, model, zero + 1), a.adjoint(y - a(zero + 1)))


def test_bad_input_is_said():
    with pytest.raises(ValueError, match="entries must be a whole number from 2"):
        DDCM(entries=1)
    with pytest.raises(ValueError, match="nfe must be a whole number of at least 1, got 0"):
        DDCM(nfe=0)
    for solver in ("ddim", "pc"):
        with pytest.raises(ValueError, match=f"'ddcm' picks the noise of a plan's steps, and '{solver}' has none"):
            DDCM(solver=solver, nfe=5).plan(mixture())
