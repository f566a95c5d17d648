"""The figures of "Reconstruction" in the chapter "Medical tasks": `python tools/reconstruction.py` runs the chapter.

Writes docs/reconstruction.json and docs/images/reconstruction.png. A minute and a half on one CPU thread, of which most
is the training of the chapter's small network.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "chapters" / "medical.md"
OUT, PICTURE = ROOT / "docs" / "reconstruction.json", ROOT / "docs" / "images" / "reconstruction.png"


def measure() -> dict[str, Any]:
    import torch

    from fewstep.report.grid import image_grid, save_png

    torch.set_num_threads(1)
    text, names = PAGE.read_text("utf-8"), {}
    section = text[text.index("## Reconstruction") :]
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        begin = time.process_time()
        try:
            for block in re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE):
                exec(compile(block, "medical.md", "exec"), names)
        finally:
            os.chdir(here)
    seconds = time.process_time() - begin
    found = names["found"]
    spread = found.std / found.std.max() * 2 - 1
    rows = [names["clean"], names["zero_filled"], names["least_squares"], names["gaussian"], found.mean]
    rows += [found.samples[:, 0], spread]
    save_png(PICTURE, image_grid(torch.stack([row.float() for row in rows])))
    residual = float(found.residual.mean())
    return {"decibels": names["decibels"], "residual": residual, "seconds": seconds, "n": len(names["clean"])}


def lines(found: dict[str, Any]) -> list[str]:
    """What the page shows."""
    table = ["| reconstruction | peak signal-to-noise ratio, dB |", "| --- | --- |"]
    table += [f"| {name} | {value:.2f} |" for name, value in found["decibels"].items()]
    told = (
        f"{found['n']} phantoms that no training saw. The residual of the network's draws is {found['residual']:.4f},"
        f" the noise 0.02. This part took {found['seconds']:.0f} CPU seconds, with the training."
    )
    return [*table, "", told]


if __name__ == "__main__":
    OUT.write_text(json.dumps(measure(), indent=1) + "\n", "utf-8")
