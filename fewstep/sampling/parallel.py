"""Parallel-in-time sampling of any plan: Picard iteration over a sliding window of its evaluations."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.noise import Noise
from fewstep.core.plan import Plan
from fewstep.core.run import begin_run
from fewstep.core.table import Stage

METHODS = (
    Method(
        "paradigms",
        kind="executor",
        paper="Parallel Sampling of Diffusion Models (Shih et al., 2023)",
        arxiv="2305.16317",
        claim="a window of evaluations in one call: fewer calls one after the other, the same samples",
        use="run_parallel",
    ),
)


@dataclass(frozen=True)
class ParallelResult:
    """Samples `(B, *shape)`; `depth` calls of the network one after the other, `nfe` evaluations of each sample in all,
    `planned_nfe` those of the sequential run, and seconds."""

    samples: Tensor
    depth: int
    nfe: int
    planned_nfe: int
    seconds: float


Entry = tuple[list[Tensor], dict[int, Tensor]]  # states and memory rows before a stage


def advance(
    stage: Stage, entry: Entry, x: Tensor | None, value: Tensor | None, kind: str, noises: dict[int, Tensor]
) -> Entry:
    """A stage's combination, as new tensors: `value` is the network's answer of `kind` at x."""
    states, memory = entry
    memory = dict(memory)
    if value is not None and x is not None:
        for wanted, row in stage.outputs:
            p, q = stage.convert(kind, wanted)
            memory[row] = value if (p, q) == (0.0, 1.0) else p * x + q * value
    for draw, row in stage.draws:
        memory[row] = noises[draw]
    n = len(states)
    after = []
    for weights in stage.weights:
        total: Tensor | None = None
        for j, c in enumerate(weights):
            if c != 0:
                part = states[j] if j < n else memory[j - n]
                total = part * c if total is None else total.add_(part, alpha=c)
        after.append(torch.zeros_like(states[0]) if total is None else total)
    return after + [after[0]] * (n - len(after)), memory


@torch.no_grad()
def run_parallel(
    plan: Plan,
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

    Guess the states that the next `window` evaluations are fed, evaluate all of them at once, and replay the plan's
    cheap combinations with the answers: new guesses (Picard iteration, Algorithm 1 of the paper). The window moves past
    every state that stands: its change has a root mean square of at most `tolerance * sigma` in every sample, sigma
    being the noise level there (at least the plan's smallest). A window's first state is exact, given those that stood,
    so there are never more calls than evaluations in the sequential run. States that enter the window are guessed with
    the last answer. Noise is the sequential run's (it depends on seed, sample and draw alone), so stochastic plans come
    out the same, too.

    Args:
        window: evaluations a call; the network sees batches of up to `window * B`.
        tolerance: 0 for the sequential result to rounding.
        seed, first, init, dtype, **condition: as `fewstep.core.run.run`.

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
    source, batch = Noise(seed, first), len(start)
    draws = [draw for stage in table.stages for draw, _ in stage.draws]
    noises = {draw: source.normal(draw, tuple(start.shape), start.device, dtype) for draw in draws}
    entry: Entry = ([start] + [torch.zeros_like(start)] * (table.states - 1), {})
    stages = list(table.stages)
    if stages[0].evaluate is None:  # what the plan combines before it evaluates
        entry = advance(stages.pop(0), entry, None, None, "", noises)
    times = torch.stack(table.times(start.device, dtype)) if stages else start.new_zeros(0)
    limits = _limits(stages, tolerance)

    done = depth = evaluations = 0  # `entry` is before stage `done`
    fed = [entry[0][stages[0].x]] if stages else []  # guesses of the states that stages done, done + 1, ... are fed
    while done < len(stages):
        m = len(fed)
        prediction = model(
            torch.cat(fed),
            times[done : done + m].repeat_interleave(batch),
            **{name: value.repeat(m, *[1] * (value.ndim - 1)) for name, value in named.items()},
        )
        if prediction.value.shape != (m * batch, *start.shape[1:]):
            raise ValueError(f"the network returned shape {tuple(prediction.value.shape)} for {m * batch} samples")
        values, kind = prediction.value.to(dtype).view(m, *start.shape), prediction.kind
        depth, evaluations = depth + 1, evaluations + m

        entries = [entry]
        for k in range(m):
            entries.append(advance(stages[done + k], entries[-1], fed[k], values[k], kind, noises))
        new = [entries[k][0][stages[done + k].x] for k in range(m)]
        stands = 1
        if m > 1:  # the one read from the device in a call
            changes = (torch.stack(new[1:]) - torch.stack(fed[1:])).flatten(2).square().mean(2).amax(1).sqrt().tolist()
            while stands < m and changes[stands - 1] <= limits[done + stands]:
                stands += 1
        entry, fed, done, ahead = entries[stands], new[stands:], done + stands, entries[m]
        while len(fed) < min(window, len(stages) - done):
            stage = stages[done + len(fed)]
            fed.append(ahead[0][stage.x])
            if len(fed) < window:
                ahead = advance(stage, ahead, fed[-1], values[-1], kind, noises)
    samples = entry[0][table.result].clone()
    if not bool(torch.isfinite(samples).all()):
        raise ValueError("the samples are not finite: run the plan by itself, which names the evaluation")
    return ParallelResult(samples, depth, evaluations, plan.nfe, time.perf_counter() - begin)


def _limits(stages: list[Stage], tolerance: float) -> list[float]:
    """The change allowed in the state that each stage is fed."""
    sigmas = [stage.evaluate.scales[1] for stage in stages if stage.evaluate is not None]
    least = min((sigma for sigma in sigmas if sigma > 0), default=1.0)
    return [tolerance * max(sigma, least) for sigma in sigmas]
