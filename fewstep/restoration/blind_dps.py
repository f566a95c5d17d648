"""BlindDPS: a chain of pictures and a chain of kernels side by side, both led by what the two leave of y."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.live import Live
from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.operators.operator import Operator
from fewstep.restoration.gradients import length, unit
from fewstep.restoration.kernels import Kernels
from fewstep.restoration.measured import Problem
from fewstep.sampling.ddim import posterior

METHODS = (
    Method(
        "blind-dps",
        paper="Parallel Diffusion Models of Operator and Image for Blind Inverse Problems (Chung et al., 2022)",
        arxiv="2211.10656",
        claim="dps with a prior of kernels beside that of pictures; a vector product with each",
        use="BlindDPS",
        facts={"form": "chain", "measures": ("linear",), "noise": ("none", "gaussian"), "needs": "blur"},
    ),
)

KERNELS = 1 << 24  # the first draw of the kernels' chain


@dataclass(frozen=True)
class BlindDPS:
    """Two ancestral chains, x and k, each followed by `- zeta grad |y - k0_hat * x0_hat|` in its own state (algorithm
    1); the kernel's loss has `sparse |k0_hat|_1` besides.

    The operator given is a cyclic blur, which says the kernel's size.

    Args:
        kernels: a denoiser of kernels, of the blur's number of taps and the model's process; without one, all kernels
            of sums to one are as likely (k is led by the gradient alone, from the blur's own kernel).
        zeta, kernel_zeta: of the two. simplex: whether kernels are brought to non-negative taps of sum one, the k0_hat
            that x meets and the last.

    A run's report has the kernels `(B n, *kernel)`, as "kernels".
    """

    passes: ClassVar[int] = 3
    kernels: Denoiser | None = None
    zeta: float = 1.0
    kernel_zeta: float = 0.1
    sparse: float = 0.0
    simplex: bool = True
    found: list[Tensor] = field(default_factory=list, repr=False, compare=False, init=False)

    def __post_init__(self) -> None:
        for name in ("zeta", "kernel_zeta", "sparse"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")

    def check(self, model: Denoiser, operator: Operator, law: Any) -> None:
        """`ValueError` unless the operator is a cyclic blur whose kernel fits the kernels' model."""
        family, own = Kernels(operator), self.kernels
        if own is None:
            return
        if own.shape is None or torch.Size(own.shape).numel() != len(family.guess):
            raise ValueError(f"the model of kernels makes {own.shape}, and the blur's kernel has {family.taps}")
        if own.process.config() != model.process.config():
            raise ValueError("the models of pictures and of kernels must have one process")

    def walk(self, live: Live, process: Process, times: Sequence[float], problem: Problem) -> Tensor:
        family, x, y = Kernels(problem.operator), live.start(), live.condition["y"]
        shape = (len(x), len(family.guess))
        k = live.source.normal(KERNELS, shape, x.device, x.dtype) * process.sigma(times[0])
        guess = family.guess.to(x).expand(shape)
        for number, (a, b) in enumerate(pairwise(times)):
            with torch.enable_grad():
                state = x.detach().requires_grad_(True)
                own = (guess if self.kernels is None else k).detach().requires_grad_(True)
                x0 = live.evaluate(state, a).x0
                k0 = self._kernel(own, a)
                met = on_simplex(k0) if self.simplex else k0
                left = length(y - family.apply(met, x0))
                loss = left + self.sparse * k0.abs().sum(1)
                for_x, for_k = torch.autograd.grad(loss.sum(), (state, own))
            s, of_x, of_x0 = posterior(process, a, b)
            c = unit(process, a, b)
            x = of_x * x + of_x0 * x0.detach() - self.zeta * c * for_x
            if s > 0:
                x = x + s * live.noise()
            if self.kernels is None:
                guess = guess - self.kernel_zeta * for_k
                continue
            k = of_x * k + of_x0 * k0.detach() - self.kernel_zeta * c * for_k
            if s > 0:
                k = k + s * live.source.normal(KERNELS + number + 1, shape, x.device, x.dtype)
        last = guess if self.kernels is None else k / process.alpha(times[-1])
        self.found.append((on_simplex(last) if self.simplex else last).view(-1, *family.taps))
        return x

    def reported(self) -> dict[str, Tensor]:
        """What the runs found beside the samples."""
        return {"kernels": torch.cat(self.found)}

    def _kernel(self, k: Tensor, t: float) -> Tensor:
        """k0_hat `(B, K)` of a state."""
        if self.kernels is None:
            return k
        shaped = k.reshape(len(k), *(self.kernels.shape or ()))
        return self.kernels(shaped, torch.tensor(t, dtype=k.dtype, device=k.device)).x0.flatten(1)


def on_simplex(k: Tensor) -> Tensor:
    """The nearest point `(B, K)` with no negative tap and a sum of one (Held, Wolfe and Crowder, 1974)."""
    ordered = k.sort(1, descending=True).values
    excess = (ordered.cumsum(1) - 1) / torch.arange(1, k.shape[1] + 1, dtype=k.dtype, device=k.device)
    last = (ordered > excess).sum(1, keepdim=True) - 1
    return (k - excess.gather(1, last)).clamp_min(0)
