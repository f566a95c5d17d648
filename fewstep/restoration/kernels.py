"""A family of operators: cyclic blurs whose kernel is not known, each sample with its own."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.operators.blur import Blur
from fewstep.operators.operator import Operator, size_axes
from fewstep.operators.spectrum import LEAST


class Kernels:
    """`A(phi) x`, x blurred cyclically by the taps phi `(B, K)`, of which `guess` `(K,)` are those of a blur.

    Raises:
        ValueError: an operator that is no cyclic blur with a kernel of as many axes as the sample's size.
    """

    def __init__(self, operator: Operator):
        axes = size_axes(operator.shape or ())
        if not isinstance(operator, Blur) or operator.border != "cyclic" or operator.kernel.ndim != len(axes):
            raise ValueError(
                "unknown kernels start from a cyclic Blur(kernel), the first guess, whose kernel has as many axes as"
                f" the sample's size; got {operator}"
            )
        kernel = (operator.kernel / operator.kernel.sum()).detach()
        self.guess, self.taps, self.dims = kernel.flatten(), tuple(kernel.shape), tuple(range(-len(axes), 0))
        self.size = [(operator.shape or ())[axis] for axis in axes]
        places = [(torch.arange(m) - m // 2) % n for m, n in zip(self.taps, self.size, strict=True)]
        self.places = torch.meshgrid(*places, indexing="ij")

    def response(self, phi: Tensor) -> Tensor:
        """The factor of each frequency, complex `(B, *size)`."""
        wrapped = phi.new_zeros(len(phi), *self.size)
        rows = torch.arange(len(phi), device=phi.device).reshape(-1, *[1] * len(self.taps))
        places = tuple(place.to(phi.device).expand(len(phi), *self.taps) for place in self.places)
        wrapped = wrapped.index_put((rows.expand(len(phi), *self.taps), *places), phi.reshape(-1, *self.taps), True)
        return torch.fft.fftn(wrapped, dim=self.dims)

    def into(self, x: Tensor) -> Tensor:
        """Frequencies `(B, ..., *size)`, in which white noise keeps its variance."""
        return torch.fft.fftn(x, dim=self.dims, norm="ortho")

    def back(self, z: Tensor) -> Tensor:
        return torch.fft.ifftn(z, dim=self.dims, norm="ortho").real

    def _beside(self, response: Tensor, x: Tensor) -> Tensor:
        """With axes for what the sample has beside its size, such as colours."""
        return response.reshape(len(response), *[1] * (x.ndim - response.ndim), *response.shape[1:])

    def apply(self, phi: Tensor, x: Tensor) -> Tensor:
        """`A(phi) x` `(B, *shape)`."""
        return self.back(self.into(x) * self._beside(self.response(phi), x)).to(x.dtype)

    def columns(self, x: Tensor) -> Tensor:
        """`(B, m, K)`: what each tap makes of samples, so that `A(phi) x = columns(x) phi`."""
        unit = torch.eye(len(self.guess), dtype=x.dtype, device=x.device)
        return torch.stack([self.apply(row.expand(len(x), -1), x).flatten(1) for row in unit], -1)

    def measured(self, phi: Tensor, y: Tensor, std: float) -> tuple[Tensor, Tensor, Tensor]:
        """Of each frequency what y says of x, complex, its deviation, and whether it says anything.

        (`A(phi)` multiplies it by a number; the frequencies are the singular vectors, with a phase of y's own.)
        """
        response = self._beside(self.response(phi), y)
        values = response.abs()
        seen = values > LEAST * values.flatten(1).amax(1).reshape(-1, *[1] * (y.ndim - 1))
        told = torch.where(seen, self.into(y) / torch.where(seen, response, 1.0), 0.0)
        return told, std / torch.where(seen, values, 1.0) * seen, seen
