"""Restoration by networks: scores and cost on held-out digits, and the cost alone on an untrained diffusers UNet."""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.diffusers_overhead import SIZE, _Call, network
from benchmarks.table import table
from claims.restoration.digits import DRAWS, METHODS, NFE, NOISE, PICTURES, PROBLEMS, model, operator, pictures
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.metrics.energy_score import energy_score
from fewstep.metrics.psnr import psnr
from fewstep.operators.downsample import Downsample
from fewstep.processes.discrete import Discrete
from fewstep.restoration.calibrate import calibrate
from fewstep.restoration.restore import restore

COST_NFE, COST_PICTURES = 4, 2
UNTRAINED = "untrained UNet"


def measure() -> list[dict[str, Any]]:
    """A row for each method and operator on digits, then one for each method on the UNet."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [_scored(name, problem) for problem in PROBLEMS for name in METHODS]
        return [*rows, *_costs()]
    finally:
        torch.set_num_threads(threads)


def _scored(name: str, problem: str) -> dict[str, Any]:
    a, truth = operator(problem), pictures(PICTURES)
    y = a.measure(truth, NOISE, seed=0)
    begin = time.process_time()
    told = restore(model(), y, a, NOISE, n=DRAWS, nfe=NFE, report=True, **METHODS[name])
    return {
        "method": name,
        "problem": problem,
        "energy": energy_score(told.samples, truth).value,
        "psnr": psnr(told.mean, truth).value,
        "one": psnr(told.samples[:, 0], truth).value,
        "passes": told.passes,
        "seconds": time.process_time() - begin,
    }


def _costs() -> list[dict[str, Any]]:
    """Of methods on the same measurement; random weights restore nothing, so no figure but the cost is kept."""
    shape = (3, SIZE, SIZE)
    own = NetworkDenoiser(_Call(network()), Discrete.linear(), "x0", shape, data_std=0.5)
    a = Downsample(2).fit(shape)
    data = torch.rand(16, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    calibrate(own, data, n=16, levels=4)
    y, rows = a.measure(data[:COST_PICTURES], NOISE, seed=0), []
    for name, how in METHODS.items():
        begin = time.process_time()
        told = restore(own, y, a, NOISE, nfe=COST_NFE, report=True, **how)
        seconds = time.process_time() - begin
        rows.append({"method": name, "problem": UNTRAINED, "passes": told.passes, "seconds": seconds})
    return rows


def render(rows: list[dict[str, Any]]) -> str:
    """A table for each operator, and that of the cost."""
    parts = [
        "## Restoration by networks\n\n"
        f"The model `digits`, {PICTURES} held-out pictures x {DRAWS} draws, noise {NOISE:g}, {NFE} evaluations. The"
        " energy score is the lower the better, and least in the mean for the posterior itself; the signal to noise of"
        " the mean of the draws and of one, in dB; passes of the network for each draw, a vector product counted as two"
        " more; CPU seconds of all on one core."
    ]
    columns = ["method", "energy score", "PSNR of the mean", "PSNR of one", "passes", "seconds"]
    for problem in PROBLEMS:
        mine = sorted((row for row in rows if row["problem"] == problem), key=lambda row: row["energy"])
        lines = [
            [row["method"], f"{row['energy']:.2f}", f"{row['psnr']:.1f}", f"{row['one']:.1f}", str(row["passes"]),
             f"{row['seconds']:.1f}"]
            for row in mine
        ]  # fmt: skip
        parts.append(f"{problem.capitalize()}:\n\n{table(columns, lines)}")
    costs = [row for row in rows if row["problem"] == UNTRAINED]
    least = min(row["seconds"] for row in costs)
    lines = [
        [row["method"], str(row["passes"]), f"{row['seconds']:.1f}", f"{row['seconds'] / least:.1f}"]
        for row in sorted(costs, key=lambda row: row["seconds"])
    ]
    parts.append(
        f"What {COST_NFE} evaluations cost on a diffusers UNet of {SIZE}x{SIZE} pixels with random weights,"
        f" {COST_PICTURES} pictures 2x smaller:\n\n" + table(["method", "passes", "seconds", "times the least"], lines)
    )
    return "\n\n".join(parts)
