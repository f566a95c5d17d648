"""Models by name: those that ship with the package, fewstep folders, diffusers folders, and hub repositories."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fewstep.core.arguments import checked, shown
from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.core.files import new_folder, read_text, write
from fewstep.core.plan import Plan
from fewstep.core.student import Student
from fewstep.denoisers.folder import CARD, EMBEDDED, PLAN, embedded, load_model, save_model
from fewstep.denoisers.restorer import Restorer

STUDENT = "student.json"  # beside a diffusers folder, whose own configuration has no place for it
ABOUT = ("config.json", "model_index.json")  # what a model folder has: fewstep's, diffusers'


@checked
def load(
    name: Any,
    device: str | torch.device | None = None,
    *,
    dtype: torch.dtype | None = None,
    size: int | Sequence[int] | None = None,
    download: bool = False,
    revision: str | None = None,
    variant: str | None = None,
    config: str | os.PathLike[str] | None = None,
    lora: Mapping[str | os.PathLike[str], float] | None = None,
    offload: bool = False,
    long_prompts: bool = False,
) -> Any:
    """A model in evaluation mode; `model.plan` is its plan or None.

    Args:
        name: an embedded model (`"digits"`), a folder that fewstep or diffusers saved, a safetensors file that holds a
            whole Stable Diffusion, or a repository of the hub (`"org/name"`). A plain name is an embedded model; an
            existing folder or file, or anything that cannot be a repository, is a path. Or a diffusers pipeline, which
            is used as it is: nothing is copied, and a device, dtype or adapter given here is the pipeline's as well.
        dtype: of the networks' weights, by default their own (float32 for diffusers folders).
        size: height and width in pixels of a diffusers model's pictures, or one number for both.
        download: fetch a repository that is not in the local cache; without it there is no network access.
        revision: branch, tag or commit of a repository.
        variant: of a diffusers model's weights, such as "fp16"; by default those without one, or the only one there is.
        config: for a single file, a folder in diffusers' layout or a repository that says what it is made of.
        lora: files or folders of low-rank adapters, each with its weight, `{"style": 0.8}`: for a diffusers model in
            the formats of diffusers, PEFT and kohya, for a model of fewstep's own its own (`with_adapters`).
        offload: keep a diffusers model's weights in the machine's memory and move each layer to `device` as it is used
            (needs accelerate).
        long_prompts: a diffusers model reads prompts beyond its text encoder's length, in several windows of it.

    Returns:
        the denoiser that was saved, or a `PipelineDenoiser` for diffusers models.

    Raises:
        ValueError: an unknown name (close ones offered), a folder that is not a model or is damaged, an unsupported
            pipeline, a missing component, weights that do not fit, a repository that does not exist, an adapter for
            another network, something that is neither a name, a path nor a pipeline.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating one, such as torch.float16, got {dtype}")
    opening = _Opening(device, dtype, size, variant, config, lora or {}, offload, long_prompts)
    if not isinstance(name, str | os.PathLike):
        if not hasattr(name, "components") or not hasattr(name, "save_pretrained"):
            raise ValueError(f"name must be a text, a path or a diffusers pipeline, got {shown(name)}")
        opening.only("this is one already", variant=True, config=True)
        return opening.model(name if dtype is None else name.to(dtype))
    text = os.fspath(name)
    if text in embedded():
        path = EMBEDDED / text
    elif isinstance(name, Path) or Path(text).exists() or (os.sep in text and not _repository(text)):
        path = Path(text)
        if not path.exists():
            raise ValueError(f"there is no model folder {path}; the models that ship are {', '.join(embedded())}")
    elif _repository(text):
        from fewstep.hub.repository import repository

        path = repository(text, download, revision, variant)
    else:
        raise suggest("model", text, embedded())
    if path.is_file():
        from fewstep.hub.single_file import open_single_file

        opening.only(f"{path.name} is a single file", variant=True)
        return opening.model(open_single_file(path, config, dtype, download, revision))
    opening.only(f"{path.name} is a folder", config=True)
    if not any((path / name).is_file() for name in ABOUT) and any((path / "model" / name).is_file() for name in ABOUT):
        path = path / "model"  # the folder of a run
    if (path / "model_index.json").is_file():
        from fewstep.hub.components import open_pipeline

        return opening.model(open_pipeline(path, dtype, variant), path)
    own = f"{path.name} is a model of fewstep's own"
    opening.only(own, variant=True, size=True, offload=True, long_prompts=True)
    model = load_model(path)
    if opening.lora:
        from fewstep.hub.adapters import with_adapters

        model = with_adapters(model, opening.lora)
    if dtype is not None:
        model.to(dtype)
    return model.to(device) if device is not None else model


@dataclass(frozen=True)
class _Opening:
    """What `load` was asked for."""

    device: str | torch.device | None
    dtype: torch.dtype | None
    size: int | Sequence[int] | None
    variant: str | None
    config: str | os.PathLike[str] | None
    lora: Mapping[str | os.PathLike[str], float]
    offload: bool
    long_prompts: bool

    def only(self, what: str, **refused: bool) -> None:
        """`ValueError` for one of these options where it is given; `what` says why."""
        for option in refused:
            if getattr(self, option) not in (None, False, {}):
                meant = {"config": "single files", "variant": "folders of diffusers pipelines"}
                raise ValueError(f"{option} is for {meant.get(option, 'diffusers pipelines')}, and {what}")

    def model(self, pipeline: Any, folder: Path | None = None) -> Denoiser:
        """The denoiser of a diffusers pipeline, and what lies beside it in its folder."""
        if not self.lora:
            return self._described(self._around(pipeline), folder)
        from fewstep.hub.adapters import taking
        from fewstep.hub.lora import add_adapters

        students = add_adapters(pipeline, self.lora)  # on the pipeline itself
        made: Denoiser = taking(self._described(self._around(pipeline), folder), students)
        return made

    @staticmethod
    def _described(model: Denoiser, folder: Path | None) -> Denoiser:
        if folder is not None and (folder / PLAN).is_file():
            model.plan = Plan.load(folder / PLAN)
        if folder is not None and (folder / STUDENT).is_file():
            model.student = Student.from_config(json.loads(read_text(folder / STUDENT)))
            if isinstance(scales := model.student.guidance, tuple):
                told: Any = model
                told.tell_scale(*scales)
        return model

    def _around(self, pipeline: Any) -> Denoiser:
        from fewstep.hub.pipeline import PipelineDenoiser

        if not self.offload:
            model = PipelineDenoiser(pipeline, self.size, long_prompts=self.long_prompts)
            return model.to(self.device) if self.device is not None else model
        try:
            from accelerate import cpu_offload
        except ImportError:
            raise ImportError("offload needs accelerate: pip install accelerate") from None
        target = torch.device(self.device or "cpu")
        model = PipelineDenoiser(pipeline, self.size, target, self.long_prompts)
        for part in pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                cpu_offload(part, target)
        return model


def _repository(text: str) -> bool:
    """Whether a name has the form of a hub repository, `org/name`."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text) is not None


@checked
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
        if model.student is not None:
            write(fresh / STUDENT, json.dumps(model.student.config(), indent=1) + "\n")
    return Path(folder)
