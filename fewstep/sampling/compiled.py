"""A plan compiled: the network and the combination after it in one graph, for every step of every schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.caching.common import Cached
from fewstep.caching.graphs import Modes
from fewstep.core.arguments import checked
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.noise import Noise
from fewstep.core.run import check_given
from fewstep.core.sampler import Sampler, begin_run, memory_for
from fewstep.core.table import Table

METHODS = (
    Method(
        "compile",
        kind="executor",
        claim="network and combination in one graph, the same for every step, schedule and step count",
        use="compile",
    ),
)


def step(
    model: nn.Module,
    states: Tensor,
    memory: Tensor,
    feed: Tensor,
    t: Tensor,
    slots: Tensor,
    pairs: Tensor,
    noise: Tensor | None,
    noise_slots: Tensor | None,
    weights: Tensor,
    condition: dict[str, Tensor],
) -> tuple[Tensor, Tensor]:
    """One stage on tensors alone, so that none of its numbers is part of the graph.

    `states` `(R, B, *shape)`, `memory` `(M, B, *shape)`; `feed` `(1,)` is the evaluated state; each output k of the
    stage is `pairs[k, 0] x + pairs[k, 1] value` and goes to row `slots[k]`; `pairs` `(outputs, 2, 1, *shape)` and
    `weights` `(R, R + M, 1, *shape)`, with ones for the shape where the numbers do not differ between elements.
    """
    x = states.index_select(0, feed)[0]
    value = model(x, t, **condition).value.to(x.dtype)
    memory = memory.index_copy(0, slots, pairs[:, 0] * x + pairs[:, 1] * value)
    if noise is not None and noise_slots is not None:
        memory = memory.index_copy(0, noise_slots, noise)
    # A sum instead of a matrix product, which a global setting may round to TF32.
    return (weights * torch.cat([states, memory])).sum(1), memory


class Compiled:
    """`compiled(noise, ...)` runs the plan; `compiled.use(plan)` gives the same graph with another plan.

    The graph is compiled at the first call and holds no number of the plan: schedules, step counts and warm-up are
    tensors fed to it. It is recompiled only for another batch size, or a solver with other numbers of states, memory
    rows, outputs or draws per stage. A cached model has one graph for each way in which it runs an evaluation, the same
    for all its schedules.
    """

    def __init__(
        self, plan: Sampler, model: Denoiser, graph: Callable[..., tuple[Tensor, Tensor]], modes: Modes | None = None
    ):
        self.plan, self.model, self._graph, self._modes = plan, model, graph, modes
        self.kind: str | None = None
        self._fed: dict[tuple[str, torch.device, torch.dtype], list[tuple[Any, ...]]] = {}

    def use(self, plan: Sampler) -> Compiled:
        """Another plan for the same model, with the same graph."""
        other = Compiled(plan, self.model, self._graph, self._modes)
        other.kind = self.kind
        return other

    @torch.no_grad()
    def __call__(
        self,
        noise: Tensor,
        *,
        seed: int = 0,
        first: int = 0,
        init: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        **condition: Any,
    ) -> Tensor:
        """Samples `(B, *shape)`; arguments and errors are those of `fewstep.core.sampler.Sampler.run`."""
        table = self.plan.table
        x, named = begin_run(self.plan, self.model, noise, init, dtype, condition)
        states = x.new_zeros((table.states, *x.shape))
        states[0] = x
        memory = x.new_zeros((table.memory + 1, *x.shape))  # the last row is for the outputs that a stage lacks
        times, given = table.times(x.device, dtype), table.given(x.device, dtype)
        check_given(table, self.model)
        source, count = Noise(seed, first), 0
        remembered = None if self._modes is None else memory_for(self.model, len(x), condition, self.plan)
        fed: list[tuple[Any, ...]] | None = None
        for i, stage in enumerate(table.stages):
            if stage.evaluate is None:  # before the first evaluation: only the start's scaling
                weights = _wide(table.array(stage.weights), x).to(x)
                for draw, row in stage.draws:
                    memory[row] = source.normal(draw, tuple(x.shape), x.device, dtype)
                states[: len(weights)] = (weights * torch.cat([states, memory[:-1]])).sum(1)
                continue
            if fed is None:
                told = {name: v.expand(len(x)) for name, v in given[0].items()} if given else {}
                fed = self._numbers(table, self._kind(x, times[0], {**named, **told}), x)
            feed, slots, pairs, noise_slots, weights = fed[i]
            drawn = None
            if noise_slots is not None:
                drawn = x.new_zeros((len(noise_slots), *x.shape))
                for k, (draw, _) in enumerate(stage.draws):
                    drawn[k] = source.normal(draw, tuple(x.shape), x.device, dtype)
            told = {name: v.expand(len(x)) for name, v in given[count].items()} if given else {}
            if stage.latent is not None:
                told["latent"] = source.normal(stage.latent, tuple(x.shape), x.device, dtype)
            here, mode = {**named, **told}, None
            if self._modes is not None and remembered is not None:
                remembered.advance(given=table.evaluations[count].given)
                mode = self._modes.at(remembered, self._kind(x, times[0], here))
            states, memory = self._graph(
                self.model if mode is None else mode,
                states,
                memory,
                feed,
                times[count],
                slots,
                pairs,
                drawn,
                noise_slots,
                weights,
                here,
            )
            if self._modes is not None and mode is not None and remembered is not None:
                self._modes.keep(mode, remembered)
            count += 1
        samples = states[table.result].clone()
        if not bool(torch.isfinite(samples).all()):
            raise ValueError("the samples are not finite: run the plan by itself, which names the evaluation")
        return samples

    def _kind(self, x: Tensor, t: Tensor, condition: dict[str, Tensor]) -> str:
        """What the model predicts, found by one call with one sample."""
        if self.kind is None:
            first = {name: value[:1] for name, value in condition.items()}
            self.kind = self.model(x[:1], t, **first).kind
        return self.kind

    def _numbers(self, table: Table, kind: str, like: Tensor) -> list[tuple[Any, ...]]:
        """The tensors of every stage, of equal shapes; built once."""
        device, dtype = like.device, like.dtype
        if (kind, device, dtype) in self._fed:
            return self._fed[kind, device, dtype]
        outputs = max(len(stage.outputs) for stage in table.stages)
        draws = max(len(stage.draws) for stage in table.stages)
        made: list[tuple[Any, ...]] = []
        for stage in table.stages:
            if stage.evaluate is None:
                made.append(())
                continue
            pairs = [stage.convert(kind, wanted) for wanted, _ in stage.outputs]
            pairs += [(0.0, 0.0)] * (outputs - len(pairs))
            slots = [row for _, row in stage.outputs] + [table.memory] * (outputs - len(stage.outputs))
            noise_slots = [row for _, row in stage.draws] + [table.memory] * (draws - len(stage.draws))
            found = _wide(table.array(stage.weights), like)
            weights = found.new_zeros(table.states, table.states + table.memory + 1, *found.shape[2:])
            weights[: len(found), :-1] = found
            made.append(
                (
                    torch.tensor([stage.x], device=device),
                    torch.tensor(slots, device=device),
                    _wide(table.array(pairs) if pairs else torch.zeros(0, 2), like).to(device, dtype),
                    torch.tensor(noise_slots, device=device) if draws else None,
                    weights.to(device, dtype),
                )
            )
        self._fed[kind, device, dtype] = made
        return made


def _wide(numbers: Tensor, like: Tensor) -> Tensor:
    """Numbers `(R, C)` or `(R, C, 1, *shape)` as factors of rows `(B, *shape)`."""
    return numbers.view(*numbers.shape, *[1] * like.ndim) if numbers.ndim == 2 else numbers


@checked
def compile(plan: Sampler, model: Denoiser, **options: Any) -> Compiled:
    """The plan as a compiled program: `torch.compile(fullgraph=True, **options)` of the network with the combination.

    Worth it where many batches of one size are drawn: compiling a network takes from ten seconds to minutes.

    Raises:
        ValueError: a plan for another process, or one with no table; a cache that decides what to run as it runs.
    """
    own = getattr(model, "process", None)
    if own is not None and not plan.fits(own):
        raise ValueError("the plan was made for another process: make it with fs.plan(model.process, ...)")
    _ = plan.table
    if isinstance(model, Cached) and model.recipe.gate is not None:
        raise ValueError(
            f"{model.said[0]!r} decides by what it has computed what to run, which no graph can: compile the model"
            " inside, or one with a cache that has a schedule"
        )
    modes = Modes(model) if isinstance(model, Cached) and not model.inside else None
    return Compiled(plan, model, torch.compile(step, fullgraph=True, dynamic=False, **options), modes)
