"""Files of low-rank adapters on a pipeline, in the formats of diffusers, PEFT and kohya."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fewstep.core.files import write
from fewstep.hub.checkpoints import read_weights
from fewstep.hub.components import families, unsupported
from fewstep.networks.low_rank import Factors
from fewstep.training.adapter_files import Made, made_by

DESCRIBED = "adapter_config.json"  # beside the weights that PEFT saves
SAID = "fewstep"  # the key of a file's header under which fewstep says what student the adapter makes
USUAL = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
_KEY = re.compile(r"(?P<path>.+)\.lora_(?P<side>[AB])\.weight")


def add_adapters(pipeline: Any, adapters: Mapping[str | os.PathLike[str], float]) -> dict[str, Made]:
    """Put the adapters of files, or of folders with one, on a pipeline's networks; each acts at its weight times the
    strength with which it was trained, all of them added up. Returns what those make of the network that act and make
    a student of it.

    Raises:
        ImportError: without peft.
        ValueError: no such file, a pickle, something that is no adapter, one for another network, a weight that is not
            finite. Nothing is put on any network then.
    """
    try:
        import peft
    except ImportError:
        raise ImportError("low-rank adapters need peft: pip install 'fewstep[finetune]'") from None
    found: list[tuple[str, float, nn.Module, dict[str, Tensor], dict[str, float]]] = []
    networks = adapter_networks(pipeline)
    taken = {name for part in networks.values() for name in getattr(part, "peft_config", None) or ()}
    students: dict[str, Made] = {}
    for given, weight in adapters.items():
        check_weight(given, weight)
        file = _file(Path(given))
        name = next(free for n in range(len(taken) + 1) if (free := f"lora_{n}") not in taken)
        taken.add(name)
        tensors, alphas = _read(pipeline, file)
        if (made := _made(file)) is not None and weight:
            students[str(given)] = made
        if lost := sorted({key.partition(".")[0] for key in tensors} - set(networks)):
            raise ValueError(f"{file} is an adapter for another pipeline: this one has no {lost[0]}")
        for component, network in networks.items():
            if own := _of(component, tensors):
                scales = _of(component, alphas)
                if not any(path in dict(network.named_modules()) for path in _paths(own)):
                    # In CLIP's text encoder, which has lost a module around its layers with a version of transformers.
                    own, scales = _bare(own), _bare(scales)
                _check(file, component, network, own)
                found.append((name, float(weight), network, own, scales))
    for name, weight, network, tensors, alphas in found:
        _inject(peft, name, weight, network, tensors, alphas)
    return students


def check_weight(given: object, weight: object) -> float:
    """An adapter's weight; `ValueError` unless it is a finite number."""
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not abs(weight) < float("inf"):
        raise ValueError(f"the weight of an adapter must be a finite number, got {weight!r} for {given}")
    return float(weight)


def _made(file: Path) -> Made | None:
    """What a file that `write_adapter` wrote says of the student in it."""
    with safe_open(file, "pt") as opened:
        return Made.of(json.loads((opened.metadata() or {}).get(SAID, "{}")))


def read_factors(pipeline: Any, file: str | os.PathLike[str]) -> dict[str, Factors]:
    """The two sides of a file's adapter, and its scale, by layer of the pipeline's network, for `low_rank.adapted`.

    Raises:
        ValueError: as `add_adapters`; an adapter that is also for a text encoder, whose prompts are everybody's.
    """
    component, network = next(iter(adapter_networks(pipeline).items()))
    path = _file(Path(file))
    tensors, alphas = _read(pipeline, path)
    if other := sorted({key.partition(".")[0] for key in tensors} - {component}):
        raise ValueError(
            f"{path} is an adapter for the {other[0]} as well, which requests share: load it with the model"
        )
    own, scales = _of(component, tensors), _of(component, alphas)
    _check(path, component, network, own)
    found: dict[str, Factors] = {}
    for layer in _paths(own):
        down, up = (own[f"{layer}.lora_{side}.weight"] for side in "AB")
        found[layer] = down, up, scales.get(layer, len(down)) / len(down)
    return found


