"""`fewstep search` and `fewstep compare`."""

from __future__ import annotations

import json

import pytest

from fewstep.cli.main import _spread
from fewstep.core.plan import Plan


@pytest.mark.slow
def test_a_search_writes_its_plan_and_sample_takes_it(fewstep, tmp_path):
    out = tmp_path / "found"
    arguments = ("search", "digits", "--nfe", "3", "--noises", "16", "--option", "iterations=2", "--out", out)
    code, printed, err = fewstep(*arguments, "--json")
    assert code == 0, err
    result = json.loads(printed)
    assert result["method"] == "learned-plan" and result["finished"] and result["nfe"] == 3
    assert {"searched", "hand-made"} == {row["role"] for row in result["rows"]}
    assert Plan.load(out / "plan.json").nfe == 3
    assert {path.name for path in out.iterdir()} == {"plan.json", "search.json", "results.json", "report.html"}
    code, printed, err = fewstep(*arguments)  # goes on from the end: nothing left to do
    assert code == 0 and "plan.json" in printed
    drawn = ("sample", "digits", "-n", 4, "--plan", out / "plan.json", "--out", tmp_path / "x.png", "--json")
    code, printed, err = fewstep(*drawn)
    assert code == 0 and json.loads(printed)["nfe"] == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("search", "digits", "--method", "gitz"), "unknown search method 'gitz'"),
        (("search", "digits", "--evaluations", 3), "a budget of 3 evaluations is below one candidate"),
        (("search", "digits", "--nfe", 0), "--nfe must be at least 1, got 0"),
        (("search", "digits", "--option", "iterations"), "--option takes NAME=VALUE, got 'iterations'"),
        (("compare", "digits", "--solvers", "dimm"), "unknown solver 'dimm': did you mean 'ddim'"),
        (("compare", "digits", "--nfe", 4, 0), "--nfe must be at least 1, got 0"),
        (("sample", "digits", "--plan", "none.json"), "none.json"),
    ],
)
def test_errors_are_one_line(fewstep, tmp_path, arguments, said):
    code, printed, err = fewstep(*arguments)
    assert code == 2 and said in err and err.count("\n") == 1
    assert not list(tmp_path.rglob("*.html"))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["a folder", "digits"])
def test_compare_writes_a_report(fewstep, folder, tmp_path, model):
    out = tmp_path / "compared"
    arguments = (
        "compare",
        folder if model == "a folder" else model,
        "--nfe",
        3,
        5,
        "--solvers",
        "ddim",
        "dpmpp-2m",
        "-n",
        70,
        "--out",
        out,
    )
    code, printed, err = fewstep(*arguments, "--timesteps", "log-snr", "--json")
    assert code == 0, err
    rows = json.loads(printed)["rows"]
    assert {(row["solver"], row["nfe"]) for row in rows} >= {("ddim", 3), ("ddim", 5), ("dpmpp-2m", 3), ("dpmpp-2m", 5)}
    assert any(row["pareto"] for row in rows) and json.loads((out / "results.json").read_text())["rows"] == rows
    assert "Worth it" in (out / "report.html").read_text()
    code, printed, err = fewstep(*arguments)
    assert code == 2 and "report.html exists" in err


def test_lists_of_values_are_spread_for_compare_alone():
    assert _spread(["compare", "m", "--nfe", "4", "8", "-n", "9", "--solvers", "a", "b", "c"]) == [
        "compare", "m", "--nfe", "4", "--nfe", "8", "-n", "9", "--solvers", "a", "--solvers", "b", "--solvers", "c",
    ]  # fmt: skip
    assert _spread(["search", "m", "--nfe", "4", "8"]) == ["search", "m", "--nfe", "4", "8"]
