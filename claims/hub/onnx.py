"""Claims of fewstep/hub/onnx.py."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from claims.common import Claim, Outcome, plan
from fewstep.hub.models import load
from fewstep.hub.onnx import export_onnx, load_onnx

BATCH, STEPS = 5, 8


def _agrees(seed: int) -> Outcome:
    model = load("digits")
    noise = torch.randn(BATCH, *model.shape, generator=torch.Generator().manual_seed(seed))
    made = plan(model.process, "dpmpp-3m", STEPS)
    with tempfile.TemporaryDirectory() as folder:
        opened = load_onnx(export_onnx(model, Path(folder) / "digits.onnx"))
        off = (made(model, noise, label=3) - made(opened, noise, label=3)).abs().max()
    about = f"embedded digits, {BATCH} samples of {STEPS} steps of dpmpp-3m, label 3"
    return Outcome(float(off), 1e-4, "a tolerance", about, unit="largest difference from torch")


CLAIMS = (Claim("onnx", "ONNX Runtime's samples agree with torch's", _agrees, quick=False),)
