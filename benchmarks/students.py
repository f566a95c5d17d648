"""Every method of distillation at equal cost: how near its student comes to the data, in evaluations and in seconds.

The teacher is the exact mixture of eight narrow components in the plane; students begin as one perceptron that was
trained as a denoiser of its samples. Every method has the same budget of evaluations (a forward pass of one sample is
1, with its backward pass 3; pairs, fake scores and discriminators included), its own defaults otherwise, and one
step, or two where it takes no single one. Distances are sliced Wasserstein ones to fresh samples of the mixture, at
the end and on the way; three seeds.
"""

from __future__ import annotations

import inspect
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from claims.problems import mixture
from fewstep.core.methods import Method, methods
from fewstep.data.dataset import Dataset, DataSpec
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.distillation.distill import Distilled, distill
from fewstep.metrics.sliced_wasserstein import sliced_wasserstein
from fewstep.networks.mlp import MLP
from fewstep.processes.ve import EDM
from fewstep.report.files import write_json
from fewstep.sampling.sample import sample
from fewstep.training.fit import fit

BUDGET, SEEDS = 600_000, (0, 1, 2)
BATCH, LR, WIDTH, DEPTH = 256, 1e-3, 64, 3
STEPS, JUDGED = (1, 2, 4, 8), 4096
PAIRS = {"pairs": 8192, "plan": "dpmpp-3m"}  # of the methods that learn from pairs
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


def options_of(method: Method) -> dict[str, Any]:
    """Pairs of one plan for all methods that make some."""
    taken = inspect.signature(method.load()).parameters
    return {name: value for name, value in PAIRS.items() if name in taken}


def run_method(method: Method, teacher: GaussianMixture, start: NetworkDenoiser, seed: int) -> tuple[Distilled, float]:
    """A student within the budget, and the seconds that it took."""
    steps = int(method.facts.get("benchmark_steps", 1))
    real = data_set(teacher, seed)
    rest: dict[str, Any] = {
        "student": start, "steps": steps, "batch": BATCH, "lr": LR, "seed": seed, "judge": False,
        "on_collapse": "go on", "data": real,
    } | options_of(method)  # fmt: skip
    costs = [
        distill(teacher, method.name, iterations=count, **rest).figures["evaluations"] for count in (TRIAL, 2 * TRIAL)
    ]
    each = (costs[1] - costs[0]) / TRIAL
    iterations = max(1, int((BUDGET - (costs[0] - TRIAL * each)) / each))
    clock = time.perf_counter()
    made = distill(teacher, method.name, iterations=iterations, **rest)
    return made, time.perf_counter() - clock


def data_set(teacher: GaussianMixture, seed: int) -> Dataset:
    rows = data(teacher, 2000 + seed, 20_000)
    return Dataset(DataSpec("mixture", (2,), (-4.0, 4.0), None, len(rows)), rows)


def measure() -> list[dict[str, Any]]:
    """A row a method, with its distances by steps, evaluations spent, seconds, and the curve of the checks."""
    teacher = mixture(EDM())
    rows: list[dict[str, Any]] = [_floor(teacher)]
    starts = {seed: beginning(teacher, seed) for seed in SEEDS}
    for method in methods("distiller"):
        found: dict[int, list[float]] = {}
        spent, seconds, curves = [], [], []
        try:
            for seed in SEEDS:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    made, took = run_method(method, teacher, starts[seed], seed)
                spent.append(made.figures["evaluations"])
                seconds.append(took)
                curves.append([(r["step"], r["distance"]) for r in made.history if "distance" in r])
                for steps in STEPS:
                    try:
                        samples = sample(made.model, JUDGED, seed=seed, steps=steps)
                    except ValueError:  # more steps than it was trained for
                        continue
                    found.setdefault(steps, []).append(sliced_wasserstein(samples, data(teacher, seed)).value)
        except (ValueError, FloatingPointError) as error:
            rows.append({"method": method.name, "failed": str(error)})
            continue
        rows.append(
            {
                "method": method.name,
                "kind": method.facts["student"],
                "data": method.facts["data"],
                "pairing": method.facts["pairing"],
                "distance": {str(k): [statistics.mean(v), statistics.stdev(v)] for k, v in found.items()},
                "evaluations": statistics.mean(spent),
                "seconds": statistics.mean(seconds),
                "curve": curves[0],
            }
        )
    write_json(FILE, {"budget": BUDGET, "rows": rows})
    return rows


def _floor(teacher: GaussianMixture) -> dict[str, Any]:
    """Two sets of samples of the mixture."""
    value = sliced_wasserstein(data(teacher, 77), data(teacher, 78)).value
    return {"method": "real against real", "distance": {"1": [value, 0.0]}}


def render(rows: list[dict[str, Any]]) -> str:
    """The section of RESULTS.md."""
    columns = ["method", "student", "real data", "pairing", *(f"{k} steps" for k in STEPS), "evaluations", "seconds"]
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
