"""Blur: convolution with a kernel along the axes of a sample's size."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.operators.kernels import KERNELS, kernel_of
from fewstep.operators.operator import LinearOperator, size_axes
from fewstep.operators.spectrum import Cyclic, Spectrum, Symmetric, on_axis

METHODS = (
    Method(
        "blur",
        claim="convolution with a Gaussian, box, disk, line or any kernel, with cyclic or reflecting borders",
        use="Blur",
    ),
)

BORDERS = ("cyclic", "reflect")
EVEN = 1e-12  # by which weights that sum to 1 may differ from their mirror image: the last bits of a kernel's making
CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class Blur(LinearOperator):
    """`y = kernel * x`, of a sample's shape; the kernel's weights are divided by their sum.

    Args:
        kernel: "gaussian", "box", "disk", "motion", or a tensor of as many axes as the sample's size, odd along each,
            its middle on the pixel that it blurs; one of a single axis is taken along every axis. The answer is
            differentiable in a tensor that requires it.
        width: the Gaussian's standard deviation (by default 1), the box's side or the disk's diameter (by default 3),
            in pixels; any positive number.
        length, angle: of "motion", in pixels (whole, by default 5) and degrees from the last axis towards the one
            before it (by default 0).
        border: "cyclic", or "reflect", where the sample goes on as its mirror image, the last pixel twice (the
            symmetry of the cosine transform).

    Raises:
        ValueError: another kernel, border or option; a kernel of an even side or without a positive sum.
    """

    given: Tensor | None
    kernel: Tensor

    def __init__(
        self,
        kernel: str | Tensor = "gaussian",
        width: float | None = None,
        length: int | None = None,
        angle: float | None = None,
        border: str = "cyclic",
    ):
        super().__init__()
        if border not in BORDERS:
            raise suggest("border", border, BORDERS)
        options = {"width": width, "length": length, "angle": angle}
        self.options = {name: value for name, value in options.items() if value is not None}
        self.border = border
        if isinstance(kernel, str):
            if kernel not in KERNELS:
                raise suggest("kernel", kernel, KERNELS)
            self.kind: str | None = kernel
            kernel_of(kernel, 2, **self.options)  # bad options are said at once
            self.register_buffer("given", None, persistent=False)
        else:
            if self.options:
                raise ValueError(f"{next(iter(self.options))} belongs to named kernels, and this one is given")
            self.kind = None
            self.register_buffer("given", checked_kernel(kernel), persistent=False)
        self.register_buffer("kernel", self.given, persistent=False)

    def config(self) -> dict[str, Any]:
        return {"kernel": self.kind or self.given, **self.options, "border": self.border}

    @property
    def learned(self) -> bool:
        """Whether answers are differentiable in the kernel; nothing that depends on it is then kept."""
        return self.given is not None and self.given.requires_grad

    def prepare(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        axes = size_axes(shape)
        kernel = self.given if self.kind is None else kernel_of(self.kind, len(axes), **self.options)
        assert kernel is not None
        if kernel.ndim not in (1, len(axes)):
            raise ValueError(f"a kernel of shape {tuple(kernel.shape)} does not fit samples of shape {shape}")
        if kernel.ndim > 1 and self.border == "reflect" and kernel.ndim not in CONVOLUTIONS:
            raise ValueError(f"a kernel of {kernel.ndim} axes needs the cyclic border")
        self.kernel, self._kept = kernel, False
        if not self.learned:
            self._keep(shape)
        return shape

    def _keep(self, shape: tuple[int, ...]) -> None:
        if self.kernel.ndim == 1:
            for axis in size_axes(shape):
                self.register_buffer(f"matrix_{axis}", self._matrix(shape[axis]), persistent=False)
        elif self.border == "cyclic":
            self.register_buffer("transform", self._transform(shape), persistent=False)
        self._kept = True

    def _weights(self) -> Tensor:
        return self.kernel / self.kernel.sum()

    def _matrix(self, n: int) -> Tensor:
        """Of a kernel along one axis of length n."""
        k = self._weights()
        rows = torch.arange(n, device=k.device)[:, None].expand(n, len(k))
        columns = self._inside(rows - (torch.arange(len(k), device=k.device) - len(k) // 2), n)
        return torch.zeros(n, n, dtype=k.dtype, device=k.device).index_put(
            (rows, columns), k.expand(n, -1), accumulate=True
        )

    def _inside(self, places: Tensor, n: int) -> Tensor:
        """The places of a sample of length n where its continuation has these."""
        if self.border == "cyclic":
            return places % n
        places = places % (2 * n)
        return torch.minimum(places, 2 * n - 1 - places)

    def _transform(self, shape: tuple[int, ...]) -> Tensor:
        """The kernel's Fourier transform, complex `(*size)`, its middle at the origin."""
        size, k = [shape[axis] for axis in size_axes(shape)], self._weights()
        places = [(torch.arange(m, device=k.device) - m // 2) % n for m, n in zip(k.shape, size, strict=True)]
        wrapped = torch.zeros(size, dtype=k.dtype, device=k.device).index_put(
            tuple(torch.meshgrid(places, indexing="ij")), k, accumulate=True
        )
        return torch.fft.fftn(wrapped)

    def act(self, x: Tensor) -> Tensor:
        axes, shape = size_axes(x.shape[1:]), tuple(x.shape[1:])
        if self.kernel.ndim == 1:
            for axis in axes:
                x = on_axis(x, getattr(self, f"matrix_{axis}") if self._kept else self._matrix(shape[axis]), axis)
            return x
        return self._filtered(x, False) if self.border == "cyclic" else self._mirrored(x)

    def transpose(self, y: Tensor) -> Tensor:
        if self.kernel.ndim > 1:
            return self._filtered(y, True) if self.border == "cyclic" else super().transpose(y)
        for axis in size_axes(y.shape[1:]):
            matrix = getattr(self, f"matrix_{axis}") if self._kept else self._matrix(y.shape[axis + 1])
            y = on_axis(y, matrix.mT, axis)
        return y

    def _filtered(self, x: Tensor, transposed: bool) -> Tensor:
        transform: Tensor = self.transform if self._kept else self._transform(tuple(x.shape[1:]))  # type: ignore[assignment]
        dims = tuple(range(-transform.ndim, 0))
        f = torch.fft.fftn(x if x.dtype == torch.float64 else x.float(), dim=dims)
        return torch.fft.ifftn(f * (transform.conj() if transposed else transform).to(f.dtype), dim=dims).real.to(x)

    def _mirrored(self, x: Tensor) -> Tensor:
        k, whole = self._weights().to(x.dtype), x.shape
        for axis, side in zip(size_axes(x.shape[1:]), k.shape, strict=True):
            n = x.shape[axis + 1]
            x = x.index_select(axis + 1, self._inside(torch.arange(-(side // 2), n + side // 2, device=x.device), n))
        wide = x.reshape(-1, 1, *x.shape[-k.ndim :])
        return CONVOLUTIONS[k.ndim](wide, k.flip(*range(k.ndim))[None, None]).reshape(whole)

    def along(self) -> tuple[Tensor | None, ...] | None:
        assert self.shape is not None
        if self.kernel.ndim > 1:
            return None
        axes = size_axes(self.shape)
        return tuple(self._matrix(n).detach() if axis in axes else None for axis, n in enumerate(self.shape))

    def find_spectrum(self) -> Spectrum | None:
        assert self.shape is not None
        if self.border == "cyclic" and self.kernel.ndim == len(size_axes(self.shape)):
            return Cyclic(self._transform(self.shape).detach(), self.shape)
        k = self._weights().detach()
        if k.ndim > 1 and all(torch.allclose(k, k.flip(axis), rtol=0, atol=EVEN) for axis in range(k.ndim)):
            return Symmetric(self._frequencies(self.shape), self.shape)
        return super().find_spectrum()

    def _frequencies(self, shape: tuple[int, ...]) -> Tensor:
        """The eigenvalue of each cosine `(*size)` under a reflecting border, of a kernel that is its mirror image."""
        found = self._weights().detach()
        for axis in size_axes(shape):
            n, side = shape[axis], found.shape[0]
            steps = torch.arange(side, dtype=found.dtype, device=found.device) - side // 2
            waves = torch.cos(math.pi / n * torch.arange(n, dtype=found.dtype, device=found.device)[:, None] * steps)
            found = torch.tensordot(found, waves, dims=([0], [1]))  # the axis is done, and goes to the end
        return found


def checked_kernel(kernel: Tensor) -> Tensor:
    """A kernel that was given, in float64; `ValueError` for one without a middle or a positive sum."""
    kernel = torch.as_tensor(kernel).double()
    if kernel.ndim < 1 or any(side % 2 == 0 for side in kernel.shape):
        raise ValueError(
            f"a kernel has odd sides, so that its middle is an element, got shape {tuple(kernel.shape)}: pad it"
        )
    total = float(kernel.detach().sum())
    if not (math.isfinite(total) and total > 0):
        raise ValueError(f"a kernel's weights must sum to something positive, got {total:g}")
    return kernel
