"""Run the tutorials as they stand, take their pictures and figures: `python tools/tutorials.py [NAME ...]`.

Writes docs/tutorials.json and docs/images/tutorial-*.png. A minute or so a tutorial, on one CPU thread. With names
only these run, and the figures of the others stay.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUT, IMAGES = ROOT / "docs" / "tutorials.json", ROOT / "docs" / "images"
SHOWN = 10


def run(name: str) -> tuple[dict[str, Any], float]:
    """The names that a tutorial's blocks leave behind, and the CPU seconds they took; in a folder of its own."""
    text = (ROOT / "docs" / "tutorials" / f"{name}.md").read_text("utf-8")
    names: dict[str, Any] = {}
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        begin = time.process_time()
        try:
            for block in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
                exec(compile(block, name, "exec"), names)
            return names, time.process_time() - begin
        finally:
            os.chdir(here)


def _picture(name: str, rows: Any) -> None:
    from fewstep.report.grid import image_grid, save_png

    save_png(IMAGES / f"tutorial-{name}.png", image_grid(rows))


def digits() -> dict[str, Any]:
    import torch

    names, seconds = run("digits")
    _picture("digits", torch.stack([x[:SHOWN] for x in names["samples"].values()]))
    evaluations = {name: plan.nfe for name, plan in names["plans"].items()}
    search = {"evaluations": names["found"].evaluations, "seconds": names["found"].seconds}
    found = {"errors": names["errors"], "nfe": evaluations, "search": search, "seconds": seconds}
    return found | {"n": len(names["answer"])}


def folder() -> dict[str, Any]:
    names, seconds = run("folder")
    _picture("folder", names["samples"].view(4, 10, 3, 16, 16))
    return {"losses": [names["first"].loss, names["last"].loss], "seconds": seconds}


def diffusers() -> dict[str, Any]:
    import torch

    names, seconds = run("diffusers")
    pipe, best = names["pipe"], names["best"]
    pipe.scheduler = names["scheduler"]
    own = pipe(
        batch_size=SHOWN, generator=torch.Generator().manual_seed(3), num_inference_steps=best.nfe, output_type="np"
    )
    rows = [torch.from_numpy(x[:SHOWN]).permute(0, 3, 1, 2) * 2 - 1 for x in (own.images, names["there"])]
    rows.append(names["fine"](names["model"], names["noise"])[:SHOWN])
    _picture("diffusers", torch.stack(rows))
    return {"errors": names["errors"], "difference": names["difference"], "ok": names["report"].ok, "seconds": seconds}


def student() -> dict[str, Any]:
    import torch

    names, seconds = run("student")
    _picture("student", torch.stack([x[:SHOWN] for x in names["samples"].values()]))
    checks = [{key: names[which][key] for key in ("step", "distance")} for which in ("first", "last")]
    made = names["made"].figures
    return {
        "rows": names["rows"], "checks": checks, "evaluations": int(made["evaluations"]), "n": len(names["answer"]),
        "seconds": seconds,
    }  # fmt: skip


def captions() -> dict[str, Any]:
    import torch

    names, seconds = run("captions")
    shown = list(names["samples"].values())[: 1 + list(names["samples"]).index("student, four steps")]
    _picture("captions", torch.stack([x[:SHOWN] for x in shown]))
    _picture("captions-targets", names["aims"])
    rows = {
        name: {"evaluations": names["evaluations"][name], "right": found.value, "error": found.error}
        for name, found in names["right"].items()
    }
    return {"rows": rows, "n": len(names["asked"]), "shown": names["asked"][:SHOWN], "seconds": seconds}


def half() -> dict[str, Any]:
    import torch

    names, seconds = run("half")
    rows = []
    for told in (names["told"], names["captioned"]):
        spread = told.std.mean(1, keepdim=True).expand(-1, 3, -1, -1)
        rows.append(
            torch.cat([names["picture"], names["y"], told.samples[0], told.mean, 2 * spread / spread.max() - 1])
        )
    _picture("half", torch.stack(rows))
    return {"rows": names["rows"], "n": len(names["told"].samples[0]), "seconds": seconds}


TUTORIALS = {
    "digits": digits, "folder": folder, "diffusers": diffusers, "student": student, "captions": captions, "half": half,
}  # fmt: skip


