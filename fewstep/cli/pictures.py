"""Samples as files that record how they were made, and pictures read from files."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fewstep.cli import common

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.core.denoiser import Denoiser
    from fewstep.scale.manifest import Shards

KEY = "fewstep"  # the text chunk of a PNG, and the array of an .npz, that holds the parameters as JSON
COMMENT = f"{KEY}: "  # what comes before them in the comment of a GIF


def command_line(context: typer.Context, without: Sequence[str], instead: Mapping[str, Any]) -> str:
    """The command as it was given, its defaults left out; `instead` holds values by the names of the parameters."""
    words = ["fewstep", str(context.info_name)]
    for parameter in context.command.params:
        name = str(parameter.name)
        value = instead.get(name, context.params.get(name))
        if name in without or value is None or value == parameter.default or value == []:
            continue
        option = next((o for o in parameter.opts if o.startswith("-")), None)
        for one in value if isinstance(value, list | tuple) else [value]:
            words += [option] if option and one is not True else []
            words += [str(one)] if one is not True else [str(option)]
    return shlex.join(words)


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file, one per line; empty lines and lines that begin with # do not count."""
    from fewstep.core.files import read_text

    try:
        lines = read_text(path).splitlines()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text file (UTF-8)") from None
    prompts = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not prompts:
        raise ValueError(f"{path} holds no prompt: one per line, # begins a comment")
    return prompts


def read_picture(path: Path, model: Denoiser, grey: bool = False) -> Tensor:
    """A picture file as `(C, H, W)` of the model's samples, in their range, cropped and resized to their size.

    `grey` gives one channel in [0, 1], for masks.
    """
    from fewstep.core.pictures import for_model

    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    return for_model(path, model, str(path), grey)


def read_batch(path: Path, model: Denoiser, shape: Sequence[int] | None, otherwise: str = "") -> Tensor:
    """What an .npz or a picture holds, `(B, *shape)`, in the model's range: its data, or measurements of them.

    otherwise: what can be done with a picture that is no measurement, for the message that says so.
    """
    import numpy as np
    import torch

    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as held:
            arrays = {name: held[name] for name in held.files if held[name].dtype.kind in "fiu"}
        if not arrays:
            raise ValueError(f"{path} holds no array of numbers")
        name = next((key for key in ("y", "samples", "images") if key in arrays), next(iter(arrays)))
        y = torch.from_numpy(np.ascontiguousarray(arrays[name])).float()
        y = y[None] if tuple(y.shape) == tuple(shape or ()) else y
        if name == "images" and y.ndim == 4 and tuple(y.movedim(-1, 1).shape[1:]) == tuple(shape or ()):
            y = y.movedim(-1, 1)  # as `fewstep sample` writes them
    else:
        if shape is None or len(shape) != 3:
            raise ValueError(f"a picture cannot be of shape {shape}: give an .npz with the array y")
        from fewstep.core.pictures import data_shape, read_one

        low, high = model.value_range or (-1.0, 1.0)
        # A measurement of another size than the data is what it is; only pictures of the data's are brought to it.
        size = (shape[1], shape[2]) if tuple(shape[1:]) == tuple(data_shape(model) or ())[1:] else None
        found = read_one(path, "L" if shape[0] == 1 else "RGB", size, str(path))
        if found.shape[:2] != (shape[1], shape[2]):
            size_of = "x".join(map(str, found.shape[:2]))
            raise ValueError(f"{path} is {size_of}, and what is measured here {shape[1]}x{shape[2]}{otherwise}")
        y = torch.from_numpy(found.copy()).permute(2, 0, 1)[None].float() / 255 * (high - low) + low
    if tuple(y.shape[1:]) != tuple(shape or ()):
        raise ValueError(f"{path} holds {tuple(y.shape)}: what is read here has the shape {shape}")
    return y


def kind_of(out: Path) -> str:
    """What `--out` names: ".png", ".gif", ".npz" or "folder"."""
    if out.suffix.lower() in (".png", ".gif", ".npz"):
        return out.suffix.lower()
    if out.suffix:
        raise ValueError(f"--out must be a .png, a .gif (of clips), an .npz or a folder, got {str(out)!r}")
    return "folder"


def check_out(out: Path, force: bool) -> None:
    """`ValueError` unless samples can be written there without replacing anything unasked."""
    if kind_of(out) != "folder":
        return common.check_new_file(out, force)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; name a folder, a .png or an .npz")
    inside = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if inside and not force:
        raise ValueError(f"the folder {out} is not empty: choose another, or give --force to replace its samples")
    if other := [name for name in inside if not re.fullmatch(r"\d{5,}\.png", name)]:
        raise ValueError(f"the folder {out} holds more than samples ({other[0]!r}): choose another")
    common.check_writable(out)


