"""DDIM inversion: on one Gaussian the path is known, and the way back converges."""

from __future__ import annotations

import pytest
import torch
from scaled import Scaled

import fewstep as fs
from fewstep.guidance.cfg import cfg
from fewstep.guidance.cfgpp import cfgpp
from fewstep.processes.vp import VP
from fewstep.sampling.inversion import inverse, inverted

F64 = torch.float64
X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=F64)


@pytest.mark.parametrize("guided", [lambda m: m, lambda m: cfg(m, 2.0)], ids=["plain", "cfg"])
def test_it_leads_back_with_an_error_of_first_order(guided):
    model, errors = guided(Scaled(VP())), []
    for steps in (40, 80, 160):
        plan = fs.plan(VP(), "ddim", steps=steps, timesteps="uniform")
        x = plan(model, X, label=0, dtype=F64)
        noise = inverted(model, plan, x, label=0)
        errors.append(float((plan(model, noise, label=0, dtype=F64) - x).norm() / x.norm()))
    assert errors[2] < 0.05 and 1.7 < errors[0] / errors[1] < 2.4 and 1.7 < errors[1] / errors[2] < 2.4


def test_it_is_its_formula():
    model, plan = Scaled(VP()), fs.plan(VP(), "ddim", steps=5)
    up = inverse(plan)
    assert up.times == tuple(reversed(plan.times[:-1])) and up.nfe == 4
    x = up.start[0] * X
    for a, b in zip(up.times[:-1], up.times[1:], strict=True):
        answer = model(x, torch.tensor(a, dtype=F64), label=torch.zeros(4, dtype=torch.long))
        x = VP().alpha(b) * answer.x0 + VP().sigma(b) * answer.eps
    made = up(model, torch.zeros_like(X), init=X, label=0, dtype=F64)
    torch.testing.assert_close(made, x, rtol=1e-12, atol=1e-12)


def test_under_cfg_plus_plus_it_is_the_matching_split():
    """x0 of the empty answer, renoised with the interpolated noise."""
    model, plan = Scaled(VP()), fs.plan(VP(), "ddim", steps=5)
    up = inverse(plan)
    x = up.start[0] * X
    for a, b in zip(up.times[:-1], up.times[1:], strict=True):
        time = torch.tensor(a, dtype=F64)
        given, empty = (model(x, time, label=torch.full((4,), n)) for n in (0, 2))
        x = VP().alpha(b) * empty.x0 + VP().sigma(b) * torch.lerp(empty.eps, given.eps, 0.6)
    made = up(cfgpp(model, 0.6), torch.zeros_like(X), init=X, label=0, dtype=F64)
    torch.testing.assert_close(made, x, rtol=1e-12, atol=1e-12)


def test_other_solvers_are_refused():
    for solver in ("dpmpp-2m", "ddpm"):
        with pytest.raises(
            ValueError, match=f"a plan of ddim without noise can be inverted, this one is of '{solver}'"
        ):
            inverse(fs.plan(VP(), solver, 4))
