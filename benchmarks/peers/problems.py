"""The exact problem that every library is given: a Gaussian mixture, five paths, and their exact trajectories.

The data are a mixture, so E[x0 | x_t] and E[eps | x_t] are known in closed form for every pair (alpha, sigma) of
x_t = alpha x0 + sigma eps. All paths share one probability-flow ODE: in the angle phi = atan2(sigma, alpha), with
u = x_t / sqrt(alpha^2 + sigma^2),

    du/dphi = -sin(phi) E[x0 | x_t] + cos(phi) E[eps | x_t],

regular on the whole of [0, pi/2] (pi/2 is pure noise, 0 is data). So one trajectory from each noise gives the exact
state at the first noise level of every path and solver, and one exact end point. Nothing here uses any of the
libraries compared.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

F64 = torch.float64
PATHS = ("vp_linear", "vp_cont", "cosine", "edm", "rf")
TABLE_STEPS = 1000
COSINE_START = 5.1  # log(sigma/alpha) at which the cosine table is started, as is usual for it


class Mixture:
    """Eight components in two dimensions, anisotropic and rotated; standard deviations 0.04 to 0.2, the data's 0.5."""

    def __init__(self, components: int = 8, size: int = 2, seed: int = 20240501):
        k, d = components, size
        g = torch.Generator().manual_seed(seed)
        self.means = 0.5 * torch.randn(k, d, generator=g, dtype=F64)
        self.variances = (0.04 * 5 ** torch.rand(k, d, generator=g, dtype=F64)) ** 2
        weights = 0.5 + torch.rand(k, generator=g, dtype=F64)
        self.weights = weights / weights.sum()
        q, r = torch.linalg.qr(torch.randn(k, d, d, generator=g, dtype=F64))
        self.bases = q * torch.sign(torch.diagonal(r, dim1=1, dim2=2))[:, None, :]
        self.components, self.size = k, d
        self.log_weights = self.weights.log()
        self.centres = torch.einsum("kde,kd->ke", self.bases, self.means)
        self.basis = self.bases.permute(1, 0, 2).reshape(d, k * d).contiguous()  # x @ basis is U_k^T x for every k
        self.back = self.basis.t().contiguous()

    def _parts(self, x: Tensor, a: float, s: float) -> tuple[Tensor, Tensor, Tensor]:
        y = torch.addmm(self.centres.reshape(-1) * -a, x, self.basis).view(len(x), self.components, self.size)
        inverse = 1.0 / (self.variances * (a * a) + s * s)
        q = torch.bmm(y.square().transpose(0, 1), inverse[:, :, None])[:, :, 0].t()
        shares = torch.softmax((self.log_weights + 0.5 * inverse.log().sum(-1)) - 0.5 * q, dim=-1)[..., None]
        return y, inverse, shares

    def x0(self, x: Tensor, a: float, s: float) -> Tensor:
        """E[x0 | x_t = x] `(B, size)`, finite at a = 0 and at s = 0."""
        y, inverse, shares = self._parts(x, a, s)
        return torch.addcmul(self.centres, self.variances * inverse * a, y).mul_(shares).view(len(x), -1) @ self.back

    def eps(self, x: Tensor, a: float, s: float) -> Tensor:
        """E[eps | x_t = x] `(B, size)`, with no cancellation at small s."""
        y, inverse, shares = self._parts(x, a, s)
        return (y * (inverse * s)).mul_(shares).view(len(x), -1) @ self.back

    def both(self, x: Tensor, a: float, s: float) -> tuple[Tensor, Tensor]:
        """E[x0 | x] and E[eps | x]."""
        y, inverse, shares = self._parts(x, a, s)
        x0 = torch.addcmul(self.centres, self.variances * inverse * a, y).mul_(shares).view(len(x), -1)
        eps = (y * (inverse * s)).mul_(shares).view(len(x), -1)
        out = torch.cat([x0, eps]) @ self.back
        return out[: len(x)], out[len(x) :]

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        e = torch.randn(n, self.size, generator=generator, dtype=F64)
        return self.means[k] + torch.einsum("nde,ne->nd", self.bases[k], self.variances[k].sqrt() * e)


@functools.cache
def table_ratios(path: str) -> np.ndarray:
    """sigma/alpha at the 1000 steps of a DDPM network, ascending, from a product in float32 as networks have it."""
    if path == "vp_linear":
        betas = torch.linspace(1e-4, 0.02, TABLE_STEPS, dtype=torch.float32)
    else:

        def kept(t: float) -> float:
            return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

        steps = [min(1 - kept((i + 1) / TABLE_STEPS) / kept(i / TABLE_STEPS), 0.999) for i in range(TABLE_STEPS)]
        betas = torch.tensor(steps, dtype=torch.float32)
    alphas_cumprod = torch.cumprod(1 - betas, 0).double()
    return (((1 - alphas_cumprod) / alphas_cumprod) ** 0.5).numpy()


