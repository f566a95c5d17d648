"""The league of restoration: every method beside the exact posterior of mixtures, by operator, noise and evaluations.

The problems are those of the claims (`claims/posteriors.py`). Distances are beside the floor of chance, what as many
draws of the truth itself are apart.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from claims.posteriors import OPERATORS, Cell, cell
from fewstep.restoration.restore import restore

SEEDS = (0, 1, 2)
PLACES = ((0.1, 10), (0.02, 20), (0.1, 20), (0.3, 20), (0.1, 50))  # noise and evaluations
METHODS: dict[str, dict[str, Any]] = {
    "exact, dpmpp-2m": {"method": "exact", "solver": "dpmpp-2m"},
    "exact, ddpm": {"method": "exact"},
    "particles, 400": {"method": "particles", "options": {"particles": 400}},
    "calibrated": {"method": "calibrated"},
    "calibrated, wide 0": {"method": "calibrated", "options": {"wide": 0.0}},
    "calibrated, wide 1": {"method": "calibrated", "options": {"wide": 1.0}},
    "calibrated, no gradient": {"method": "calibrated", "options": {"pull": "covariance"}},
    "mmps, 8 Krylov steps": {"method": "mmps", "options": {"iterations": 8}},
    "mmps, 3 Krylov steps": {"method": "mmps"},
    "mmps, 3, dpmpp-2m": {"method": "mmps", "solver": "dpmpp-2m"},
    "daps": {"method": "daps"},
    "pigdm": {"method": "pigdm"},
    "pigdm-official": {"method": "pigdm-official"},
    "tmpd": {"method": "tmpd"},
    "ddrm": {"method": "ddrm"},
    "ddnm-plus": {"method": "ddnm-plus"},
    "ddnm": {"method": "ddnm"},
    "dps": {"method": "dps"},
    "diffpir": {"method": "diffpir"},
    "nrlg": {"method": "nrlg"},
}


def measure() -> list[dict[str, Any]]:
    """A row for each method, noise and number of evaluations: means over operators and seeds, and each operator's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [row for noise, nfe in PLACES for name in METHODS for row in _rows(name, noise, nfe)]
    finally:
        torch.set_num_threads(threads)


def _rows(name: str, noise: float, nfe: int) -> list[dict[str, Any]]:
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for operator in OPERATORS:
        for seed in SEEDS:
            try:
                found[operator].append(_one(cell(operator, noise, seed), METHODS[name], nfe, seed))
            except ValueError:  # the state left the data's world
                found[operator].append({"times": float("inf"), "distance": float("inf")})
    every = [one for rows in found.values() for one in rows]
    keys = ("distance", "times", "mean", "variance", "seconds", "passes")
    whole = {key: statistics.fmean(one.get(key, float("inf")) for one in every) for key in keys}
    each = {operator: statistics.fmean(one["times"] for one in rows) for operator, rows in found.items()}
    return [{"method": name, "noise": noise, "nfe": nfe, "each": each} | whole]


def _one(problem: Cell, how: dict[str, Any], nfe: int, seed: int) -> dict[str, float]:
    begin = time.process_time()
    told = restore(
        problem.model, problem.y, problem.operator, problem.noise, n=400, nfe=nfe, seed=seed, dtype=torch.float64,
        batch_size=400, report=True, **how,
    )  # fmt: skip
    seconds = time.process_time() - begin
    distance = problem.distance(told.samples)
    errors, ratios = zip(
        *(_moments(x, truth) for x, truth in zip(told.samples, problem.truth, strict=True)), strict=True
    )
    return {
        "distance": distance,
        "times": distance / problem.floor,
        "mean": statistics.fmean(errors),
        "variance": statistics.fmean(ratios),
        "seconds": seconds,
        "passes": float(told.passes),
    }


def _moments(x: Tensor, truth: Tensor) -> tuple[float, float]:
    """The error of the mean, in the posterior's deviations, and the ratio of the total variances."""
    spread = truth.var(0)
    error = ((x.mean(0) - truth.mean(0)) ** 2 / spread).mean().sqrt()
    return float(error), float(x.var(0).sum() / spread.sum())


def render(rows: list[dict[str, Any]]) -> str:
    """A table for each noise and number of evaluations."""
    parts = [
        "## Restoration beside the exact posterior\n\n"
        "Mixtures of six Gaussians in 16 numbers, VP; half of them seen, half as many block means, a Gaussian "
        "blur, six projections; six measurements x 400 draws, three seeds. The distance is the sliced Wasserstein "
        "distance to the exact posterior; *times floor* is its ratio to what 400 draws of the truth are apart, "
        "the mean over operators and then for each; the error of the mean is in the posterior's deviations, the "
        "variance over the true one. A pass is a forward of the network, a vector product counts as two; seconds "
        "are of 2,400 draws on one core."
    ]
    columns = ["method", "distance", "times floor", *OPERATORS, "mean", "variance", "passes", "seconds"]
    for noise, nfe in PLACES:
        mine = [row for row in rows if (row["noise"], row["nfe"]) == (noise, nfe)]
        lines = []
        for row in sorted(mine, key=lambda row: row["times"]):
            each = [f"{row['each'][operator]:.1f}" for operator in OPERATORS]
            figures = [f"{row['mean']:.2f}", f"{row['variance']:.2f}", f"{row['passes']:.0f}", f"{row['seconds']:.1f}"]
            lines.append([row["method"], f"{row['distance']:.3f}", f"{row['times']:.1f}", *each, *figures])
        table = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        table += ["| " + " | ".join(line) + " |" for line in lines]
        parts.append(f"Noise {noise:g}, {nfe} evaluations:\n\n" + "\n".join(table))
    return "\n\n".join(parts)
