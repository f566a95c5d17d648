"""`fewstep sample`: files with their parameters inside, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import fewstep as fs
from fewstep.data.open import open_data
from fewstep.denoisers.controlled import Controlled
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.temporal import TemporalUNet
from fewstep.processes.flow import Flow
from fewstep.report.grid import image_grid, save_png
from fewstep.report.targets import targets


def test_a_png_holds_its_parameters(fewstep, folder, tmp_path):
    code, out, err = fewstep("sample", folder, "-n", 5, "--label", 3, "--steps", 4, "--solver", "unipc-2", "--seed", 7)
    assert code == 0 and "4 evaluations planned and 4 made" in out
    code, out, _ = fewstep("info", "samples.png", "--json")
    facts = json.loads(out)
    wanted = {"solver": "unipc-2", "steps": 4, "seed": 7, "label": 3, "n": 5, "nfe": 4, "timesteps": "log-snr"}
    assert code == 0 and facts.items() >= wanted.items() and facts["model"] == str(folder)
    assert "unipc-2" in fewstep("info", "samples.png")[1]


def test_json_and_nothing_else(fewstep, folder):
    code, out, _ = fewstep("sample", folder, "-n", 3, "--solver", "heun", "--nfe", 6, "--json")
    facts = json.loads(out)
    assert code == 0 and facts["planned_nfe"] == facts["actual_nfe"] == 5  # the last step of heun needs one
    assert facts["seconds"] > 0 and facts["out"] == "samples.png" and facts["label"] is None


def test_the_npz_is_what_python_draws_and_a_data_set(fewstep, folder, tmp_path):
    words = ("sample", folder, "-n", 6, "--label", 2, "--steps", 3, "--timesteps", "karras", "--out", "new/x.npz")
    assert fewstep(*words)[0] == 0
    drawn = fs.sample(fs.load(folder), 6, label=2, steps=3, timesteps="karras").clamp(-1, 1)
    opened = open_data(tmp_path / "new" / "x.npz", split="all", validation=0.0)
    order = torch.from_numpy(np.random.default_rng(0).permutation(6))
    assert torch.equal(opened.images, drawn[order])
    assert opened.labels is not None and opened.labels.tolist() == [2] * 6
    with np.load(tmp_path / "new" / "x.npz") as file:
        assert json.loads(str(file["fewstep"]))["timesteps"] == "karras"


def test_a_folder_has_a_picture_a_sample(fewstep, fails, folder, tmp_path):
    assert fewstep("sample", folder, "-n", 4, "--steps", 2, "--out", "many")[0] == 0
    assert sorted(os.listdir("many")) == [f"{i:05d}.png" for i in range(4)]
    assert json.loads(fewstep("info", "many/00002.png", "--json")[1])["index"] == 2
    assert "the folder many is not empty" in fails("sample", folder, "--out", "many")
    assert fewstep("sample", folder, "-n", 2, "--steps", 2, "--out", "many", "--force")[0] == 0
    assert sorted(os.listdir("many")) == ["00000.png", "00001.png"]
    (tmp_path / "many" / "thesis.txt").write_text("mine")
    assert "holds more than samples ('thesis.txt')" in fails("sample", folder, "--out", "many", "--force")
    assert (tmp_path / "many" / "thesis.txt").read_text() == "mine"


def test_nothing_is_overwritten_unasked(fewstep, fails, folder, tmp_path):
    (tmp_path / "samples.png").write_text("mine")
    assert fails("sample", folder) == "samples.png exists: choose another name, or give --force to replace it"
    assert (tmp_path / "samples.png").read_text() == "mine"
    assert fewstep("sample", folder, "-n", 1, "--steps", 1, "--force")[0] == 0
    assert (tmp_path / "samples.png").read_bytes()[:4] == b"\x89PNG"


def test_a_model_uses_its_own_plan(fewstep, folder, tmp_path):
    model = fs.load(folder)
    plan = fs.plan(model.process, "ddim", steps=3, timesteps="karras")
    fs.save(model, tmp_path / "fast", plan=plan)
    facts = json.loads(fewstep("sample", "fast/", "-n", 2, "--json")[1])
    assert facts["solver"] == "ddim" and facts["actual_nfe"] == 3
    facts = json.loads(fewstep("sample", "fast/", "-n", 2, "--solver", "euler", "--steps", 4, "--force", "--json")[1])
    assert facts["solver"] == "euler" and facts["actual_nfe"] == 4


@pytest.mark.parametrize(
    "words, message",
    [
        (["--solver", "dpm++2m"], "unknown solver 'dpm++2m': did you mean 'dpmpp-2m'"),
        (["--timesteps", "karas"], "unknown timestep rule 'karas': did you mean 'karras'"),
        (["--label", "10"], "out of range: 0 to 9"),
        (["--label", "-1"], "label -1 is out of range"),
        (["-n", "0"], "-n must be at least 1, got 0"),
        (["--steps", "0"], "steps must be a whole number of at least 1, got 0"),
        (["--nfe", "0"], "nfe must be a whole number of at least 1, got 0"),
        (["--solver", "heun", "--nfe", "2", "--steps", "2"], "give either --steps or --nfe"),
        (["--out", "x.jpg"], "--out must be a .png, a .gif (of clips), an .npz or a folder, got 'x.jpg'"),
        (["--out", "/proc/none/x.png"], "cannot write to"),
    ],
)
def test_bad_input(fails, folder, tmp_path, words, message):
    assert message in fails("sample", folder, *words)
    assert os.listdir(tmp_path) == []


def test_clips_are_rows_and_move(fewstep, fails, folder, tmp_path):
    network = TemporalUNet(3, 4, (8,), attention=(), classes=None, embedding=8, frames=3)
    model = NetworkDenoiser(network, Flow(), "velocity", (3, 3, 4, 4), value_range=(-1.0, 1.0))
    fs.save(Controlled(model), tmp_path / "clips")
    picture = tmp_path / "first.png"
    save_png(picture, np.full((4, 4, 3), 200, np.uint8))
    words = ("sample", "clips", "-n", 2, "--steps", 1, "--init", picture)
    assert "this model's network reads the picture itself: give --init" in fails(*words[:-2])
    for out in ("x.png", "x.gif", "strips"):
        assert fewstep(*words, "--out", out)[0] == 0
    with Image.open(tmp_path / "x.png") as grid, Image.open(tmp_path / "strips" / "00000.png") as strip:
        assert grid.size == (3 * 68 - 4, 2 * 68 - 4) and strip.size == (3 * 8 - 4, 4)
    with Image.open(tmp_path / "x.gif") as moving:
        assert (moving.n_frames, moving.size) == (3, (2 * 68 - 4, 64))
    facts = json.loads(fewstep("info", "x.gif", "--json")[1])
    assert facts["nfe"] == 1 and facts["init"] == str(picture)
    assert "do not move: name a .png" in fails("sample", folder, "-n", 1, "--steps", 1, "--out", "still.gif")


def test_a_label_for_an_unconditional_model(fewstep, fails, unconditional):
    assert fails("sample", unconditional, "--label", 3) == "this model is unconditional: it takes no 'label'"
    assert fewstep("sample", unconditional, "-n", 2, "--steps", 2)[0] == 0


def test_unwritable(fails, folder, tmp_path):
    (tmp_path / "file").write_text("")
    assert "is not a folder" in fails("sample", folder, "--out", "file/x.png")
    assert "is a file" in fails("sample", folder, "--out", "file")
    if os.geteuid() != 0:  # root may write anywhere
        (tmp_path / "closed").mkdir(mode=0o500)
        assert "no permission" in fails("sample", folder, "--out", "closed/x.png")


def test_damaged_models(fails, folder, tmp_path):
    assert "there is no model folder" in fails("sample", "./nowhere")
    assert "unknown model 'digit': did you mean 'digits' or 'digits-1' or 'digits-dit'?" in fails("sample", "digit")

    def copy(name):
        return shutil.copytree(folder, tmp_path / name)

    (copy("missing") / "model.safetensors").unlink()
    assert "has no model.safetensors" in fails("sample", tmp_path / "missing")
    weights = (folder / "model.safetensors").read_bytes()
    (copy("short") / "model.safetensors").write_bytes(weights[:-100])
    assert "truncated or changed" in fails("sample", tmp_path / "short")
    (copy("changed") / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert "truncated or changed" in fails("sample", tmp_path / "changed")
    torch.save({"w": torch.zeros(3)}, copy("pickle") / "model.safetensors")
    assert "is a pickle, not safetensors" in fails("sample", tmp_path / "pickle")
    (copy("json") / "config.json").write_text("{")
    assert "is not JSON" in fails("sample", tmp_path / "json")
    (copy("plan") / "plan.json").write_text("{}")
    assert "not a fewstep plan" in fails("sample", tmp_path / "plan")
    torch.save({"w": torch.zeros(3)}, copy("bin") / "pytorch_model.bin")
    (tmp_path / "bin" / "model.safetensors").unlink()
    assert "pytorch_model.bin is a pickle" in fails("sample", tmp_path / "bin")
    assert not (tmp_path / "samples.png").exists()


def test_prompts_and_guidance(fewstep, fails, captioned, tmp_path):
    words = ("sample", captioned, "-n", 3, "--steps", 2, "--prompt", "a red square")
    assert fewstep(*words, "--guidance", 2.5, "--out", "guided.npz")[0] == 0
    assert fewstep(*words, "--out", "plain.npz")[0] == 0
    model = fs.load(captioned)
    drawn = fs.sample(fs.guide(model, "cfg", scale=2.5), 3, text="a red square", steps=2)
    with np.load(tmp_path / "guided.npz") as file:
        torch.testing.assert_close(torch.from_numpy(file["images"]).movedim(-1, 1), drawn.clamp(-1, 1))
        assert json.loads(str(file["fewstep"])).items() >= {"prompt": "a red square", "guidance": 2.5}.items()
        guided = file["images"]
    with np.load(tmp_path / "plain.npz") as file:
        assert np.abs(file["images"] - guided).max() > 1e-3
    assert "unknown word 'blue'" in fails("sample", captioned, "--prompt", "a blue square")
    assert "must be at least 0 and finite" in fails("sample", captioned, "--prompt", "red", "--guidance", -1)


def test_a_prompt_for_a_model_without_captions(fails, folder, unconditional):
    assert "reads no captions: leave --prompt out, or give --label" in fails("sample", folder, "--prompt", "seven")
    assert fails("sample", unconditional, "--prompt", "seven").endswith("leave --prompt out")
    assert "conditioned on a label or a caption" in fails("sample", unconditional, "--guidance", 2)


def test_a_base_before_its_student(fewstep, tmp_path):
    words = ("sample", "digits-1", "--base", "digits", "-n", 3, "--label", 2)
    code, out, _ = fewstep(*words, "--base-steps", 2, "--out", "both.npz")
    assert code == 0 and "3 evaluations planned and 3 made" in out
    both = fs.hybrid(fs.load("digits"), fs.load("digits-1"), 2)
    images = torch.from_numpy(np.load(tmp_path / "both.npz")["images"]).permute(0, 3, 1, 2)
    torch.testing.assert_close(images, fs.sample(both, 3, label=2).clamp(-1, 1))
    for more, message in (
        (("--base-steps", 3, "--steps", 2), "a plan of 2 evaluations has at most 2 steps of the base, got 3"),
        (("--solver", "ddim"), "a student with --base has its plan: leave --solver"),
    ):
        code, _, err = fewstep(*words, *more)
        assert code == 2 and message in " ".join(err.split())
    assert "give --base" in fewstep("sample", "digits-1", "--base-steps", 1)[2]


def test_targets_are_a_row_an_evaluation(fewstep, fails, folder, tmp_path):
    """Of the run itself: no evaluation more, and the last row of a deterministic plan is what the samples are."""
    words = ["sample", folder, "-n", 3, "--label", 2, "--steps", 4, "--solver", "ddim", "--seed", 5]
    code, out, _ = fewstep(*words, "--out", "x.npz", "--targets", "seen/aims.png")
    assert code == 0 and "4 evaluations planned and 4 made" in out
    plan = fs.plan(fs.load(folder).process, "ddim", 4)
    found = targets(fs.load(folder), 3, plan=plan, seed=5, label=2)
    seen = np.asarray(Image.open("seen/aims.png"))
    assert np.array_equal(seen, image_grid(found))
    with np.load("x.npz") as file:
        last = torch.from_numpy(file["images"]).movedim(-1, 1)
    torch.testing.assert_close(found[-1].clamp(-1, 1), last, rtol=1e-4, atol=1e-4)
    assert json.loads(Image.open("seen/aims.png").text["fewstep"])["shows"] == "x0 of each evaluation"
    assert fewstep(*words, "-n", 300, "--out", "more.npz", "--targets", "more.png")[0] == 0  # more than a batch
    more = np.asarray(Image.open("more.png"))[:, : seen.shape[1]]
    assert np.abs(more.astype(int) - seen).max() <= 1  # other batches, other roundings
    assert fails(*words, "--out", "y.npz", "--targets", "y.npz").startswith("--targets is a grid, a .png beside --out")
    assert "more.png exists" in fails(*words, "--out", "y.npz", "--targets", "more.png")
    assert "leave --ray and --steer out" in fails(*words, "--targets", "z.png", "--ray", "auto")
