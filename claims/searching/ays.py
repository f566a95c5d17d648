"""Claims of fewstep/searching/ays.py."""

from __future__ import annotations

from claims.common import F64, VP, Claim, Noise, Outcome, Plan, plan, sliced_wasserstein
from claims.problems import mixture
from claims.searches import RULES, contest, found


def _rivals(solver: str) -> list[tuple[str, str]]:
    return [(solver, rule) for rule in RULES]


def _ancestral(seed: int) -> Outcome:
    """What the bound bounds: the distribution of the reverse SDE's discretisation."""
    model, n = mixture(VP()), 4096
    noise, data = Noise(seed).normal(0, (n, 2), "cpu", F64), model.sample(n, seed + 1)

    def distance(made: Plan) -> float:
        return sliced_wasserstein(made(model, noise, seed=seed, dtype=F64), data, projections=64).value

    times = list(found(VP(), 10, "ays", seed, solver="ddim", floor=0.0).times)
    theirs, rule = min((distance(plan(VP(), "ddpm", 10, rule)), rule) for rule in RULES)
    against, about = f"{rule}, the best of {len(RULES)}", f"ddpm, 10 evaluations, 8-component mixture, vp, {n} samples"
    ours = distance(plan(VP(), "ddpm", timesteps=times))
    return Outcome(ours, theirs, against, about, unit="sliced Wasserstein distance")


CLAIMS = (
    Claim("ays", "the paper's schedule samples the SDE better than hand-made ones at 10 evaluations", _ancestral),
    *(Claim("ays", f"the paper's schedule beats karras, log-snr and uniform times under {solver} at 10 evaluations",
            contest(VP(), 10, "ays", _rivals(solver), solver=solver, floor=0.0))
      for solver in ("ddim", "dpmpp-2m")),
    *(Claim("ays", f"with a floor of its own it beats dpmpp-2m at {nfe} evaluations",
            contest(VP(), nfe, "ays", _rivals("dpmpp-2m")))
      for nfe in (5, 8)),
    Claim("ays", "with a floor of its own it beats dpmpp-2m at 8 evaluations on the embedded digits",
          contest("digits", 8, "ays", _rivals("dpmpp-2m"), noises=32), quick=False),
)  # fmt: skip
