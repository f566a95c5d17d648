"""The exact flow map of Gaussian data in closed form, with the Gaussian's moments as parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.conditions.time import Time
from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction
from fewstep.core.process import Process
from fewstep.core.student import KINDS, Student

METHODS = (
    Method(
        "gaussian-map",
        paper="Consistency Trajectory Models: Learning Probability Flow ODE Trajectory of Diffusion (Kim et al., 2024)",
        arxiv="2310.02279",
        claim="the exact map between any two times for Gaussian data, and its moments as parameters",
        use="GaussianMap",
    ),
)


class GaussianMap(Denoiser):
    """The probability flow of data `N(m, C)` in closed form. In C's eigenbasis, with eigenvalues c,

        Phi_{t->s}(x) = alpha_s m + sqrt((alpha_s^2 c + sigma_s^2) / (alpha_t^2 c + sigma_t^2)) (x - alpha_t m).

    m and log c are parameters, so it is a student whose class contains the truth. It answers the g for which DDIM's
    step `(sigma_s / sigma_t) x + (alpha_s - alpha_t sigma_s / sigma_t) g` lands on `Phi_{t->s}(x)`, without a
    difference. With `rho^2 = alpha^2 c + sigma^2` that is

        g = m + c (alpha_s sigma_t + alpha_t sigma_s) / (rho_t (rho_s sigma_t + rho_t sigma_s)) (x - alpha_t m),

    at s = t the posterior mean `m + alpha_t c / rho_t^2 (x - alpha_t m)`. It is finite at pure noise and at the clean
    end, where it is `x / alpha_t`.

    Args:
        mean: m, `shape`.
        covariance: C: `(D, D)`, `(D,)` (diagonal) or one number; D is the product of `shape`.
        answers: "map" takes the time s as the condition `to`, and s = t without it; "denoiser" answers for s = t, and
            "jump" for the clean end, so that its x0 is a sample.

    Raises:
        ValueError: another word; a covariance of another shape, or one that is not symmetric and positive definite.
    """

    def __init__(
        self,
        mean: Tensor,
        covariance: Tensor | float,
        process: Process,
        answers: str = "map",
        dtype: torch.dtype = torch.float64,
    ):
        super().__init__()
        if answers not in KINDS:
            raise suggest("kind of student", answers, KINDS)
        mean = torch.as_tensor(mean, dtype=torch.float64)
        d = mean.numel()
        covariance = torch.as_tensor(covariance, dtype=torch.float64)
        if covariance.ndim < 2:
            covariance = torch.diag(covariance.expand(d) if covariance.ndim == 0 else covariance)
        if covariance.shape != (d, d) or not torch.allclose(covariance, covariance.mT):
            raise ValueError(
                f"covariance must be symmetric {(d, d)}, {(d,)} or a number, got {tuple(covariance.shape)}"
            )
        variances, basis = torch.linalg.eigh(covariance)
        if not bool((variances > 0).all()):
            raise ValueError("the covariance must be positive definite")
        self.shape, self.process, self.answers = tuple(mean.shape), process, answers
        self.conditions = {"to": Time()} if answers == "map" else {}
        self.student = None if answers == "denoiser" else Student(answers, "gaussian-map")
        self.mean = nn.Parameter(mean.flatten().to(dtype))
        self.log_variances = nn.Parameter(variances.log().to(dtype))
        self.register_buffer("basis", basis.to(dtype))
        self.basis: Tensor

    def config(self) -> dict[str, Any]:
        return {"shape": self.shape, "process": self.process, "answers": self.answers}

    @classmethod
    def from_config(cls, options: dict[str, Any], state: Mapping[str, Tensor]) -> GaussianMap:
        # Of the right size: the values come with its state.
        return cls(torch.zeros(options["shape"]), 1.0, options["process"], options["answers"])

    def _scales(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """alpha and sigma, `(B, 1)` or `(1, 1)`, and rho `(B, D)`."""
        dtype = self.mean.dtype
        alpha, sigma = (part.to(dtype).reshape(-1, 1) for part in (self.process.alpha(t), self.process.sigma(t)))
        return alpha, sigma, (alpha**2 * self.log_variances.exp() + sigma**2).sqrt()

    def _aimed(self, t: Tensor, to: Tensor | None, own: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """`_scales` of the times to go to, `own` where there is none. They are chosen after and not before, as a
        derivative in t would else have that of sigma at a clean `to` in it, infinite for some processes, times 0."""
        clean = torch.as_tensor(self.process.t_zero, dtype=torch.float64, device=t.device)
        if self.answers == "jump":
            return self._scales(clean)
        if to is None:
            return own
        none = to.isnan().reshape(-1, 1)
        there = self._scales(torch.where(to.isnan(), clean, to.to(t.dtype)))
        return tuple(torch.where(none, at, aim) for at, aim in zip(own, there, strict=True))

    def flow(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """`Phi_{t->s}(x)` `(B, *shape)`, from times t to s, scalars or `(B,)`."""
        (alpha_t, _, rho_t), (alpha_s, _, rho_s) = self._scales(t), self._scales(s)
        rows = x.flatten(1).to(self.mean.dtype)
        far = rho_s / rho_t * ((rows - alpha_t * self.mean) @ self.basis)
        return (alpha_s * self.mean + far @ self.basis.mT).reshape(x.shape).to(x.dtype)

    def forward(self, x: Tensor, t: Tensor, to: Tensor | None = None, **condition: Any) -> Prediction:
        alpha_t, sigma_t, rho_t = own = self._scales(t)
        alpha_s, sigma_s, rho_s = own if self.answers == "denoiser" else self._aimed(t, to, own)
        # Only the sigmas' ratio matters: as shares of their sum they have a limit where both are 0.
        both = sigma_t + sigma_s
        share = torch.where(both > 0, sigma_t / both.clamp_min(torch.finfo(both.dtype).tiny), 0.5)
        pull = alpha_s * share + alpha_t * (1 - share)
        factor = self.log_variances.exp() * pull / (rho_t * (rho_s * share + rho_t * (1 - share)))
        rows = (x.flatten(1).to(self.mean.dtype) - alpha_t * self.mean) @ self.basis
        value = (self.mean + (factor * rows) @ self.basis.mT).reshape(x.shape).to(x.dtype)
        return Prediction(value, "x0", x, t, self.process)

    def log_likelihood(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """`log p_t(x)` `(B,)` in nats; t defaults to the clean data's time."""
        time = torch.as_tensor(self.process.t_zero, dtype=torch.float64) if t is None else t
        alpha, _, rho = self._scales(time)
        rows = ((x.flatten(1).to(self.mean.dtype) - alpha * self.mean) @ self.basis) / rho
        return -(0.5 * rows**2 + rho.log() + 0.5 * math.log(2 * math.pi)).sum(1)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n exact samples `(n, *shape)` of the data."""
        generator = torch.Generator().manual_seed(seed)
        normal = torch.randn(n, len(self.mean), generator=generator, dtype=torch.float64).to(self.mean)
        with torch.no_grad():
            rows = self.mean + (normal * (0.5 * self.log_variances).exp()) @ self.basis.mT
        return rows.reshape(n, *(self.shape or ()))
