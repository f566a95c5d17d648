"""Implicit score matching: a distance of the two scores on the student's law, by gradients through both networks."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.core.prediction import expand
from fewstep.distillation.matching import Matching, size
from fewstep.distillation.method import Batch, Setting

# "start": the noise-to-signal ratio of the start in deviations of the data, 2.5 for the paper's 0.5.
METHODS = (
    Method(
        "sid",
        paper="Score identity Distillation: Exponentially Fast Distillation of Pretrained Diffusion Models for"
        " One-Step Generation (Zhou et al., 2024)",
        arxiv="2404.04057",
        claim="the Fisher divergence of diffused laws, by gradients through both scores",
        use="SiD",
        facts={
            "student": "jump",
            "data": False,
            "pairing": False,
            "players": ("fake", "student"),
            "steps": "any",
            "start": 5.0,
        },
    ),
    Method(
        "sim",
        paper="One-Step Diffusion Distillation through Score Implicit Matching (Luo et al., 2024)",
        arxiv="2410.16794",
        claim="any distance of the two scores, robust ones too, on the student's law held still",
        use="SIM",
        facts={"student": "jump", "data": False, "pairing": False, "players": ("fake", "student"), "steps": "any"},
    ),
)

DISTANCES = ("squared", "pseudo-huber", "power")
HUBER = 0.1  # of the square root of a sample's size, in the data's deviations
TINY = 1e-20

Slope = Callable[[Tensor], Tensor]  # y (B, *shape) to d'(y)


def slope(name: str, c: float | None = None, power: float = 1.5) -> Slope:
    """The gradient d'(y) of a distance d(y), with |y| the norm of a sample (Luo et al., section 3.3).

    "squared": `|y|^2 / 2`; "pseudo-huber": `sqrt(|y|^2 + c^2)`, by default with `c = 0.1 sqrt(d)`, d the numbers of a
    sample; "power": `|y|^p / p`.

    Raises:
        ValueError: another name, a c that is not positive, a power below 1.
    """
    if name not in DISTANCES:
        raise suggest("distance of scores", name, DISTANCES)
    if (c is not None and not c > 0) or not power >= 1:
        raise ValueError(f"c must be positive and the power at least 1, got {c} and {power}")

    def of(y: Tensor) -> Tensor:
        if name == "squared":
            return y
        norm2 = y.square().flatten(1).sum(1)
        if name == "power":
            return y * expand(norm2.clamp(min=TINY) ** (power / 2 - 1), y)
        width = HUBER * math.sqrt(y[0].numel()) if c is None else c
        return y / expand((norm2 + width**2).sqrt(), y)

    return of


class SiD(Matching):
    """`(D - D_fake) . ((D - x) - a (D - D_fake)) / mean |x - D|` at the student's diffused samples (Zhou et al.).

    `E (D - D_fake) . (D - x)` is `E |D - D_fake|^2` for the exact fake score, from which the loss takes `a` times that
    as the network has it. The gradient runs through x_t into both networks.

    Args:
        alpha: a; the paper finds 1.2 best. ratio: turns of the fake score for one of the student. fake: "copy" or
            "lora" (`fake_of`).
    """

    def __init__(self, setting: Setting, alpha: float = 1.0, ratio: int = 1, fake: str = "copy") -> None:
        super().__init__(setting, ratio, fake)
        self.alpha = alpha

    def loss(self, x: Tensor, drawn: Batch) -> Tensor:
        fake, real = self.answers(x, drawn)
        product = (real - fake) * ((real - x) - self.alpha * (real - fake))
        return product.flatten(1).mean(1) / size(x, real)


class SIM(Matching):
    """`-d'(y) . (s_fake(x_t) - grad log q(x_t | x))`, `y = s_fake - s_teacher` (Luo et al., theorem 3.1).

    Its gradient, through x_t into both networks, is that of `E d(y)` over states whose law is held still. Here y is
    `(D_fake - D) / data_std`, `sigma_t^2 / (alpha_t data_std)` times the difference of scores: a distance of its own
    for each level, of one scale for all; the paper leaves the weight of the levels open. "squared" is `sid` at a = 1
    without its division.

    Args:
        distance: "squared", "pseudo-huber" or "power". c, power: `slope`.
        ratio: turns of the fake score for one of the student. fake: "copy" or "lora" (`fake_of`).

    Raises:
        ValueError: what `slope` raises, a ratio below 1.
    """

    def __init__(
        self, setting: Setting, distance: str = "pseudo-huber", c: float | None = None, power: float = 1.5,
        ratio: int = 1, fake: str = "copy",
    ) -> None:  # fmt: skip
        super().__init__(setting, ratio, fake)
        self.slope = slope(distance, c, power)

    def loss(self, x: Tensor, drawn: Batch) -> Tensor:
        fake, real = self.answers(x, drawn)
        std = self.setting.data_std
        return (-self.slope((fake - real) / std) * (fake - x) / std).flatten(1).mean(1)
