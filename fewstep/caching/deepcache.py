"""DeepCache: the deep, slowly changing features of a UNet are kept for some evaluations."""

from __future__ import annotations

from fewstep.caching.method import method
from fewstep.caching.parts import cut
from fewstep.caching.recipe import Recipe
from fewstep.caching.schedule import Keys, every, not_negative, whole_number, within
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method

METHODS = (
    Method(
        "deepcache",
        kind="cache",
        paper="DeepCache: Accelerating Diffusion Models for Free (Ma et al., 2023)",
        arxiv="2312.00858",
        claim="keeps a UNet's deep features for some evaluations and runs its finest levels alone",
        use="deepcache",
        facts={"wraps": True},
    ),
)


@method("deepcache", every="interval")
def deepcache(
    model: Denoiser,
    interval: int = 3,
    level: int = 1,
    order: int = 1,
    start: float = 0.0,
    stop: float = 1.0,
    center: float | None = None,
    power: float = 1.2,
) -> Recipe:
    """The model, whose UNet runs whole at some evaluations of a run and only above `level` in between.

    What comes up from the deeper levels is kept (Ma et al., section 3.2), as it was, or forecast through the last
    `order` whole evaluations: plain reuse is worse than fewer steps of equal cost, forecasts of order 2 and 3 are
    better (docs/caching.md). With `interval` 1 it is the model itself, bit for bit.

    Args:
        interval: evaluations from one whole run to the next, at least 1; with `center` their mean.
        level: the finest level that is kept, from 1.
        order: of the forecast of what is kept; 1 is the paper's reuse.
        start, stop: the fractions of the run between which features are kept.
        center: where whole evaluations lie closest, as a fraction of the run (equations 9 and 10, whose centre counts
            evaluations); None for even ones. power: how much closer, at least 1 (none).

    Raises:
        ValueError: a number outside its range, a model whose network has no such level.
    """
    interval, order = whole_number("interval", interval), whole_number("order", order)
    part = cut(model, level)
    keys = every(interval) if center is None else uneven(interval, center, power)
    keys = within(keys, start, stop)
    return Recipe(
        {part.name: part},
        lambda number, count: () if keys(number, count) else (part.name,),
        order,
        never=interval == 1,
    )


def uneven(interval: int, center: float, power: float) -> Keys:
    """Whole evaluations closest around a centre: `n / interval` of n, at centre + u |u|^(power - 1), u even between
    -centre^(1 / power) and (n - centre)^(1 / power), rounded down (Ma et al., equations 9 and 10)."""
    centre, power = not_negative("center", center), not_negative("power", power)
    if centre > 1 or power < 1:
        raise ValueError(f"center is a fraction of the run and power at least 1, got {center:g} and {power:g}")

    def found(number: int, count: int) -> bool:
        return number in numbers(count) if count else number % interval == 0

    def numbers(count: int) -> set[int]:
        if count not in known:
            at, many = centre * count, max(-(-count // interval), 1)
            first, last = -(at ** (1 / power)), (count - at) ** (1 / power)
            places = [first + (last - first) * k / many for k in range(many)]
            known[count] = {0} | {int(at + (abs(u) ** power if u >= 0 else -(abs(u) ** power))) for u in places}
        return known[count]

    known: dict[int, set[int]] = {}
    return found
