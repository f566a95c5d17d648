"""Frequency-decoupled guidance: coarse structure and fine detail are led by scales of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction
from fewstep.guidance.bands import bands
from fewstep.guidance.cfg import Away, Empty
from fewstep.guidance.common import check_scale, method
from fewstep.guidance.parts import Call, Rule, Source, Weight

METHODS = (
    Method(
        "fdg",
        paper="Guidance in the Frequency Domain Enables High-Fidelity Sampling at Low CFG Scales (Sadat et al., 2025)",
        arxiv="2506.19713",
        claim="a low scale for layout and colours and a high one for detail: diversity and fidelity together",
        use="fdg",
        facts={"wraps": True, "changes": ("plan", "conditions"), "linear": True},
    ),
)


@method("fdg")
def fdg(
    model: Denoiser,
    scale: float | Callable[[Any], Any] = 2.0,
    shares: Sequence[float] = (0.5, 1.0),
    negative: Away = None,
) -> tuple[Source, Rule]:
    """`c + (scale - 1) sum_k shares_k (c - empty)_k`, over bands k of a Gaussian pyramid (Sadat et al., algorithm 1).

    Args:
        shares: of the scale beyond 1, from the coarsest band to the finest, an octave each; all 1 is "cfg". The paper's
            two scales w_low and w_high are `scale` w_high and a first share of `(w_low - 1) / (w_high - 1)`.
        negative: as of "cfg".

    Raises:
        ValueError: no shares, or one that is negative or not finite; as "cfg".
    """
    if not shares:
        raise ValueError("fdg needs a share of the scale for each band, from the coarsest to the finest, got none")
    found = tuple(check_scale(share, "each share of 'fdg'") for share in shares)
    return Empty(model, negative), Decoupled(found)


class Decoupled(Rule):
    def __init__(self, shares: tuple[float, ...]):
        self.shares = shares

    def __call__(self, strong: Prediction, weak: Prediction, w: Weight, call: Call) -> Tensor:
        c = strong.value
        step = c - weak.to(strong.kind)
        parts = zip(reversed(self.shares), bands(step, len(self.shares)), strict=True)
        return c + (w - 1) * sum(share * band for share, band in parts)
