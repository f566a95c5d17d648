"""The table of students in docs/distillation.md, and its picture: `python tools/students.py` draws it again.

Both are of docs/students.json, which `python -m benchmarks students` measures.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from fewstep.core.words import number_of

ROOT = Path(__file__).resolve().parents[1]
MEASURED, PICTURE = ROOT / "docs" / "students.json", ROOT / "docs" / "images" / "students.png"
SHOWN = ("kd", "consistency", "ctm", "flow-map", "dmf", "dmd2", "sid")  # whose curves are drawn: some of each family


def lines(found: dict[str, Any]) -> list[str]:
    """The table: a row a method, the nearest after one step first; in bold the nearest of each number of steps."""
    rows = [row for row in found["rows"] if "distance" in row]
    students = sorted((row for row in rows if "kind" in row), key=lambda row: row["distance"].get("1", [math.inf])[0])
    counts = sorted({int(steps) for row in students for steps in row["distance"]})
    best = {k: min(row["distance"][str(k)][0] for row in students if str(k) in row["distance"]) for k in counts}

    def cell(row: dict[str, Any], k: int) -> str:
        mean, spread = row["distance"].get(str(k), (None, None))
        if mean is None:
            return ""
        text = f"{mean:.3f} ± {spread:.3f}"
        return f"**{text}**" if "kind" in row and mean == best[k] else text

    head = ["method", "student", "real data", "pairing", *(number_of(k, "step") for k in counts), "CPU s"]
    body = []
    for row in [*students, *(row for row in rows if "kind" not in row)]:
        named = f"`{row['method']}`" if "kind" in row else row["method"]
        facts = [row.get("kind", ""), *("yes" if row.get(key) else "" for key in ("data", "pairing"))]
        seconds = f"{row['seconds']:.0f}" if "seconds" in row else ""
        body.append([named, *facts, *(cell(row, k) for k in counts), seconds])
    told = (
        "Sliced Wasserstein distance to the eight-component mixture of `claims/problems.py`, mean and deviation of"
        f" {found['seeds']} runs, {found['judged']:,} samples; every student is the same perceptron and spends"
        f" {found['budget']:,} evaluations, with its method's own options. Bold: the nearest of each column."
    )
    table = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body)]
    others = [f"`{row['method']}` ({row['failed']})" for row in found["rows"] if "failed" in row]
    return [*table, "", told, *(["", f"Not on these points: {'; '.join(others)}."] if others else [])]


def draw(found: dict[str, Any], path: Path = PICTURE) -> Path:
    """The distance to the teacher's samples over the evaluations spent so far, of some methods of each family."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7.5, 4.0), layout="constrained")
    for row in found["rows"]:
        if row["method"] in SHOWN and "curve" in row:
            spent, distance = zip(*row["curve"], strict=True)
            axis.plot(spent, distance, label=row["method"], linewidth=1.4)
    axis.set_yscale("log")
    axis.set_xlabel("evaluations spent, all networks together")
    axis.set_ylabel("Frechet distance to the teacher's samples")
    figure.legend(frameon=False, fontsize=9, loc="outside right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return path


if __name__ == "__main__":
    print(draw(json.loads(MEASURED.read_text("utf-8"))))
