"""A model as a folder: config.json, model.safetensors, a card, and the plan that samples it best.

config.json holds the tree of the model and its parts (`fewstep.core.config`), model.safetensors their tensors.
Nothing is ever unpickled. A folder is written beside its final place and renamed, so it is either whole or absent.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from fewstep.core.config import built, config, load, owners
from fewstep.core.denoiser import Denoiser
from fewstep.core.files import new_folder, read_text, write
from fewstep.core.plan import Plan
from fewstep.denoisers.calibration import Calibration
from fewstep.denoisers.experts import Experts
from fewstep.denoisers.restorer import Restorer

FORMAT, FORMERLY = "fewstep-model-2", "fewstep-model-1"
CONFIG, WEIGHTS, CARD, PLAN = "config.json", "model.safetensors", "README.md", "plan.json"
CALIBRATION = "calibration.safetensors"
PARTS = "parts"  # where parts that are folders lie, by their paths in the tree: diffusers' pipelines
EMBEDDED = Path(__file__).resolve().parents[1] / "models"  # the folders of those in the package
EXPERTS, EXPERTS_FORMAT = "experts.json", "fewstep-experts-1"  # a folder with a model folder for each expert


def embedded() -> list[str]:
    """Names of the models in the package."""
    return sorted(path.name for path in EMBEDDED.iterdir() if (path / CONFIG).is_file())


def save_model(
    model: Denoiser | Restorer,
    folder: str | os.PathLike[str],
    card: str = "",
    plan: Plan | None = None,
    stored: torch.dtype | None = None,
) -> Path:
    """Write a model as a folder that `load_model` reads; the folder must be absent or empty.

    stored: the dtype of the weights in the file, such as `torch.float16` for half the size; they load in the model's
    own dtype, by default also that of the file.

    Raises:
        ValueError: a folder that is not empty or cannot be written; a model with a part that is not one of fewstep's
            own methods.
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile has wrapped
    beside: dict[str, Any] = {}
    about: dict[str, Any] = {"format": FORMAT, "model": config(model, beside)}
    folders = {name: part for name, part in beside.items() if not isinstance(part, Tensor)}
    own = {name.replace("_orig_mod.", ""): tensor for name, tensor in model.state_dict().items()}
    state = {name: tensor for name, tensor in own.items() if not name.startswith(owners(folders))}
    state |= {name: part for name, part in beside.items() if name not in folders}
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    if stored is not None:
        about["dtype"] = str(dtype).removeprefix("torch.")
    weights = dump_tensors(_apart(state, dtype, stored))
    about["weights_sha256"] = hashlib.sha256(weights).hexdigest()
    about["config_sha256"] = _fingerprint(about)
    with new_folder(folder) as fresh:
        write(fresh / WEIGHTS, weights)
        write(fresh / CONFIG, json.dumps(about, indent=2) + "\n")
        for name, part in folders.items():
            part.save_pretrained(fresh / PARTS / name, safe_serialization=True)
        if card:
            write(fresh / CARD, card)
        if plan is not None:
            plan.save(fresh / PLAN)
        if (calibration := getattr(model, "calibration", None)) is not None:
            calibration.save(fresh / CALIBRATION)
    return Path(folder)


