"""The contract of every kind of condition: registered kinds enter by themselves."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from fewstep.conditions.number import Number
from fewstep.conditions.time import Time, aimed
from fewstep.core.condition import condition_from_config
from fewstep.core.config import built, config
from fewstep.core.methods import methods

CARDS = {card.name: card for card in methods("condition")}
CPU = torch.device("cpu")
ONE = torch.linspace(0, 1, 6).reshape(2, 3)

# A kind's options; what it takes for one sample, and for three; what it refuses; and its empty value, where it has one.
EXAMPLES: dict[str, dict[str, Any]] = {
    "label": {
        "options": {"classes": 7},
        "one": [2, [2], torch.tensor([2], dtype=torch.int32)],
        "each": [[0, 6, 3], torch.tensor([0, 6, 3])],
        "refused": [7, -1, 1.5, True, "cat", [1, 2], [[1, 2, 3]]],
        "empty": 7,
    },
    "text": {
        "options": {"vocabulary": ["a", "red", "circle"], "length": 3},
        "one": ["a red circle", ["A red, circle"], torch.tensor([1, 2, 3])],
        "each": [["red", None, "a circle"], torch.tensor([[2, 0, 0], [0, 0, 0], [1, 3, 0]])],
        "refused": [5, ["a", "red"], "a blue circle", "a a a a", torch.tensor([1, 2, 9]), torch.zeros(3)],
        "empty": [0, 0, 0],
    },
    "picture": {
        "options": {"shape": [2, 3]},
        "one": [ONE, ONE[None]],
        "each": [torch.stack([ONE, -ONE, 2 * ONE])],
        "refused": [None, 1.0, ONE.long(), torch.zeros(3, 2), torch.zeros(2, 2, 3)],
    },
    "degraded": {
        "options": {"data": [1, 4, 6], "operator": "downsample:2", "noise": 0.1, "picture": "measurement"},
        "one": [ONE[None], ONE[None, None]],
        "each": [torch.stack([ONE, -ONE, 2 * ONE])[:, None]],
        "refused": [None, 1.0, ONE[None].long(), torch.zeros(1, 3, 2), torch.zeros(2, 1, 2, 3)],
    },
    "number": {
        "options": {"low": 0.5, "high": 8.0, "default": 3.5},
        "one": [2, 2.0, [2.0], torch.tensor(2.0), torch.tensor([2], dtype=torch.int64)],
        "each": [[0.5, 8, 1.25], torch.tensor([0.5, 8.0, 1.25], dtype=torch.float64)],
        "refused": [0.4, 8.1, math.nan, math.inf, True, "3", [], [1.0, 2.0], [1.0, 2.0, math.inf], torch.zeros(3, 1)],
        "empty": 3.5,
    },
    "time": {
        "options": {"low": 0.0, "high": 3.0},
        "one": [2, 2.0, [2.0], torch.tensor(2.0), torch.tensor([2], dtype=torch.int64)],
        "each": [[0, 3, 0.125], torch.tensor([0.0, 3.0, 0.125])],
        "refused": [-0.1, 3.1, math.nan, math.inf, True, "3", [], [1.0, 2.0], [1.0, 2.0, math.nan], torch.zeros(3, 1)],
        "empty": math.nan,
    },
    "latent": {
        "options": {"size": 3},
        "one": [[0.5, -1, 2], [[0.5, -1, 2]], torch.tensor([0.5, -1, 2])],
        "each": [torch.tensor([[0.5, -1, 2], [0, 0, 0], [3, 1, 4]]), [[0.5, -1, 2], [0, 0, 0], [3, 1, 4]]],
        "refused": [1.0, True, "abc", [], [1.0, 2.0], [1.0, 2.0, math.inf], torch.zeros(2, 3), torch.zeros(3, 4)],
        "empty": [0.0, 0.0, 0.0],
    },
    "negative": {
        "options": {"of": {"kind": "label", "classes": 7}, "usual": 5},
        "one": [2, [2], torch.tensor([2], dtype=torch.int32)],
        "each": [[0, 6, 3], torch.tensor([0, 6, 3])],
        "refused": [7, -1, 1.5, True, "cat", [1, 2]],
        "empty": 5,
    },
}


def made(name: str) -> Any:
    assert name in EXAMPLES, f"{CARDS[name].file} is a new kind of condition: give {name!r} a row in EXAMPLES"
    return CARDS[name].load()(**EXAMPLES[name]["options"])


def test_every_kind_has_an_example():
    assert {"label", "text", "picture", "number", "negative"} <= set(CARDS) and set(EXAMPLES) == set(CARDS)


@pytest.mark.parametrize("name", CARDS)
def test_one_for_all_is_a_row_for_each(name):
    kind, rows = made(name), []
    for value in EXAMPLES[name]["one"]:
        alone, batch = kind.check("c", value, 1, CPU), kind.check("c", value, 3, CPU)
        assert len(alone) == 1 and len(batch) == 3 and all(torch.equal(row, alone[0]) for row in batch)
        assert torch.equal(kind.check("c", batch, 3, CPU), batch)  # what is checked passes again
        rows.append(alone)
    assert all(torch.equal(row, rows[0]) and row.dtype == rows[0].dtype for row in rows)


@pytest.mark.parametrize("name", CARDS)
def test_one_a_sample(name):
    kind = made(name)
    found = [kind.check("c", value, 3, CPU) for value in EXAMPLES[name]["each"]]
    assert all(torch.equal(rows, found[0]) for rows in found) and not torch.equal(found[0][0], found[0][2])
    for row in range(3):
        assert torch.equal(kind.check("c", found[0][row : row + 1], 1, CPU)[0], found[0][row])


@pytest.mark.parametrize("name", CARDS)
def test_what_is_refused(name):
    for value in EXAMPLES[name]["refused"]:
        with pytest.raises(ValueError, match=r"\bthing\b"):  # every message names the condition
            made(name).check("thing", value, 3, CPU) if name != "text" else _named(made(name), value)


def _named(kind: Any, value: Any) -> None:
    """Messages about a caption's words name the words."""
    try:
        kind.check("thing", value, 3, CPU)
    except ValueError as error:
        raise ValueError(f"thing: {error}") from None


