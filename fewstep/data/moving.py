"""Moving shapes: clips of 8 frames of 16x16 with one coloured shape that moves and bounces, and a sentence.

    caption = "a" colour shape "moving" direction ["slowly" | "fast"]

A shape moves along one axis by the same number of pixels from each frame to the next and is reflected where it touches
the edge. The caption names the way that it sets out; no shape meets an edge in its first three steps, so that this is
seen. Row i of a split is a function of (split, i) alone, as in `fewstep.data.shapes`. About one combination of colour,
shape, direction and speed in eight is held out: no training row shows it, every validation row does.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.conditions.text import MOTION, Text
from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.data.captions import COLOURS, SHAPES
from fewstep.data.dataset import SPLITS, DataSpec, Drawn, check_size
from fewstep.data.shapes import HELD, NAMED, philox, uniform
from fewstep.data.shapes_render import PALETTE, REACH, coverage, paint

METHODS = (
    Method(
        "moving",
        claim="clips of 8 frames of 16x16: a captioned shape moves and bounces; combinations are held out",
        use="open_moving",
    ),
)

FRAMES, SIDE = 8, 16  # pixels
SHAPE = (FRAMES, 3, SIDE, SIDE)
VALUE_RANGE = (-1.0, 1.0)
N_TRAIN, N_VALIDATION = 200_000, 2048
MOST = 2000  # rows that stand for the whole

RADIUS = 3.0  # pixels
LOW, HIGH = RADIUS * REACH, SIDE - RADIUS * REACH  # where a centre may be
SPEEDS = {"slowly": 0.75, "fast": 1.5}  # pixels from frame to frame
DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}  # (x, y)
AHEAD = 3  # steps before the first edge, at least

# Word 0 is the padding. The order is that of the ids, part of every trained model: append, never insert.
VOCABULARY = ("", "a", *COLOURS, *SHAPES, MOTION, *DIRECTIONS, *SPEEDS)
LENGTH = 6
TEXT = Text(VOCABULARY[1:], LENGTH)

_COUNTS = (len(COLOURS), len(SHAPES), len(DIRECTIONS), len(SPEEDS))
_KEYS = {"train": (1, 0x303E5), "validation": (2, 0x303E5)}
_CAPTION = re.compile(
    rf"a ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}) {MOTION} ({'|'.join(DIRECTIONS)})(?: ({'|'.join(SPEEDS)}))?"
)


@dataclass(frozen=True)
class Moving:
    """What a clip shows, or is meant to show: a speed of None is either. Raises ValueError for unknown words."""

    colour: str
    shape: str
    direction: str
    speed: str | None = None

    def __post_init__(self) -> None:
        for name, known in (("colour", COLOURS), ("shape", SHAPES), ("direction", DIRECTIONS), ("speed", SPEEDS)):
            if getattr(self, name) not in (*known, *([None] if name == "speed" else [])):
                raise suggest(name, getattr(self, name), known)

    @property
    def caption(self) -> str:
        """The sentence; `parse` turns it back."""
        return " ".join(filter(None, ("a", self.colour, self.shape, MOTION, self.direction, self.speed)))


@dataclass(frozen=True)
class Scenes:
    """B clips as numbers: indices (B,) of colour, shape, direction and speed, and where the centre starts, (B, 2)."""

    colour: Tensor
    shape: Tensor
    direction: Tensor
    speed: Tensor
    start: Tensor

    def centres(self) -> Tensor:
        """(B, 8, 2) in pixels: the path of each centre."""
        ways, speeds = torch.tensor(list(DIRECTIONS.values())), torch.tensor(list(SPEEDS.values()))
        return path(self.start, ways[self.direction] * speeds[self.speed, None])

    def clips(self) -> Tensor:
        """(B, 8, 3, 16, 16) float32 in [-1, 1]."""
        return render(self.colour, self.shape, self.centres())

    def specs(self) -> list[Moving]:
        """What each clip shows, with its speed."""
        columns = (self.colour, self.shape, self.direction, self.speed)
        words = (COLOURS, SHAPES, tuple(DIRECTIONS), tuple(SPEEDS))
        return [
            Moving(*(known[index] for known, index in zip(words, row, strict=True)))
            for row in zip(*(column.tolist() for column in columns), strict=True)
        ]


def path(start: Tensor, velocity: Tensor, frames: int = FRAMES) -> Tensor:
    """Centres (..., frames, 2) from `start` (..., 2) at `velocity` (..., 2) in pixels a frame, reflected at the edges.

    A start beyond an edge counts as on it.
    """
    span = HIGH - LOW
    steps = torch.arange(frames, dtype=start.dtype, device=start.device)[:, None]
    along = (start.clamp(LOW, HIGH) - LOW)[..., None, :] + steps * velocity[..., None, :]
    return LOW + span - (along.remainder(2 * span) - span).abs()


def render(colour: Tensor, shape: Tensor, centres: Tensor) -> Tensor:
    """Clips (B, T, 3, 16, 16) float32 in [-1, 1] of colours and shapes (B,), indices, along centres (B, T, 2)."""
    flat, frames = centres.float().flatten(0, 1), centres.shape[1]
    palette = torch.tensor(PALETTE, device=centres.device)
    masks = coverage(shape.repeat_interleave(frames), torch.full_like(flat[:, 0], RADIUS), flat, SIDE)
    pictures = paint(palette[colour].repeat_interleave(frames, 0)[:, None], masks[:, None])
    return pictures.unflatten(0, (-1, frames))


@functools.cache
def _combinations() -> tuple[Tensor, Tensor]:
    """All (192, 4) indices of colour, shape, direction and speed, and which of them are held out."""
    rows = torch.cartesian_prod(*(torch.arange(count) for count in _COUNTS))
    zero = torch.zeros(len(rows), dtype=torch.int64)
    return rows, philox((torch.arange(len(rows)), zero, zero, zero), (0x303E5, 3))[0] < HELD * 2**32


def held_out(spec: Moving) -> bool:
    """Whether no training clip shows this: False for a spec that leaves the speed open."""
    if spec.speed is None:
        return False
    words = (COLOURS, SHAPES, tuple(DIRECTIONS), tuple(SPEEDS))
    asked = zip((spec.colour, spec.shape, spec.direction, spec.speed), words, strict=True)
    rows, held = _combinations()
    return bool(held[(rows == torch.tensor([known.index(word) for word, known in asked])).all(1)])


def _draw(rows: Tensor, split: str) -> tuple[Scenes, Tensor]:
    """The scenes of some rows and their captions' tokens (B, 6)."""
    if split not in _KEYS:
        raise suggest("split", split, _KEYS)
    if rows.ndim != 1 or rows.is_floating_point() or rows.dtype == torch.bool or bool((rows < 0).any()):
        raise ValueError(f"rows must be (B,) whole numbers from 0, not {tuple(rows.shape)} of {rows.dtype}")
    u = uniform(rows.long().cpu(), _KEYS[split])
    every, held = _combinations()
    every = every[held if split == "validation" else ~held]
    colour, shape, direction, speed = every[(u[:, 0] * len(every)).long()].T
    way, reach = torch.tensor(list(DIRECTIONS.values())), AHEAD * torch.tensor(list(SPEEDS.values()))[speed, None]
    low = LOW + reach * (way[direction] < 0)
    high = HIGH - reach * (way[direction] > 0)
    made = Scenes(colour, shape, direction, speed, (low + (high - low) * u[:, 1:3]).float())
    return made, _tokens(made, u[:, 3] < NAMED)


