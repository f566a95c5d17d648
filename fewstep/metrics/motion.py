"""What clips of the moving shapes show: shape, colour and place read back frame by frame, and from these the motion.

A frame is matched with clean masks of every shape at every quarter of a pixel; the best explains most of its energy
above the ground. Its place is refined by a parabola through the energies beside it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.data.captions import COLOURS, SHAPES
from fewstep.data.moving import (
    DIRECTIONS,
    HIGH,
    LOW,
    RADIUS,
    SIDE,
    SPEEDS,
    Moving,
    parse,
    path,
    render,
    together,
)
from fewstep.data.shapes_render import BACKGROUND, PALETTE, coverage
from fewstep.metrics.common import Result, check_samples

METHODS = (
    Method(
        "motion",
        claim="1 on clips of what their captions ask for; the velocity error is the error of the path, in pixels",
        use="motion",
        facts={"needs": ("text",), "of": "moving", "better": "high"},
    ),
)

PITCH = 0.25  # pixels, of the search
COLOUR = 0.55  # distance at most from a colour of the palette: half that of the two closest
FIT = 0.6  # of a frame's energy above the ground, noise taken off, at least in the shape
NOTICED = 4.0  # energy from which something is there; a thing of full colour has 40 or more
CHUNK = 512  # frames


@dataclass(frozen=True)
class Motion(Result):
    """`value`: share of clips, in [0, 1], whose every frame has the colour and shape asked for and nothing else, and
    that set out in the direction asked for, at the speed if it was; then the shares by attribute.

    `velocity_error` is the mean distance, in pixels a frame, of the steps read from those of the path asked for from
    the first centre that was read; `sharpness` is as that of `sharpness`. `error` is the standard error of `value`.
    """

    colour: float
    shape: float
    direction: float
    velocity_error: float
    sharpness: float
    error: float


@dataclass(frozen=True)
class Read:
    """What N clips of T frames show: indices (N, T) of colours and shapes, -1 where there is none, and centres
    (N, T, 2) of the nearest thing, (x, y) in pixels."""

    colour: Tensor
    shape: Tensor
    centre: Tensor

    def velocity(self) -> Tensor:
        """Steps (N, T - 1, 2) from frame to frame, in pixels."""
        return self.centre.diff(dim=1)


@functools.cache
def _masks() -> tuple[Tensor, int]:
    """Masks (S * P * P, 256) of S shapes on a grid of P x P centres, each row by row, and P."""
    line = torch.arange(LOW - 3 * PITCH, HIGH + 3 * PITCH, PITCH)
    centres = torch.cartesian_prod(line, line).flip(1)  # rows are y
    shape = torch.arange(len(SHAPES)).repeat_interleave(len(centres))
    centres = centres.repeat(len(SHAPES), 1)
    return coverage(shape, torch.full_like(centres[:, 0], RADIUS), centres, SIDE).flatten(1), len(line)


def _peak(below: Tensor, at: Tensor, above: Tensor) -> Tensor:
    """Where a parabola through three values one apart has its top, at most half a place from the middle."""
    bend = 2 * at - below - above
    return ((above - below) / (2 * bend.clamp_min(1e-9))).clamp(-0.5, 0.5)


def _frames(frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Colours (F,), shapes (F,) and centres (F, 2) of frames (F, 3, 16, 16)."""
    masks, side = _masks()
    r = (frames - BACKGROUND).flatten(2)
    norm2 = masks.square().sum(1)
    energy = (r @ masks.T).square().sum(1) / norm2  # explained by each mask in its best colour
    best = energy.argmax(1)
    grid = energy.unflatten(1, (len(SHAPES), side, side))
    row, column = best % (side * side) // side, best % side
    shape, each = best // (side * side), torch.arange(len(frames))
    inner = row.clamp(1, side - 2), column.clamp(1, side - 2)
    around = [grid[each, shape, inner[0] + dy, inner[1] + dx] for dx, dy in ((-1, 0), (0, 0), (1, 0), (0, -1), (0, 1))]
    offset = torch.stack((_peak(*around[:3]), _peak(around[3], around[1], around[4])), dim=1)
    centre = LOW - 3 * PITCH + PITCH * (torch.stack(inner[::-1], dim=1) + offset)

    mask = masks[best]
    colour = torch.einsum("fcp,fp->fc", r, mask) / norm2[best, None]
    rest = r - colour[:, :, None] * mask[:, None]
    noise = (rest.flatten(1).abs().median(dim=1).values * 1.4826).square()  # of a value; edges do not move it
    missed = (rest.square().sum((1, 2)) - noise * rest[0].numel() * 1.15).clamp_min(0)
    top = energy[each, best]
    distance, nearest = torch.cdist(colour, torch.tensor(PALETTE) - BACKGROUND).min(1)
    fits = (top >= FIT * (top + missed)) & (top >= NOTICED)
    return nearest.masked_fill(distance > COLOUR, -1), shape.masked_fill(~fits, -1), centre


