"""Checkpoints of a training run: whole or absent, tensors as safetensors, the rest as JSON.

A run's folder holds `checkpoints/step-00001000/` with `state.safetensors` and `state.json`. A checkpoint is written
under another name, flushed to disk, and renamed; then all but the newest two are removed. Whenever a run dies, the
newest folder of that name is complete.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn
from torch.optim import Optimizer

FORMAT = "fewstep-training-1"
FOLDER, TENSORS, FACTS = "checkpoints", "state.safetensors", "state.json"
KEPT = 2


def checkpoints(out: Path) -> list[Path]:
    """The run's checkpoints, oldest first."""
    named = re.compile(r"step-\d{8,}")
    found = [path for path in (out / FOLDER).glob("step-*") if path.is_dir() and named.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name[5:]))


def save_checkpoint(out: Path, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Path:
    """Writes the checkpoint of a step and removes the third newest. An interrupted write leaves no trace of the step.

    `facts` is JSON. Raises OSError when writing fails; the older checkpoints are then untouched.
    """
    path = out / FOLDER / f"step-{step:08}"
    if path.exists():  # a resumed run with nothing left to do
        return path
    temporary = path.with_name(f".{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        _write(temporary / TENSORS, dump_tensors(content))
        _write(temporary / FACTS, json.dumps({"format": FORMAT, "step": step, **facts}, indent=1).encode())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for old in checkpoints(out)[:-KEPT]:
        shutil.rmtree(old)
    return path


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the facts of a checkpoint. Raises ValueError for one that is damaged or of another format."""
    try:
        facts = json.loads((path / FACTS).read_text("utf-8"))
        tensors = load_tensors((path / TENSORS).read_bytes())
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"the checkpoint {path} is damaged ({error}): remove its folder to go on from the one before"
        ) from None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise ValueError(f"{path} is no training checkpoint of this version (its format is not {FORMAT!r})")
    return tensors, facts


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose name starts with the prefix and a dot, without them."""
    return {name[len(prefix) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(prefix + ".")}


def optimizer_tensors(network: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as flat tensors, "weight/exp_avg" for parameter "weight"."""
    return {
        f"{name}/{key}": value
        for name, parameter in network.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def restore_optimizer(network: nn.Module, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Loads a state from `optimizer_tensors` into the optimiser."""
    parameters = dict(network.named_parameters())
    for full, value in tensors.items():
        name, _, key = full.rpartition("/")
        parameter = parameters[name]
        optimizer.state[parameter][key] = value.to(parameter.device, copy=True)


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened to be flushed
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
