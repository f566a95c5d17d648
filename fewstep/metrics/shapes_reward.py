"""A differentiable reward for captioned shapes: how close a picture is to the nearest one that the caption allows.

A search over all centres, and over sizes where the caption leaves them open, gives the rendering y* nearest to the
picture x; the score is 1 - |x - y*|^2 / E, with E the least energy of the things asked for. It is 1 on a correct
picture and nowhere more, 0 on an empty one, and its gradient, 2 (y* - x) / E (the search, being at an optimum, adds
none), points to the nearest correct picture.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from fewstep.core.methods import Method
from fewstep.metrics.shapes_verifier import check_pictures, masks_at

if TYPE_CHECKING:
    from fewstep.data.captions import Wanted

METHODS = (
    Method(
        "shapes-reward",
        kind="verifier",
        claim="highest on correct pictures; its gradient leads wrong ones to what the caption asks for",
        use="soft_scores",
    ),
)

FIRST, LAST = 4, 28  # pixels: the centres of the first search lie between these, one apart
CELLS = LAST - FIRST + 1
STEPS = (0.5, 0.25, 0.125, 0.0625, 0.03125)  # pixels, of the second


@functools.cache
def _grid(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Masks (8 CELLS^2, 1024) around every cell (rows first), their energies (8, CELLS^2), and which cells hold the
    whole of a small or large thing (2, CELLS, CELLS)."""
    from fewstep.data.shapes_render import RADII, REACH, SIDE

    line = torch.arange(FIRST, LAST + 1.0)
    masks = masks_at(torch.cartesian_prod(line, line).flip(1), torch.tensor(RADII)).flatten(2)
    # Half a pixel more than the data has: its centres lie between cells.
    inside = torch.stack([(line - SIDE / 2).abs() <= SIDE / 2 - REACH * radius + 0.5 for radius in RADII])
    whole = inside[:, :, None] & inside[:, None, :]
    return masks.flatten(0, 1).to(device), masks.square().sum(2).to(device), whole.to(device)


def _gains(r: Tensor, colours: Tensor, asked: Wanted) -> Tensor:
    """By how much each thing asked for reduces the squared distance, (B, 2, sizes, CELLS, CELLS), at every centre;
    -inf where it cannot be. r (B, 3, 32, 32) is the picture above the ground, as are the colours (B, 2, 3)."""
    masks, energies, whole = _grid(r.device)
    along = torch.einsum("bcp,bkc->bkp", r.flatten(2), colours)
    inner = (along @ masks.T).unflatten(2, (4, 2, -1))
    inner = inner.gather(2, asked.shape[..., None, None, None].expand(-1, -1, 1, *inner.shape[3:])).squeeze(2)
    energy = energies.unflatten(0, (4, 2))[asked.shape] * colours.square().sum(2)[..., None, None]
    gains = (2 * inner - energy).unflatten(3, (CELLS, CELLS)).masked_fill(~whole, -math.inf)
    size = torch.arange(2, device=r.device)
    unasked = (asked.size.unsqueeze(2) >= 0) & (asked.size.unsqueeze(2) != size)
    return gains.masked_fill(unasked[..., None, None], -math.inf)


