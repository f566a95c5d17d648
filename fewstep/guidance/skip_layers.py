"""Skip layer guidance: away from the model without some of its blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fewstep.core.denoiser import Denoiser
from fewstep.core.memory import ask
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction
from fewstep.guidance.common import method
from fewstep.guidance.parts import Call, Rule, Source
from fewstep.networks.attention import choose
from fewstep.networks.blocks import networks_of
from fewstep.networks.surgery import without

METHODS = (
    Method(
        "slg",
        paper="Spatiotemporal Skip Guidance for Enhanced Video Diffusion Sampling (Hyung et al., 2024)",
        arxiv="2411.18664",
        claim="samples without a condition follow the data better, led away from the model without some blocks",
        use="slg",
        facts={"wraps": True, "changes": ("plan", "conditions"), "linear": True},
    ),
)


@method("slg", zero=0.0)
def slg(
    model: Denoiser, scale: float | Callable[[Any], Any] = 0.5, blocks: Sequence[str] | None = None
) -> tuple[Source, Rule]:
    """`answer + scale (answer - weak)`; the weak one is the model's without the named blocks, whose input stands for
    their output (Hyung et al., section 4, whose scale it is; Stable Diffusion 3.5 skips blocks 7 to 9 of 24).

    Scale 0 is the model bit for bit. It needs no condition; one more row a sample, in a call of its own.

    Args:
        blocks: those left out, by name; by default those in the network's middle that can be: between a UNet's ways
            down and up, the middle third of a transformer's.

    The options of all methods (`interval`, `clamp`, `rescale`) are those of `fewstep.guidance.common.method`.

    Raises:
        ValueError: a network that does not name its blocks or none that can be left out, an unknown block; a scale that
            is no number, negative or not finite.
    """
    found = [{name: block for name, block in blocks.items() if block.skippable} for blocks in networks_of(model)]
    if not any(found):
        raise ValueError("no block of this network can be left out: none adds to its input and keeps its shape")
    return Skipped(choose([blocks for blocks in found if blocks], blocks)), Rule()


class Skipped(Source):
    """The model without the blocks of these names."""

    branch = "skipped"

    def __init__(self, blocks: Sequence[str]):
        self.blocks = blocks

    def answer(self, call: Call, strong: Prediction) -> Prediction:
        found = (pair for blocks in networks_of(call.model) for pair in blocks.items())
        weak = without(call.model, [block for name, block in found if name in self.blocks])
        return ask(weak, call.x, call.t, call.memory, call.condition)  # type: ignore[arg-type]
