"""Motion of clips in numbers: representations (B, T, ...) -> (B, ...) in which a still clip is zero, or constant.

A loss on one of them asks for the same motion and leaves open what moves.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fewstep.core.errors import suggest

Representation = Callable[[Tensor], Tensor]
REACH = 1  # pixels, of the shifts that neighbouring frames are correlated at


def raw(x: Tensor) -> Tensor:
    """The clip itself: motion and looks."""
    return x


def difference(x: Tensor) -> Tensor:
    """Each frame less the one before, (B, T - 1, ...)."""
    return x.diff(dim=1)


@functools.lru_cache(32)
def waves(frames: int) -> Tensor:
    """The orthonormal cosines of T frames, (T, T) float64: wave k has k half periods, the first is the mean (DCT-II).

    Each wave but the first sums to zero.
    """
    with torch.inference_mode(False):  # what is kept may be differentiated later
        place, k = torch.arange(frames, dtype=torch.float64) + 0.5, torch.arange(frames, dtype=torch.float64)[:, None]
        scale = torch.where(k == 0, math.sqrt(1 / frames), math.sqrt(2 / frames))
        return scale * torch.cos(math.pi * k * place / frames)


def patterns(x: Tensor, rows: Tensor) -> Tensor:
    """How much of each pattern over time (K, T) there is at each place, (B, K, ...)."""
    return torch.einsum("kt,bt...->bk...", rows.to(x.device, x.dtype), x)


def low(x: Tensor) -> Tensor:
    """The slower half of the waves over time, without the mean, (B, T // 2, ...)."""
    frames = x.shape[1]
    return patterns(x, waves(frames)[1 : 1 + frames // 2])


def high(x: Tensor) -> Tensor:
    """The faster half of the waves over time, (B, T - 1 - T // 2, ...): with `low`, all but the mean."""
    frames = x.shape[1]
    return patterns(x, waves(frames)[1 + frames // 2 :])


def correlation(x: Tensor) -> Tensor:
    """Products of each pixel with those of the next frame at shifts of up to a pixel, summed over the channels.

    (B, T, C, H, W) to (B, T - 1, 9, H, W), the shifts (dy, dx) from (-1, -1) to (1, 1), dx the faster; beyond the
    edges the picture goes round. Of a still clip it is the same at all times, and of one that moves by a shift from
    frame to frame the energy of each pixel stands at that shift.
    """
    one, other = x[:, :-1], x[:, 1:]
    reach = range(-REACH, REACH + 1)
    found = [(one * other.roll((-dy, -dx), (-2, -1))).sum(2) for dy, dx in itertools.product(reach, reach)]
    return torch.stack(found, dim=2)


class Projection(nn.Module):
    """K orthonormal patterns over time, each summing to zero, which a player of its own may turn: (B, K, ...).

    They begin as the slowest waves. With K below T - 1 there is something to choose.
    """

    def __init__(self, frames: int, count: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(waves(frames)[1 : count + 1].clone())

    def forward(self, x: Tensor) -> Tensor:
        """How much of each pattern there is. The patterns are orthonormal wherever the parameter has gone."""
        rows = self.rows.double()
        basis, _ = torch.linalg.qr((rows - rows.mean(1, keepdim=True)).T)
        return patterns(x, basis.T)


LEARNED = "learned"
FIXED: dict[str, Representation] = {
    "raw": raw,
    "difference": difference,
    "low": low,
    "high": high,
    "correlation": correlation,
}


def representation(name: str, shape: tuple[int, ...]) -> Representation | Projection:
    """The representation of a name, for clips (T, C, H, W).

    Raises:
        ValueError: another name, samples that are no clips, clips too short to have what is asked for.
    """
    if name not in (*FIXED, LEARNED):
        raise suggest("motion", name, (*FIXED, LEARNED))
    if len(shape) != 4:
        raise ValueError(f"motion is of clips (T, C, H, W), and this model's samples are {shape}: it makes no clips")
    least = 3 if name in ("high", LEARNED) else 2
    if shape[0] < least:
        raise ValueError(f"the motion {name!r} needs clips of at least {least} frames, got {shape[0]}")
    return Projection(shape[0], max(1, (shape[0] - 1) // 2)) if name == LEARNED else FIXED[name]
