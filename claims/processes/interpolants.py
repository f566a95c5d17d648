"""Claims of fewstep/processes/interpolants.py."""

from __future__ import annotations

import math

import torch

from claims.between import DATA, FLOOR, OTHER, between, distance
from claims.common import F64, Claim, Outcome, experiment, plan
from claims.duels import formulas
from fewstep.processes.interpolants import Interpolant

TRIGONOMETRIC = Interpolant(path="trigonometric")


@experiment
def _law(seed: int, path: str, latent: str) -> Outcome:
    model, n = between(path, latent), 2048
    floor = max(distance(DATA.sample(n, seed + i), seed) for i in range(1, 6))
    x = plan(model.process, "vab-3", 30, "uniform")(model, OTHER.sample(n, seed + 9), dtype=F64)
    about = f"{path} with latent {latent}, vab-3, 30 even steps, {n} samples between two mixtures in the plane"
    return Outcome(distance(x, seed), 1.5 * floor, FLOOR, about, unit="sliced Wasserstein distance")


CLAIMS = (
    Claim("interpolant", "its formulas agree with each other",
          formulas(TRIGONOMETRIC, lambda t: TRIGONOMETRIC.sigma(t) - torch.sin(math.pi * t / 2), "sigma against sin")),
    *(Claim("interpolant", f"takes one mixture to another by the ODE: {path}, latent {latent}",
            _law(path, latent), quick=False)
      for path, latent in (
          ("linear", "zero"), ("linear", "brownian"), ("trigonometric", "quadratic"), ("encoding-decoding", "sin2"),
      )),
)  # fmt: skip
