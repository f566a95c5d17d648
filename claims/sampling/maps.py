"""Claims of the sampling of flow maps."""

from __future__ import annotations

import math
from typing import Any

import torch

from claims.claim import Claim, Outcome, compared, experiment
from claims.common import ENDPOINT, F64, gap, plan
from claims.parts import EDM, VP, Flow, Noise, Process
from claims.problems import problem
from fewstep.denoisers.exact_map import ExactMap
from fewstep.denoisers.gaussian_map import GaussianMap


@experiment
def _exact(seed: int, process: Process, nfe: int) -> Outcome:
    """An exact map of the mixture in so many evaluations."""
    on, found = problem(process, seed), []
    for solver, model in (("flow-map", ExactMap(on.model, 32)), ("ddim", on.model)):
        found.append(gap(plan(process, solver, nfe, "karras")(model, on.noise[:64], dtype=F64), on.reference[:64]))
    about = f"exact map of the 8-component mixture, {process.name}, {nfe} evaluations, times karras, 64 noises"
    return compared(found, f"ddim with the same mixture, {nfe} evaluations", about, unit=ENDPOINT)


def _law(seed: int) -> Outcome:
    """The error of the spread of 4096 samples of 64 numbers: every gamma keeps the law, ancestral DDIM does not."""
    errors = []
    arms: tuple[tuple[str, str, dict[str, Any]], ...]
    arms = ("flow-map", "map", {"gamma": 0.7}), ("ddim", "denoiser", {"eta": 0.7})
    for solver, answers, options in arms:
        model = GaussianMap(torch.zeros(64), 0.25, EDM(), answers)
        noise = Noise(seed).normal(0, (4096, 64), "cpu", F64)
        x = plan(EDM(), solver, 4, "karras", **options)(model, noise, seed=seed, dtype=F64)
        errors.append(abs(float(x.std()) / math.sqrt(0.25) - 1))
    about = "Gaussian of 64 numbers, edm, 4 evaluations, times karras, gamma 0.7, 4096 samples"
    return compared(errors, "ddim with eta 0.7, 4 evaluations", about, unit="relative error of the standard deviation")


CLAIMS = (
    *(Claim("flow-map", f"an exact map ends nearer to the flow's end than ddim, {process.name}, evaluations: {nfe}",
            _exact(process, nfe), quick=nfe == 1) for process in (VP(), Flow()) for nfe in (1, 4)),
    Claim("flow-map", "keeps the law of the data at every gamma", _law),
)  # fmt: skip
