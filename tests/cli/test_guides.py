"""Guidance, steering and their search on the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fewstep.conditions.number import Number
from fewstep.core.student import Student
from fewstep.denoisers.boundary import Boundary
from fewstep.denoisers.folder import save_model
from fewstep.networks.embedding import extended
from tests.cli.conftest import tiny


def test_sampling_under_methods(fewstep, folder, tmp_path):
    words = ["sample", folder, "--label", "3", "-n", "2", "--nfe", "2", "--out", "threes.png"]
    code, out, _ = fewstep(*words, "--guide", "cfg:scale=2,interval=0.5..80", "--json")
    assert code == 0 and json.loads(out)["guide"] == ["cfg:scale=2,interval=0.5..80"]
    for given, message in (
        (["--guide", "cgf"], "did you mean 'cfg'"),
        (["--guide", "cfg:scal=2"], "did you mean 'scale'"),
        (["--guide", "cfg:scale=2,"], "--guide takes METHOD"),
        (["--negative", "blurry"], "give --guidance, --nasa or --guide cfg as well"),
        (["--nasa", 0.3], "takes away what is read of another caption: give --negative as well"),
        (["--nasa", 0.3, "--negative", "blurry"], "reads no captions"),
        (["--negative", "blurry", "--guide", "cfg"], "reads no captions"),
    ):
        code, _, err = fewstep(*words, "--force", *given)
        assert code == 2 and message in err, err


def test_sampling_away_from_words_in_one_pass(fewstep, captioned):
    words = ["sample", captioned, "--prompt", "a square", "--negative", "red", "-n", 2, "--steps", 2]
    made = {}
    for given in (["--nasa", 0.3], ["--guide", "nasa:alpha=0.3"], ["--nasa", 0], ["--nasa", 0.3, "--guidance", 2]):
        code, out, err = fewstep(*words, *given, "--out", "x.npz", "--force", "--json")
        assert code == 0 and json.loads(out)["planned_nfe"] == 2, err
        made[" ".join(map(str, given))] = np.load("x.npz")["images"]
    first, second, none, both = made.values()
    assert (first == second).all() and (first != none).any() and (both != first).any()
    code, _, err = fewstep("sample", captioned, "--prompt", "a square", "--negative", "red", "--nasa", -1)
    assert code == 2 and "alpha must be at least 0" in err


def test_sampling_steered_by_particles(fewstep, folder):
    words = ["sample", folder, "-n", "2", "--nfe", "3", "--out", "steered.png", "--force"]
    code, out, _ = fewstep(*words, "--steer", "fk:particles=3,strength=5", "--reward", "digit=4", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["reward"] == "digit=4" and facts["solver"].endswith(", fk")
    code, _, _ = fewstep(*words, "--steer", "fk:particles=2", "--reward", "ink", "--solver", "ddpm")
    assert code == 0
    for given, message in (
        (["--reward", "ink"], "give --steer fk as well"),
        (["--steer", "fk", "--reward", "inc"], "did you mean 'ink'"),
        (["--steer", "fk", "--reward", "ink=3"], "--reward takes NAME or NAME=VALUE"),
        (["--steer", "kf", "--reward", "ink"], "did you mean 'fk'"),
        (["--steer", "fk", "--reward", "ink", "--solver", "ddim"], "needs noise"),
    ):
        code, _, err = fewstep(*words, *given)
        assert code == 2 and message in err, err


def test_a_search_for_guidance_says_how_to_take_it(fewstep, folder):
    words = ["search", folder, "--nfe", "2", "--method", "guidance", "--noises", "8", "--option", "trials=1"]
    code, out, _ = fewstep(*words, "--reward", "digit", "--out", "found", "--json")
    result = json.loads(out)
    assert code == 0 and result["finished"] and result["rows"][0]["reward"] <= 0
    code, _, err = fewstep("sample", folder, "-n", "1", "--nfe", "2", "--label", "2", "--guide", result["guide"])
    assert code == 0, err
    code, out, _ = fewstep(*words, "--reward", "digit", "--out", "found")
    assert code == 0 and f"--guide {result['guide']}" in out  # taken up where it ended
    for given, message in (
        ([], "--method guidance needs --reward"),
        (["--reward", "digit", "--guidance", "2"], "--method guidance finds the guidance"),
        (["--reward", "digit", "--method", "gits"], "--reward goes with --method guidance"),
    ):
        code, _, err = fewstep(*words, *given)
        assert code == 2 and message in err, err


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A student that is told its scale, within a wrapper."""
    model = tiny()
    model.network = extended(model.network, guidance=1)
    with torch.no_grad():
        for parameter in model.network.embedding.extra.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    model.conditions = {**model.conditions, "guidance": Number(1.0, 4.0, 2.5)}
    model.student = Student("denoiser", "guided", "tiny", guidance=(1.0, 4.0))
    return save_model(Boundary(model).eval(), tmp_path_factory.mktemp("models") / "told")


def test_a_student_is_told_its_scale_in_one_pass(fewstep, told, tmp_path):
    words = ["sample", told, "--label", "3", "-n", "2", "--nfe", "2", "--force", "--json", "--out"]
    pictures = {}
    for name, given in (("usual", []), ("2.5", ["--guidance", "2.5"]), ("4", ["--guidance", "4"])):
        code, out, err = fewstep(*words, tmp_path / f"{name}.npz", *given)
        assert code == 0, err
        facts, scale = json.loads(out), float(given[1]) if given else None
        assert facts["actual_nfe"] == 2 and facts["guidance"] == scale
        with np.load(tmp_path / f"{name}.npz") as found:
            pictures[name] = found["images"]
    assert (pictures["usual"] == pictures["2.5"]).all() and (pictures["4"] != pictures["2.5"]).any()
    for given, message in (
        (["--guidance", "9"], "guidance 9 is outside 1 to 4, for which this student was trained"),
        (["--negative", "blurry"], "takes no negative prompt ('sun' and 'nasa' do)"),
        (["--guidance", "2", "--negative", "blurry"], "takes no negative prompt ('sun' and 'nasa' do)"),
        (["--guide", "cfg:scale=2"], "this student's guidance is inside (scale 1 to 4, by 'guided')"),
    ):
        code, _, err = fewstep(*words, tmp_path / "no.npz", *given)
        assert code == 2 and message in err, err
    code, out, err = fewstep("evaluate", told, "-n", "8", "--nfe", "1", "--guidance", "3", "--json")
    assert code == 0, err
    code, _, err = fewstep("evaluate", told, "-n", "8", "--nfe", "1", "--guidance", "0.5")
    assert code == 2 and "guidance 0.5 is outside 1 to 4" in err
