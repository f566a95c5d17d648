"""Ways to run a method: from the measurement on, and towards a single estimate."""

from __future__ import annotations

from claims.claim import Claim, over_seeds, slow
from claims.posteriors import DISTANCE, MEASUREMENTS, OPERATORS, cell, duel
from claims.restoration.league import ABOUT, NFE, NOISE

FEW = 6


def late(problem: str) -> Claim:
    """The default method that begins where the measurement settles the rest, against the whole run."""
    run = duel(problem, NOISE, FEW, {"method": "calibrated", "start": "measurement"}, {"method": "calibrated"})
    about = ABOUT.format(problem, NOISE, FEW)
    return slow("calibrated", f"begun at the measurement it is nearer in {FEW} evaluations, {problem}",
                over_seeds(run, "begun at pure noise", about, unit=DISTANCE))  # fmt: skip


def estimates(seed: int) -> tuple[float, float]:
    """Squared errors of single estimates."""
    own = cell("half seen", NOISE, seed)
    truth = own.model.sample(MEASUREMENTS, seed=seed + 2)[:, None]
    ours = own.restored("nrlg", 2 * NFE, seed, options={"scheme": "optimising"})
    theirs = own.restored("red-diff", 2 * NFE, seed)
    return float((ours - truth).square().mean()), float((theirs - truth).square().mean())


CLAIMS = (
    *(late(problem) for problem in OPERATORS),
    slow("nrlg", "its optimising scheme has the smaller error of an estimate",
         over_seeds(estimates, "red-diff", ABOUT.format("half seen", NOISE, 2 * NFE), unit="mean squared error")),
)  # fmt: skip
