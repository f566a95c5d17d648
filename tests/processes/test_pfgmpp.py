"""PFGM++'s heavy-tailed noise. Method: pfgmpp."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.core.noise import Noise
from fewstep.core.process import process_from_config
from fewstep.processes.pfgmpp import PFGMpp
from fewstep.processes.ve import EDM

F64 = torch.float64
N = 5


def starts(process: PFGMpp, n: int, first: int = 0) -> torch.Tensor:
    return process.start(lambda draw: Noise(2, first).normal(draw, (n, N), "cpu", F64))


@pytest.mark.parametrize("degrees", [1.0, 3.0, 64.0, 1e6, None])
def test_the_radius_has_its_law(degrees):
    """A histogram against the density `R^(N - 1) / (R^2 + D)^((N + D) / 2)`, integrated over each bin."""
    process, n = PFGMpp(degrees=degrees), 20_000
    generator = torch.Generator().manual_seed(4)
    trained = process.eps(lambda: torch.randn(n, N, generator=generator, dtype=F64))
    edges = torch.cat((torch.linspace(0.5, 5, 10, dtype=F64), torch.tensor([12.0, 100.0], dtype=F64)))
    for eps in (starts(process, n), trained):
        radius = eps.norm(dim=1)
        for low, high in zip(edges, edges[1:], strict=False):
            fine = torch.linspace(float(low), float(high), 2001, dtype=F64)
            share = float(torch.trapezoid(process.log_radius_density(fine, N).exp(), fine))
            found = float(((radius >= low) & (radius < high)).double().mean())
            assert abs(found - share) < 5 * math.sqrt(max(share * (1 - share), 1e-6) / n)


def test_the_law_is_the_papers_kernel_in_each_direction():
    """Each coordinate is a Student t of D degrees: its distribution function against SciPy's."""
    from scipy.stats import t as student

    x = starts(PFGMpp(degrees=3.0), 20_000)[:, 2]
    for at in (-4.0, -1.0, 0.0, 0.7, 3.0):
        share = float(student.cdf(at, 3.0))
        assert abs(float((x < at).double().mean()) - share) < 5 * math.sqrt(share * (1 - share) / len(x))


def test_the_tails_keep_their_digits():
    """The chi-square's quantiles at far normals, against SciPy's survival functions."""
    from scipy.stats import chi2, norm

    far = torch.tensor([-8.0, -3.0, 0.0, 3.0, 8.0], dtype=F64)
    stretch = PFGMpp(degrees=6.0).stretch(far)
    square = (6.0 / stretch**2).numpy()
    assert chi2.cdf(square[:3], 6) == pytest.approx(norm.cdf(far[:3].numpy()), rel=1e-9)
    assert chi2.sf(square[3:], 6) == pytest.approx(norm.sf(far[3:].numpy()), rel=1e-9)


def test_many_dimensions_are_diffusion():
    normal = Noise(2).normal(0, (64, N), "cpu", F64)
    assert torch.equal(starts(PFGMpp(degrees=None), 64), normal)
    assert float((starts(PFGMpp(degrees=1e6), 64) / normal - 1).abs().max()) < 5 * math.sqrt(0.5 / 1e6)
    assert PFGMpp().sigma(3.0) == EDM().sigma(3.0) and PFGMpp().t_max == EDM().t_max


def test_a_sample_is_its_own():
    assert torch.equal(starts(PFGMpp(degrees=4.0), 6)[2:], starts(PFGMpp(degrees=4.0), 4, first=2))


def test_config_and_errors():
    for process in (PFGMpp(degrees=2.0), PFGMpp(degrees=None)):
        assert process_from_config(process.config()) == process
    with pytest.raises(ValueError, match="must be positive, or None for infinity, got 0"):
        PFGMpp(degrees=0.0)
    with pytest.raises(ValueError, match="no SDE"):
        PFGMpp().diffusion2(1.0)
