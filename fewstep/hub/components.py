"""A diffusers folder opened part by part: JSON, tokenizer files, safetensors; nothing is unpickled or executed."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from fewstep.core.methods import Method, methods
from fewstep.hub.autoencoder import overflows
from fewstep.hub.weights import chosen_variant, variants

METHODS = (
    Method(
        "diffusers-folder",
        kind="import",
        claim="a diffusers folder as a pipeline object, or an error of one line that says what is missing",
        use="open_pipeline",
    ),
)

INDEX = "model_index.json"
# Parts that no picture depends on: they check or watermark finished ones, or take pictures as prompts.
LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder", "watermark")
PLANS = "fewstep.hub.plan_scheduler"  # our scheduler, of a pipeline that was saved with a plan in it


@functools.cache
def families() -> Mapping[str, Method]:
    """The card of the family of each supported pipeline class, by the class's name."""
    return {kind: card for card in methods("family") for kind in card.facts["pipelines"]}


def unsupported(kind: str) -> ValueError:
    """The error for a pipeline class that no family knows; it lists those that are supported."""
    return ValueError(f"unsupported pipeline class {kind!r}; supported: {', '.join(sorted(families()))}")


def is_pipeline(path: Path) -> bool:
    """Whether a folder is a diffusers pipeline."""
    return (path / INDEX).is_file()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences warnings of diffusers and transformers about what is checked here and raised as an error."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        from diffusers.utils import logging as bars
        from transformers.utils import logging as other_bars

        bars.disable_progress_bar()
        other_bars.disable_progress_bar()
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def read_index(path: Path) -> dict[str, Any]:
    """`model_index.json`, its pipeline class checked; `ValueError` for a damaged file or another class."""
    try:
        index = json.loads((path / INDEX).read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path / INDEX} is not JSON: {error}") from None
    kind = index.get("_class_name") if isinstance(index, dict) else None
    if kind not in families():
        raise ValueError(f"{path}: {unsupported(str(kind))}")
    return index


def components(index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The components that an index names and that are loaded, each with its library and class."""
    return {
        name: (str(entry[0]), str(entry[1]))
        for name, entry in index.items()
        if isinstance(entry, list) and entry[0] is not None and name not in LEFT_OUT
    }


def open_pipeline(folder: Path, dtype: torch.dtype | None = None, variant: str | None = None) -> Any:
    """The diffusers pipeline of a folder, on the CPU; its weights in `dtype`, by default float32.

    variant: of the weights, such as "fp16", for the components that have it; by default those without one, or the
    only one there is.

    Raises:
        ImportError: without diffusers.
        ValueError: an unsupported pipeline class, a missing component, weights that are pickles, of another network or
            damaged; several variants of them, or none of the one asked for.
    """
    path = Path(folder)
    index = read_index(path)
    try:
        import diffusers
        import transformers  # noqa: F401
    except ImportError:
        raise ImportError("a diffusers folder needs both libraries: pip install 'fewstep[diffusers]'") from None
    kind = getattr(diffusers, index["_class_name"])
    parameters = inspect.signature(kind.__init__).parameters
    parts: dict[str, Any] = {}
    named = components(index)
    if variant is not None:
        there = {one for name in named if (path / name).is_dir() for one in variants(_files(path / name)) if one}
        if variant not in there:
            known = f"; there are {', '.join(sorted(there))}" if there else ""
            raise ValueError(
                f"{path} has no weights of the variant {variant!r}{known}: leave variant out for the usual"
            )
    with quiet():
        for name, parameter in list(parameters.items())[1:]:
            entry = index.get(name)
            if name in named:
                parts[name] = _part(path, name, *named[name], dtype or torch.float32, variant)
            elif isinstance(entry, list) or (name in LEFT_OUT and parameter.default is inspect.Parameter.empty):
                parts[name] = None  # empty on purpose, or not needed here
            elif entry is not None:
                parts[name] = entry  # a setting
            elif parameter.default is inspect.Parameter.empty:
                raise ValueError(f"{path / INDEX} names no {name}, which a {kind.__name__} needs")
        if "add_watermarker" in parameters:
            parts["add_watermarker"] = False
        if "requires_safety_checker" in parameters:
            parts["requires_safety_checker"] = False
        empty = [name for name, part in parts.items() if part is None and name not in LEFT_OUT]
        optional = kind._optional_components
        if missing := [name for name in empty if name not in optional and not name.endswith("_3")]:
            raise ValueError(f"{path}: the pipeline has no {missing[0]}, which a {kind.__name__} needs")
        pipeline = kind(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _files(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


def _part(path: Path, name: str, library: str, kind: str, dtype: torch.dtype, variant: str | None) -> Any:
    """One component: a network with its weights, a scheduler or a tokenizer."""
    if library not in ("diffusers", "transformers", PLANS):
        raise ValueError(f"{path}: the component {name} is code of its own ({library!r}), which is never run")
    folder = path / name
    if not folder.is_dir():
        raise ValueError(f"{path} has no component {name}: the folder {name}/ is missing")
    made = getattr(importlib.import_module(library), kind, None)
    if made is None:
        raise ValueError(f"{path}: {library} has no {kind}, which the component {name} is")
    try:
        if name == "vae" and overflows(made.load_config(str(folder), local_files_only=True), dtype):
            dtype = torch.float32
        if not issubclass(made, torch.nn.Module):
            return made.from_pretrained(str(folder), local_files_only=True)
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} has no config.json")
        network, report = made.from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=True,
            variant=chosen_variant(folder, _files(folder), variant),
            output_loading_info=True,
            **({"torch_dtype": dtype} if library == "diffusers" else {"dtype": dtype}),
            **({"low_cpu_mem_usage": False} if library == "diffusers" else {}),
        )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        if isinstance(error, ValueError) and str(error).startswith(str(path)):
            raise
        raise ValueError(f"{folder} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    for what, trouble in (("lack", "missing_keys"), ("have another shape for", "mismatched_keys")):
        if keys := list(report.get(trouble) or ()):
            raise ValueError(
                f"{folder}: the weights do not fit the configuration: they {what} {keys[0]}"
                + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")
            )
    return network.eval()
