"""Every method of distillation at equal cost: how near its student comes to the data, in evaluations and in seconds.

The teacher is the exact mixture of eight narrow components in the plane; students begin as one perceptron that was
trained as a denoiser of its samples. Every method has the same budget of evaluations (a forward pass of one sample is
1, with its backward pass 3; pairs, the choice of their plan, fake scores and discriminators included), its own
defaults otherwise, and one step. Distances are sliced Wasserstein ones to fresh samples of the mixture, at the end and
on the way; three seeds. The teacher's best plans stand beside them.
"""

from __future__ import annotations

import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from claims.problems import mixture
from fewstep.core.methods import Method, methods
from fewstep.core.words import number_of
from fewstep.data.dataset import Dataset, DataSpec
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.distillation.distill import Distilled, distill
from fewstep.metrics.sliced_wasserstein import sliced_wasserstein
from fewstep.networks.mlp import MLP
from fewstep.processes.ve import EDM
from fewstep.report.files import write_json
from fewstep.sampling.sample import sample
from fewstep.searching.candidates import fitted, hand_made, rank
from fewstep.searching.reference import solve
from fewstep.training.fit import fit

BUDGET, SEEDS = 600_000, (0, 1, 2)
BATCH, WIDTH, DEPTH = 256, 64, 3
STEPS, JUDGED = (1, 2, 4, 8), 4096
TRIAL = 4  # iterations by which the cost of one is known
FILE = Path(__file__).resolve().parents[1] / "docs" / "students.json"


def data(teacher: GaussianMixture, seed: int, n: int = JUDGED) -> Tensor:
    return teacher.sample(n, seed=seed).float()


def beginning(teacher: GaussianMixture, seed: int) -> NetworkDenoiser:
    """The denoiser that every student begins as."""
    torch.manual_seed(seed)
    rows = data(teacher, 1000 + seed, 20_000)
    network = MLP((2,), WIDTH, DEPTH)
    model = NetworkDenoiser(network, teacher.process, "x0", (2,), None, "edm", float(rows.std()), None)
    return fit(model, rows, steps=1500, batch=512, lr=2e-3, seed=seed)


def run_method(method: Method, teacher: GaussianMixture, start: NetworkDenoiser, seed: int) -> tuple[Distilled, float]:
    """A student within the budget, and the processor's seconds that it took."""
    rest: dict[str, Any] = {
        "student": start, "batch": BATCH, "seed": seed, "judge": False, "on_collapse": "go on",
        "data": data_set(teacher, seed),
    }  # fmt: skip
    costs = [
        distill(teacher, method.name, iterations=count, **rest).figures["evaluations"] for count in (TRIAL, 2 * TRIAL)
    ]
    each = (costs[1] - costs[0]) / TRIAL
    iterations = max(1, int((BUDGET - (costs[0] - TRIAL * each)) / each))
    clock = time.process_time()
    made = distill(teacher, method.name, iterations=iterations, **rest)
    return made, time.process_time() - clock


def data_set(teacher: GaussianMixture, seed: int) -> Dataset:
    rows = data(teacher, 2000 + seed, 20_000)
    return Dataset(DataSpec("mixture", (2,), (-4.0, 4.0), None, len(rows)), rows)


def measure() -> list[dict[str, Any]]:
    """A row a method, with its distances by steps, evaluations spent, seconds, and the curve of the checks."""
    torch.set_num_threads(1)  # sums in one order, so that figures repeat
    teacher = mixture(EDM())
    rows: list[dict[str, Any]] = [_floor(teacher), *_plans(teacher)]
    starts = {seed: beginning(teacher, seed) for seed in SEEDS}
    for method in methods("distiller"):
        try:
            rows.append(_row(method, teacher, starts))
        except (ValueError, FloatingPointError) as error:
            rows.append({"method": method.name, "failed": str(error)})
        write_json(FILE, {"budget": BUDGET, "seeds": len(SEEDS), "judged": JUDGED, "rows": rows})
    return rows


def _row(method: Method, teacher: GaussianMixture, starts: dict[int, NetworkDenoiser]) -> dict[str, Any]:
    found: dict[int, list[float]] = {}
    spent, seconds, curves = [], [], []
    for seed, start in starts.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made, took = run_method(method, teacher, start, seed)
        spent.append(made.figures["evaluations"])
        seconds.append(took)
        each = spent[-1] / made.figures["iterations"]
        curves.append([(round(r["step"] * each), r["distance"]) for r in made.history if "distance" in r])
        for steps in STEPS:
            try:
                samples = sample(made.model, JUDGED, seed=seed, steps=steps)
            except ValueError:  # more steps than it was trained for
                continue
            found.setdefault(steps, []).append(sliced_wasserstein(samples, data(teacher, seed)).value)
    return {
        "method": method.name,
        "kind": method.facts["student"],
        "data": method.facts["data"],
        "pairing": method.facts["pairing"],
        "distance": {str(k): [statistics.mean(v), statistics.stdev(v)] for k, v in found.items()},
        "evaluations": statistics.mean(spent),
        "seconds": statistics.mean(seconds),
        "curve": curves[0],
    }


def _plans(teacher: GaussianMixture) -> list[dict[str, Any]]:
    """The teacher's best plan of each number of steps, chosen on noises of their own."""
    found: dict[str, list[float]] = {}
    std = float(data(teacher, 1000).std())
    chosen = solve(teacher, 1, 0, 64, 100, torch.float32)
    for steps in STEPS:
        best = rank([*hand_made(teacher.process, steps), *fitted(teacher.process, steps, std)], teacher, chosen)[0].plan
        values = [
            sliced_wasserstein(sample(teacher, JUDGED, plan=best, seed=seed), data(teacher, seed)).value
            for seed in SEEDS
        ]
        found[str(steps)] = [statistics.mean(values), statistics.stdev(values)]
    return [{"method": "the teacher's best plan", "distance": found}]


def _floor(teacher: GaussianMixture) -> dict[str, Any]:
    """Two sets of samples of the mixture."""
    value = sliced_wasserstein(data(teacher, 77), data(teacher, 78)).value
    return {"method": "real against real", "distance": {"1": [value, 0.0]}}


def render(rows: list[dict[str, Any]]) -> str:
    """The section of RESULTS.md."""
    counts = [number_of(k, "step") for k in STEPS]
    columns = ["method", "student", "real data", "pairing", *counts, "evaluations", "CPU seconds"]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        if "failed" in row:
            lines.append(f"| {row['method']} | {row['failed']} |" + " |" * (len(columns) - 2))
            continue
        cells = [
            row["method"],
            row.get("kind", ""),
            *({True: "yes", False: ""}.get(row.get(k), "") for k in ("data", "pairing")),
        ]
        for steps in STEPS:
            mean, spread = row["distance"].get(str(steps), (None, None))
            cells.append("" if mean is None else f"{mean:.3f} ({spread:.3f})")
        cells += [f"{row['evaluations'] / 1e6:.2f} M" if "evaluations" in row else ""]
        cells += [f"{row['seconds']:.0f}" if "seconds" in row else ""]
        lines.append("| " + " | ".join(cells) + " |")
    return (
        "## Students\n\nSliced Wasserstein distance to the eight-component mixture (mean and spread of three seeds) of"
        " students by every method at equal cost, with default options; the teacher is exact. Of methods that need no"
        " real data none are used but for conditions.\n\n" + "\n".join(lines)
    )
