"""Claims of evaluations skipped where a sample's path is smooth, against the same number skipped at equal distances."""

from __future__ import annotations

from claims.claim import Claim, Outcome, compared, experiment, slow
from claims.common import gap, plan
from claims.parts import VP, Process
from claims.problems import problem
from fewstep.caching.ab_cache import ab_cache
from fewstep.sampling.skipping import skip

STEPS = 50


@experiment
def _against_uniform(
    seed: int, where: Process | str, solver: str, delta: float, timesteps: str = "log-snr", order: int = 1
) -> Outcome:
    """The criterion against evaluations left out at equal distances, at least as many of them made; both forecast
    alike: the last eps at order 1, as in the paper, the network's own output at higher ones."""
    on = problem(where, seed)
    coordinate, s = "eps" if order == 1 else "own", getattr(on.model, "data_std", None)  # the mixture states none
    made = plan(on.model.process, solver, STEPS, timesteps)
    whole, run = on.run(made), on.run(skip(made, delta, order=order, coordinate=coordinate, data_std=s).run)
    mean = float(run.report["nfe_per_sample"].double().mean())
    count = round(mean + 0.5)
    kept = {round(i * (STEPS - 1) / (count - 1)) for i in range(count)}
    skipped = [i for i in range(STEPS) if i not in kept]
    uniform = ab_cache(made, order=order, coordinate=coordinate, data_std=s, skipped=skipped)
    about = f"{solver}, {STEPS} steps, {timesteps}, delta {delta:g}: {mean:.1f} evaluations a sample, {on.about}"
    about += f", order {order} in {coordinate}" if order > 1 else ""
    figures = gap(run.samples, whole), gap(on.run(uniform), whole)
    return compared(
        figures,
        f"uniform skipping, {uniform.nfe} evaluations",
        about,
        unit="relative difference from the run with all evaluations",
    )


def _named(order: int) -> str:
    return "beats uniform skipping" if order == 1 else f"of order {order} beats uniform skipping of that order"


CLAIMS = (
    *(Claim("adaptive-diffusion", f"{_named(order)} of ddim on the mixture", _against_uniform(VP(), "ddim", 0.1,
            order=order)) for order in (1, 2, 3)),
    *(Claim("adaptive-diffusion", f"{_named(order)} of ddim on uniform times, the paper's, on the mixture",
            _against_uniform(VP(), "ddim", 0.1, "uniform", order)) for order in (1, 2, 3)),
    *(slow("adaptive-diffusion", f"{_named(order)} of {solver} on the embedded digits",
           _against_uniform("digits", solver, 0.2, order=order))
      for solver in ("ddim", "dpmpp-2m") for order in (1, 2, 3)),
)  # fmt: skip
