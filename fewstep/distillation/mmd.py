"""Fine-tuning at a fixed number of steps by maximum mean discrepancy, with the gradient through all of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.distillation.distances import Features
from fewstep.distillation.method import Batch, Distiller, Setting
from fewstep.distillation.origin import plan_of
from fewstep.distillation.teacher import BACKWARD, FORWARD
from fewstep.metrics.features import find_features
from fewstep.networks.surgery import linked
from fewstep.sampling.checkpointed import checkpointed

METHODS = (
    Method(
        "mmd-ddm",
        paper="Fast Inference in Denoising Diffusion Models via MMD Finetuning (Aiello et al., 2023)",
        arxiv="2301.07969",
        claim="k steps of DDIM trained as one, by an unbiased discrepancy from real samples",
        use="MMD",
        facts={
            "student": "denoiser",
            "data": True,
            "pairing": False,
            "players": ("student",),
            "steps": "any",
            "usual_steps": 5,
            "lr": 1e-4,
        },
    ),
)

KERNELS = ("polynomial", "gaussian")
WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the Gaussians, in root mean square distances of two real samples
NETWORK = "network"  # the features of a frozen block
SCALED = 512  # real samples of which that distance is taken

Kernel = Callable[[Tensor, Tensor], Tensor]  # features (N, F) and (M, F) to (N, M)


def polynomial(x: Tensor, y: Tensor) -> Tensor:
    """`(x . y / F + 1)^3` (Aiello et al., eq. 8)."""
    return (x @ y.mT / x.shape[1] + 1) ** 3


def gaussian(scale: Tensor | float) -> Kernel:
    """The mean of `exp(-|x - y|^2 / (2 s^2))` over five widths s, from a quarter of the scale to four times it."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        # Products, not differences: (N, M, F) would be large. What rounding makes negative is no distance.
        squares = (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.mT).clamp(min=0)
        return torch.stack([torch.exp(-squares / (2 * (width * scale) ** 2)) for width in WIDTHS]).mean(0)

    return kernel


def mmd2(x: Tensor, y: Tensor, kernel: Kernel) -> Tensor:
    """The unbiased squared discrepancy of two laws from n and m samples of them, as n numbers whose mean it is:

        mean_i!=j k(x_i, x_j) - 2 mean_ij k(x_i, y_j) + mean_i!=j k(y_i, y_j)

    (Gretton et al., 2012, Lemma 6), zero in the mean for equal laws, and so also negative. x (n, F), y (m, F).

    Raises:
        ValueError: fewer than two samples of either.
    """
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise ValueError(f"an unbiased discrepancy needs at least 2 samples of both laws, got {n} and {m}")
    own, across, real = kernel(x, x), kernel(x, y), kernel(y, y)
    inside = (own.sum(1) - own.diagonal()) / (n - 1)
    return inside - 2 * across.mean(1) + (real.sum() - real.diagonal().sum()) / (m * (m - 1))


class MMD(Distiller):
    """The discrepancy of a batch of samples of the k-step plan from real ones, in features, its gradient through all k
    evaluations (Aiello et al., section 3). The plan is DDIM's from the student's start, at k fixed times; its stages
    are run again on the way back (`sampling.checkpointed`). Samples have the conditions of the real ones.

    Args:
        kernel: "polynomial", `(x . y / F + 1)^3`, or "gaussian", a mean of five widths around the root mean square
            distance of two real samples. features: "pixels", "blocks" or "digits" (`metrics.features`), taken of states
            as the process has them, or "network", the block in the middle of the base's network.

    Raises:
        ValueError: an unknown kernel or features, a batch of one sample.
    """

    kind = "denoiser"

    def __init__(self, setting: Setting, kernel: str = "polynomial", features: str = "pixels") -> None:
        if kernel not in KERNELS:
            raise suggest("kernel", kernel, KERNELS)
        if features != NETWORK:
            try:
                self._named = find_features(features)
            except ValueError:
                raise suggest("features", features, (NETWORK, "pixels", "blocks", "digits")) from None
        self.setting = setting
        self.block = Features(linked(setting.base).eval().requires_grad_(False)) if features == NETWORK else None
        self.plan = plan_of(setting.process, self.kind, setting.steps, setting.start, None)
        self.kernel = polynomial if kernel == "polynomial" else gaussian(self._scale())
        self.student = setting.student()
        self.players = {"student": setting.player(self.student, self._loss, average=True)}

    def times(self) -> tuple[float, ...]:
        return self.plan.times[:-1]

    @torch.no_grad()
    def _scale(self) -> Tensor:
        """The root mean square distance of two real samples in the features."""
        x0, condition = self.setting.real(SCALED, torch.Generator().manual_seed(self.setting.seed))
        device = self.setting.device
        found = self.features(x0.to(device), {name: value.to(device) for name, value in condition.items()})
        return (2 * found.var(0).sum()).sqrt()

    def features(self, x: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """Vectors (B, F) of samples, through which gradients run."""
        if self.block is None:
            return self._named.function(x)
        return torch.cat([out.flatten(1) for out in self.block.of(x, condition)], 1)

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        x0, condition = self.setting.real(batch, generator)
        return {"x0": x0, "condition": condition, "z": self.setting.noise(batch, generator)}

    def samples(self, drawn: Batch) -> Tensor:
        """Samples of the plan (B, *shape), with their gradient."""
        self.setting.count.evaluations += self.plan.nfe * (FORWARD + BACKWARD) * len(drawn["z"])  # each runs twice
        return checkpointed(self.plan, self.student, drawn["z"], **drawn["condition"])

    def _loss(self, drawn: Batch) -> Tensor:
        condition = drawn["condition"]
        made = self.features(self.samples(drawn), condition)
        with torch.no_grad():
            real = self.features(drawn["x0"], condition)
        return mmd2(made, real, self.kernel)
