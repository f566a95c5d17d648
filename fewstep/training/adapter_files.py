"""Files of low-rank adapters for fewstep's own networks: safetensors, with what they are for as JSON in the header."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.files import write
from fewstep.core.plan import Plan
from fewstep.core.student import Student
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.low_rank import Factors
from fewstep.training.lora import (
    ADAPTER,
    adapted_layers,
    adapted_or_error,
    add_lora,
    nodes_of,
    set_scale,
    timed,
)

FORMAT = "fewstep-lora-1"
STUDENTS = "adapter.safetensors"  # in the folder of a student that was trained as one


def save_lora(model: NetworkDenoiser, path: str | os.PathLike[str]) -> Path:
    """Writes only the adapters: one safetensors file, with their description as JSON in the header, and what student
    they make of the network where the model is one.

    Raises:
        ValueError: a model with no adapter, or with several of which none depends on the time.
    """
    found = adapted_or_error(model)
    one, nodes = next(iter(found.values())), nodes_of(model)
    if nodes is None and list(one.lora_A) != [ADAPTER]:
        raise ValueError(f"one adapter a file: this model has {list(one.lora_A)}")
    tensors = {name: weight.detach().cpu().contiguous() for name, weight in _tensors(found).items()}
    about = {
        "format": FORMAT,
        "network": _network(model),
        "layers": list(found),
        "rank": next(iter(one.r.values())),
        "alpha": next(iter(one.lora_alpha.values())),
        "nodes": nodes,
    }
    about |= made_by(model)
    return write(Path(path), dump_tensors(tensors, metadata={"fewstep": json.dumps(about)}))


def _tensors(found: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of adapters by layer, adapter and side."""
    return {
        f"{path}.{name}.{side}": getattr(layer, f"lora_{side}")[name].weight
        for path, layer in found.items()
        for name in layer.lora_A
        for side in "AB"
    }


def _network(model: NetworkDenoiser) -> dict[str, Any]:
    config = getattr(model.network, "config", None)
    if config is None:
        raise ValueError("only adapters of a network of ours can be saved: this one has no config()")
    return json.loads(json.dumps(config()))


def load_lora(model: NetworkDenoiser, path: str | os.PathLike[str], scale: float = 1.0) -> NetworkDenoiser:
    """A copy of the model with the adapter of a file, at `scale` times its trained strength.

    path: the file, or the folder of a student that was trained as an adapter. Then the copy is that student, and has
    its plan.

    Raises:
        ValueError: a file that is not an adapter, or one for another network (the message says how they differ).
    """
    path = adapter_file(path)
    tensors, names, rank, alpha, nodes, found = _read(model, path)
    if nodes is not None and scale != 1.0:
        raise ValueError(f"adapters that depend on the time act at scale 1, got {scale}")
    made = add_lora(model, rank, names, alpha) if nodes is None else timed(model, nodes, rank, names, alpha)
    wanted = _tensors(adapted_layers(made))
    if wrong := sorted(
        key
        for key in wanted.keys() | tensors.keys()
        if key not in wanted or key not in tensors or wanted[key].shape != tensors[key].shape
    ):
        raise ValueError(f"{path} does not fit its own description: {wrong[0]} is missing, unknown or of another shape")
    with torch.no_grad():
        for key, weight in wanted.items():
            weight.copy_(tensors[key])
    if scale != 1.0:
        set_scale(made, scale)
    if found is not None:
        made.student, made.plan = found.student, found.plan
    return made


def adapter_file(path: str | os.PathLike[str]) -> Path:
    """An adapter's file: itself, or the one in a folder of a model or a run. `ValueError` for a folder without one."""
    given = Path(path)
    if not given.is_dir():
        return given
    for found in (given / STUDENTS, given / "model" / STUDENTS):
        if found.is_file():
            return found
    raise ValueError(f"the folder {given} holds no adapter ({STUDENTS})")


@dataclass(frozen=True)
class Made:
    """What an adapter makes of the network that it is for: a student, and the plan that samples it, or None."""

    student: Student
    plan: Plan | None = None

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> Made | None:
        """What a file says (`made_by`); None where it says nothing."""
        if "student" not in about:
            return None
        plan = Plan.from_json(json.dumps(about["plan"])) if "plan" in about else None
        return cls(Student.from_config(about["student"]), plan)


def made_by(model: Denoiser) -> dict[str, Any]:
    """What a file says of the student that its adapter makes, as JSON: `student` and `plan`, where there are some."""
    if model.student is None:
        return {}
    plan = json.loads(model.plan.to_json()) if isinstance(model.plan, Plan) else None
    return {"student": model.student.config()} | ({} if plan is None else {"plan": plan})


class _Read(NamedTuple):
    """What is in a file."""

    tensors: dict[str, Tensor]
    layers: list[str]
    rank: int
    alpha: float
    nodes: list[float] | None
    made: Made | None


def _read(model: NetworkDenoiser, path: str | os.PathLike[str]) -> _Read:
    """A file's contents; `ValueError` as `load_lora`."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read the adapter {path}: {error.strerror}") from None
    try:
        tensors, header = load_tensors(data), json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        about = json.loads(header["__metadata__"]["fewstep"])
        if about["format"] != FORMAT:
            raise KeyError("format")
        network, names, rank, alpha, nodes = (about[key] for key in ("network", "layers", "rank", "alpha", "nodes"))
        made = Made.of(about)
    except (SafetensorError, ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is no fewstep adapter (safetensors with a {FORMAT!r} header)") from None
    own = _network(model)
    if wrong := sorted(key for key in own.keys() | network.keys() if own.get(key) != network.get(key)):
        differ = ", ".join(f"{key} {network.get(key)!r}, not {own.get(key)!r}" for key in wrong)
        raise ValueError(f"{path} is an adapter for another network: it has {differ}")
    for key, side in tensors.items():
        has = side.shape[0 if key.endswith(".A") else 1] if side.ndim > 1 else None
        if has != rank:
            raise ValueError(f"{path} says that it is of rank {rank}, and {key} is of {has}")
    return _Read(tensors, names, rank, alpha, nodes, made)


def read_factors(model: NetworkDenoiser, path: str | os.PathLike[str]) -> dict[str, Factors]:
    """The two sides of a file's adapter, and its scale, by layer of `model.network`, for `low_rank.adapted`.

    Raises:
        ValueError: as `load_lora`; an adapter that depends on the time.
    """
    return read_made(model, path)[0]


def read_made(model: NetworkDenoiser, path: str | os.PathLike[str]) -> tuple[dict[str, Factors], Made | None]:
    """The same, and what the adapter makes of the network where that is a student."""
    tensors, names, rank, alpha, nodes, made = _read(model, path)
    if nodes is not None:
        raise ValueError(f"{path} depends on the time: load it with load_lora")
    try:
        sides = {name: [tensors[f"{name}.{ADAPTER}.{side}"] for side in "AB"] for name in names}
    except KeyError as error:
        raise ValueError(f"{path} does not fit its own description: {error.args[0]} is missing") from None
    return {name: (down, up, alpha / rank) for name, (down, up) in sides.items()}, made
