"""Tangential guidance, "tcfg", against a singular value decomposition."""

from __future__ import annotations

import torch
from scaled import Scaled

from fewstep.guidance.tangential import tangential, tcfg
from fewstep.processes.vp import VP

F64 = torch.float64


def test_the_projection_is_that_of_the_svd():
    c, u = torch.randn(2, 6, 2, 5, generator=torch.Generator().manual_seed(0), dtype=F64)
    u[1], u[2], c[3] = -2 * c[1], 0, 0  # along one another, none, nothing given
    rows = torch.stack([c.flatten(1), u.flatten(1)], 1)
    first = torch.linalg.svd(rows, full_matrices=False).Vh[:, 0]
    expected = ((u.flatten(1) * first).sum(1, keepdim=True) * first).view_as(u)
    torch.testing.assert_close(tangential(c, u), expected, rtol=1e-9, atol=1e-12)
    both = torch.eye(2, dtype=F64)
    assert bool(torch.isfinite(tangential(both[:1], both[1:])).all())


def test_answers_along_one_another_are_led_as_by_cfg():
    model = Scaled(VP())
    x, label = torch.randn(4, 3, dtype=F64), torch.zeros(4, dtype=torch.long)
    given, empty = (model(x, torch.tensor(0.4, dtype=F64), label=label + n).value for n in (0, 2))
    guided = tcfg(model, 3.0)(x, torch.tensor(0.4, dtype=F64), label=label).value
    torch.testing.assert_close(guided, torch.lerp(empty, given, 3.0))
