"""Prose of the README, the guides and the docs is wrapped at 120 characters."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
WIDTH = 120
# Tables, images, formulas on lines of their own, HTML, and code by indentation are as long as they are.
UNWRAPPED = ("|", "![", "$$", "<", "    ")
ATOM = re.compile(r"`[^`]+`|\$[^$]+\$|\]\([^)]*\)")  # code, a formula, a link's target: not broken within
LEAD = re.compile(r"^\s*(?:[-*]\s|\d+\.\s)?\s*")


def long_lines(text: str) -> list[str]:
    """The lines of prose that are too long and could have been broken; fences and generated figures are left out."""
    found, fence, generated = [], "", False
    for line in text.splitlines():
        words = line.strip()
        if fence:
            fence = "" if words == fence else fence
        elif mark := re.match(r"`{3,}", words):
            fence = mark[0]
        elif words.startswith("<!-- figures:"):
            generated = True
        elif generated:
            generated = words != "<!-- end -->"
        elif len(line) > WIDTH and not line.startswith(UNWRAPPED):
            if " " in ATOM.sub("x", LEAD.sub("", line)):
                found.append(line)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_prose_is_wrapped(page):
    assert long_lines(page.read_text("utf-8")) == []


def test_what_counts_as_long():
    long = "word " * 25 + "end"
    assert long_lines(long) == [long] == long_lines(f"\n{long}\n")
    assert long_lines(f"- {long}") and long_lines(f"1. {long}")
    for allowed in (f"| {long} |", f"![{long}](x.png)", f"$${long}$$", f"```\n{long}\n```", f"- `{long}`", f"${long}$"):
        assert long_lines(allowed) == [], allowed
    assert long_lines(f"<!-- figures: a -->\n{long}\n<!-- end -->\n{long}") == [long]
