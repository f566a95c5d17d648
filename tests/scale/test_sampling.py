"""Samples in shards are those of `fs.sample`, bit for bit; another model, plan or device is another job."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import torch

import fewstep as fs
from fewstep.core.methods import find
from fewstep.scale.sampling import Draws, fingerprint, sample_shards

N, BATCH = 7, 2


@pytest.fixture(scope="module")
def digits():
    return fs.load("digits")


def together(shards):
    return torch.cat(list(shards))


def test_it_is_registered():
    assert find("shards") is sample_shards


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 2, "label": 3, "seed": 5},
        {"solver": "ddim", "nfe": 2, "timesteps": "karras", "label": [3, 1, 4, 1, 5, 9, 2]},
        {"solver": "dpmpp-2m-sde", "steps": 2},  # draws noise at every step
    ],
)
def test_any_stretch_is_what_one_call_draws(digits, tmp_path, options):
    wanted = fs.sample(digits, N, batch_size=BATCH, **options)
    got = sample_shards("digits", N, tmp_path / "s", batch_size=BATCH, batches=2, **options)
    assert torch.equal(together(got), wanted) and [entry["calls"] for entry in got.facts] == [4, 4]


def test_a_plan_and_an_own_file_of_noise(digits, tmp_path):
    plan = fs.plan(digits.process, "euler", 2)
    wanted = fs.sample(digits, N, plan=plan, batch_size=BATCH, seed=2)
    got = sample_shards("digits", N, tmp_path / "s", batch_size=BATCH, plan=plan, seed=2)
    assert torch.equal(together(got), wanted) and got.about["solver"] == "euler"
    with pytest.raises(ValueError, match="shards of another job: plan"):
        sample_shards("digits", N, tmp_path / "s", batch_size=BATCH, plan=fs.plan(digits.process, "euler", 3), seed=2)


def test_draws_with_seeds_a_picture_and_one_path(digits):
    plan = fs.plan(digits.process, "dpmpp-2m-sde", 3, strength=0.5)
    picture = torch.linspace(-1, 1, 64).view(1, 8, 8)
    seeds = [(k % 3, k) for k in range(N)]
    wanted = fs.sample(digits, N, plan=plan, seeds=seeds, init=picture, batch_size=BATCH)
    draws = Draws(digits, plan, N, BATCH, seeds=seeds, init=picture)
    assert torch.equal(torch.cat([draws(0, 4), draws(4, 7)]), wanted)
    whole = fs.plan(digits.process, "dpmpp-2m-sde", 3)
    wanted = fs.sample(digits, N, plan=whole, seed=4, brownian=True, batch_size=BATCH)
    draws = Draws(digits, whole, N, BATCH, seed=4, brownian=True)
    assert torch.equal(torch.cat([draws(0, 4), draws(4, 7)]), wanted)
    with pytest.raises(ValueError, match="begins with a batch of 2, not at sample 3"):
        draws(3, 5)


def test_another_model_under_the_same_name_is_another_job(digits, tmp_path):
    model = fs.load("digits")
    fs.save(model, tmp_path / "model")
    first = sample_shards(tmp_path / "model", N, tmp_path / "s", batch_size=BATCH, steps=1)
    with torch.no_grad():
        next(model.network.parameters()).mul_(1.5)
    shutil.rmtree(tmp_path / "model")
    fs.save(model, tmp_path / "model")
    with pytest.raises(ValueError, match="shards of another job: weights is"):
        sample_shards(tmp_path / "model", N, tmp_path / "s", batch_size=BATCH, steps=1)
    assert first.about["weights"] == fingerprint(digits) != fingerprint(model)


def test_a_fingerprint_reads_every_tensor_and_type():
    def of(**tensors):
        return fingerprint(SimpleNamespace(state_dict=lambda: tensors))

    a = torch.arange(5000.0)
    assert of(a=a) == of(a=a.clone()) and len({of(a=a), of(b=a), of(a=a.double()), of(a=a + 1), of(a=a.half())}) == 5
    assert of(a=a.bfloat16(), n=torch.tensor(3)) != of(a=a.bfloat16(), n=torch.tensor(4))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"n": 0}, "n must be a whole number of at least 1"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"batches": 0}, "the batches of a shard must be"),
        ({"label": [1, 2]}, "label must be one value or 7 of them, got 2"),
        ({"label": 10}, "label"),
        ({"label": torch.tensor(1)}, "numbers, texts and lists"),
        ({"solver": "dim"}, "did you mean 'ddim'"),
        ({"model": "digit"}, "unknown model"),
    ],
)
def test_bad_input(tmp_path, options, message):
    asked = {"model": "digits", "n": N, "folder": tmp_path / "s", "batch_size": BATCH, "steps": 1} | options
    with pytest.raises(ValueError, match=message):
        sample_shards(**asked)
    assert not list(tmp_path.glob("s/*.npy"))
