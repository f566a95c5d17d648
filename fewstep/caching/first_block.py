"""First-block caching: the rest of a transformer stands while what its first blocks add hardly changes."""

from __future__ import annotations

from fewstep.caching.dynamic import Gate
from fewstep.caching.method import method
from fewstep.caching.parts import Part, rest, units
from fewstep.caching.recipe import Recipe
from fewstep.caching.schedule import not_negative, whole_number
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.networks.blocks import networks_of

METHODS = (
    Method(
        "first-block",
        kind="cache",
        paper="ParaAttention: First Block Cache (Cheng, 2024)",
        claim="runs a transformer's first block, and the others for the samples where its residual has changed",
        use="first_block",
        facts={"wraps": True, "network": "transformer", "reads": True},
    ),
    Method(
        "dbcache",
        kind="cache",
        paper="cache-dit: Dual Block Cache (vipshop, 2025)",
        claim="judges by several blocks in front, and corrects by several at the end, which always run",
        use="dbcache",
        facts={"wraps": True, "network": "transformer", "reads": True},
    ),
)


@method("first-block")
def first_block(
    model: Denoiser,
    front: int = 1,
    back: int = 0,
    threshold: float = 0.08,
    warmup: int = 1,
    most: int | None = None,
) -> Recipe:
    """The model, whose transformer runs its first blocks at every evaluation, and the rest where these have changed.

    With r what the first blocks add to their input (of a joint one to the picture) and r' that of the last evaluation
    at which the rest ran, the rest stands while `|r - r'| / |r'| < threshold`, sums of absolute values: what it added
    then is added again. Each sample decides for itself, on what it has seen itself; diffusers' and cache-dit's decide
    for a batch by its mean. The decisions are read from the device once an evaluation. With threshold 0 it is the model
    itself, bit for bit.

    Args:
        front: how many blocks judge, at least 1, attention and perceptron counted as one. back: how many at the end
            always run as well.
        threshold: of the relative change. warmup: how many evaluations are whole at first. most: how many in a row the
            rest may stand at; None for any number.

    Raises:
        ValueError: a number outside its range, a network that is no transformer (a UNet has "deepcache"), or one of no
            more than `front + back` blocks.
    """
    return _recipe(model, front, back, threshold, warmup, most)


@method("dbcache")
def dbcache(
    model: Denoiser,
    front: int | None = None,
    back: int = 0,
    threshold: float = 0.08,
    warmup: int = 8,
    most: int | None = None,
) -> Recipe:
    """ "first-block" as cache-dit has it: several blocks judge, eight of Flux's 57, and eight evaluations come first.

    Args:
        front: how many blocks judge; None for a seventh of them, at least 1. The others are those of "first-block".

    Raises:
        ValueError: as "first-block".
    """
    count = len(units(networks_of(model)[0]))
    seventh = max(1, round(count / 7)) if front is None else front
    return _recipe(model, seventh, back, threshold, warmup, most)


def _recipe(model: Denoiser, front: int, back: int, threshold: float, warmup: int, most: int | None) -> Recipe:
    front, back, warmup = whole_number("front", front), whole_number("back", back, 0), whole_number("warmup", warmup)
    threshold = not_negative("threshold", threshold)
    limit = None if most is None else whole_number("most", most, 0)
    part, blocks = rest(model, front, back), networks_of(model)[0]
    first = [blocks[name] for unit in units(blocks)[:front] for name in unit]
    judge = Part("front", tuple(first), True)
    return Recipe(
        {judge.name: judge, part.name: part},
        lambda number, count: () if number < warmup else (part.name,),
        never=threshold == 0 or limit == 0,
        gate=Gate(part.name, threshold, limit, judge.name),
    )
