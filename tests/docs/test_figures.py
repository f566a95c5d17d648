"""The texts that are written from a demo's figures."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def figures():
    spec = importlib.util.spec_from_file_location("figures", ROOT / "tools" / "figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def kept():
    return json.loads((ROOT / "docs" / "figures.json").read_text("utf-8"))


def test_cpu_seconds_are_told_where_they_were_counted(figures, kept):
    seconds = f"The whole demo took {kept['seconds']:.0f} s"
    assert f"{seconds} (80 CPU seconds) on cpu (2 threads)." in figures.digits(kept | {"cpu_seconds": 80.4})[-1]
    for other in (kept | {"cpu_seconds": None}, {key: kept[key] for key in kept if key != "cpu_seconds"}):
        assert f"{seconds} on cpu (2 threads)." in figures.digits(other)[-1]


@pytest.mark.parametrize("more", [{}, {"cpu_seconds": 80.4}])
def test_a_result_is_collected_with_and_without_cpu_seconds(figures, kept, tmp_path, more):
    demo = {key: value for key, value in kept.items() if key not in ("notes", "cpu_seconds")} | more
    result = demo | {"format": "fewstep-demo-1", "accelerate": {"notes": kept["notes"]}}
    (tmp_path / "result.json").write_text(json.dumps(result))
    found = figures.collect(tmp_path)
    assert found["cpu_seconds"] == more.get("cpu_seconds") and found["rows"] == kept["rows"]


def test_a_files_claims_become_a_table(figures):
    entry = {"method": "a", "claim": "is near", "file": "claims/r/t.py", "unit": "distance", "ours": 0.04123,
             "theirs": 0.05, "against": "b", "holds": True, "spread": [0.0012, 0.0]}  # fmt: skip
    failed = entry | {"method": "c", "ours": 1234.5, "holds": False}
    del failed["spread"]
    evidence = {"claims": [entry, failed, entry | {"file": "claims/r/other.py"}]}
    page = "Before\n<!-- figures: claims/r/t.py -->\nold\n<!-- end -->\nafter"
    assert figures.fill_claims(page, evidence).splitlines() == [
        "Before", "<!-- figures: claims/r/t.py -->", "",
        "| method | claim | measured | method's | against | holds |", "| --- | --- | --- | --- | --- | --- |",
        "| `a` | is near | distance | 0.0412 ± 0.0012 | 0.05 (b) | yes |",
        "| `c` | is near | distance | 1,234 | 0.05 (b) | no |", "", "<!-- end -->", "after",
    ]  # fmt: skip
