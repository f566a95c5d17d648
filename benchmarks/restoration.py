"""Bridges and a conditional diffusion as restorers: PSNR and seconds at few evaluations, on digits and photographs.

The arms, their training and their budget are those of `claims/restored.py`; the first seed alone.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from claims.restored import (
    ARMS,
    SEEDS,
    SOLVERS,
    STEPS,
    TASKS,
    Task,
    held_out,
    plan_of,
    psnr,
    restored,
    restorer,
)
from fewstep.report.grid import image_grid, save_png

NFES = (1, 5, 10, 50)
TRAINED = f"{STEPS} steps of {TASKS[0].batch} digits or {TASKS[-1].batch} patches"
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "restoration.png"
SHOWN, SHOWN_NFE, SHOWN_SOLVER = 6, 5, "ddim"  # photographs a task, in the picture


def measure() -> list[dict[str, Any]]:
    """A row for each task's degraded pictures, and one for each arm, solver and number of evaluations.

    Seconds are those of one core for all held-out pictures. Writes docs/images/restoration.png.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    try:
        for task in TASKS:
            x0, y = held_out(task)
            rows.append({"task": task.name, "arm": "degraded", "psnr": psnr(y.clamp(-1, 1), x0)})
            for arm in ARMS:
                rows += _arm(task, arm, x0, y)
        _draw()
    finally:
        torch.set_num_threads(threads)
    return rows


def _arm(task: Task, arm: str, x0: Tensor, y: Tensor) -> list[dict[str, Any]]:
    seed = SEEDS[0]
    begin = time.process_time()
    model = restorer(task, arm, seed)
    trained = time.process_time() - begin
    rows = []
    for solver in SOLVERS[arm]:
        for asked in NFES:
            made = plan_of(arm, solver, asked)
            begin = time.process_time()
            found = restored(model, made, y, seed)
            rows.append(
                {
                    "task": task.name,
                    "arm": arm,
                    "solver": solver,
                    "asked": asked,
                    "nfe": made.nfe,
                    "psnr": psnr(found, x0),
                    "seconds": time.process_time() - begin,
                    "training_seconds": trained,
                }
            )
    return rows


def _draw() -> None:
    """Photographs in columns, denoised and then deblurred; in rows the degraded ones, every arm's, and the truth."""
    columns = []
    for task in TASKS:
        if task.pictures == "photographs":
            x0, y = held_out(task)
            rows = torch.linspace(0, len(x0) - 1, SHOWN).long()
            made = {arm: plan_of(arm, SHOWN_SOLVER, SHOWN_NFE) for arm in ARMS}
            found = [restored(restorer(task, arm, SEEDS[0]), made[arm], y, SEEDS[0])[rows] for arm in ARMS]
            columns.append(torch.stack([y[rows], *found, x0[rows]]))
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    save_png(PICTURE, image_grid(torch.cat(columns, dim=1), scale=2, gap=2))
