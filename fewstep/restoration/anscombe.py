"""The generalised Anscombe transform, which makes counted noise Gaussian of variance one, and its unbiased inverse."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewstep.operators.noise import Poisson, PoissonGaussian

NODES = 24  # of the quadrature over the noise of reading
STEPS = 4096  # of the inverse's table
MARGIN = 1.5  # how far it goes beyond the light that is asked for


class Anscombe:
    """`f(y) = 2 / gain sqrt(gain (y - low) + 3/8 gain^2 + read^2)` of `y = low + gain k + read z`, 0 below.

    The algebraic inverse of a mean of f is too dark, for f bends. `inverse` is the exact one (Makitalo and Foi,
    "Optimal Inversion of the Generalized Anscombe Transformation for Poisson-Gaussian Noise", 2013): the clean value
    whose mean of f it is, from a table of `E f(y)`, sums over all counts and a quadrature over z.

    most: the largest clean value that is expected.
    """

    def __init__(self, law: Poisson | PoissonGaussian, most: float):
        self.gain = 1 / law.peak if isinstance(law, Poisson) else law.gain
        self.read, self.low = 0.0 if isinstance(law, Poisson) else law.read, law.low
        if not most > self.low:
            raise ValueError(f"the largest clean value lies above darkness, {self.low:g}, got {most:g}")
        end = MARGIN * (most - self.low) / self.gain
        # Even steps of the root of the count, in which the table is nearly straight.
        self.counts = torch.linspace(0, math.sqrt(end), STEPS, dtype=torch.float64).square()
        self.means = self._means(self.counts)

    def __call__(self, y: Tensor) -> Tensor:
        """`f(y)`."""
        inside = self.gain * (y - self.low) + 0.375 * self.gain**2 + self.read**2
        return 2 / self.gain * inside.clamp_min(0).sqrt()

    def mean(self, clean: Tensor) -> Tensor:
        """`E f(y)` of clean values."""
        return self._means(((clean.double() - self.low) / self.gain).flatten()).reshape(clean.shape)

    def inverse(self, value: Tensor) -> Tensor:
        """The clean values of which these are means of f; darkness for what lies below its mean."""
        f = value.double().clamp(float(self.means[0]), float(self.means[-1])).contiguous()
        means = self.means.to(f.device)
        right = torch.searchsorted(means, f).clamp(1, len(means) - 1)
        share = (f - means[right - 1]) / (means[right] - means[right - 1])
        roots = self.counts.sqrt().to(f.device)
        root = roots[right - 1] + share * (roots[right] - roots[right - 1])
        return (self.low + self.gain * root.square()).to(value.dtype)

    def _means(self, counts: Tensor) -> Tensor:
        """`E f` `(n,)` of mean counts."""
        last = float(counts.max())
        k = torch.arange(math.ceil(last + 12 * math.sqrt(last + 1) + 24), dtype=torch.float64)
        nodes, weights = _hermite(NODES if self.read else 1)
        inner = (self(self.low + self.gain * k[:, None] + self.read * nodes) * weights).sum(1)
        found = []
        for mean in counts.split(512):
            logs = k * mean.clamp_min(1e-300).log()[:, None] - mean[:, None] - torch.lgamma(k + 1)
            found.append(logs.exp() @ inner)
        return torch.cat(found)


def _hermite(count: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss and Hermite for a standard normal, by the eigenvalues of its recurrence."""
    off = torch.arange(1, count, dtype=torch.float64).sqrt()
    values, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return values, vectors[0].square()
