"""Claims of the searches that fit times or ratios of a plan; and how a search runs, for other claims too."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch

from claims.claim import Claim, Outcome, compared, experiment, slow
from claims.common import ENDPOINT, F64, SLICED, plan, sliced
from claims.parts import VP, Denoiser, Noise, Plan, Process
from claims.problems import digits, mixture, problem
from fewstep.core.methods import find
from fewstep.hub.models import load
from fewstep.searching.candidates import hand_made
from fewstep.searching.grids import fine_grid
from fewstep.searching.job import Job

Rivals = Sequence[tuple[str, str]]  # solvers and the rules of their times
RULES = ("karras", "log-snr", "uniform")
DDIM = {"solver": "ddim", "timesteps": "log-snr"}
RIVAL = [("ddim", "log-snr")]
BASES = [(s, r) for s in ("unipc-2", "unipc-3", "dpmpp-2m") for r in ("log-snr", "karras", "uniform", "short")]
GITS_RIVAL = [("dpmpp-2m", "log-snr")]
RIVALS = [(solver, rule) for solver in ("ddim", "dpmpp-2m") for rule in ("log-snr", "karras", "uniform")]


def model_of(name: str) -> tuple[Denoiser, int, str]:
    """A model, "mixture" or "digits", how many noises to rate plans on, and its description."""
    return (mixture(VP()), 64, "8-component mixture, vp") if name == "mixture" else (load(name), 32, "embedded digits")


@functools.cache
def _job(where: Process | str, nfe: int, method: str, seed: int, noises: int, options: tuple[Any, ...]) -> Job:
    job = Job(problem(where, seed).model, nfe, method=method, seed=seed + 1, noises=noises)
    with job, torch.no_grad():
        find(method, room="searching")(job, **dict(options))
    return job


def search(where: Process | str, nfe: int, method: str, seed: int, noises: int = 64, **options: Any) -> Job:
    """The finished job of a method on a stream of noises of its own: `noises` to learn from, as many to choose on."""
    return _job(where, nfe, method, seed, noises, tuple(sorted(options.items())))


def found(where: Process | str, nfe: int, method: str, seed: int, noises: int = 64, **options: Any) -> Plan:
    """The plan that `search` finds."""
    job = search(where, nfe, method, seed, noises, **options)
    assert job.best is not None
    return job.best


@experiment
def contest(
    seed: int, where: Process | str, nfe: int, method: str, rivals: Rivals, noises: int = 64, **options: Any
) -> Outcome:
    """The plan of a search against the best of rivals (solver, rule) at as many evaluations, on unseen noises."""
    on = problem(where, seed)
    job, best = search(where, nfe, method, seed, noises, **options), found(where, nfe, method, seed, noises, **options)
    plans = {f"{solver}, {rule}": plan(on.model.process, solver, timesteps=rule, nfe=nfe) for solver, rule in rivals}
    error, name = min((on.error(made), name) for name, made in plans.items())
    of = "" if len(rivals) == 1 else f", the best of {len(rivals)}"
    about = f"{best.name} on {best.about.get('timesteps')}, {best.nfe} evaluations, {on.name}; {noises} noises to learn"
    about += f" from, {noises} held out, {len(on.noise)} unseen; {job.evaluations} evaluations to find it"
    return Outcome(on.error(best), error, f"{name}{of}, {nfe} evaluations", about, unit=ENDPOINT)


@experiment
def _distribution(seed: int, nfe: int) -> Outcome:
    """256 noises end where the model takes them; how far is that from where the exact flow takes them, as sets?"""
    on, data = problem(VP(), seed), mixture(VP()).sample(4096, seed + 1)
    samples = (on.run(found(VP(), nfe, "aligner", seed, **DDIM)), on.run(plan(VP(), "ddim", nfe)), on.reference)
    ours, theirs, floor = (sliced(x, data) for x in samples)
    about = f"ddim on log-snr times, {nfe} evaluations, 8-component mixture, vp, 256 samples against 4096 exact ones;"
    about += f" the reference's have {floor:.2g}"
    return Outcome(ours, theirs, f"ddim, {nfe} evaluations", about, unit=SLICED)


def _returns(seed: int) -> Outcome:
    shifts, process = [], VP()
    for steps in (32, 8):
        taus = found(process, steps, "aligner", seed, **DDIM).about["network times"]
        pairs = zip(taus, plan(process, "ddim", steps).times, strict=False)
        moves = [abs(process.log_snr(tau) - process.log_snr(t)) for tau, t in pairs]
        shifts.append(sum(moves) / len(moves))
    about = "32 evaluations, ddim on log-snr times, 8-component mixture, vp"
    unit = "mean distance of the fitted times from the grid's, in log-SNR"
    return compared(shifts, "8 evaluations", about, unit=unit)


def _rivals(solver: str) -> list[tuple[str, str]]:
    return [(solver, rule) for rule in RULES]


def _ancestral(seed: int) -> Outcome:
    """What the bound bounds: the distribution of the reverse SDE's discretisation."""
    model, n = mixture(VP()), 4096
    noise, data = Noise(seed).normal(0, (n, 2), "cpu", F64), model.sample(n, seed + 1)

    def distance(made: Plan) -> float:
        return sliced(made(model, noise, seed=seed, dtype=F64), data)

    times = list(found(VP(), 10, "ays", seed, solver="ddim", floor=0.0).times)
    theirs, rule = min((distance(plan(VP(), "ddpm", 10, rule)), rule) for rule in RULES)
    against, about = f"{rule}, the best of {len(RULES)}", f"ddpm, 10 evaluations, 8-component mixture, vp, {n} samples"
    return Outcome(distance(plan(VP(), "ddpm", timesteps=times)), theirs, against, about, unit=SLICED)


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


