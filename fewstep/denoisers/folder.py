"""A model as a folder: config.json, model.safetensors, a card, and the plan that samples it best.

Nothing is ever unpickled. A folder is written beside its final place and renamed, so it is whole or absent.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors

from fewstep.core.condition import condition_from_config
from fewstep.core.methods import find, methods
from fewstep.core.plan import Plan
from fewstep.core.process import process_from_config
from fewstep.denoisers.network import NetworkDenoiser

FORMAT = "fewstep-model-1"
CONFIG, WEIGHTS, CARD, PLAN = "config.json", "model.safetensors", "README.md", "plan.json"


def claim_folder(folder: str | os.PathLike[str]) -> Path:
    """A folder to write into: absent or empty, and writable. `ValueError` otherwise."""
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; name a folder that does not exist yet")
    if path.is_dir() and any(path.iterdir()):
        raise ValueError(f"the folder {path} is not empty: choose another, or remove it first")
    parent = path.resolve().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise ValueError(f"cannot write to {path}: {parent} is not a folder")
    if not os.access(path if path.is_dir() else parent, os.W_OK):
        raise ValueError(f"cannot write to {path}: no permission in {path if path.is_dir() else parent}")
    return path


def save_model(
    model: NetworkDenoiser,
    folder: str | os.PathLike[str],
    card: str = "",
    plan: Plan | None = None,
    stored: torch.dtype | None = None,
) -> Path:
    """Write a model as a folder that `load_model` reads; the folder must be absent or empty.

    stored: the dtype of the weights in the file, such as `torch.float16` for half the size; they load in the network's
    own dtype, by default also that of the file.

    Raises:
        ValueError: a folder with something in it, one that cannot be written, a denoiser without a network of ours.
    """
    if not isinstance(model, NetworkDenoiser) or not hasattr(model.network, "config"):
        raise ValueError(f"only a network denoiser can be saved, got {type(model).__name__}")
    path = claim_folder(folder)
    weights = dump_tensors(
        {key: value.detach().to("cpu", stored).contiguous() for key, value in model.network.state_dict().items()}
    )
    config = {
        "format": FORMAT,
        "network": model.network.config(),  # type: ignore[operator]
        "process": model.process.config(),
        "predicts": model.predicts,
        "precondition": model.precondition,
        "data_std": model.data_std,
        "shape": model.shape,
        "value_range": model.value_range,
        "data": model.data,
        "conditions": {name: kind.config() for name, kind in model.conditions.items()},
        "dtype": str(model.dtype).removeprefix("torch."),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    if type(model) is not NetworkDenoiser:  # another denoiser of this room, made of the same parts
        config["denoiser"] = next(card.name for card in methods("denoiser") if card.use == type(model).__name__)
    if further := model.further():
        config["further"] = further
    config["config_sha256"] = _fingerprint(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        (temporary / WEIGHTS).write_bytes(weights)
        (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        if card:
            (temporary / CARD).write_text(card, "utf-8")
        if plan is not None:
            plan.save(temporary / PLAN)
        temporary.chmod(0o755)
        if path.is_dir():
            path.rmdir()
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return path


def _fingerprint(config: dict[str, Any]) -> str:
    """Checksum of a configuration, but for the checksum itself."""
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
        config = json.loads((path / CONFIG).read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path / CONFIG} is not JSON: {error}") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        given = config.get("format") if isinstance(config, dict) else None
        raise ValueError(f"{path / CONFIG} is not a fewstep model: format {given!r}, expected {FORMAT!r}")
    if config.get("config_sha256") != _fingerprint(config):
        raise ValueError(f"{path / CONFIG} was changed by hand or damaged: it does not have the checksum it states")
    return config


def load_model(folder: str | os.PathLike[str]) -> NetworkDenoiser:
    """Read a model folder, in evaluation mode. `model.plan` is its plan, or None.

    Raises:
        ValueError: a missing, truncated or changed file, a pickle where safetensors belong, weights of another network.
    """
    path = Path(folder)
    config = _read_config(path)
    weights = (path / WEIGHTS).read_bytes()
    # safetensors begins with the length of its header, whose first byte may be a pickle's; the header begins with "{".
    if weights[8:9] != b"{" and (weights[:2] == b"PK" or weights[:1] == b"\x80"):
        raise ValueError(
            f"{path / WEIGHTS} is a pickle, not safetensors: it is not loaded, because a pickle can run code"
        )
    if hashlib.sha256(weights).hexdigest() != config.get("weights_sha256"):
        raise ValueError(f"{path / WEIGHTS} is truncated or changed: its checksum is not the one in {CONFIG}")
    try:
        tensors = load_tensors(weights)
        network_config = dict(config["network"])
        network = find(network_config.pop("network"), "network")(**network_config)
        network.to(getattr(torch, config["dtype"])).load_state_dict(tensors)
        made = find(config.get("denoiser", "network"), "denoiser")
        model = made(
            network,
            process_from_config(config["process"]),
            predicts=config["predicts"],
            shape=config["shape"],
            conditions={name: condition_from_config(kind) for name, kind in config["conditions"].items()},
            precondition=config["precondition"],
            data_std=config["data_std"],
            value_range=tuple(config["value_range"]) if config["value_range"] else None,
            data=config.get("data"),
            **config.get("further", {}),
        )
    except SafetensorError as error:
        raise ValueError(f"{path / WEIGHTS} is not safetensors: {error}") from None
    except KeyError as error:
        raise ValueError(f"{path / CONFIG} has no {error}") from None
    except ValueError as error:
        raise ValueError(f"{path / CONFIG}: {error}") from None
    except (TypeError, RuntimeError, AttributeError) as error:
        raise ValueError(f"{path}: the weights or the configuration do not fit the network: {error}") from None
    model.plan = Plan.load(path / PLAN) if (path / PLAN).is_file() else None
    return model.eval()
