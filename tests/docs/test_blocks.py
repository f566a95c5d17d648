"""Every Python block of the README and the docs runs, page by page, and their tables are the measured ones."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fewstep.core.methods import methods

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def load(name: str):
    """A script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def with_blocks(language: str) -> list[Path]:
    return [page for page in PAGES if blocks(page, language)]


@pytest.mark.parametrize("page", with_blocks("python"), ids=lambda page: page.name)
def test_python_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for number, block in enumerate(blocks(page, "python")):
        exec(compile(block, f"{page.name}, block {number + 1}", "exec"), names)
    if page.name == "README.md":
        assert names["x"].shape == (16, 1, 8, 8) and names["plan"].nfe == 8
        assert set(names["figures"]) >= {"frechet", "accuracy"} and names["figures"]["accuracy"]["value"] > 0.8


@pytest.mark.parametrize("page", with_blocks("sh"), ids=lambda page: page.name)
def test_commands_exist(page):
    """Every `fewstep` line names a command and options that it has; every `make` line a target."""
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for line in "\n".join(blocks(page, "sh")).splitlines():
        words = line.split("#")[0].split()
        if words and words[0] == "make":
            assert words[1] in targets, line
        elif words:
            assert words[0] == "fewstep", line
            folder = ROOT / "fewstep" / "cli"
            source, shared = (folder / f"{words[1]}.py").read_text(), (folder / "common.py").read_text()
            for option in (word for word in words if word.startswith("--")):
                named = f'"{option}"' in source or (f'"{option}"' in shared and "PlanFile" in source)
                assert named or f"{option[2:].replace('-', '_')}:" in source, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_tables_are_the_measured_ones():
    done = subprocess.run([sys.executable, ROOT / "tools" / "figures.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}: run `make figures`"
    figures = json.loads((ROOT / "docs" / "figures.json").read_text())
    assert {row["name"] for row in figures["rows"]} >= {"reference", "accelerated", "ddim"}
    tool = load("figures")
    fast = next(row for row in figures["rows"] if row["name"] == "accelerated")
    assert f"{fast['endpoint']:.3g}" in (ROOT / "README.md").read_text()
    changed = figures | {"rows": [row | {"endpoint": 0.123456} for row in figures["rows"]]}
    assert tool.fill((ROOT / "README.md").read_text(), changed) != (ROOT / "README.md").read_text()


def test_the_methods_page_has_every_method():
    tool = load("pages")
    page = tool.methods_page()
    for card in methods():
        assert f"| `{card.name}` |" in page and card.file in page
    claim = {"method": "unipc-3", "claim": "beats ddim", "ours": 0.5, "theirs": 2.0, "against": "ddim"}
    lines = tool.methods_page({"claims": [claim | {"better": "high", "holds": False}]}).splitlines()
    (line,) = [line for line in lines if line.startswith("| `unipc` |")]
    assert "**does not hold:** beats ddim: 0.5 against 2 (ddim; higher is better)" in line


def test_the_site_asks_for_nothing_outside():
    text = (ROOT / "mkdocs.yml").read_text()
    assert "font: false" in text and "analytics" not in text and "strict: true" in text and "http" not in text
