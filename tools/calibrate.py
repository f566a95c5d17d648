"""`python tools/calibrate.py NAME ...`: measure how wrong an embedded model's x0 is, and put it beside the model."""

from __future__ import annotations

import sys

import fewstep as fs
from fewstep.denoisers.folder import CALIBRATION, EMBEDDED


def main(names: list[str]) -> None:
    for name in names:
        model = fs.load(name)
        model.calibration = None
        path = fs.calibrate(model).save(EMBEDDED / name / CALIBRATION)
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
