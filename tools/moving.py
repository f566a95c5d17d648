"""The figures of "Clips" in the page on distillation: `python tools/moving.py [runs]`.

Reads the models of `fewstep train moving --out runs/moving` and of `fewstep distill moving-4 --out runs/moving-4`, and
writes docs/moving.json: what clips of held-out captions show.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

OUT = Path(__file__).resolve().parents[1] / "docs" / "moving.json"
N, SEED, SCALE = 96, 5, 2.0


def measure(runs: Path) -> dict[str, Any]:
    import torch

    import fewstep as fs
    from fewstep.data.moving import captions
    from fewstep.metrics.motion import motion

    torch.set_num_threads(1)
    text = captions(torch.arange(N), "validation")
    teacher = fs.guide(fs.load(runs / "moving" / "model"), "cfg", scale=SCALE)
    student = fs.load(runs / "moving-4" / "model")
    arms: list[tuple[str, Any, int, int]] = [("moving", teacher, 20, 2), ("moving", teacher, 4, 2)]
    arms.append(("moving-4", student, 4, 1))
    rows = []
    for name, model, nfe, passes in arms:
        how = {} if model is student else {"nfe": nfe}
        found = motion(fs.sample(model, N, text=text, seed=SEED, **how), text)
        rows.append({"model": name, "nfe": nfe, "passes": passes * nfe} | asdict(found))
    return {"n": N, "scale": SCALE, "rows": rows}


def lines(found: dict[str, Any]) -> list[str]:
    """What the page shows."""
    head = "| model | evaluations | passes | colour | shape | direction | error of the velocity, pixels a frame |"
    table = [head, "| --- | --- | --- | --- | --- | --- | --- |"]
    for row in found["rows"]:
        shares = " | ".join(f"{row[name]:.2f}" for name in ("colour", "shape", "direction"))
        table.append(f"| `{row['model']}` | {row['nfe']} | {row['passes']} | {shares} | {row['velocity_error']:.2f} |")
    told = f"{found['n']} captions of combinations that no training saw, guided by {found['scale']:g}."
    return [*table, "", told]


if __name__ == "__main__":
    OUT.write_text(json.dumps(measure(Path(sys.argv[1] if len(sys.argv) > 1 else "runs")), indent=1) + "\n", "utf-8")