def check_shape(out: Path, shape: Sequence[int]) -> None:
    """`ValueError` unless samples of a shape can be written as what `out` names."""
    kind = kind_of(out)
    if kind != ".npz" and (len(shape) not in (3, 4) or shape[-3] not in (1, 3)):
        raise ValueError(f"samples of shape {tuple(shape)} are no pictures: name an .npz")
    if kind == ".gif" and len(shape) != 4:
        raise ValueError(f"samples of shape {tuple(shape)} do not move: name a .png")


def write(
    out: Path,
    images: Tensor | Shards,
    value_range: tuple[float, float],
    facts: dict[str, Any],
    own: Sequence[Mapping[str, Any]] = (),
) -> None:
    """The samples as what `out` names, whole or not at all. `own` holds a sample's own facts, for its own file.

    A clip is a row of a grid, or the strip of its frames in its own file; in a .gif the clips move side by side.
    Samples that come in shards are written a shard at a time; a grid needs all of them.
    """
    import torch

    from fewstep.scale.manifest import parts_of

    out.parent.mkdir(parents=True, exist_ok=True)
    kind = kind_of(out)
    if kind == ".npz":
        return _write_npz(out, images, value_range, facts)
    check_shape(out, images.shape[1:])
    from fewstep.core.files import write as write_file
    from fewstep.report.grid import gif_bytes, image_grid, save_png

    if kind == ".gif":
        clips = torch.cat(list(parts_of(images)))
        frames = [image_grid(frame, value_range) for frame in clips.unbind(1)]
        write_file(out, gif_bytes(frames, COMMENT + json.dumps(facts, sort_keys=True)))
        return
    if kind == ".png":
        save_png(out, image_grid(torch.cat(list(parts_of(images))), value_range), {KEY: facts})
        return
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        for index, image in enumerate(itertools.chain.from_iterable(parts_of(images))):
            picture = image_grid(image[None], value_range, scale=1)
            said = facts | {"index": index} | dict(own[index] if own else {})
            save_png(temporary / f"{index:05d}.png", picture, {KEY: said})
        temporary.chmod(0o755)
        if out.is_dir():
            shutil.rmtree(out)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_shown(model: Denoiser) -> None:
    """`ValueError` for a model whose samples are known to be no pictures."""
    from fewstep.core.pictures import data_shape

    if (shape := data_shape(model)) is not None and (len(shape) != 3 or shape[0] not in (1, 3)):
        raise ValueError(f"samples of shape {tuple(shape)} are no pictures: leave --targets out")


def write_rows(out: Path, images: Tensor, value_range: tuple[float, float], facts: dict[str, Any]) -> None:
    """Pictures (rows, columns, channels, H, W) as one grid."""
    from fewstep.report.grid import image_grid, save_png

    out.parent.mkdir(parents=True, exist_ok=True)
    save_png(out, image_grid(images, value_range), {KEY: facts})


def _write_npz(out: Path, images: Tensor | Shards, value_range: tuple[float, float], facts: dict[str, Any]) -> None:
    """Arrays `images`, (N, H, W, C) floats, `value_range` and the parameters: a data set that fewstep opens."""
    import numpy as np

    from fewstep.data.npz import write_npz
    from fewstep.scale.manifest import parts_of

    low, high = value_range
    n, *shape = images.shape
    picture = len(shape) == 3

    def arrays(part: Tensor) -> np.ndarray:
        values = part.float().clamp(low, high).cpu()  # a data set's values lie within its range
        return values.movedim(1, -1).numpy() if picture else values.numpy()

    beside: dict[str, Any] = {"value_range": np.array(value_range, dtype=np.float64), KEY: np.array(json.dumps(facts))}
    if facts.get("label") is not None:
        beside["labels"] = np.full(n, facts["label"], dtype=np.int64)
    written = (n, *shape[1:], shape[0]) if picture else (n, *shape)
    write_npz(out, map(arrays, parts_of(images)), written, **beside)


def read_facts(path: Path) -> dict[str, Any]:
    """The parameters inside a PNG or GIF that `fewstep sample` wrote; `ValueError` where there are none."""
    from PIL import Image, UnidentifiedImageError

    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        with Image.open(path) as image:
            image.load()  # text chunks may follow the pixels
            text = getattr(image, "text", {}).get(KEY)
            comment = image.info.get("comment", b"").decode(errors="replace") if image.format == "GIF" else ""
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from None
    if text is None and comment.startswith(COMMENT):
        text = comment.removeprefix(COMMENT)
    if text is None:
        raise ValueError(f"{path} holds no parameters: 'fewstep sample' did not write it")
    try:
        facts = json.loads(text)
    except json.JSONDecodeError:
        facts = None
    if not isinstance(facts, dict):
        raise ValueError(f"the parameters in {path} are damaged")
    return facts
