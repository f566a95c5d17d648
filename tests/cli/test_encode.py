"""`fewstep encode` and `fewstep decode` as they are typed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import fewstep as fs
from fewstep.cli.main import run
from fewstep.data.open import open_built_in
from fewstep.report.grid import image_grid, save_png


@pytest.fixture
def files(tmp_path):
    x = open_built_in("digits", split="validation").images[:3]
    np.savez(tmp_path / "x.npz", images=x.numpy())
    np.savez(tmp_path / "y.npz", y=fs.operators.Downsample(2)(x).numpy())
    save_png(tmp_path / "x.png", image_grid(x[:1], (-1, 1), scale=1))
    return tmp_path, x


def test_there_and_back(files, capsys):
    folder, x = files
    made, out = folder / "new" / "x.fsc", folder / "x2.npz"
    words = ["encode", "digits", str(folder / "x.npz"), "--method", "relic:step=0.3", "--out", str(made), "--json"]
    assert run(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["pictures"] == 3 and told["bytes"] == made.stat().st_size
    assert told["bits a picture"] == pytest.approx(64 * told["bits a number"])
    assert run(["decode", "digits", str(made), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: 3 pictures by relic\n"
    with np.load(out) as held:
        assert torch.allclose(torch.from_numpy(held["images"]).movedim(-1, 1), x, atol=0.3)


def test_a_picture_and_a_measurement(files, capsys):
    folder, _ = files
    for words in (["x.png"], ["y.npz", "--operator", "downsample:2"]):
        made = folder / f"{words[0]}.fsc"
        given = ["encode", "digits", str(folder / words[0]), *words[1:], "--method", "ddcm:nfe=3,entries=8"]
        assert run([*given, "--out", str(made)]) == 0
        assert "by ddcm" in capsys.readouterr().out
        assert run(["decode", "digits", str(made), "--out", str(folder / f"{words[0]}.out.png")]) == 0
        assert (folder / f"{words[0]}.out.png").is_file()


def test_what_is_said_of_bad_input(files, capsys):
    folder, _ = files
    made = folder / "x.fsc"
    assert run(["encode", "digits", str(folder / "x.npz"), "--method", "ddcm:nfe=2", "--out", str(made)]) == 0
    capsys.readouterr()
    for words, message in (
        (["encode", "digits", str(folder / "x.npz"), "--out", str(made)], "x.fsc"),
        (["encode", "digits", str(folder / "gone.npz"), "--out", "o.fsc"], "there is no file"),
        (["decode", "digits-1", str(made), "--out", str(folder / "o.png")], "x.fsc was compressed with another"),
        (["decode", "digits", str(folder / "x.npz"), "--out", str(folder / "o.png")], "holds no compressed"),
    ):
        assert run(words) == 2
        err = capsys.readouterr().err
        assert message in err and len(err.splitlines()) == 1
