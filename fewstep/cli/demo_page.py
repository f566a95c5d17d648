"""The demo's report and its picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.report.page import Report

VERDICT_ROWS = 12
PLOTTED = 1.0  # samplers with a larger error are in the table alone: a diverged one would flatten the plots


def page(result: dict[str, Any], shown: list[Tensor]) -> Report:
    """The report: the lead and facts, plots, pictures by number of evaluations, and the tables."""
    import torch

    from fewstep.report.page import Pictures, Report
    from fewstep.report.plot import Plot
    from fewstep.report.table import Table

    rows, n, nfe = result["rows"], result["n"], result["fast_nfe"]
    reference = rows[0]
    solvers = list(dict.fromkeys(row["name"] for row in rows[1:]))
    fast = next(row for row in rows if row["name"] == "accelerated")
    slow = max((row for row in rows if row["name"] == "ddim"), key=lambda row: row["planned_nfe"])
    asked = sorted({row["asked_nfe"] for row in rows[1:]})

    def curves(key: str) -> list[tuple[str, list[float], list[float]]]:
        found = []
        for name in ("accelerated", *(name for name in solvers if name != "accelerated")):
            points = {
                row["planned_nfe"]: row[key]
                for row in rows
                if row["name"] == name and row["endpoint"] is not None and row["endpoint"] <= PLOTTED
            }
            found.append((name, list(points), list(points.values())))
        return found

    error = Plot(
        "Error against evaluations",
        curves("endpoint"),
        "network evaluations",
        "relative error of the end point",
        note="Mean distance from the reference's sample of the same noise, over the samples' mean norm. The line is"
        " how far the reference moves when its evaluations are halved. Unless another is named, the rule is"
        f" {result['timesteps']!r}. Errors above {PLOTTED:g} are only in the table.",
        log_x=True,
        log_y=True,
        lines=[("reference's own error", result["reference_error"])],
    )
    distance = Plot(
        "Frechet distance against evaluations",
        curves("frechet"),
        "network evaluations",
        f"Frechet distance ({result['features']})",
        note=f"To the {result['model']} training images, from {n} samples. The floor is what"
        f" {result['floor']['n']} real training images score against the others; {result['validation']['n']} held-out"
        f" images score {result['validation']['value']:.3g}.",
        log_x=True,
        log_y=True,
        lines=[
            (f"reference, {reference['planned_nfe']}", reference["frechet"]),
            ("real data", result["floor"]["value"]),
        ],
    )
    grids = []
    for count in asked:
        chosen = [0] + [i for i, row in enumerate(rows) if i and row["asked_nfe"] == count]
        chosen.sort(key=lambda i: (i != 0, rows[i]["name"] != "accelerated"))
        labels = [f"{rows[i]['name']}, {rows[i]['planned_nfe']}" for i in chosen]
        images = torch.stack([shown[i] for i in chosen])
        grids.append(Pictures(f"At most {count} evaluations", images, labels, "One noise and label per column."))
    columns = (
        "sampler", "planned NFE", "actual NFE", "error", "median error", "Frechet distance", "accuracy", "seconds",
    )  # fmt: skip
    keys = ("name", "planned_nfe", "actual_nfe", "endpoint", "median", "frechet", "accuracy", "seconds")
    unique = {(row["name"], row["planned_nfe"]): [row[key] for key in keys] for row in rows}
    table = Table(
        "All samplers",
        columns,
        list(unique.values()),
        f"{n} samples each, from the same noises. Accuracy: the share that a classifier assigns to the requested label."
        " A dash: not finite, or not defined.",
        best={"error": "low", "Frechet distance": "low"},
    )
    judged = result["accelerate"]["rows"][:VERDICT_ROWS]
    verdict = Table(
        f"What accelerate found at {nfe} evaluations",
        ("sampler", "planned NFE", "n", "error", "Frechet distance"),
        [[row.get(key) for key in ("name", "planned_nfe", "n", "endpoint", "frechet")] for row in judged],
        " ".join(result["accelerate"]["notes"]),
    )
    lead = (
        f"The embedded model {result['model']!r} draws {n} handwritten digits from the same noises with the common"
        " solvers, at few evaluations of the network, and with a plan learned for it by `fewstep accelerate`. The"
        f" reference solves the same equation in {reference['planned_nfe']} evaluations."
    )
    facts = [
        (f"error, accelerated at {fast['planned_nfe']}", fast["endpoint"]),
        (f"error, ddim at {slow['planned_nfe']}", slow["endpoint"]),
        ("Frechet distance, accelerated", fast["frechet"]),
        (f"Frechet distance, reference at {reference['planned_nfe']}", reference["frechet"]),
        ("Frechet distance, real data", result["floor"]["value"]),
        ("seconds in all", round(result["seconds"])),
        ("weights", result["parameters"]),
        ("torch", result["machine"]["torch"]),
    ]
    return Report("fewstep demo: digits in few evaluations", lead, facts, [error, distance, *grids, table, verdict])


def picture(path: Path, result: dict[str, Any], shown: list[Tensor]) -> Path:
    """The rows of `pictured`, one noise a column."""
    import torch

    from fewstep.report.grid import image_grid, save_png

    chosen = pictured(result)
    images = torch.stack([shown[i] for i in chosen])
    told = [{key: result["rows"][i][key] for key in ("name", "planned_nfe", "endpoint")} for i in chosen]
    facts = {"model": result["model"], "seed": result["seed"], "rows": told}
    return save_png(path, image_grid(images), {"fewstep": facts})


def pictured(result: dict[str, Any]) -> list[int]:
    """The rows in the picture: the reference, the accelerated plan, ddim at its most and fewest evaluations."""
    rows = result["rows"]
    ddim = sorted((i for i, row in enumerate(rows) if row["name"] == "ddim"), key=lambda i: rows[i]["planned_nfe"])
    fast = next(i for i, row in enumerate(rows) if row["name"] == "accelerated")
    return [0, fast, ddim[-1], ddim[0]]
