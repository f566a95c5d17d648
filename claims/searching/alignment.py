"""Claims of fewstep/searching/alignment.py."""

from __future__ import annotations

from claims.common import VP, Claim, Outcome, compared, experiment, plan, sliced_wasserstein
from claims.problems import mixture, problem
from claims.searches import contest, found

DDIM = {"solver": "ddim", "timesteps": "log-snr"}
RIVAL = [("ddim", "log-snr")]


@experiment
def _distribution(seed: int, nfe: int) -> Outcome:
    """256 noises end where the model takes them; how far is that from where the exact flow takes them, as sets?"""
    on, data = problem(VP(), seed), mixture(VP()).sample(4096, seed + 1)
    samples = (on.run(found(VP(), nfe, "aligner", seed, **DDIM)), on.run(plan(VP(), "ddim", nfe)), on.reference)
    ours, theirs, floor = (sliced_wasserstein(x, data, projections=64).value for x in samples)
    about = f"ddim on log-snr times, {nfe} evaluations, 8-component mixture, vp, 256 samples against 4096 exact ones;"
    about += f" the reference's have {floor:.2g}"
    return Outcome(ours, theirs, f"ddim, {nfe} evaluations", about, unit="sliced Wasserstein distance")


def _returns(seed: int) -> Outcome:
    shifts, process = [], VP()
    for steps in (32, 8):
        taus = found(process, steps, "aligner", seed, **DDIM).about["network times"]
        pairs = zip(taus, plan(process, "ddim", steps).times, strict=False)
        moves = [abs(process.log_snr(tau) - process.log_snr(t)) for tau, t in pairs]
        shifts.append(sum(moves) / len(moves))
    about = "32 evaluations, ddim on log-snr times, 8-component mixture, vp"
    return compared(
        shifts, "8 evaluations", about, unit="mean distance of the fitted times from the grid's, in log-SNR"
    )


CLAIMS = (
    *(Claim("aligner", f"lowers ddim's end point error at {nfe} evaluations",
            contest(VP(), nfe, "aligner", RIVAL, **DDIM))
      for nfe in (4, 6, 10)),
    *(Claim("aligner", f"brings ddim's samples nearer to the data's distribution at {nfe} evaluations",
            _distribution(nfe))
      for nfe in (4, 10)),
    Claim("aligner", "as steps grow the fitted times return to the grid's", _returns, quick=False),
    Claim("aligner", "lowers ddim's end point error at 6 evaluations on the embedded digits",
          contest("digits", 6, "aligner", RIVAL, noises=32, **DDIM), quick=False),
)  # fmt: skip