def _single(gains: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    """The best size (B, 2) and centre (B, 2, 2) of a lone thing (the second is the first again)."""
    from fewstep.data.shapes import JITTER, PITCH
    from fewstep.data.shapes_render import SIDE

    offset = torch.arange(FIRST, LAST + 1, device=gains.device) - SIDE / 2

    def near(cell: Tensor) -> Tensor:
        return ((offset - PITCH * (cell.unsqueeze(1) - 1)).abs() <= max(JITTER) + 0.5) | (where < 0).unsqueeze(1)

    allowed = near(where // 3)[:, None, :, None] & near(where % 3)[:, None, None, :]
    best = gains[:, 0].masked_fill(~allowed, -math.inf).flatten(1).argmax(1)
    centre = torch.stack((best % CELLS, best // CELLS % CELLS), dim=1) + FIRST
    return (best // CELLS**2).unsqueeze(1).expand(-1, 2), centre.unsqueeze(1).expand(-1, 2, 2)


def _pair(gains: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    """The best sizes (B, 2) and centres (B, 2, 2) of two things that lie as asked: apart along the relation's axis by
    what data keeps between them, aside by no more than data does."""
    from fewstep.data.shapes import GAP, TILT
    from fewstep.data.shapes_render import RADII, REACH

    swapped = (where % 2 == 1).view(-1, 1, 1, 1, 1)
    upright = (where >= 2).view(-1, 1, 1, 1, 1)
    gains = torch.where(swapped, gains.flip(1), gains)  # now the first thing comes first along the axis,
    gains = torch.where(upright, gains.mT, gains)  # and the axis is the last one
    aside = math.ceil(2 * TILT)
    line = torch.arange(CELLS, device=gains.device)
    totals, sizes = [], [(a, b) for a in range(2) for b in range(2)]
    # Cells round each centre by half a pixel, so that a pair's distance may be one pixel shorter on them.
    apart = [math.ceil(REACH * (RADII[a] + RADII[b]) + GAP - 1) for a, b in sizes]
    window = functional.max_pool2d(gains[:, 1], (2 * aside + 3, 1), 1, (aside + 1, 0))
    after = window.flip(3).cummax(3).values.flip(3)  # the best of all cells from here on
    for (a, b), distance in zip(sizes, apart, strict=True):
        behind = functional.pad(after[:, b], (0, distance), value=-math.inf)[..., distance:]
        totals.append((gains[:, 0, a] + behind).flatten(1))
    best = torch.cat(totals, dim=1).argmax(1)
    which, row, column = best // CELLS**2, best // CELLS % CELLS, best % CELLS
    size = torch.tensor(sizes, device=gains.device)[which]

    allowed = (line - row.unsqueeze(1)).abs().unsqueeze(2) <= aside + 1
    allowed = allowed & (line - column.unsqueeze(1) >= torch.tensor(apart, device=line.device)[which, None])[:, None]
    second = gains[torch.arange(len(best), device=line.device), 1, size[:, 1]].masked_fill(~allowed, -math.inf)
    other = second.flatten(1).argmax(1)
    centre = (
        torch.stack((torch.stack((column, row), 1), torch.stack((other % CELLS, other // CELLS), 1)), dim=1) + FIRST
    )
    centre = torch.where(upright[..., 0, 0], centre.flip(2), centre)
    turned = swapped[..., 0, 0]
    return torch.where(turned[..., 0], size.flip(1), size), torch.where(turned, centre.flip(1), centre)


def _settle(r: Tensor, colours: Tensor, shape: Tensor, radius: Tensor, centre: Tensor) -> Tensor:
    """Centres (B, 2, 2) moved to where the things fit best, to a thirtieth of a pixel, each axis on its own."""
    from fewstep.data.shapes_render import coverage

    moves = torch.tensor([(0.0, 0.0), (-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0)], device=r.device)
    along = torch.einsum("bcp,bkc->bkp", r.flatten(2), colours).unsqueeze(2)
    weight = colours.square().sum(2).unsqueeze(2)
    for step in STEPS:
        tried = centre.unsqueeze(2) + step * moves  # (B, 2, 5, 2)
        masks = coverage(shape.unsqueeze(2).expand(-1, -1, 5), radius.unsqueeze(2), tried).flatten(3)
        gain = (masks * (2 * along - weight.unsqueeze(3) * masks)).sum(3)
        sideways = moves[[0, 1, 2], 0][gain[..., [0, 1, 2]].argmax(2)]
        upright = moves[[0, 3, 4], 1][gain[..., [0, 3, 4]].argmax(2)]
        centre = centre + step * torch.stack((sideways, upright), dim=2)
    return centre


@torch.no_grad()
def _nearest(images: Tensor, asked: Wanted) -> tuple[Tensor, Tensor]:
    """The nearest correct pictures (B, 3, 32, 32), and the energies (B,) of the things asked for."""
    from fewstep.data.shapes_render import BACKGROUND, PALETTE, RADII, render

    r = images - BACKGROUND
    colours = (torch.tensor(PALETTE, device=r.device) - BACKGROUND)[asked.colour]
    gains = _gains(r, colours, asked)
    two = asked.two.view(-1, 1)
    (size, centre), (sizes, centres) = _single(gains, asked.where), _pair(gains, asked.where)
    size, centre = torch.where(two, sizes, size), torch.where(two.unsqueeze(2), centres, centre)
    radius = torch.tensor(RADII, device=r.device)[size]
    centre = _settle(r, colours, asked.shape, radius, centre.float())
    present = torch.stack((torch.ones_like(asked.two), asked.two), dim=1)
    target = render(asked.colour, asked.shape, size, centre, present)

    areas = _grid(r.device)[1].amax(1).view(4, 2)[asked.shape]  # (B, 2, sizes)
    area = areas.gather(2, asked.size.clamp_min(0).unsqueeze(2)).squeeze(2)  # of the small one where the size is open
    return target, (area * colours.square().sum(2) * present).sum(1)


def soft_scores(images: Tensor, captions: Sequence[str]) -> Tensor:
    """Scores (B,) of pictures (B, 3, 32, 32) in [-1, 1] under B captions, differentiable in the pictures.

    At most 1, reached by correct pictures (to 0.0005); 0 (to a twentieth) for an empty one. Raises ValueError for
    another shape, values that are not finite, and captions that cannot be read.
    """
    from fewstep.data.captions import wanted

    known = check_pictures(images).float()
    target, energy = _nearest(known, wanted(captions, len(images)).to(images.device))
    return 1 - (images - target).square().flatten(1).sum(1) / energy