def write_adapter(model: Any, folder: str | os.PathLike[str]) -> Path:
    """Write the adapter on the network of a `PipelineDenoiser` into a folder, as diffusers' `load_lora_weights` and
    `add_adapters` take it; one adapter of the alpha that is its rank. What student it makes is said in its header."""
    component = next(iter(adapter_networks(model.pipeline)))
    tensors = {
        f"{component}.{path}.lora_{side}.weight": getattr(layer, f"lora_{side}")[name]
        .weight.detach()
        .cpu()
        .contiguous()
        for path, layer in model.network.named_modules()
        if hasattr(layer, "lora_A")
        for name in layer.lora_A
        for side in "AB"
    }
    said = {SAID: json.dumps(about)} if (about := made_by(model)) else {}
    return write(Path(folder) / USUAL[0], save(tensors, {"format": "pt"} | said))


def adapter_networks(pipeline: Any) -> dict[str, nn.Module]:
    """The networks that adapters may be for, by component; the pipeline's own network first."""
    kind = type(pipeline).__name__
    if kind not in families():
        raise unsupported(kind)
    own = families()[kind].load().component
    names = (own, *sorted(name for name in pipeline.components if name.startswith("text_encoder")))
    return {name: part for name in names if isinstance(part := getattr(pipeline, name), nn.Module)}


def _file(path: Path) -> Path:
    """The adapter's file: itself, or the one in a folder."""
    if not path.is_dir():
        return path
    if not (files := sorted(path.glob("*.safetensors"))) and (path / "model").is_dir():  # a run's folder
        return _file(path / "model")
    named = [file for file in files if file.name in USUAL]
    if len(named) == 1 or len(files) == 1:
        return (named or files)[0]
    there = f"several: {', '.join(file.name for file in files[:4])}" if files else "none"
    raise ValueError(f"the folder {path} should hold one adapter in safetensors, and has {there}")


