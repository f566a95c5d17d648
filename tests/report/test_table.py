from __future__ import annotations

import numpy as np
import pytest
import torch

from fewstep.report.table import Table, cells, format_number, numeric_columns


@pytest.mark.parametrize(
    "value, text",
    [
        (0.5, "0.500"), (1.0, "1.00"), (12.34, "12.3"), (123.4, "123"), (1234.5, "1,230"), (999.9, "1,000"),
        (0.99999, "1.00"), (-0.012345, "-0.0123"), (0.00012345, "0.000123"), (1.23e-5, "1.23e-5"),
        (1.5e7, "1.50e7"),
        (0.0, "0"), (7, "7"), (2048, "2048"), (12000, "12,000"), (True, "yes"), (None, "–"),
        (float("nan"), "–"),
        (float("-inf"), "–"), ("unipc", "unipc"), (np.float32(0.25), "0.250"), (torch.tensor(3), "3"),
    ],
)  # fmt: skip
def test_numbers(value, text):
    assert format_number(value) == text


def test_best_values():
    table = Table(
        "t",
        ["name", "error", "score", "same"],
        [["a", 0.3, 1, 2.0], ["b", float("nan"), 5, 2.0], ["c", 0.1, 5, 2.0]],
        best={"error": "low", "score": "high", "same": "low"},
    )
    marked = [[cell.best for cell in row] for row in cells(table)]
    assert marked == [[False] * 4, [False, False, True, False], [False, True, True, False]]
    assert cells(table)[1][1].number is None
    assert numeric_columns(table) == [False, True, True, True]


def test_mixed_columns_are_text():
    assert numeric_columns(Table("t", ["a", "b"], [[1, None], ["x", None]])) == [False, False]


def test_bad_tables():
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        Table("t", ["a", "b"], [[1]])
    with pytest.raises(ValueError, match='"low" or "high"'):
        Table("t", ["a"], [[1]], best={"a": "min"})
    with pytest.raises(ValueError, match="'b'"):
        Table("t", ["a"], [[1]], best={"b": "low"})
