"""Processes whose noise level differs from element to element.

The elements of a sample (its frequencies, pixels, channels) fall into bands. Each band is a scalar process, and all
share one clock. How plans are made for them: core/record.py.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from fewstep.core.process import Process, Time


class Bands(Process):
    """A process for samples of one `shape`, whose element i has the noise level of band `index[i]` (row by row).

    A subclass gives `bands`, the scalar processes. For a tensor of times, `()` or `(B,)`, the coefficients are given
    per element: `(1, *shape)` or `(B, *shape)`, float64. For a float, and always for `log_snr` and `time`, one band
    answers for all, the `clock`: timestep rules, draws of noise levels and weights need one noise level per sample.
    """

    shape: tuple[int, ...]
    index: tuple[int, ...]

    @property
    def bands(self) -> tuple[Process, ...]:
        raise NotImplementedError

    @property
    def clock(self) -> Process:
        """The band that answers where a single number is needed: the first."""
        return self.bands[0]

    def _check_index(self) -> None:
        if not self.shape or min(self.shape) < 1 or len(self.index) != math.prod(self.shape):
            raise ValueError(f"an index of {len(self.index)} bands does not fit samples of shape {self.shape}")
        if min(self.index) < 0 or max(self.index) >= len(self.bands):
            raise ValueError(f"the index must name bands 0 to {len(self.bands) - 1}, got {max(self.index)}")

    @cached_property
    def _index_on(self) -> dict[torch.device, Tensor]:
        return {}

    def elements(self, values: Tensor) -> Tensor:
        """Numbers per band, `(..., K)`, spread to the elements, `(..., *shape)`."""
        index = self._index_on.get(values.device)
        if index is None:
            index = self._index_on[values.device] = torch.tensor(self.index, device=values.device)
        return values[..., index].reshape(*values.shape[:-1], *self.shape)

    def _per_band(self, name: str, t: Tensor) -> Tensor:
        """A coefficient of every band at times `(n,)`: `(n, K)`."""
        return torch.stack([getattr(band, name)(t) for band in self.bands], dim=-1)

    def _apply(self, name: str, t: Time) -> Time:
        if not isinstance(t, Tensor) or name in ("_log_snr", "_time"):
            return self.clock._apply(name, t)
        if t.ndim > 1:
            raise ValueError(f"times of a process with bands are one number or (B,), got shape {tuple(t.shape)}")
        return self.elements(self._per_band(name, t.double().reshape(-1)))

    # Those of the clock, for wrappers that place times on the process.
    def _alpha(self, t: Tensor) -> Tensor:
        return self.clock._alpha(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.clock._sigma(t)

    def _dalpha(self, t: Tensor) -> Tensor:
        return self.clock._dalpha(t)

    def _dsigma(self, t: Tensor) -> Tensor:
        return self.clock._dsigma(t)

    def _log_snr(self, t: Tensor) -> Tensor:
        return self.clock._log_snr(t)

    def _time(self, log_snr: Tensor) -> Tensor:
        return self.clock._time(log_snr)
