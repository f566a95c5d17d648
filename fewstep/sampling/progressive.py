"""From small samples to large ones: enlarge, sharpen, noise in part, and sample at the large size (DiffuseHigh)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.core.arguments import check_whole, checked
from fewstep.core.denoiser import Denoiser
from fewstep.core.pictures import as_pictures
from fewstep.guidance.diffusehigh import DiffuseHigh
from fewstep.sampling.sample import sample


def enlarged(x: Tensor, size: tuple[int, int], sharpen: float = 1.0) -> Tensor:
    """Pictures `(B, C, h, w)` at a larger size by bicubic interpolation, plus `sharpen` times what a blur takes away.

    The blur is the binomial one of 3x3 pixels. Interpolation takes the edges away, and a network that is given a
    blurred picture with noise draws a blurred one.
    """
    large = F.interpolate(x, size, mode="bicubic", align_corners=False)
    line = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype, device=x.device)
    kernel = (line[:, None] * line).expand(x.shape[1], 1, 3, 3)
    blurred = F.conv2d(F.pad(large, (1, 1, 1, 1), mode="replicate"), kernel, groups=x.shape[1])
    return large + sharpen * (large - blurred)


@checked
def progressive(
    model: Denoiser,
    x: Any,
    size: int | Sequence[int],
    strength: float,
    guided: int = 5,
    *,
    sharpen: float = 1.0,
    levels: int = 1,
    **options: Any,
) -> Tensor:
    """Samples `(B, C, *size)` of a network of any size that show what small samples show (Kim et al., algorithm 1).

    Sampled directly at a size that it was not trained at, a network repeats its objects. Here the small sample is
    enlarged, sharpened and noised as far as `strength` says; from there the model samples at the large size, and at the
    first `guided` evaluations x0 has the low wavelet band of the enlarged picture. To go further, call it again.

    Args:
        x: samples of the model at its own size, `(B, C, h, w)`, as data.
        size: of the result in pixels, a number when square; not smaller than x.
        strength: above 0, below 1: how much of the noise the large run starts with (`fs.sample`).
        levels: of the wavelet transform; one keeps all that the small picture knows at twice its size.
        **options: those of `fs.sample`: steps, solver, seed, label, ...

    Raises:
        ValueError: a size below that of x, a network of a fixed size (`dit`, `mlp`), options out of range; as
            `fs.sample`.
    """
    pictures = as_pictures(x, "x", None, model.value_range).to(model.device)
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2:
        raise ValueError(f"size is a number, or a height and a width, got {size!r}")
    high, wide = (check_whole("size", side, least) for side, least in zip(sides, pictures.shape[2:], strict=True))
    if not 0 < strength < 1:
        raise ValueError(f"strength must be above 0 and below 1, got {strength}")
    large = enlarged(pictures, (high, wide), sharpen)
    if model.value_range is not None:
        large = large.clamp(*model.value_range)
    held = DiffuseHigh(model, large, guided, levels)
    every: dict[str, Any] = {"batch_size": len(large)} | options
    return sample(held, len(large), init=large, strength=strength, **every)
