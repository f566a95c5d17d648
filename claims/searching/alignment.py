"""Claims of fewstep/searching/alignment.py."""

from __future__ import annotations

import torch

from claims.claim import Claim, Outcome
from claims.problems import exact, mixture
from claims.searches import contest, search
from fewstep.metrics.sliced_wasserstein import sliced_wasserstein
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan


def _endpoint(nfe: int, seed: int) -> Outcome:
    return contest(VP(), nfe, "aligner", [("ddim", "log-snr")], seed, solver="ddim", timesteps="log-snr")


def _distribution(nfe: int, seed: int) -> Outcome:
    """256 noises end where the model takes them; how far is that from where the exact flow takes them, as sets?"""
    problem = exact(VP(), seed)
    job = search(VP(), nfe, "aligner", seed, solver="ddim", timesteps="log-snr")
    assert job.best is not None
    data = mixture(VP()).sample(4096, seed + 1)

    def distance(made: object) -> float:
        x = made(problem.model, problem.noise, dtype=torch.float64)  # type: ignore[operator]
        return sliced_wasserstein(x, data, projections=64).value

    floor = sliced_wasserstein(problem.reference, data, projections=64).value
    return Outcome(
        distance(job.best),
        distance(plan(VP(), "ddim", nfe)),
        f"ddim, {nfe} evaluations",
        f"ddim on log-snr times, {nfe} evaluations, 8-component mixture, vp, 256 samples against 4096 exact ones; the"
        f" reference's have {floor:.2g}",
        unit="sliced Wasserstein distance",
    )


def _returns(seed: int) -> Outcome:
    shifts = []
    for steps in (32, 8):
        job = search(VP(), steps, "aligner", seed, solver="ddim", timesteps="log-snr")
        assert job.best is not None
        taus = job.best.about["network times"]
        process, own = job.process, plan(VP(), "ddim", steps).times
        moves = [abs(process.log_snr(tau) - process.log_snr(t)) for tau, t in zip(taus, own, strict=False)]
        shifts.append(sum(moves) / len(moves))
    return Outcome(
        shifts[0],
        shifts[1],
        "8 evaluations",
        "32 evaluations, ddim on log-snr times, 8-component mixture, vp",
        unit="mean distance of the fitted times from the grid's, in log-SNR",
    )


CLAIMS = (
    *(
        Claim(
            "aligner",
            f"lowers ddim's end point error at {nfe} evaluations",
            lambda seed, nfe=nfe: _endpoint(nfe, seed),
        )
        for nfe in (4, 6, 10)
    ),
    *(
        Claim(
            "aligner",
            f"brings ddim's samples nearer to the data's distribution at {nfe} evaluations",
            lambda seed, nfe=nfe: _distribution(nfe, seed),
        )
        for nfe in (4, 10)
    ),
    Claim("aligner", "as steps grow the fitted times return to the grid's", _returns, quick=False),
    Claim(
        "aligner",
        "lowers ddim's end point error at 6 evaluations on the embedded digits",
        lambda seed: contest(
            None, 6, "aligner", [("ddim", "log-snr")], seed, noises=32, solver="ddim", timesteps="log-snr"
        ),
        quick=False,
    ),
)
