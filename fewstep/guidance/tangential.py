"""Tangential guidance: the empty answer keeps only what it shares with the given one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction
from fewstep.guidance.cfg import Away, Empty
from fewstep.guidance.common import method
from fewstep.guidance.kinds import inner
from fewstep.guidance.parts import Call, Rule, Source, Weight

METHODS = (
    Method(
        "tcfg",
        paper="TCFG: Tangential Damping Classifier-free Guidance (Kwon et al., 2025)",
        arxiv="2503.18137",
        claim="guidance without the part of the empty answer that disagrees with the given one",
        use="tcfg",
        facts={"wraps": True, "changes": ("plan", "conditions")},
    ),
)


@method("tcfg")
def tcfg(model: Denoiser, scale: float | Callable[[Any], Any] = 2.0, negative: Away = None) -> tuple[Source, Rule]:
    """`u' + scale (c - u')`, u' being u projected on the first right singular vector of the rows c and u (Kwon et al.,
    algorithm 1), in the model's own kind of answer.

    Raises:
        ValueError: as "cfg".
    """
    return Empty(model, negative), Tangential()


class Tangential(Rule):
    def __call__(self, strong: Prediction, weak: Prediction, w: Weight, call: Call) -> Tensor:
        c = strong.value
        return torch.lerp(tangential(c, weak.to(strong.kind)), c, w)


def tangential(c: Tensor, u: Tensor) -> Tensor:
    """u projected on the first right singular vector of the rows c and u, of each sample.

    With the eigenvector (a, b) of their Gram matrix for its largest eigenvalue, that vector is `a c + b u` over the
    root of the eigenvalue, and u's part along it `b (a c + b u)`. For rows of one length at right angles, which have no
    first one, it is u / 2 + c / 2.
    """
    cc, cu, uu = inner(c, c), inner(c, u), inner(u, u)
    # (a, b) = (cos, sin) of half the angle of (cc - uu, 2 cu); b a and b^2 are half its sine and half 1 - its cosine.
    angle = torch.atan2(2 * cu, cc - uu)
    return torch.sin(angle) / 2 * c + torch.sin(angle / 2).square() * u
