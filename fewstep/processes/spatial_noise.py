"""Noise whose strength differs from pixel to pixel, as a camera's does: restoring starts at the picture itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.core.coordinates import Coordinates
from fewstep.core.methods import Method
from fewstep.core.prediction import expand

METHODS = (
    Method(
        "spatial-noise",
        kind="coordinates",
        paper="SVNR: Spatially-variant Noise Removal with Denoising Diffusion (Pearl et al., 2023)",
        arxiv="2306.16052",
        claim="every pixel has its own time; sampling starts at the noisy picture",
        use="SpatialNoise",
    ),
)


def noise_map(signal: Tensor, read: float, shot: float) -> Tensor:
    """Standard deviation of a camera's noise at a signal of at least 0: `sqrt(read^2 + shot * signal)`."""
    if read < 0 or shot < 0:
        raise ValueError(f"read and shot noise must be at least 0, got {read} and {shot}")
    return (read**2 + shot * signal.clamp_min(0)).sqrt()


class SpatialNoise(Coordinates):
    """Units of each pixel's own noise: with a map m of standard deviations, `x0 + s m eps` is EDM's process in `x / m`.

    The process is `EDM(sigma_max=1.0)`, whose time s falls from 1, where the state is the noisy picture, to 0. The
    condition `y` `(B, 2 C, *size)` holds the noisy picture and the map. The network is given the state as a picture,
    and as `y` the noisy picture and the map of the noise that is left, `s m`: each pixel's time. It predicts eps. Where
    m is 0 the noisy picture is clean, and stays.

    A run does not draw x_s by fresh noise: it starts at the noisy picture `x0 + m n` and walks down. A step of the
    reverse SDE ("ddpm", "dpmpp-2m-sde") from s to r keeps `r^2 / s^2` of the noise and adds fresh noise, so that with
    x0 known

        x_s = x0 + m (s^2 n + s sqrt(1 - s^2) z),

    of variance `s^2 m^2` as it must be, but with correlation s to the noise n of the picture that the network reads.
    Training draws eps so. (An ODE solver would keep all of n, which is not what the network is trained on.)
    """

    def config(self) -> dict[str, Any]:
        return {"coordinates": "spatial-noise"}

    @staticmethod
    def _parts(condition: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        y = condition.get("y")
        if not isinstance(y, Tensor) or y.ndim < 2 or y.shape[1] % 2:
            raise ValueError("spatial noise needs y=(B, 2 C, *size): the noisy picture, then its standard deviations")
        noisy, deviation = y.chunk(2, dim=1)
        return noisy, deviation

    def encode(self, data: Tensor, condition: Mapping[str, Any]) -> Tensor:
        deviation = self._parts(condition)[1]
        return torch.where(deviation > 0, data / deviation.where(deviation > 0, 1.0), 0.0)

    def decode(self, x: Tensor, condition: Mapping[str, Any]) -> Tensor:
        noisy, deviation = self._parts(condition)
        return torch.where(deviation > 0, x * deviation.to(x.dtype), noisy.to(x.dtype))

    def seen(self, x: Tensor, noise: Tensor, condition: Mapping[str, Any]) -> tuple[Tensor, Mapping[str, Any]]:
        noisy, deviation = self._parts(condition)
        left = deviation * expand(noise.reshape(-1), deviation)
        return self.decode(x, condition), {**condition, "y": torch.cat([noisy, left.to(noisy.dtype)], dim=1)}

    def eps(self, x0: Tensor, eps: Tensor, t: Tensor, condition: Mapping[str, Any]) -> Tensor:
        noisy, deviation = self._parts(condition)
        s = expand(t, x0)
        if t.numel() and float(t.max()) > 1:
            raise ValueError(f"spatial noise has times from 0 to 1: use EDM(sigma_max=1.0), got {float(t.max()):g}")
        own = self.encode(noisy, condition) - x0
        return torch.where(deviation > 0, s * own + (1 - s**2).sqrt() * eps, 0.0)

    def start(self, y: Tensor) -> Tensor:
        """The state at s = 1: the noisy picture in its noise's units, for `coordinates.sample_as_data`."""
        return self.encode(self._parts({"y": y})[0], {"y": y})
