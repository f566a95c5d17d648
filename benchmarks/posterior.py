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

from benchmarks.table import table
from claims.posteriors import OPERATORS, Cell, cell
from fewstep.restoration.restore import restore

PLACES = tuple((noise, nfe) for nfe in (10, 20, 50) for noise in (0.02, 0.1, 0.3))  # noise and evaluations
MAIN, SEEDS = (0.1, 20), (0, 1, 2)  # the place of three seeds; elsewhere the first alone
METHODS: dict[str, dict[str, Any]] = {
    "exact, dpmpp-2m": {"method": "exact", "solver": "dpmpp-2m"},
    "exact, ddpm": {"method": "exact"},
    "particles, 400": {"method": "particles", "options": {"particles": 400}},
    "calibrated": {"method": "calibrated"},
    "calibrated, wide 0": {"method": "calibrated", "options": {"wide": 0.0}},
    "calibrated, wide 1": {"method": "calibrated", "options": {"wide": 1.0}},
    "calibrated, moves of any length": {"method": "calibrated", "options": {"most": float("inf")}},
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
    "nrlg, optimising": {"method": "nrlg", "options": {"scheme": "optimising"}},
    "cdim": {"method": "cdim"},
    "stsl": {"method": "stsl"},
    "red-diff (a mode)": {"method": "red-diff"},
}


def measure() -> list[dict[str, Any]]:
    """A row for each method, noise and number of evaluations: means over operators and seeds, and each operator's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [_row(name, noise, nfe) for noise, nfe in PLACES for name in METHODS]
    finally:
        torch.set_num_threads(threads)


def _row(name: str, noise: float, nfe: int) -> dict[str, Any]:
    """Means over the runs that ended, and how many did not."""
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    diverged = 0
    for operator in OPERATORS:
        for seed in SEEDS if (noise, nfe) == MAIN else SEEDS[:1]:
            try:
                found[operator].append(_one(cell(operator, noise, seed), METHODS[name], nfe, seed))
            except ValueError as error:
                if "left the data's range" not in str(error):
                    raise
                diverged += 1
    every = [one for rows in found.values() for one in rows]
    keys = ("distance", "times", "mean", "variance", "modes", "seconds", "passes")
    whole = {key: statistics.fmean(one[key] for one in every) if every else None for key in keys}
    each = {operator: statistics.fmean(one["times"] for one in rows) for operator, rows in found.items() if rows}
    return {"method": name, "noise": noise, "nfe": nfe, "each": each, "diverged": diverged} | whole


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
        "modes": statistics.fmean(
            _modes(problem, x, truth) for x, truth in zip(told.samples, problem.truth, strict=True)
        ),
        "passes": float(told.passes),
    }


def _modes(problem: Cell, x: Tensor, truth: Tensor) -> float:
    """Half the sum of the differences between the shares of draws that each component takes, and the exact ones."""
    law = torch.distributions.MultivariateNormal(problem.model.means.double(), problem.model.covariances())
    count = len(problem.model.means)
    shares = [law.log_prob(one[:, None]).argmax(1).bincount(minlength=count) / len(one) for one in (x, truth)]
    return float((shares[0] - shares[1]).abs().sum() / 2)


def _moments(x: Tensor, truth: Tensor) -> tuple[float, float]:
    """The error of the mean, in the posterior's deviations, and the ratio of the total variances."""
    spread = truth.var(0)
    error = ((x.mean(0) - truth.mean(0)) ** 2 / spread).mean().sqrt()
    return float(error), float(x.var(0).sum() / spread.sum())


def render(rows: list[dict[str, Any]]) -> str:
    """A table for each noise and number of evaluations."""
    parts = [
        "## Restoration beside the exact posterior\n\n"
        "Mixtures of six Gaussians in 16 numbers, VP; half of them seen, half as many block means, a Gaussian blur, six"
        " projections; six measurements x 400 draws, three seeds at noise 0.1 and 20 evaluations, one elsewhere. The"
        " distance is the sliced Wasserstein distance to the exact posterior; *times floor* is its ratio to what 400"
        " draws of the truth are apart, the mean over operators and then for each; the error of the mean is in the"
        " posterior's deviations, the variance over the true one, and *modes* the mass that is in wrong components. A"
        " pass is a forward of the network, a vector product counts as two; seconds are of 2,400 draws on one core."
        " What left the data's range is counted and not averaged."
    ]
    columns = ["method", "distance", "times floor", *OPERATORS, "mean", "variance", "modes", "passes", "seconds",
               "diverged"]  # fmt: skip
    for noise, nfe in PLACES:
        mine = [row for row in rows if (row["noise"], row["nfe"]) == (noise, nfe)]
        lines = [_line(row) for row in sorted(mine, key=lambda row: (row["diverged"], row["times"] or 0))]
        parts.append(f"Noise {noise:g}, {nfe} evaluations:\n\n{table(columns, lines)}")
    return "\n\n".join(parts)


def _line(row: dict[str, Any]) -> list[str]:
    def said(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    each = [said(row["each"].get(operator), ".1f") for operator in OPERATORS]
    forms = {"mean": ".2f", "variance": ".2f", "modes": ".2f", "passes": ".0f", "seconds": ".1f"}
    figures = [said(row[key], form) for key, form in forms.items()]
    return [row["method"], said(row["distance"], ".3f"), said(row["times"], ".1f"), *each, *figures,
            str(row["diverged"] or "")]  # fmt: skip