def _apart(state: Mapping[str, Tensor], own: torch.dtype, stored: torch.dtype | None) -> dict[str, Tensor]:
    """The tensors as a file needs them: on the CPU, none of them a view of another's memory."""
    made: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in state.items():
        tensor = tensor.detach().to("cpu", stored if tensor.dtype == own else None).contiguous()
        memory = tensor.untyped_storage().data_ptr()
        made[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return made


def _fingerprint(config: dict[str, Any]) -> str:
    """Checksum of a configuration without the checksum itself."""
    rest = {key: value for key, value in config.items() if key != "config_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise ValueError(f"{path} is not a model folder")
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            pickles = sorted(p.name for p in path.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"))
            extra = f"; {pickles[0]} is a pickle, which is never loaded: convert it to safetensors" if pickles else ""
            raise ValueError(f"the model folder {path} has no {name}{extra}")
    try:
        config = json.loads(read_text(path / CONFIG))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path / CONFIG} is not JSON: {error}") from None
    if not isinstance(config, dict) or config.get("format") not in (FORMAT, FORMERLY):
        given = config.get("format") if isinstance(config, dict) else None
        raise ValueError(f"{path / CONFIG} is not a fewstep model: format {given!r}, expected {FORMAT!r}")
    if config.get("config_sha256") != _fingerprint(config):
        raise ValueError(f"{path / CONFIG} was changed by hand or damaged: it does not have the checksum it states")
    return config


def load_model(folder: str | os.PathLike[str]) -> Any:
    """Read a model folder, in evaluation mode: the denoiser. `model.plan` is its plan, or None.

    Folders in former formats load as before.

    Raises:
        ValueError: a missing, truncated or changed file, a pickle where safetensors belong, weights of another network.
    """
    path = Path(folder)
    if (path / EXPERTS).is_file() and not (path / CONFIG).is_file():
        return _load_experts(path)
    about = _read_config(path)
    weights = (path / WEIGHTS).read_bytes()
    # safetensors begins with the length of its header, whose first byte may be a pickle's; the header begins with "{".
    if weights[8:9] != b"{" and (weights[:2] == b"PK" or weights[:1] == b"\x80"):
        raise ValueError(
            f"{path / WEIGHTS} is a pickle, not safetensors: it is not loaded, because a pickle can run code"
        )
    if hashlib.sha256(weights).hexdigest() != about.get("weights_sha256"):
        raise ValueError(f"{path / WEIGHTS} is truncated or changed: its checksum is not the one in {CONFIG}")
    try:
        parts = {part.name: part for part in (path / PARTS).iterdir()} if (path / PARTS).is_dir() else {}
        model = _model(about, load_tensors(weights), parts)
    except SafetensorError as error:
        raise ValueError(f"{path / WEIGHTS} is not safetensors: {error}") from None
    except KeyError as error:
        raise ValueError(f"{path / CONFIG} has no {error}") from None
    except ValueError as error:
        raise ValueError(f"{path / CONFIG}: {error}") from None
    except (TypeError, RuntimeError, AttributeError) as error:
        raise ValueError(f"{path}: the weights or the configuration do not fit the network: {error}") from None
    model.plan = Plan.load(path / PLAN) if (path / PLAN).is_file() else None
    if (path / CALIBRATION).is_file():
        model.calibration = Calibration.load(path / CALIBRATION)
    return model.eval()


def _model(about: Mapping[str, Any], tensors: Mapping[str, Tensor], parts: Mapping[str, Path]) -> Denoiser:
    dtype = getattr(torch, about["dtype"]) if "dtype" in about else None
    if about["format"] == FORMERLY:
        model = built(_tree(about))
        load(model.network, {name: tensor.to(dtype) for name, tensor in tensors.items()})
        return model
    if dtype is not None:  # the file holds them in another dtype
        tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
    return built(about["model"], {**tensors, **parts})


def _tree(about: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of a folder of the former format, which held a network denoiser."""

    def named(kind: str, key: str, given: Mapping[str, Any]) -> dict[str, Any]:
        own = dict(given)
        return {"kind": kind, "name": own.pop(key)} | own

    tree = {"kind": "denoiser", "name": about.get("denoiser", "network")}
    tree |= {"network": named("network", "network", about["network"])}
    tree |= {"process": named("process", "process", about["process"])}
    tree |= {"conditions": {name: named("condition", "kind", own) for name, own in about["conditions"].items()}}
    plain = ("predicts", "shape", "precondition", "data_std", "value_range")
    tree |= {name: about[name] for name in plain} | {"data": about.get("data")}
    further = dict(about.get("further", {}))
    if "coordinates" in further:
        further["coordinates"] = named("coordinates", "coordinates", further["coordinates"])
    return tree | further


def _load_experts(path: Path) -> Experts:
    """Experts in the former format, each in a folder of its own."""
    try:
        about = json.loads((path / EXPERTS).read_text("utf-8"))
        if about["format"] != EXPERTS_FORMAT:
            raise ValueError(f"format {about['format']!r}, expected {EXPERTS_FORMAT!r}")
        count, cuts = int(about["experts"]), [float(cut) for cut in about["cuts"]]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path / EXPERTS} is not a list of experts: {error}") from None
    return Experts([load_model(path / f"expert-{number}") for number in range(count)], cuts).eval()
