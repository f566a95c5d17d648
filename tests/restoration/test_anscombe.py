"""The transform makes counts Gaussian of variance one, and its inverse has no bias."""

from __future__ import annotations

import pytest
import torch

from fewstep.core.noise import Noise
from fewstep.operators.noise import Poisson, PoissonGaussian
from fewstep.restoration.anscombe import Anscombe

F64 = torch.float64
LAWS = {"counts": Poisson(20.0, low=-1.0), "camera": PoissonGaussian(0.05, 0.04, low=-1.0)}


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_the_inverse_of_a_mean_is_the_clean_value(law):
    """Against the mean of very many draws, and of the mean itself to 1e-3."""
    clean = torch.linspace(-0.95, 1.0, 9, dtype=F64)
    transform = Anscombe(law, 1.0)
    assert torch.allclose(transform.inverse(transform.mean(clean)), clean, atol=1e-4)
    n = 50_000
    drawn = transform(law.draw(clean[None].expand(n, -1), Noise(3)))
    error = drawn.std(0) / n**0.5
    assert float(((drawn.mean(0) - transform.mean(clean)) / error).abs().max()) < 4
    assert torch.allclose(drawn[:, 4:].std(0), torch.ones(5, dtype=F64), atol=0.05)
    # The algebraic inverse is too dark, by about a quarter of a count.
    algebraic = transform.low + (transform.gain * (drawn.mean(0) / 2) ** 2)
    algebraic = algebraic - 0.375 * transform.gain - transform.read**2 / transform.gain
    off = (algebraic - clean).abs()[2:] / transform.gain
    assert float(off.min()) > 0.1
    assert float(((transform.inverse(drawn.mean(0)) - clean).abs()[2:] / transform.gain).max()) < 0.1


def test_darkness_and_bad_input():
    transform = Anscombe(LAWS["counts"], 1.0)
    assert float(transform.inverse(torch.tensor([-3.0]))) == -1.0
    with pytest.raises(ValueError, match="lies above darkness"):
        Anscombe(LAWS["counts"], -1.0)
