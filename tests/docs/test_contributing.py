"""The examples of the contributing guide are quoted from the package, and the paths it names exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
PATH = re.compile(r"`((?:fewstep|tests|claims)/[a-z_/]+\.py)`")


def quotes() -> list[tuple[Path, str]]:
    """Each ```py block with the file named last before it."""
    found = []
    for block in re.finditer(r"^```py\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE):
        found.append((ROOT / PATH.findall(GUIDE[: block.start()])[-1], block[1]))
    return found


def test_examples_are_quoted_as_they_are():
    """A line `...` stands for lines left out; what lies between is in the file word for word, in order."""
    assert {path.relative_to(ROOT).parts[:2] for path, _ in quotes()} >= {
        ("fewstep", room) for room in ("sampling", "caching", "data", "metrics")
    }
    for path, text in quotes():
        source, place = path.read_text("utf-8"), 0
        for part in re.split(r"^\.\.\.\n", text, flags=re.MULTILINE):
            start = source.find(part, place)
            assert start >= 0, f"{path.relative_to(ROOT)} has not, from there on:\n{part}"
            place = start + len(part)


def test_the_paths_exist():
    for name in PATH.findall(GUIDE):
        assert (ROOT / name).is_file(), name
