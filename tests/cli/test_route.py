"""Routers on the command line: fitted to captions that are drawn and judged, and shown."""

from __future__ import annotations

import json

import pytest
import torch

import fewstep as fs
from fewstep.serving.routing import Router
from fewstep.serving.scoring import judged, shapes_captions

WORDS = ("route", "fit", "shapes", "--steps", 1, "--steps", 2, "--guidance", 1, "--guidance", 2, "--captions", 6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A router, made once."""
    from fewstep.cli.main import run

    path = tmp_path_factory.mktemp("route") / "router"
    assert run([str(word) for word in (*WORDS, "--seed", 3, "--out", path)]) == 0
    return path


def test_a_router_is_fitted_and_shown(folder, fewstep):
    router = Router.load(folder)
    assert [(option.steps, option.guidance, option.cost) for option in router.options] == [
        (1, None, 1.0), (2, None, 2.0), (1, 2.0, 2.0), (2, 2.0, 4.0)
    ]  # fmt: skip
    code, out, _ = fewstep("route", "show", folder, "a red circle", "--cost", 0.2)
    chosen = router.choose("a red circle", 0.2)
    assert code == 0 and out.splitlines()[-1] == f"taken: {chosen}"
    assert [line.split()[0] for line in out.splitlines()[:-1]] == ["option"] + 4 * ["shapes,"]
    found = json.loads(fewstep("route", "show", folder, "a red circle", "--cost", 0.2, "--json")[1])
    assert [row["expected"] for row in found["options"]] == router.predict("a red circle")[0].tolist()
    assert found["chosen"]["steps"] == chosen.steps and found["cost"] == 0.2


def test_scores_are_kept_and_fitted_anew(folder, fewstep):
    """Nothing is drawn again, and what was scored is what fs.sample draws and the verifier reads."""
    asked = shapes_captions(6, 3)
    code, out, _ = fewstep(*WORDS, "--seed", 3, "--out", folder, "--predictor", "knn", "--json")
    found = json.loads(out)
    assert code == 0 and found["predictor"] == "knn" and Router.load(folder).predictor.name == "knn"
    images = fs.sample(fs.load("shapes"), 6, steps=2, seed=3, text=asked)
    assert found["options"][1]["quality"] == pytest.approx(float(judged(images, asked).double().mean()))
    facts = json.loads((folder / "scores.json").read_text())
    assert facts["captions"] == asked and facts["seed"] == 3
    table = torch.stack([torch.tensor(row) for row in Router.load(folder).predictor.quality.tolist()])
    assert table.shape == (6, 4)


def test_bad_input(folder, fails, fewstep):
    code, out, err = fewstep(*WORDS, "--seed", 4, "--out", folder)
    assert code == 2 and out == "" and "holds the scores of other captions, seed" in err
    assert "'--steps'" in fails("route", "fit", "shapes")
    for given, why in (
        (["--predictor", "knnn"], "unknown predictor 'knnn': did you mean 'knn'?"),
        (["--measure", "second"], "did you mean 'seconds'?"),
        (["--captions", 0], "--captions must be at least 1, got 0"),
        (["--pictures", 0], "--pictures must be at least 1, got 0"),
        (["--steps", 0], "at least one step"),
    ):
        assert why in fails(*WORDS, *given, "--out", "other")
    assert "digits does not draw captioned shapes" in fails("route", "fit", "digits", "--steps", 2, "--out", "other")
    assert "no router that was finished" in fails("route", "show", "nowhere", "a cross")
    assert "cost must be a finite number of at least 0" in fails("route", "show", folder, "a cross", "--cost", -1)
    assert "see 'fewstep route --help'" in fails("route")
