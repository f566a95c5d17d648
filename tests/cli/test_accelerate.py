"""`fewstep accelerate` around the search itself, which has tests of its own."""

from __future__ import annotations

import json

import pytest

import fewstep as fs
from fewstep.acceleration import pipeline
from fewstep.acceleration.pipeline import Accelerated
from fewstep.cli.accelerate import verdict


def row(role, name, error, nfe=3):
    return {"role": role, "name": name, "planned_nfe": nfe, "nfe": nfe, "n": 9, "endpoint": error, "median": error,
            "frechet": None, "seconds": 0.1}  # fmt: skip


ROWS = [
    row("reference", "vab-3", 0.0, 100),
    row("learned", "learned from ddim", 0.05),
    *[row("candidate", f"solver {i}", 0.1 + i) for i in range(20)],
    row("baseline", "ddim", 30.0, 15),
]


@pytest.fixture
def asked(monkeypatch):
    """What `accelerate` was called with; it answers with a plan at once."""
    calls = []

    def answer(model, nfe, **options):
        calls.append((nfe, options))
        return Accelerated(model, fs.plan(model.process, "ddim", steps=nfe), ROWS, {"searched": 20}, ["A note."])

    monkeypatch.setattr(pipeline, "accelerate", answer)
    return calls


def test_the_folder_samples_with_its_plan(fewstep, folder, asked):
    words = ("accelerate", folder, "--nfe", 3, "--seconds", 5, "--metric", "frechet", "--seed", 2, "--out", "fast")
    code, out, _ = fewstep(*words)
    assert code == 0 and asked == [
        (3, {"seconds": 5.0, "metric": "frechet", "seed": 2, "progress": True, "cache": False, "distill": None})
    ]
    assert "A note." in out and "learned from ddim" in out and "vab-3" in out and "solver 19" not in out
    facts = json.loads(fewstep("sample", "fast/", "-n", 2, "--json")[1])
    assert facts["solver"] == "ddim" and facts["actual_nfe"] == 3


def test_json(fewstep, folder, asked):
    out = json.loads(fewstep("accelerate", folder, "--out", "fast", "--json")[1])
    assert out["plan"]["nfe"] == 4 and len(out["rows"]) == len(ROWS) and out["notes"] == ["A note."]


def test_the_verdict_keeps_the_special_rows():
    found = Accelerated(None, None, ROWS, {})  # type: ignore[arg-type]
    names = [one["name"] for one in verdict(found, 6)]
    assert names == ["vab-3", "learned from ddim", "solver 0", "solver 1", "solver 2", "ddim"]


def test_the_folder_is_checked_before_the_work(fails, folder, asked, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    assert "the folder full is not empty" in fails("accelerate", folder, "--out", "full")
    assert "cannot write to" in fails("accelerate", folder, "--out", "/proc/none/fast")
    assert fails("accelerate", folder, "--nfe", 0) == "--nfe must be at least 1, got 0"
    assert asked == []


def test_an_unknown_metric(fails, folder):
    assert fails("accelerate", folder, "--metric", "frechett") == "unknown metric 'frechett': did you mean 'frechet'?"