def _tokens(made: Scenes, named: Tensor) -> Tensor:
    """Tokens (B, 6) of captions that name the speed where `named` (B,) says so."""
    first = {word: number for number, word in enumerate(VOCABULARY)}
    a, moving = (torch.full_like(made.colour, first[word]) for word in ("a", MOTION))
    words = (a, made.colour + first[COLOURS[0]], made.shape + first[SHAPES[0]], moving)
    speed = (made.speed + first["slowly"]) * named
    return torch.stack((*words, made.direction + first["left"], speed), dim=1)


def draw(rows: Tensor, split: str = "train") -> tuple[Tensor, Tensor]:
    """Clips (B, 8, 3, 16, 16) float32 in [-1, 1] and tokens (B, 6) int64 of the rows (B,), whole numbers from 0.

    Raises ValueError for other rows and for a split that is neither "train" nor "validation".
    """
    made, tokens = _draw(rows, split)
    return made.clips(), tokens


def captions(rows: Tensor, split: str = "train") -> list[str]:
    """The captions of some rows, which may leave out the speed. Raises as `draw`."""
    return [TEXT.words(row) for row in _draw(rows, split)[1].tolist()]


def scenes(rows: Tensor, split: str = "train") -> Scenes:
    """What the clips of some rows show, every attribute and the path. Raises as `draw`."""
    return _draw(rows, split)[0]


def parse(caption: str) -> Moving:
    """What a caption asks for. Raises ValueError for unknown words and for anything but a sentence of the language."""
    text = TEXT.words(TEXT.tokens(caption))
    found = _CAPTION.fullmatch(text)
    if not found:
        raise ValueError(
            f"cannot read the caption {caption!r}: say 'a COLOUR SHAPE {MOTION} {'|'.join(DIRECTIONS)}', and"
            f" {' or '.join(map(repr, SPEEDS))} or nothing"
        )
    return Moving(*found.groups())


def together(clips: Sequence[Tensor]) -> Tensor:
    """Clips (T, C, H, W) as one batch (B, T, C, H, W). ValueError for none, and for clips of mixed lengths or sizes."""
    if not len(clips) or any(clip.ndim != 4 for clip in clips):
        raise ValueError(f"give clips (T, C, H, W), at least one, not {[tuple(clip.shape) for clip in clips][:3]}")
    lengths = sorted({len(clip) for clip in clips})
    if len(lengths) > 1:
        raise ValueError(f"clips must be of one length, got some of {' and some of '.join(map(str, lengths))} frames")
    if len({clip.shape for clip in clips}) > 1:
        raise ValueError(f"frames must be of one size, got {sorted({tuple(clip.shape[1:]) for clip in clips})}")
    return torch.stack(list(clips))


def open_moving(split: str = "train", size: int | tuple[int, int] | None = None) -> Drawn:
    """The clips with their captions, drawn on demand.

    Raises ValueError for a size other than 16x16 and any other split, including "all".
    """
    check_size("moving", SHAPE, size)
    rows = {"train": N_TRAIN, "validation": N_VALIDATION}
    if split not in SPLITS:
        raise suggest("split", split, rows)
    if split not in rows:
        raise ValueError("moving is drawn, without end: use the split 'train' or 'validation'")
    spec = DataSpec("moving", SHAPE, VALUE_RANGE, None, rows[split], TEXT)
    return Drawn(spec, torch.empty(0, *SHAPE), draw=functools.partial(draw, split=split), most=MOST)
