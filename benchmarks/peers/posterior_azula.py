"""azula's posterior samplers, as its users put them together, on the noise levels of a grid of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fewstep.denoisers.gaussian_mixture import GaussianMixture

F64 = torch.float64
Draw = Callable[[int], Tensor]  # how many draws of one measurement


def methods(model: GaussianMixture, a: Tensor, y: Tensor, noise: float, times: list[float]) -> dict[str, Draw]:
    """Its methods for one measurement `y = a x + noise`, by the names that ours have.

    Args:
        a: `(m, D)`. y: `(m,)`. times: of the process, one for each evaluation, and a last one near the data.
    """
    from azula.denoise import Denoiser, DiracPosterior
    from azula.guidance.diffpir import DiffPIRDenoiser
    from azula.guidance.dps import DPSSampler
    from azula.guidance.mmps import MMPSDenoiser
    from azula.guidance.pgdm import PGDMSampler
    from azula.guidance.tds import TDSSampler
    from azula.guidance.tmpd import TMPDenoiser
    from azula.linalg.covariance import IsotropicCovariance
    from azula.noise import Schedule
    from azula.sample import DDIMSampler, DDPMSampler

    steps, grid, d = len(times) - 1, torch.tensor(times, dtype=F64), a.shape[1]

    class Ours(Schedule):
        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            own = grid[((1 - t) * steps).round().long()]
            return model.process.alpha(own), model.process.sigma(own)

    class Exact(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = Ours()

        def forward(self, x_t: Tensor, t: Tensor, **rest: Any) -> Any:
            return DiracPosterior(model(x_t, grid[((1 - t) * steps).round().long()]).x0)

    def measured(x: Tensor) -> Tensor:
        return x @ a.mT

    inverse = torch.linalg.pinv(a)
    covariance = IsotropicCovariance(torch.tensor(noise**2, dtype=F64))
    how: dict[str, Any] = {"start": 1.0, "stop": 0.0, "steps": steps, "silent": True, "dtype": F64}

    def drawn(make: Callable[[Tensor], Any]) -> Draw:
        def run(n: int) -> Tensor:
            sampler = make(y.expand(n, -1))
            found: Tensor = sampler(torch.randn(n, d, dtype=F64) * model.process.sigma(times[0]))
            return found / model.process.alpha(times[-1])

        return run

    def twist(x0: Tensor, ratio: Tensor) -> Tensor:
        variance = noise**2 + ratio**2 / (1 + ratio**2)
        return -((y - measured(x0)) ** 2).sum(-1) / (2 * variance)

    def mmps(rows: Tensor, iterations: int) -> Any:
        return MMPSDenoiser(Exact(), rows, measured, covariance, iterations=iterations)

    return {
        "mmps, 1 step": drawn(lambda rows: DDPMSampler(mmps(rows, 1), **how)),
        "mmps, 3 steps": drawn(lambda rows: DDPMSampler(mmps(rows, 3), **how)),
        "mmps, 3 steps, ddim": drawn(lambda rows: DDIMSampler(mmps(rows, 3), **how)),
        "tmpd": drawn(lambda rows: DDPMSampler(TMPDenoiser(Exact(), rows, measured, noise**2), **how)),
        "tmpd, ddim": drawn(lambda rows: DDIMSampler(TMPDenoiser(Exact(), rows, measured, noise**2), **how)),
        "pigdm": drawn(lambda rows: PGDMSampler(Exact(), rows, measured, lambda v: v @ inverse.mT, eta=1.0, **how)),
        "dps": drawn(lambda rows: DPSSampler(Exact(), rows, measured, **how)),
        "diffpir": drawn(lambda rows: DDPMSampler(DiffPIRDenoiser(Exact(), rows, measured, noise**2), **how)),
        "particles": drawn(lambda rows: TDSSampler(Exact(), twist, **how)),
    }
