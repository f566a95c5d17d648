"""Store a run's model among those that ship, its weights in half precision: `python tools/embed.py RUN NAME`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import fewstep as fs
from fewstep.core.files import read_text
from fewstep.denoisers.folder import CARD, save_model
from fewstep.hub.models import EMBEDDED


def embed(run: str | Path, name: str) -> Path:
    """The folder of the embedded model, which must not be there yet; card and plan are those of the run's model."""
    model, card = fs.load(run), Path(run) / "model" / CARD
    assert model.plan is not None
    return save_model(model, EMBEDDED / name, read_text(card), model.plan, stored=torch.float16)


if __name__ == "__main__":
    print(embed(sys.argv[1], sys.argv[2]))
