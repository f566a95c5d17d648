"""Noise levels drawn by importance: levels of large loss are drawn more often, and each draw counts less."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.training.noise_levels import NoiseLevels

METHODS = (
    Method(
        "importance",
        kind="levels",
        paper="Improved Denoising Diffusion Probabilistic Models (Nichol and Dhariwal, 2021)",
        arxiv="2102.09672",
        claim="draws noise levels by their loss: the same mean loss, a gradient of lower variance",
        use="ImportanceLevels",
    ),
)


class ImportanceLevels(NoiseLevels):
    """A distribution of noise levels, redrawn: bin k of its quantiles with probability `p_k ~ sqrt(E[L_k^2])`.

    `weight(t)` is `1 / (bins p_k)`, so the mean of `weight * loss` is that of the base draw, whatever p is; this p
    gives it the least variance (Nichol and Dhariwal, section 3.3). `E[L_k^2]` is the mean over the last `history`
    losses of the bin; until every bin has that many, p is uniform, and later a share `floor` of the draws stays
    uniform.

    After each step: `weight(t)`, then `update(t, losses)`. `backward` does both for `fewstep.training.fit`. The answers
    of `quantile` change with `update`; `state` and `load` keep them across checkpoints.

    Args:
        base: the distribution to imitate. bins: their number; all have equal probability under it.
        history: losses remembered for each bin. floor: 0 to 1.

    Raises:
        ValueError: bins or history below 1, a floor outside 0 to 1, a base with a whole bin at a single time.
    """

    def __init__(self, base: NoiseLevels, bins: int = 64, history: int = 10, floor: float = 0.001) -> None:
        if bins < 1 or history < 1 or not 0 <= floor <= 1:
            raise ValueError(
                f"bins and history must be at least 1 and floor within 0 and 1, got {bins}, {history}, {floor}"
            )
        self.base, self.process, self.bins, self.history, self.floor = base, base.process, bins, history, floor
        self.edges = base.quantile(torch.linspace(0, 1, bins + 1, dtype=torch.float64))
        if not bool((self.edges.diff() > 0).all()):
            raise ValueError(f"the noise levels {base.draw!r} have a whole bin of {bins} at one time: use fewer bins")
        self.losses = torch.zeros(bins, history, dtype=torch.float64)
        self.seen = torch.zeros(bins, dtype=torch.long)
        self._refresh()

    def _refresh(self) -> None:
        self.probabilities = torch.full((self.bins,), 1 / self.bins, dtype=torch.float64)
        size = self.losses.square().mean(1).sqrt()
        if bool((self.seen >= self.history).all()) and float(size.sum()) > 0:
            self.probabilities = (1 - self.floor) * size / size.sum() + self.floor / self.bins
        self._cumulative = torch.cat([torch.zeros(1, dtype=torch.float64), self.probabilities.cumsum(0)])
        self._cumulative[-1] = 1.0

    def quantile(self, u: Tensor) -> Tensor:
        """The times, float64, below which a share u in [0, 1] of the draws has less noise."""
        u = u.double()
        cumulative = self._cumulative.to(u.device)
        found = (torch.searchsorted(cumulative, u.contiguous(), right=True) - 1).clamp(0, self.bins - 1)
        within = (u - cumulative[found]) / (cumulative[found + 1] - cumulative[found])
        return self.base.quantile((found + within.clamp(0, 1)) / self.bins)

    def bin(self, t: Tensor) -> Tensor:
        """The bin of each time, (B,), on the CPU."""
        t = t.detach().double().cpu()
        return (torch.searchsorted(self.edges, t.contiguous(), right=True) - 1).clamp(0, self.bins - 1)

    def weight(self, t: Tensor) -> Tensor:
        """The weight of a loss at t, float64 (B,), on the device of t."""
        return (1 / (self.bins * self.probabilities[self.bin(t)])).to(t.device)

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Adds the unweighted losses (B,) at the times t (B,) to the history."""
        where, losses = self.bin(t), losses.detach().double().cpu()
        order = where.argsort(stable=True)
        where, losses = where[order], losses[order]
        counts = where.bincount(minlength=self.bins)
        rank = torch.arange(len(where)) - (counts.cumsum(0) - counts)[where]
        kept = rank >= counts[where] - self.history  # the last ones, where a bin gets more than the history holds
        slot = (self.seen[where] + rank) % self.history
        self.losses[where[kept], slot[kept]] = losses[kept]
        self.seen += counts
        self._refresh()

    def backward(self, losses: Tensor, t: Tensor, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Leaves the gradient of the weighted mean in the parameters, and adds the losses to the history."""
        (losses * self.weight(t).to(losses)).mean().backward()
        self.update(t, losses)

    def state(self) -> dict[str, Tensor]:
        """The history, as tensors."""
        return {"losses": self.losses.clone(), "seen": self.seen.clone()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continues from a saved history; `ValueError` for one with other bins or another length."""
        if state["losses"].shape != self.losses.shape:
            raise ValueError(
                f"the saved history has shape {tuple(state['losses'].shape)}, these levels {tuple(self.losses.shape)}"
            )
        self.losses, self.seen = state["losses"].double().clone(), state["seen"].long().clone()
        self._refresh()
