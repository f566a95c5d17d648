"""The grid of the chapter "The grid": `python tools/ablation.py` measures it and writes docs/ablation.json.

Sampler x schedule x guidance on the digits model, every row from the same noises and labels. About three minutes on one
CPU thread. `python tools/figures.py` then puts the table into the chapter.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "ablation.json"
N, SEED = 400, 0
SCALES = (1.0, 2.0, 4.0)
SAMPLERS = (("ddpm", 200), ("ddpm", 20), ("ddim", 20), ("dpmpp-2m", 10))
GUIDED_MOST = 20  # steps above which only scale 1 is measured: two evaluations a step would take minutes


def clock(name: str) -> Callable[..., list[float]]:
    """Equal steps in the time of another schedule, from the noise level where the model's process starts."""
    from fewstep.processes.cosine import Cosine
    from fewstep.processes.vp import VP

    other = {"linear": VP(), "cosine": Cosine(t_max=1.0)}[name]

    def rule(process: Any, steps: int, end: str = "zero") -> list[float]:
        first = other.time(process.log_snr(process.t_max))
        inner = [process.time(other.log_snr(first * (1 - i / steps))) for i in range(1, steps)]
        return [process.t_max, *inner, process.t_zero]

    rule.__name__ = name
    return rule


def variety(samples: Any, labels: Any) -> float:
    """Root mean squared distance of two samples of one label, mean over the labels."""
    found = []
    for label in labels.unique():
        rows = samples[labels == label].flatten(1).double()
        found.append(2 * rows.var(0).sum())
    return math.sqrt(sum(float(value) for value in found) / len(found))


def measure() -> dict[str, Any]:
    import torch

    import fewstep as fs
    from fewstep.data.open import open_data
    from fewstep.metrics.accuracy import class_accuracy
    from fewstep.metrics.frechet import frechet
    from fewstep.metrics.precision_recall import precision_recall

    torch.set_num_threads(1)
    model, data = fs.load("digits"), open_data("digits")
    held = open_data("digits", split="validation")
    labels = torch.arange(N) % 10
    rows = []
    for solver, steps in SAMPLERS:
        for schedule in ("linear", "cosine"):
            for scale in SCALES if steps <= GUIDED_MOST else SCALES[:1]:
                plan = fs.plan(model.process, solver, steps, clock(schedule))
                begin = time.process_time()
                x = fs.sample(fs.guide(model, "cfg", scale=scale), N, plan=plan, seed=SEED, label=labels)
                seconds = time.process_time() - begin
                accuracy = class_accuracy(x, labels)
                near = precision_recall(x, data.images, "digits")
                rows.append(
                    {
                        "sampler": solver, "steps": steps, "schedule": schedule, "scale": scale,
                        "evaluations": plan.nfe * (1 if scale == 1 else 2),
                        "frechet": frechet(x, data.images, "digits").value,
                        "accuracy": accuracy.value, "error": accuracy.error,
                        "variety": variety(x, labels), "precision": near.precision, "recall": near.recall,
                        "seconds": seconds,
                    }
                )  # fmt: skip
                print(rows[-1])
    real = {
        "floor": frechet(held.images, data.images, "digits").value,
        "accuracy": class_accuracy(held.images, held.labels).value,
        "variety": variety(held.images, held.labels),
    }
    return {"n": N, "seed": SEED, "real": real, "rows": rows, "seconds": time.process_time()}


def lines(found: dict[str, Any]) -> list[str]:
    """The chapter's table and verdicts."""
    real = found["real"]
    head = ["sampler", "schedule", "scale", "evaluations", "Frechet distance", "accuracy", "variety", "CPU seconds"]
    body = [
        [
            f"`{row['sampler']}`, {row['steps']} steps", row["schedule"], f"{row['scale']:g}",
            str(row["evaluations"]), f"{row['frechet']:.3g}", f"{row['accuracy']:.3f}", f"{row['variety']:.2f}",
            f"{row['seconds']:.1f}",
        ]
        for row in found["rows"]
    ]  # fmt: skip
    body.append(
        ["held-out digits", "", "", "", f"{real['floor']:.3g}", f"{real['accuracy']:.3f}", f"{real['variety']:.2f}", ""]
    )
    table = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body)]
    told = (
        f"{found['n']} samples per row, the ten labels in turn, from the same noises; Frechet distance in features of"
        " the digits classifier to the training images; one CPU thread,"
        f" {found['seconds']:.0f} s in all. The standard error of an accuracy is at most"
        f" {max(row['error'] for row in found['rows']):.3f}."
    )
    return [*table, "", told, "", *verdicts(found)]


def verdicts(found: dict[str, Any]) -> list[str]:
    """What the survey says, and whether it held: sentences made of the figures."""
    by = {(row["sampler"], row["steps"], row["schedule"], row["scale"]): row for row in found["rows"]}
    floor, told = found["real"]["floor"], []
    for schedule in ("linear", "cosine"):
        fast, slow = by["ddim", 20, schedule, 1.0], by["ddpm", 200, schedule, 1.0]
        holds = "holds" if fast["frechet"] <= slow["frechet"] + floor else "**does not hold**"
        told.append(
            f"- DDIM in 20 steps and DDPM in 200, {schedule}: {fast['frechet']:.3g} against {slow['frechet']:.3g},"
            f" {slow['seconds'] / fast['seconds']:.1f} times faster. Worse by no more than the floor,"
            f" {floor:.3g}: {holds}."
        )
    guided = [key[:3] for key in by if key[3] == SCALES[-1]]
    for what, word, sign in (("accuracy", "raises the accuracy", 1), ("variety", "lowers the variety", -1)):
        kept = sum(sign * (by[*key, SCALES[-1]][what] - by[*key, 1.0][what]) > 0 for key in guided)
        ends = [sum(by[*key, scale][what] for key in guided) / len(guided) for scale in (1.0, SCALES[-1])]
        told.append(
            f"- Guidance {word} from scale 1 to {SCALES[-1]:g} in {kept} of {len(guided)} pairs: on average from"
            f" {ends[0]:.3f} to {ends[1]:.3f}."
        )
    best = min(found["rows"], key=lambda row: row["frechet"])
    plain = [row for row in found["rows"] if row["steps"] <= GUIDED_MOST and row["sampler"] in ("ddim", "ddpm")]
    first = min(plain, key=lambda row: row["frechet"])
    claim = "holds" if first["sampler"] == "ddim" and first["scale"] > 1 else "**does not hold**"
    told.append(
        f"- The study's best value, DDIM with guidance, among DDIM and DDPM in 20 steps: the least distance is that of"
        f" `{first['sampler']}`, {first['schedule']}, scale {first['scale']:g}: {claim}. The least of all rows is that"
        f" of `{best['sampler']}` in {best['steps']} steps, {best['schedule']}, scale {best['scale']:g}."
    )
    return told


if __name__ == "__main__":
    OUT.write_text(json.dumps(measure(), indent=1) + "\n", "utf-8")
