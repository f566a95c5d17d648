"""Claims of fewstep/training/merging.py."""

from __future__ import annotations

import copy
import functools

import torch

from claims.common import Claim, Outcome, arms, experiment
from claims.level_tasks import OPTIONS, STEPS, WHAT, digits, held_out, plain, untrained
from claims.trained import fit
from fewstep.training.merging import decouple, merge, search_weights

SEARCHED, JUDGED = slice(0, 180), slice(180, None)  # of the held-out digits
TUNING = OPTIONS | {"lr": 5e-4}


@functools.cache
def _losses(seed: int) -> dict[str, float]:
    """Mean losses on the digits that the search did not see: merged, trained on plainly, base."""
    base = plain(seed)
    tuned = decouple(base, digits("train"), (0.25, 0.5, 0.75), steps=STEPS // 4, seed=seed, **TUNING)
    weights, _ = search_weights(base, tuned, lambda model: float(held_out(model, SEARCHED).mean()))
    further = fit(copy.deepcopy(base), digits("train"), steps=STEPS, seed=seed + 50, **TUNING)
    models = {"merged": merge(base, tuned, weights), "further": further, "base": base}
    return {name: float(held_out(model, JUDGED).mean()) for name, model in models.items()}


@experiment
def _against(seed: int, rival: str, against: str) -> Outcome:
    about = f"{WHAT}, then 4 ranges of {STEPS // 4} steps merged, weights searched on other digits"
    return arms(seed, lambda name, s: _losses(s)[name], "merged", rival, against, about, unit="held-out loss")


def _zero(seed: int) -> Outcome:
    base, others = untrained(seed), [untrained(seed + 1), untrained(seed + 2)]
    pairs = zip(base.parameters(), merge(base, others, [0.0, 0.0]).parameters(), strict=True)
    same = [torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in pairs]
    return Outcome(float(same.count(False)), 1.0, "a single one", "all weights 0", unit="tensors with another bit")


CLAIMS = (
    Claim("deme", "a lower held-out loss than further plain training on as many images",
          _against("further", f"{STEPS} further steps of plain training"), quick=False),
    Claim("deme", "a lower held-out loss than the base, in as many parameters",
          _against("base", "the base"), quick=False),
    Claim("deme", "with all weights 0 the merged network is the base, bit for bit", _zero),
)  # fmt: skip
