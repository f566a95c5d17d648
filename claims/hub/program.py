"""Claims of fewstep/hub/program.py."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from claims.common import Claim, Outcome, plan
from fewstep.hub.models import load
from fewstep.hub.program import export_program, load_program

BATCH, STEPS = 3, 4


def _agrees(seed: int) -> Outcome:
    model = load("digits")
    noise = torch.randn(BATCH, *model.shape, generator=torch.Generator().manual_seed(seed))
    made = plan(model.process, "dpmpp-2m-sde", STEPS)
    with tempfile.TemporaryDirectory() as folder:
        program = load_program(export_program(made, model, Path(folder) / "digits.pt2"))
    off = (program(noise, seed=seed, label=3) - made(model, noise, seed=seed, label=3)).abs().max()
    about = f"embedded digits, {BATCH} samples of {STEPS} steps of dpmpp-2m-sde, label 3"
    return Outcome(float(off), 1e-5, "a tolerance", about, unit="largest difference")


CLAIMS = (
    Claim("program", "a stochastic plan exported with its network gives the plan's samples", _agrees, quick=False),
)
