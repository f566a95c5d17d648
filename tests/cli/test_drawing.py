"""`fewstep sample --ray`: the options carry over to workers, and what comes out is what one process writes."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

import fewstep.cli.sample as command
import fewstep.scale.ray as on_ray
from fewstep.cli.drawing import drawing
from fewstep.cli.main import _spread
from fewstep.cli.pictures import read_facts
from fewstep.scale.manifest import read_manifest
from fewstep.scale.shards import in_this_process


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Batches of two, and this process in place of Ray, with options that travel as JSON."""
    monkeypatch.setattr(command, "BATCH", 2)

    def executor(address, device):
        def run(work, shards):
            json.dumps(dict(work.options))
            yield from in_this_process(work, shards)

        return run

    monkeypatch.setattr(on_ray, "Ray", executor)


def test_an_address_may_be_left_out():
    assert _spread(["sample", "m", "--ray"]) == ["sample", "m", "--ray", "auto"]
    assert _spread(["sample", "m", "--ray", "-n", "3"]) == ["sample", "m", "--ray", "auto", "-n", "3"]
    assert _spread(["sample", "m", "--ray", "head:6379"]) == ["sample", "m", "--ray", "head:6379"]
    assert _spread(["sample", "--ray", "--seeds", "3"]) == ["sample", "--ray", "auto", "--seeds", "3"]


@pytest.fixture
def picture(tmp_path):
    shades = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    Image.fromarray(shades).save(tmp_path / "in.png")
    Image.fromarray(np.where(np.arange(64).reshape(8, 8) % 8 < 4, 255, 0).astype(np.uint8)).save(tmp_path / "mask.png")


def plain(facts):
    """Without what says how it was run."""
    command = facts["command"].replace(" --ray auto", "")
    return facts | {"command": command}


@pytest.mark.filterwarnings("ignore:a plan of 3 evaluations leaves little to save")
@pytest.mark.parametrize(
    "words",
    [
        ["-n", 5, "--label", 3, "--seed", 7],
        ["-n", 5, "--guidance", 2, "--label", 1, "--solver", "dpmpp-2m-sde"],
        ["--seeds", 3, 7, 11],
        ["-n", 3, "--init", "in.png", "--strength", 0.5],
        ["-n", 3, "--init", "in.png", "--mask", "mask.png"],
        ["-n", 3, "--brownian", "--solver", "dpmpp-2m-sde"],
        ["-n", 3, "--cache", "taylorseer:interval=2"],
        ["-n", 4, "--label", 3, "--steer", "fk:particles=2", "--reward", "digit=3"],
    ],
)
def test_an_npz_is_what_one_process_writes(fewstep, folder, picture, words):
    for out, more in (("here.npz", []), ("there.npz", ["--ray"])):
        code, _, err = fewstep("sample", folder, "--steps", 3, *words, "--out", out, *more)
        assert code == 0, err
    with np.load("here.npz") as here, np.load("there.npz") as there:
        assert here.files == there.files
        for name in set(here.files) - {"fewstep"}:
            assert np.array_equal(here[name], there[name]), name
        assert plain(json.loads(str(here["fewstep"]))) == plain(json.loads(str(there["fewstep"])))
    assert [name for name in os.listdir() if name.startswith(".")] == []


def test_prompts_in_a_folder(fewstep, captioned, tmp_path):
    (tmp_path / "lines.txt").write_text("a red square\na green square\n")
    for out, more in (("here", []), ("there", ["--ray"])):
        words = ("sample", captioned, "--prompts", "lines.txt", "-n", 3, "--steps", 2, "--out", out)
        code, said, err = fewstep(*words, *more, "--json")
        assert code == 0, err
        assert json.loads(said)["actual_nfe"] == 2
    assert sorted(os.listdir("here")) == sorted(os.listdir("there")) == [f"{i:05d}.png" for i in range(6)]
    for name in os.listdir("here"):
        assert plain(read_facts(tmp_path / "here" / name)) == plain(read_facts(tmp_path / "there" / name))
        assert np.array_equal(np.asarray(Image.open(f"here/{name}")), np.asarray(Image.open(f"there/{name}")))
    fewstep("sample", captioned, "--prompts", "lines.txt", "-n", 3, "--steps", 2, "--out", "a.png")
    fewstep("sample", captioned, "--prompts", "lines.txt", "-n", 3, "--steps", 2, "--out", "b.png", "--ray")
    assert np.array_equal(np.asarray(Image.open("a.png")), np.asarray(Image.open("b.png")))


def test_stopped_and_gone_on_with(fewstep, fails, folder, tmp_path, monkeypatch):
    words = ("sample", folder, "-n", 7, "--steps", 2, "--ray", "--out", "x.npz")
    whole = on_ray.Ray

    def stopped(address, device):
        def run(work, shards):
            for number, event in enumerate(in_this_process(work, shards)):
                if number == 3:
                    raise KeyboardInterrupt
                yield event

        return run

    monkeypatch.setattr(on_ray, "Ray", stopped)
    code, _, err = fewstep(*words)
    shards = tmp_path / ".x.npz.shards"
    assert code == 130 and f"what is done lies in {shards}; the same command goes on" in err
    assert len(read_manifest(shards)["shards"]) == 2 and not (tmp_path / "x.npz").exists()
    monkeypatch.setattr(on_ray, "Ray", whole)
    differs = "another job: steps is 2 there and 3 here; seed is 0 there and 1 here"
    assert differs in fails(*words, "--seed", 1, "--steps", 3)
    assert fewstep(*words)[0] == 0 and not shards.exists()
    assert fewstep("sample", folder, "-n", 7, "--steps", 2, "--out", "y.npz")[0] == 0
    with np.load("x.npz") as x, np.load("y.npz") as y:
        assert np.array_equal(x["images"], y["images"])


def test_drawing_is_the_samples_of_the_options(folder):
    import fewstep as fs

    made = drawing(str(folder), 5, 2, label=1, steps=2, seed=3)
    wanted = fs.sample(fs.load(folder), 5, label=1, steps=2, seed=3, batch_size=2)
    assert made.total == 5 and torch.equal(torch.cat([made(0, 4), made(4, 5)]), wanted)
    assert made.about["solver"] == "universal" and made.about["nfe"] == 2


@pytest.mark.parametrize(
    "words, message",
    [
        (["--label", "10"], "out of range: 0 to 9"),
        (["--solver", "dpm++2m"], "unknown solver 'dpm++2m'"),
        (["--strength", "0.5"], "give --init"),
        (["-n", "0"], "-n must be at least 1"),
        (["--prompt", "a"], "reads no captions"),
    ],
)
def test_what_a_worker_refuses_is_said_as_ever(fails, folder, words, message):
    assert message in fails("sample", folder, *words, "--ray")
