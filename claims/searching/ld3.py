"""Claims of fewstep/searching/ld3.py."""

from __future__ import annotations

from claims.common import ENDPOINT, VP, Claim, Outcome, Process, compared, experiment
from claims.problems import problem
from claims.searches import found, search
from fewstep.searching.candidates import hand_made


@experiment
def _best_grid(seed: int, where: Process | str, solver: str, nfe: int, noises: int = 64, **options: float) -> Outcome:
    """The rival is chosen on the noises of the verdict: the hand-made grids' best case."""
    on, job = problem(where, seed), search(where, nfe, "ld3", seed, noises, solver=solver, **options)
    assert job.best is not None
    grids = list(hand_made(job.process, nfe, [solver]))
    theirs, grid = min((on.error(made), f"{made.about['timesteps']}, to {made.about['end']}") for made in grids)
    about = f"{solver}, {nfe} evaluations, {on.name}; {noises} noises to learn from, {noises} held out, {len(on.noise)}"
    about += f" unseen; {job.evaluations} evaluations to find it"
    against = f"the best of {len(grids)} hand-made grids ({grid})"
    return Outcome(on.error(job.best), theirs, against, about, unit=ENDPOINT)


def _soft(seed: int) -> Outcome:
    made = (found(VP(), 5, "ld3", seed, solver="dpmpp-2m", radius=radius) for radius in (0.5, 0.0))
    errors = [problem(VP(), seed).error(p) for p in made]
    about = "dpmpp-2m, 5 evaluations, 8-component mixture, vp; 64 noises to learn from, 256 unseen"
    return compared(errors, "noises held where they are", about, unit=ENDPOINT)


CLAIMS = (
    *(Claim("ld3", f"learned times beat every hand-made grid of {solver} at {nfe} evaluations",
            _best_grid(VP(), solver, nfe), quick=False)
      for solver in ("dpmpp-2m", "unipc-2") for nfe in (5, 8)),
    Claim("ld3", "learned times beat every hand-made grid of dpmpp-2m at 5 evaluations on the embedded digits",
          _best_grid("digits", "dpmpp-2m", 5, 32, iterations=30), quick=False),
    Claim("ld3", "a teacher that may start nearby teaches better at 5 evaluations", _soft, quick=False),
)  # fmt: skip
