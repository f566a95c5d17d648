"""The process of a picture's detail: its coefficients, and both of its ends."""

from __future__ import annotations

import pytest
import torch

from fewstep.processes.blend import Blend

F64 = torch.float64


def test_the_process_of_the_detail():
    process = Blend(0.3)
    t = torch.linspace(1e-3, 0.2999, 31, dtype=F64, requires_grad=True)
    assert process.alpha(0.0) == 1 and process.sigma(0.0) == 0 and process.alpha(0.3) == 0
    assert (process.log_snr(t).diff() < 0).all()
    assert torch.allclose(process.log_snr(t), (process.alpha(t) / process.sigma(t)).log())
    assert torch.allclose(process.time(process.log_snr(t)), t, atol=1e-13)
    (dalpha,) = torch.autograd.grad(process.alpha(t).sum(), t)
    assert torch.allclose(process.dalpha(t), dalpha) and (process.dsigma(t) == 1).all()
    # From no detail (T) to all of it: finite at both ends.
    assert process.time(-torch.inf) == pytest.approx(0.3) and process.time(800.0) == 0
    with pytest.raises(ValueError, match="t_max < 1"):
        Blend(1.0)
