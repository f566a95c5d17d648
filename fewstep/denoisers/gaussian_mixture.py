"""The Gaussian mixture: a denoiser in closed form, with any covariances."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations_with_replacement
from typing import Any, Self

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction
from fewstep.core.process import Process
from fewstep.operators.noise import Gaussian, NoiseModel, as_noise
from fewstep.operators.operator import LinearOperator
from fewstep.operators.spectrum import LEAST

METHODS = (
    Method(
        "gaussian-mixture",
        claim="exact x0, eps, score and likelihood at every noise level, exact samples",
        use="GaussianMixture",
    ),
)


class GaussianMixture(Denoiser):
    """`p(x0) = sum_k w_k N(m_k, C_k)`; at time t it is the mixture of `N(alpha m_k, alpha^2 C_k + sigma^2)`.

    With the eigenvectors `U_k` and eigenvalues `c_k` of `C_k`, and `y = U_k^T (x - alpha m_k)`,

        x0 = sum_k r_k (m_k + U_k [alpha c / (alpha^2 c + sigma^2)] y)
        eps = sum_k r_k U_k [sigma / (alpha^2 c + sigma^2)] y

    where `r_k` are the responsibilities. Both are finite at alpha = 0 and at sigma = 0, and neither is computed by a
    difference.

    Args:
        weights: `(K,)`, positive (normalised here).
        means: `(K, *shape)`.
        covariances: `(K, D, D)`, `(K, D)` (diagonal), `(K,)` (isotropic variances) or one number; D is the product of
            `shape`. Singular ones will do: a point is a component of no variance.
        predicts: the kind it predicts, "x0" or "eps".
    """

    def __init__(
        self,
        weights: Tensor,
        means: Tensor,
        covariances: Tensor | float,
        process: Process,
        predicts: str = "x0",
        dtype: torch.dtype = torch.float64,
    ):
        super().__init__()
        if predicts not in ("x0", "eps"):
            raise ValueError(f"the mixture predicts 'x0' or 'eps', not {predicts!r}")
        means = torch.as_tensor(means, dtype=torch.float64)
        weights = torch.as_tensor(weights, dtype=torch.float64)
        k, d = means.shape[0], math.prod(means.shape[1:])
        if weights.shape != (k,) or not bool((weights > 0).all()):
            raise ValueError(f"weights must be {k} positive numbers, got shape {tuple(weights.shape)}")
        covariances = torch.as_tensor(covariances, dtype=torch.float64)
        if covariances.ndim < 2:
            covariances = covariances.reshape(-1, 1).expand(k, d)
        if covariances.ndim == 2:
            covariances = torch.diag_embed(covariances)
        if covariances.shape != (k, d, d):
            raise ValueError(f"covariances must be {(k, d, d)}, {(k, d)} or {(k,)}, got {tuple(covariances.shape)}")
        if not torch.allclose(covariances, covariances.mT):
            raise ValueError("every covariance must be symmetric")
        variances, vectors = torch.linalg.eigh(covariances)
        tiny = 1e-12 * variances.amax(-1, keepdim=True).clamp_min(0)
        if not bool((variances >= -tiny).all()):
            raise ValueError("a covariance has a negative variance in some direction")
        variances = torch.where(variances > tiny, variances, 0.0)
        self.shape, self.process, self.predicts = tuple(means.shape[1:]), process, predicts
        for name, value in {
            "log_weights": (weights / weights.sum()).log(),
            "means": means.reshape(k, d),
            "variances": variances,
            "basis": vectors.permute(1, 0, 2).reshape(d, k * d),  # x @ basis gives U_k^T x for every k
            "centres": torch.einsum("kde,kd->ke", vectors, means.reshape(k, d)),
        }.items():
            self.register_buffer(name, value.to(dtype))
        self.log_weights: Tensor
        self.means: Tensor
        self.variances: Tensor
        self.basis: Tensor
        self.centres: Tensor

    def config(self) -> dict[str, Any]:
        return {"shape": self.shape, "process": self.process, "predicts": self.predicts}

    @classmethod
    def from_config(cls, options: dict[str, Any], state: Mapping[str, Tensor]) -> GaussianMixture:
        # Of the right sizes: the values come with its state, which eigenvectors computed anew would not reproduce.
        k = len(state["means"])
        means = torch.zeros(k, *options["shape"])
        return cls(torch.ones(k), means, 1.0, options["process"], options["predicts"])

    @classmethod
    def fitted(cls, data: Tensor, components: int, process: Process, seed: int = 0, least: float = 1e-3) -> Self:
        """A mixture of `components` full covariances fitted to samples `(N, *shape)` by expectation maximisation
        (scikit-learn's); `least` is added to every variance.

        Raises:
            ValueError: fewer samples than components.
        """
        from sklearn.mixture import GaussianMixture as Fit

        if not 1 <= components <= len(data):
            raise ValueError(f"components must be 1 to the number of samples, {len(data)}, got {components}")
        fit = Fit(components, reg_covar=least, random_state=seed).fit(data.flatten(1).double().numpy())
        weights, means, covariances = map(torch.from_numpy, (fit.weights_, fit.means_, fit.covariances_))
        return cls(weights, means.reshape(-1, *data.shape[1:]), covariances, process)

    def _parts(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """alpha, sigma, y `(B, K, D)`, 1 / (alpha^2 c + sigma^2), and `log w_k N(x; ...)` `(B, K)`."""
        k, d = self.centres.shape
        t = t.reshape(-1, 1, 1) if t.ndim else t.reshape(1, 1, 1)
        alpha, sigma = self.process.alpha(t).to(self.means.dtype), self.process.sigma(t).to(self.means.dtype)
        y = (x.reshape(-1, d).to(self.means.dtype) @ self.basis).view(-1, k, d) - alpha * self.centres
        # Clean, a direction without variance has a density only where y is 0: the least positive number stands for it.
        inverse = 1 / (alpha**2 * self.variances + sigma**2).clamp_min(torch.finfo(y.dtype).tiny)
        log_density = self.log_weights + 0.5 * (
            inverse.log().sum(-1) - (y**2 * inverse).sum(-1) - d * math.log(2 * math.pi)
        )
        return alpha, sigma, y, inverse, log_density

    def _mean(self, per_component: Tensor, log_density: Tensor) -> Tensor:
        weighted = per_component * torch.softmax(log_density, dim=-1).unsqueeze(-1)
        return weighted.flatten(1) @ self.basis.T

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"the mixture takes (B, *{self.shape}), got shape {tuple(x.shape)}")
        alpha, sigma, y, inverse, log_density = self._parts(x, t)
        inner = self.centres + alpha * self.variances * inverse * y if self.predicts == "x0" else sigma * inverse * y
        value = self._mean(inner, log_density).reshape(x.shape).to(x.dtype)
        return Prediction(value, self.predicts, x, t, self.process)

    def log_likelihood(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """`log p_t(x)` `(B,)` in nats; t defaults to the clean data's time."""
        time = torch.as_tensor(self.process.t_zero, dtype=torch.float64) if t is None else t
        return self._parts(x, time)[-1].logsumexp(-1)

    # Exact laws made from it. Each component is `exp(g + h x - x P x / 2)`, so products add these numbers up.

    def _exponents(self) -> tuple[Tensor, Tensor, Tensor]:
        """P `(K, D, D)`, h `(K, D)` and g `(K,)` of the clean data's law, in float64."""
        if bool((self.variances == 0).any()):
            raise ValueError("a component has no variance in some direction, and so no precision")
        k, d = self.centres.shape
        vectors, variances = self.basis.double().view(d, k, d).permute(1, 0, 2), self.variances.double()
        h = torch.einsum("kde,ke->kd", vectors, self.centres.double() / variances)
        squares = (self.centres.double() ** 2 / variances + variances.log() + math.log(2 * math.pi)).sum(-1)
        return vectors @ (vectors / variances.unsqueeze(1)).mT, h, self.log_weights.double() - squares / 2

    def _law(self, p: Tensor, h: Tensor, g: Tensor) -> tuple[GaussianMixture, Tensor]:
        """The normalised law of `sum_k exp(g + h x - x P x / 2)`, and the logarithm of its integral."""
        p = (p + p.mT) / 2
        factor, failed = torch.linalg.cholesky_ex(p)
        if bool(failed.any()):
            raise ValueError("this law has no integral: the precision of a component is not positive definite")
        covariance, d = torch.cholesky_inverse(factor), h.shape[1]
        means = torch.einsum("kde,ke->kd", covariance, h)
        half_log_det = factor.diagonal(dim1=1, dim2=2).log().sum(-1)
        logs = g + 0.5 * (h * means).sum(-1) - half_log_det + d / 2 * math.log(2 * math.pi)
        weights = logs.softmax(0)
        some = weights > 0  # those that underflow are nowhere seen
        made = GaussianMixture(
            weights[some], means[some].reshape(-1, *(self.shape or ())), covariance[some], self.process, self.predicts,
            self.means.dtype,
        )  # fmt: skip
        return made.to(self.device), logs.logsumexp(0)

    def tilted(self, a: Tensor, b: Tensor) -> tuple[GaussianMixture, Tensor]:
        """The law `p(x) exp(b x - x A x / 2) / Z`, and log Z: a mixture again. A is `(D, D)` and symmetric, b `(D,)`.

        `ValueError` where the integral is infinite.
        """
        p, h, g = self._exponents()
        return self._law(p + a.to(p), h + b.to(p), g)

    def times(self, other: GaussianMixture) -> tuple[GaussianMixture, Tensor]:
        """The law `p(x) q(x) / Z` of two mixtures, of K L components, and log Z."""
        (p, h, g), (q, i, j) = self._exponents(), (part.to(self.device) for part in other._exponents())
        if self.shape != other.shape:
            raise ValueError(f"two laws of one shape have a product, got {self.shape} and {other.shape}")
        return self._law((p[:, None] + q).flatten(0, 1), (h[:, None] + i).flatten(0, 1), (g[:, None] + j).flatten())

    def power(self, beta: int) -> tuple[GaussianMixture, Tensor]:
        """The law `p(x)^beta / Z` for a whole beta of at least 1, by the multinomial formula, and log Z."""
        if isinstance(beta, bool) or not isinstance(beta, int) or beta < 1:
            raise ValueError(f"a power of a mixture is a mixture for whole powers from 1 on, got {beta!r}")
        p, h, g = self._exponents()
        counts = torch.zeros(math.comb(len(g) + beta - 1, beta), len(g), dtype=torch.float64)
        for row, chosen in zip(counts, combinations_with_replacement(range(len(g)), beta), strict=True):
            for k in chosen:
                row[k] += 1
        ways = math.lgamma(beta + 1) - torch.lgamma(counts + 1).sum(1)
        counts, ways = counts.to(g), ways.to(g)
        return self._law(torch.einsum("ck,kde->cde", counts, p), counts @ h, counts @ g + ways)

    def covariances(self) -> Tensor:
        """The components' covariances `(K, D, D)` in float64."""
        k, d = self.centres.shape
        vectors = self.basis.double().view(d, k, d).permute(1, 0, 2)
        return vectors @ (vectors * self.variances.double().unsqueeze(1)).mT

    def posterior(
        self, operator: LinearOperator, y: Tensor, noise: float | Tensor | NoiseModel = 0.0
    ) -> GaussianMixture:
        """The law of x0 given one measurement `y = A x0 + noise` `(*measured)`: a mixture again, in closed form.

        Its weights are `w_k N(y; A m_k, A C_k A^T + S)`, its means `m_k + K_k (y - A m_k)` and its covariances
        `C_k - K_k A C_k`, with the gain `K_k = C_k A^T (A C_k A^T + S)^{-1}`. Without noise they are the limit, in
        which the covariances are singular.

        Args:
            noise: Gaussian: a standard deviation, one for each element of y, or a law of noise with a covariance.

        Raises:
            ValueError: an operator or a measurement that does not fit, or noise that is not Gaussian.
        """
        law = as_noise(noise)
        if not operator.linear or not isinstance(law, Gaussian):
            raise ValueError("the posterior of a mixture is in closed form for linear operators and Gaussian noise")
        operator.fit(self.shape or ())
        y = operator.received(operator.check_measurement(y.double()))
        if len(y) != 1:
            raise ValueError(f"one measurement has a posterior, got {len(y)}: make one for each")
        # What y says, in independent coordinates of unit noise where there is any: z = B x0 + s n, B of full rank.
        a, z, s = operator.matrix(), y.flatten(), 0.0 if law.none else 1.0
        if not law.none:
            cholesky = torch.linalg.cholesky(law.covariance.matrix(operator.out)[0].to(a))
            a, z = (torch.linalg.solve_triangular(cholesky, part, upper=False) for part in (a, z[:, None]))
            z = z[:, 0]
        u, values, vh = torch.linalg.svd(a, full_matrices=False)
        seen = values > LEAST * values.max()
        z, b = z @ u[:, seen], values[seen, None] * vh[seen]
        c = self.covariances()
        left = z - self.means.double() @ b.mT
        cb = c @ b.mT
        spread = b @ cb + s**2 * torch.eye(len(b), dtype=torch.float64, device=b.device)
        # A component without variance where y measures exactly leaves nothing to learn there.
        own, frame = torch.linalg.eigh((spread + spread.mT) / 2)
        large = own > LEAST**2 * own.amax(-1, keepdim=True)
        inverse = torch.where(large, 1 / torch.where(large, own, 1.0), 0.0)
        turned = (frame.mT @ left.unsqueeze(-1)).squeeze(-1)
        gain = cb @ frame * inverse.unsqueeze(1)
        means = self.means.double() + (gain @ turned.unsqueeze(-1)).squeeze(-1)
        covariances = c - gain @ (cb @ frame).mT
        logs = torch.where(large, own, 1.0).log().sum(-1) + (turned**2 * inverse).sum(-1)
        weights = (self.log_weights.double() - logs / 2).softmax(0)
        some = weights > 0
        return GaussianMixture(
            weights[some],
            means[some].reshape(-1, *(self.shape or ())),
            (covariances + covariances.mT)[some] / 2,
            self.process,
            self.predicts,
            self.means.dtype,
        ).to(self.device)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n exact samples `(n, *shape)` of the data."""
        generator = torch.Generator().manual_seed(seed)
        k, d = self.centres.shape
        choice = torch.multinomial(self.log_weights.exp().cpu(), n, replacement=True, generator=generator)
        choice = choice.to(self.means.device)
        normal = torch.randn(n, d, generator=generator, dtype=self.means.dtype).to(self.means.device)
        vectors = self.basis.view(d, k, d).permute(1, 0, 2)
        spread = torch.einsum("nde,ne->nd", vectors[choice], self.variances[choice].sqrt() * normal)
        return (self.means[choice] + spread).reshape(n, *(self.shape or ()))
