"""`fewstep sample`: pictures, or arrays, with the parameters that made them inside."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli import common

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.core.denoiser import Denoiser

KEY = "fewstep"  # the text chunk of a PNG, and the array of an .npz, that holds the parameters as JSON
BATCH = 256


def sample(
    model: common.Model,
    n: Annotated[int, typer.Option("-n", help="How many samples.")] = 64,
    label: Annotated[
        int | None, typer.Option(help="The class; without it a conditional model draws without one.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="The caption, for models that read one.")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Scale of classifier-free guidance: 1 is none, above follows more closely.")
    ] = None,
    solver: common.Solver = None,
    steps: common.Steps = None,
    timesteps: common.Timesteps = None,
    nfe: common.Nfe = None,
    plan_file: common.PlanFile = None,
    brownian: Annotated[
        bool, typer.Option("--brownian", help="Noise from one path a sample: more steps refine the same picture.")
    ] = False,
    out: Annotated[
        Path, typer.Option(help="A .png (one grid), an .npz (arrays), or a folder (one PNG a sample).")
    ] = Path("samples.png"),
    force: Annotated[bool, typer.Option("--force", help="Replace what --out names.")] = False,
    seed: common.Seed = 0,
    device: common.Device = None,
    as_json: common.Json = False,
) -> None:
    """Draw samples from a model.

    Without --solver, --steps, --timesteps and --nfe a model that has a plan of its own (an accelerated one) uses it,
    any other takes ten steps of dpmpp-3m. Sample i depends on --seed and i alone, not on -n.

    \b
    Example:
        fewstep sample digits -n 64 --label 3 --steps 8 --solver unipc --timesteps karras --out threes.png
        fewstep sample shapes -n 16 --prompt "a green triangle above a red square" --guidance 2 --out scenes.png
    """
    common.check_positive("-n", n)
    _check_out(out, force)
    opened: Denoiser = common.open_model(model, device)
    plan = common.chosen_plan(opened, solver, steps, timesteps, nfe, plan_file)
    condition = _condition(opened, label, prompt)
    opened.check_condition(condition, n, next(opened.parameters()).device)
    if guidance is not None:
        from fewstep.guidance.guide import guide

        opened = guide(opened, "cfg", scale=guidance)

    from fewstep.sampling.sample import sample as draw

    batches = -(-n // BATCH)
    stages = common.Stages()
    begin = time.perf_counter()
    with stages.stage(f"{n} samples, {plan.name}", batches * plan.nfe) as advance:
        with common.counted(opened, advance) as calls:
            images = draw(opened, n, plan=plan, seed=seed, batch_size=BATCH, brownian=brownian, **condition)
    seconds = time.perf_counter() - begin
    facts: dict[str, Any] = {
        "model": model,
        "solver": plan.name,
        "timesteps": plan.about.get("timesteps"),
        "steps": plan.about.get("steps"),
        "end": plan.about.get("end"),
        "nfe": plan.nfe,
        "n": n,
        "seed": seed,
        "label": label,
        "prompt": prompt,
        "guidance": guidance,
    }
    _write(out, images, opened.value_range or (-1.0, 1.0), facts)
    measured = {"planned_nfe": plan.nfe, "actual_nfe": calls() / batches, "seconds": seconds, "out": str(out)}
    if as_json:
        common.print_json(facts | measured)
    else:
        typer.echo(
            f"{n} samples in {seconds:.2f} s, {plan.nfe} evaluations planned and {measured['actual_nfe']:g} made: {out}"
        )


def _condition(model: Denoiser, label: int | None, prompt: str | None) -> dict[str, Any]:
    """What was asked for, by the name of the condition."""
    from fewstep.core.condition import Label

    kind = model.conditions.get("label")
    if label is not None and isinstance(kind, Label) and label >= kind.classes:  # that index stands for no label
        raise ValueError(f"label {label} is out of range: 0 to {kind.classes - 1}; leave --label out for none")
    if prompt is not None and "text" not in model.conditions:
        raise ValueError(
            "this model reads no captions: leave --prompt out"
            + (", or give --label" if "label" in model.conditions else "")
        )
    asked = {"label": label, "text": prompt}
    return {name: value for name, value in asked.items() if value is not None}


def _kind(out: Path) -> str:
    if out.suffix.lower() in (".png", ".npz"):
        return out.suffix.lower()
    if out.suffix:
        raise ValueError(f"--out must be a .png, an .npz or a folder, got {str(out)!r}")
    return "folder"


def _check_out(out: Path, force: bool) -> None:
    if _kind(out) != "folder":
        return common.check_new_file(out, force)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; name a folder, a .png or an .npz")
    inside = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if inside and not force:
        raise ValueError(f"the folder {out} is not empty: choose another, or give --force to replace its samples")
    if other := [name for name in inside if not re.fullmatch(r"\d{5,}\.png", name)]:
        raise ValueError(f"the folder {out} holds more than samples ({other[0]!r}): choose another")
    common.check_writable(out)


def _write(out: Path, images: Tensor, value_range: tuple[float, float], facts: dict[str, Any]) -> None:
    """The samples as what `out` names, whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    kind = _kind(out)
    if kind == ".npz":
        return _write_npz(out, images, value_range, facts)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"samples of shape {tuple(images.shape[1:])} are no pictures: name an .npz")
    from fewstep.report.grid import image_grid, save_png

    if kind == ".png":
        save_png(out, image_grid(images, value_range), {KEY: facts})
        return
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        for index, image in enumerate(images):
            picture = image_grid(image[None], value_range, scale=1)
            save_png(temporary / f"{index:05d}.png", picture, {KEY: facts | {"index": index}})
        temporary.chmod(0o755)
        if out.is_dir():
            shutil.rmtree(out)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_npz(out: Path, images: Tensor, value_range: tuple[float, float], facts: dict[str, Any]) -> None:
    """Arrays `images`, (N, H, W, C) floats, `value_range` and the parameters: a data set that fewstep opens."""
    import io
    import json

    import numpy as np

    from fewstep.report.files import write_bytes

    low, high = value_range
    values = images.clamp(low, high).cpu()  # a data set's values lie within its range
    arrays: dict[str, Any] = {
        "images": values.movedim(1, -1).numpy() if values.ndim == 4 else values.numpy(),
        "value_range": np.array(value_range, dtype=np.float64),
        KEY: np.array(json.dumps(facts)),
    }
    if facts["label"] is not None:
        arrays["labels"] = np.full(len(values), facts["label"], dtype=np.int64)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_bytes(out, buffer.getvalue())