class Path:
    """A path's smallest and largest noise ratio r = sigma/alpha, its scaling, and r over its own time u in [0, 1]."""

    def __init__(self, name: str):
        self.name = name
        if name in ("vp_linear", "cosine"):
            table = table_ratios(name)
            self.steps, self.log_table = np.arange(TABLE_STEPS), np.log(table)
            self.scaling, self.u_max = "vp", 1.0
            self.r_min, self.r_max = float(table[0]), float(table[-1])
            if name == "cosine":
                self.u_max = float(np.interp(COSINE_START, self.log_table, self.steps)) / (TABLE_STEPS - 1)
                self.r_max = math.exp(COSINE_START)
        elif name == "vp_cont":  # beta(t) = 0.1 + 19.9 t, t in [1e-4, 1]
            self.scaling = "vp"
            self.r_min, self.r_max = self.ratio(0.0), self.ratio(1.0)
        elif name == "edm":
            self.scaling, self.r_min, self.r_max = "ve", 0.002, 80.0
        elif name == "rf":  # the two ratios are for solvers that cannot touch t = 0 and t = 1
            self.scaling, self.r_min, self.r_max = "rf", 1e-3 / 0.999, 999.0
        else:
            raise ValueError(f"unknown path {name!r}; there are: {', '.join(PATHS)}")

    def ratio(self, u: float) -> float:
        """The noise ratio at the path's own time u, 1 the noise."""
        if self.name in ("vp_linear", "cosine"):
            return self.table_ratio(u * self.u_max * (TABLE_STEPS - 1))
        if self.name == "vp_cont":
            t = 1e-4 + (1 - 1e-4) * u
            return math.sqrt(math.expm1(19.9 * t * t / 2 + 0.1 * t))
        if self.name == "edm":  # time is sigma itself
            return self.r_min + (self.r_max - self.r_min) * u
        t = 1e-3 + (0.999 - 1e-3) * u
        return t / (1 - t)

    def table_ratio(self, t: float) -> float:
        """The noise ratio at a DDPM timestep, log-linear between the table's steps."""
        return float(np.exp(np.interp(float(t), self.steps, self.log_table)))

    def scales(self, r: float) -> tuple[float, float]:
        """(alpha, sigma) in the path's own scaling."""
        if self.scaling == "vp":
            a = 1 / math.sqrt(1 + r * r)
            return a, r * a
        if self.scaling == "ve":
            return 1.0, r
        return 1 / (1 + r), r / (1 + r)

    def grid(self, kind: str, n: int, zero: bool = False) -> np.ndarray:
        """`n + 1` decreasing noise ratios; with `zero` the last is 0 and the one before it the smallest."""
        m = n - 1 if zero else n
        ramp = np.linspace(1, 0, m + 1) if m > 0 else np.array([1.0])
        low, high = self.r_min, self.r_max
        if kind == "time":
            r = np.array([self.ratio(u) for u in ramp])
        elif kind == "logsnr":
            r = np.exp(math.log(low) + ramp * (math.log(high) - math.log(low)))
        elif kind == "karras":
            r = (low ** (1 / 7) + ramp * (high ** (1 / 7) - low ** (1 / 7))) ** 7
        elif kind == "shift3":  # rectified flow with a time shift of 3
            t = 1e-3 + (0.999 - 1e-3) * ramp
            t = 3 * t / (1 + 2 * t)
            r = t / (1 - t)
        else:
            raise ValueError(f"unknown grid {kind!r}")
        return np.append(r, 0.0) if zero else r

    def grids(self) -> list[str]:
        """The grids on which solvers without a schedule of their own are run."""
        own = [] if self.name == "edm" else ["time"]
        return ["karras", "logsnr", *own] + (["shift3"] if self.name == "rf" else [])


class Reference:
    """Exact trajectories from fixed noises: DOP853 at a relative tolerance of 1e-11."""

    def __init__(self, target: Mixture, n: int, seed: int = 7):
        self.target = target
        self.noise = torch.randn(n, target.size, generator=torch.Generator().manual_seed(seed), dtype=F64)
        paths = [Path(name) for name in PATHS]
        ratios = {r for p in paths for r in (p.r_max, p.r_min)} | {0.0, 1000.0, float(table_ratios("cosine")[-1])}
        ordered = sorted(ratios, reverse=True)
        states = self._follow(self.noise, math.pi / 2, [math.atan(r) for r in ordered])
        self.states = dict(zip(ordered, states, strict=True))
        self.x0 = self.states[0.0]
        few = min(16, n)
        (tight,) = self._follow(self.noise[:few], math.pi / 2, [0.0], 3e-14, 1e-16)
        self.check = float(((self.x0[:few] - tight).norm(dim=1) / tight.norm(dim=1)).max())

    def _follow(
        self, start: Tensor, angle: float, angles: list[float], rtol: float = 1e-11, atol: float = 1e-13
    ) -> list[Tensor]:
        """The exact states at decreasing angles, from `start` at `angle`."""
        from scipy.integrate import solve_ivp

        def slope(phi: float, y: np.ndarray) -> np.ndarray:
            x0, eps = self.target.both(torch.from_numpy(y).view(start.shape), math.cos(phi), math.sin(phi))
            return (-math.sin(phi) * x0 + math.cos(phi) * eps).reshape(-1).numpy()

        out, y = [], start.reshape(-1).numpy()
        for q in angles:
            if q != angle:
                y = solve_ivp(slope, (angle, q), y, method="DOP853", rtol=rtol, atol=atol, t_eval=[q]).y[:, -1]
                angle = q
            out.append(torch.from_numpy(y.copy()).view(start.shape))
        return out

    def unit(self, r: float) -> Tensor:
        """The exact x / sqrt(alpha^2 + sigma^2) at noise ratio r."""
        for known, state in self.states.items():
            if abs(known - r) <= 1e-12 * max(known, 1e-30):
                return state
        above = min((q for q in self.states if q > r), default=None)
        start, angle = (self.noise, math.pi / 2) if above is None else (self.states[above], math.atan(above))
        (state,) = self._follow(start, angle, [math.atan(r)])
        self.states[r] = state
        return state


