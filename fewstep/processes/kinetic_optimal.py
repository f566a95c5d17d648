"""Kinetic-optimal paths: the Gaussian process along which the data's own flow has the least kinetic energy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.noise import Noise
from fewstep.core.process import Process

METHODS = (
    Method(
        "kinetic-optimal",
        paper="On Kinetic Optimal Probability Paths for Generative Models (Shaul et al., 2023)",
        arxiv="2306.06626",
        claim="the path of least kinetic energy for given data; the straight line where they are well separated",
        use="KineticOptimal",
    ),
)

LEAST_SPEED = 1e-3  # Gaussian data have speed 0, which leaves the noise levels open


@dataclass(frozen=True)
class KineticOptimal(Process):
    """The solution for data of root mean square `rms` and the speeds `w` of `separation`.

    With `m = rms^2`, `q = sqrt(sigma^2 + m alpha^2)` and the angle `psi = atan(sigma / (rms alpha))`, 0 at the data
    and pi/2 at the noise, the energy of the marginal velocity, a value, is

        E|v|^2 / N = q'^2 + q^2 w(psi)^2 psi'^2,  w^2 = 1 - mmse / lmmse,

    where mmse is the squared error of E[x0 | x] and lmmse that of the best multiple of x (`m sin(psi)^2`). In the
    angle `chi = integral of w d(psi)` these are polar coordinates of a plane, so the Euler-Lagrange equation is solved
    by a straight line, from the data (length rms, angle 0) to the noise (length 1, angle chi(pi/2)). The paper's
    lambda(SNR) is `1 - mmse / m`. Where it is 1, w is 1 and the path is the rectified flow.

    speeds: w at equal steps of psi from 0 to pi/2, each in (0, 1], at least two; straight between. So alpha and sigma
    have continuous derivatives, and everything is in closed form.
    """

    name = "kinetic-optimal"
    speeds: tuple[float, ...] = field(default=(1.0, 1.0), repr=False)
    rms: float = 1.0
    t_min: float = 1e-3
    t_max = 1.0
    t_zero = 0.0

    def __post_init__(self) -> None:
        if len(self.speeds) < 2 or not all(0 < w <= 1 for w in self.speeds):
            raise ValueError("a kinetic-optimal path needs at least two speeds, each above 0 and at most 1")
        if not 0 < self.rms < math.inf or not 0 < self.t_min < 1:
            raise ValueError(f"it needs a positive rms and t_min between 0 and 1, got {self.rms} and {self.t_min}")

    @classmethod
    def of(
        cls, model: Denoiser, data: Tensor, nodes: int = 33, draws: int = 4, seed: int = 0, t_min: float = 1e-3
    ) -> KineticOptimal:
        """The path of the data (n, *shape) that `model` denoises, under whatever process; see `separation`."""
        speeds, rms = separation(model, data, nodes, draws, seed)
        return cls(tuple(speeds.clamp(LEAST_SPEED, 1.0).tolist()), rms, t_min)

    @cached_property
    def _sides(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Speeds and angles chi at the nodes, counted from the data and counted from the noise."""
        w = torch.tensor(self.speeds, dtype=torch.float64)
        return (w, self._sums(w)), (w.flip(0), self._sums(w.flip(0)))

    @property
    def _step(self) -> float:
        return 0.5 * math.pi / (len(self.speeds) - 1)

    def _sums(self, w: Tensor) -> Tensor:
        return torch.cat((w.new_zeros(1), (0.5 * self._step * (w[1:] + w[:-1])).cumsum(0)))

    @property
    def _angle(self) -> float:
        return float(self._sides[0][1][-1])

    def _cell(self, side: int, at: Tensor, of_psi: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The nodes' psi, chi and w below `at` (a psi or a chi), and the slope of w above them."""
        w, chi = (table.to(at.device) for table in self._sides[side])
        last = len(w) - 2
        if of_psi:
            i = (at.detach() / self._step).floor().long().clamp(0, last)
        else:
            i = (torch.searchsorted(chi, at.detach().contiguous(), right=True) - 1).clamp(0, last)
        return i.double() * self._step, chi[i], w[i], (w[i + 1] - w[i]) / self._step

    def _psi(self, side: int, chi: Tensor) -> tuple[Tensor, Tensor]:
        """psi and w at chi, from one side."""
        psi, low, w, slope = self._cell(side, chi, of_psi=False)
        over = (chi - low).clamp_min(0.0)
        speed = (w**2 + 2 * slope * over).clamp_min(1e-300).sqrt()
        return psi + 2 * over / (w + speed), speed

    def _chi(self, side: int, psi: Tensor) -> Tensor:
        start, low, w, slope = self._cell(side, psi, of_psi=True)
        over = psi - start
        return low + over * (w + 0.5 * slope * over)

    def _polar(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, sin(psi), cos(psi) and w at t. Each angle is found from the nearer end, where it keeps its digits."""
        rise, run = math.sin(self._angle), math.cos(self._angle)
        q = ((1 - t) ** 2 * self.rms**2 + t**2 + 2 * t * (1 - t) * self.rms * run).sqrt()
        near, w = self._psi(0, torch.atan2(t * rise, (1 - t) * self.rms + t * run))
        far, w_far = self._psi(1, torch.atan2((1 - t) * self.rms * rise, t + (1 - t) * self.rms * run))
        first = near < 0.25 * math.pi
        sine = torch.where(first, torch.sin(near), torch.cos(far))
        return q, sine, torch.where(first, torch.cos(near), torch.sin(far)), torch.where(first, w, w_far)

    def _slopes(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """q, its derivative, sin(psi), cos(psi) and psi': on a straight line q^2 chi' is constant."""
        rise, run = math.sin(self._angle), math.cos(self._angle)
        q, sine, cosine, w = self._polar(t)
        dq = (t - (1 - t) * self.rms**2 + (1 - 2 * t) * self.rms * run) / q
        return q, dq, sine, cosine, self.rms * rise / (q**2 * w)

    def _alpha(self, t: Tensor) -> Tensor:
        q, _, cosine, _ = self._polar(t)
        return q * cosine / self.rms

    def _sigma(self, t: Tensor) -> Tensor:
        q, sine, _, _ = self._polar(t)
        return q * sine

    def _log_snr(self, t: Tensor) -> Tensor:
        _, sine, cosine, _ = self._polar(t)
        return cosine.log() - sine.log() - math.log(self.rms)

    def _dalpha(self, t: Tensor) -> Tensor:
        q, dq, sine, cosine, dpsi = self._slopes(t)
        return (dq * cosine - q * sine * dpsi) / self.rms

    def _dsigma(self, t: Tensor) -> Tensor:
        q, dq, sine, cosine, dpsi = self._slopes(t)
        return dq * sine + q * cosine * dpsi

    def _time(self, log_snr: Tensor) -> Tensor:
        # The ray at angle chi meets the line between the ends in proportions given by the law of sines.
        ratio = log_snr + math.log(self.rms)
        near, far = torch.atan((-ratio).exp()), torch.atan(ratio.exp())
        first = ratio > 0
        from_data, from_noise = self._chi(0, near), self._chi(1, far)
        a = torch.sin(torch.where(first, from_data, self._angle - from_noise)) * self.rms
        b = torch.sin(torch.where(first, self._angle - from_data, from_noise))
        return a / (a + b)


@torch.no_grad()
def separation(model: Denoiser, data: Tensor, nodes: int = 33, draws: int = 4, seed: int = 0) -> tuple[Tensor, float]:
    """How much better E[x0 | x] is than the best multiple of x: `w = sqrt(1 - mmse / lmmse)`, (nodes,) float64, at
    equal steps of the angle from 0 (the data) to pi/2 (the noise); and the data's root mean square.

    E[x0 | x] is orthogonal to its own error, so `lmmse - mmse` is the mean square of its difference from the best
    multiple of x, which is what is measured: it cannot come out negative, and its noise is small where w is.

    `lambda = 1 - (1 - w^2) sin(psi)^2` is the paper's data separation. The means are over the data (n, *shape),
    each with `draws` noises: w is as smooth as they are many. The two ends, where nothing is left to estimate, take
    their neighbours' values. No condition is given to the model.
    """
    if nodes < 4 or draws < 1 or len(data) < 1:
        raise ValueError(f"it takes at least 4 nodes, one draw and one sample, got {nodes}, {draws} and {len(data)}")
    process = model.process
    rms = float(data.double().square().mean().sqrt())
    if not 0 < rms < math.inf:
        raise ValueError(f"the data's root mean square must be positive, got {rms}")
    low, high = process.t_min, process.t_max
    values = []
    for psi in np.linspace(0, 0.5 * math.pi, nodes)[1:-1]:
        t = min(max(process.time(-math.log(rms * math.tan(psi))), low), high)  # a process may not reach so far
        alpha, sigma = process.alpha(t), process.sigma(t)
        square, gained = sigma**2 + (alpha * rms) ** 2, 0.0
        for draw in range(draws):
            eps = Noise(seed).normal(draw, tuple(data.shape), data.device, data.dtype)
            x = alpha * data + sigma * eps
            gain = model(x, torch.tensor(t, dtype=torch.float64)).x0.double() - alpha * rms**2 / square * x.double()
            gained += float(gain.square().mean()) / draws
        values.append(min(math.sqrt(gained * square) / (rms * sigma), 1.0))
    return torch.tensor([values[0], *values, values[-1]], dtype=torch.float64), rms


def energy(process: Process, speeds: Sequence[float] | Tensor, rms: float, points: int = 4096) -> float:
    """The mean of `E|v|^2 / N` over the process's clock from `t_min` to `t_max`, brought to unit length, for data of
    `rms` with the speeds of `separation`."""
    low, high = process.t_min, process.t_max
    nodes, weights = np.polynomial.legendre.leggauss(64)
    edges = np.linspace(0, 1, points // 64 + 1) ** 2  # finer towards the data, where sigma' may grow without bound
    t = np.concatenate([a + (b - a) * 0.5 * (nodes + 1) for a, b in zip(edges, edges[1:], strict=False)])
    w = np.concatenate([0.5 * (b - a) * weights for a, b in zip(edges, edges[1:], strict=False)])
    time = torch.from_numpy(low + (high - low) * t)
    alpha, sigma = process.alpha(time), process.sigma(time)
    dalpha, dsigma = (high - low) * process.dalpha(time), (high - low) * process.dsigma(time)
    m = rms**2
    square = sigma**2 + m * alpha**2
    table = torch.as_tensor(speeds, dtype=torch.float64)
    psi = torch.atan2(sigma, rms * alpha)
    speed = torch.from_numpy(np.interp(psi.numpy(), np.linspace(0, 0.5 * math.pi, len(table)), table.numpy()))
    radial = (sigma * dsigma + m * alpha * dalpha) ** 2 / square
    angular = speed**2 * m * (alpha * dsigma - sigma * dalpha) ** 2 / square  # q^2 psi'^2 w^2
    return float(((radial + angular) * torch.from_numpy(w)).sum())
