"""TeaCache: all blocks stand while what the first of them attends to, which knows the time, has hardly changed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.caching.calibrate import watched
from fewstep.caching.dynamic import Gate, relative
from fewstep.caching.method import method
from fewstep.caching.parts import rest
from fewstep.caching.recipe import Recipe
from fewstep.caching.schedule import not_negative, whole_number
from fewstep.core.arguments import shown
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.sampler import Sampler
from fewstep.networks.surgery import Block, InPlaceOf

METHODS = (
    Method(
        "teacache",
        kind="cache",
        paper="Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model (Liu et al., 2024)",
        arxiv="2411.19108",
        claim="leaves out all blocks until what the first one attends to, step by step, has changed enough",
        use="teacache",
        facts={"wraps": True, "network": "transformer", "reads": True},
    ),
)


@method("teacache")
def teacache(
    model: Denoiser, threshold: float = 0.15, coefficients: Sequence[float] | None = None, most: int | None = None
) -> Recipe:
    """The model, whose transformer leaves out all its blocks while the input of the first has changed little.

    With s what the first block attends to, its input normed and modulated by the time and the conditions, the changes
    `|s - s'| / |s'|` from evaluation to evaluation, each through a polynomial, are added up (Liu et al., equations 5
    and 6). The blocks stand, what they added last is added again, while that sum is below the threshold; then they
    run, and it begins anew. The first evaluation of a run is whole, and the last one where the host knows it. Each
    sample decides for itself; the paper decides for a batch. The decisions are read from the device once an
    evaluation. With threshold 0 it is the model itself, bit for bit.

    Args:
        threshold: of the sum. most: how many evaluations in a row the blocks may stand at; None for any number.
        coefficients: of the polynomial, from the highest power down, as `calibrate` finds them for a model and
            `numpy.polyval` takes them; None for the changes as they are. Below 0 it counts as 0.

    Raises:
        ValueError: a number outside its range, a network that is no transformer (a UNet has "deepcache"), or whose
            first block does not say what it attends to.
    """
    threshold = not_negative("threshold", threshold)
    limit = None if most is None else whole_number("most", most, 0)
    powers = (1.0, 0.0) if coefficients is None else tuple(coefficients)
    if not powers or not all(isinstance(c, int | float) and np.isfinite(c) for c in powers):
        raise ValueError(f"coefficients must be finite numbers, at least one, got {shown(coefficients)}")
    part = rest(model, 0, 0)
    _check(model.get_submodule(part.blocks[0].path))
    return Recipe(
        {part.name: part},
        lambda number, count: () if number == 0 or number == count - 1 else (part.name,),
        never=threshold == 0 or limit == 0,
        gate=Gate(part.name, threshold, limit, signal=attended_to, coefficients=powers),
    )


def _check(module: nn.Module) -> None:
    if not hasattr(module, "entering") and "norm1" not in module._modules:
        raise ValueError(
            f"the first block of this network, a {type(module).__name__}, does not say what it attends to: it has"
            " neither a method `entering` nor a submodule `norm1`; 'first-block' needs neither"
        )


def attended_to(module: nn.Module, block: Block, args: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    """What a block attends to: its input normed and modulated, `(rows, tokens, channels)`, of a joint one the picture.

    In our networks that is what `entering` gives, in those of diffusers the answer of `norm1`, which PixArt's blocks
    modulate by their table.
    """
    x = block.taken(args, named)
    if callable(ours := getattr(module, "entering", None)):  # which has no use for what lies beside them
        found: Tensor = ours(x, args[1] if len(args) > 1 else named["embedding"])[0]
        return found
    norm = module.norm1
    assert isinstance(norm, nn.Module)
    if "temb" in named:
        answer = norm(x, emb=named["temb"])
    elif (table := getattr(module, "scale_shift_table", None)) is not None:
        shift, scale, *_ = (table + named["timestep"].reshape(len(x), *table.shape)).unsqueeze(2).unbind(1)
        answer = norm(x) * (1 + scale) + shift
    elif named.get("class_labels") is not None:
        answer = norm(x, named["timestep"], named["class_labels"], hidden_dtype=x.dtype)
    else:
        answer = norm(x)
    return answer[0] if isinstance(answer, tuple) else answer


class _Seen(InPlaceOf):
    """Runs a module in the place of a block, and notes what the block attends to."""

    def __init__(self, inner: nn.Module, of: nn.Module, block: Block, store: dict[str, Tensor]):
        super().__init__(of)
        self.run, self.block, self.store = inner, block, store

    def forward(self, *args: Any, **named: Any) -> Any:
        self.store["seen"] = attended_to(self.of, self.block, args, named)
        return self.run(*args, **named)


def calibrate(
    model: Denoiser, plan: Sampler, noises: Tensor, degree: int = 4, **condition: Any
) -> dict[str, list[float]]:
    """The polynomial for "teacache", from one run of the whole model: `fs.cache(model, "teacache", **calibrate(...))`.

    It is fitted by least squares, over all samples and evaluations, to the relative change of what the blocks add,
    which is what is reused, as a function of that of what the first one attends to. (The paper takes the change of the
    network's answer.)

    Args:
        noises: `(B, *shape)` to run from. degree: of the polynomial. condition: of the samples.

    Returns:
        `coefficients`, from the highest power down.

    Raises:
        ValueError: as "teacache"; a cached model, a sampler without a plan, fewer evaluations than coefficients.
    """
    degree, part, store = whole_number("degree", degree), rest(model, 0, 0), dict[str, Tensor]()
    first = part.blocks[0]
    _check(own := model.get_submodule(first.path))
    modules = part.keeping(model, store)
    modules[first.path] = _Seen(modules[first.path], own, first, store)
    seen = list[tuple[Tensor, Tensor]]()

    def read(found: Mapping[str, Tensor]) -> None:
        if seen and seen[-1][0].shape != found["seen"].shape:
            raise ValueError("the calls of the network vary in their rows: calibrate the model inside the guidance")
        seen.append((found["seen"], found[part.name]))

    watched(model, plan, noises, modules, store, read, condition)
    if len(seen) <= degree + 1:
        raise ValueError(f"a polynomial of degree {degree} needs more than {degree + 1} evaluations, got {len(seen)}")
    changes = [[relative(b, a) for a, b in zip(*pair, strict=True)] for pair in itertools.pairwise(seen)]
    entering, adding = (torch.cat(column).double().cpu().numpy() for column in zip(*changes, strict=True))
    finite = np.isfinite(entering) & np.isfinite(adding)
    return {"coefficients": [float(c) for c in np.polyfit(entering[finite], adding[finite], degree)]}