def measure(chosen: list[str]) -> dict[str, Any]:
    """The figures of the tutorials that were chosen, or of all, and the old ones of the others."""
    import torch

    torch.set_num_threads(1)
    before = json.loads(OUT.read_text("utf-8")) if OUT.exists() else {}
    return {name: make() if not chosen or name in chosen else before[name] for name, make in TUTORIALS.items()}


def lines(found: dict[str, Any]) -> dict[str, list[str]]:
    """What the pages show, by marker."""
    digits, folder, diffusers, student, captions, half = (found[name] for name in TUTORIALS)
    best = digits["errors"].items()
    table = ["| plan | evaluations | error |", "| --- | --- | --- |", "| reference | 100 | |"]
    table += [f"| {name.rpartition(',')[0]} | {digits['nfe'][name]} | {error:.3f} |" for name, error in best]
    search = digits["search"]
    told = (
        f"Mean distance from the reference's sample over the mean norm, {digits['n']} noises. The search took"
        f" {search['evaluations']:,} evaluations of a single sample. This page took {digits['seconds']:.0f}"
        " CPU seconds."
    )
    losses = f"The loss fell from {folder['losses'][0]:.3f} at step 200 to {folder['losses'][1]:.3f} at step 600."
    errors = ", ".join(f"`{name}` {error:.3f}" for name, error in diffusers["errors"].items())
    verdict = "finds nothing wrong" if diffusers["ok"] else "complains: after 500 steps the denoiser is still poor"
    heads = ["| sampler | evaluations | error | Frechet distance | accuracy |", "| --- | --- | --- | --- | --- |"]
    for name, row in student["rows"].items():
        sampler, _, count = name.rpartition(", ")
        own = ("", "") if sampler == "teacher" else (f"{row['error']:.3f}", f"{row['distance']:.3f}")
        heads.append(f"| {' | '.join([sampler, count, *own, format(row['accuracy'], '.3f')])} |")
    early, late = student["checks"]
    learnt = (
        f"Error and distance are from the teacher's samples of the same {student['n']} noises. On the checks' noises"
        f" the distance fell from {early['distance']:.2f} after {early['step']} iterations to {late['distance']:.3f}"
        f" after {late['step']}; pairs and training took {student['evaluations']:,} evaluations of one sample. This"
        f" page took {student['seconds']:.0f} CPU seconds."
    )
    asked = ["| sampler | evaluations | captions right |", "| --- | --- | --- |"]
    for name, row in captions["rows"].items():
        asked.append(f"| {name} | {row['evaluations']} | {row['right']:.3f} ± {row['error']:.3f} |")
    read = (
        f"Share of {captions['n']} pictures that show all that their captions ask for, with its standard error. This"
        f" page took {captions['seconds']:.0f} CPU seconds. The captions of the pictures below, from left to right:"
        f" {'; '.join(captions['shown'])}."
    )
    draws = ["| known | spread, lost half | error of the mean | draws with yellow |", "| --- | --- | --- | --- |"]
    for name, row in half["rows"].items():
        draws.append(f"| {name} | {row['spread']:.3f} | {row['error']:.3f} | {row['yellow']} of {half['n']} |")
    drawn = (
        "Spread: the mean standard deviation over the draws, of a range of 2. Error: mean square, in the lost half."
        f" This page took {half['seconds']:.0f} CPU seconds."
    )
    return {
        "tutorial-half": [*draws, "", drawn],
        "tutorial-captions": [*asked, "", read],
        "tutorial-student": [*heads, "", learnt],
        "tutorial-digits": [*table, "", told],
        "tutorial-folder": [f"{losses} This page took {folder['seconds']:.0f} CPU seconds."],
        "tutorial-diffusers": [
            f"Error at ten evaluations against 100: {errors}. The largest difference between the pipeline's pictures"
            f" and fewstep's is {diffusers['difference']:.1g}. The check {verdict}. This page took"
            f" {diffusers['seconds']:.0f} CPU seconds."
        ],
    }


if __name__ == "__main__":
    OUT.write_text(json.dumps(measure(sys.argv[1:]), indent=1) + "\n", "utf-8")
