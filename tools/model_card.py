"""Measure an embedded model and write its card: `python tools/model_card.py digits`."""

from __future__ import annotations

import sys
from pathlib import Path

import fewstep as fs
from fewstep.accelerate.evaluate import evaluate
from fewstep.hub.models import EMBEDDED
from fewstep.report.files import write_text
from fewstep.sampling.build import plan

PLANS = (
    ("dpmpp-3m", "log-snr", 20),
    ("dpmpp-3m", "log-snr", 10),
    ("ddim", "log-snr", 20),
    ("vab-3", "short", 6),
    ("vab-3", "short", 4),
)
N = 1437


def card(name: str) -> str:
    model = fs.load(name)
    parameters = sum(p.numel() for p in model.parameters())
    size = (EMBEDDED / name / "model.safetensors").stat().st_size / 1e6
    rows, real = [], None
    for solver, rule, steps in PLANS:
        result = evaluate(
            model,
            plan(model.process, solver, steps, rule),
            n=N,
            metrics=("frechet", "precision-recall", "accuracy"),
        )
        figures, real = result["figures"], result
        rows.append(
            f"| {solver}, {rule} | {steps} | {figures['frechet']['value']:.3f}"
            f" | {figures['precision-recall']['precision']:.3f} | {figures['precision-recall']['recall']:.3f}"
            f" | {figures['accuracy']['value']:.3f} |"
        )
    assert real is not None
    floor = real["figures"]["frechet"]
    held_out = real["figures"]["validation_frechet"]
    return f"""# {name}

Handwritten digits of 8x8 pixels in [-1, 1], ten classes, with label dropout (so it also samples without a label).

- **Data**: the 1797 digits that ship with scikit-learn (UCI, CC BY 4.0); 1437 to train, 360 held out.
- **Network**: a UNet of {parameters:,} parameters ({size:.1f} MB), {dict(model.network.config())}.
- **Process**: {model.process.config()}, EDM preconditioning, standard deviation of the data {model.data_std:.3f}.
- **Recipe**: `recipes/digits.toml` (`fewstep train recipes/digits.toml --out runs/digits`).
- **Use**: examples and tests of samplers. Not a model of handwriting at large.

{N} samples with the training labels, against the training split. Frechet distance in pixels; real against real gives
{floor["floor"]:.3f} (n = {floor["floor_n"]}), the held-out images against the training split
{held_out["value"]:.3f} (n = {held_out["n"]}).

| sampler | evaluations | Frechet distance | precision | recall | class accuracy |
|---|---|---|---|---|---|
{chr(10).join(rows)}

Written by `tools/model_card.py`.
"""


if __name__ == "__main__":
    for name in sys.argv[1:]:
        write_text(Path(EMBEDDED / name / "README.md"), card(name))
        print((EMBEDDED / name / "README.md").read_text("utf-8"))
