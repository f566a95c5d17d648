"""`fewstep restore` as it is typed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import fewstep as fs
from fewstep.cli.main import run
from fewstep.conditions.degraded import Degraded
from fewstep.data.open import open_built_in
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.unet import UNet
from fewstep.processes.ve import EDM
from fewstep.report.grid import image_grid, save_png


@pytest.fixture
def files(tmp_path):
    x = open_built_in("digits", split="validation").images[:3]
    op = fs.operators.Downsample(2)
    np.savez(tmp_path / "y.npz", y=op.measure(x, 0.05).numpy())
    save_png(tmp_path / "clean.png", image_grid(x[:1], (-1, 1), scale=1))
    mask = torch.ones(1, 1, 8, 8)
    mask[..., 4:] = 0
    save_png(tmp_path / "mask.png", image_grid(mask, (0, 1), scale=1))
    return tmp_path


def told(capsys) -> dict:
    return json.loads(capsys.readouterr().out)


def test_an_array_of_measurements(files, capsys):
    out = files / "restored.npz"
    words = ["restore", "digits", str(files / "y.npz"), "--operator", "downsample:2", "--noise", "0.05", "-n", "2"]
    assert run([*words, "--nfe", "4", "--out", str(out), "--json"]) == 0
    (row,) = told(capsys)["rows"]
    assert row["method"] == "calibrated" and row["evaluations"] == 4 and row["passes"] == 12
    with np.load(out) as held:
        assert held["images"].shape == (6, 8, 8, 1)


def test_a_picture_with_a_hole_and_one_that_is_degraded_first(files, capsys):
    clean, mask = str(files / "clean.png"), files / "mask.png"
    hole = ["restore", "digits", clean, "--operator", f"inpaint:{mask}", "--method", "ddnm", "--nfe", "3"]
    assert run([*hole, "--out", str(files / "filled.png")]) == 0
    assert "noise 0 in units of -1 to 1" in capsys.readouterr().out and (files / "filled.png").is_file()
    trial = ["restore", "digits", clean, "--operator", "blur:box,width=3", "--noise", "0.05", "--degrade"]
    assert run([*trial, "--nfe", "3", "--out", str(files / "trial"), "--compare", "ddrm", "pigdm", "--json"]) == 0
    rows = told(capsys)["rows"]
    assert [row["method"] for row in rows] == ["ddrm", "pigdm"] and all("energy score" in row for row in rows)
    assert (files / "trial" / "ddrm").is_dir() and (files / "trial" / "pigdm").is_dir()


def test_a_folder_of_a_latent_pipeline(tmp_path, capsys):
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from claims.pipelines import matching, tiny

    tiny("StableDiffusionPipeline", matching("dpmpp-2m", "StableDiffusionPipeline")).save_pretrained(tmp_path / "model")
    shape = fs.load(tmp_path / "model").pixels
    np.savez(tmp_path / "y.npz", y=np.zeros((1, 3, shape[0] // 2, shape[1] // 2), np.float32))
    words = ["restore", str(tmp_path / "model"), str(tmp_path / "y.npz"), "--operator", "downsample:2", "--nfe", "2"]
    out = ["--noise", "0.1", "--out", str(tmp_path / "out.npz")]
    assert run([*words, *out, "--method", "psld", "--tile", "32", "--json"]) == 0
    (row,) = told(capsys)["rows"]
    assert row["method"] == "psld" and row["evaluations"] == 2
    with np.load(tmp_path / "out.npz") as held:
        assert held["images"].shape == (1, *shape, 3)
    assert run([*words, *out, "--force"]) == 2
    assert "'calibrated' is for data: dps, flowdps, psld, resample and stsl restore with it" in capsys.readouterr().err


def test_a_run_that_begins_late(files, capsys):
    words = ["restore", "digits", str(files / "y.npz"), "--operator", "downsample:2", "--noise", "0.05", "--nfe", "4"]
    for start in ("measurement", "1.5"):
        assert run([*words, "--start", start, "--out", str(files / f"{start}.npz"), "--json"]) == 0
        assert told(capsys)["rows"][0]["evaluations"] == 4
    assert run([*words, "--start", "here", "--out", str(files / "out.npz")]) == 2
    assert "start is 'measurement' or a level" in capsys.readouterr().err


def test_the_methods_are_listed(capsys):
    assert run(["restore", "--list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    samples = {row["method"]: row["samples"] for row in rows}
    assert samples["calibrated"] == "data" and samples["dps"] == "data, latents" and samples["psld"] == "latents"
    assert {"calibrated", "dps", "ddrm"} <= {row["method"] for row in rows}
    row = next(row for row in rows if row["method"] == "dps")
    assert row["takes"] == "linear, nonlinear" and row["passes"] == 3 and 0 < row["distance"] < 1
    assert run(["restore", "--list"]) == 0
    assert "distance: sliced Wasserstein distance to the exact posterior" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words,message",
    [
        (["digits"], "takes a model and a measurement"),
        (["digits", "{y}"], "say what was measured, with --operator"),
        (["digits", "{y}", "--operator", "downsamp:2"], "did you mean 'downsample'"),
        (["digits", "{y}", "--operator", "downsample:4"], r"holds (3, 1, 4, 4)"),
        (["digits", "{y}", "--operator", "downsample:2", "--noise", "-1"], "standard deviation of at least 0"),
        (["digits", "{y}", "--operator", "downsample:2", "--method", "dpz"], "did you mean 'dps'"),
        (["digits", "{y}", "--operator", "downsample:2", "--method", "dps:zetta=1"], "did you mean 'zeta'"),
        (["digits", "nowhere.npz", "--operator", "downsample:2"], "there is no file nowhere.npz"),
        (["digits", "{y}", "--operator", "downsample:2", "--compare", "dps", "--method", "dps"], "leave --method out"),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(files, capsys, words, message):
    words = [word.replace("{y}", str(files / "y.npz")) for word in words]
    assert run(["restore", *words, "--out", str(files / "out.npz")]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (files / "out.npz").exists()


def test_other_units_are_warned_of(files, capsys):
    with np.load(files / "y.npz") as held:
        np.savez(files / "bytes.npz", y=255 * held["y"])
    with pytest.warns(UserWarning, match="in other units"):
        words = ["restore", "digits", str(files / "bytes.npz"), "--operator", "downsample:2", "--method", "ddnm"]
        run([*words, "--nfe", "2", "--out", str(files / "out.npz")])


def test_a_trained_restorer_knows_what_it_was_given(files, capsys):
    kind = Degraded(data=(1, 8, 8), operator="downsample:2", noise=(0.0, 0.1))
    network = UNet(channels=1, size=8, width=(8,), attention=(), embedding=16, classes=None, picture=1)
    fs.save(NetworkDenoiser(network, EDM(), "x0", (1, 8, 8), {"y": kind}, "edm", 0.75), files / "own")
    out = str(files / "restored.npz")
    assert run(["restore", str(files / "own"), str(files / "y.npz"), "--nfe", "3", "--out", out]) == 0
    said = capsys.readouterr().out
    assert "trained for downsample:2, noise [0.0, 0.1]" in said and "noise 0 in units" not in said
    with np.load(files / "y.npz") as held:
        y = torch.from_numpy(held["y"])
    model = fs.load(files / "own")
    assert model.conditions["y"] == kind
    with np.load(out) as held:
        made = torch.from_numpy(held["images"]).movedim(-1, 1)
    expected = fs.restore(model, kind.measure.pinv(y), nfe=3)
    assert float((made.float() - expected.clamp(-1, 1)).abs().max()) < 1 / 64  # either form of y is the same
    clean = str(files / "clean.png")
    assert run(["restore", str(files / "own"), clean, "--degrade", "--nfe", "3", "--out", out, "--force"]) == 0
    assert "psnr" in capsys.readouterr().out
    assert run(["restore", str(files / "own"), clean, "--nfe", "3", "--out", out, "--force"]) == 2
    assert "clean.png is 8x8, and what is measured here 4x4: with --degrade" in capsys.readouterr().err
