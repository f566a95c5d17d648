"""Tables of figures: how numbers are written, and which value of a column is the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

DASH = "\N{EN DASH}"


def format_number(value: Any) -> str:
    """A cell's text: three significant digits of a float, integers whole, a dash for None and the not finite.

    1234.5 is "1,230", 0.5 is "0.500", 0.0000123 is "1.23e-5". Strings stay as they are.
    """
    value = _python(value)
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        return DASH
    if value == 0:
        return "0"
    rounded = float(f"{value:.2e}")
    exponent = math.floor(math.log10(abs(rounded)))
    if -4 <= exponent < 6:
        return f"{rounded:,.{max(0, 2 - exponent)}f}"
    digits, power = f"{rounded:.2e}".split("e")
    return f"{digits}e{int(power)}"


@dataclass(frozen=True)
class Table:
    """Rows under `columns`, which a reader can sort by.

    `best` maps a column to "low" or "high"; `marked` are the numbers of rows that a reader is to see at once.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""
    best: Mapping[str, str] = field(default_factory=dict)
    marked: Sequence[int] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                sizes = f"{len(row)} cells for {len(self.columns)} columns"
                raise ValueError(f"a row of table {self.title!r} has {sizes}: {row}")
        for column, way in self.best.items():
            if column not in self.columns or way not in ("low", "high"):
                wanted = 'a column to "low" or "high"'
                raise ValueError(f"best of table {self.title!r} must map {wanted}, not {column!r} to {way!r}")


@dataclass(frozen=True)
class Cell:
    """A value as shown: its text, the number to sort by (None: by text), whether it is the best."""

    text: str
    number: float | None
    best: bool = False


def cells(table: Table) -> list[list[Cell]]:
    """The rows of a table as cells. Of a column every best value is marked, none where all are equal."""
    numbers = [[_number(value) for value in row] for row in table.rows]
    best: dict[int, float] = {}
    for column, way in table.best.items():
        index = list(table.columns).index(column)
        known = {row[index] for row in numbers} - {None}
        if len(known) > 1:
            best[index] = (min if way == "low" else max)(x for x in known if x is not None)
    return [
        [
            Cell(format_number(value), number, number is not None and best.get(index) == number)
            for index, (value, number) in enumerate(zip(row, row_numbers, strict=True))
        ]
        for row, row_numbers in zip(table.rows, numbers, strict=True)
    ]


def numeric_columns(table: Table) -> list[bool]:
    """Whether each column holds numbers (and dashes) alone: such columns are set flush right."""
    values = [[_python(row[index]) for row in table.rows] for index in range(len(table.columns))]
    return [
        all(value is None or isinstance(value, int | float) for value in column) and any(v is not None for v in column)
        for column in values
    ]


def _number(value: Any) -> float | None:
    value = _python(value)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _python(value: Any) -> Any:
    """NumPy scalars and tensors of one element as Python numbers."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value
