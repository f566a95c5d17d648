"""deepinv's posterior samplers, as its users put them together, on the noise levels of a grid of ours."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.posterior_azula import F64, Draw
from benchmarks.peers.standins import stand_in
from fewstep.denoisers.gaussian_mixture import GaussianMixture

LEAST = 1e-3  # of sigma, its own end
RANGE = 3.0  # DiffPIR takes data from 0 to 1, and clips them: these are -RANGE to RANGE


def methods(model: GaussianMixture, a: Tensor, y: Tensor, noise: float, times: list[float]) -> dict[str, Draw]:
    """Its methods for one measurement, as `posterior_azula.methods`."""
    stand_in()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepinv

    physics, sampling = deepinv.physics, deepinv.sampling
    process, (m, d) = model.process, a.shape
    levels = [process.sigma(t) / process.alpha(t) for t in times[:-1]]

    def denoised(x: Tensor, sigma: Any, *args: Any, **rest: Any) -> Tensor:
        """x0 of `x0 + sigma n`; without noise the data are as they are."""
        s = torch.as_tensor(sigma, dtype=F64).reshape(-1)[:1]
        if float(s) < LEAST / 10:
            return x
        alpha = (1 + s**2).rsqrt()
        t = torch.tensor(process.time(-math.log(float(s))), dtype=F64)
        return model((alpha * x.double()), t).x0.to(x.dtype)

    class Exact(torch.nn.Module):
        def forward(self, x: Tensor, sigma: Any, *args: Any, **rest: Any) -> Tensor:
            return denoised(x, sigma)

    class Unit(torch.nn.Module):
        """Of data from 0 to 1."""

        def forward(self, x: Tensor, sigma: Any, *args: Any, **rest: Any) -> Tensor:
            scaled = torch.as_tensor(sigma, dtype=F64) * 2 * RANGE
            return denoised((x - 0.5) * 2 * RANGE, scaled) / (2 * RANGE) + 0.5

    class Known(physics.LinearPhysics):
        def A(self, x: Tensor, **rest: Any) -> Tensor:  # noqa: N802
            return x @ a.to(x.dtype).mT

        def A_adjoint(self, y: Tensor, **rest: Any) -> Tensor:  # noqa: N802
            return y @ a.to(y.dtype)

        def A_dagger(self, y: Tensor, **rest: Any) -> Tensor:  # noqa: N802
            return y @ torch.linalg.pinv(a).to(y.dtype).mT

    u, values, vh = torch.linalg.svd(a)
    mask = torch.zeros(1, d, dtype=F64)
    mask[0, : len(values)] = values

    def turned(y: Tensor) -> Tensor:
        return torch.nn.functional.pad(y @ u, (0, d - m))

    decomposed = physics.DecomposablePhysics(
        U=lambda z: z[:, :m] @ u.mT, U_adjoint=turned, V=lambda z: z @ vh, V_adjoint=lambda x: x @ vh.mT, mask=mask
    )
    plain, unit = Known(), Known()
    for one, sigma in ((decomposed, noise), (plain, noise), (unit, noise / (2 * RANGE))):
        one.noise_model = physics.GaussianNoise(sigma)

    grid = torch.tensor([math.log(max(s, LEAST) / LEAST) for s in [*levels, LEAST]], dtype=F64)

    def posterior(fidelity: Any) -> Draw:
        def run(n: int) -> Tensor:
            sde = sampling.VarianceExplodingDiffusion(sigma_min=LEAST, sigma_max=LEAST * math.e, alpha=1.0, dtype=F64)
            solver = sampling.DDPMSolver(timesteps=grid)
            own = sampling.PosteriorDiffusion(
                data_fidelity=fidelity, denoiser=Exact(), sde=sde, solver=solver, dtype=F64, minus_one_one=False
            )
            start = torch.randn(n, d, dtype=F64) * levels[0]
            found: Tensor = own(y.expand(n, -1), plain, x_init=start, timesteps=grid, denoise_output=False)
            return found

        return run

    def ddrm(n: int) -> Tensor:
        found: Tensor = sampling.DDRM(Exact(), sigmas=levels)(y.expand(n, -1), decomposed)
        return found

    def diffpir(n: int) -> Tensor:
        own = sampling.DiffPIR(Unit(), deepinv.optim.data_fidelity.L2(), max_iter=len(levels))
        shifted = y / (2 * RANGE) + a.sum(1) / 2
        found: Tensor = own(shifted.expand(n, -1), unit)
        return (found - 0.5) * 2 * RANGE

    return {
        "ddrm": ddrm,
        "diffpir": diffpir,
        "dps": posterior(sampling.DPSDataFidelity(clip=None)),
        "pigdm": posterior(sampling.PiGDMDataFidelity()),
        "mmps, 3 steps": posterior(sampling.MomentMatchingDataFidelity()),
    }
