"""What stochastic interpolants predict: in closed form between Gaussian mixtures, and learned by a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.condition import Condition
from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction, expand
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.denoisers.network import NetworkDenoiser

_PAPER = "Stochastic Interpolants: A Unifying Framework for Flows and Diffusions (Albergo et al., 2023)"
METHODS = (
    Method(
        "mixture-interpolant",
        paper=_PAPER,
        arxiv="2303.08797",
        claim="exact velocity, score and posterior means between two Gaussian mixtures, coupled or not",
        use="MixtureInterpolant",
    ),
    Method(
        "interpolant-network",
        paper=_PAPER,
        arxiv="2303.08797",
        claim="a network that learns the velocity, the latent noise (and so the score), or both",
        use="InterpolantNetwork",
    ),
)

PREDICTS = ("velocity", "latent", "both")


@dataclass(slots=True)
class InterpolantPrediction(Prediction):
    """A velocity, and the means of the state's parts: `x = a data + b other + gamma latent`.

    `.x0` and `.eps` are those of the frame in which the ODE is solved; E[x0 | x] is `data`.
    """

    data: Tensor
    other: Tensor
    latent: Tensor
    gradient: Tensor

    @property
    def score(self) -> Tensor:
        return self.gradient

    def replaced(self, value: Tensor, **changes: Any) -> Prediction:
        """A velocity alone: the state's parts under another velocity are not known."""
        own: dict[str, Any] = {"kind": self.kind, "x": self.x, "t": self.t, "process": self.process}
        return Prediction(value, **own | changes)


