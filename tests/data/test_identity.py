"""The fingerprint of data: whatever moves a picture changes it."""

from __future__ import annotations

from dataclasses import replace

import torch

from fewstep.data.dataset import Dataset, DataSpec
from fewstep.data.identity import identity
from fewstep.data.open import open_data


def test_every_picture_and_label_and_their_order_count():
    raw, labels = torch.arange(600, dtype=torch.uint8).reshape(100, 1, 2, 3), torch.arange(100) % 3
    data = Dataset(DataSpec("some", (1, 2, 3), (-1.0, 1.0), 3, 100), raw, labels, ("a", "b", "c"))
    other = raw.clone()
    other[57, 0, 1, 2] += 1
    found = [
        identity(data),
        identity(replace(data, raw=other)),
        identity(replace(data, raw=raw.flip(0))),
        identity(replace(data, labels=labels.flip(0))),
        identity(replace(data, class_names=("a", "b", "d"))),
        identity(replace(data, given={"y": raw.float()})),
    ]
    assert len(set(found)) == len(found)
    assert identity(replace(data, raw=raw.clone(), spec=replace(data.spec, name="elsewhere"))) == found[0]


def test_data_drawn_on_demand_have_one_too():
    train = identity(open_data("shapes"))
    assert train == identity(open_data("shapes")) != identity(open_data("shapes", split="validation"))