@pytest.mark.parametrize("name", CARDS)
def test_the_empty_value(name):
    kind = made(name)
    if "empty" in EXAMPLES[name]:
        rows = kind.check("c", None, 2, CPU)
        wanted = torch.tensor([EXAMPLES[name]["empty"]] * 2, dtype=rows.dtype)
        torch.testing.assert_close(rows, wanted, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(kind.check("c", rows, 2, CPU), rows, rtol=0, atol=0, equal_nan=True)
    else:
        assert not kind.guides
        with pytest.raises(ValueError, match="this model needs c"):
            kind.check("c", None, 2, CPU)


@pytest.mark.parametrize("name", CARDS)
def test_its_configuration(name):
    kind = made(name)
    assert condition_from_config(json.loads(json.dumps(kind.config()))) == kind
    tree = json.loads(json.dumps(config(kind)))
    assert (tree["kind"], tree["name"]) == ("condition", name) and built(tree) == kind
    with pytest.raises(ValueError, match="option of the condition"):
        condition_from_config(kind.config() | {"colour": 1})


def test_numbers_say_their_range():
    assert Number().check("w", -1e9, 2, CPU).tolist() == [-1e9, -1e9]
    with pytest.raises(ValueError, match="this model needs w, a number of at least 0"):
        Number(low=0).check("w", None, 2, CPU)
    with pytest.raises(ValueError, match="w must be a finite number of at least 0 and at most 1, got 1.5"):
        Number(0, 1).check("w", [0.5, 1.5], 2, CPU)
    for wrong in ({"low": 1, "high": 1}, {"high": 1, "default": 2}, {"default": math.nan}):
        with pytest.raises(ValueError, match="range of a number must rise|default must be a finite number"):
            Number(**wrong)


def test_a_time_that_is_none_is_the_states_own():
    rows = Time(0, 3).check("to", torch.tensor([0.5, math.nan, 3.0]), 3, CPU)
    assert rows.dtype == torch.float64
    t = torch.tensor([1.0, 2.0, 3.0])
    assert aimed(rows, t).tolist() == [0.5, 2.0, 3.0] and aimed(rows, t).dtype == t.dtype
    assert aimed(rows, torch.tensor(0.75)).tolist() == [0.5, 0.75, 3.0] and aimed(None, t) is t
    with pytest.raises(ValueError, match="to must be a finite time of at least 0 and at most 3, got 3.5"):
        Time(0, 3).check("to", 3.5, 2, CPU)
    with pytest.raises(ValueError, match="to must be a finite time of at least 0, got inf"):
        Time(0).check("to", torch.tensor(math.inf), 2, CPU)
    with pytest.raises(ValueError, match="range of a time must rise"):
        Time(1, 1)
