"""Captioned shapes: pictures of 32x32 with one or two coloured shapes and a sentence, drawn on demand.

Row i of a split is a function of (split, i) alone, by Philox-4x32-10 keyed by the split (Salmon et al., "Parallel
random numbers: as easy as 1, 2, 3", 2011). About one combination in eight is held out: of one thing, its (size, colour,
shape, place); of two, (colour, shape, relation, colour, shape), read from either end. No training row shows one of
these, whether its caption names all of it or not; every validation row does. Pairs of the same colour and shape are not
drawn. Rows beyond N_TRAIN of "train" are new pictures of combinations trained on.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fewstep.conditions.text import Text
from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.data.captions import (
    COLOURS,
    ID,
    LENGTH,
    OPPOSITE,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    VOCABULARY,
    Spec,
    Thing,
    detokenize,
    indices,
    parse,
    tokenize,
)
from fewstep.data.dataset import SPLITS, DataSpec, Drawn, check_size
from fewstep.data.shapes_render import RADII, REACH, SIDE, coverage, render

METHODS = (
    Method(
        "shapes",
        claim="captioned scenes of one or two shapes, 32x32, drawn row by row; combinations are held out",
        use="open_shapes",
    ),
    Method(
        "shapes-outline",
        claim="the scenes of shapes in outline, thin lines, with the same captions: a style to learn",
        use="open_outlines",
    ),
)

__all__ = [
    "CLASSES", "LENGTH", "N_TRAIN", "N_VALIDATION", "SHAPE", "VALUE_RANGE", "VOCABULARY", "Spec", "Thing",
    "captions", "draw", "held_out", "maps", "open_shapes", "parse", "render_caption", "render_specs", "scenes",
    "tokenize",
]  # fmt: skip

SHAPE = (3, SIDE, SIDE)
VALUE_RANGE = (-1.0, 1.0)
CLASSES = None
N_TRAIN = 200_000
N_VALIDATION = 4096

STROKE = 1.5  # pixels of an outline: the arms of a small cross are three wide, and just have a middle
GAP = 2.0  # pixels at least between two things
SHIFT = 3.0  # pixels at most that a pair lies off the middle line
TILT = 1.5  # pixels at most that each thing of a pair lies off the pair's line
JITTER = (1.75, 0.75)  # pixels at most off a place's middle, by size: all of the thing stays in the picture
PITCH = 8.0  # pixels from place to place; the middle place is the picture's centre
ALONE = 0.4  # the share of rows with one thing
NAMED = 0.75  # the share of sizes and places that the caption names
HELD = 1 / 8
MAPS = ("mask", "edge")

_KINDS = len(COLOURS) * len(SHAPES)  # (colour, shape) pairs, numbered colour first
_KEYS = {"train": (1, 0x5A9E5), "validation": (2, 0x5A9E5)}
_WORDS = 20  # random words per row


@dataclass(frozen=True)
class Scenes:
    """B pictures as numbers: indices (B, 2) of colour, shape and size, centres (B, 2, 2) in pixels, whether there is a
    second thing (B,), and an index (B,) of PLACES or, of two, RELATIONS (how the first lies relative to the second)."""

    colour: Tensor
    shape: Tensor
    size: Tensor
    centre: Tensor
    two: Tensor
    where: Tensor

    def images(self, stroke: float | None = None) -> Tensor:
        """(B, 3, 32, 32) float32 in [-1, 1]; with a stroke in outline."""
        present = torch.stack((torch.ones_like(self.two), self.two), dim=1)
        return render(self.colour, self.shape, self.size, self.centre, present, stroke)

    def maps(self, kind: str = "mask") -> Tensor:
        """Condition maps (B, 1, 32, 32) float32 in [0, 1] of the same pictures: "mask", how much of each pixel things
        cover, or "edge", the pixels within one of where that changes. ValueError for another kind."""
        if kind not in MAPS:
            raise suggest("map", kind, MAPS)
        present = torch.stack((torch.ones_like(self.two), self.two), dim=1)
        radii = torch.tensor(RADII, dtype=self.centre.dtype)[self.size]
        mask = (coverage(self.shape, radii, self.centre) * present[..., None, None]).amax(1, keepdim=True)
        if kind == "mask":
            return mask
        return functional.max_pool2d(mask, 3, 1, 1) + functional.max_pool2d(-mask, 3, 1, 1)

    def specs(self) -> list[Spec]:
        """What each picture shows, with every attribute."""
        columns = (self.two, self.where, self.colour, self.shape, self.size)
        return [
            Spec(
                tuple(Thing(COLOURS[colour[k]], SHAPES[shape[k]], SIZES[size[k]]) for k in range(1 + two)),
                None if two else PLACES[where],
                RELATIONS[where] if two else None,
            )
            for two, where, colour, shape, size in zip(*(column.tolist() for column in columns), strict=True)
        ]


_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int] | tuple[Tensor, Tensor]
) -> tuple[Tensor, ...]:
    """Ten rounds of Philox-4x32 on int64 tensors that hold 32-bit words (they broadcast against each other)."""
    c0, c1, c2, c3 = counter
    k0: int | Tensor
    k1: int | Tensor
    k0, k1 = key
    for _ in range(10):
        # int64 products wrap, but their 64 bits are right; the shift is arithmetic, so the high word is masked.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (p1 >> 32).bitwise_and_(_MASK).bitwise_xor(c1).bitwise_xor_(k0),
            p1 & _MASK,
            (p0 >> 32).bitwise_and_(_MASK).bitwise_xor(c3).bitwise_xor_(k1),
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


@functools.cache
def _combinations() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Singles (432, 2): kind, then size * 9 + place. Pairs (1104, 3): kind, relation (0 "left of" or 2 "above", from
    which the others follow by swapping the pair), kind. And for each, whether it is held out."""
    kinds = torch.arange(_KINDS)
    singles = torch.cartesian_prod(kinds, torch.arange(len(SIZES) * len(PLACES)))
    pairs = torch.cartesian_prod(kinds, torch.tensor([0, 2]), kinds)
    pairs = pairs[pairs[:, 0] != pairs[:, 2]]
    held = []
    for number, rows in enumerate((singles, pairs)):
        code = (rows * torch.tensor([1, 256, 65536])[: rows.shape[1]]).sum(1)
        zero = torch.zeros_like(code)
        held.append(philox((code, zero, zero, zero + number), (0x5A9E5, 3))[0] < HELD * 2**32)
    return singles, pairs, held[0], held[1]


