"""Any f-divergence between the teacher's law p and the student's q: the KL gradient, weighed by their ratio."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.core.plan import Plan
from fewstep.core.prediction import expand
from fewstep.distillation.distribution_matching import CLASSIFY, DMD2, REAL
from fewstep.distillation.method import Batch, Setting

METHODS = (
    Method(
        "f-distill",
        paper="One-step Diffusion Models with f-Divergence Distribution Matching (Xu et al., 2025)",
        arxiv="2502.15681",
        claim="weighed by the ratio of the laws, the student covers modes that reverse KL leaves out",
        use="FDistill",
        facts={"student": "jump", "data": True, "pairing": False, "players": ("fake", "student"), "steps": "any"},
    ),
)

# `h(r) = f''(r) r^2` of the divergences `E_q f(p / q)`, r = p / q, up to a factor that the normalisation takes out.
F: dict[str, Callable[[Tensor], Tensor]] = {
    "rkl": torch.ones_like,  # reverse KL, -log r
    "fkl": lambda r: r,  # forward KL, r log r
    "js": lambda r: r / (1 + r),  # Jensen-Shannon, r log r - (r + 1) log((r + 1) / 2)
    "hellinger": torch.sqrt,  # squared Hellinger, 4 (1 - sqrt r)
    "jeffreys": lambda r: 1 + r,  # (r - 1) log r
    "softened-rkl": lambda r: 1 / (1 + r),  # (r + 1) log((r + 1) / (2 r))
    "neyman": lambda r: 1 / r,  # (1 - r)^2 / (2 r)
}
TINY = 1e-300  # in place of the number of samples in a bin that has none


class FDistill(DMD2):
    """`dmd2` with `-E_q[h(r) (s_p - s_q) dx_t]`, the gradient of `E_q f(p / q)` (Xu et al., theorem 1).

    The density ratio r of the teacher's law over the student's at x_t is `exp(logit)` of the discriminator, which is
    exact where that is at its optimum. h is divided by its mean at the level, over iterations, and then by that of the
    batch, so that all divergences take steps of one size.

    Args:
        divergence: "rkl", "fkl", "js", "hellinger", "jeffreys", "softened-rkl" or "neyman".
        limit: the ratio lies between its inverse and it. bins: of levels. decay: of the means, an iteration.
        ratio, gan, classify, features, real, pairs, plan, fake: `dmd2`'s; the discriminator trains at `gan=0` as well.

    Raises:
        ValueError: an unknown divergence, a limit of at most 1, bins below 1, a decay outside [0, 1), what `dmd2`
            raises.
    """

    needs_heads: ClassVar[bool] = True

    def __init__(
        self, setting: Setting, divergence: str = "js", limit: float = 20.0, bins: int = 10, decay: float = 0.95,
        ratio: int = 5, gan: float = REAL, classify: float = CLASSIFY, features: Sequence[str] | None = None,
        real: str = "data", pairs: int = 8192, plan: Plan | str | None = None, fake: str = "copy",
    ) -> None:  # fmt: skip
        if divergence not in F:
            raise suggest("divergence", divergence, F)
        if not (limit > 1 and bins >= 1 and 0 <= decay < 1):
            raise ValueError(
                f"limit must lie above 1, bins be at least 1 and decay in [0, 1), got {limit}, {bins} and {decay}"
            )
        super().__init__(setting, ratio, gan, classify, features, real=real, pairs=pairs, plan=plan, fake=fake)
        self.h, self.most, self.decay = F[divergence], math.log(limit), decay
        # Of h and of the samples in each bin of levels, with weights that fall from iteration to iteration.
        self.sums = torch.zeros(2, bins, dtype=torch.float64, device=setting.device)

    def state(self) -> dict[str, Tensor]:
        return {"sums": self.sums.clone()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.sums.copy_(tensors["sums"])

    @torch.no_grad()
    def direction(self, x: Tensor, drawn: Batch) -> Tensor:
        log_r = self.logits(x, drawn["eps"], drawn["t"], drawn["condition"]).double()
        r = log_r.clamp(-self.most, self.most).exp()
        return expand(self.balanced(self.h(r), drawn["share"]), x) * super().direction(x, drawn)

    def balanced(self, h: Tensor, share: Tensor) -> Tensor:
        """h (B,) over its mean at the level, averaged over iterations, and over that of the batch."""
        bins, shared = self.sums.shape[1], self.setting.reduce or (lambda value: value)
        # By a product with ones and zeros, which has the same bits every time on every device.
        of = functional.one_hot((share * bins).long().clamp(max=bins - 1), bins).to(h)
        self.sums = self.decay * self.sums + shared(torch.stack([h @ of, of.sum(0)]))
        h = h / (of @ (self.sums[0] / self.sums[1].clamp(min=TINY)))
        return h / shared(h.mean())
