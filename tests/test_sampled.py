"""The share of a product that the default suite runs, and the parts of a long one."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sampled import part, sampled, shares, within

NAMES = [f"method-{i}" for i in range(17)]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 17])
def test_every_method_and_every_value_of_every_axis_occurs(count):
    lengths = (2, 5, 5, 1, 7)
    found = shares(NAMES[:count], *lengths)
    for axis, length in enumerate((count, *lengths)):
        assert {row[axis] for row in found} == set(range(length))
    assert len(found) == count * -(-7 // count)  # one case a method, or as many as the longest axis needs
    if count == 17:  # axes of one length do not go hand in hand
        assert len({row[2:4] for row in found}) > 10


def test_the_share_follows_from_the_names_in_any_order():
    def by_name(names):
        return {(names[i], *rest) for i, *rest in shares(names, 2, 5)}

    assert by_name(NAMES) == by_name(NAMES[::-1])
    assert len({rest for _, *rest in map(tuple, by_name(NAMES)) for rest in [tuple(rest)]}) > 5


def test_what_is_left_out_is_slow_and_nothing_is_lost():
    mark = sampled("name, number, end", NAMES, [1, 2, 3], ["a", "b"]).mark
    arguments, rows = mark.args
    assert arguments == "name, number, end" and len({row.id for row in rows}) == len(rows) == 17 * 6
    assert {row.values for row in rows} == {
        (name, number, end) for name in NAMES for number in (1, 2, 3) for end in "ab"
    }
    default = [row for row in rows if not row.marks]
    assert [row.values[0] for row in default] == NAMES
    assert all([mark.name for mark in row.marks] == ["slow"] for row in rows if row not in default)
    assert sampled("name, number", [], [1, 2]).mark.args[1] == []


def test_every_test_is_in_one_part_and_parts_are_about_equal():
    tests = [f"tests/room/test_{i % 7}.py::test_{i // 7}[{i}]" for i in range(700)]
    for n in (1, 2, 3, 5):
        parts = [{test for test in tests if within(test, (k, n))} for k in range(1, n + 1)]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 700
        assert min(map(len, parts)) > 0.8 * 700 / n
    assert part("2/3") == (2, 3)
    for wrong in ("0/3", "4/3", "2", "2/3/4", "-1/3", "a/b"):
        with pytest.raises(argparse.ArgumentTypeError, match="a part is K/N"):
            part(wrong)


@pytest.mark.slow
def test_parts_of_a_run(tmp_path):
    """The two halves of a file of tests, collected by pytest itself."""
    (tmp_path / "test_some.py").write_text(
        "import pytest\n@pytest.mark.parametrize('i', range(20))\ndef test_it(i): pass\n"
    )
    (tmp_path / "conftest.py").write_text((Path(__file__).parent / "conftest.py").read_text())
    found = []
    for text in ("1/2", "2/2"):
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--collect-only",
            "--part",
            text,
            "-c",
            os.devnull,
            f"--rootdir={tmp_path}",
            tmp_path,
        ]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found.append({line for line in done.stdout.splitlines() if "::" in line})
    assert len(found[0] | found[1]) == 20 and not found[0] & found[1] and min(map(len, found)) > 3