class MixtureInterpolant(Denoiser):
    """The exact prediction where (x0, x1) is a Gaussian mixture: x_t is one as well, with covariances
    `S = a^2 C00 + a b (C01 + C10) + b^2 C11 + gamma^2`, and given the component and `y = S^-1 (x - mean)`

        E[x0] = m0 + (a C00 + b C01) y,  E[x1] = m1 + (a C10 + b C11) y,  E[z] = gamma y,  score = -y.

    Args:
        weights: (K,), positive (normalised here).
        means: (K, 2, *shape), of x0 and x1.
        covariances: (K, 2 D, 2 D), of both together, D the product of `shape`.
        process: a `fewstep.processes.interpolants.Interpolant`.

    Raises ValueError for other shapes, or covariances that are not symmetric and positive definite.
    """

    process: Any  # an `Interpolant`

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor, process: Any):
        super().__init__()
        means, weights = means.double(), weights.double()
        k, d = len(means), math.prod(means.shape[2:])
        if means.ndim < 3 or means.shape[1] != 2:
            raise ValueError(f"means must be (K, 2, *shape), got shape {tuple(means.shape)}")
        if weights.shape != (k,) or not bool((weights > 0).all()):
            raise ValueError(f"weights must be {k} positive numbers, got shape {tuple(weights.shape)}")
        if covariances.shape != (k, 2 * d, 2 * d):
            raise ValueError(f"covariances must be {(k, 2 * d, 2 * d)}, got {tuple(covariances.shape)}")
        covariances = covariances.double()
        if not torch.allclose(covariances, covariances.mT) or bool(torch.linalg.cholesky_ex(covariances).info.any()):
            raise ValueError("every covariance must be symmetric and positive definite")
        self.shape, self.process = tuple(means.shape[2:]), process
        self.register_buffer("log_weights", (weights / weights.sum()).log())
        self.register_buffer("means", means.reshape(k, 2, d))
        self.register_buffer("covariances", covariances.reshape(k, 2, d, 2, d).transpose(2, 3))  # (K, 2, 2, D, D)
        self.log_weights: Tensor
        self.means: Tensor
        self.covariances: Tensor

    def config(self) -> dict[str, Any]:
        return {"process": self.process, "shape": self.shape}

    @classmethod
    def from_config(cls, options: dict[str, Any], state: Mapping[str, Tensor]) -> MixtureInterpolant:
        k, _, d = state["means"].shape
        covariances = state["covariances"].transpose(2, 3).reshape(k, 2 * d, 2 * d)
        means = state["means"].reshape(k, 2, *options["shape"])
        return cls(state["log_weights"].exp(), means, covariances, options["process"])

    @classmethod
    def independent(cls, data: GaussianMixture, other: GaussianMixture, process: Any) -> MixtureInterpolant:
        """Independent pairs from two mixtures of one shape."""
        if data.shape != other.shape:
            raise ValueError(f"the two mixtures have shapes {data.shape} and {other.shape}: they must agree")
        (m0, c0), (m1, c1) = (_moments(mixture) for mixture in (data, other))
        weights = (data.log_weights.unsqueeze(1) + other.log_weights).exp().flatten()
        k, n, d = len(m0), len(m1), m0.shape[1]
        means = torch.stack((m0.unsqueeze(1).expand(k, n, d), m1.expand(k, n, d)), dim=2).reshape(k * n, 2, d)
        covariances = torch.zeros(k, n, 2 * d, 2 * d, dtype=torch.float64)
        covariances[..., :d, :d], covariances[..., d:, d:] = c0.unsqueeze(1), c1
        return cls(weights, means.reshape(k * n, 2, *(data.shape or ())), covariances.flatten(0, 1), process)

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> InterpolantPrediction:
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"the mixture takes (B, *{self.shape}), got shape {tuple(x.shape)}")
        time = t.double().reshape(-1)
        at = [c.view(-1, 1, 1, 1) for c in (*self.process.curve(time), self.process.gamma(time))]
        a, b, da, db, gamma = at  # (T, 1, 1, 1), T = 1 or B
        c, d = self.covariances, self.means.shape[-1]
        cross = c[:, 0, 1] + c[:, 1, 0]
        eye = torch.eye(d, dtype=c.dtype, device=c.device)
        factor = torch.linalg.cholesky(a**2 * c[:, 0, 0] + a * b * cross + b**2 * c[:, 1, 1] + gamma**2 * eye)
        mean = a[..., 0] * self.means[:, 0] + b[..., 0] * self.means[:, 1]
        away = x.reshape(-1, 1, d).double() - mean  # (B, K, D)
        # One time: the samples are the columns of one solve. One time per sample: one column each.
        columns = away.permute(1, 2, 0).unsqueeze(0) if len(time) == 1 else away.unsqueeze(-1)
        y = torch.cholesky_solve(columns, factor)  # (T, K, D, B / T)
        logs = -factor.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True) - 0.5 * (columns * y).sum(2)
        share = torch.softmax(self.log_weights.view(-1, 1) + logs, dim=1).unsqueeze(2)  # (T, K, 1, B / T)

        def mean_of(value: Tensor) -> Tensor:
            total = (share * value).sum(1)  # (T, D, B / T)
            return (total[0].T if len(time) == 1 else total[..., 0]).reshape(x.shape).to(x.dtype)

        x0 = mean_of(self.means[:, 0].unsqueeze(-1) + (a * c[:, 0, 0] + b * c[:, 0, 1]) @ y)
        x1 = mean_of(self.means[:, 1].unsqueeze(-1) + (a * c[:, 1, 0] + b * c[:, 1, 1]) @ y)
        pull = mean_of(y)
        speed = self.process.gamma_dgamma(time)
        v = expand(da.flatten(), x) * x0 + expand(db.flatten(), x) * x1 + expand(speed, x) * pull
        latent = expand(gamma.flatten(), x) * pull
        return InterpolantPrediction(v, "velocity", x, t, self.process, x0, x1, latent, -pull)

    def sample_pairs(self, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """n exact pairs x0 and x1, each (n, *shape), float64."""
        generator = torch.Generator().manual_seed(seed)
        k, _, d = self.means.shape
        choice = torch.multinomial(self.log_weights.exp().cpu(), n, replacement=True, generator=generator)
        normal = torch.randn(n, 2 * d, 1, generator=generator, dtype=torch.float64)
        factor = torch.linalg.cholesky(self.covariances.transpose(2, 3).reshape(k, 2 * d, 2 * d)).cpu()
        pairs = self.means.cpu()[choice] + (factor[choice] @ normal).view(n, 2, d)
        first, second = (pairs[:, i].reshape(n, *(self.shape or ())).to(self.means.device) for i in (0, 1))
        return first, second


def _moments(mixture: GaussianMixture) -> tuple[Tensor, Tensor]:
    """Means (K, D) and covariances (K, D, D)."""
    k, d = mixture.centres.shape
    vectors = mixture.basis.double().view(d, k, d).permute(1, 0, 2)
    return mixture.means.double(), vectors @ torch.diag_embed(mixture.variances.double()) @ vectors.mT


class InterpolantNetwork(NetworkDenoiser):
    """`network(x, t, **condition)` that learns an interpolant's fields by regression.

    predicts "velocity": v, enough for the ODE. "latent": E[z | x_t], hence the score `-E[z | x_t] / gamma`. "both":
    the two stacked along the sample's first axis (a network built with `out=2`), enough for every SDE.

    Training sees each sample with z and with -z: gamma' may be infinite at the ends, and only the difference of the
    two has a gradient of finite variance there. For the same reason the network is never evaluated within
    `t_min` of either end. z comes from torch's own generator, as dropout's masks do.
    """

    process: Any  # an `Interpolant`

    def __init__(
        self,
        network: nn.Module,
        process: Any,
        predicts: str = "velocity",
        shape: tuple[int, ...] | None = None,
        conditions: Mapping[str, Condition] | None = None,
        value_range: tuple[float, float] | None = None,
        data: str | None = None,
    ):
        if predicts not in PREDICTS:
            raise suggest("prediction of an interpolant", predicts, PREDICTS)
        if predicts != "velocity" and process.latent == "zero":
            raise ValueError(f"without a latent noise (latent 'zero') there is nothing to predict for {predicts!r}")
        super().__init__(network, process, "velocity", shape, conditions, value_range=value_range, data=data)
        self.parts = predicts

    def config(self) -> dict[str, Any]:
        names = ("network", "process", "shape", "conditions", "value_range", "data")
        return {name: getattr(self, name) for name in names} | {"predicts": self.parts}

    def _curve(self, t: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The time at which the network is evaluated, and a, b, a', b', gamma, gamma' there."""
        low = self.process.t_min
        t = t.double().clamp(low, 1 - low)
        gamma = self.process.gamma(t)
        slope = self.process.gamma_dgamma(t) / gamma if self.process.latent != "zero" else torch.zeros_like(gamma)
        return t, (*self.process.curve(t), gamma, slope)

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        asked, curve = self._curve(t)
        output = self._call(x, asked, condition)
        a, b, da, db, gamma, dgamma = (expand(c, x) for c in curve)
        if self.parts == "velocity":
            return Prediction(output, "velocity", x, t, self.process)
        if self.parts == "latent":
            raise ValueError("this network predicts the latent noise alone (see `latent`): samples need the velocity")
        v, latent = output.chunk(2, dim=1)
        rest, speed = x - gamma * latent, v - dgamma * latent  # = a x0 + b x1 and a' x0 + b' x1
        if self.process.path == "encoding-decoding":  # only one of the two is present at a time: least squares
            data, other = ((c * rest + dc * speed) / (c**2 + dc**2).clamp_min(1e-12) for c, dc in ((a, da), (b, db)))
        else:
            det = a * db - b * da
            data, other = (db * rest - b * speed) / det, (a * speed - da * rest) / det
        return InterpolantPrediction(v, "velocity", x, t, self.process, data, other, latent, -latent / gamma)

    def latent(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """E[z | x_t] of a network that predicts it, (B, *shape)."""
        if self.parts == "velocity":
            raise ValueError("this network predicts the velocity alone: build it with predicts='latent' or 'both'")
        return self._call(x, self._curve(t)[0], condition).chunk(2 if self.parts == "both" else 1, dim=1)[-1]

    def loss_pair(self, x0: Tensor, eps: Tensor, t: Tensor, **condition: Any) -> tuple[Tensor, Tensor]:
        """Outputs and targets at `a x0 + b x1 + gamma z` and at `a x0 + b x1 - gamma z`, x1 = eps, stacked along the
        sample's first axis."""
        asked, curve = self._curve(t)
        a, b, da, db, gamma, dgamma = (expand(c, x0) for c in curve)
        z = torch.randn_like(x0)
        z = torch.cat((z, -z)) if self.process.latent != "zero" else z
        copies = len(z) // len(x0)
        middle, speed = (a * x0 + b * eps).repeat(copies, *[1] * (x0.ndim - 1)), da * x0 + db * eps
        gamma, dgamma = (c.repeat(copies, *[1] * (c.ndim - 1)) if c.ndim else c for c in (gamma, dgamma))
        named = {name: torch.cat([value] * copies) for name, value in condition.items()}
        times = asked.repeat(copies) if asked.ndim else asked
        output = self._call(middle + gamma * z, times, named)
        velocity = speed.repeat(copies, *[1] * (x0.ndim - 1)) + dgamma * z
        targets = {"velocity": (velocity,), "latent": (z,), "both": (velocity, z)}[self.parts]
        target = torch.cat(targets, dim=1)
        return torch.cat(output.chunk(copies), dim=1), torch.cat(target.chunk(copies), dim=1)


def drawn_from(samples: Tensor) -> Callable[[Tensor, Tensor, torch.Generator], Tensor]:
    """A coupling for training between two densities: x1 is drawn from `samples` (N, *shape), independently of x0."""

    def coupling(x0: Tensor, eps: Tensor, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(samples), (len(x0),), generator=generator)
        return samples[rows].to(eps)

    return coupling
