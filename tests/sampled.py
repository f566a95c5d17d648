"""A share of a contract's product for the default suite, and parts of the whole for runs of an hour."""

from __future__ import annotations

import argparse
import re
import zlib
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest


def shares(names: Sequence[str], *lengths: int) -> set[tuple[int, ...]]:
    """(method, a value of each axis), as indices: each method with one value of every axis.

    Which values follows from the names alone: along each axis the methods stand in the order of a checksum of their
    names, another order for each axis, and take the values in turn. With fewer methods than values they go round
    again, so that no value is left out.
    """
    turns = []
    for axis in range(len(lengths)):
        order = sorted(range(len(names)), key=lambda i: zlib.crc32(f"{axis} {names[i]}".encode()))
        turns.append({method: turn for turn, method in enumerate(order)})
    rounds = -(-max(lengths, default=1) // len(names)) if names else 0
    return {
        (i, *((turn[i] + n * len(names)) % length for turn, length in zip(turns, lengths, strict=True)))
        for i in range(len(names))
        for n in range(rounds)
    }


def sampled(
    arguments: str, methods: Sequence[Any], *axes: Sequence[Any], indirect: Sequence[str] = ()
) -> pytest.MarkDecorator:
    """`parametrize` a contract over the product of methods and axes: its share runs by default, the rest is slow.

    Methods and values are called by their `name`, where they have one. indirect: arguments that are fixtures.
    """

    def called(value: Any) -> str:
        return str(getattr(value, "name", value))

    chosen = shares([called(method) for method in methods], *map(len, axes))
    rows = []
    for indices in product(*(range(len(values)) for values in (methods, *axes))):
        values = [values[i] for values, i in zip((methods, *axes), indices, strict=True)]
        marks = [] if indices in chosen else [pytest.mark.slow]
        rows.append(pytest.param(*values, id="-".join(map(called, values)), marks=marks))
    return pytest.mark.parametrize(arguments, rows, indirect=list(indirect))


def part(text: str) -> tuple[int, int]:
    """`"2/3"`, the second of three parts, as (2, 3)."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"a part is K/N with K from 1 to N, such as 2/3, got {text!r}")
    return int(found[1]), int(found[2])


def within(test: str, part: tuple[int, int]) -> bool:
    """Whether a test is in a part: it follows from the test's name, and so is the same in every process."""
    return zlib.crc32(test.encode()) % part[1] == part[0] - 1
