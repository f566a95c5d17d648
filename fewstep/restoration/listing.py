"""The methods as rows: what each takes, what an evaluation costs, and how far its samples were from the posterior."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.core.methods import methods

EVIDENCE = Path(__file__).resolve().parents[2] / "docs" / "evidence.json"  # of a checkout
UNIT = "sliced Wasserstein distance to the exact posterior"
SEED = 0  # of the mixtures: distances on others are no comparison
PROBLEM = "mixture of 6 in 16 numbers, half seen, noise 0.1, 6 measurements x 400 draws, 20 evaluations"


def read_evidence() -> dict[str, Any]:
    """What was measured of all claims; nothing where the package lies without its documentation."""
    return json.loads(EVIDENCE.read_text("utf-8")) if EVIDENCE.is_file() else {}


def distances(evidence: Mapping[str, Any]) -> dict[str, float]:
    """Of each method on `PROBLEM`, by name, from the first claim that ran it there (the filter with 400 particles)."""
    named = {card.name for card in methods("restorer", room="restoration")}
    found: dict[str, float] = {}
    for claim in evidence.get("claims", []):
        if claim.get("unit") == UNIT and claim["conditions"].startswith(PROBLEM) and claim["seed"] == SEED:
            for name, figure in ((claim["method"], "ours"), (claim["against"], "theirs")):
                if name in named:
                    found.setdefault(name, claim[figure])
    return found


def passes(method: str) -> float:
    """Passes of the network for an evaluation, with the method's own options: a vector product counts as two more."""
    card = next(card for card in methods("restorer", room="restoration") if card.name == method)
    step = card.load()()
    if card.facts["form"] == "moments":
        return 1 + 2 * int(getattr(step, "products", int(step.jacobian)))
    return float(getattr(step, "passes", 1))


def listing(evidence: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each method, the nearest first, then those whose distance was not measured on `PROBLEM`."""
    far, rows = distances(evidence), []
    for card in methods("restorer", room="restoration"):
        facts = card.facts
        rows.append({
            "method": card.name,
            "takes": ", ".join(facts["measures"]) + (f" ({facts['needs']})" if facts.get("needs") else ""),
            "noise": ", ".join(facts["noise"]),
            "samples": ", ".join(facts.get("states", ("data",))),
            "run by": "any plan" if facts["form"] == "moments" else "its own chain",
            "passes": passes(card.name),
            "distance": far.get(card.name),
            "claim": card.claim,
        })  # fmt: skip
    return sorted(rows, key=lambda row: (row["distance"] is None, row["distance"] or 0.0, row["method"]))
