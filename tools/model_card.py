"""Measure an embedded model and write its card: `python tools/model_card.py digits shapes digits-1`, and so on.

The figures of `digits-1` are those that tools/one.py has measured.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import one
import torch

import fewstep as fs
from fewstep.distillation.card import student_card
from fewstep.hub.models import EMBEDDED
from fewstep.report.files import write_text
from fewstep.sampling.build import plan
from fewstep.sampling.sample import choose_plan
from fewstep.searching.evaluate import evaluate

DIGITS_PLANS = (
    ("dpmpp-3m", "log-snr", 20),
    ("dpmpp-3m", "log-snr", 10),
    ("ddim", "log-snr", 20),
    ("vab-3", "short", 6),
    ("vab-3", "short", 4),
)
DIGITS_N = 1437
SHAPES_N = 500  # captions of each split
SHAPES_STEPS = 10
FRECHET_N = 1000
SCALES = (1.0, 2.0, 4.0)


def digits(name: str) -> str:
    model = fs.load(name)
    parameters = sum(p.numel() for p in model.parameters())
    size = (EMBEDDED / name / "model.safetensors").stat().st_size / 1e6
    rows, real = [], None
    for solver, rule, steps in DIGITS_PLANS:
        result = evaluate(
            model,
            plan(model.process, solver, steps, rule),
            n=DIGITS_N,
            metrics=("frechet", "precision-recall", "accuracy"),
        )
        figures, real = result["figures"], result
        rows.append(
            f"| {solver}, {rule} | {steps} | {figures['frechet']['value']:.3f}"
            f" | {figures['precision-recall']['precision']:.3f} | {figures['precision-recall']['recall']:.3f}"
            f" | {figures['accuracy']['value']:.3f} |"
        )
    assert real is not None
    kind, use = ("UNet", "samplers") if name == "digits" else ("transformer", "caches and guidance by attention")
    floor = real["figures"]["frechet"]
    held_out = real["figures"]["validation_frechet"]
    return f"""# {name}

Handwritten digits of 8x8 pixels in [-1, 1], ten classes, trained with label dropout (so it also samples without
a label).

- **Data**: the 1797 digits that ship with scikit-learn (UCI, CC BY 4.0); 1437 to train, 360 held out.
- **Network**: a {kind} of {parameters:,} parameters ({size:.1f} MB), {dict(model.network.config())}.
- **Process**: {model.process.config()}, EDM preconditioning, standard deviation of the data {model.data_std:.3f}.
- **Recipe**: `fewstep/recipes/{name}.toml` (`fewstep train {name} --out runs/{name}`).
- **Use**: examples and tests of {use}. Not a general model of handwriting.

{DIGITS_N} samples with the training labels, against the training split. Frechet distance in pixels; real against real
gives {floor["floor"]:.3f} (n = {floor["floor_n"]}), the held-out images against the training split
{held_out["value"]:.3f} (n = {held_out["n"]}).

| sampler | evaluations | Frechet distance | precision | recall | class accuracy |
|---|---|---|---|---|---|
{chr(10).join(rows)}

Written by `tools/model_card.py`.
"""


def shapes(name: str) -> str:
    from fewstep.data import shapes as data
    from fewstep.metrics.caption_accuracy import caption_accuracy
    from fewstep.metrics.frechet import frechet

    model = fs.load(name)
    parameters = sum(p.numel() for p in model.parameters())
    size = (EMBEDDED / name / "model.safetensors").stat().st_size / 1e6
    # Rows of "train" beyond N_TRAIN are new pictures of combinations trained on; all of "validation" is held out.
    splits = {"seen": ("train", data.N_TRAIN), "held out": ("validation", 0)}
    solvers = ("ddim", "dpmpp-3m")
    rows, distances = [], []
    for scale in SCALES:
        guided = fs.guide(model, "cfg", scale=scale)
        for solver in solvers:
            chosen = plan(model.process, solver, SHAPES_STEPS)
            for combinations, (split, first) in splits.items():
                asked = data.captions(torch.arange(first, first + SHAPES_N), split)
                found = caption_accuracy(fs.sample(guided, SHAPES_N, plan=chosen, text=asked), asked)
                parts = (found.value, found.count, found.colour, found.shape, found.size, found.position)
                figures = " | ".join(f"{part:.3f}" for part in parts)
                rows.append(f"| {scale:g} | {solver} | {combinations} | {figures} |")
                print(rows[-1], flush=True)
        asked = data.captions(torch.arange(data.N_TRAIN, data.N_TRAIN + FRECHET_N))
        real = data.draw(torch.arange(2 * FRECHET_N))[0]
        by_solver = []
        for solver in solvers:
            chosen = plan(model.process, solver, SHAPES_STEPS)
            distance = frechet(fs.sample(guided, FRECHET_N, plan=chosen, text=asked, seed=1), real, "blocks")
            by_solver.append(f"{distance.value:.3f}")
        distances.append(f"| {scale:g} | {' | '.join(by_solver)} |")
    reader = sum(p.numel() for p in model.network.text.parameters())
    words = len(model.conditions["text"].vocabulary)
    options = {key: value for key, value in model.network.config().items() if value is not None}
    return f"""# shapes

