"""Noise levels as tasks: how the gradients of several clusters of levels are combined into one.

Each is used as `fit(..., backward=PCGrad(cuts))`, with the cuts of `fewstep.training.clusters.clusters`: called with
the losses of a batch, their times and the parameters, it leaves gradients in the parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fewstep.core.methods import Method
from fewstep.training.clusters import cluster_of

ANT = "Addressing Negative Transfer in Diffusion Models (Go et al., 2023)"
METHODS = (
    Method(
        "pcgrad",
        kind="backward",
        paper=ANT,
        arxiv="2306.00354",
        claim="removes from a cluster's gradient what conflicts with another cluster's",
        use="PCGrad",
    ),
    Method(
        "nash-mtl",
        kind="backward",
        paper=ANT,
        arxiv="2306.00354",
        claim="the bargaining solution: every cluster gains in proportion, whatever the scale of its loss",
        use="NashMTL",
    ),
    Method(
        "uncertainty-weighting",
        kind="backward",
        paper=ANT,
        arxiv="2306.00354",
        claim="clusters weighted by learned variances, which settle at their mean losses",
        use="UncertaintyWeighting",
    ),
)


def cluster_gradients(
    losses: Tensor, t: Tensor, parameters: Sequence[nn.Parameter], cuts: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """The gradient of each cluster's share of the mean loss, as rows (C, P), and the shares of samples (C,) there.

    `sum of the cluster's losses / B`: the rows sum to the gradient of the mean. Clusters that are not in the batch
    are left out, so C is the number of those that are.
    """
    cluster = cluster_of(t.to(losses.device), cuts)
    rows, shares = [], []
    present = cluster.unique().tolist()
    for number in present:
        inside = (cluster == number).to(losses)
        gradient = torch.autograd.grad(
            (losses * inside).sum() / len(losses),
            parameters,
            retain_graph=number != present[-1],
            allow_unused=True,
            materialize_grads=True,
        )
        rows.append(torch.cat([g.flatten() for g in gradient]))
        shares.append(inside.mean())
    return torch.stack(rows), torch.stack(shares)


def set_gradient(flat: Tensor, parameters: Sequence[nn.Parameter]) -> None:
    """Adds a gradient (P,) to the gradients of the parameters."""
    for part, parameter in zip(flat.split([p.numel() for p in parameters]), parameters, strict=True):
        part = part.view_as(parameter).to(parameter.dtype)
        parameter.grad = part.clone() if parameter.grad is None else parameter.grad + part


def project_conflicts(gradients: Tensor, generator: torch.Generator) -> Tensor:
    """PCGrad (Yu et al., 2020, arXiv:2001.06782, Algorithm 1): gradients (C, P) to one (P,).

    Each gradient is projected, in random order of the others, onto the normal plane of every other one that it
    conflicts with; then they are summed. Without a conflict that is their plain sum.
    """
    norms = gradients.square().sum(1)
    total = torch.zeros_like(gradients[0])
    for i, gradient in enumerate(gradients):
        for j in torch.randperm(len(gradients), generator=generator).tolist():
            if j != i:
                against = (gradient @ gradients[j]).clamp_max(0) / norms[j].clamp_min(torch.finfo(norms.dtype).tiny)
                gradient = gradient - against * gradients[j]
        total = total + gradient
    return total


def bargain(gram: Tensor, steps: int = 100) -> Tensor:
    """The Nash bargaining weights (Navon et al., 2022, arXiv:2202.01017, claim 3.1): a > 0 with `G a = 1 / a`.

    gram: (C, C) inner products of the gradients. a is the minimum of the convex function `a G a / 2 - sum log a`, found
    by damped Newton steps in float64. Gradients that cancel exactly would make it infinite, so the diagonal of G is
    raised by a part in 1e6 of its mean.
    """
    gram = gram.detach().double()
    scale = gram.diagonal().clamp_min(1e-300).rsqrt()  # of unit gradients: the solution scales with 1 / norm
    unit = scale[:, None] * gram * scale + 1e-6 * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    a = torch.ones_like(scale) / len(scale) ** 0.5
    for _ in range(steps):
        slope = unit @ a - 1 / a
        newton = torch.linalg.solve(unit + torch.diag(a**-2), slope)
        decrement = float((slope @ newton).clamp_min(0).sqrt())
        if decrement < 1e-12:
            break
        # self-concordant: the step 1 / (1 + decrement) stays inside and converges from anywhere
        a = a - newton / (1 + decrement if decrement > 0.25 else 1.0)
    return a * scale


class PCGrad:
    """Gradient surgery over clusters of noise levels; `backward(losses, t, parameters)`. One backward pass per cluster.

    cuts: the times between the clusters, rising. seed: of the order in which conflicts are projected.
    """

    def __init__(self, cuts: Sequence[float], seed: int = 0) -> None:
        self.cuts = tuple(cuts)
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, losses: Tensor, t: Tensor, parameters: Sequence[nn.Parameter]) -> None:
        gradients, _ = cluster_gradients(losses, t, parameters, self.cuts)
        set_gradient(project_conflicts(gradients, self.generator), parameters)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: the generator's state."""
        return {"generator": self.generator.get_state()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a saved state."""
        self.generator.set_state(state["generator"])


class NashMTL:
    """The bargaining solution over clusters of noise levels; `backward(losses, t, parameters)`.

    The weights of `bargain` give an update of norm sqrt(C) whatever the losses are; here it is scaled to the norm of
    the plain gradient, so that learning rates and clipping keep their meaning. Costs one backward pass per cluster.
    """

    def __init__(self, cuts: Sequence[float]) -> None:
        self.cuts = tuple(cuts)

    def __call__(self, losses: Tensor, t: Tensor, parameters: Sequence[nn.Parameter]) -> None:
        gradients, _ = cluster_gradients(losses, t, parameters, self.cuts)
        agreed = bargain(gradients.double() @ gradients.double().T).to(gradients) @ gradients
        length = agreed.norm().clamp_min(torch.finfo(agreed.dtype).tiny)
        set_gradient(agreed * (gradients.sum(0).norm() / length), parameters)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: nothing."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Nothing is carried from one step to the next."""


class UncertaintyWeighting(nn.Module):
    """Learned variances (Kendall et al., 2018, arXiv:1705.07115) over clusters; `backward(losses, t, parameters)`.

    `sum_c share_c (L_c exp(-s_c) + s_c) / 2` over the clusters' mean losses L_c; its minimum in s_c is `log L_c`, where
    the weight is `1 / L_c`. s (C,) is a parameter, moved by its own gradient steps, so that no optimiser needs it.
    One backward pass. The state dict holds s: save it with the run.

    lr: of s. start: the loss at which s begins; 1 makes the first weights 1/2.
    """

    def __init__(self, cuts: Sequence[float], lr: float = 0.02, start: float = 1.0) -> None:
        super().__init__()
        if not (lr > 0 and start > 0):
            raise ValueError(f"lr and start must be positive, got {lr} and {start}")
        self.cuts, self.lr = tuple(cuts), lr
        self.log_variance = nn.Parameter(torch.full((len(self.cuts) + 1,), start).log(), requires_grad=False)

    @property
    def weights(self) -> Tensor:
        """The factor of each cluster's losses, (C,)."""
        return 0.5 * (-self.log_variance).exp()

    def __call__(self, losses: Tensor, t: Tensor, parameters: Sequence[nn.Parameter]) -> None:
        cluster = cluster_of(t.to(losses.device), self.cuts)
        self.log_variance.data = self.log_variance.data.to(losses.device)
        (losses * self.weights.to(losses)[cluster]).mean().backward()
        values, count = losses.detach().to(self.log_variance), len(self.cuts) + 1
        seen = torch.bincount(cluster, minlength=count).to(values)
        mean = torch.zeros_like(self.log_variance).index_add_(0, cluster, values) / seen.clamp_min(1)
        # Bounded on both sides, so that a variance that begins far too small is not thrown past its mean loss.
        slope = 0.5 * (1 - mean * (-self.log_variance).exp()).clamp_min(-1)
        # Every cluster in the batch moves alike, however few samples it has there.
        self.log_variance.data = self.log_variance.data - self.lr * slope * (seen > 0)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: the variances."""
        return {"log_variance": self.log_variance.detach().clone()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a saved state."""
        self.log_variance.data = state["log_variance"].to(self.log_variance)
