"""TaylorSeer: what the blocks of a network add is forecast at some evaluations, and nothing of them is run."""

from __future__ import annotations

from fewstep.caching.method import method
from fewstep.caching.parts import each
from fewstep.caching.recipe import Recipe
from fewstep.caching.schedule import every, whole_number, within
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method

METHODS = (
    Method(
        "taylorseer",
        kind="cache",
        paper="From Reusing to Forecasting: Accelerating Diffusion Models with TaylorSeers (Liu et al., 2025)",
        arxiv="2503.06923",
        claim="forecasts what every block adds from what it added at the last whole evaluations",
        use="taylorseer",
        facts={"wraps": True},
    ),
)

MOST = 4  # the order: beyond it forecasts of several evaluations ahead magnify what they are made from


@method("taylorseer")
def taylorseer(model: Denoiser, interval: int = 3, order: int = 3, start: float = 0.0, stop: float = 1.0) -> Recipe:
    """The model, of which at some evaluations no block runs that can be left out: what each adds is forecast.

    The forecast is the polynomial in log-SNR through the last `order` whole evaluations. The paper's (Liu et al.,
    equation 9) counts steps, and puts finite differences for the derivatives of a Taylor polynomial:
    `sum_i s^i / i! D^i`, s intervals after the last. On steps even in log-SNR that of degree 1 is ours of order 2. From
    degree 2 on they differ: the polynomial through the points is Newton's, `sum_i s (s + 1) ... (s + i - 1) / i! D^i`,
    which is exact for what is one, and the paper's is not. What a block adds is kept with its gate.

    With `interval` 1 it is the model itself, bit for bit.

    Args:
        interval: evaluations from one whole run to the next, at least 1.
        order: of the forecast, 1 to 4: how many whole evaluations it goes through; 1 is reuse.
        start, stop: the fractions of the run between which blocks are left out.

    Raises:
        ValueError: a number outside its range, a network that names no blocks or none that can be left out.
    """
    interval, order = whole_number("interval", interval), whole_number("order", order)
    if order > MOST:
        raise ValueError(f"order must be from 1 to {MOST}, got {order}")
    parts = each(model)
    if not parts:
        raise ValueError(
            "this network has no block that adds to its input and keeps its shape: nothing can be forecast"
        )
    keys = within(every(interval), start, stop)
    return Recipe(parts, lambda number, count: () if keys(number, count) else tuple(parts), order, never=interval == 1)