Captioned scenes of 32x32 pixels in [-1, 1]: one or two of four shapes in six colours and two sizes, with their place or
their relation to each other. The model reads captions such as "a large red circle left of a small blue square", and
also draws without one.

- **Data**: `fewstep.data.shapes`, drawn on request; about an eighth of the combinations is never drawn for training.
- **Network**: a UNet of {parameters:,} parameters ({size:.1f} MB), {reader:,} of them in its own text encoder (two
  layers, {words} words), {options}.
- **Process**: {model.process.config()}, EDM preconditioning, standard deviation of the data {model.data_std:.3f}.
- **Recipe**: `fewstep/recipes/shapes.toml`
  (`fewstep train shapes --out runs/shapes`).
- **Use**: examples and tests of guidance, rewards and fine-tuning, with captions that are verified from the pixels.

Share of {SHAPES_N} pictures that show what was asked for, according to the exact verifier
(`fewstep.metrics.shapes_verifier`), in every respect ("caption") and by attribute; {SHAPES_STEPS} steps. "Held out" are
combinations never seen in training. Under guidance the third order overshoots, so `fs.sample` uses ddim there by
default.

| guidance | solver | combinations | caption | count | colour | shape | size | position |
|---|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}

Frechet distance of {FRECHET_N} pictures to {2 * FRECHET_N} of the data, averaged down to 8x8; real against real gives
{distance.floor:.3f}.

| guidance | {" | ".join(solvers)} |
|---|---|---|
{chr(10).join(distances)}

Written by `tools/model_card.py`.
"""


def student(name: str) -> str:
    table = "\n".join(one.lines(json.loads(one.OUT.read_text("utf-8"))))
    return f"""{student_card(fs.load(name), name)}
- **Data**: none; its teacher `digits` was trained on the digits that ship with scikit-learn (UCI, CC BY 4.0).
- **Recipe**: `fewstep/recipes/{name}.toml` (`fewstep distill recipes/{name}.toml --out runs/{name}`).
- **Use**: examples and tests of students. Not a general model of handwriting.

## Beside its teacher

{table}

Written by `tools/model_card.py`.
"""


def fast(name: str) -> str:
    from fewstep.data import shapes as data
    from fewstep.metrics.caption_accuracy import caption_accuracy

    teacher, own = fs.load("shapes"), fs.load(name)
    guided = fs.guide(teacher, "cfg", scale=float(own.student.guidance))
    samplers = (
        (f"`{name}`", own, own.plan, 4),
        ("teacher by ddim, guided", guided, plan(teacher.process, "ddim", 4), 8),
        ("teacher's own plan, not guided", teacher, choose_plan(teacher, steps=4), 4),
        ("teacher's own plan, not guided", teacher, choose_plan(teacher, steps=8), 8),
        ("teacher by ddim, guided", guided, plan(teacher.process, "ddim", SHAPES_STEPS), 2 * SHAPES_STEPS),
    )
    splits = {"seen": ("train", data.N_TRAIN), "held out": ("validation", 0)}
    rows = []
    for told, model, chosen, evaluations in samplers:
        for combinations, (split, first) in splits.items():
            asked = data.captions(torch.arange(first, first + SHAPES_N), split)
            found = caption_accuracy(fs.sample(model, SHAPES_N, plan=chosen, text=asked, seed=1), asked)
            parts = (found.value, found.count, found.colour, found.shape, found.size, found.position)
            figures = " | ".join(f"{part:.3f}" for part in parts)
            rows.append(f"| {told} | {evaluations} | {combinations} | {figures} |")
            print(rows[-1], flush=True)
    return f"""{student_card(own, name)}
- **Data**: scenes of `fewstep.data.shapes`, as its teacher `shapes` has them.
- **Recipe**: `fewstep/recipes/{name}.toml` (`fewstep distill recipes/{name}.toml --out runs/{name}`).
- **Use**: examples and tests of students that read captions.

## Beside its teacher

Share of {SHAPES_N} pictures that show what was asked for, by the exact verifier, as in the card of `shapes`; guidance
{own.student.guidance:g}, two evaluations a step where it is not inside.

| sampler | evaluations | combinations | caption | count | colour | shape | size | position |
|---|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}

Written by `tools/model_card.py`.
"""


CARDS = {"digits": digits, "digits-dit": digits, "shapes": shapes, "digits-1": student, "shapes-4": fast}

if __name__ == "__main__":
    for name in sys.argv[1:]:
        write_text(Path(EMBEDDED / name / "README.md"), CARDS[name](name))
        print((EMBEDDED / name / "README.md").read_text("utf-8"))
