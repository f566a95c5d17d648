"""Paint the scenes of the README with the model `shapes`: `python tools/scenes.py` writes docs/images/scenes.png."""

from __future__ import annotations

from pathlib import Path

import fewstep as fs
from fewstep.report.grid import image_grid, save_png

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "scenes.png"
CAPTIONS = (  # one a row
    "a green triangle above a red square",
    "a large blue circle left of a small yellow cross",
    "a large purple cross in the center",
)
COLUMNS, SCALE, STEPS = 8, 2.0, 10


def main() -> None:
    model = fs.guide(fs.load("shapes"), "cfg", scale=SCALE)
    asked = [caption for caption in CAPTIONS for _ in range(COLUMNS)]
    x = fs.sample(model, len(asked), text=asked, steps=STEPS, seed=0)
    save_png(PICTURE, image_grid(x.unflatten(0, (len(CAPTIONS), COLUMNS)), scale=2))


if __name__ == "__main__":
    main()
