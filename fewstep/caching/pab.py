"""Pyramid attention broadcast: the answers of attention are kept for some evaluations, those to words for longer."""

from __future__ import annotations

from fewstep.caching.attention import CROSS, ITSELF, attention_parts
from fewstep.caching.method import method
from fewstep.caching.recipe import Recipe
from fewstep.caching.schedule import every, whole_number, within
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method

METHODS = (
    Method(
        "pab",
        kind="cache",
        paper="Real-Time Video Generation with Pyramid Attention Broadcast (Zhao et al., 2024)",
        arxiv="2408.12588",
        claim="keeps attention's answers for some evaluations amid a run, those to words for longer",
        use="pab",
        facts={"wraps": True},
    ),
)


@method("pab")
def pab(
    model: Denoiser, interval: int = 2, cross: int = 6, order: int = 1, start: float = 0.2, stop: float = 0.9
) -> Recipe:
    """The model, whose attention runs at some evaluations of a run only; all else runs at every one.

    The more the answers of a kind of attention differ from one evaluation to the next, the more often it runs (Zhao et
    al., section 3.2, whose numbers these are): that of a picture to itself, and of picture and words to both, at every
    `interval`-th evaluation, that to words alone at every `cross`-th. In between the last answer is taken again, or one
    forecast through the last `order` of them. With both intervals 1 it is the model itself, bit for bit.

    Args:
        interval: of attention to the picture, at least 1. cross: of attention to words alone.
        order: of the forecast of what is kept; 1 is the paper's reuse.
        start, stop: the fractions of the run between which attention stands.

    Raises:
        ValueError: a number outside its range, a network without attention.
    """
    intervals = {ITSELF: whole_number("interval", interval), CROSS: whole_number("cross", cross)}
    order, found = whole_number("order", order), attention_parts(model)
    keys = {kind: within(every(each), start, stop) for kind, each in intervals.items()}

    def standing(number: int, count: int) -> tuple[str, ...]:
        return tuple(name for kind, parts in found.items() if not keys[kind](number, count) for name in parts)

    return Recipe(
        {name: part for parts in found.values() for name, part in parts.items()},
        standing,
        order,
        never=all(intervals[kind] == 1 for kind, parts in found.items() if parts),
    )
