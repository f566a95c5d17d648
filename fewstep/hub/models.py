"""Models by name: those that ship with the package, fewstep folders, diffusers folders, and hub repositories."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.core.files import new_folder, write
from fewstep.core.plan import Plan
from fewstep.denoisers.folder import CARD, PLAN, load_model, save_model
from fewstep.denoisers.restorer import Restorer

EMBEDDED = Path(__file__).resolve().parents[1] / "models"


def embedded() -> list[str]:
    """Names of the models in the package."""
    return sorted(path.name for path in EMBEDDED.iterdir() if (path / "config.json").is_file())


def load(
    name: str | os.PathLike[str],
    device: str | torch.device | None = None,
    *,
    dtype: torch.dtype | None = None,
    size: int | Sequence[int] | None = None,
    download: bool = False,
    revision: str | None = None,
    variant: str | None = None,
    offload: bool = False,
    long_prompts: bool = False,
) -> Any:
    """A model in evaluation mode; `model.plan` is its plan or None.

    Args:
        name: an embedded model (`"digits"`), a folder that fewstep or diffusers saved, or a repository of the hub
            (`"org/name"`). A plain name is an embedded model; an existing folder, or anything that cannot be a
            repository, is a path.
        dtype: of the networks' weights, by default their own (float32 for diffusers folders).
        size: height and width in pixels of a diffusers model's pictures, or one number for both.
        download: fetch a repository that is not in the local cache; without it there is no network access.
        revision: branch, tag or commit of a repository.
        variant: of a diffusers model's weights, such as "fp16"; by default those without one, or the only one there is.
        offload: keep a diffusers model's weights in the machine's memory and move each layer to `device` as it is used
            (needs accelerate).
        long_prompts: a diffusers model reads prompts beyond its text encoder's length, in several windows of it.

    Returns:
        the denoiser that was saved, or a `PipelineDenoiser` for diffusers models.

    Raises:
        ValueError: an unknown name (close ones offered), a folder that is not a model or is damaged, an unsupported
            pipeline, a missing component, weights that do not fit, a repository that does not exist.
    """
    text = os.fspath(name)
    if text in embedded():
        path = EMBEDDED / text
    elif isinstance(name, Path) or Path(text).is_dir() or (os.sep in text and not _repository(text)):
        path = Path(text)
        if not path.exists():
            raise ValueError(f"there is no model folder {path}; the models that ship are {', '.join(embedded())}")
    elif _repository(text):
        from fewstep.hub.repository import repository

        path = repository(text, download, revision, variant)
    else:
        raise suggest("model", text, embedded())
    if (path / "model_index.json").is_file():
        pipeline = _pipeline(path, device, dtype, size, variant, offload, long_prompts)
        if (path / PLAN).is_file():
            pipeline.plan = Plan.load(path / PLAN)
        return pipeline
    only = {"size": size, "variant": variant, "offload": offload, "long_prompts": long_prompts}
    for what, given in only.items():
        if given not in (None, False):
            raise ValueError(f"{what} is for diffusers pipelines, and {path.name} is a model of fewstep's own")
    model = load_model(path)
    if dtype is not None:
        model.to(dtype)
    return model.to(device) if device is not None else model


def _pipeline(
    path: Path,
    device: str | torch.device | None,
    dtype: torch.dtype | None,
    size: int | Sequence[int] | None,
    variant: str | None,
    offload: bool,
    long_prompts: bool,
) -> Denoiser:
    from fewstep.hub.components import open_pipeline
    from fewstep.hub.pipeline import PipelineDenoiser

    pipeline = open_pipeline(path, dtype, variant)
    if not offload:
        model = PipelineDenoiser(pipeline, size, long_prompts=long_prompts)
        return model.to(device) if device is not None else model
    try:
        from accelerate import cpu_offload
    except ImportError:
        raise ImportError("offload needs accelerate: pip install accelerate") from None
    target = torch.device(device or "cpu")
    model = PipelineDenoiser(pipeline, size, target, long_prompts)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            cpu_offload(part, target)
    return model


def _repository(text: str) -> bool:
    """Whether a name has the form of a hub repository, `org/name`."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text) is not None


def save(
    model: Denoiser | Restorer,
    folder: str | os.PathLike[str],
    plan: Plan | None = None,
    card: str | None = None,
    figures: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write a model (and the plan that samples it best) as a folder that `load` takes; absent or empty before.

    Anything made of fewstep's own parts is stored as one tree: networks, closed forms, and models that are guided,
    masked, routed and so on. Low-rank adapters are merged into the weights. A `PipelineDenoiser` becomes a
    diffusers folder, its weights in safetensors, with the plan beside them; its networks are written as they are
    without adapters (which are merged), compilation and fused projections.

    Args:
        plan: by default the model's own.
        card: README.md; by default made from the model, the plan and the figures (`hub/card.py`); "" for none.
        figures: what `fs.evaluate` returned, once or for several plans.

    Raises:
        ValueError: a folder that is not empty or not writable; a plan for another process; a denoiser with a part
            that cannot be saved, such as a function; adapters that depend on the time; a pipeline's network whose
            weights would not load again.
    """
    from fewstep.hub.card import model_card
    from fewstep.training.lora import without_adapters

    model = getattr(model, "_orig_mod", model)  # what torch.compile has wrapped
    if isinstance(model, Restorer):
        if plan is not None or figures:
            raise ValueError("a restorer samples without a plan: leave plan and figures out")
        return save_model(model, folder, card=card or "")
    plan = plan if plan is not None else model.plan
    if plan is not None and not plan.fits(model.process):
        raise ValueError(
            "the plan was made for another process than the model's: fs.plan(model.process, ...) makes one"
        )
    if card is None:
        card = model_card(model, Path(folder).name, plan, figures)
    elif figures:
        raise ValueError("figures go into the card that is made here: give either a card or figures")
    pipeline = getattr(model, "saved", None)
    if not hasattr(pipeline, "save_pretrained"):
        return save_model(without_adapters(model), folder, card=card, plan=plan)
    with new_folder(folder) as fresh:
        pipeline.save_pretrained(fresh)  # type: ignore[union-attr]
        if card:
            write(fresh / CARD, card)
        if plan is not None:
            plan.save(fresh / PLAN)
    return Path(folder)
