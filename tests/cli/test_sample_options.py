"""`fewstep sample`: starts from pictures, prompts, seeds, and the command inside a picture that makes it again."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest
import torch
from PIL import Image

import fewstep as fs
from fewstep.cli.common import read_size
from fewstep.cli.main import _spread
from fewstep.cli.pictures import read_picture


@pytest.fixture
def picture(tmp_path):
    """A grey picture of 16 x 16 whose left half is dark, and a mask that is white on the right."""
    values = np.zeros((16, 16), np.uint8)
    values[:, 8:] = 200
    Image.fromarray(values).save(tmp_path / "start.png")
    values[:, 8:] = 255
    Image.fromarray(values).save(tmp_path / "mask.png")
    return tmp_path / "start.png"


def images(path):
    with np.load(path) as file:
        return torch.from_numpy(file["images"]).movedim(-1, 1)


def again(fewstep, path, out):
    """Run the command that `fewstep info` prints for a picture, and give what it made."""
    text = fewstep("info", path)[1]
    command = text.splitlines()[-1].strip()
    assert command.startswith("fewstep sample ") and command.endswith(out), text
    code, _, err = fewstep(*shlex.split(command)[1:])
    assert code == 0, err


def same(a, b):
    return np.array_equal(np.asarray(Image.open(a)), np.asarray(Image.open(b)))


@pytest.mark.parametrize(
    "words",
    [
        ["-n", 3, "--label", 2, "--solver", "dpmpp-2m-sde", "--steps", 4, "--timesteps", "karras", "--seed", 5],
        ["--seeds", 3, 7, "--nfe", 3, "--guidance", 1.5, "--label", 1],
        ["-n", 2, "--init", "start.png", "--strength", 0.5, "--steps", 4, "--mask", "mask.png"],
    ],
)
def test_the_command_inside_a_picture_makes_it_again(fewstep, folder, picture, words):
    assert fewstep("sample", folder, *words)[0] == 0
    again(fewstep, "samples.png", "again.png")
    assert same("samples.png", "again.png")
    assert json.loads(fewstep("info", "again.png", "--json")[1]) == json.loads(
        fewstep("info", "samples.png", "--json")[1]
    )


def test_a_picture_out_of_a_folder_with_prompts_of_a_file(fewstep, captioned, tmp_path):
    (tmp_path / "lines.txt").write_text("# what to draw\na red square\n\na green\n")
    code, out, _ = fewstep(
        "sample", captioned, "--prompts", "lines.txt", "-n", 2, "--steps", 2, "--guidance", 2, "--negative", "red",
        "--out", "many",
    )  # fmt: skip
    assert code == 0 and out.startswith("4 samples")
    facts = [json.loads(fewstep("info", f"many/0000{i}.png", "--json")[1]) for i in range(4)]
    assert [f["prompt"] for f in facts] == ["a red square"] * 2 + ["a green"] * 2
    assert [f["number"] for f in facts] == [0, 1, 0, 1] and facts[0]["negative"] == "red"
    (tmp_path / "lines.txt").unlink()  # the command holds the prompts themselves
    again(fewstep, "many/00003.png", "again")
    assert all(same(f"many/0000{i}.png", f"again/0000{i}.png") for i in range(4))


def test_each_prompt_gets_what_it_would_get_alone(fewstep, captioned):
    words = ("sample", captioned, "-n", 2, "--steps", 2, "--seed", 4)
    fewstep(*words, "--prompt", "a red square", "--prompt", "green", "--out", "both.npz")
    for i, text in enumerate(("a red square", "green")):
        fewstep(*words, "--prompt", text, "--out", f"{i}.npz")
        torch.testing.assert_close(images("both.npz")[2 * i : 2 * i + 2], images(f"{i}.npz"), atol=1e-5, rtol=1e-5)


def test_a_seed_a_sample(fewstep, fails, folder):
    words = ("sample", folder, "--steps", 3, "--solver", "ddpm", "--label", 2)
    assert fewstep(*words, "--seeds", 3, 7, 11, "--out", "three.npz")[0] == 0
    assert len(images("three.npz")) == 3
    for i, seed in enumerate((3, 7, 11)):
        fewstep(*words, "--seed", seed, "-n", 1, "--out", f"{seed}.npz")
        torch.testing.assert_close(images("three.npz")[i : i + 1], images(f"{seed}.npz"), atol=1e-5, rtol=1e-5)
    assert "leave -n, --seed and --brownian out" in fails("sample", folder, "--seeds", 3, 7, "-n", 3)
    assert _spread(["sample", "x", "--seeds", "3", "7", "-n", "2"]) == "sample x --seeds 3 --seeds 7 -n 2".split()


def test_seeds_from_python():
    model = fs.load("digits")
    drawn = fs.sample(model, 2, seeds=[5, (5, 3)], steps=2, label=1)
    alone = fs.sample(model, 1, seed=5, first=3, steps=2, label=1)
    torch.testing.assert_close(drawn[1:], alone, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="seeds must be 3 of them, got 2"):
        fs.sample(model, 3, seeds=[1, 2])
    with pytest.raises(ValueError, match="leave seed, first and brownian out"):
        fs.sample(model, 1, seeds=[1], seed=2)


def test_a_start_from_a_picture(fewstep, folder, picture):
    words = ("sample", folder, "-n", 2, "--steps", 5, "--init", picture, "--out")
    assert fewstep(*words, "weak.npz", "--strength", 0.2)[0] == 0
    values = np.asarray(Image.open(picture).resize((8, 8), Image.Resampling.LANCZOS))
    start = torch.from_numpy(values / 127.5 - 1).float().expand(2, 1, 8, 8)
    drawn = fs.sample(fs.load(folder), 2, steps=5, init=start, strength=0.2).clamp(-1, 1)
    torch.testing.assert_close(images("weak.npz"), drawn, atol=0.02, rtol=0)
    fewstep(*words, "usual.npz")
    assert float((images("usual.npz") - start).abs().mean()) > float((images("weak.npz") - start).abs().mean())


def test_a_mask_keeps_what_is_black(fewstep, folder, picture):
    assert (
        fewstep("sample", folder, "-n", 2, "--steps", 3, "--init", picture, "--mask", "mask.png", "--out", "x.npz")[0]
        == 0
    )
    drawn = images("x.npz")
    assert float((drawn[..., :4] - read_picture(picture, fs.load(folder))[..., :4]).abs().max()) < 1e-6
    assert float(drawn[..., 5:].std()) > 0.05


def test_seconds_and_memory_at_the_end(fewstep, folder):
    code, out, err = fewstep("sample", folder, "-n", 1, "--steps", 1)
    assert code == 0 and "s in all, peak memory" in err.splitlines()[-1]
    facts = json.loads(fewstep("sample", folder, "-n", 1, "--steps", 1, "--force", "--json")[1])
    assert facts["total_seconds"] >= facts["seconds"] > 0 and facts["peak_memory"] > 2**26
    assert facts["fewstep"] == fs.__version__ and facts["dtype"] == "float32"


def test_dtype_and_one_switch_to_compile(fewstep, folder, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, *_, **__: compiled.append(type(self).__name__))
    words = ("sample", folder, "-n", 1, "--steps", 2, "--label", 1, "--json")
    facts = json.loads(fewstep(*words, "--dtype", "bfloat16", "--compile", "--out", "b.npz")[1])
    assert facts["dtype"] == "bfloat16" and compiled == ["UNet"]
    fewstep(*words, "--out", "f.npz")
    difference = (images("b.npz") - images("f.npz")).abs().max()
    assert 0 < float(difference) < 0.2


@pytest.mark.slow
def test_compare_takes_a_prompt(fewstep, fails, captioned):
    assert "reads no captions: leave --prompt out" in fails("compare", "digits", "--prompt", "seven", "-n", 16)
    words = ("--solvers", "ddim", "--timesteps", "karras", "--prompt", "a red square", "--json")
    code, out, _ = fewstep("compare", captioned, "-n", 16, "--nfe", 2, *words)
    assert code == 0 and len(json.loads(out)["rows"]) == 2 and "total_seconds" in json.loads(out)


@pytest.mark.slow
def test_evaluate_takes_a_prompt_and_guidance(fewstep, captioned):
    words = ("--metrics", "endpoint", "--prompt", "a red square", "--guidance", 2, "--json")
    code, out, _ = fewstep("evaluate", captioned, "-n", 2, "--steps", 2, *words)
    assert code == 0 and json.loads(out)["figures"]["endpoint"]["n"] == 2 and "peak_memory" in json.loads(out)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--mask", "mask.png"], "give --init"),
        (["--strength", 0.5], "give --init"),
        (["--init", "start.png", "--strength", 1], "--strength must be above 0 and below 1"),
        (["--init", "none.png"], "there is no file none.png"),
        (["--init", "text.png"], "text.png cannot be read as a picture"),
        (["--prompts", "none.txt"], "none.txt cannot be read: No such file"),
        (["--prompts", "empty.txt"], "empty.txt holds no prompt"),
        (["--prompts", "lines.txt"], "reads no captions: leave --prompt out"),
        (["--negative", "red"], "give --guidance"),
        (["--negative", "red", "--guidance", 2], "reads no captions: leave --negative out"),
        (["--dtype", "float8"], "unknown dtype 'float8'"),
        (["--size", "512by768"], "--size takes HEIGHTxWIDTH in pixels"),
        (["--size", "512"], "size is for diffusers pipelines"),
        (["--tile", 256], "no autoencoder"),
    ],
)
def test_bad_input(fails, folder, picture, tmp_path, words, message):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.txt").write_text("# nothing\n\n")
    (tmp_path / "lines.txt").write_text("seven\n")
    assert message in fails("sample", folder, *words)
    assert not (tmp_path / "samples.png").exists()


def test_ctrl_c_keeps_the_samples_that_are_done(fewstep, folder, monkeypatch, tmp_path):
    import fewstep.cli.sample as command
    from fewstep.core.plan import Plan

    whole = ("sample", folder, "-n", 5, "--steps", 2, "--label", 1, "--seed", 3, "--out")
    assert fewstep(*whole, "whole.npz")[0] == 0
    monkeypatch.setattr(command, "BATCH", 2)
    left, execute = [0], Plan.execute

    def stopped(self, run):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return execute(self, run)

    monkeypatch.setattr(Plan, "execute", stopped)
    for batches, out in ((2, "some.npz"), (1, "some")):
        left[0] = batches
        code, said, err = fewstep(*whole, out)
        assert code == 130 and said.startswith(f"{2 * batches} samples in")
        assert f"interrupted: {2 * batches} of 5 samples were done, and are in {out}" in err
    torch.testing.assert_close(images("some.npz"), images("whole.npz")[:4], atol=1e-5, rtol=1e-5)
    assert sorted(path.name for path in (tmp_path / "some").iterdir()) == ["00000.png", "00001.png"]
    code, said, err = fewstep(*whole, "none.npz")
    assert code == 130 and said == "" and not (tmp_path / "none.npz").exists() and err.endswith("interrupted\n")


def test_sizes():
    assert read_size("512x768") == (512, 768) and read_size("64") == (64, 64)