class Problem:
    """What a solver is given: a path, starting states and a network that counts its evaluations.

    `starts(r)` are the starting states in unit scale; by default those of the reference.
    """

    def __init__(
        self,
        target: Mixture,
        path: str,
        reference: Reference | None = None,
        starts: Callable[[float], Tensor] | None = None,
    ):
        self.target, self.path, self.reference = target, Path(path), reference
        self.starts = self._exact_start if starts is None else starts
        self.nfe = 0

    def _exact_start(self, r: float) -> Tensor:
        """The exact state where r is nearly pure noise; elsewhere raw noise, as a user of the sampler would pass."""
        assert self.reference is not None
        if not math.isinf(r) and r >= 0.95 * min(self.path.r_max, 100.0):
            return self.reference.unit(r).clone()
        return self.reference.noise.clone()

    def start(self, r: float, scaling: str) -> Tensor:
        """The start at noise ratio r in the scaling 'vp', 've' or 'rf'."""
        u = self.starts(r)
        if scaling == "vp":
            return u
        if scaling == "ve":
            return u * math.sqrt(1 + r * r)
        return u if math.isinf(r) else u * (math.sqrt(1 + r * r) / (1 + r))

    def x0(self, x: Tensor, a: float, s: float) -> Tensor:
        self.nfe += 1
        return self.target.x0(x, a, s)

    def eps(self, x: Tensor, a: float, s: float) -> Tensor:
        self.nfe += 1
        return self.target.eps(x, a, s)

    def both(self, x: Tensor, a: float, s: float) -> tuple[Tensor, Tensor]:
        self.nfe += 1
        return self.target.both(x, a, s)

    def velocity(self, x: Tensor, t: float) -> Tensor:
        """E[eps - x0 | x_t], the rectified flow's velocity at its time t."""
        x0, eps = self.both(x, 1 - t, t)
        return eps - x0

    def error(self, x: Tensor, r_end: float) -> float:
        """Mean L2 error of x / alpha over the mean L2 norm of the exact end points.

        Against the ODE where the solver stops, if that is the path's smallest level or 0; a solver that stops earlier
        leaves noise in the sample and is held against the end point itself.
        """
        assert self.reference is not None
        at_min = 0 < r_end <= 1.1 * self.path.r_min
        exact = self.reference.unit(r_end) * math.sqrt(1 + r_end * r_end) if at_min else self.reference.x0
        return float((x - exact).norm(dim=1).mean() / self.reference.x0.norm(dim=1).mean())


class SlicedDistance:
    """Sliced 2-Wasserstein distance from n samples to the exact mixture.

    A projection of a mixture is a mixture in one dimension, so exact quantiles take the place of infinitely many fresh
    samples. `floor` is what n fresh exact samples score, the mean of four draws.
    """

    def __init__(self, target: Mixture, n: int, projections: int = 128, seed: int = 3):
        g = torch.Generator().manual_seed(seed)
        directions = torch.randn(target.size, projections, generator=g, dtype=F64)
        self.directions = directions / directions.norm(dim=0)
        means = target.means @ self.directions
        along = torch.einsum("kde,dp->kep", target.bases, self.directions).square()
        stds = along.mul(target.variances[:, :, None]).sum(1).sqrt()
        levels = (np.arange(n) + 0.5) / n
        quantiles = np.empty((n, projections))
        for p in range(projections):
            m, s = means[:, p : p + 1], stds[:, p : p + 1]
            grid = torch.linspace(float((m - 7 * s).min()), float((m + 7 * s).max()), 6000, dtype=F64)[None]
            below = 0.5 * (1 + torch.erf((grid - m) / (s * math.sqrt(2))))
            quantiles[:, p] = np.interp(levels, (target.weights[:, None] * below).sum(0).numpy(), grid[0].numpy())
        self.quantiles = torch.from_numpy(quantiles)
        self.floor = float(np.mean([self(target.sample(n, g)) for _ in range(4)]))

    def __call__(self, x: Tensor) -> float:
        return float(((x @ self.directions).sort(0).values - self.quantiles).square().mean().sqrt())