def held_out(spec: Spec) -> bool:
    """Whether no training picture shows this: False for a spec that leaves open an attribute that decides it."""
    singles, pairs, held_single, held_pair = _combinations()
    kind = [COLOURS.index(thing.colour) * len(SHAPES) + SHAPES.index(thing.shape) for thing in spec.things]
    if spec.relation is None:
        size = spec.things[0].size
        if size is None or spec.place is None:
            return False
        row = torch.tensor([kind[0], SIZES.index(size) * len(PLACES) + PLACES.index(spec.place)])
        return bool(held_single[(singles == row).all(1)])
    relation = spec.relation
    if relation in ("right of", "below"):
        kind, relation = kind[::-1], OPPOSITE[relation]
    return bool(held_pair[(pairs == torch.tensor([kind[0], RELATIONS.index(relation), kind[1]])).all(1)].any())


def uniform(rows: Tensor, key: tuple[int, int]) -> Tensor:
    """(B, 20) float64 in [0, 1), a function of each row number (B,) int64 and the key."""
    block = torch.arange(_WORDS // 4).unsqueeze(0)
    rows = rows.unsqueeze(1)
    words = philox((block, torch.zeros(1, 1, dtype=torch.int64), rows & 0xFFFFFFFF, rows >> 32), key)
    return torch.cat(words, dim=1).double() * 2.0**-32


def _centres(size: Tensor, two: Tensor, where: Tensor, u: Tensor) -> Tensor:
    """Centres (B, 2, 2) for sizes (B, 2), laid out by u (B, 6) uniform in [0, 1)."""
    middle = SIDE / 2
    jitter = torch.tensor(JITTER, dtype=u.dtype)[size[:, :1]]
    cell = torch.stack((where % 3, where // 3), dim=1)
    single = middle + PITCH * (cell - 1) + jitter * (2 * u[:, :2] - 1)

    reach = REACH * torch.tensor(RADII, dtype=u.dtype)[size]  # (B, 2)
    swapped = (where % 2 == 1).unsqueeze(1)  # "right of", "below": the first comes second along the axis
    reach = torch.where(swapped, reach.flip(1), reach)
    free = SIDE - 2 * reach.sum(1) - GAP
    before, after = u[:, :2].sort(dim=1).values.T * free  # the spare length goes before, between and behind the two
    along = torch.stack((before + reach[:, 0], SIDE - (free - after) - reach[:, 1]), dim=1)
    across = middle + SHIFT * (2 * u[:, 2:3] - 1) + TILT * (2 * u[:, 3:5] - 1)
    pair = torch.stack((along, across), dim=2)
    pair = torch.where(swapped.unsqueeze(2), pair.flip(1), pair)
    pair = torch.where((where >= 2)[:, None, None], pair.flip(2), pair)
    return torch.where(two[:, None, None], pair, single.unsqueeze(1)).float()


def _draw(rows: Tensor, split: str) -> tuple[Scenes, Tensor]:
    """The scenes of some rows and their captions' tokens (B, 10)."""
    if split not in _KEYS:
        raise suggest("split", split, _KEYS)
    if rows.ndim != 1 or rows.is_floating_point() or rows.dtype == torch.bool or bool((rows < 0).any()):
        raise ValueError(f"rows must be (B,) whole numbers from 0, not {tuple(rows.shape)} of {rows.dtype}")
    u = uniform(rows.long().cpu(), _KEYS[split])
    singles, pairs, held_single, held_pair = _combinations()
    if split == "train":
        held_single, held_pair = ~held_single, ~held_pair
    singles, pairs = singles[held_single], pairs[held_pair]
    single = singles[(u[:, 0] * len(singles)).long()]
    pair = pairs[(u[:, 0] * len(pairs)).long()]

    two = u[:, 1] >= ALONE
    turned = (u[:, 2] < 0.5).long()  # the same pair, described from its other end
    kind = torch.where(turned.bool().unsqueeze(1), pair[:, [2, 0]], pair[:, [0, 2]])
    kind = torch.where(two.unsqueeze(1), kind, single[:, :1])
    where = torch.where(two, pair[:, 1] + turned, single[:, 1] % len(PLACES))
    size = torch.where(two.unsqueeze(1), (u[:, 3:5] < 0.5).long(), single[:, 1:] // len(PLACES))
    centre = _centres(size, two, where, u[:, 8:14])
    made = Scenes(kind // len(SHAPES), kind % len(SHAPES), size, centre, two, where)
    return made, _tokens(made, u[:, 5:7] < NAMED, u[:, 7] < NAMED)


@functools.cache
def _phrases() -> tuple[Tensor, Tensor]:
    """The ids of the places, (9, 6), and of the relations, (4, 2), zeros at the end."""
    places, relations = (torch.stack([tokenize(phrase) for phrase in phrases]) for phrases in (PLACES, RELATIONS))
    return places[:, :6], relations[:, :2]


def _tokens(made: Scenes, sizes: Tensor, places: Tensor) -> Tensor:
    """Tokens (B, 10) of captions that name the sizes (B, 2) and places (B,) where these are set."""
    place, relation = _phrases()
    a = torch.full_like(made.colour, ID["a"])
    named = (made.size + ID[SIZES[0]]) * sizes
    things = torch.stack((a, named, made.colour + ID[COLOURS[0]], made.shape + ID[SHAPES[0]]), dim=2)  # (B, 2, 4)
    two = torch.cat((things[:, 0], relation[made.where % len(RELATIONS)], things[:, 1]), dim=1)
    one = torch.cat((things[:, 0], place[made.where % len(PLACES)] * places.unsqueeze(1)), dim=1)
    tokens = torch.where(made.two.unsqueeze(1), two, one)
    return tokens.gather(1, (tokens == 0).byte().argsort(dim=1, stable=True))  # closes the gaps of what is not named


def draw(rows: Tensor, split: str = "train", stroke: float | None = None) -> tuple[Tensor, Tensor]:
    """Images (B, 3, 32, 32) float32 in [-1, 1] and tokens (B, 10) int64 of the rows (B,), whole numbers from 0. stroke:
    in pixels, of the things drawn in outline.

    Raises ValueError for other rows and for a split that is neither "train" nor "validation".
    """
    made, tokens = _draw(rows, split)
    return made.images(stroke), tokens


def maps(rows: Tensor, split: str = "train", kind: str = "mask") -> tuple[Tensor, Tensor]:
    """Images as `draw`, and their condition maps (`Scenes.maps`). Raises as these."""
    made, _ = _draw(rows, split)
    return made.images(), made.maps(kind)


def captions(rows: Tensor, split: str = "train") -> list[str]:
    """The captions of some rows: what they ask for, which may leave out sizes and places. Raises as `draw`."""
    return detokenize(_draw(rows, split)[1])


def scenes(rows: Tensor, split: str = "train") -> list[Spec]:
    """What the pictures of some rows show, with every attribute. Raises as `draw`."""
    return _draw(rows, split)[0].specs()


def open_shapes(split: str = "train", size: int | tuple[int, int] | None = None) -> Drawn:
    """The scenes with their captions, drawn on demand.

    Raises ValueError for a size other than 32x32 and any other split, including "all".
    """
    return _open("shapes", split, size)


def open_outlines(split: str = "train", size: int | tuple[int, int] | None = None) -> Drawn:
    """The same scenes in outline, in lines of a pixel and a half. Raises as `open_shapes`."""
    return _open("shapes-outline", split, size, STROKE)


def _open(name: str, split: str, size: int | tuple[int, int] | None, stroke: float | None = None) -> Drawn:
    check_size(name, SHAPE, size)
    rows = {"train": N_TRAIN, "validation": N_VALIDATION}
    if split not in SPLITS:
        raise suggest("split", split, rows)
    if split not in rows:
        raise ValueError(f"{name} is drawn, without end: use the split 'train' or 'validation'")
    spec = DataSpec(name, SHAPE, VALUE_RANGE, CLASSES, rows[split], Text(tuple(VOCABULARY[1:]), LENGTH))
    return Drawn(spec, torch.empty(0, *SHAPE), draw=functools.partial(draw, split=split, stroke=stroke))


def render_specs(specs: Sequence[Spec], seed: int = 0) -> Tensor:
    """Pictures (B, 3, 32, 32) float32 in [-1, 1] of what the specs ask for.

    The seed and the spec's place in the list decide the exact position, and sizes and places that are left open. Raises
    ValueError for no specs and a negative seed.
    """
    if not specs or seed < 0:
        raise ValueError(f"give at least one spec and a seed from 0, not {len(specs)} and {seed}")
    u = uniform(torch.arange(len(specs)), (seed & 0xFFFFFFFF, 4 + (seed >> 32)))
    asked = indices(specs)
    size = torch.where(asked.size < 0, (u[:, 3:5] < 0.5).long(), asked.size)
    where = torch.where(asked.where < 0, (u[:, 2] * len(PLACES)).long(), asked.where)
    centre = _centres(size, asked.two, where, u[:, 8:14])
    return Scenes(asked.colour, asked.shape, size, centre, asked.two, where).images()


def render_caption(caption: str, seed: int = 0) -> Tensor:
    """One picture (3, 32, 32) of a caption (see `render_specs`). Raises ValueError if it cannot be read."""
    return render_specs([parse(caption)], seed)[0]
