"""Clockwork: the low-resolution inside of a UNet runs at every few evaluations, and an adaptor stands in for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.caching.method import method
from fewstep.caching.parts import cut
from fewstep.caching.recipe import Recipe
from fewstep.caching.schedule import every, whole_number, within
from fewstep.core.arguments import shown
from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.networks.common import zeroed
from fewstep.networks.embedding import Embedding
from fewstep.networks.unet import Residual

PAPER = "Clockwork Diffusion: Efficient Generation With Model-Step Distillation (Habibian et al., 2023)"

METHODS = (
    Method(
        "clockwork",
        kind="cache",
        paper=PAPER,
        arxiv="2312.08128",
        claim="a small adaptor stands in for the low-resolution inside of a UNet at most evaluations",
        use="clockwork",
        facts={"wraps": True},
    ),
    Method(
        "feature-adaptor",
        kind="network",
        paper=PAPER,
        arxiv="2312.08128",
        claim="brings a kept feature up to date for under a fifth of the operations of what it replaces",
        use="Adaptor",
    ),
)

NAMES = ("identity", "forecast")


@method("clockwork")
def clockwork(
    model: Denoiser,
    period: int = 2,
    level: int = 1,
    adaptor: str | nn.Module = "identity",
    order: int = 2,
    start: float = 0.0,
    stop: float = 1.0,
) -> Recipe:
    """The model, whose UNet runs whole at every `period`-th evaluation of a run and only above `level` in between,
    where an adaptor stands in for the rest (Habibian et al., section 3).

    What comes up from the deeper levels is `r_n = adaptor(r_m, h_n, u_n)`: r_m that of the last whole evaluation m, h_n
    what would go down at evaluation n, u_n the noise level `log(sigma / alpha) / 4`, within -5 to 5. "identity" is r_m,
    which is "deepcache" of order 1; "forecast" the polynomial in log-SNR through the last `order` whole evaluations.
    `fewstep.training.clockwork.fit_adaptor` trains one. With `period` 1 it is the model itself, bit for bit.

    Args:
        period: evaluations from one whole run to the next, at least 1.
        level: the finest level that is replaced, from 1.
        adaptor: "identity", "forecast", or a module `(r_m, h_n, u_n) -> r_n` of `(B, C, h, w)`, `(B, c, H, W)` and
            `(B,)`, such as an `Adaptor`. On the model's device; it is saved with the model, where it can be.
        order: of the forecast.
        start, stop: the fractions of the run between which the inside is replaced.

    Raises:
        ValueError: a number outside its range, an unknown adaptor, a model whose network has no such level; when
            called, a module that makes a feature of another shape, or an `Adaptor` for other features.
    """
    period, order = whole_number("period", period), whole_number("order", order)
    learned = adaptor if isinstance(adaptor, nn.Module) else None
    if learned is None and not isinstance(adaptor, str):
        raise ValueError(f'adaptor must be "identity", "forecast" or a module, got {shown(adaptor)}')
    if learned is None and adaptor not in NAMES:
        raise suggest("adaptor", adaptor, NAMES)
    part, keys = cut(model, level), within(every(period), start, stop)
    return Recipe(
        {part.name: part},
        lambda number, count: () if keys(number, count) else (part.name,),
        order if adaptor == "forecast" else 1,
        never=period == 1,
        adaptor=learned,
    )


class Adaptor(nn.Module):
    """`adaptor(kept, shallow, noise)`: the feature `(B, channels, h, w)` that a UNet's inside would make now.

    It adds a correction to the kept feature: at half its grid, as it comes up from a coarser one, the kept and the
    shallow feature `(B, shallow, H, W)` are averaged, and go through two residual blocks that are told the noise level
    (`(B,)` or one number). The last layer starts at zero, so a new one is the identity.

    Raises:
        ValueError: a number below 1; when called, features of other channels.
    """

    def __init__(self, channels: int, shallow: int, width: int = 24):
        super().__init__()
        self.channels = whole_number("channels", channels)
        self.shallow, self.width = whole_number("shallow", shallow), whole_number("width", width)
        self.embedding = Embedding(4 * self.width, None)
        self.first = nn.Conv2d(self.channels + self.shallow, self.width, 3, padding=1)
        self.residuals = nn.ModuleList(Residual(self.width, self.width, 4 * self.width, 0.0) for _ in range(2))
        self.last = zeroed(nn.Conv2d(self.width, self.channels, 3, padding=1))

    def config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON, with the registered name under "network"."""
        own = {"channels": self.channels, "shallow": self.shallow, "width": self.width}
        return {"network": "feature-adaptor"} | own

    def forward(self, kept: Tensor, shallow: Tensor, noise: Tensor) -> Tensor:
        if (got := (kept.shape[1], shallow.shape[1])) != (self.channels, self.shallow):
            raise ValueError(
                f"this adaptor is for kept features of {self.channels} channels and shallow ones of {self.shallow},"
                f" got {got[0]} and {got[1]}"
            )
        height, wide = (max(1, size // 2) for size in kept.shape[2:])
        both = torch.cat([F.adaptive_avg_pool2d(one, (height, wide)) for one in (kept, shallow)], dim=1)
        embedding = F.silu(self.embedding(noise, None, len(kept)))
        hidden = self.first(both.to(self.first.weight.dtype))
        for residual in self.residuals:
            hidden = residual(hidden, embedding)
        return kept + F.interpolate(self.last(F.silu(hidden)), kept.shape[2:], mode="nearest").to(kept.dtype)
