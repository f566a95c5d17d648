"""A checkpoint in one file as a pipeline: diffusers' own conversion, by configurations in diffusers' layout."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from fewstep.hub.checkpoints import PICKLES
from fewstep.hub.components import LEFT_OUT, components, quiet, read_index
from fewstep.hub.repository import configuration


def open_single_file(
    file: Path,
    config: str | os.PathLike[str] | None = None,
    dtype: torch.dtype | None = None,
    download: bool = False,
    revision: str | None = None,
) -> Any:
    """The diffusers pipeline of a file, on the CPU; its weights in `dtype`, by default float32.

    config: a folder in diffusers' layout, or a repository of the hub, that says what the pipeline is made of; what the
        file lacks is read from it. By default the repository that diffusers takes for such a file, from the local
        cache, or fetched with `download`.

    Raises:
        ValueError: no such file, a pickle, a file that is not safetensors, a configuration that cannot be had or that
            the file does not fit.
    """
    try:
        import diffusers
        import transformers  # noqa: F401
    except ImportError:
        raise ImportError("a checkpoint needs both libraries: pip install 'fewstep[diffusers]'") from None
    shapes = _shapes(file)
    folder = _configuration(file, shapes, config, download, revision)
    index = read_index(folder)
    kind: Any = getattr(diffusers, index["_class_name"])
    if not hasattr(kind, "from_single_file"):
        raise ValueError(f"diffusers does not read a {kind.__name__} from a single file: save it as a folder")
    left: dict[str, Any] = {name: None for name in LEFT_OUT if name in index and isinstance(index[name], list)}
    left |= {"requires_safety_checker": False} if "requires_safety_checker" in index else {}
    left |= {"add_watermarker": False} if "XL" in kind.__name__ else {}
    try:
        with quiet():
            pipeline = kind.from_single_file(
                str(file), config=str(folder), torch_dtype=dtype or torch.float32, local_files_only=True, **left
            )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{file} cannot be read as a {kind.__name__} by the configuration {folder}:"
            f" {' '.join(str(error).split())[:300]}"
        ) from None
    for name in components(index):
        part = getattr(pipeline, name, None)
        if isinstance(part, torch.nn.Module):
            if lost := [key for key, value in part.state_dict().items() if value.is_meta]:
                raise ValueError(
                    f"{file} does not fit the configuration {folder}: it has no weights for {name}.{lost[0]}"
                )
            part.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _shapes(file: Path) -> dict[str, torch.Tensor]:
    """The names and shapes in a file, as tensors without values."""
    if file.suffix in PICKLES:
        raise ValueError(f"{file} is a pickle, which can run code and is never loaded: convert it to safetensors")
    try:
        with safe_open(file, "pt") as opened:
            return {key: torch.empty(opened.get_slice(key).get_shape(), device="meta") for key in opened.keys()}
    except SafetensorError as error:
        raise ValueError(f"{file} is not safetensors: {error}") from None


def _configuration(
    file: Path,
    shapes: dict[str, torch.Tensor],
    config: str | os.PathLike[str] | None,
    download: bool,
    revision: str | None,
) -> Path:
    """The folder of configurations for a file."""
    from diffusers.loaders.single_file_utils import fetch_diffusers_config

    if config is not None and Path(config).is_dir():
        return Path(config)
    usual = fetch_diffusers_config(shapes)["pretrained_model_name_or_path"]
    name = os.fspath(config) if config is not None else str(usual)
    try:
        return configuration(name, download, revision)
    except ValueError as error:
        raise ValueError(
            f"{file} is a single file, and the configuration {name!r} that it needs cannot be had: give config= a"
            f" folder in diffusers' layout, or download=True ({error})"
        ) from None
