"""SAG and blur guidance: away from the model's answer to a picture that is blurred where it matters, or everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.core.arguments import shown
from fewstep.core.denoiser import Denoiser
from fewstep.core.memory import ask
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction, coefficients, expand, scales
from fewstep.guidance.common import method
from fewstep.guidance.kinds import into
from fewstep.guidance.parts import Call, Rule, Source
from fewstep.networks.attention import Recorded, attended, attentions, blur, choose, grid_of

METHODS = (
    Method(
        "sag",
        paper="Improving Sample Quality of Diffusion Models Using Self-Attention Guidance (Hong et al., 2022)",
        arxiv="2210.00939",
        claim="samples without a condition have more of the details that the model itself attends to",
        use="sag",
        facts={"wraps": True, "changes": ("plan", "conditions"), "linear": True, "attention": True},
    ),
    Method(
        "blur",
        paper="Improving Sample Quality of Diffusion Models Using Self-Attention Guidance (Hong et al., 2022)",
        arxiv="2210.00939",
        claim="samples without a condition have more detail, led away from the answer to a blurred picture",
        use="blur_guidance",
        facts={"wraps": True, "changes": ("plan", "conditions"), "linear": True},
    ),
)

STD, REACH = 1.0, 4  # of the Gaussian, in pixels: a kernel of 9
MAPS, RECEIVED = "attention maps", "attention received"


@method("sag", zero=0.0)
def sag(
    model: Denoiser,
    scale: float | Callable[[Any], Any] = 0.5,
    threshold: float = 1.0,
    blocks: Sequence[str] | None = None,
) -> tuple[Source, Rule]:
    """`eps + scale (eps - eps(x~))`, where `x~ = alpha x0~ + sigma eps` holds the model's own x0, blurred where its
    attention lies, with the same eps (Hong et al., algorithm 1).

    x0 is blurred by a Gaussian of one pixel (a kernel of 9, mirrored at the edges) where the attention that a token
    receives, mean over heads, exceeds `threshold` times the mean; the mask is brought to the picture's size by its
    nearest token. The attention is that of the model's own call: no row is evaluated for it. Where a mask leaves the
    blocks out, nothing is blurred. Scale 0 is the model bit for bit, and so is sigma 0 for any exact one. One more row
    a sample.

    Args:
        threshold: of the attention received; 1 is its mean over the tokens of the picture.
        blocks: the attention blocks that are read, by name; by default those of `pag`. Of several the mean is taken.

    The options of all methods (`interval`, `clamp`, `rescale`) are those of `fewstep.guidance.common.method`.

    Raises:
        ValueError: as `pag`; a threshold that is negative or no number, samples that are no pictures (C, H, W); in a
            call, attention that the network computes in parts (experts with a time for each sample, outside a run).
    """
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not threshold >= 0:
        raise ValueError(f"threshold must be at least 0 (1 is the mean attention), got {shown(threshold)}")
    _check_pictures(model)
    return Attentive(model, float(threshold), choose(attentions(model), blocks)), Rule()


@method("blur", zero=0.0)
def blur_guidance(model: Denoiser, scale: float | Callable[[Any], Any] = 0.25) -> tuple[Source, Rule]:
    """`eps + scale (eps - eps(x~))` as "sag", with x0 blurred everywhere (Hong et al., section 4.1): for any model of
    pictures, as it asks for no attention.

    Raises:
        ValueError: samples that are no pictures (C, H, W); a scale that is no number, negative or not finite.
    """
    _check_pictures(model)
    return Degraded(), Rule()


def _check_pictures(model: Denoiser) -> None:
    if model.shape is not None and len(model.shape) != 3:
        raise ValueError(f"a blur needs pictures (C, H, W); this model's samples are {tuple(model.shape)}")


class Degraded(Source):
    """The model's answer to its own x0, blurred, under its own eps."""

    branch = "degraded"

    def mask(self, call: Call) -> Tensor | None:
        """Where it is blurred, `(B, 1, H, W)` of 0 and 1; None for everywhere."""
        return None

    def answer(self, call: Call, strong: Prediction) -> Prediction:
        x, (alpha, *rest) = call.x, scales(strong.process, call.t.double())
        x0 = into("x0", strong)
        change, mask = blur(x0, STD, REACH) - x0, self.mask(call)
        change = change if mask is None else mask * change
        moved = x + expand(alpha, x) * change
        weak = ask(call.model, moved, call.t, call.memory, call.condition)
        # A kind is `a x0 + b eps`: with the eps of x~ at x, whose x0 is that of x~ less alpha's share of the move.
        a, _ = coefficients(weak.kind, alpha, *rest)
        here = weak.replaced(weak.value - expand(a, x) * change, x=x)
        return here if here.kind == strong.kind else strong.replaced(into(strong.kind, here))


class Attentive(Degraded):
    """Blurred where the attention of some blocks lies, which the model's own call records."""

    branch = "attentive"

    def __init__(self, model: Denoiser, threshold: float, blocks: Sequence[str]):
        self.threshold, self.blocks = threshold, blocks
        # What carries may split a call by the time or the number of an evaluation, and the maps with it.
        self.splits = model.carries

    def host(self, part: Any) -> Any:
        return (part.t, part.number) if self.splits and part is not None else None

    def watched(self, model: Denoiser, call: Call) -> Denoiser:
        maps: dict[str, list[Tensor]] = {}
        call.seen[MAPS] = maps
        found = attended(model, self.blocks, lambda core, path: Recorded(core, maps.setdefault(path, [])))
        assert isinstance(found, Denoiser)
        return found

    def mask(self, call: Call) -> Tensor:
        return (self._received(call) > self.threshold).to(call.x.dtype)

    def _received(self, call: Call) -> Tensor:
        """Attention received, `(B, 1, H, W)`, of mean 1."""
        rows, size = call.x.shape[0], call.x.shape[2:]
        found = [maps for maps in call.seen[MAPS].values() if maps]
        if any(len(maps) > 1 or maps[0].shape[0] < rows for maps in found):
            raise ValueError(
                "the network computed its attention in parts: 'sag' needs the samples of a call at one time, and a"
                " cache around the model rather than around the guidance"
            )
        if not found:  # a cache stands in for the blocks at this evaluation, or a mask leaves them out
            kept = None if call.memory is None else call.memory.get(RECEIVED)
            return torch.zeros_like(call.x[:, :1]) if kept is None else kept
        received = torch.stack([_on_grid(maps[0][:rows], size) for maps in found]).mean(0)
        if call.memory is not None and call.model.carries:
            call.memory.keep(RECEIVED, received)
        return received


def _on_grid(maps: Tensor, size: Sequence[int]) -> Tensor:
    """The attention that each place receives, of mean 1, from maps `(B, N, N + words)`: `(B, 1, H, W)`."""
    tokens = maps.shape[1]
    received = maps[:, :, :tokens].sum(1)
    received = received / received.mean(1, keepdim=True)
    return F.interpolate(received.unflatten(1, (1, *grid_of(tokens, size))), tuple(size), mode="nearest")
