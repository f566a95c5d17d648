"""Claims of fewstep/processes/spatial_noise.py."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from claims.common import EDM, F64, Claim, Cosine, Noise, Outcome, over_seeds, plan, sample, tolerance
from claims.trained import MLP, CoordinateDenoiser, NetworkDenoiser, fit, fresh
from fewstep.conditions.picture import Picture
from fewstep.data.digits import load
from fewstep.denoisers.coordinates import sample_as_data
from fewstep.processes.spatial_noise import SpatialNoise, noise_map

SHAPE = (1, 8, 8)
READ, SHOT = 0.15, 0.25
STEPS, BATCH = 800, 64
NFE, THEIR_NFE = 5, 20


def observed(data: Tensor, normal: Tensor) -> Tensor:
    """Noisy digits and their maps `(B, 2, 8, 8)`: the noise follows the true signal, the map the noisy one."""
    noisy = data + noise_map((data + 1) / 2, READ, SHOT) * normal
    return torch.cat([noisy, noise_map((noisy + 1) / 2, READ, SHOT)], 1)


@functools.cache
def _trained(kind: str, seed: int) -> NetworkDenoiser:
    data, conditions = load("train")[0], {"y": Picture((2, 8, 8))}
    network = fresh(MLP, seed, SHAPE, width=192, depth=3, picture=128)
    model = NetworkDenoiser(network, Cosine(), "v", SHAPE, conditions)
    if kind == "spatial":
        process, coordinates = EDM(0.005, 1.0), SpatialNoise()
        model = CoordinateDenoiser(network, process, coordinates, "eps", SHAPE, conditions, value_range=None)

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        x0 = data[torch.randint(len(data), (count,), generator=generator)]
        y = observed(x0, torch.randn(x0.shape, generator=generator))
        return model.encode(x0, y=y), {"y": y}

    return fit(model, draw, steps=STEPS, batch=BATCH, lr=2e-3, seed=seed)


def psnr(found: Tensor, clean: Tensor) -> float:
    """In dB, of pictures in [-1, 1]."""
    return float(10 * torch.log10(4 / (found.clamp(-1, 1) - clean).square().mean()))


def _pair(seed: int) -> tuple[float, float]:
    clean, _ = load("validation")
    y = observed(clean, Noise(seed + 300).normal(0, tuple(clean.shape)))
    ours, theirs = (_trained(kind, seed) for kind in ("spatial", "global"))
    assert isinstance(ours, CoordinateDenoiser) and isinstance(ours.coordinates, SpatialNoise)
    made = plan(ours.process, "ddpm", timesteps="log-snr", nfe=NFE)
    other = plan(theirs.process, "ddpm", timesteps="uniform", nfe=THEIR_NFE)
    found = sample_as_data(ours, made, ours.coordinates.start(y), seed=seed, y=y)
    return psnr(found, clean), psnr(sample(theirs, len(y), plan=other, seed=seed, batch_size=len(y), y=y), clean)


def _digits(seed: int) -> Outcome:
    about = f"{NFE} evaluations of ddpm from the noisy picture, 360 digits with noise sqrt({READ}^2 + {SHOT} signal),"
    about += f" perceptron of width 192, {STEPS * BATCH} images seen by each"
    against = f"conditional diffusion from pure noise, one time for all pixels, {THEIR_NFE} evaluations"
    return over_seeds(seed, _pair, against, about, better="high", unit="PSNR in dB")


class _Exact(nn.Module):
    """eps of standard normal data, by the map of the noise left or, without one, by the level."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones((), dtype=F64))

    def forward(self, x: Tensor, noise: Tensor, y: Tensor | None = None) -> Tensor:
        level = noise.reshape(-1, 1, 1, 1) if y is None else y[:, 1:]
        return self.one * level * x / (1 + level**2)


def _constant(seed: int) -> Outcome:
    level, coordinates = 0.4, SpatialNoise()
    model = CoordinateDenoiser(_Exact(), EDM(0.005, 1.0), coordinates, "eps", SHAPE, {"y": Picture((2, 8, 8))})
    plain = NetworkDenoiser(_Exact(), EDM(0.005 * level, level), "eps", SHAPE)
    noisy = Noise(seed).normal(0, (16, *SHAPE), "cpu", F64)
    y = torch.cat([noisy, torch.full_like(noisy, level)], 1)
    times = [1.0, 0.7, 0.3, 0.1, 0.0]
    ours = sample_as_data(model, plan(model.process, "ddpm", timesteps=times), coordinates.start(y), seed=seed, y=y)
    theirs = sample_as_data(plain, plan(plain.process, "ddpm", timesteps=[level * t for t in times]), noisy, seed=seed)
    about = f"a map of {level} everywhere against one time for all pixels, ddpm, 4 steps, 16 pictures"
    return tolerance(float((ours - theirs).abs().max()), 1e-6, about, "largest difference")


CLAIMS = (
    Claim("spatial-noise", "a constant map is the process with one time for all pixels", _constant),
    Claim("spatial-noise", f"restores digits better in {NFE} evaluations than a conditional diffusion in {THEIR_NFE}",
          _digits, quick=False),
)  # fmt: skip
