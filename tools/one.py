"""Judge the embedded student of one evaluation beside its teacher's best plans: `python tools/one.py [MODEL]`.

Writes docs/one.json: the verdict of `fs.distill` for three seeds of noises, at 256 and 2,048 samples. Ten minutes.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
OUT, TEACHER, STUDENT = ROOT / "docs" / "one.json", "digits", "digits-1"
SEEDS, SIZES = (3, 4, 5), (256, 2048)  # seeds that nothing was chosen on
FIGURES = ("frechet", "precision", "recall", "accuracy", "endpoint")
SHOWN = (1, 2, 3)  # evaluations of the plans that are shown


def measure(student: str = STUDENT) -> dict[str, Any]:
    import fewstep as fs
    from fewstep.distillation.verdict import unseen, verdict

    torch.set_num_threads(1)  # sums in one order, so that figures repeat
    teacher, model = fs.load(TEACHER), fs.load(student)
    assert model.plan is not None
    sizes: dict[str, list[dict[str, Any]]] = {}
    for n in SIZES:
        runs = []
        for seed in SEEDS:
            runs.append(verdict(teacher, model, model.plan, unseen(teacher, seed, n, None), None, paired=True))
            print(n, seed, *({key: row[key] for key in ("role", "nfe", *FIGURES)} for row in runs[-1]), sep="\n")
        # A plan that is the best for one seed need not be so for the next: rows are told apart by role and evaluations.
        sizes[str(n)] = [
            {"role": row["role"], "nfe": row["nfe"]} | {key: _over(runs, row, key) for key in FIGURES}
            for row in runs[0]
            if row["role"] != "real"  # of fewer samples than the others, where the data are few
        ]  # fmt: skip
    return {"teacher": TEACHER, "student": STUDENT, "seeds": len(SEEDS), "sizes": sizes}


def _over(runs: list[list[dict[str, Any]]], row: dict[str, Any], key: str) -> list[float] | None:
    """Mean and deviation over seeds."""
    found = [other[key] for run in runs for other in run if (other["role"], other["nfe"]) == (row["role"], row["nfe"])]
    return None if None in found else [statistics.mean(found), statistics.stdev(found)]


def lines(found: dict[str, Any]) -> list[str]:
    """A row a sampler: the student, the best plans of as few evaluations, the teacher's many."""
    names = {"student": f"`{found['student']}`", "teacher": "teacher", "plan": "best plan", "learned": "learned plan"}
    sizes = list(found["sizes"])
    head = ["sampler", "evaluations", *(f"Frechet distance, {int(n):,} samples" for n in sizes), "recall", "accuracy"]
    head.append("error")
    body = []
    for row in found["sizes"][sizes[-1]]:
        if row["role"] in ("plan", "learned") and row["nfe"] not in SHOWN:
            continue
        same = [
            next(other for other in found["sizes"][n] if (other["role"], other["nfe"]) == (row["role"], row["nfe"]))
            for n in sizes
        ]
        cells = [*(each["frechet"] for each in same), row["recall"], row["accuracy"], row["endpoint"]]
        texts = ["" if value is None else f"{value[0]:.3f} ± {value[1]:.3f}" for value in cells]
        body.append([names[row["role"]], str(row["nfe"]), *texts])
    told = (
        f"Mean and deviation over {found['seeds']} seeds of noises. Frechet distance in pixels to the training images;"
        f" recall, accuracy and the error for the same noise of {int(sizes[-1]):,} samples."
    )
    return [*("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body)), "", told]


if __name__ == "__main__":
    from fewstep.report.files import write_json

    write_json(OUT, measure(*sys.argv[1:]))
