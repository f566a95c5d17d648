"""Values of options in one word."""

from __future__ import annotations

import pytest
import torch

from fewstep.core.spelling import read_value, spelt_value


@pytest.mark.parametrize(
    "value", [0, -3, 0.25, 1e-7, 1e20, 0.1 + 0.2, True, False, None, "a.png", [1], [1, 2.5], ["a", "b"]]
)
def test_what_is_written_reads_again(value: object):
    again = read_value(spelt_value(value))
    assert again == value and type(again) is type(value)


def test_arrays_are_called_by_their_shape():
    assert spelt_value(torch.zeros(2, 3)) == "<2x3>" and spelt_value(torch.tensor(0.5)) == "0.5"
    with pytest.raises(ValueError, match="<2x3> is what an array of that shape is called"):
        read_value("<2x3>")
    assert read_value("0.2..5") == (0.2, 5.0) and read_value("nan") == "nan"
