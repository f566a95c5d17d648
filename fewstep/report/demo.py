"""The demo's report and its picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.core.words import number_of
from fewstep.report.grid import image_grid, save_png
from fewstep.report.page import Folded, Pictures, Report, Section
from fewstep.report.plot import Plot
from fewstep.report.table import Table

OWN = "accelerated"  # the sampler that a reader is to see at once
VERDICT_ROWS = 12
FAR = 1.0  # a larger error is farther from the reference than a picture of nothing: the sampler has diverged
COLUMNS = (
    "sampler", "planned NFE", "actual NFE", "error", "median error", "Frechet distance", "accuracy", "seconds",
)  # fmt: skip
KEYS = ("name", "planned_nfe", "actual_nfe", "endpoint", "median", "frechet", "accuracy", "seconds")


def diverged(row: dict[str, Any]) -> bool:
    """Whether a sampler's samples are not finite, or farther from the reference's than a picture of nothing."""
    return row["name"] != "reference" and (row["endpoint"] is None or row["endpoint"] > FAR)


def page(result: dict[str, Any], shown: list[Tensor]) -> Report:
    """The report: the lead and facts, plots, pictures by number of evaluations, and the tables."""
    rows, n, nfe = result["rows"], result["n"], result["fast_nfe"]
    reference = rows[0]
    solvers = list(dict.fromkeys(row["name"] for row in rows[1:]))
    fast = next(row for row in rows if row["name"] == OWN)
    slow = max((row for row in rows if row["name"] == "ddim"), key=lambda row: row["planned_nfe"])
    asked = sorted({row["asked_nfe"] for row in rows[1:]})

    def curves(key: str) -> list[tuple[str, list[float], list[float]]]:
        found = []
        for name in (OWN, *(name for name in solvers if name != OWN)):
            points = {row["planned_nfe"]: row[key] for row in rows if row["name"] == name and not diverged(row)}
            if points:
                found.append((name, list(points), list(points.values())))
        return found

    error = Plot(
        "Error against evaluations",
        curves("endpoint"),
        "network evaluations",
        "relative error of the end point",
        note="Mean distance from the reference's sample of the same noise, over the samples' mean norm. The line is"
        " how far the reference moves when its evaluations are halved. Unless another is named, the rule is"
        f" {result['timesteps']!r}.",
        log_x=True,
        log_y=True,
        lines=[("reference's own error", result["reference_error"])],
        mark=OWN,
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
        mark=OWN,
    )
    grids = []
    for count in asked:
        chosen = [0] + [i for i, row in enumerate(rows) if i and row["asked_nfe"] == count and not diverged(row)]
        chosen.sort(key=lambda i: (i != 0, rows[i]["name"] != OWN))
        labels = [f"{rows[i]['name']}, {rows[i]['planned_nfe']}" for i in chosen]
        images = torch.stack([shown[i] for i in chosen])
        title, note = f"At most {number_of(count, 'evaluation')}", "One noise and label per column."
        marked = [place for place, i in enumerate(chosen) if rows[i]["name"] == OWN]
        grids.append(Pictures(title, images, labels, note, marked=marked))
    unique = {(row["name"], row["planned_nfe"]): row for row in rows}
    kept = [row for row in unique.values() if not diverged(row)]
    table = Table(
        "All samplers",
        COLUMNS,
        [[row[key] for key in KEYS] for row in kept],
        f"{n} samples each, from the same noises. Accuracy: the share that a classifier assigns to the requested label."
        " Seconds: of the network's calls, those shared with other samplers counted for each of them.",
        best={"error": "low", "Frechet distance": "low"},
        marked=[i for i, row in enumerate(kept) if row["name"] == OWN],
    )
    lost = [row for row in unique.values() if diverged(row)]
    folded = []
    if lost:
        named = ", ".join(dict.fromkeys(row["name"] for row in lost))
        told = (
            f"{len(lost)} of {len(unique)} samplers diverged ({named}): their samples are not finite, or farther from"
            " the reference's than a picture of nothing (error above 1). They are left out above."
        )
        shown_lost = Table("Diverged", COLUMNS, [[row[key] for key in KEYS] for row in lost], "A dash: not finite.")
        folded.append(Folded(told, shown_lost))
    judged = result["accelerate"]["rows"][:VERDICT_ROWS]
    verdict = Table(
        f"What accelerate found at {nfe} evaluations",
        ("sampler", "planned NFE", "n", "error", "Frechet distance"),
        [[row.get(key) for key in ("name", "planned_nfe", "n", "endpoint", "frechet")] for row in judged],
        " ".join(result["accelerate"]["notes"]),
        marked=[i for i, row in enumerate(judged) if row.get("role") == "learned"],
    )
    lead = (
        f"The embedded model {result['model']!r} draws {n} handwritten digits from the same noises with the common"
        " solvers, at few evaluations of the network, with a plan learned for it by `fewstep accelerate`, and with the"
        f" student {result['student']!r}, which was distilled from it and takes a single evaluation. The reference"
        f" solves the same equation in {reference['planned_nfe']} evaluations."
    )
    facts = [
        (f"error, accelerated at {fast['planned_nfe']}", fast["endpoint"]),
        (f"error, ddim at {slow['planned_nfe']}", slow["endpoint"]),
        ("Frechet distance, accelerated", fast["frechet"]),
        (f"Frechet distance, reference at {reference['planned_nfe']}", reference["frechet"]),
        ("Frechet distance, real data", result["floor"]["value"]),
        ("seconds in all", round(result["seconds"])),
        ("CPU seconds in all", round(result["cpu_seconds"])),
        ("weights", result["parameters"]),
        ("torch", result["machine"]["torch"]),
    ]
    sections: list[Section] = [error, distance, *grids, table, *folded, verdict]
    return Report("fewstep demo: digits in few evaluations", lead, facts, sections)


def picture(path: Path, result: dict[str, Any], shown: list[Tensor]) -> Path:
    """The rows of `pictured`, one noise a column."""
    chosen = pictured(result)
    images = torch.stack([shown[i] for i in chosen])
    told = [{key: result["rows"][i][key] for key in ("name", "planned_nfe", "endpoint")} for i in chosen]
    facts = {"model": result["model"], "seed": result["seed"], "rows": told}
    return save_png(path, image_grid(images), {"fewstep": facts})


def pictured(result: dict[str, Any]) -> list[int]:
    """The rows in the picture: reference, accelerated plan, ddim at its most and fewest evaluations, student."""
    rows = result["rows"]
    ddim = sorted((i for i, row in enumerate(rows) if row["name"] == "ddim"), key=lambda i: rows[i]["planned_nfe"])
    fast = next(i for i, row in enumerate(rows) if row["name"] == OWN)
    student = next(i for i, row in enumerate(rows) if row["name"] == result["student"])
    return [0, fast, ddim[-1], ddim[0], student]
