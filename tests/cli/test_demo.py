"""`fewstep demo`, small: what it writes, what its figures mean, and what it replaces."""

from __future__ import annotations

import json
import os

import pytest

import fewstep as fs
from fewstep.acceleration import pipeline
from fewstep.acceleration.pipeline import Accelerated
from fewstep.cli import demo


@pytest.fixture
def small(monkeypatch, folder, student):
    """Few noises, solvers and evaluations, and a search that answers at once."""
    for name, value in {
        "MODEL": str(folder), "SOLVERS": ("ddim", "heun"), "NFES": (4, 5, 6), "REFERENCE_NFE": 18, "N": 70,
        "FAST_NFE": 5, "STUDENT": str(student),
    }.items():  # fmt: skip
        monkeypatch.setattr(demo, name, value)

    def answer(model, nfe, runs, error, **options):
        assert len(runs.problem) == 70 and error < 0.1 and options["iterations"] == demo.ITERATIONS
        plan = fs.plan(model.process, "dpmpp-2m", steps=nfe)
        row = {"role": "learned", "name": "own", "planned_nfe": nfe, "nfe": nfe, "n": 9, "endpoint": 0.5,
               "frechet": None}  # fmt: skip
        return Accelerated(model, plan, [row], {"searched": 1}, ["A note."])

    monkeypatch.setattr(pipeline, "accelerate_for", answer)


def test_the_report(fewstep, small, tmp_path):
    code, out, err = fewstep("demo", "--out", "runs/demo", "--seed", 3)
    assert code == 0 and len(out.splitlines()) == 6 and "reference, 18 evaluations" in err
    assert sorted(os.listdir("runs/demo")) == ["accelerated", "report.html", "result.json", "samples.png"]
    assert os.listdir("runs") == ["demo"]
    result = json.loads((tmp_path / "runs/demo/result.json").read_text())
    assert result["format"] == "fewstep-demo-1" and result["n"] == 70 and result["seed"] == 3
    solvers = ["ddim"] * 3 + ["heun"] * 3
    assert [row["name"] for row in result["rows"]] == ["reference", *solvers, "accelerated", result["student"]]
    heun = {row["asked_nfe"]: row for row in result["rows"] if row["name"] == "heun"}
    assert {asked: row["planned_nfe"] for asked, row in heun.items()} == {4: 3, 5: 5, 6: 5}
    assert all(row["actual_nfe"] == row["planned_nfe"] for row in result["rows"])
    assert {**heun[5], "asked_nfe": 6} == heun[6]  # one plan, run once

    # The figures are those of the same noises under the same plans.
    model = fs.load(demo.MODEL)
    labels = [i % 10 for i in range(70)]
    truth = fs.sample(model, 70, plan=fs.plan(model.process, "vab-3", nfe=18, timesteps="karras"), seed=4, label=labels)
    drawn = fs.sample(model, 70, solver="ddim", steps=5, seed=4, label=labels)
    error = (drawn - truth).flatten(1).norm(dim=1).mean() / truth.flatten(1).norm(dim=1).mean()
    assert demo.pick(result, "ddim", 5)["endpoint"] == pytest.approx(float(error), rel=1e-4)
    assert result["floor"]["n"] == 70

    page = (tmp_path / "runs/demo/report.html").read_text()
    assert (
        page.count("<svg") >= 2
        and "A note." in page
        and "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    )
    facts = json.loads(fewstep("sample", "runs/demo/accelerated", "-n", 2, "--json")[1])
    assert facts["solver"] == "dpmpp-2m" and facts["actual_nfe"] == 5
    assert json.loads(fewstep("info", "runs/demo/samples.png", "--json")[1])["rows"][1]["name"] == "accelerated"


def test_a_rerun_has_the_same_figures_and_replaces_its_own_output_alone(fewstep, small, tmp_path):
    assert fewstep("demo", "--out", "d", "--seed", 1)[0] == 0
    first = json.loads((tmp_path / "d" / "result.json").read_text())
    (tmp_path / "d" / "notes.txt").write_text("mine")
    (tmp_path / "d" / "accelerated" / "stale").write_text("")
    code, out, _ = fewstep("demo", "--out", "d", "--seed", 1, "--json")
    assert code == 0 and json.loads(out)["seed"] == 1
    second = json.loads((tmp_path / "d" / "result.json").read_text())
    assert second["seed"] == 1 and second["seconds"] > 0 and second["cpu_seconds"] > 0
    assert [row | {"seconds": None} for row in second["rows"]] == [row | {"seconds": None} for row in first["rows"]]
    assert (tmp_path / "d" / "notes.txt").read_text() == "mine"
    assert sorted(os.listdir("d/accelerated")) == ["README.md", "config.json", "model.safetensors", "plan.json"]
    assert not [name for name in os.listdir("d") if name.startswith(".")]


def test_a_folder_of_others_is_refused(fails, small, tmp_path):
    (tmp_path / "full").mkdir()
    for text in (None, "{}", '{"format": "other"}', "[]", "{"):
        if text is not None:
            (tmp_path / "full" / "result.json").write_text(text)
        (tmp_path / "full" / "thesis.txt").write_text("mine")
        assert fails("demo", "--out", "full").startswith("the folder full is not empty and no former demo's")
    assert "cannot write to" in fails("demo", "--out", "/proc/none/demo")


def test_a_failure_leaves_nothing(fewstep, small, tmp_path, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise ValueError("no")

    monkeypatch.setattr("fewstep.report.demo.picture", broken)
    code, _, err = fewstep("demo", "--out", "d")
    assert code == 2 and err.splitlines()[-1] == "fewstep: no" and os.listdir("d") == []


def test_a_solver_that_diverges_has_no_figures(fewstep, small, monkeypatch, tmp_path):
    def run_shared(plans, *rest, **named):
        runs = real(plans, *rest, **named)
        return [shared.Ran(None, 0.1) if plan.name == "heun" else run for plan, run in zip(plans, runs, strict=True)]

    from fewstep.searching import shared

    real = shared.run_shared
    monkeypatch.setattr(shared, "run_shared", run_shared)
    assert fewstep("demo", "--out", "d")[0] == 0
    result = json.loads((tmp_path / "d" / "result.json").read_text())
    assert demo.pick(result, "heun", 5)["endpoint"] is None and demo.pick(result, "ddim", 5)["endpoint"] > 0
    page = (tmp_path / "d" / "report.html").read_text()
    assert "samplers diverged (heun)" in page and page.count("<details>") == 1


def test_the_weights_come_back_in_their_layout():
    model = fs.load("digits")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with demo.fast_layout(model):
        pass
    for name, value in model.state_dict().items():
        assert value.is_contiguous() and value.equal(before[name])


def test_both_clocks_are_told():
    row = {"name": "accelerated", "asked_nfe": 4, "planned_nfe": 4, "endpoint": 0.1, "frechet": 0.5}
    slow = row | {"name": "ddim", "asked_nfe": max(demo.NFES)}
    reference = row | {"name": "reference", "asked_nfe": 100}
    result = {
        "rows": [reference, slow, row, row | {"name": "own", "planned_nfe": 1}], "fast_nfe": 4, "student": "own",
        "reference_nfe": 100, "reference_error": 0.001,
        "floor": {"value": 0.4}, "seconds": 72.3, "cpu_seconds": 80.4,
    }  # fmt: skip
    said = demo.summary(result, demo.Path("d"))
    assert "in 72 s (80 CPU seconds)" in said[4]
    assert said[0].startswith("accelerated     4 evaluations, error 0.1") and said[1].startswith("own ")
    assert " 1 evaluation,  error 0.1" in said[1]
