"""A student's card: what any model's card says, how the student was made, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fewstep.core.denoiser import Denoiser
from fewstep.core.student import spoken_guidance
from fewstep.hub.card import model_card

HEADS = ("sampler", "evaluations", "Frechet distance", "precision", "recall", "accuracy", "endpoint error")
KEYS = ("frechet", "precision", "recall", "accuracy", "endpoint")


def student_card(model: Denoiser, name: str, rows: Sequence[dict[str, Any]] = (), notes: Sequence[str] = ()) -> str:
    """The card as Markdown.

    Args:
        model: a student, with its plan. name: the folder's. rows: the verdict's. notes: a line each.
    """
    student = model.student
    assert student is not None
    what = [f"Distilled by `{student.method}`"]
    what += [f"from `{student.teacher}`"] if student.teacher else []
    what += [f"with guidance {spoken_guidance(student.guidance)} inside"] if student.guidance is not None else []
    spent = f"{student.iterations:,} iterations, {student.evaluations:,.0f} evaluations of one sample"
    lines = ["", "## How it was made", "", f"{' '.join(what)}: {spent}."]
    lines += ["", *(f"- {note}" for note in notes)] if notes else []
    if rows:
        n, against = rows[0]["n"], rows[0]["against"]
        told = f"{n} samples of noises that it was not trained on, against {against}."
        lines += ["", told, "", f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|"]
        for row in rows:
            found = ["" if row[key] is None else f"{row[key]:.4g}" for key in KEYS]
            lines.append(f"| {' | '.join([row['name'], '' if row['nfe'] is None else str(row['nfe']), *found])} |")
    return model_card(model, name, model.plan) + "\n".join(lines) + "\n"
