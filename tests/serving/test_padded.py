"""Calls with a least number of rows."""

from __future__ import annotations

import pytest
import torch

from fewstep.caching.deepcache import deepcache
from fewstep.core.noise import Noise
from fewstep.hub.models import load
from fewstep.serving.padded import Padded, steady_from


def test_from_some_size_on_a_rows_bits_do_not_depend_on_the_others():
    model = load("digits")
    least = steady_from(model, 64)
    assert least is not None and least > 1  # one row is another product
    padded = Padded(model, least)
    x, t = Noise(0).normal(0, (40, 1, 8, 8)), torch.linspace(0.1, 0.9, 40, dtype=torch.float64)
    label = torch.arange(40) % 10
    with torch.no_grad():
        whole = padded(x, t, label=label)
        assert torch.equal(whole.value, model(x, t, label=label).value)
        for rows in ([3], [7, 1, 30], list(range(20, 37))):
            part = padded(x[rows], t[rows], label=label[rows])
            assert torch.equal(part.value, whole.value[rows]) and torch.equal(part.x0, whole.x0[rows])
        assert padded(x[:1], torch.tensor(0.5), label=label[:1]).value.shape == (1, 1, 8, 8)


def test_where_there_is_no_such_size():
    from fewstep.denoisers.wrap import wrap

    model = wrap(lambda x, t: x * (1 + len(x) * 1e-6), load("digits").process, "x0", (2,))
    assert steady_from(model, 16) is None
    with pytest.raises(ValueError, match="at least 1 row, got 0"):
        Padded(load("digits"), 0)
    with pytest.raises(ValueError, match="remembers the rows"):
        Padded(deepcache(load("digits"), interval=2), 4)
