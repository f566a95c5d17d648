"""Draw samples: `fs.sample(model, 64, label=3, steps=8, solver="unipc", seed=0)`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.core.arguments import check_whole, checked
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import card
from fewstep.core.noise import Noise, Seeds
from fewstep.core.pictures import as_pictures, data_shape
from fewstep.core.plan import Plan
from fewstep.core.run import check_given
from fewstep.core.sampler import Sampler
from fewstep.sampling.auto import SDE, facts
from fewstep.sampling.brownian import BrownianNoise
from fewstep.sampling.build import plan as make_plan
from fewstep.sampling.student import suited

DEFAULT_STEPS = 10
STRENGTH = 0.6  # of a start from a picture where none is given, and no mask


def choose_plan(
    model: Denoiser,
    steps: int | None = None,
    nfe: int | None = None,
    solver: str | Callable[..., Any] | None = None,
    timesteps: str | Sequence[float] | Callable[..., list[float]] | None = None,
    strength: float = 1.0,
    **options: Any,
) -> Sampler:
    """The plan for a call: the model's own if it has one and nothing else is requested, else one built from the names.

    Where no solver is named it is the model's (`model.solver`, or that of a distilled model's plan), else what does
    best over many kinds of models (`fewstep.sampling.auto`). A solver that is named runs on the times of the model's
    own scheduler (`model.timesteps`, by name "own"), where it has them. A distilled model (`model.student`) is sampled
    from its start, by what suits its kind (`fewstep.sampling.student`).

    Raises:
        ValueError: a plan that tells the network what it does not take, such as the time to jump to.
    """
    own = model.plan
    asked = solver is not None or timesteps is not None or options
    if own is not None and not asked and strength == 1.0 and steps in (None, own.nfe) and nfe in (None, own.nfe):
        return own
    solver = None if isinstance(solver, str) and solver == "auto" else solver
    by_rule = timesteps is None or isinstance(timesteps, str)
    if model.student is not None:
        solver, timesteps, steps, nfe = suited(model, model.student, steps, nfe, solver, timesteps)
        by_rule &= callable(timesteps) or timesteps is None or isinstance(timesteps, str)
    # A consistency model is sampled by jumps to x0 alone, in however many steps.
    distilled = own.name if own is not None and own.name == "multistep-consistency" else None
    named = solver if solver is not None else model.solver or distilled
    universal = named in (None, "universal", SDE)
    rule: Any = timesteps
    if isinstance(rule, str) and rule == "own":
        if model.timesteps is None:
            raise ValueError("this model came without a scheduler of its own: name another timestep rule")
        rule = model.timesteps
    elif rule is None and (not universal or strength != 1.0):
        rule = model.timesteps
    if universal and named != SDE and timesteps is None and strength == 1.0:
        known = {name: value for name, value in facts(model).items() if value is not None or named is None}
        options = known | options
    adaptive = isinstance(solver, str) and solver != SDE and card(solver, "solver")[0].facts.get("adaptive")
    if steps is None and nfe is None and not adaptive and by_rule:
        steps = DEFAULT_STEPS
    made = make_plan(model.process, named, steps, rule, nfe=nfe, strength=strength, **options)
    if isinstance(made, Plan):
        check_given(made.table, model)
    return made


def strength_of(asked: float | None, masked: bool, what: str = "strength", mask: str = "a mask") -> float:
    """The strength of a start from a picture, of what was asked for: all of it with a mask, which says what is kept.

    Raises:
        ValueError: nothing would be drawn, or nothing kept. `what` and `mask` are what the two are called.
    """
    share = asked if asked is not None else 1.0 if masked else STRENGTH
    if not 0 < share <= 1 or (share == 1 and not masked):
        raise ValueError(f"{what} must be above 0 and below 1 (1 only with {mask}), got {share:g}")
    return share


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while samples were drawn: `samples` `(k, *shape)` are those of the batches that were done, k >= 1."""

    def __init__(self, samples: Tensor):
        super().__init__(f"{len(samples)} samples were done")
        self.samples = samples