def check_clips(clips: Tensor | Sequence[Tensor]) -> Tensor:
    """Clips (N, T, 3, 16, 16), detached, float32 on the CPU.

    ValueError for another shape, values that are not finite, and clips of mixed lengths in a list.
    """
    if isinstance(clips, list | tuple) and clips and all(isinstance(clip, Tensor) for clip in clips):
        clips = together(clips)
    found = check_samples(clips, "clips", at_least=1)  # type: ignore[arg-type]
    if found.ndim != 5 or found.shape[1] < 2 or found.shape[2:] != (3, SIDE, SIDE):
        raise ValueError(f"clips must be (N, T, 3, 16, 16) in [-1, 1], two frames at least, not {tuple(found.shape)}")
    return found.float().cpu()


def read(clips: Tensor | Sequence[Tensor]) -> Read:
    """What clips (N, T, 3, 16, 16) in [-1, 1] show in each frame. Raises as `check_clips`."""
    clips = check_clips(clips)
    parts = [_frames(part) for part in clips.flatten(0, 1).split(CHUNK)]
    found = [torch.cat(column).unflatten(0, clips.shape[:2]) for column in zip(*parts, strict=True)]
    return Read(*found)


def _wanted(captions: Sequence[str], n: int) -> tuple[list[Moving], Tensor, Tensor]:
    """What captions ask for, and indices (N,) of their colours and shapes. ValueError for another count."""
    if isinstance(captions, str) or len(captions) != n:
        raise ValueError(f"give {n} captions, one per clip, not {captions!r}"[:200])
    specs = [parse(caption) for caption in captions]
    columns = [[COLOURS.index(spec.colour) for spec in specs], [SHAPES.index(spec.shape) for spec in specs]]
    return specs, torch.tensor(columns[0]), torch.tensor(columns[1])


def paths(first: Tensor, frames: int) -> Tensor:
    """The paths (N, 4, 2, T, 2) from centres (N, 2) in every direction at every speed."""
    ways = torch.tensor(list(DIRECTIONS.values()))[:, None] * torch.tensor(list(SPEEDS.values()))[:, None]
    n = len(first)
    return path(first[:, None, None].expand(n, *ways.shape), ways.expand(n, *ways.shape), frames)


def _sharpness(clips: Tensor, centre: Tensor, colour: Tensor, shape: Tensor) -> float:
    clean = render(colour, shape, centre.clamp(LOW, HIGH))
    return float(fine(clips).sum() / fine(clean).sum())


def fine(clips: Tensor) -> Tensor:
    """Energy of what is finer than half of Nyquist's frequency in each frame: (..., H, W) to (...)."""
    height, width = clips.shape[-2:]
    far = (torch.fft.fftfreq(height)[:, None].square() + torch.fft.fftfreq(width).square()).sqrt() > 0.25
    return (torch.fft.fft2(clips.double(), norm="ortho").abs().square() * far).sum((-2, -1))


def sharpness(clips: Tensor | Sequence[Tensor], captions: Sequence[str]) -> float:
    """High-frequency energy of clips over that of clean renders of what was asked for, at the places that were read.

    Clean clips have 1, blurred ones less; noise and edges where none should be add to it. Raises as `motion`.
    """
    clips = check_clips(clips)
    _, colour, shape = _wanted(captions, len(clips))
    return _sharpness(clips, read(clips).centre, colour, shape)


def motion(samples: Tensor | Sequence[Tensor], captions: Sequence[str]) -> Motion:
    """How often clips (N, T, 3, 16, 16) in [-1, 1] show what their captions ask for, and how nearly they move so.

    Where the caption leaves the speed open the nearer one counts. Raises ValueError for other shapes, clips of mixed
    lengths, values that are not finite, another number of captions, and captions that cannot be read.
    """
    clips = check_clips(samples)
    specs, colour, shape = _wanted(captions, len(clips))
    found = read(clips)
    steps = paths(found.centre[:, 0], clips.shape[1]).diff(dim=-2)
    apart = (found.velocity()[:, None, None] - steps).norm(dim=-1).mean(-1)  # (N, 4, 2)

    way = torch.tensor([list(DIRECTIONS).index(spec.direction) for spec in specs])
    asked = torch.tensor([[spec.speed in (None, speed) for speed in SPEEDS] for spec in specs])
    error = apart[torch.arange(len(clips)), way].masked_fill(~asked, torch.inf).amin(1)
    nearest = apart.flatten(1).argmin(1)
    direction = nearest // len(SPEEDS) == way
    speed = asked.gather(1, (nearest % len(SPEEDS))[:, None])[:, 0]
    frames = {"colour": found.colour == colour[:, None], "shape": found.shape == shape[:, None]}
    right = (frames["colour"] & frames["shape"]).all(1) & direction & speed
    value, n = float(right.double().mean()), len(clips)
    return Motion(
        value,
        n,
        colour=float(frames["colour"].double().mean()),
        shape=float(frames["shape"].double().mean()),
        direction=float(direction.double().mean()),
        velocity_error=float(error.double().mean()),
        sharpness=_sharpness(clips, found.centre, colour, shape),
        error=(value * (1 - value) / n) ** 0.5,
    )
