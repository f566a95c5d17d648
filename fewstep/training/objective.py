"""What a training step minimises: the denoiser's own error, weighted by noise level, and any terms added to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from fewstep.core.prediction import expand
from fewstep.denoisers.network import NetworkDenoiser

# (process, t) to the weight of the error of eps at time t, both float64 tensors of one shape.
Weighting = Callable[..., Tensor]


@dataclass(frozen=True)
class Step:
    """What one training step saw: the samples, the network's output and its target.

    x0, eps: (B, *shape). t: (B,) float64. output, target: of one shape, in the denoiser's own kind (`loss_pair`).
    fraction: of a denoiser that learns its variance, (B, *shape).
    """

    denoiser: NetworkDenoiser
    x0: Tensor
    eps: Tensor
    t: Tensor
    condition: Mapping[str, Tensor]
    output: Tensor
    target: Tensor
    fraction: Tensor | None = None

    @property
    def x(self) -> Tensor:
        """The noisy samples."""
        process = self.denoiser.process
        return expand(process.alpha(self.t), self.x0) * self.x0 + expand(process.sigma(self.t), self.x0) * self.eps


class Term(Protocol):
    """Something added to the loss: (B,) numbers for a step. One with parameters of its own is an `nn.Module`."""

    def __call__(self, step: Step) -> Tensor: ...


def squared_error(error: Tensor) -> Tensor:
    """Mean square of each sample's error: (B, *shape) to (B,)."""
    return error.square().flatten(1).mean(1)


class Objective(nn.Module):
    """(x0, eps, t, condition) to the loss of each sample, (B,).

    weighting: `weighting(process, t)`, the weight of the squared error of eps; None weights the error of the network's
    own output by 1. distance: how an error is measured, `squared_error` or another (B, *shape) to (B,). terms: pairs of
    a factor and a `Term`.

    It is a module, so that data-parallel and autocast wrappers see one forward pass.
    """

    def __init__(
        self,
        denoiser: NetworkDenoiser,
        weighting: Weighting | None = None,
        distance: Callable[[Tensor], Tensor] = squared_error,
        terms: Sequence[tuple[float, Term]] = (),
    ) -> None:
        super().__init__()
        self.denoiser, self.weighting, self.distance = denoiser, weighting, distance
        self.terms = tuple((factor, term) for factor, term in terms if factor)  # a factor of 0 changes no bit
        self.modules_of_terms = nn.ModuleList(term for _, term in self.terms if isinstance(term, nn.Module))

    def forward(self, x0: Tensor, eps: Tensor, t: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        output, target, fraction = self.denoiser.loss_parts(x0, eps, t, **condition)
        loss = self.distance(output.float() - target.float())
        if self.weighting is not None:
            weight = self.weighting(self.denoiser.process, t) * self.denoiser.own_error(t)
            loss = loss * weight.to(loss)
        step = Step(self.denoiser, x0, eps, t, condition, output, target, fraction) if self.terms else None
        for factor, term in self.terms:
            assert step is not None
            loss = loss + factor * term(step)
        return loss
