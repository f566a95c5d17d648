"""The report of a search."""

from __future__ import annotations

from typing import Any

from fewstep.report.page import Report
from fewstep.report.plot import Plot
from fewstep.report.table import Table


def page(result: dict[str, Any]) -> Report:
    """The report of what `fewstep search` writes as JSON: how the score fell, and the verdict."""
    model, rows, history = result["model"], result["rows"], result["history"]
    sections: list[Any] = []
    if len(history) > 1:
        spent, scores = [n for n, _ in history], [value for _, value in history]
        sections.append(
            Plot(
                "The best so far",
                [(result["method"], spent, scores)],
                "evaluations of the network on one sample",
                "relative error on held-out noises",
                log_y=True,
            )
        )
    sections.append(
        Table(
            "Verdict on fresh noises",
            ("sampler", "role", "evaluations", "error"),
            [[row["name"], row["role"], row["nfe"], row["error"]] for row in rows],
            "Relative error of the end point. The hand-made ones are the best of every solver with every rule at the"
            " same number of evaluations.",
            best={"error": "low"},
        )
    )
    hand = min(row["error"] for row in rows if row["role"] == "hand-made")
    facts = [
        ("error of the plan", next(row["error"] for row in rows if row["role"] == "searched")),
        ("error of the best hand-made plan", hand),
        ("evaluations of the search", result["evaluations"]),
        ("seconds", round(result["seconds"], 1)),
    ]
    lead = f"A plan of {result['nfe']} evaluations for {model!r}, found by {result['method']}."
    return Report(f"fewstep search: {model}", lead, facts, sections)