def _read(pipeline: Any, file: Path) -> tuple[dict[str, Tensor], dict[str, float]]:
    """An adapter's tensors in PEFT's names, `component.path.lora_A.weight`, and the alphas that it states, by path."""
    raw = read_weights(file)
    described = file.with_name(DESCRIBED)
    if described.is_file() and all(key.startswith("base_model.model.") for key in raw):
        return _of_peft(pipeline, file, raw, json.loads(described.read_text("utf-8")))
    component = next(iter(adapter_networks(pipeline)))
    told: dict[str, Any] = {}
    alphas: Mapping[str, Any] | None = None
    state: dict[str, Tensor] = raw
    if hasattr(pipeline, "lora_state_dict"):
        options = {"unet_config": pipeline.unet.config} if component == "unet" else {}
        options |= {"return_alphas": True} if type(pipeline).__name__.startswith("Flux") else {}
        try:
            state, *rest = pipeline.lora_state_dict(dict(raw), return_lora_metadata=True, **options)
        except (ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
            raise ValueError(f"{file} is no adapter that is known here: {' '.join(str(error).split())[:200]}") from None
        alphas = rest[0] if len(rest) > 1 else None
    with safe_open(file, "pt") as opened:
        told = json.loads((opened.metadata() or {}).get("lora_adapter_metadata", "{}"))
    tensors = _renamed(file, state)
    found = {_name(key).removesuffix(".alpha").split(".lora_")[0]: float(v) for key, v in (alphas or {}).items()}
    if not alphas:
        for path in _paths(tensors):
            part = path.partition(".")[0]
            alpha = told.get(f"{part}.lora_alpha")
            pattern = told.get(f"{part}.alpha_pattern") or {}
            own = next((v for k, v in pattern.items() if re.fullmatch(rf"(.*\.)?({k})", path)), alpha)
            if own is not None:
                found[path] = float(own)
    return tensors, found


def _of_peft(
    pipeline: Any, file: Path, raw: Mapping[str, Tensor], about: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """What PEFT saved: of the first network that has all of its layers."""
    tensors = {key.removeprefix("base_model.model."): value for key, value in raw.items()}
    parts = {name: dict(part.named_modules()) for name, part in adapter_networks(pipeline).items()}
    fitting = [name for name, modules in parts.items() if all(path in modules for path in _paths(tensors))]
    component = next(iter(fitting or parts))
    for path in _paths(tensors) if about.get("r") and not about.get("rank_pattern") else ():
        if (has := len(tensors[f"{path}.lora_A.weight"])) != about["r"]:
            raise ValueError(f"{file} says that it is of rank {about['r']}, and {path} is of {has}")
    pattern = about.get("alpha_pattern") or {}
    alphas = {
        f"{component}.{path}": float(
            next((v for k, v in pattern.items() if re.fullmatch(rf"(.*\.)?({k})", path)), about.get("lora_alpha", 1))
        )
        for path in _paths(tensors)
    }
    if about.get("use_rslora"):
        ranks = {path: len(tensors[f"{path}.lora_A.weight"]) for path in _paths(tensors)}
        alphas = {f"{component}.{path}": alphas[f"{component}.{path}"] * rank**0.5 for path, rank in ranks.items()}
    return {f"{component}.{key}": value for key, value in tensors.items()}, alphas


def _renamed(file: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in PEFT's names, whatever diffusers called them."""
    tensors = {_name(key): value for key, value in state.items()}
    if strange := [key for key in tensors if not _KEY.fullmatch(key)]:
        raise ValueError(f"{file} is no low-rank adapter that is known here: it has {strange[0]}")
    if not tensors:
        raise ValueError(f"{file} holds no adapter of this pipeline's networks")
    return tensors


def _name(key: str) -> str:
    """One of the names that diffusers has had for a side of an adapter (`to_q.lora.down`, `processor.to_q_lora.down`,
    `q_proj.lora_linear_layer.down`) as PEFT's, `to_q.lora_A`."""
    key = re.sub(r"[._]lora(_linear_layer)?\.down\.weight", ".lora_A.weight", key.replace(".processor.", "."))
    key = re.sub(r"[._]lora(_linear_layer)?\.up\.weight", ".lora_B.weight", key)
    if key.startswith("text_encoder"):
        return re.sub(r"\.to_(q|k|v|out)\.lora_", r".\1_proj.lora_", key)
    return key.replace(".to_out.lora_", ".to_out.0.lora_")


def _paths(tensors: Mapping[str, Tensor]) -> list[str]:
    return [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")]


def _of(component: str, named: Mapping[str, Any]) -> dict[str, Any]:
    """What is one component's, without its name."""
    begin = f"{component}."
    return {key.removeprefix(begin): value for key, value in named.items() if key.startswith(begin)}


def _bare(named: Mapping[str, Any]) -> dict[str, Any]:
    return {key.removeprefix("text_model."): value for key, value in named.items()}


def _check(file: Path, component: str, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """`ValueError` unless the tensors fit the network's layers."""
    modules = dict(network.named_modules())
    if lost := [path for path in _paths(tensors) if path not in modules]:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise ValueError(f"{file} is an adapter for another network: the {component} has no layer {lost[0]}{more}")
    for path in _paths(tensors):
        layer: Any = modules[path]
        layer = getattr(layer, "base_layer", layer)
        down, up = (tensors.get(f"{path}.lora_{side}.weight") for side in "AB")
        shape = tuple(getattr(layer, "weight", torch.empty(0)).shape)
        if (
            down is None
            or up is None
            or (up.shape[0], *down.shape[1:])[: len(shape)] != shape
            or len(down) != up.shape[1]
        ):
            got = " and ".join(str(tuple(one.shape)) for one in (down, up) if one is not None)
            raise ValueError(f"{file} does not fit the {component}: {path} is {shape}, the adapter's sides are {got}")


def _inject(
    peft: Any, name: str, weight: float, network: Any, tensors: dict[str, Tensor], alphas: Mapping[str, float]
) -> None:
    paths = _paths(tensors)
    ranks = {path: len(tensors[f"{path}.lora_A.weight"]) for path in paths}
    config = peft.LoraConfig(
        r=max(ranks.values()),
        target_modules="|".join(re.escape(path) for path in paths),
        rank_pattern={f"^{re.escape(path)}": rank for path, rank in ranks.items()},
        init_lora_weights=False,
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are intended
        peft.inject_adapter_in_model(config, network, adapter_name=name)
    modules = dict(network.named_modules())
    with torch.no_grad():
        for path in paths:
            layer: Any = modules[path]
            for side in "AB":
                getattr(layer, f"lora_{side}")[name].weight.copy_(tensors[f"{path}.lora_{side}.weight"])
            layer.scaling[name] = weight * alphas.get(path, ranks[path]) / ranks[path]
    for layer in modules.values():
        if hasattr(layer, "lora_A"):
            layer.set_adapter(list(layer.lora_A))  # type: ignore[operator]
    network._hf_peft_config_loaded = True  # by which diffusers knows that there are adapters
    network.requires_grad_(False)
