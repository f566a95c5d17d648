"""Undersampled Fourier transforms, as magnetic resonance measures them, with one coil or several."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.operators.operator import LinearOperator, size_axes
from fewstep.operators.spectrum import Right, Spectrum

METHODS = (
    Method(
        "fourier",
        paper="fastMRI: An Open Dataset and Benchmarks for Accelerated MRI (Zbontar et al., 2018), for its masks",
        arxiv="1811.08839",
        claim="some frequencies of an orthonormal Fourier transform, seen by one coil or several",
        use="Fourier",
    ),
)

CENTRE = 0.08  # of all frequencies, the lowest, that random masks always see: what fastMRI takes at fourfold speed


def cartesian(size: tuple[int, ...], count: int, seed: int) -> Tensor:
    """Whole lines, by their place along the last axis: the lowest frequencies, and any others."""
    n = size[-1]
    lines = max(1, round(count / math.prod(size) * n))
    return _random((n,), lines, seed).expand(size)


def random(size: tuple[int, ...], count: int, seed: int) -> Tensor:
    """The lowest frequencies, and any others."""
    return _random(size, count, seed)


def _random(size: tuple[int, ...], count: int, seed: int) -> Tensor:
    squared = torch.zeros((), dtype=torch.float64)
    for n in size:
        squared = squared[..., None] + ((torch.arange(n, dtype=torch.float64) - n // 2) / n) ** 2
    total = squared.numel()
    kept = max(1, min(count, round(CENTRE * total)))
    order = torch.rand(total, generator=torch.Generator().manual_seed(seed))
    order[squared.flatten().argsort(stable=True)[:kept]] = -1
    mask = torch.zeros(total)
    mask[order.argsort(stable=True)[:count]] = 1
    return mask.reshape(size)


def radial(size: tuple[int, ...], count: int, seed: int) -> Tensor:
    """Spokes through the lowest frequency at equal angles, as many as it takes."""
    if len(size) != 2:
        raise ValueError(f"a radial mask is for two axes, not for {size}")
    height, width = size
    along = torch.linspace(-0.5, 0.5, 4 * max(size) + 1, dtype=torch.float64)[:, None]
    for spokes in range(1, 4 * max(size)):
        turn = math.pi / spokes * torch.arange(spokes, dtype=torch.float64)
        rows = (along * turn.sin() * height + height // 2).round().long().clamp(0, height - 1)
        columns = (along * turn.cos() * width + width // 2).round().long().clamp(0, width - 1)
        mask = torch.zeros(size)
        mask[rows, columns] = 1
        if int(mask.sum()) >= count:
            break
    return mask


MASKS: dict[str, Callable[[tuple[int, ...], int, int], Tensor]] = {
    "cartesian": cartesian,
    "random": random,
    "radial": radial,
}


class Fourier(LinearOperator):
    """`y` `(2 K, *size)`, real and imaginary parts of `mask F(coil x)` for each of K coils; the middle has frequency 0.

    A sample is real, `(1, *size)` or `(n,)`, or complex, `(2, *size)`: its real and imaginary parts. F is orthonormal
    along all axes of the size. Where nothing is seen, y is 0.

    Args:
        mask: a tensor `(*size)` in 0 to 1, or "cartesian" (lines, by their place along the last axis), "random" or
            "radial" (two axes): 8 % of all frequencies, the lowest, are always among them in the first two.
        acceleration: how many frequencies there are for one that is seen, with a mask by name; at least 1.
        coils: sensitivities `(K, *size)`, complex or as `torch.view_as_real` gives them; a number stands for smooth
            ones around the sample, whose squares sum to 1.
        seed: of "cartesian" and "random".

    Raises:
        ValueError: another mask, acceleration, shape or number of channels.
    """

    given: Tensor | None
    mask: Tensor
    coils: Tensor | None

    def __init__(
        self,
        mask: str | Tensor = "cartesian",
        acceleration: float | None = None,
        coils: int | Tensor | None = None,
        seed: int = 0,
    ):
        super().__init__()
        if isinstance(mask, str) and mask not in MASKS:
            raise suggest("mask", mask, MASKS)
        if acceleration is not None and not (isinstance(mask, str) and acceleration >= 1):
            raise ValueError(f"the acceleration of a mask by name is at least 1, got {acceleration} for {mask}")
        if isinstance(coils, int) and coils < 1:
            raise ValueError(f"the number of coils is at least 1, got {coils}")
        self.name = mask if isinstance(mask, str) else None
        self.acceleration, self.seed = acceleration, seed
        self.count = coils if isinstance(coils, int) else None
        values = None
        if not isinstance(mask, str):
            values = torch.as_tensor(mask).double()
            if not bool(((values >= 0) & (values <= 1)).all()) or not bool(values.any()):
                raise ValueError(
                    f"a mask lies between 0 and 1 and sees something, got {values.min():g} to {values.max():g}"
                )
        maps = coils if isinstance(coils, Tensor) else None
        if maps is not None:
            maps = maps.to(torch.complex128) if maps.is_complex() else torch.view_as_complex(maps.double().contiguous())
        self.register_buffer("given", values, persistent=False)
        self.register_buffer("mask", values, persistent=False)
        self.register_buffer("coils", maps, persistent=False)

    def config(self) -> dict[str, Any]:
        maps = self.count
        if maps is None and self.coils is not None:
            maps = torch.view_as_real(self.coils)  # type: ignore[assignment]
        named = {"acceleration": self.acceleration, "seed": self.seed} if self.name else {}
        return {"mask": self.name or self.given, "coils": maps} | named

    @property
    def holds(self) -> Tensor | None:
        return None if self.shape is None else (self.mask > 0).expand(self.out)

    def prepare(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        size = tuple(shape[axis] for axis in size_axes(shape))
        if len(shape) > 1 and shape[0] not in (1, 2):
            raise ValueError(f"{self} takes real samples (1, *size) or complex ones (2, *size), not {shape}")
        mask = self.given
        if mask is None:
            count = max(1, round(math.prod(size) / (self.acceleration or 4)))
            mask = MASKS[str(self.name)](size, count, self.seed).double()
        if tuple(mask.shape) != size:
            raise ValueError(f"a mask of shape {tuple(mask.shape)} does not fit samples of {shape}")
        if self.count is not None:
            self.coils = sensitivities(self.count, size)
        if self.coils is not None and tuple(self.coils.shape[1:]) != size:
            raise ValueError(f"coils of shape {tuple(self.coils.shape)} do not fit samples of {shape}")
        self.mask = mask
        self.dims = tuple(range(-len(size), 0))
        return (2 * (1 if self.coils is None else len(self.coils)), *size)

    def _complex(self, x: Tensor) -> Tensor:
        """Samples, or each coil's measurements, as complex numbers `(B, K, *size)`; K is 1 for samples."""
        assert self.shape is not None
        x = x.double() if x.dtype == torch.float64 else x.float()
        x = x.reshape(len(x), -1, *self.shape[-len(self.dims) :])
        if x.shape[1] == 1:
            return torch.complex(x, torch.zeros_like(x))
        return torch.complex(x[:, ::2], x[:, 1::2])

    def _real(self, z: Tensor) -> Tensor:
        """`(B, 2 K, *size)`: the parts of each."""
        return torch.stack((z.real, z.imag), 2).flatten(1, 2)

    def _transform(self, z: Tensor) -> Tensor:
        return torch.fft.fftshift(torch.fft.fftn(z, dim=self.dims, norm="ortho"), self.dims)

    def _inverse(self, z: Tensor) -> Tensor:
        return torch.fft.ifftn(torch.fft.ifftshift(z, self.dims), dim=self.dims, norm="ortho")

    def _sample(self, z: Tensor) -> Tensor:
        """The sample `(B, *shape)` whose complex form is nearest to z `(B, 1, *size)`."""
        assert self.shape is not None
        two = len(self.shape) > 1 and self.shape[0] == 2
        return (self._real(z) if two else z.real).reshape(-1, *self.shape)

    def act(self, x: Tensor) -> Tensor:
        z = self._complex(x)
        z = z if self.coils is None else z * self.coils.to(z.dtype)
        made = self._real(self._transform(z))
        return (made * self.mask.to(made.dtype)).to(x.dtype)

    def transpose(self, y: Tensor) -> Tensor:
        seen = self._complex(y)
        z = self._inverse(seen * self.mask.to(seen.real.dtype))
        if self.coils is not None:
            z = (z * self.coils.conj().to(z.dtype)).sum(1, keepdim=True)
        return self._sample(z).to(y.dtype)

    def find_spectrum(self) -> Spectrum | None:
        assert self.shape is not None
        if self.coils is not None:
            return super().find_spectrum()
        act = self.act, self.transpose
        if len(self.shape) > 1 and self.shape[0] == 2:
            turn = (
                lambda x: self._real(self._transform(self._complex(x))).flatten(1).to(x.dtype),
                lambda z: self._sample(self._inverse(self._complex(z))).to(z.dtype),
            )
            return Right(self.mask.flatten().repeat(2), turn, act, self.shape, self.out)
        # Of real samples A^T A is a symmetric cyclic convolution: diagonal in Hartley's transform, its own inverse.
        seen = torch.fft.ifftshift(self.mask)
        opposite = seen.flip(self.dims).roll([1] * len(self.dims), self.dims)
        values = ((seen**2 + opposite**2) / 2).sqrt()

        def hartley(x: Tensor) -> Tensor:
            f = torch.fft.fftn(x.double() if x.dtype == torch.float64 else x.float(), dim=self.dims, norm="ortho")
            return (f.real - f.imag).to(x.dtype)

        shape = self.shape
        turn = (lambda x: hartley(x).flatten(1), lambda z: hartley(z.reshape(-1, *shape)))
        return Right(values.flatten(), turn, act, self.shape, self.out)


def sensitivities(count: int, size: tuple[int, ...]) -> Tensor:
    """Smooth complex maps `(K, *size)` of coils on a circle around the last two axes, whose squares sum to 1."""
    turn = 2 * math.pi / count * torch.arange(count, dtype=torch.float64)
    places = (turn.sin(), turn.cos())[-min(2, len(size)) :]
    distance = torch.zeros(count, *[1] * len(size), dtype=torch.float64)
    for axis, place in zip(range(len(size) - len(places), len(size)), places, strict=True):
        grid = torch.linspace(-1, 1, size[axis], dtype=torch.float64).reshape(-1, *[1] * (len(size) - 1 - axis))
        distance = distance + (grid - place.reshape(-1, *[1] * len(size))) ** 2
    near = torch.exp(-distance / 2).expand(count, *size)
    near = near / near.square().sum(0, keepdim=True).sqrt()
    return torch.polar(near, turn.reshape(-1, *[1] * len(size)).expand(count, *size).contiguous())
