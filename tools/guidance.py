"""Measures rules of guidance on the embedded models, and writes docs/guidance.json: what "Choosing" says of them.

`python tools/guidance.py` draws digits (Frechet distance, class accuracy) and shapes (share of captions right) with
each rule, solver and scale. About half an hour of one core; what is measured already is kept.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fewstep.core.files import write

FIGURES = Path(__file__).resolve().parents[1] / "docs" / "guidance.json"
RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "cfg": ("cfg", {}),
    "cfg, clamp": ("cfg", {"clamp": True}),
    "cfg, interval 0.2 to 5": ("cfg", {"interval": (0.2, 5.0)}),
    "cfg, rescale 0.7": ("cfg", {"rescale": 0.7}),
    "apg, limit 0.3": ("apg", {"limit": 0.3}),
    "zero-star": ("zero-star", {}),
    "tcfg": ("tcfg", {}),
}
SOLVERS = ("ddim", "dpmpp-2m", "dpmpp-3m", "auto")
MODELS = {"digits": 500, "shapes": 250}  # samples
FIRST = 200  # the first caption, of those that no training saw


def cells() -> Iterator[tuple[str, str, float, int]]:
    """(rule, solver, scale, evaluations)."""
    for scale in (2.0, 4.0):
        for solver in SOLVERS:
            yield from ((rule, solver, scale, 10) for rule in RULES)
            yield from ((rule, solver, scale, 6) for rule in ("cfg", "cfg, clamp"))
    for scale in (1.5, 7.0):
        for solver in ("ddim", "auto"):
            yield from ((rule, solver, scale, 10) for rule in ("cfg", "cfg, clamp"))


def measure(name: str, rule: str, solver: str, scale: float, count: int) -> dict[str, Any]:
    import torch

    import fewstep as fs
    from fewstep.data import shapes
    from fewstep.data.digits import load
    from fewstep.metrics.accuracy import class_accuracy
    from fewstep.metrics.caption_accuracy import caption_accuracy
    from fewstep.metrics.frechet import frechet

    method, options = RULES[rule]
    guided = fs.guide(fs.load(name), method, scale=scale, **options)
    own = {} if solver == "auto" else {"solver": solver}
    n = MODELS[name]
    if name == "digits":
        labels = [i % 10 for i in range(n)]
        x = fs.sample(guided, n, steps=count, label=labels, **own)
        real = torch.cat([load(split)[0] for split in ("train", "validation")])
        found = {"frechet": frechet(x, real, features="digits").value}
        return found | {"accuracy": class_accuracy(x, torch.tensor(labels)).value}
    asked = shapes.captions(shapes.N_TRAIN + FIRST + torch.arange(n))
    return {"captions": caption_accuracy(fs.sample(guided, n, steps=count, text=asked, **own), asked).value}


def main() -> None:
    import torch

    torch.set_num_threads(1)
    rows = json.loads(FIGURES.read_text("utf-8"))["rows"] if FIGURES.exists() else []
    known = {(row["model"], row["rule"], row["solver"], row["scale"], row["evaluations"]) for row in rows}
    for cell in cells():
        for name in MODELS:
            if (name, *cell) in known:
                continue
            rule, solver, scale, count = cell
            about = {"model": name, "rule": rule, "solver": solver, "scale": scale, "evaluations": count}
            rows.append(about | {key: float(f"{v:.4g}") for key, v in measure(name, *cell).items()})
            print(rows[-1], file=sys.stderr, flush=True)
            text = json.dumps({"samples": MODELS, "rows": rows}, separators=(",", ":"))
            write(FIGURES, text.replace('{"model"', '\n{"model"') + "\n")


def _row(rows: list[dict[str, Any]], rule: str, scale: float, count: int, key: str) -> list[str]:
    found = {
        row["solver"]: row[key]
        for row in rows
        if (row["rule"], row["scale"], row["evaluations"]) == (rule, scale, count) and key in row
    }
    return [f"{found[solver]:.3g}" if solver in found else "" for solver in SOLVERS]


def lines(figures: dict[str, Any]) -> dict[str, list[str]]:
    """The tables of docs/choose.md."""
    rows, made = figures["rows"], {}
    for key, name in (("frechet", "guidance digits"), ("captions", "guidance shapes")):
        head = ["| rule | scale | evaluations | " + " | ".join(SOLVERS) + " |", "| --- " * (3 + len(SOLVERS)) + "|"]
        for scale, count in dict.fromkeys((row["scale"], row["evaluations"]) for row in rows):
            for rule in RULES:
                cells = _row(rows, rule, scale, count, key)
                if any(cells):
                    head.append(f"| {rule} | {scale:g} | {count} | " + " | ".join(cells) + " |")
        made[name] = head
    return made


if __name__ == "__main__":
    main()
