"""A network under a bridge: it receives the true state, the time and the picture; solvers see plain coordinates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fewstep.conditions.picture import Picture
from fewstep.core.condition import Condition
from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction, coefficients, expand, scales
from fewstep.core.process import Process
from fewstep.denoisers.network import NetworkDenoiser

if TYPE_CHECKING:
    from fewstep.processes.bridge import Bridge

METHODS = (
    Method(
        "bridge-network",
        paper="Denoising Diffusion Bridge Models (Zhou et al., 2024)",
        arxiv="2309.16948",
        claim="a network between a picture and its restoration, under any bridge, for every solver",
        use="BridgeDenoiser",
    ),
)

PREDICTS = ("x0", "residual", "residual+eps", "resnoise", "eps", "v", "flow")
PRECONDITIONS = ("none", "bridge")


def check_bridge(process: Process) -> Bridge:
    """The process, if it is a bridge; `ValueError` otherwise."""
    if not hasattr(process, "centre"):
        raise ValueError(f"a bridge denoiser needs a bridge process, such as DDBM(), got {process.name!r}")
    return process  # type: ignore[return-value]


def check_picture(y: Tensor | None, like: Tensor) -> Tensor:
    """y `(B, *shape)` in the dtype of `like`; `ValueError` where it is missing or of another shape."""
    if y is None:
        raise ValueError("a bridge runs between pairs: give y, the picture that goes with each sample")
    if y.shape != like.shape:
        raise ValueError(f"y must have the samples' shape {tuple(like.shape)}, got {tuple(y.shape)}")
    return y.to(like.dtype)


class BridgeDenoiser(NetworkDenoiser):
    """`network(x, noise, y=y, **condition)` under a bridge; x is its true state `a x0 + b y + c eps`.

    What the network outputs (`predicts`): "x0", the data; "residual", y - x0; "residual+eps", both, stacked along the
    channels (RDDM; the network then has twice as many); "resnoise", `eps + sigma/2 (y - x0)` (Resfusion's, in the
    limit of small steps); or "eps", "v" or "flow" in the coordinates of `fewstep.processes.bridge`. Two outputs for one
    quantity are combined as `v = alpha eps - sigma u0`, which relies on the residual in the noise and on the
    state near the data.

    precondition "bridge" (DDBM's; predicts "x0"): with the variances of x0 and y and their covariance,

        var = a^2 data_std^2 + b^2 picture_std^2 + 2 a b cov + c^2,
        c_in = var^(-1/2),   c_skip = (a data_std^2 + b cov) / var,
        c_out^2 = (b^2 (data_std^2 picture_std^2 - cov^2) + c^2 data_std^2) / var,

    which is EDM's at b = 0, where y plays no part. precondition "none": the network sees x and the process time.

    Prediction and state are in the bridge's coordinates; `encode` and `decode` go from and to the data.

    Args:
        shape: one sample's shape, and that of y. conditions: those other than y, or with y as another picture.
        data_std, picture_std, correlation: standard deviations of data and pictures, and the correlation of the two
            elementwise ("bridge" only).

    Raises:
        ValueError: a process that is not a bridge; no shape; an unknown name; deviations that are not positive; a
            correlation outside -1 to 1.
    """

    process: Bridge

    def __init__(
        self,
        network: nn.Module,
        process: Bridge,
        predicts: str = "x0",
        shape: tuple[int, ...] | None = None,
        conditions: Mapping[str, Condition] | None = None,
        precondition: str = "none",
        data_std: float = 0.5,
        value_range: tuple[float, float] | None = (-1.0, 1.0),
        data: str | None = None,
        picture_std: float | None = None,
        correlation: float = 0.0,
    ):
        check_bridge(process)
        if predicts not in PREDICTS:
            raise suggest("prediction kind", predicts, PREDICTS)
        if precondition not in PRECONDITIONS:
            raise suggest("precondition", precondition, PRECONDITIONS)
        if precondition == "bridge" and predicts != "x0":
            raise ValueError(f"the bridge's preconditioning predicts 'x0', not {predicts!r}")
        if shape is None:
            raise ValueError("a bridge denoiser needs the shape of a sample, which is that of y")
        picture_std = data_std if picture_std is None else picture_std
        if not (picture_std > 0 and -1 < correlation < 1):
            raise ValueError(
                f"picture_std must be positive and the correlation between -1 and 1, got {picture_std}, {correlation}"
            )
        picture = {"y": Picture(tuple(shape))}
        super().__init__(
            network,
            process,
            shape=shape,
            conditions=picture | dict(conditions or {}),
            data_std=data_std,
            value_range=value_range,
            data=data,
        )
        if self.conditions["y"].shape != tuple(shape):  # type: ignore[attr-defined]
            raise ValueError(f"y must have the samples' shape {tuple(shape)}, got {self.conditions['y'].shape}")  # type: ignore[attr-defined]
        self.predicts, self.precondition = predicts, precondition
        self.picture_std, self.correlation = float(picture_std), float(correlation)

    def config(self) -> dict[str, Any]:
        return super().config() | {"picture_std": self.picture_std, "correlation": self.correlation}

    def encode(self, data: Tensor, y: Tensor | None = None, **condition: Any) -> Tensor:
        return data - self.process.centre * check_picture(y, data)

    def decode(self, x: Tensor, y: Tensor | None = None, **condition: Any) -> Tensor:
        return x + self.process.centre * check_picture(y, x)

    def _bridge(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """c_in, c_skip, c_out and c_noise; and `1 - c_skip a` over c_in^2, `c_skip` over c_in^2. All float64."""
        a, b, c = self.process.a(t), self.process.b(t), self.process.c(t)
        v0, vy = self.data_std**2, self.picture_std**2
        cov = self.correlation * self.data_std * self.picture_std
        c_in = (a**2 * v0 + b**2 * vy + 2 * a * b * cov + c**2).rsqrt()
        c_out = c_in * (b**2 * (v0 * vy - cov**2) + c**2 * v0).sqrt()
        # Infinite at an end without data. Training rarely draws levels beyond sigma = e^4 alpha, and all of them look
        # alike: kept apart, the first evaluation of a run would be at a level that the network has never seen.
        c_noise = (-self.process.log_snr(t) / 4).clamp(-5.0, 1.0)
        own, other = a * v0 + b * cov, b * (b * vy + a * cov) + c**2
        return c_in, own * c_in**2, c_out, c_noise, other, own

    def _mix(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """`(p, q)` such that resnoise, less y's known part, is `p u0 + q eps`."""
        sigma = self.process.sigma(t)
        return -0.5 * sigma, torch.ones_like(sigma)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, **condition: Any) -> Prediction:
        y = check_picture(y, x)
        process, state = self.process, self.process.state(x, y, t)
        condition = {"y": y.to(self.dtype), **condition}
        if self.precondition == "bridge":
            c_in, c_skip, c_out, c_noise, _, _ = self._bridge(t)
            output = self._call(expand(c_in, x) * state, c_noise, condition)
            x0 = torch.addcmul(expand(c_skip, x) * state, expand(c_out, x), output)
            return Prediction(x0 - process.centre * y, "x0", x, t, process)
        output = self._call(state, t, condition)
        if self.predicts == "x0":
            return Prediction(output - process.centre * y, "x0", x, t, process)
        if self.predicts == "residual":
            return Prediction((1 - process.centre) * y - output, "x0", x, t, process)
        if self.predicts in ("residual+eps", "resnoise"):
            return Prediction(self._as_v(output, x, y, t), "v", x, t, process)
        return Prediction(output, self.predicts, x, t, process)

    def _as_v(self, output: Tensor, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        """v from "residual+eps" or "resnoise": finite at both ends of every bridge."""
        alpha, sigma = (expand(value, x) for value in (self.process.alpha(t), self.process.sigma(t)))
        if self.predicts == "residual+eps":
            residual, eps = output.chunk(2, dim=1)
            return alpha * eps - sigma * ((1 - self.process.centre) * y - residual)
        p, q = (expand(value, x) for value in self._mix(t))
        known = output - 0.5 * sigma * (1 - self.process.centre) * y
        # v = P x + Q known, from P (alpha, sigma) + Q (p, q) = (-sigma, alpha).
        det = alpha * q - sigma * p
        return (-(sigma * q + alpha * p) * x + (alpha**2 + sigma**2) * known) / det

    def loss_pair(
        self, x0: Tensor, eps: Tensor, t: Tensor, y: Tensor | None = None, **condition: Any
    ) -> tuple[Tensor, Tensor]:
        """As `NetworkDenoiser.loss_pair`; x0 is data. A modulated bridge scales eps by the residual here."""
        y = check_picture(y, x0)
        process = self.process
        if process.modulated:
            eps = eps * (x0 - y)
        u0 = self.encode(x0, y=y)
        alpha, sigma, dalpha, dsigma = scales(process, t)
        u = expand(alpha, x0) * u0 + expand(sigma, x0) * eps
        state, condition = process.state(u, y, t), {"y": y.to(self.dtype), **condition}
        if self.precondition == "bridge":
            c_in, _, c_out, c_noise, other, own = self._bridge(t)
            noise = expand(process.b(t), x0) * y + expand(process.c(t), x0) * eps
            # (x0 - c_skip x) / c_out, written so that nothing cancels near the data.
            target = expand(other, x0) * x0 - expand(own, x0) * noise
            output = self._call(expand(c_in, x0) * state, c_noise, condition)
            return output, expand(c_in**2 / c_out, x0) * target
        output = self._call(state, t, condition)
        if self.predicts == "x0":
            return output, x0
        if self.predicts == "residual":
            return output, y - x0
        if self.predicts == "residual+eps":
            return output, torch.cat([y - x0, eps], dim=1)
        if self.predicts == "resnoise":
            return output, eps + expand(0.5 * sigma, x0) * (y - x0)
        a, b = coefficients(self.predicts, alpha, sigma, dalpha, dsigma)
        return output, expand(a, x0) * u0 + expand(b, x0) * eps

    def own_error(self, t: Tensor) -> Tensor:
        """Squared error of eps per squared error of the network's own output at time t, float64.

        "residual+eps" counts as its first half.
        """
        alpha, sigma, dalpha, dsigma = scales(self.process, t)
        if self.precondition == "bridge":
            return (self._bridge(t)[2] * alpha / sigma) ** 2
        if self.predicts in ("x0", "residual", "residual+eps"):
            return (alpha / sigma) ** 2
        if self.predicts == "resnoise":
            a, b = self._mix(t)
        else:
            a, b = coefficients(self.predicts, alpha, sigma, dalpha, dsigma)
        return (alpha / (b * alpha - a * sigma)) ** 2


def statistics(data: Tensor, pictures: Tensor) -> dict[str, float]:
    """`data_std`, `picture_std` and `correlation` of pairs `(N, *shape)`, for the bridge's preconditioning.

    Second moments about 0, elementwise: the network sees the state as it is, with its mean. The correlation is kept
    within 0.9999.

    Raises:
        ValueError: data and pictures of different shapes: they must come in pairs.
    """
    if data.shape != pictures.shape:
        raise ValueError(f"data and pictures must come in pairs, got {tuple(data.shape)} and {tuple(pictures.shape)}")
    x, y = data.double(), pictures.double()
    v0, vy, cov = float((x * x).mean()), float((y * y).mean()), float((x * y).mean())
    correlation = max(-0.9999, min(0.9999, cov / math.sqrt(v0 * vy)))
    return {"data_std": math.sqrt(v0), "picture_std": math.sqrt(vy), "correlation": correlation}
