"""The scales and shifts of block caching: a kept answer, corrected to what the block would have said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.caching.block_caching import WHOLE, block_caching
from fewstep.caching.common import Cached
from fewstep.core.arguments import check_whole
from fewstep.core.denoiser import Denoiser
from fewstep.core.memory import Memory
from fewstep.core.methods import Method
from fewstep.core.plan import as_plan
from fewstep.core.sampler import Sampler, solver_of
from fewstep.networks.surgery import replaced
from fewstep.training.players import Moment, Player, cosine, optimise
from fewstep.training.trajectories import again, frozen, visits

METHODS = (
    Method(
        "scale-shift",
        kind="trainer",
        paper="Cache Me if You Can: Accelerating Diffusion Models through Block Caching (Wimbauer et al., 2023)",
        arxiv="2312.03209",
        claim="a scale and a shift a channel bring kept answers of blocks nearer to what they would have said",
        use="fit_scale_shift",
    ),
)


@dataclass(frozen=True)
class ScaleShift:
    """The cached model with trained scales and shifts, and its losses by step."""

    model: Cached
    losses: tuple[float, ...]


def fit_scale_shift(
    cached: Cached,
    plan: Sampler,
    noises: Tensor,
    *,
    steps: int,
    batch: int = 16,
    lr: float = 0.01,
    seed: int = 0,
    **condition: Any,
) -> ScaleShift:
    """A "block-caching" model with a scale and a shift for every channel of each block at each evaluation where it
    stands (Wimbauer et al., section 3.4).

    The whole model runs the plan from the noises once. The cached one answers at the same states, one after another,
    and the squared difference of their values, in the mean over the evaluations at which something stands, is led down
    by AdamW, from scale 1 and shift 0. Nothing else is trained. Everything random follows from `seed`.

    Args:
        plan: the one that the cache was calibrated for. noises: `(n, *shape)`. condition: of the samples.
        batch: samples a step, drawn from the n.

    Raises:
        ValueError: a cache of another method, or in which nothing stands; steps or batch below 1; another plan.
    """
    for name, value in (("steps", steps), ("batch", batch)):
        check_whole(name, value)
    if cached.made_by != ("cache", "block-caching"):
        raise ValueError(f"scales and shifts are for 'block-caching', this is {cached.made_by[1]!r}")
    made, options, rows = as_plan(plan), dict(cached.said[1]), cached.schedule or ()
    assert cached.recipe.checks is not None
    cached.recipe.checks(Memory(1, made.moments, made.times[-1], None, solver_of(made)))
    first = len(rows) - made.nfe
    standing = {number - first for number, row in enumerate(rows) if row != WHOLE and number >= first}
    if not standing:
        raise ValueError("nothing stands in this cache: its delta is too small")
    with frozen(cached.model):
        modules, store = dict[str, nn.Module](), dict[str, Tensor]()
        for part in cached.recipe.parts.values():
            modules |= part.keeping(cached.model, store)
        graft = replaced(cached.model, modules)
        assert isinstance(graft, Denoiser)
        run = visits(graft, made, noises, condition)
        begin = {key: identity(len(rows), value) for key, value in store.items()}
        tables = nn.ParameterList(begin.values())
        learned = dict(zip(begin, tables, strict=True))
        student = block_caching(cached.model, **options | {"scale_shift": learned})

        def loss(chosen: Tensor) -> Tensor:
            total = torch.zeros(len(chosen), device=noises.device)
            for number, (answer, value) in enumerate(again(student, made, run, chosen)):
                if number in standing:
                    total = total + (answer.value - value).square().flatten(1).mean(1)
            return total / len(standing)

        losses = torch.zeros(steps)

        def watch(moment: Moment) -> None:
            losses[moment.step] = moment.losses["model"].mean()

        def draw(count: int, generator: torch.Generator) -> Tensor:
            return torch.randperm(len(noises), generator=generator)[:count].to(noises.device)

        optimise({"model": Player(tables, loss, lr=cosine(lr, steps), clip=1.0)}, draw, steps=steps, batch=batch,
                 seed=torch.Generator().manual_seed(seed), watch=watch)  # fmt: skip
    found = {key: table.detach().clone() for key, table in learned.items()}
    return ScaleShift(block_caching(cached.model, **options | {"scale_shift": found}), tuple(losses.tolist()))


def identity(evaluations: int, value: Tensor) -> Tensor:
    """Scales 1 and shifts 0 for a kept answer like `value`, `(evaluations, 2, channels)`."""
    table = value.new_zeros((evaluations, 2, value.shape[1] if value.ndim == 4 else value.shape[-1]))
    table[:, 0] = 1
    return table
