"""Experts of clusters of the data as one denoiser: each answers for its own data, and a router weighs the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.denoiser import Denoiser
from fewstep.core.memory import AnyMemory, ask
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction, expand
from fewstep.core.process import Process
from fewstep.denoisers.experts import Several

METHODS = (
    Method(
        "cluster-experts",
        paper="Decentralized Diffusion Models (McAllister et al., 2025)",
        arxiv="2501.05450",
        claim="experts of parts of the data, weighed by the posterior of the part, are the model of all data",
        use="ClusterExperts",
        facts={"wraps": True, "changes": ("plan", "data", "data_std")},
    ),
)


class Router(nn.Module):
    """Logits `(B, K)` of the posterior `p(k | x_t, t, condition)` over K clusters, by a network of this library.

    The network sees `x / norm` with `norm^2 = sigma^2 + alpha^2 data_std^2`, and `log(sigma / alpha) / 4`, as EDM's
    networks do; its K output channels (of an MLP: K outputs for each number) are averaged over the sample.

    Args:
        network: `network(x, noise, **condition)` with `(B, K C, ...)` out.
    """

    def __init__(self, network: nn.Module, process: Process, clusters: int, data_std: float = 0.5):
        super().__init__()
        self.network, self.process, self.clusters, self.data_std = network, process, clusters, float(data_std)

    def config(self) -> dict[str, Any]:
        return {"network": self.network, "clusters": self.clusters, "data_std": self.data_std}

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        dtype = next(self.network.parameters()).dtype
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        norm = (sigma**2 + alpha**2 * self.data_std**2).sqrt()
        noise = (-self.process.log_snr(t) / 4).clamp(-5.0, 5.0)  # infinite at pure noise
        seen = (x / expand(norm, x).to(x)).to(dtype)
        noise = noise.to(torch.float64 if dtype == torch.float64 else torch.float32)  # bfloat16 has too few digits
        found: Tensor = self.network(seen, noise.expand(len(x)), **condition)
        return found.view(len(x), self.clusters, -1).mean(-1)


class ClusterExperts(Several):
    """The marginal field `u(x, t) = sum_k p(k | x, t) u_k(x, t)` of experts `u_k`, one for each cluster of the data.

    With each expert exact for its cluster and the router exact, it is exact for all the data: in every kind of
    prediction, since kinds are affine in each other and the weights sum to one. `top` keeps the likeliest experts of
    each sample, with their weights made to sum to one again, and runs an expert on the samples that keep it alone. That
    reads the weights from the device, once an evaluation; the full mixture reads nothing.

    In a run each expert has a branch of the memory. One that remembers (a cached one) sees all samples under `top` as
    well: what it remembers would otherwise have gaps.

    Args:
        denoisers: at least one, of one process, shape and set of conditions.
        router: `router(x, t, **condition)` with logits (B, K), such as `Router`, or its options. Or the clusters'
            shares of the data, where the experts know their own `log_likelihood(x, t)` (Gaussian mixtures): the weights
            are then exact. None with a single expert.
        top: how many experts a sample keeps, by default all.
        data, data_std: name of the data set that the clusters are of, where that can be opened again, and its standard
            deviation.

    Raises:
        ValueError: experts that do not go together, a `top` outside 1 to K, shares that are not K positive numbers.
    """

    def __init__(
        self,
        denoisers: Sequence[Denoiser],
        router: nn.Module | Mapping[str, Any] | Sequence[float] | None = None,
        top: int | None = None,
        data: str | None = None,
        data_std: float | None = None,
    ):
        super().__init__(denoisers, data=data, data_std=data_std)
        count = len(denoisers)
        if top is not None and not (isinstance(top, int) and 1 <= top <= count):
            raise ValueError(f"{count} experts have a top of 1 to {count}, got {top!r}")
        if router is None and count > 1:
            raise ValueError(f"{count} experts need a router, or the clusters' shares of the data")
        if isinstance(router, Mapping):
            router = Router(process=self.process, **router)
        self.shares = None
        if router is not None and not isinstance(router, nn.Module):
            self.shares = tuple(float(share) for share in router)
            if len(self.shares) != count or min(self.shares) <= 0:
                raise ValueError(f"{count} clusters have as many positive shares, got {self.shares}")
            if any(not hasattr(other, "log_likelihood") for other in denoisers):
                raise ValueError("shares weigh experts that know their log_likelihood: give a router for others")
        self.router = router if isinstance(router, nn.Module) else None
        self.top = top

    def config(self) -> dict[str, Any]:
        router: Any = self.shares
        if self.router is not None:
            if not isinstance(self.router, Router):
                raise ValueError(f"a router of class {type(self.router).__name__} cannot be saved: use Router")
            router = self.router.config()
        return {
            "denoisers": self.denoisers,
            "router": router,
            "top": self.top,
            "data": self.data,
            "data_std": self.data_std,
        }

    @property
    def carries(self) -> bool:
        return any(self._expert(k).carries for k in range(len(self.denoisers)))

    def weights(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """`p(k | x, t)`, (B, K), each row summing to one; under `top` zero for all but the likeliest."""
        if self.shares is not None:
            own = [expert.log_likelihood(x, t) for expert in self.denoisers]  # type: ignore[operator]
            logits = torch.stack(own, 1) + torch.tensor(self.shares, dtype=own[0].dtype, device=x.device).log()
        elif self.router is not None:
            logits = self.router(x, t, **condition)
        else:
            return x.new_ones(len(x), 1)
        if self.top is not None and self.top < len(self.denoisers):
            kept = logits.topk(self.top, dim=1)
            logits = torch.full_like(logits, -torch.inf).scatter(1, kept.indices, kept.values)
        return logits.softmax(1)

    def forward(self, x: Tensor, t: Tensor, *, memory: AnyMemory | None = None, **condition: Any) -> Prediction:
        count = len(self.denoisers)
        if count == 1:
            return self._answer(0, x, t, memory, condition, None)
        p = self.weights(x, t, **condition)
        some = self.top is not None and self.top < count
        total, first = torch.zeros_like(x), None
        for number in range(count):
            remembers = memory is not None and self._expert(number).carries
            rows = p[:, number].nonzero().squeeze(1) if some and not remembers else None
            if rows is not None and not len(rows):
                continue
            answer = self._answer(number, x, t, memory, condition, rows)
            value = answer.value if first is None or answer.kind == first.kind else answer.to(first.kind)
            first = first or answer
            weight = expand(p[:, number] if rows is None else p[rows, number], value).to(x.dtype)
            if rows is None:
                total = total + weight * value
            else:
                total = total.index_add(0, rows, weight * value)
        assert first is not None
        whole = len(first.value) == len(x)
        return first.replaced(total) if whole else Prediction(total, first.kind, x, t, self.process)

    def _answer(
        self,
        number: int,
        x: Tensor,
        t: Tensor,
        memory: AnyMemory | None,
        condition: Mapping[str, Any],
        rows: Tensor | None,
    ) -> Prediction:
        """An expert's answer for some rows, or all."""
        own = memory.branch(f"expert {number}") if memory is not None else None
        if rows is None:
            return ask(self._expert(number), x, t, own, condition)
        named = {name: v[rows] if isinstance(v, Tensor) and v.ndim else v for name, v in condition.items()}
        part = own[rows] if own is not None else None
        return ask(self._expert(number), x[rows], t[rows] if t.ndim else t, part, named)
