"""Late-constraint guidance: a small head reads a condition map off a frozen network's features, and pulls at it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.core.arguments import check_whole
from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction, conversion, expand, scales
from fewstep.core.process import Process
from fewstep.guidance.common import method
from fewstep.guidance.kinds import into
from fewstep.guidance.parts import Call, Rule, Source, Weight
from fewstep.networks.blocks import blocks_of
from fewstep.networks.surgery import Block, Keep, replaced

METHODS = (
    Method(
        "lacon",
        paper="LaCon: Late-Constraint Diffusion for Steerable Guided Image Synthesis (Liu et al., 2023)",
        arxiv="2305.11520",
        claim="samples follow a mask or an edge map that the frozen model was never trained on",
        use="lacon",
        facts={"wraps": True, "changes": ("plan", "conditions")},
    ),
)

_LEAST = 1e-6  # of alpha
_FURTHEST = 5.0  # of the noise level that a head is told


@method("lacon", zero=0.0)
def lacon(
    model: Denoiser,
    head: nn.Module,
    target: Tensor,
    blocks: Sequence[str] = (),
    scale: float | Callable[[Any], Any] = 1.0,
    repeat: int = 1,
) -> tuple[Source, Rule]:
    """The score less `scale` times the gradient of the head's error, `E(x) = |head(features(x), t) - target|^2 / 2`
    summed over the map (Liu et al., section 3.3).

    With `repeat` above 1 the state is drawn anew from the guided answer and judged again: `x - sigma^2 scale grad E`,
    which is the guided x0 with the noise that the model sees in x. The answer is the last one's x0. Every repetition
    costs one evaluation with a gradient, beside the model's own. Its first choices decide: give `interval=(low, high)`
    to guide early alone. Where alpha is 0 nothing is guided.

    Args:
        head: `head(features, noise)`, an answer `(B, C, h, w)` (`fewstep.training.lacon.fit_adapter` trains one).
        target: the map that the samples are to have, `(C, h, w)` for all or `(B, C, h, w)`, one each.
        blocks: whose features it reads; none of them for the noisy picture itself.

    Raises:
        ValueError: unknown blocks, a target that is no map, repeat below 1; when called, blocks whose features are no
            maps, another number of targets than samples; as all methods.
    """
    check_whole("repeat", repeat)
    named(model, blocks)
    if not isinstance(target, Tensor) or target.ndim not in (3, 4) or not target.is_floating_point():
        got = tuple(target.shape) if isinstance(target, Tensor) else target
        raise ValueError(f"target must be a map (C, h, w), or one each (B, C, h, w), of floats, got {got!r}")
    return Same(), Pull(tuple(blocks), target, repeat)


class Same(Source):
    """No weak answer of its own."""

    def answer(self, call: Call, strong: Prediction) -> Prediction:
        return strong


class Pull(Rule):
    """Leads an answer down the gradient of a head's error."""

    def __init__(self, blocks: tuple[str, ...], target: Tensor, repeat: int):
        self.blocks, self.target, self.repeat = blocks, target, repeat

    def __call__(self, strong: Prediction, weak: Prediction, w: Weight, call: Call) -> Tensor:
        """Counted from 0, the scale is `w - 1`."""
        x, t, process = strong.x, strong.t, strong.process
        alpha, sigma, dalpha, dsigma = scales(process, t)
        head, scale = call.modules.get_submodule("head"), w - 1
        target = self.target.to(x.device, x.dtype)
        if target.ndim == 4 and len(target) not in (1, len(x)):
            raise ValueError(f"there are {len(target)} targets for {len(x)} samples: give one for all, or one each")
        further, moved, answer = torch.is_grad_enabled(), x, strong
        for number in range(self.repeat):
            if call.memory is not None:
                call.memory.count(x.shape[0])
            # The fused kernels of attention have no second derivative.
            plain = sdpa_kernel(SDPBackend.MATH) if further else contextlib.nullcontext()
            with torch.enable_grad(), plain:
                here = moved if moved.requires_grad else moved.detach().requires_grad_(True)
                found, read = features(call.model, self.blocks, here, t, call.condition, tuple(target.shape[-2:]))
                error = 0.5 * (head(read, told(process, t, len(x))) - target).square().sum()
                (slope,) = torch.autograd.grad(error, here, create_graph=further)
            pull = scale * slope
            if number:
                answer = found if further else found.replaced(found.value.detach())
            if number < self.repeat - 1:
                moved = (here if further else here.detach()) - expand(sigma, x) ** 2 * pull
        factor = conversion("score", answer.kind, alpha.clamp_min(_LEAST), sigma, dalpha, dsigma)[1]
        value = answer.value - expand(torch.as_tensor(factor), x) * pull
        if self.repeat > 1:  # the x0 of another state, as an answer at this one
            x0 = into("x0", answer.replaced(value, x=moved))
            value = into(strong.kind, strong.replaced(x0, kind="x0"))
        return torch.where(expand(alpha, x) > 0, value, strong.value)


def named(model: nn.Module, blocks: Sequence[str]) -> dict[str, Block]:
    """The blocks of a model by these names; `ValueError` for one that it does not have."""
    known = blocks_of(model) if blocks else {}
    for name in blocks:
        if name not in known:
            raise suggest("block", name, known)
    return {name: known[name] for name in blocks}


def told(process: Process, t: Tensor, batch: int) -> Tensor:
    """The noise level as a head gets it, `(batch,)`: log(sigma / alpha) / 4, within -5 to 5."""
    return (-process.log_snr(t.double()) / 4).clamp(-_FURTHEST, _FURTHEST).float().expand(batch)


def features(
    model: Denoiser,
    blocks: Sequence[str],
    x: Tensor,
    t: Tensor,
    condition: Mapping[str, Any],
    size: tuple[int, ...],
) -> tuple[Prediction, Tensor]:
    """A model's answer, and what its blocks returned, each brought to one size: `(B, channels, *size)`.

    Without blocks it is the state, at unit variance for data of unit variance. Of a graft of the model, which stays as
    it is.

    Raises:
        ValueError: blocks that return no maps `(B, C, h, w)`.
    """
    found, kept = named(model, blocks), dict[str, Any]()
    parts: dict[str, nn.Module] = {
        block.path: Keep(model.get_submodule(block.path), kept, name) for name, block in found.items()
    }
    answer: Prediction = replaced(model, parts)(x, t, **condition)
    alpha, sigma = model.process.alpha(t), model.process.sigma(t)
    maps = [block.value(kept[name]) for name, block in found.items()]
    maps = maps or [x / expand((alpha**2 + sigma**2).sqrt(), x)]
    for name, each in zip(blocks or ["x"], maps, strict=True):
        if each.ndim != 4:
            raise ValueError(f"the features of {name!r} must be maps (B, C, h, w), got {tuple(each.shape)}")
    scaled = [F.interpolate(each.to(x.dtype), size, mode="bilinear", align_corners=False) for each in maps]
    return answer, torch.cat(scaled, dim=1)
