"""Claims of the search for guidance."""

from __future__ import annotations

from claims.claim import Outcome, compared, slow
from fewstep.hub.models import load as load_model
from fewstep.searching.guidance import search_guidance

EVALUATIONS, TRIALS, NOISES = 10, 24, 64


def _captions(seed: int) -> Outcome:
    """Mean rewards on fresh noises: what was found, and the best plain scale of six."""
    found = search_guidance(
        load_model("shapes"), EVALUATIONS, "caption", solver="dpmpp-3m", trials=TRIALS, noises=NOISES, seed=seed
    )
    rewards = {row["role"]: row["reward"] for row in found.rows}
    about = f"shapes, {NOISES} fresh captions, {EVALUATIONS} evaluations of dpmpp-3m, {TRIALS} trials; {found.spec}"
    ours = rewards.get("searched", 0.0)
    return compared([ours, rewards.get("plain", ours)], "the best plain scale", about, "high", "attributes right")


CLAIMS = (slow("guidance", "a searched rule, interval and clamp follow captions better than a scale", _captions),)
