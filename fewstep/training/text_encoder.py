"""Reward tuning of only the text encoder: what the words mean to a network that stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.core.methods import Method
from fewstep.core.plan import Plan
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.metrics.rewards import Reward
from fewstep.networks.text import TextEncoder
from fewstep.training.reward import Conditions, Tuned, tune

METHODS = (
    Method(
        "textcraftor",
        kind="tuner",
        paper="TextCraftor: Your Text Encoder Can be Image Quality Controller (Li et al., 2024)",
        arxiv="2403.18978",
        claim="raises rewards by tuning only the text encoder; tuned encoders can be blended",
        use="tune_text_encoder",
    ),
)


def _encoder(model: NetworkDenoiser) -> TextEncoder:
    encoder = getattr(model.network, "text", None)
    if not isinstance(encoder, TextEncoder):
        raise ValueError("this model has no text encoder: it needs a network with captions (vocabulary=...)")
    return encoder


def tune_text_encoder(
    model: NetworkDenoiser,
    rewards: Reward | Sequence[tuple[float, Reward]],
    captions: Sequence[str] | Conditions,
    plan: Plan,
    *,
    steps: int,
    anchor: float = 0.0,
    method: str = "renoised",
    last: int | None = None,
    **options: Any,
) -> Tuned:
    """Tunes the text encoder of a copy of the model by rewards of its samples; all other weights stay bit for bit.

    Args:
        rewards: one, or pairs of a weight and a reward `reward(x, text=tokens, ...) -> (B,)`, which are added up.
        captions: drawn uniformly, or a function `(count, generator) -> conditions`.
        anchor: weight of the mean distance, 1 - cosine, of the words' vectors from those of the original encoder.
        method, last: as in `tune`. By default the gradient is that of x0 predicted at a sample noised again to any time
            of the plan: one evaluation, at every noise level in turn.
        options: the other options of `tune`.

    Raises:
        ValueError: a network without captions, no rewards or captions, a negative anchor; as `tune`.
    """
    pairs = [(1.0, rewards)] if callable(rewards) else list(rewards)
    if not pairs or (not callable(captions) and not captions):
        raise ValueError("tuning needs a reward" if not pairs else "tuning needs captions")
    if anchor < 0:
        raise ValueError(f"the anchor must be at least 0, got {anchor}")
    tuned = copy.deepcopy(model).requires_grad_(False)
    encoder = _encoder(tuned).requires_grad_(True)
    before = copy.deepcopy(encoder).requires_grad_(False)

    def reward(x: Tensor, **condition: Tensor) -> Tensor:
        return sum((weight * one(x, **condition) for weight, one in pairs), torch.zeros(len(x), device=x.device))

    def distance(condition: Mapping[str, Tensor]) -> Tensor:
        text = condition["text"]
        cosine = F.cosine_similarity(encoder(text), before(text), dim=2)
        return anchor * (1 - cosine).mean()

    def draw(count: int, generator: torch.Generator) -> Mapping[str, Any]:
        assert not callable(captions)
        rows = torch.randint(len(captions), (count,), generator=generator)
        return {"text": [captions[row] for row in rows.tolist()]}

    found = tune(
        tuned,
        reward,
        plan,
        steps=steps,
        method=method,
        last=plan.nfe if last is None else last,
        parameters=list(encoder.parameters()),
        conditions=captions if callable(captions) else draw,
        penalty=distance if anchor else None,
        **options,
    )
    tuned.requires_grad_(True)
    return found


def interpolate_encoders(one: NetworkDenoiser, other: NetworkDenoiser, share: float) -> NetworkDenoiser:
    """A copy of `one` whose text encoder's weights are `(1 - share)` of its own and `share`, in [0, 1], of the other's.

    Raises:
        ValueError: share out of range, networks without captions or with different encoders.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be between 0 and 1, got {share}")
    made = copy.deepcopy(one)
    ours, theirs = dict(_encoder(made).named_parameters()), dict(_encoder(other).named_parameters())
    shapes = [{name: tuple(value.shape) for name, value in side.items()} for side in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise ValueError("the two text encoders have different shapes, so nothing lies between them")
    with torch.no_grad():
        for name, value in ours.items():
            value.lerp_(theirs[name], share)
    return made
