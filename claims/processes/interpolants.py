"""Claims of fewstep/processes/interpolants.py."""

from __future__ import annotations

import functools
import math

import torch

from claims.between import DATA, OTHER, between, distance
from claims.claim import Claim, Outcome
from claims.problems import F64, clock, identities
from fewstep.processes.interpolants import Interpolant
from fewstep.sampling.build import plan


def _formulas(seed: int) -> Outcome:
    process = Interpolant(path="trigonometric")
    t = clock(process)
    return identities(process, float((process.sigma(t) - torch.sin(math.pi * t / 2)).abs().max()), "sigma against sin")


def _law(seed: int, path: str, latent: str) -> Outcome:
    exact, n = between(path, latent), 2048
    floor = max(distance(DATA.sample(n, seed + i), seed) for i in range(1, 6))
    x = plan(exact.process, "vab-3", 30, "uniform")(exact, OTHER.sample(n, seed + 9), dtype=F64)
    return Outcome(
        distance(x, seed),
        1.5 * floor,
        "1.5 times the most of five sets of exact samples",
        f"{path} with latent {latent}, vab-3, 30 even steps, {n} samples between two mixtures in the plane",
        unit="sliced Wasserstein distance",
    )


def _claim(path: str, latent: str) -> Claim:
    return Claim(
        "interpolant",
        f"takes one mixture to another by the ODE: {path}, latent {latent}",
        functools.partial(_law, path=path, latent=latent),
        quick=False,
    )


CLAIMS = (
    Claim("interpolant", "its formulas agree with each other", _formulas),
    _claim("linear", "zero"),
    _claim("linear", "brownian"),
    _claim("trigonometric", "quadratic"),
    _claim("encoding-decoding", "sin2"),
)
