"""Models by name: those that ship with the package, and folders."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from fewstep.core.errors import suggest
from fewstep.core.plan import Plan
from fewstep.denoisers.folder import load_model, save_model
from fewstep.denoisers.network import NetworkDenoiser

EMBEDDED = Path(__file__).resolve().parents[1] / "models"


def embedded() -> list[str]:
    """Names of the models in the package."""
    return sorted(path.name for path in EMBEDDED.iterdir() if (path / "config.json").is_file())


def load(name: str | os.PathLike[str], device: str | torch.device | None = None) -> NetworkDenoiser:
    """A model by its embedded name (`"digits"`) or its folder, in evaluation mode; `model.plan` is its plan or None.

    A plain name is an embedded model; anything with a slash, or an existing folder, is a path.

    Raises:
        ValueError: an unknown name (close ones offered), a folder that is no model or is damaged.
    """
    text = os.fspath(name)
    if text in embedded():
        path = EMBEDDED / text
    elif isinstance(name, Path) or os.sep in text or Path(text).is_dir():
        path = Path(text)
        if not path.exists():
            raise ValueError(f"there is no model folder {path}; the models that ship are {', '.join(embedded())}")
    else:
        raise suggest("model", text, embedded())
    model = load_model(path)
    return model.to(device) if device is not None else model


def save(model: NetworkDenoiser, folder: str | os.PathLike[str], plan: Plan | None = None, card: str = "") -> Path:
    """Write a model (and the plan that samples it best) as a folder that `load` takes; absent or empty before."""
    return save_model(model, folder, card=card, plan=plan if plan is not None else model.plan)
