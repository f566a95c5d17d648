"""The figures of the chapter "Medical tasks": `python tools/medical.py` measures them and writes docs/medical.json.

Anomalies are found by noising a picture, denoising it with the digits model, and looking at what changed. About a
minute on one CPU thread. Also writes docs/images/anomalies.png.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUT, PICTURE = ROOT / "docs" / "medical.json", ROOT / "docs" / "images" / "anomalies.png"
LEVELS = (0.1, 0.2, 0.4, 0.8, 1.6)  # sigma / alpha to which a picture is noised
DRAWS, STEPS, SHOWN = 4, 8, 10
LESIONS = {"bright, 2 x 2": (2, 1.0), "grey, 2 x 2": (2, 0.6), "bright, 1 x 1": (1, 1.0)}


def auroc(normal: Any, ill: Any) -> float:
    """The share of pairs in which the ill one scores higher; a tie counts half."""
    import torch

    rows = normal.double().sort().values
    ill = ill.double()
    below, to = torch.searchsorted(rows, ill), torch.searchsorted(rows, ill, right=True)
    return float((below + to).double().mean() / (2 * len(rows)))


def lesioned(images: Any, side: int, shift: float, seed: int) -> tuple[Any, Any]:
    """Pictures with a square of `side` pixels moved by `shift` towards the opposite shade, and the masks."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros_like(images, dtype=torch.bool)
    for mask in masks:
        row, column = torch.randint(0, 9 - side, (2,), generator=generator).tolist()
        mask[:, row : row + side, column : column + side] = True
    moved = torch.where(images < 0, images + shift, images - shift)
    return torch.where(masks, moved, images), masks


def restored(model: Any, images: Any, level: float, seed: int) -> Any:
    """The mean of DRAWS pictures that were noised to a level and denoised from there by DDIM in STEPS steps."""
    import fewstep as fs

    process = model.process
    ends = level ** (1 / 7), math.exp(-process.log_snr(process.t_min)) ** (1 / 7)  # Karras' spacing, from the level
    sigmas = [(ends[0] + i / (STEPS - 1) * (ends[1] - ends[0])) ** 7 for i in range(STEPS)]
    times = [process.time(-math.log(sigma)) for sigma in sigmas]
    plan = fs.plan(process, "ddim", timesteps=[*times, process.t_zero])
    many = images.repeat(DRAWS, 1, 1, 1)
    x = fs.sample(model, len(many), plan=plan, init=many, seed=seed)
    return x.view(DRAWS, *images.shape).mean(0)


def measure() -> dict[str, Any]:
    import torch

    import fewstep as fs
    from fewstep.data.open import open_data
    from fewstep.report.grid import image_grid, save_png

    torch.set_num_threads(1)
    model, train = fs.load("digits"), open_data("digits").images
    normal = open_data("digits", split="validation").images
    mean = train.mean(0)
    rows, shown = [], None
    healthy = {level: (normal - restored(model, normal, level, 0)).abs() for level in LEVELS}
    for name, (side, shift) in LESIONS.items():
        ill, masks = lesioned(normal, side, shift, seed=1)
        base = [(x - mean).square().flatten(1).mean(1).sqrt() for x in (normal, ill)]
        row: dict[str, Any] = {"lesion": name, "mean": auroc(*base), "levels": {}, "pixels": {}}
        # The same baseline that knows how much each pixel varies
        std = train.std(0) + 0.1
        scaled = [((x - mean) / std).square().flatten(1).mean(1) for x in (normal, ill)]
        row["scaled"] = auroc(*scaled)
        row["mean_pixels"] = auroc((ill - mean).abs()[~masks], (ill - mean).abs()[masks])
        for level in LEVELS:
            again = restored(model, ill, level, 2)
            change = (ill - again).abs()
            row["levels"][str(level)] = auroc(*[x.square().flatten(1).mean(1) for x in (healthy[level], change)])
            row["pixels"][str(level)] = auroc(change[~masks], change[masks])
            if level == 0.4 and shown is None:
                pick = torch.arange(SHOWN) * 7
                shown = torch.stack([normal[pick], ill[pick], again[pick], (2 * change[pick] - 1).clamp(-1, 1)])
        rows.append(row)
        print(row)
    assert shown is not None
    save_png(PICTURE, image_grid(shown))
    return {"n": len(normal), "rows": rows, "seconds": time.process_time()}


def lines(found: dict[str, Any]) -> list[str]:
    """The chapter's tables and what they say."""
    head = [
        "lesion",
        "distance to the mean",
        "scaled by each pixel's spread",
        *(f"level {level:g}" for level in LEVELS),
    ]
    body = [
        [row["lesion"], f"{row['mean']:.3f}", f"{row['scaled']:.3f}", *(f"{row['levels'][str(v)]:.3f}" for v in LEVELS)]
        for row in found["rows"]
    ]
    pixels = [
        [row["lesion"], f"{row['mean_pixels']:.3f}", *(f"{row['pixels'][str(v)]:.3f}" for v in LEVELS)]
        for row in found["rows"]
    ]
    best = {level: min(row["levels"][str(level)] - row["mean"] for row in found["rows"]) for level in LEVELS}
    level = max(best, key=lambda key: best[key])
    above = [row["lesion"] for row in found["rows"] if row["levels"][str(level)] > max(row["mean"], row["scaled"])]
    told = (
        f"At level {level:g} the score beats both baselines for {len(above)} of {len(found['rows'])} lesions."
        f" {found['n']} held-out digits, each with and without a lesion, {DRAWS} noises each, DDIM in {STEPS} steps;"
        f" {found['seconds']:.0f} CPU seconds for both tables."
    )
    where = "Which *pixels* are ill, within the ill pictures: the same area under the curve, over pixels."
    second = ["lesion", "distance to the mean", *head[3:]]
    return [*_table(head, body), "", told, "", where, "", *_table(second, pixels)]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


if __name__ == "__main__":
    OUT.write_text(json.dumps(measure(), indent=1) + "\n", "utf-8")
