"""Conditions that a student is asked to learn, in place of those that come with the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.conditions.prompt import Prompt
from fewstep.core.denoiser import Denoiser
from fewstep.data.dataset import Dataset


def given_rows(model: Denoiser, conditions: Mapping[str, Any]) -> dict[str, Tensor]:
    """Conditions as a user gives them, each checked by the model: (n, ...) tensors on the CPU.

    conditions: a value by name, or a list of n, `{"label": [3, 5]}` or `{"text": ["a circle", "a square"]}`: one row of
        all lists goes together, and a value goes with every row.

    Raises:
        ValueError: nothing in it, lists of several lengths, a condition that the model does not know or take.
    """
    lengths = {name: len(value) for name, value in conditions.items() if isinstance(value, list | tuple)}
    if not conditions or 0 in lengths.values():
        raise ValueError(f"conditions must have at least one row, got {dict(conditions)}")
    if len(set(lengths.values())) > 1:
        raise ValueError(f"lists of conditions go together row by row, and here are {lengths}")
    rows = next(iter(lengths.values()), 1)
    found = model.check_condition(conditions, rows, model.device)
    follow = [name for name, kind in model.conditions.items() if isinstance(kind, Prompt) and "text" in conditions]
    return {name: found[name].cpu() for name in {**dict.fromkeys(conditions), **dict.fromkeys(follow)}}


def rows_with(data: Dataset, given: Mapping[str, Tensor]) -> Tensor:
    """The rows (m,) of the data whose conditions are among those given.

    Raises:
        ValueError: data that do not keep such a condition, or have no such row.
    """
    known = ({} if data.labels is None else {"label": data.labels}) | dict(data.given)
    if lost := [name for name in given if name not in known]:
        raise ValueError(
            f"the data {data.spec.name!r} cannot be chosen by {lost[0]!r}, and this method takes real samples: leave"
            " conditions out, or take a method without data"
        )
    chosen = torch.zeros(len(data), dtype=torch.bool)
    for row in range(len(next(iter(given.values())))):
        same = [(known[name] == value[row]).reshape(len(data), -1).all(1) for name, value in given.items()]
        chosen |= torch.stack(same).all(0)
    if not bool(chosen.any()):
        raise ValueError(f"no sample of the data {data.spec.name!r} has one of the conditions")
    return chosen.nonzero()[:, 0]
