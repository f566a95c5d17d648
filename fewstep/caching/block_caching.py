"""Block caching: each block stands until what it adds has changed too much since it ran, as measured beforehand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fewstep.caching.branches import branches
from fewstep.caching.calibrate import for_plan
from fewstep.caching.method import method
from fewstep.caching.recipe import Recipe
from fewstep.caching.schedule import not_negative, whole_number
from fewstep.core.arguments import shown
from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.core.methods import Method

METHODS = (
    Method(
        "block-caching",
        kind="cache",
        paper="Cache Me if You Can: Accelerating Diffusion Models through Block Caching (Wimbauer et al., 2023)",
        arxiv="2312.03209",
        claim="each block stands still for as long as it was measured to change little over a plan",
        use="block_caching",
        facts={"wraps": True, "plan": True},
    ),
)

WHOLE = "whole"


@method("block-caching")
def block_caching(
    model: Denoiser,
    changes: Mapping[str, Sequence[float]],
    times: Sequence[float],
    solver: str,
    delta: float = 0.1,
    order: int = 1,
    scale_shift: Mapping[str, Tensor] | None = None,
) -> Recipe:
    """The model, each of whose blocks is left out until what it adds has changed by more than `delta` since it ran.

    With c_n the relative change of what a block adds from evaluation n - 1 to n, a block that ran at a stands at n
    while `c_(a+1) + ... + c_n <= delta` (Wimbauer et al., equation 5). So every block has a schedule of its own, known
    before the run. The same rule over what each change does to the samples is far better at equal cost; both are
    measured by `fewstep.caching.block_changes.calibrate`. A block whose shortcut changes the channels keeps what it
    adds to that. With delta 0 it is the model itself, bit for bit.

    Where a block stands, its kept answer y becomes `scale y + shift`, one of each a channel, block and evaluation,
    where they were trained (section 3.4; `fewstep.training.scale_shift.fit_scale_shift`).

    Args:
        changes, times, solver: what `calibrate` gives: they hold for one plan, which may start in the middle. Every
            other is refused when it runs.
        delta: of the accumulated change, at least 0: some tenths of relative changes, thousandths of deviations.
        order: of the forecast of what a block adds; 1 is the paper's reuse.
        scale_shift: by block `(evaluations, 2, channels)`: scale and shift.

    Raises:
        ValueError: a number outside its range, a block that the model does not have or that adds to nothing, lists or
            tensors of other lengths than the plan; a run of another plan, when it begins.
    """
    delta, order = not_negative("delta", delta), whole_number("order", order)
    n, parts = len(times), branches(model, list(changes))
    for name, values in changes.items():
        if len(values) != n or not all(isinstance(c, int | float) and c >= 0 for c in values):
            raise ValueError(f"the changes of {name!r} must be {n} numbers of at least 0, got {shown(values)}")
    keys = {key for part in parts.values() for key in part.keys}
    for key, table in (scale_shift or {}).items():
        if key not in keys:
            raise suggest("block", key, keys)
        if table.ndim != 3 or table.shape[:2] != (n, 2):
            raise ValueError(f"the scales of {key!r} must be ({n}, 2, channels), got {tuple(table.shape)}")
    standing = [
        tuple(name for name in parts if delta > 0 and _stands(changes[name], delta, number)) for number in range(n)
    ]
    check, before = for_plan(times, solver)
    return Recipe(
        parts,
        lambda number, count: standing[number],
        order,
        never=not any(standing),
        checks=check,
        offset=before,
        adjust=lambda key, value, at: adjusted((scale_shift or {}).get(key), value, at),
        rows=tuple(", ".join(names) or WHOLE for names in standing),
    )


def _stands(changes: Sequence[float], delta: float, number: int) -> bool:
    """Whether a block stands at an evaluation: what has added up since it last ran is no more than delta."""
    total = math.inf
    for change in changes[: number + 1]:
        total += change
        if total > delta:
            total = 0.0
            stands = False
        else:
            stands = True
    return stands


def adjusted(table: Tensor | None, value: Tensor, at: Sequence[tuple[int, int]]) -> Tensor:
    """`scale value + shift` a channel, the table's `(evaluations, 2, channels)` rows for `[(evaluation, rows), ...]`.

    Channels are the second axis of a picture `(B, C, H, W)`, and the last of tokens `(B, N, C)`.
    """
    if table is None:
        return value
    table = table.to(value.device, value.dtype)
    if len({number for number, _ in at}) == 1:
        found = table[at[0][0]][None]
    else:
        index = torch.tensor([number for number, rows in at for _ in range(rows)])
        found = table[index.to(table.device, non_blocking=True)]
    shape = (-1, found.shape[2], 1, 1) if value.ndim == 4 else (-1, 1, found.shape[2])
    scale, shift = (found[:, k].reshape(shape) for k in (0, 1))
    return torch.addcmul(shift, value, scale)
