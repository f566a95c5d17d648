"""PAG and SEG: away from the model with spoiled attention, whose pictures have lost their structure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from fewstep.core.arguments import shown
from fewstep.core.denoiser import Denoiser
from fewstep.core.memory import ask
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction
from fewstep.guidance.common import method
from fewstep.guidance.parts import Call, Rule, Source
from fewstep.networks.attention import Blurred, Identity, attended, attentions, choose

METHODS = (
    Method(
        "pag",
        paper="Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance (Ahn et al., 2024)",
        arxiv="2403.17377",
        claim="samples without a condition follow the data better, led away from identity attention",
        use="pag",
        facts={"wraps": True, "changes": ("plan", "conditions"), "linear": True, "attention": True},
    ),
    Method(
        "seg",
        paper="Smoothed Energy Guidance: Reduced Energy Curvature of Attention (Hong, 2024)",
        arxiv="2408.00760",
        claim="as pag, with blurred queries in place of identity attention: the blur sets how far they differ",
        use="seg",
        facts={"wraps": True, "changes": ("plan", "conditions"), "linear": True, "attention": True},
    ),
)

Blocks = Sequence[str] | None


@method("pag", zero=0.0)
def pag(model: Denoiser, scale: float | Callable[[Any], Any] = 1.0, blocks: Blocks = None) -> tuple[Source, Rule]:
    """`answer + scale (answer - perturbed)`; in the perturbed one each token of the picture attends to itself alone,
    and to no word (Ahn et al., equations 14 and 16).

    Scale 0 is the model bit for bit. It needs no condition; one more row a sample, in a call of its own.

    Args:
        blocks: the attention blocks that are perturbed, by name (`mid.attn`, `mid_block.attentions.0`); by default
            those in the network's middle: between a UNet's ways down and up (or of the coarsest level that attends),
            the middle third of a transformer's.

    The options of all methods (`interval`, `clamp`, `rescale`) are those of `fewstep.guidance.common.method`.

    Raises:
        ValueError: a network without attention of the picture to itself, or that does not name its blocks; an unknown
            block; a scale that is no number, negative or not finite.
    """
    return Perturbed(model, blocks, lambda core, size: Identity()), Rule()


@method("seg", zero=0.0)
def seg(
    model: Denoiser,
    scale: float | Callable[[Any], Any] = 1.0,
    blur: float = float("inf"),
    blocks: Blocks = None,
) -> tuple[Source, Rule]:
    """`answer + scale (answer - perturbed)`; in the perturbed one the queries of the picture's tokens are blurred over
    its grid, which flattens the energy whose gradient step attention is (Hong, section 4.2 and equation 13).

    Args:
        blur: standard deviation of the Gaussian, in tokens; 0 is the model, and infinite their mean. Beyond its edges
            the grid goes on mirrored.
        blocks: as those of `pag`.

    Raises:
        ValueError: as `pag`; a blur that is negative or no number.
    """
    if isinstance(blur, bool) or not isinstance(blur, int | float) or not blur >= 0:
        raise ValueError(f"blur must be at least 0, in tokens (float('inf') for their mean), got {shown(blur)}")
    return Perturbed(model, blocks, lambda core, size: Blurred(float(blur), size, core)), Rule()


class Perturbed(Source):
    """The model with `rule(present one, size of the picture)` as the attention of some blocks."""

    branch = "perturbed"

    def __init__(self, model: Denoiser, blocks: Blocks, rule: Callable[[nn.Module, Sequence[int]], nn.Module]):
        self.blocks, self.rule = choose(attentions(model), blocks), rule

    def answer(self, call: Call, strong: Prediction) -> Prediction:
        size = call.x.shape[2:]
        # Made for each call: what wraps the model may be exchanged between them, and a copy costs microseconds.
        perturbed = attended(call.model, self.blocks, lambda core, path: self.rule(core, size))
        return ask(perturbed, call.x, call.t, call.memory, call.condition)  # type: ignore[arg-type]
