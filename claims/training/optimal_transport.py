"""Claims of fewstep/training/optimal_transport.py."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from claims.common import F64, VP, Claim, GaussianMixture, Noise, Outcome, compared, plan, tolerance
from claims.problems import mixture
from fewstep.training.optimal_transport import OTStart


def _ring() -> GaussianMixture:
    """Eight narrow modes on a circle, far apart."""
    angle = torch.arange(8) * math.pi / 4
    return GaussianMixture(torch.ones(8), torch.stack((angle.cos(), angle.sin()), 1), 0.05**2, VP())


def _between(x: Tensor) -> float:
    """The share of samples more than four standard deviations from every mode."""
    return float((torch.cdist(x, _ring().means).amin(1) > 0.2).double().mean())


def _modes(seed: int) -> Outcome:
    model, process, n = _ring(), VP(), 4000
    data = model.sample(256, seed)
    t = process.time(1.0)  # sigma / alpha = 0.37: the modes have parted
    start = OTStart(process, data, t, seed).fit(seed=seed)
    end = process.log_snr(process.t_min)
    inner = [process.time(1.0 + (end - 1.0) * k / 9) for k in range(1, 9)]
    base = plan(process, "ddim", timesteps=[t, *inner, process.t_min, process.t_zero])
    whole = plan(process, "ddim", 10, "log-snr")
    noise = Noise(seed).normal(0, (n, 2), "cpu", F64)
    x = start.plan(base, neighbours=4)(model, noise, dtype=F64)
    nearest, fresh = (float(torch.cdist(y, data).amin(1).mean()) for y in (x, model.sample(n, seed + 1)))
    about = f"ddim from t = {t:.2f}, {base.nfe} evaluations, 256 training samples, 4 neighbours, 8 modes of standard"
    about += f" deviation 0.05 on the unit circle, vp, {n} samples; the nearest training sample is {nearest:.4f} away,"
    about += f" from new data {fresh:.4f}"
    figures = [_between(y) for y in (x, whole(model, noise, dtype=F64))]
    return compared(figures, f"ddim from noise, {whole.nfe} evaluations", about, unit="share of samples between modes")


def _masses(seed: int) -> Outcome:
    start = OTStart(VP(), mixture(VP()).sample(64, seed), 0.4, seed)
    flat = float((64 * start.masses(2**17) - 1).square().mean().sqrt())
    ours = float((64 * start.fit(300, seed=seed).masses(2**17) - 1).square().mean().sqrt())
    about = f"64 atoms of the 8-component mixture, vp, t = 0.4, 300 steps; at equal heights {flat:.2g}, the estimate's"
    about += f" own error {math.sqrt(64 / 2**17):.2g}"
    return tolerance(ours, 0.1, about, "deviation of the cells' mass from 1/n, relative")


CLAIMS = (
    Claim("dpm-ot", "leaves fewer samples between separate modes than ddim from noise", _modes, quick=False),
    Claim("dpm-ot", "gives every training sample the same mass", _masses, quick=False),
)
