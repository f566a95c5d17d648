"""Sparse low-rank adaptation: the weights that are nearly zero, and have little effect, learn a new task."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fewstep.core.methods import Method
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.training.fit import Draw, fit
from fewstep.training.lora import layers
from fewstep.training.objective import Objective, Step

METHODS = (
    Method(
        "sara",
        kind="tuner",
        paper="SaRA: High-Efficient Diffusion Model Fine-tuning with Progressive Sparse Low-Rank Adaptation"
        " (Hu et al., 2024)",
        arxiv="2409.06633",
        claim="trains only the smallest weights, chosen again midway; their change is kept low-rank",
        use="sara",
    ),
)


def smallest(
    model: NetworkDenoiser, share: float, targets: Sequence[str] | None = None
) -> tuple[float, dict[str, Tensor]]:
    """The threshold below which a `share` in (0, 1] of all weights of the layers lies, and the indices of those.

    Weights of linear layers and convolutions count, not biases and norms; `targets` as in `lora.layers`. The second
    result has the flat indices (n,) of the chosen entries of each layer by path; layers without any are left out.
    Of equal weights at the threshold, all are chosen.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share}")
    sizes = _sizes(model, layers(model, targets))
    every = torch.cat([size.flatten() for size in sizes.values()])
    threshold = float(every.kthvalue(max(1, round(share * every.numel()))).values)
    return threshold, _below(sizes, threshold)


def _weight(model: NetworkDenoiser, path: str) -> Tensor:
    weight = model.network.get_submodule(path).weight
    assert isinstance(weight, Tensor)
    return weight


def _sizes(model: NetworkDenoiser, paths: Iterable[str]) -> dict[str, Tensor]:
    return {path: _weight(model, path).detach().abs() for path in paths}


def _below(sizes: Mapping[str, Tensor], threshold: float) -> dict[str, Tensor]:
    found = {path: (size.flatten() <= threshold).nonzero()[:, 0] for path, size in sizes.items()}
    return {path: rows for path, rows in found.items() if len(rows)}


class Sparse(nn.Module):
    """A weight plus `values` (n,) at `rows` (n,), flat indices; the weight itself gets no gradient."""

    rows: Tensor

    def __init__(self, rows: Tensor, like: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows, persistent=False)
        self.values = nn.Parameter(torch.zeros(len(rows), dtype=like.dtype, device=like.device))
        self.shape = like.shape

    def delta(self) -> Tensor:
        """The change as a matrix (out, rest), mostly zeros."""
        flat = self.values.new_zeros(self.shape.numel())
        return flat.index_add(0, self.rows, self.values).view(self.shape[0], -1)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.delta().view_as(weight)


def add_sparse(model: NetworkDenoiser, rows: Mapping[str, Tensor]) -> dict[str, Sparse]:
    """Makes the weights at `rows` (of `smallest`) trainable, in place, and nothing else; returns their values by path.

    A gradient and an optimiser's state are kept only for the chosen entries.
    """
    model.requires_grad_(False)
    made = {}
    for path, chosen in rows.items():
        made[path] = Sparse(chosen, _weight(model, path))
        parametrize.register_parametrization(model.network.get_submodule(path), "weight", made[path])
    return made


def fold(model: NetworkDenoiser) -> None:
    """Puts the trained values into the weights, in place: the network is plain again."""
    for module in model.network.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    model.requires_grad_(True)


@dataclass(frozen=True)
class NuclearNorm:
    """A term of an objective: the sum of the nuclear norms (sums of singular values) of the layers' changes.

    Its gradient in a change `U S V^T` is `U V^T` over the singular values above rounding, the subgradient of least
    norm: that of no change is zero.
    """

    changes: Sequence[Sparse]

    def __call__(self, step: Step | None = None) -> Tensor:
        total = torch.zeros((), device=self.changes[0].values.device)
        for change in self.changes:
            delta = change.delta()
            with torch.no_grad():
                u, s, vh = torch.linalg.svd(delta.float(), full_matrices=False)
                kept = s > s[0] * torch.finfo(s.dtype).eps * max(delta.shape)
                direction = (u * kept) @ vh
            total = total + (direction * delta).sum()  # <U V^T, U S V^T> is the sum of S
        return total


@dataclass(frozen=True)
class Sara:
    """The tuned model, plain again. `chosen` entries in each phase, of `entries`; `optimiser_bytes` of AdamW's two
    averages in the first phase, and those that training every weight would need."""

    model: NetworkDenoiser
    threshold: float
    chosen: tuple[int, ...]
    entries: int
    optimiser_bytes: int
    full_bytes: int


def sara(
    model: NetworkDenoiser,
    data: Tensor | Draw,
    *,
    steps: int,
    share: float = 0.1,
    penalty: float = 1e-4,
    phases: int = 2,
    targets: Sequence[str] | None = None,
    seed: int = 0,
    **options: Any,
) -> Sara:
    """Adapts a model to data by its smallest weights: `W + M * dP`, M where |W| is below a threshold, loss + penalty
    times the nuclear norms of M * dP. The given model stays as it is.

    The steps are split into `phases`. After each, the trained values are folded into the weights, and the next trains
    those of the chosen entries that are still below the threshold: those not yet in use.

    Args:
        data: as in `fit`, which also gets the `options` (batch, lr, levels, coupling, ema, clip, watch).
        share: of all weights, in (0, 1], whose largest size is the threshold. targets: layers, as in `lora.layers`.

    Raises:
        ValueError: share out of range, a negative penalty, fewer steps than phases, an unknown target.
    """
    if penalty < 0:
        raise ValueError(f"the penalty must be at least 0, got {penalty}")
    if not 1 <= phases <= steps:
        raise ValueError(f"there are 1 to {steps} phases in {steps} steps, got {phases}")
    tuned = copy.deepcopy(model)
    threshold, rows = smallest(tuned, share, targets)
    entries = sum(size.numel() for size in _sizes(tuned, layers(tuned, targets)).values())
    every = sum(p.numel() * p.element_size() for p in tuned.parameters())
    chosen: list[int] = []
    for phase in range(phases):
        if not rows:  # every entry has grown: nothing is left to choose
            break
        changes = add_sparse(tuned, rows)
        chosen.append(sum(len(change.values) for change in changes.values()))
        if phase == 0:
            own = sum(2 * change.values.numel() * change.values.element_size() for change in changes.values())
        norm = NuclearNorm(list(changes.values()))
        objective = Objective(tuned, terms=[(penalty, norm)] if penalty else ())
        count = steps * (phase + 1) // phases - steps * phase // phases
        tuned = fit(tuned, data, steps=count, objective=objective, seed=seed + phase, **options)
        fold(tuned)
        still = _below(_sizes(tuned, rows), threshold)
        rows = {path: still[path][torch.isin(still[path], rows[path])] for path in rows if path in still}
        rows = {path: left for path, left in rows.items() if len(left)}
    return Sara(tuned, threshold, tuple(chosen), entries, own, 2 * every)