def _flat(seed: int) -> Outcome:
    job = Job(digits(seed).model, 8, method="gits", seed=seed, noises=32)
    with torch.no_grad():
        path = torch.stack(job.trajectory(fine_grid(job.process, 61))).double().flatten(2).transpose(0, 1)
    power = torch.linalg.svdvals(path - path.mean(1, keepdim=True)).square()
    least = float((power[:, :3].sum(1) / power.sum(1)).min())
    about = "the least share over 32 trajectories of 61 states, embedded digits, 64 dimensions"
    unit = "share of a trajectory's variance in its first three principal components"
    return Outcome(least, 0.95, "the paper's threshold", about, better="high", unit=unit)


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


def _planned(seed: int) -> Outcome:
    made = (found(VP(), 8, "olss", seed), found(VP(), 8, "olss", seed, timesteps="uniform"))
    errors = [problem(VP(), seed).error(p) for p in made]
    about = "8 evaluations, 8-component mixture, vp; 64 noises to learn from, 256 unseen"
    return compared(errors, "the same fit on uniform times", about, unit=ENDPOINT)


CLAIMS = (
    *(Claim("aligner", f"lowers ddim's end point error at {nfe} evaluations",
            contest(VP(), nfe, "aligner", RIVAL, **DDIM)) for nfe in (4, 6, 10)),
    *(Claim("aligner", f"brings ddim's samples nearer to the data's distribution at {nfe} evaluations",
            _distribution(nfe)) for nfe in (4, 10)),
    slow("aligner", "as steps grow the fitted times return to the grid's", _returns),
    slow("aligner", "lowers ddim's end point error at 6 evaluations on the embedded digits",
         contest("digits", 6, "aligner", RIVAL, noises=32, **DDIM)),
    Claim("ays", "the paper's schedule samples the SDE better than hand-made ones at 10 evaluations", _ancestral),
    *(Claim("ays", f"the paper's schedule beats karras, log-snr and uniform times under {solver} at 10 evaluations",
            contest(VP(), 10, "ays", _rivals(solver), solver=solver, floor=0.0)) for solver in ("ddim", "dpmpp-2m")),
    *(Claim("ays", f"with a floor of its own it beats dpmpp-2m at {nfe} evaluations",
            contest(VP(), nfe, "ays", _rivals("dpmpp-2m"))) for nfe in (5, 8)),
    slow("ays", "with a floor of its own it beats dpmpp-2m at 8 evaluations on the embedded digits",
         contest("digits", 8, "ays", _rivals("dpmpp-2m"), noises=32)),
    *(Claim("dc-solver", f"is nearer to the reference than unipc-2 at {nfe} evaluations on {rule} times",
            _fitted(VP(), nfe, rule), quick=nfe < 7) for rule in ("uniform", "log-snr") for nfe in (5, 6, 7, 8)),
    slow("dc-solver",
         "is nearer to the reference than unipc-2 at 6 evaluations on log-snr times of the embedded digits",
         _fitted("digits", 6, "log-snr", 32)),
    slow("dc-solver", "beats its bases on their best rules at 6 evaluations", contest(VP(), 6, "dc-solver", BASES)),
    slow("dc-solver", "ratios predicted from other numbers of evaluations bring over half of the gain", _predicted),
    *(Claim("gits", f"its grid beats karras, log-snr and uniform times under {solver} at {nfe} evaluations",
            contest(VP(), nfe, "gits", [(solver, rule) for rule in RULES], solver=solver))
      for solver in ("ddim", "dpmpp-2m") for nfe in (5, 10)),
    Claim("gits", "beats dpmpp-2m on log-snr times at 5 evaluations", contest(VP(), 5, "gits", GITS_RIVAL)),
    slow("gits", "beats dpmpp-2m on log-snr times at 5 evaluations on the embedded digits",
         contest("digits", 5, "gits", GITS_RIVAL, noises=32)),
    slow("gits", "three principal components hold the digits' trajectories", _flat),
    *(slow("ld3", f"learned times beat every hand-made grid of {solver} at {nfe} evaluations",
           _best_grid(VP(), solver, nfe)) for solver in ("dpmpp-2m", "unipc-2") for nfe in (5, 8)),
    slow("ld3", "learned times beat every hand-made grid of dpmpp-2m at 5 evaluations on the embedded digits",
         _best_grid("digits", "dpmpp-2m", 5, 32, iterations=30)),
    slow("ld3", "a teacher that may start nearby teaches better at 5 evaluations", _soft),
    *(Claim("olss", f"beats ddim and dpmpp-2m at {nfe} evaluations", contest(VP(), nfe, "olss", RIVALS))
      for nfe in (5, 8, 10)),
    slow("olss", "beats ddim and dpmpp-2m at 6 evaluations on the embedded digits",
         contest("digits", 6, "olss", RIVALS, noises=32)),
    Claim("olss", "planned times beat uniform ones at 8 evaluations", _planned),
)  # fmt: skip
