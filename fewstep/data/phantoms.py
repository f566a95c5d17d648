"""Phantoms: ellipses inside an ellipse, in two dimensions or three, as scans of bodies are tried out on.

A phantom is a function of (split, row) alone, and so are its repeated noisy acquisitions, of (seed, row, repeat).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.data.dataset import SPLITS, DataSpec, Drawn, check_size
from fewstep.data.shapes import uniform
from fewstep.operators.noise import NoiseModel
from fewstep.operators.operator import Operator

METHODS = (
    Method(
        "phantoms",
        paper="The Fourier reconstruction of a head section (Shepp and Logan, 1974)",
        claim="32x32 ellipses of tissue inside a body, without end; volumes and repeated scans of them too",
        use="open_phantoms",
    ),
)

SIDE = 32
SHAPE = (1, SIDE, SIDE)
VALUE_RANGE = (-1.0, 1.0)
N_TRAIN, N_VALIDATION = 200_000, 2048
MOST = 500  # rows that stand for the whole
TISSUES = 6  # ellipses inside, at most
SHOWN = 0.8  # the chance of each
BODY = 0.4  # the body's own brightness, of 1

_KEYS = {"train": 1, "validation": 2}


def draw(rows: Tensor, split: str = "train", size: Sequence[int] = (SIDE, SIDE)) -> Tensor:
    """Phantoms `(B, 1, *size)` float32 in [-1, 1] of rows `(B,)`, whole numbers from 0; air is -1.

    size: of two axes or three. Raises ValueError for other rows, splits and sizes.
    """
    if split not in _KEYS:
        raise suggest("split", split, _KEYS)
    if len(size) not in (2, 3) or min(size) < 2:
        raise ValueError(f"phantoms have two axes or three of at least 2 pixels, got {tuple(size)}")
    if rows.is_floating_point() or rows.ndim != 1 or (len(rows) and int(rows.min()) < 0):
        raise ValueError(f"rows are whole numbers (B,) from 0, got {rows.dtype} of shape {tuple(rows.shape)}")
    chance = [uniform(rows, (_KEYS[split], 0x9A470 + number)) for number in range(TISSUES + 1)]
    n = len(size)
    u = chance[0]
    radii = 0.65 + 0.2 * u[:, :n]
    body = coverage(size, 0.1 * (u[:, n : 2 * n] - 0.5), radii, 0.5 * (u[:, 2 * n] - 0.5))
    inside = torch.full_like(body, BODY)
    for u in chance[1:]:
        centre = 1.2 * radii * (u[:, :n] - 0.5)
        own = coverage(size, centre, 0.08 + 0.27 * u[:, n : 2 * n], torch.pi * u[:, 2 * n])
        level = torch.where(u[:, 2 * n + 1] < SHOWN, 0.9 * u[:, 2 * n + 2] - 0.3, 0.0)
        inside = inside + own * level.reshape(-1, *[1] * n)
    return (2 * body * inside.clamp(0, 1) - 1).float()[:, None]


def coverage(size: Sequence[int], centre: Tensor, radii: Tensor, angle: Tensor) -> Tensor:
    """The share of each pixel `(B, *size)` in ellipses, on axes from -1 to 1, turned in the plane of the last two."""
    n = len(size)
    axes = [(torch.arange(m, dtype=torch.float64) + 0.5) / m * 2 - 1 for m in size]
    grid = torch.meshgrid(*axes, indexing="ij")

    def wide(value: Tensor) -> Tensor:
        return value.reshape(-1, *[1] * n)

    away = [place - wide(centre[:, axis]) for axis, place in enumerate(grid)]
    turn = wide(angle)
    away[-2:] = [away[-2] * turn.cos() - away[-1] * turn.sin(), away[-2] * turn.sin() + away[-1] * turn.cos()]
    parts = [one / wide(radii[:, axis]) for axis, one in enumerate(away)]
    reach = torch.stack(parts).square().sum(0).sqrt().clamp_min(1e-9)
    slope = torch.stack([part / wide(radii[:, axis]) for axis, part in enumerate(parts)]).square().sum(0).sqrt() / reach
    pixel = 2 * sum(1 / m for m in size) / n
    return (0.5 - (reach - 1) / slope.clamp_min(1e-9) / pixel).clamp(0, 1)  # to first order in the distance


def acquired(
    clean: Tensor, operator: Operator, noise: float | NoiseModel, times: int, seed: int = 0, first: int = 0
) -> Tensor:
    """Repeated measurements `(B, times, *measured)` of samples number `first, first + 1, ...`, each with noise of its
    own."""
    if times < 1:
        raise ValueError(f"a sample is measured at least once, got {times} times")
    many = operator.measure(clean.repeat_interleave(times, 0), noise, seed, first * times)
    return many.unflatten(0, (len(clean), times))


def open_phantoms(split: str = "train", size: int | tuple[int, int] | None = None) -> Drawn:
    """The phantoms, drawn on demand.

    Raises ValueError for a size other than 32x32 and any other split, including "all".
    """
    check_size("phantoms", SHAPE, size)
    rows = {"train": N_TRAIN, "validation": N_VALIDATION}
    if split not in SPLITS:
        raise suggest("split", split, rows)
    if split not in rows:
        raise ValueError("phantoms is drawn, without end: use the split 'train' or 'validation'")
    spec = DataSpec("phantoms", SHAPE, VALUE_RANGE, None, rows[split])
    return Drawn(spec, torch.empty(0, *SHAPE), draw=functools.partial(_pictures, split=split), most=MOST)


def _pictures(rows: Tensor, split: str) -> tuple[Tensor, None]:
    return draw(rows, split), None
