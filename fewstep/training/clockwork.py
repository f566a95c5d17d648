"""The adaptor of "clockwork": it learns from unrolled runs what the inside of a frozen UNet would have said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.caching.calibrate import watched
from fewstep.caching.clockwork import Adaptor
from fewstep.caching.forecast import told
from fewstep.caching.parts import Entered, cut
from fewstep.core.arguments import check_whole
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.mode import evaluating
from fewstep.core.sampler import Sampler
from fewstep.training.players import Moment, Player, cosine, optimise

METHODS = (
    Method(
        "clockwork-adaptor",
        kind="trainer",
        paper="Clockwork Diffusion: Efficient Generation With Model-Step Distillation (Habibian et al., 2023)",
        arxiv="2312.08128",
        claim="brings a cached run nearer to the whole one than the kept feature itself",
        use="fit_adaptor",
    ),
)

# What is kept, what enters the inside, the noise level that it is told, and what the inside says.
Rows = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class FittedAdaptor:
    """A trained adaptor, the options it was trained for, and its losses by step.

    `fs.cache(model, "clockwork", **fitted.options)`. A loss is the squared error of the feature, in units of that of
    the kept one: 1 for the identity.
    """

    adaptor: Adaptor
    period: int
    level: int
    losses: tuple[float, ...]

    @property
    def options(self) -> dict[str, Any]:
        return {"period": self.period, "level": self.level, "adaptor": self.adaptor}


def fit_adaptor(
    model: Denoiser,
    plan: Sampler,
    noises: Tensor,
    *,
    steps: int,
    period: int = 2,
    level: int = 1,
    width: int = 24,
    batch: int = 64,
    lr: float = 3e-3,
    seed: int = 0,
    **condition: Any,
) -> FittedAdaptor:
    """An adaptor for a frozen model and a plan (Habibian et al., section 3.3).

    The *whole* model's run is unrolled from the noises, as in the paper; at the evaluations that "clockwork" would not
    run whole, the adaptor learns what the inside says, from what it said at the last one that it would, what enters it
    now, and the noise level. The states of a cached run, which are a little off these, it does not see. Squared error,
    AdamW, half a cosine from `lr` to 0. All features of the run are held at once. Everything random follows from
    `seed`, and the model stays as it is.

    Args:
        noises: `(B, *shape)` to run from. condition: of the samples, and `init`, `(B, *shape)`, for a plan that starts
            in the middle: an adaptor does best in runs like those that it was fitted to.
        steps, batch: of the optimiser. period, level: as in "clockwork". width: channels of the adaptor.

    Raises:
        ValueError: period below 2, steps, batch or width below 1; a network without the level, a cached model, a
            sampler without a plan or one of a single evaluation; under guidance one whose calls vary in their rows (fit
            the model inside).
        FloatingPointError: a loss that is not finite, at the end.
    """
    check_whole("period", period, 2)
    for name, value in (("steps", steps), ("batch", batch), ("width", width)):
        check_whole(name, value)
    with evaluating(model):
        rows = recorded(model, plan, noises, period, level, condition)
    kept, shallow, _, inside = rows
    scale = (inside - kept).square().mean().clamp_min(1e-12)

    def draw(count: int, generator: torch.Generator) -> Rows:
        chosen = torch.randint(len(kept), (count,), generator=generator).to(kept.device)
        before, entered, noise, now = (one[chosen] for one in rows)
        return before, entered, noise, now

    def loss(drawn: Rows) -> Tensor:
        before, entered, noise, now = drawn
        return (adaptor(before, entered, noise) - now).square().flatten(1).mean(1) / scale

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the first weights draw from the global generator
        adaptor = Adaptor(kept.shape[1], shallow.shape[1], width).to(kept.device)
    losses = torch.zeros(steps)

    def watch(moment: Moment) -> None:
        losses[moment.step] = moment.losses["model"].mean()

    player = Player(adaptor, loss, lr=cosine(lr, steps), clip=1.0)
    optimise({"model": player}, draw, steps=steps, batch=batch, seed=torch.Generator().manual_seed(seed), watch=watch)
    return FittedAdaptor(adaptor.eval().requires_grad_(False), period, level, tuple(losses.tolist()))


def recorded(
    model: Denoiser, plan: Sampler, noises: Tensor, period: int, level: int, condition: Mapping[str, Any]
) -> Rows:
    """What an adaptor is to read and to say along whole runs: a row for each sample and each evaluation at which the
    inside stands, in float32. Raises as `fit_adaptor`."""
    part, store, begin = cut(model, level), dict[str, Tensor](), dict[str, Any]()
    first = part.blocks[0]
    modules = part.keeping(model, store)
    modules[first.path] = Entered(model.get_submodule(first.path), first, begin)
    found, last = list[Rows](), list[Tensor]()

    def read(now: Mapping[str, Tensor]) -> None:
        number, inside, shallow = len(seen), now[part.name].float(), begin.pop("entered")[0].float()
        seen.append(number)
        if number % period == 0:
            last[:] = [inside]
        elif last[0].shape != inside.shape:
            raise ValueError("the calls of the network vary in their rows: fit the model inside the guidance")
        else:
            noise = torch.full((len(inside),), told(model.process, plan.moments[number]), device=inside.device)
            found.append((last[0], shallow, noise, inside))

    seen: list[int] = []
    watched(model, plan, noises, modules, store, read, condition)
    if not found:
        raise ValueError("an adaptor needs a plan of at least two evaluations, after the first of which it stands in")
    kept, shallow, noise, inside = (torch.cat(one) for one in zip(*found, strict=True))
    return kept, shallow, noise, inside
