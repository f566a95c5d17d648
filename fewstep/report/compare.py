"""The report of a comparison of samplers."""

from __future__ import annotations

from typing import Any

from fewstep.report.page import Report
from fewstep.report.plot import Plot
from fewstep.report.table import Table


def page(model: str, rows: list[dict[str, Any]], figures: dict[str, Any]) -> Report:
    """The report: two plots against evaluations, the Pareto set, and the table of all."""
    reference = next(row for row in rows if row["name"] == "reference")
    others = [row for row in rows if row is not reference]

    def curves(key: str) -> list[tuple[str, list[float], list[float]]]:
        found = []
        for solver in dict.fromkeys(row["solver"] for row in others):
            best: dict[int, float] = {}
            for row in others:
                if row["solver"] == solver and row[key] is not None:
                    best[row["nfe"]] = min(best.get(row["nfe"], float("inf")), row[key])
            if best and min(best.values()) > 0:
                found.append((str(solver), [float(c) for c in sorted(best)], [best[c] for c in sorted(best)]))
        return found

    sections: list[Any] = []
    if errors := curves("error"):
        sections.append(
            Plot(
                "Error against evaluations",
                errors,
                "network evaluations",
                "relative error of the end point",
                note="Each solver with its best rule. The line is how far the reference moves when its evaluations are"
                " halved.",
                log_x=True,
                log_y=True,
                lines=[("reference's own error", figures["reference_error"])],
            )
        )
    if distances := curves("frechet"):
        sections.append(
            Plot(
                "Frechet distance against evaluations",
                distances,
                "network evaluations",
                "Frechet distance (pixels)",
                note=f"To {figures['frechet_against']}. Each solver with its best rule.",
                log_x=True,
                log_y=True,
                lines=[(f"reference, {reference['nfe']}", reference["frechet"])] if reference["frechet"] else [],
            )
        )
    columns = ("sampler", "allowed NFE", "NFE", "error", "Frechet distance", "seconds")
    keys = ("name", "asked_nfe", "nfe", "error", "frechet", "seconds")
    table = [[row[key] for key in keys] for row in rows if row["pareto"]]
    sections.append(Table("Worth it", columns, table, "No other has less error at no more evaluations."))
    sections.append(
        Table(
            "All samplers",
            columns,
            [[row[key] for key in keys] for row in rows],
            f"{figures['noises']} samples each, from the same noises. A dash: not finite, or not defined.",
            best={"error": "low", "Frechet distance": "low"},
        )
    )
    best = [row for row in rows if row["pareto"]]
    facts = [(f"error at {row['nfe']}: {row['name']}", row["error"]) for row in best]
    return Report(
        f"fewstep compare: {model}",
        f"{len(others)} samplers of {model!r} from the same {figures['noises']} noises, against its own equation"
        f" solved in {figures['reference_nfe']} evaluations.",
        facts,
        sections,
    )