@checked
def sample(
    model: Denoiser,
    n: int,
    *,
    steps: int | None = None,
    nfe: int | None = None,
    solver: str | Callable[..., Any] | None = None,
    timesteps: str | Sequence[float] | Callable[..., list[float]] | None = None,
    plan: Sampler | None = None,
    seed: int = 0,
    first: int = 0,
    seeds: Sequence[int | tuple[int, int]] | None = None,
    shape: Sequence[int] | None = None,
    batch_size: int = 256,
    init: Any = None,
    strength: float = 1.0,
    options: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    progress: bool = False,
    callback: Callable[..., None] | None = None,
    brownian: bool = False,
    **condition: Any,
) -> Tensor:
    """Draw n samples `(n, *shape)`, as data (`model.decode`), on the model's device.

    Sample i depends on (seed, first + i) and on nothing else: not on n, the batch size or the device.

    Args:
        steps, nfe, solver, timesteps, options: what `fs.plan` takes; with none of them the model's own plan (that of an
            accelerated model), or ten steps of what does best over many kinds of models.
        plan: a plan instead.
        seeds: one seed per sample, n of them, in place of seed and first: sample i is what `seed=seeds[i], n=1` gives.
            A pair `(seed, number)` is sample `number` of that seed.
        shape: one sample's shape, for denoisers that take any.
        init, strength: start from clean data, noised to the level that the share `strength` of the grid leaves: the
            same for every number of steps, all of which lie below it (`fs.plan`). One picture for all or n of them, as
            tensors, arrays, Pillow pictures or paths (`fewstep.core.pictures.as_pictures`).
        callback: `callback(evaluation, t, x, prediction)`, see `fewstep.core.sampler.Sampler.run`.
        brownian: take the steps' noise from one Brownian path per sample, so that another step count gives nearly the
            same picture (stochastic plans; needs torchsde).
        **condition: `label=3`, `text="a red circle"`, `y=picture`: one for all samples, or one per sample.

    Raises:
        Interrupted: a KeyboardInterrupt that holds the samples of the batches which were done.
        ValueError: an argument of the wrong kind; as `fs.plan` and `Plan.run`; n below 1; init and strength that do not
            belong together.
    """
    n, batch_size = check_whole("n", n), check_whole("batch_size", batch_size)
    size = tuple(shape) if shape is not None else model.shape
    if size is None:
        raise ValueError("this denoiser takes any shape: say which, with shape=(...)")
    if plan is not None and (strength != 1.0 or any(v is not None for v in (steps, nfe, solver, timesteps)) or options):
        raise ValueError("a plan holds its solver, times and strength already: give either plan or those")
    if init is None and strength != 1.0:
        raise ValueError("strength below 1 starts from a clean batch: give init=(n, *shape)")
    listed = timesteps is not None and not isinstance(timesteps, str) and not callable(timesteps)
    if init is not None and plan is None and strength == 1.0 and not listed:
        raise ValueError("at strength 1 nothing of init is left: give a strength below 1")
    if init is not None:
        init = as_pictures(init, "init", data_shape(model) or (None if model.shape else size), model.value_range)
        if len(init) not in (1, n):
            raise ValueError(f"init must hold one sample or {n} samples, got shape {tuple(init.shape)}")
        init = init.expand(n, *init.shape[1:])
    if seeds is not None and (len(seeds) != n or seed or first or brownian):
        raise ValueError(
            f"seeds must be {n} of them, got {len(seeds)}"
            if len(seeds) != n
            else "seeds say where all noise comes from: leave seed, first and brownian out"
        )
    own_seeds = None
    if seeds is not None:
        pairs = [pair if isinstance(pair, tuple) else (pair, 0) for pair in seeds]
        own_seeds = Seeds(tuple(s for s, _ in pairs), tuple(number for _, number in pairs))
    chosen = plan or choose_plan(model, steps, nfe, solver, timesteps, strength, **(options or {}))
    device = model.device
    named = model.check_condition(condition, n, device)
    parts: list[Tensor] = []
    for begin in range(0, n, batch_size):
        end = min(begin + batch_size, n)
        # A number for all samples stays on the host, so that a run's memory can pass it on.
        own: dict[str, Any] = {
            name: condition[name] if isinstance(condition.get(name), float) else value[begin:end]
            for name, value in named.items()
        }
        source = own_seeds[begin:end] if own_seeds is not None else Noise(seed, first + begin)
        normal = functools.partial(source.normal, shape=(end - begin, *size), device=device, dtype=dtype)
        try:
            state = chosen(
                model,
                model.process.start(normal),
                seed=seed,
                first=first + begin,
                init=None if init is None else model.encode(init[begin:end].to(device), **own),
                dtype=dtype,
                callback=callback,
                source=BrownianNoise(chosen, seed, first + begin) if brownian else source,
                progress=progress,
                **own,
            )
            parts.append(model.decode(state, **own))
        except KeyboardInterrupt:
            if parts:
                raise Interrupted(torch.cat(parts)) from None
            raise
    return parts[0] if len(parts) == 1 else torch.cat(parts)
