"""Claims of fewstep/data/photographs.py."""

from __future__ import annotations

import torch
from torch import Tensor

from claims.claim import Claim, Outcome
from fewstep.data.open import open_data


def _seen(held: Tensor, train: Tensor) -> float:
    """The share of patches held out whose left half is the right half of one trained on."""
    half = held.shape[3] // 2
    known = {patch[..., half:].contiguous().numpy().tobytes() for patch in train}
    return sum(patch[..., :half].contiguous().numpy().tobytes() in known for patch in held) / len(held)


def _apart(seed: int) -> Outcome:
    train, held = (open_data("photographs", split=split).images for split in ("train", "validation"))
    mixed = torch.cat([train, held])[
        torch.randperm(len(train) + len(held), generator=torch.Generator().manual_seed(seed))
    ]
    return Outcome(
        _seen(held, train),
        _seen(mixed[len(train) :], mixed[: len(train)]),
        "patches dealt at random",
        f"{len(train)} patches of 32 pixels to train on, {len(held)} held out",
        unit="share of held-out patches of which half was trained on",
    )


CLAIMS = (Claim("photographs", "no patch held out was trained on in part", _apart),)
