"""What `fewstep sample` is to draw, from its options alone: here, or by any worker of `--ray`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli import common, guides, pictures
from fewstep.cli.cache import cached

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.core.denoiser import Denoiser
    from fewstep.scale.sampling import Drawer, Draws


def drawing(
    model: str,
    n: int,
    batch: int,
    *,
    label: int | None = None,
    prompts: Sequence[str] = (),
    negative: str | None = None,
    guidance: float | None = None,
    guide: Sequence[str] | None = None,
    nasa: float | None = None,
    steer: str | None = None,
    reward: str | None = None,
    cache: str | None = None,
    base_model: str | None = None,
    base_steps: int | None = None,
    solver: str | None = None,
    steps: int | None = None,
    timesteps: str | None = None,
    nfe: int | None = None,
    plan: str | None = None,
    init: str | None = None,
    strength: float | None = None,
    mask: str | None = None,
    brownian: bool = False,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    device: str | None = None,
    **opening: Any,
) -> Draws:
    """The samples that these options of `fewstep sample` ask for: n of each prompt, so many in a batch.

    `opening` holds the further options of `common.open_model`; files are named by their paths.
    """
    from fewstep.scale.sampling import Draws

    base: Denoiser = common.open_model(model, device, **opening)
    if base_model is not None:
        if any(value is not None for value in (solver, timesteps, plan)) or strength is not None:
            raise ValueError(
                "a student with --base has its plan: leave --solver, --timesteps, --plan and --strength out"
            )
        base = _hybrid(base, base_model, 1 if base_steps is None else base_steps, steps if nfe is None else nfe, device)
        steps = nfe = None
    elif base_steps is not None:
        raise ValueError("--base-steps are those of a base before its student: give --base")
    start_file, mask_file = (Path(path) if path is not None else None for path in (init, mask))
    asked = _asked(base, label, prompts)
    read = _pictures(base, start_file, mask_file, strength)
    one = {"text": list(prompts)} if prompts else {}
    base.check_condition(asked | one | read, max(1, len(prompts)), base.device)
    opened = cached(guides.guided(base, guidance, negative, guide, nasa), cache)
    start, share = None, 1.0
    if start_file is not None and "picture" not in base.conditions:
        opened, start, share = _start(base, opened, start_file, mask_file, strength)
    elif init is None and (mask is not None or strength is not None):
        raise ValueError("--mask and --strength go with a picture to start from: give --init")
    if steer is not None and solver is None and plan is None:
        solver = "auto-sde"  # particles need noise
    chosen = common.chosen_plan(opened, solver, steps, timesteps, nfe, Path(plan) if plan is not None else None, share)
    rows = rows_of(n, seed, seeds) * max(1, len(prompts)) if seeds or len(prompts) > 1 else None
    condition = asked | read
    if len(prompts) > 1:
        condition["text"] = [text for text in prompts for _ in range(n)]
    elif prompts:
        condition["text"] = prompts[0]
    return Draws(
        opened,
        guides.steered(chosen, steer, reward),
        n * max(1, len(prompts)),
        batch,
        seed=0 if rows else seed,
        seeds=rows,
        brownian=brownian,
        init=start,
        condition=condition,
        facts={"strength": share} | _checksums(init=start_file, mask=mask_file),
    )


def _hybrid(student: Denoiser, base: str, steps: int, nfe: int | None, device: str | None) -> Denoiser:
    from fewstep.sampling.hybrid import hybrid

    return hybrid(common.open_model(base, device), student, steps, nfe)


def drawer(**asked: Any) -> Drawer:
    """The worker of `fewstep sample --ray`."""
    from fewstep.scale.sampling import Drawer

    return Drawer(drawing(**asked))


def rows_of(n: int, seed: int, seeds: Sequence[int] | None) -> list[tuple[int, int]]:
    """The seed and number of each of a prompt's samples."""
    return [(s, 0) for s in seeds] if seeds else [(seed, i) for i in range(n)]


def _asked(model: Denoiser, label: int | None, prompts: Sequence[str]) -> dict[str, Any]:
    """The label, after a look at whether the model reads what was asked for."""
    from fewstep.conditions.label import Label

    kind = model.conditions.get("label")
    if label is not None and isinstance(kind, Label) and label >= kind.classes:  # that index stands for no label
        raise ValueError(f"label {label} is out of range: 0 to {kind.classes - 1}; leave --label out for none")
    guides.check_reads(model, prompts[0] if prompts else None)
    return {"label": label} if label is not None else {}


def _pictures(base: Denoiser, init: Path | None, mask: Path | None, strength: float | None) -> dict[str, Any]:
    """The pictures that go into the network of a model that reads some."""
    if "picture" not in base.conditions:
        return {}
    if init is None or (mask is None) == ("mask" in base.conditions) or strength is not None:
        wanted = "--init and --mask" if "mask" in base.conditions else "--init, and no --mask"
        raise ValueError(f"this model's network reads the picture itself: give {wanted}, without --strength")
    found = {"picture": pictures.read_picture(init, base)}
    return found | ({"mask": pictures.read_picture(mask, base, grey=True)} if mask is not None else {})


def _start(
    base: Denoiser, opened: Denoiser, init: Path, mask: Path | None, strength: float | None
) -> tuple[Denoiser, Tensor | None, float]:
    """The model (which keeps what the mask keeps), the picture to start from or None, and the strength."""
    from fewstep.sampling.sample import strength_of

    share = strength_of(strength, mask is not None, "--strength", "--mask")
    picture = pictures.read_picture(init, base)
    if mask is not None:
        from fewstep.guidance.guide import guide

        opened = guide(opened, "known", picture=picture, mask=1 - pictures.read_picture(mask, base, grey=True))
    return opened, picture if share < 1 else None, share


def _checksums(**files: Path | None) -> dict[str, str]:
    """What the files that were read hold, in short."""
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for name, path in files.items()
        if path is not None and path.is_file()
    }
