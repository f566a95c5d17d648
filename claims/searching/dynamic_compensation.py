"""Claims of fewstep/searching/dynamic_compensation.py."""

from __future__ import annotations

from claims.common import VP, Claim, Outcome, Process, compared, experiment, plan
from claims.problems import problem
from claims.searches import contest, found

BASES = [(s, r) for s in ("unipc-2", "unipc-3", "dpmpp-2m") for r in ("log-snr", "karras", "uniform", "short")]


@experiment
def _fitted(seed: int, where: Process | str, nfe: int, rule: str, noises: int = 64) -> Outcome:
    on = problem(where, seed)
    made = found(where, nfe, "dc-solver", seed, noises, solver="unipc-2", timesteps=rule)
    base = plan(on.model.process, "unipc-2", nfe=nfe, timesteps=rule)
    errors = [float((on.run(p).double() - on.reference.double()).square().mean()) for p in (made, base)]
    about = f"{nfe} evaluations, times {rule}, {on.name}; ratios fitted on 12 noises, measured on others"
    return compared(errors, f"unipc-2, {nfe} evaluations", about, unit="mean squared distance from the reference")


def _predicted(seed: int) -> Outcome:
    options, on = {"solver": "unipc-2", "timesteps": "uniform"}, problem(VP(), seed)
    fitted = found(VP(), 7, "dc-solver", seed, **options)
    predicted = found(VP(), 7, "dc-solver", seed, fit_nfes=(5, 6, 8, 9), **options)
    base = on.error(plan(VP(), "unipc-2", 7, "uniform"))
    share = (base - on.error(predicted)) / (base - on.error(fitted))
    about = "gain over unipc-2 at 7 evaluations on uniform times, 8-component mixture, vp; ratios predicted from those"
    about += " fitted at 5, 6, 8 and 9 evaluations, 256 noises that were not fitted"
    unit = "gain of predicted ratios in parts of that of fitted ones"
    return Outcome(share, 0.5, "half of the gain", about, better="high", unit=unit)


CLAIMS = (
    *(Claim("dc-solver", f"is nearer to the reference than unipc-2 at {nfe} evaluations on {rule} times",
            _fitted(VP(), nfe, rule), quick=nfe < 7)
      for rule in ("uniform", "log-snr") for nfe in (5, 6, 7, 8)),
    Claim("dc-solver",
          "is nearer to the reference than unipc-2 at 6 evaluations on log-snr times of the embedded digits",
          _fitted("digits", 6, "log-snr", 32), quick=False),
    Claim("dc-solver", "beats its bases on their best rules at 6 evaluations",
          contest(VP(), 6, "dc-solver", BASES), quick=False),
    Claim("dc-solver", "ratios predicted from other numbers of evaluations bring over half of the gain",
          _predicted, quick=False),
)  # fmt: skip
