"""Adaptive projected guidance: the part of the step that only makes the answer stronger is left out."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any

from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction
from fewstep.guidance.cfg import Away, Empty
from fewstep.guidance.common import method
from fewstep.guidance.kinds import inner, into, norm, through
from fewstep.guidance.parts import Call, Rule, Source, Weight

METHODS = (
    Method(
        "apg",
        paper="Eliminating Oversaturation and Artifacts of High Guidance Scales in Diffusion Models"
        " (Sadat et al., 2024)",
        arxiv="2410.02416",
        claim="high guidance scales without oversaturation",
        use="apg",
        facts={"wraps": True, "changes": ("plan", "conditions")},
    ),
)

RUNNING = "running difference"


@method("apg")
def apg(
    model: Denoiser,
    scale: float | Callable[[Any], Any] = 2.0,
    eta: float = 0.0,
    limit: float | None = None,
    momentum: float = 0.0,
    negative: Away = None,
) -> tuple[Source, Rule]:
    """`c + (scale - 1) (orthogonal + eta parallel)` in x0 (Sadat et al., algorithm 1), of the difference c - empty.

    Args:
        eta: the share of the part along c that is kept: 0 for none, 1 for all.
        limit: the difference's largest norm, as a multiple of that of c (of each sample); None for no limit.
        momentum: from one evaluation to the next the difference becomes `difference + momentum * the one before`; the
            paper's are negative. Outside a run there is none.
        negative: as of "cfg".

    Raises:
        ValueError: an eta or momentum that is not finite, a momentum outside -1 to 1, a limit that is not above 0; as
            "cfg".
    """
    for name, value, low in (("eta", eta, 0.0), ("momentum", momentum, -1.0)):
        if isinstance(value, bool) or not isinstance(value, Real) or not low <= value <= 1:
            raise ValueError(f"{name} must be from {low:g} to 1, got {value!r}")
    if limit is not None and not 0 < limit < float("inf"):
        raise ValueError(f"limit must be above 0 and finite, or None, got {limit!r}")
    return Empty(model, negative), Projected(float(eta), limit, float(momentum))


class Projected(Rule):
    def __init__(self, eta: float, limit: float | None, momentum: float):
        self.eta, self.limit, self.momentum = eta, limit, momentum

    def host(self, part: Any) -> Any:
        """Whether there is a difference of an evaluation before."""
        return self.momentum != 0 and part is not None and part.branch("empty").get(RUNNING) is not None

    def __call__(self, strong: Prediction, weak: Prediction, w: Weight, call: Call) -> Tensor:
        def led(c: Tensor) -> Tensor:
            step = c - into("x0", weak)
            if self.momentum and call.memory is not None:
                before = call.memory.get(RUNNING) if call.decided[1] else None
                step = step if before is None else step + self.momentum * before
                call.memory.keep(RUNNING, step)
            if self.limit is not None:
                step = step * (self.limit * norm(c) / norm(step)).clamp(max=1.0)
            if self.eta != 1:
                length = norm(c)  # the square of it may not be a number of the dtype
                step = step - (1 - self.eta) * inner(step, c / length) * (c / length)
            return c + (w - 1) * step

        return through(led, strong, "x0")
