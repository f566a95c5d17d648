"""Parallel-in-time sampling of any plan: Picard iteration over a sliding window of its evaluations."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.core.arguments import checked
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.noise import Noise
from fewstep.core.ops import in_band
from fewstep.core.run import check_given, row_of
from fewstep.core.sampler import Sampler, begin_run
from fewstep.core.table import Stage
from fewstep.core.unrolled import Entry, advance

METHODS = (
    Method(
        "paradigms",
        kind="executor",
        paper="Parallel Sampling of Diffusion Models (Shih et al., 2023)",
        arxiv="2305.16317",
        claim="a window of evaluations in one call: fewer sequential calls, the same samples",
        use="run_parallel",
    ),
)


@dataclass(frozen=True)
class ParallelResult:
    """Samples `(B, *shape)`; `depth`, the number of sequential network calls; `nfe`, evaluations of each sample in all;
    `planned_nfe`, those of the sequential run; and seconds."""

    samples: Tensor
    depth: int
    nfe: int
    planned_nfe: int
    seconds: float


@checked
@torch.no_grad()
def run_parallel(
    plan: Sampler,
    model: Denoiser,
    noise: Tensor,
    window: int = 16,
    tolerance: float = 1e-3,
    *,
    seed: int = 0,
    first: int = 0,
    init: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    **condition: Any,
) -> ParallelResult:
    """Run a plan with up to `window` of its evaluations in one network call.

    Guess the input states of the next `window` evaluations, evaluate all of them at once, and replay the plan's
    cheap combinations with the answers: new guesses (Picard iteration, Algorithm 1 of the paper). The window moves past
    every state that has converged: its change has a root mean square of at most `tolerance * sigma` in every sample,
    sigma being the noise level there (at least the plan's smallest). A window's first state is exact, given the
    converged ones, so there are never more calls than evaluations in the sequential run. States that enter the window
    are guessed with the last answer. Noise is the sequential run's (it depends on seed, sample and draw alone), so
    stochastic plans give the same samples, too.

    Args:
        window: evaluations per call; the network sees batches of up to `window * B`.
        tolerance: 0 for the sequential result up to rounding.
        seed, first, init, dtype, **condition: as `fewstep.core.sampler.Sampler.run`.

    Raises:
        ValueError: a window below 1, a negative tolerance, a plan with no table, and what `run` raises.
    """
    if isinstance(window, bool) or int(window) != window or window < 1:
        raise ValueError(f"window must be a whole number of at least 1, got {window!r}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance}")
    begin = time.perf_counter()
    table = plan.table
    start, named = begin_run(plan, model, noise, init, dtype, condition)
    check_given(table, model)
    source, batch, device = Noise(seed, first), len(start), start.device
    given = table.given(device, dtype)
    draws = dict.fromkeys(draw for stage in table.stages for draw in stage.drawn)
    noises = {draw: source.normal(draw, tuple(start.shape), start.device, dtype) for draw in draws}
    entry: Entry = ([start], {})
    stages = list(table.stages)
    lead = 0 if stages[0].evaluate is not None else 1  # what the plan combines before it evaluates

    def go_on(k: int, entry: Entry, x: Tensor | None, value: Tensor | None, kind: str) -> Entry:
        """Stage k of those that evaluate; the one before them is number -1."""
        stage, (weights, pairs) = table.stages[k + lead], table.stage_numbers(k + lead, kind, device, dtype)
        rows = [row for _, row in stage.outputs]
        return advance(rows, stage.draws, pairs, weights, table.states, entry, x, value, noises.__getitem__)

    if lead:
        entry = go_on(-1, entry, None, None, "")
        stages.pop(0)
    times = torch.stack(table.times(start.device, dtype)) if stages else start.new_zeros(0)
    limits = _limits(stages, tolerance)

    done = depth = evaluations = 0  # `entry` is before stage `done`
    fed = [entry[0][stages[0].x]] if stages else []  # guesses of the input states of stages done, done + 1, ...
    while done < len(stages):
        m = len(fed)
        repeated = {name: value.repeat(m, *[1] * (value.ndim - 1)) for name, value in named.items()}
        told = [dict(own) for own in given[done : done + m]] if given else [dict[str, Tensor]() for _ in range(m)]
        for own, stage in zip(told, stages[done : done + m], strict=True):
            own |= {name: value.expand(batch) for name, value in own.items()}
            own |= {} if stage.latent is None else {"latent": noises[stage.latent]}
        for name in {name for own in told for name in own}:
            usual = [own.get(name, named.get(name)) for own in told]
            repeated[name] = torch.cat([row_of(model, name, value, batch, device) for value in usual])
        prediction = model(torch.cat(fed), times[done : done + m].repeat_interleave(batch), **repeated)
        if prediction.value.shape != (m * batch, *start.shape[1:]):
            raise ValueError(f"the network returned shape {tuple(prediction.value.shape)} for {m * batch} samples")
        values, kind = prediction.value.to(dtype).view(m, *start.shape), prediction.kind
        depth, evaluations = depth + 1, evaluations + m

        entries = [entry]
        for k in range(m):
            entries.append(go_on(done + k, entries[-1], fed[k], values[k], kind))
        new = [entries[k][0][stages[done + k].x] for k in range(m)]
        stands = 1
        if m > 1:  # the only read from the device in a call
            changes = (torch.stack(new[1:]) - torch.stack(fed[1:])).flatten(2).square().mean(2).amax(1).sqrt().tolist()
            while stands < m and changes[stands - 1] <= limits[done + stands]:
                stands += 1
        entry, fed, done, ahead = entries[stands], new[stands:], done + stands, entries[m]
        while len(fed) < min(window, len(stages) - done):
            k = done + len(fed)
            fed.append(ahead[0][stages[k].x])
            if len(fed) < window:
                ahead = go_on(k, ahead, fed[-1], values[-1], kind)
    samples = entry[0][table.result].clone()
    if not bool(torch.isfinite(samples).all()):
        raise ValueError("the samples are not finite: run the plan by itself, which names the evaluation")
    return ParallelResult(samples, depth, evaluations, plan.nfe, time.perf_counter() - begin)


def _limits(stages: list[Stage], tolerance: float) -> list[float]:
    """The change allowed in the input state of each stage."""
    sigmas = [in_band(stage.evaluate.scales[1], 0) for stage in stages if stage.evaluate is not None]
    least = min((sigma for sigma in sigmas if sigma > 0), default=1.0)
    return [tolerance * max(sigma, least) for sigma in sigmas]
