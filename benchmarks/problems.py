"""The exact problem of the accuracy benchmarks: eight anisotropic components in two dimensions.

Standard deviations 0.04 to 0.2, means 0.5 N(0, 1), fixed by a seed. The denoiser is exact, so every error is the
sampler's own.
"""

from __future__ import annotations

import torch

from fewstep.core.process import Process
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.processes.cosine import Cosine
from fewstep.processes.discrete import Discrete
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP

F64 = torch.float64


def processes() -> dict[str, Process]:
    return {
        "vp_linear": Discrete.linear(),
        "vp_cont": VP(t_min=1e-4),
        "cosine": Cosine(),
        "edm": EDM(),
        "rf": Flow(),
    }


def mixture(process: Process, seed: int = 20240501) -> GaussianMixture:
    g = torch.Generator().manual_seed(seed)
    means = 0.5 * torch.randn(8, 2, generator=g, dtype=F64)
    std = 0.04 * 5 ** torch.rand(8, 2, generator=g, dtype=F64)
    weights = 0.5 + torch.rand(8, generator=g, dtype=F64)
    q, r = torch.linalg.qr(torch.randn(8, 2, 2, generator=g, dtype=F64))
    basis = q * torch.sign(torch.diagonal(r, dim1=1, dim2=2))[:, None, :]
    return GaussianMixture(weights, means, basis @ torch.diag_embed(std**2) @ basis.mT, process)
