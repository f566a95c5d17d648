"""Processes between data and a picture `y`, `x_t = a(t) x0 + b(t) y + c(t) eps`, in coordinates that make them simple.

With `u = (x - shift y) / scale` and the data counted from `centre y`, `u0 = x0 - centre y`,

    u = alpha u0 + sigma eps,    a = scale alpha,    b = shift - centre a,    c = scale sigma,

so a bridge is a Gaussian process in u, and every solver serves it: it runs in u, and only the network sees x. Two
families are enough. Residual processes (a + b = 1) have `centre = shift = 1`: `x - y = a (x0 - y) + c eps`. The others
keep the data as they are, `centre = 0`, and `shift = b`. The scale is 1 unless the bridge is pinned, that is, ends in y
exactly: then a and c vanish together, and the scale with them, while alpha goes to 0 and sigma to 1.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.core.prediction import expand
from fewstep.core.process import Process, Time


class Bridge(Process):
    """A process from data to a picture; base of the concrete ones. See the module.

    `modulated` says that the noise of a pair is `(x0 - y) eps` elementwise.
    """

    centre: ClassVar[int] = 1
    modulated: ClassVar[bool] = False

    def _scale(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _shift(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def scale(self, t: Time) -> Time:
        """What u is multiplied by in `x = scale u + shift y`; 0 where the bridge is pinned to y."""
        return self._apply("_scale", t)

    def shift(self, t: Time) -> Time:
        """What y is multiplied by in `x = scale u + shift y`."""
        return self._apply("_shift", t)

    def a(self, t: Time) -> Time:
        """The coefficient of x0 in `x_t = a x0 + b y + c eps`."""
        return self.scale(t) * self.alpha(t)

    def b(self, t: Time) -> Time:
        """The coefficient of y."""
        return self.shift(t) - self.centre * self.a(t)

    def c(self, t: Time) -> Time:
        """The coefficient of eps."""
        return self.scale(t) * self.sigma(t)

    def state(self, u: Tensor, y: Tensor, t: Tensor) -> Tensor:
        """x from u, `(B, *shape)` both, at times t, a scalar or `(B,)`."""
        return torch.addcmul(expand(self.scale(t), u) * u, expand(self.shift(t), u), y)

    def coordinates(self, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        """u from x, the inverse of `state`; infinite where the scale is 0."""
        return (x - expand(self.shift(t), x) * y) / expand(self.scale(t), x)


class Pinned(Bridge):
    """A diffusion conditioned on its end: `x_T = y` (Doob's h-transform).

    A diffusion `alpha_s x0 + sigma_s eps` with `SNR = alpha_s^2 / sigma_s^2`, conditioned on its end at s = T, has at s

        a = alpha_s (1 - R),   c = sigma_s sqrt(1 - R),   R = SNR_T / SNR_s.

    So its own SNR, `a^2 / c^2 = SNR_s - SNR_T`, depends on the diffusion through SNR_T alone once R is the clock. Here
    `R = sin^2(pi t / 2)`, t from 0 to 1, and `scale = sqrt(a^2 + c^2)`: with `k = SNR_T^(-1/2)`,

        sigma / alpha = k tan(pi t / 2),   alpha^2 + sigma^2 = 1,

    for every diffusion, with finite slopes at both ends. In the time s of the diffusion `sigma / alpha` would leave T
    with an infinite slope.
    """

    t_min: float
    t_max = 1.0
    t_zero = 0.0

    @property
    def k(self) -> float:
        """`sigma_T / alpha_T` of the diffusion."""
        raise NotImplementedError

    def _signal(self, sine: Tensor) -> Tensor:
        """alpha of the diffusion where its `sigma / alpha` is `k sine`."""
        raise NotImplementedError

    def _angle(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """sine and cosine of `pi t / 2`, exact at both ends, and `cos^2 + k^2 sin^2`."""
        sine, cosine = torch.sin(0.5 * math.pi * t), torch.sin(0.5 * math.pi * (1 - t))
        return sine, cosine, cosine**2 + (self.k * sine) ** 2

    def _alpha(self, t: Tensor) -> Tensor:
        _, cosine, square = self._angle(t)
        return cosine / square.sqrt()

    def _sigma(self, t: Tensor) -> Tensor:
        sine, _, square = self._angle(t)
        return self.k * sine / square.sqrt()

    def _dalpha(self, t: Tensor) -> Tensor:
        sine, _, square = self._angle(t)
        return -0.5 * math.pi * self.k**2 * sine / square**1.5

    def _dsigma(self, t: Tensor) -> Tensor:
        _, cosine, square = self._angle(t)
        return 0.5 * math.pi * self.k * cosine / square**1.5

    def _log_snr(self, t: Tensor) -> Tensor:
        sine, cosine, _ = self._angle(t)
        return cosine.log() - sine.log() - math.log(self.k)

    def _time(self, log_snr: Tensor) -> Tensor:
        return torch.atan((-log_snr - math.log(self.k)).exp()) * (2 / math.pi)

    def _scale(self, t: Tensor) -> Tensor:
        sine, cosine, square = self._angle(t)
        return self._signal(sine) * cosine * square.sqrt()
