"""Claims of fewstep/training/merging.py."""

from __future__ import annotations

import copy
import functools

import torch
from torch import Tensor

from claims.claim import Claim, Outcome, over_seeds
from claims.level_tasks import OPTIONS, SEEDS, STEPS, WHAT, digits, fresh, held_out, plain
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.training.fit import fit
from fewstep.training.merging import decouple, merge, search_weights

SEARCHED, JUDGED = slice(0, 180), slice(180, None)  # of the held-out digits
TUNING = OPTIONS | {"lr": 5e-4}


@functools.cache
def _losses(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (32,) on the digits that the search did not see: merged, trained on plainly, base."""
    base = plain(seed)
    tuned = decouple(base, digits("train"), (0.25, 0.5, 0.75), steps=STEPS // 4, seed=seed, **TUNING)

    def loss(model: NetworkDenoiser) -> float:
        return float(held_out(model, SEARCHED).mean())

    weights, _ = search_weights(base, tuned, loss)
    further = fit(copy.deepcopy(base), digits("train"), steps=STEPS, seed=seed + 50, **TUNING)
    return tuple(held_out(model, JUDGED) for model in (merge(base, tuned, weights), further, base))  # type: ignore[return-value]


def _against_training(seed: int) -> Outcome:
    return over_seeds(
        lambda number: (float(_losses(number)[0].mean()), float(_losses(number)[1].mean())),
        SEEDS,
        f"{STEPS} further steps of plain training",
        f"{WHAT}, then 4 ranges of {STEPS // 4} steps merged, weights searched on other digits",
        unit="held-out loss",
    )


def _against_base(seed: int) -> Outcome:
    return over_seeds(
        lambda number: (float(_losses(number)[0].mean()), float(_losses(number)[2].mean())),
        SEEDS,
        "the base",
        f"{WHAT}, then 4 ranges of {STEPS // 4} steps merged, weights searched on other digits",
        unit="held-out loss",
    )


def _zero(seed: int) -> Outcome:
    base, others = fresh(seed), [fresh(seed + 1), fresh(seed + 2)]
    merged = merge(base, others, [0.0, 0.0])
    same = [
        torch.equal(a.view(torch.int32), b.view(torch.int32))
        for a, b in zip(base.parameters(), merged.parameters(), strict=True)
    ]
    return Outcome(float(same.count(False)), 1.0, "a single one", "all weights 0", unit="tensors with another bit")


CLAIMS = (
    Claim(
        "deme", "a lower held-out loss than further plain training on as many images", _against_training, quick=False
    ),
    Claim("deme", "a lower held-out loss than the base, in as many parameters", _against_base, quick=False),
    Claim("deme", "with all weights 0 the merged network is the base, bit for bit", _zero),
)
