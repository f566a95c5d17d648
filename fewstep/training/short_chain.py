"""Reward tuning on a short chain: a few-step plan stands for the long one, so its whole gradient is affordable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fewstep.core.methods import Method
from fewstep.core.plan import Plan
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.metrics.rewards import Reward
from fewstep.training.lora import add_timed_lora, lora_parameters
from fewstep.training.reward import Tuned, tune

METHODS = (
    Method(
        "shortft",
        kind="tuner",
        paper="ShortFT: Diffusion Model Alignment via Shortcut-based Fine-Tuning (Guo et al., 2025)",
        arxiv="2507.22604",
        claim="a reward's whole gradient through a few-step plan, into adapters for each of its times",
        use="short_chain",
    ),
)

STEPS = (2, 4)


def short_chain(
    model: NetworkDenoiser,
    reward: Reward,
    *,
    steps: int,
    chains: Sequence[Plan] | None = None,
    rank: int = 4,
    targets: Sequence[str] | None = None,
    segment: int | None = None,
    seed: int = 0,
    **options: Any,
) -> Tuned:
    """Tunes adapters of a model by the gradient of a reward through all of a short chain; the model stays as it is.

    With a short plan that ends near the long one's result, the reward trains the early evaluations as well as the
    last ones, which truncation does not, and the gradient has few factors. The chains follow one another, each for
    its share of the steps. Every time of the last one has an adapter of its own (`add_timed_lora`); between them
    the adapters blend, so the tuned model samples by any plan, the long one included.

    Args:
        reward, options: as in `tune` (batch, lr, conditions, keep, verify, checked, ...). `checked=` the long plan
            verifies what will be sampled.
        chains: few-step plans, shortest first; by default dpmpp-2m with 2 and then 4 evaluations on karras times.
        rank, targets: of the adapters. segment: evaluations that are kept at once, as in `reward_samples`.

    Raises:
        ValueError: no chain; as `tune` and `add_timed_lora`. ImportError: without peft.
    """
    from fewstep.sampling.build import fixed_plan as make_plan

    if chains is None:
        chains = [make_plan(model.process, "dpmpp-2m", timesteps="karras", nfe=n) for n in STEPS]
    if not chains:
        raise ValueError("tuning on a short chain needs one plan or more")
    times = sorted({op.t for op in chains[-1].evaluations})
    adapted = add_timed_lora(model, times, rank, targets, seed=seed)
    return tune(
        adapted,
        reward,
        chains,
        steps=steps,
        method="full",
        segment=segment,
        parameters=lora_parameters(adapted),
        seed=seed,
        **options,
    )
