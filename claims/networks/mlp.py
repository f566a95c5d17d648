"""Claims of fewstep/networks/mlp.py."""

from __future__ import annotations

import torch

from claims.common import EDM, Claim, Outcome, sample, sliced_wasserstein
from claims.problems import mixture
from claims.trained import MLP, NetworkDenoiser, NoiseLevels, fit

STEPS = 1500
N = 2000


def _learns(seed: int) -> Outcome:
    """A mixture learned from its samples, against a Gaussian of the same mean and covariance."""
    process = EDM(sigma_max=10.0)
    exact = mixture(process)
    data = exact.sample(20_000, seed).float()
    network = MLP((2,), 64, 3)
    model = NetworkDenoiser(network, process, "x0", (2,), precondition="edm", data_std=float(data.std()))
    trained = fit(model, data, steps=STEPS, batch=256, lr=2e-3, levels=NoiseLevels(process, "log-snr"), seed=seed)
    real, far = exact.sample(N, seed + 1).float(), exact.sample(N, seed + 2).float()
    normal = torch.randn(N, 2, generator=torch.Generator().manual_seed(seed))
    gaussian = data.mean(0) + normal @ torch.linalg.cholesky(data.T.cov()).T
    ours, theirs, floor = (
        sliced_wasserstein(x, real).value for x in (sample(trained, N, steps=20, seed=seed), gaussian, far)
    )
    about = (
        f"2-D mixture of eight, {STEPS} steps of 256, {N} samples by 20 steps of dpmpp-3m; exact samples: {floor:.2g}"
    )
    unit = "sliced Wasserstein distance"
    return Outcome(ours, theirs, "a Gaussian of the data's mean and covariance", about, unit=unit)


CLAIMS = (Claim("mlp", "learns a mixture's density from its samples", _learns, quick=False),)
