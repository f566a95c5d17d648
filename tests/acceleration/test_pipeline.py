"""accelerate: reference, search, learning and verdict together."""

from __future__ import annotations

import pytest
import torch

import fewstep as fs
from fewstep.acceleration.pipeline import Sizes, _sizes, accelerate
from fewstep.acceleration.verdict import JUDGED
from fewstep.processes.ve import EDM


@pytest.fixture(scope="module")
def result(make_mixture):
    torch.set_num_threads(1)
    return accelerate(make_mixture(EDM()), nfe=3, noises=200, iterations=2, seed=1)


def test_the_verdict_has_every_kind_of_row_sorted(result):
    rows = result.rows
    roles = [row["role"] for row in rows]
    assert roles.count("reference") == roles.count("learned") == roles.count("baseline") == 1
    assert roles.count("candidate") == JUDGED
    assert JUDGED + roles.count("raced") == result.figures["searched"] > 100
    assert rows[0]["role"] == "reference" and rows[0]["endpoint"] == 0
    known = [row["endpoint"] for row in rows if row["endpoint"] is not None]
    assert known == sorted(known)
    assert all(row["nfe"] == row["planned_nfe"] for row in rows)


def test_it_never_returns_something_worse_than_the_best_hand_made_plan(result):
    learned = next(row for row in result.rows if row["role"] == "learned")
    best = min(row["endpoint"] for row in result.rows if row["role"] == "candidate" and row["endpoint"] is not None)
    chosen = result.plan.about["solver"]
    assert (chosen == "learned") == (learned["endpoint"] < best)
    assert result.plan.nfe == 3
    assert any(("learned plan" in note) or ("did not help" in note) for note in result.notes)


def test_the_noises_of_the_verdict_are_new(result):
    noises = result.figures["noises"]
    assert sum(noises.values()) == 200 and min(noises.values()) >= 8
    assert result.figures["reference_error"] < 1e-3


@pytest.mark.slow
def test_the_same_seed_gives_the_same_plan(result, make_mixture):
    again = accelerate(make_mixture(EDM()), nfe=3, noises=200, iterations=2, seed=1)
    assert again.plan == result.plan
    assert accelerate(make_mixture(EDM()), nfe=2, noises=60, iterations=1, seed=2).plan.nfe == 2


def test_when_learning_does_not_help_the_hand_made_plan_is_returned_and_it_says_so(monkeypatch, make_mixture):
    from fewstep.acceleration import pipeline
    from fewstep.sampling.build import plan

    poor = plan(EDM(), "ddim", 3, "uniform")
    poor.about["solver"] = "learned"
    monkeypatch.setattr(pipeline, "learn", lambda *_, **__: (poor, {"learned": True}))
    result = accelerate(make_mixture(EDM()), nfe=3, noises=60)
    assert result.plan.about["solver"] != "learned"
    assert "did not help" in result.notes[0]


@pytest.mark.slow
def test_an_accelerated_network_is_a_folder_that_samples_with_its_own_plan(tmp_path):
    model = fs.load("digits")
    result = accelerate(model, nfe=2, noises=48, iterations=1)
    folder = result.save(tmp_path / "fast")
    again = fs.load(folder)
    assert again.plan == result.plan
    x = fs.sample(again, 5, label=3, seed=2)
    torch.testing.assert_close(x, fs.sample(model, 5, label=3, seed=2, plan=result.plan))
    assert "| sampler |" in (folder / "README.md").read_text("utf-8")
    with pytest.raises(ValueError, match="not empty"):
        result.save(folder)


def test_it_tells_what_it_does_and_ends_when_told(few_candidates, make_mixture):
    told: list[tuple[str, dict]] = []
    how = {"nfe": 3, "noises": 40, "iterations": 1, "seed": 2}
    found = accelerate(make_mixture(EDM()), **how, watch=lambda *what: told.append(what))
    tried = [facts for kind, facts in told if kind == "tried"]
    first = [facts for facts in tried if facts["n"] == tried[0]["n"]]
    assert len(first) == found.figures["searched"] and {facts["nfe"] for facts in first} == {3}
    assert min(facts["error"] for facts in first) > 0
    learned = [facts for kind, facts in told if kind == "learned"]
    assert [facts["iteration"] for facts in learned] == list(range(len(learned)))
    assert learned[-1]["iteration"] == found.figures["learning"]["iterations"]
    errors = [facts["error"] for facts in learned]
    assert errors == sorted(errors, reverse=True) and errors[-1] == found.figures["learning"]["held_out_after"]
    judged = [(facts["role"], facts["name"], facts["error"]) for kind, facts in told if kind == "judged"]
    rows = [(row["role"], row["name"], row["endpoint"]) for row in found.rows if row["role"] != "raced"]
    assert judged == rows
    stages = [facts["text"] for kind, facts in told if kind == "stage"]
    assert [text.split(":")[0].split(" ")[0] for text in stages] == [
        "reference", "reference", "search", "learning", "verdict",
    ]  # fmt: skip

    class Enough(Exception):
        pass

    def stop(kind: str, facts: dict) -> None:
        if kind == "call":
            raise Enough

    with pytest.raises(Enough):
        accelerate(make_mixture(EDM()), **how, watch=stop)


@pytest.mark.slow
def test_watching_changes_nothing(few_candidates, make_mixture):
    how = {"nfe": 3, "noises": 60, "iterations": 1, "seed": 2}
    watched, alone = (
        accelerate(make_mixture(EDM()), **how, watch=lambda *_: None),
        accelerate(make_mixture(EDM()), **how),
    )
    assert watched.plan == alone.plan
    keys = ("name", "endpoint", "low", "high")
    assert [[row[key] for key in keys] for row in watched.rows] == [[row[key] for key in keys] for row in alone.rows]


def test_sizes_shrink_with_the_number_given(make_mixture):
    model = make_mixture(EDM())
    assert _sizes(model, 4, 60, 5000, torch.float32).total == 380 + 128 + 512
    small = _sizes(model, 4, 60, 60, torch.float32)
    assert small == Sizes(24, 9, 27)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "endpont"}, "unknown metric 'endpont': did you mean 'endpoint'"),
        ({"nfe": 0}, "nfe must be a whole number of at least 1, got 0"),
        ({"seconds": 0}, "seconds must be positive"),
        ({"noises": 5}, "noises must be at least 40"),
    ],
)
def test_bad_input(options, message, make_mixture):
    with pytest.raises(ValueError, match=message):
        accelerate(make_mixture(EDM()), **options)


def test_a_denoiser_without_a_shape_is_refused(make_mixture):
    model = make_mixture(EDM())
    model.shape = None
    with pytest.raises(ValueError, match="needs a shape"):
        accelerate(model)


def test_a_closed_form_is_saved_with_its_plan(make_mixture, tmp_path):
    made = accelerate(make_mixture(EDM()), nfe=2, noises=48, iterations=1)
    assert fs.load(made.save(tmp_path / "model")).plan == made.plan
