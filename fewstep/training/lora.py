"""Low-rank adapters: a network stays as it is, and each of its layers gains a trained product of two thin matrices."""

from __future__ import annotations

import copy
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.core.files import write
from fewstep.core.methods import Method
from fewstep.core.prediction import expand
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.low_rank import Factors

METHODS = (
    Method(
        "lora",
        kind="adapter",
        paper="LoRA: Low-Rank Adaptation of Large Language Models (Hu et al., 2021)",
        arxiv="2106.09685",
        claim="trains two thin matrices per layer through PEFT; merges into a plain network",
        use="add_lora",
    ),
)

FORMAT = "fewstep-lora-1"
ADAPTER = "default"


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise ImportError("low-rank adapters need peft: pip install 'fewstep[finetune]'") from None
    return peft


def layers(model: NetworkDenoiser, targets: Sequence[str] | None = None) -> list[str]:
    """The paths in `model.network` of its linear and convolution layers: all, or those that match a target.

    A target is a layer's path or its end ("qkv", "res0.conv1"), or a module that contains it ("mid", "up.0").

    Raises:
        ValueError: a target that matches no such layer.
    """
    found = [name for name, module in model.network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    if targets is None:
        return found
    kept: set[str] = set()
    for target in targets:
        own = {name for name in found if name == target or name.endswith(f".{target}") or name.startswith(f"{target}.")}
        if not own:
            parts = sorted({part for name in found for part in (name, name.rsplit(".", 1)[-1])})
            raise suggest("layer", target, parts)
        kept |= own
    return [name for name in found if name in kept]


def add_lora(
    model: NetworkDenoiser,
    rank: int = 4,
    targets: Sequence[str] | None = None,
    alpha: float | None = None,
    seed: int = 0,
    names: Sequence[str] = (ADAPTER,),
) -> NetworkDenoiser:
    """A copy of the model with adapters; only these require gradients.

    A weight W acts as `W + (alpha / rank) B A`, A `(rank, in)` random and B `(out, rank)` zero: the predictions are
    still the model's.

    The adapted layers are PEFT's, which change the names of the weights inside the network: save the adapter
    (`save_lora`), or merge it first (`merge_lora`) and save the model.

    Args:
        targets: which layers, as `layers`; by default all. alpha: by default the rank. seed: of A.
        names: of the adapters; all of them act, added up, until their scales are changed (`set_scale`).

    Raises:
        ValueError: rank below 1; a model that has adapters already; an unknown target. ImportError: without peft.
    """
    if rank < 1:
        raise ValueError(f"the rank must be at least 1, got {rank}")
    if _adapted(model):
        raise ValueError("the model has adapters already: merge them first (merge_lora)")
    peft = _peft()
    chosen = layers(model, targets)
    # A regular expression, because PEFT takes a plain name for the end of a path, and would adapt others with it.
    pattern = "|".join(name.replace(".", r"\.") for name in chosen)
    config = peft.LoraConfig(r=rank, lora_alpha=alpha if alpha is not None else rank, target_modules=pattern)
    made = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are intended
        torch.manual_seed(seed)
        for name in names:
            peft.inject_adapter_in_model(config, made.network, adapter_name=name)
    for layer in _adapted(made).values():
        layer.set_adapter(list(names))
    made.requires_grad_(False)
    for parameter in lora_parameters(made):
        parameter.requires_grad_(True)
    return made


def _adapted(model: NetworkDenoiser) -> dict[str, Any]:
    """The adapted layers by their paths."""
    return {name: module for name, module in model.network.named_modules() if hasattr(module, "lora_A")}


def _adapted_or_error(model: NetworkDenoiser) -> dict[str, Any]:
    found = _adapted(model)
    if not found:
        raise ValueError("the model has no adapter: make one with add_lora or load_lora")
    return found


def lora_parameters(model: NetworkDenoiser, name: str | None = None) -> list[nn.Parameter]:
    """The adapters' own weights, of all or of the one called `name`."""
    return [
        module[key].weight
        for layer in _adapted_or_error(model).values()
        for module in (layer.lora_A, layer.lora_B)
        for key in module
        if name in (None, key)
    ]


def set_scale(model: NetworkDenoiser, scale: float, name: str = ADAPTER) -> None:
    """Makes an adapter act with `scale` times its trained strength; 0 gives the base's predictions bit for bit.

    Adapters that depend on the time (`add_timed_lora`) set their own scales, regardless of this one.
    """
    for layer in _adapted_or_error(model).values():
        layer.set_scale(name, scale)


class _Share:
    """The factor by which PEFT multiplies an adapter's output, here one number per sample."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __rmul__(self, answer: Tensor) -> Tensor:
        return answer * expand(self.weight, answer)


class _Timed:
    """Before every pass of a network: each adapter's share, by the noise level (B,) that the network receives.

    Adapter k has share 1 at node k, and the neighbours' fall and rise linearly in between; before the first node and
    after the last one only one adapter acts. The shares always add up to 1.
    """

    def __init__(self, nodes: Sequence[float], scale: float) -> None:
        self.nodes, self.scale = list(nodes), scale

    def __call__(self, network: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        noise, nodes, shares = arguments[1].double(), self.nodes, []
        for k, node in enumerate(nodes):
            share = torch.ones_like(noise)
            if k > 0:
                share = share.minimum((noise - nodes[k - 1]) / (node - nodes[k - 1]))
            if k < len(nodes) - 1:
                share = share.minimum((nodes[k + 1] - noise) / (nodes[k + 1] - node))
            shares.append(_Share(self.scale * share.clamp(min=0)))
        adapted: list[Any] = [module for module in network.modules() if hasattr(module, "lora_A")]
        for layer in adapted:
            layer.scaling.update({str(k): one for k, one in enumerate(shares)})


def add_timed_lora(
    model: NetworkDenoiser,
    times: Sequence[float],
    rank: int = 4,
    targets: Sequence[str] | None = None,
    alpha: float | None = None,
    seed: int = 0,
) -> NetworkDenoiser:
    """A copy of the model with an adapter for each of the times: each acts alone at its own time, and between two times
    they blend, linearly in the noise level that the network receives. The rest is as in `add_lora`.

    Raises:
        ValueError: as `add_lora`; no times, or two that the network cannot distinguish.
    """
    told: list[float] = []
    probe = model.network.register_forward_pre_hook(lambda _, arguments: told.append(float(arguments[1][0])))
    try:
        weight = next(model.parameters())
        x = torch.zeros(1, *(model.shape or ()), device=weight.device)
        condition = model.check_condition({}, 1, weight.device)
        with torch.no_grad():
            for t in times:
                model(x, torch.tensor(t, device=weight.device), **condition)
    finally:
        probe.remove()
    return _timed(model, sorted(told), rank, targets, alpha, seed)


def _timed(
    model: NetworkDenoiser,
    nodes: Sequence[float],
    rank: int,
    targets: Sequence[str] | None,
    alpha: float | None,
    seed: int = 0,
) -> NetworkDenoiser:
    if not nodes or len(set(nodes)) < len(nodes):
        raise ValueError(f"times of adapters must be one or more, and differ in noise; the network receives {nodes}")
    made = add_lora(model, rank, targets, alpha, seed, [str(k) for k in range(len(nodes))])
    made.network.register_forward_pre_hook(_Timed(nodes, (alpha if alpha is not None else rank) / rank))
    return made


def _nodes(model: NetworkDenoiser) -> list[float] | None:
    """The nodes of adapters that depend on the time."""
    return next((h.nodes for h in model.network._forward_pre_hooks.values() if isinstance(h, _Timed)), None)


def merge_lora(model: NetworkDenoiser) -> NetworkDenoiser:
    """A plain copy with the adapters, at their present scales, added to the weights. It can be saved like any model."""
    _adapted_or_error(model)
    return without_adapters(model).requires_grad_(True)


def without_adapters(model: Denoiser) -> Any:
    """The model or, where networks in it have adapters, a copy with those added to the weights, at their scales.

    Raises:
        ValueError: adapters that depend on the time.
    """
    if not any(_adapted(part) for part in model.modules() if isinstance(part, NetworkDenoiser)):
        return model
    made = copy.deepcopy(model)
    for part in made.modules():
        if isinstance(part, NetworkDenoiser):
            _merge(part)
    return made


def _merge(model: NetworkDenoiser) -> None:
    for path, layer in _adapted(model).items():
        if any(isinstance(scale, _Share) for scale in layer.scaling.values()) or _nodes(model) is not None:
            raise ValueError("adapters that depend on the time have no one set of weights: they cannot be merged")
        layer.merge()
        parent, _, name = path.rpartition(".")
        setattr(model.network.get_submodule(parent), name, layer.get_base_layer())
    if hasattr(model.network, "peft_config"):
        del model.network.peft_config


def save_lora(model: NetworkDenoiser, path: str | os.PathLike[str]) -> Path:
    """Writes only the adapters: one safetensors file, with their description as JSON in the header.

    Raises:
        ValueError: a model with no adapter, or with several of which none depends on the time.
    """
    found = _adapted_or_error(model)
    one, nodes = next(iter(found.values())), _nodes(model)
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

    Raises:
        ValueError: a file that is not an adapter, or one for another network (the message says how they differ).
    """
    tensors, names, rank, alpha, nodes = _read(model, path)
    if nodes is not None and scale != 1.0:
        raise ValueError(f"adapters that depend on the time act at scale 1, got {scale}")
    made = add_lora(model, rank, names, alpha) if nodes is None else _timed(model, nodes, rank, names, alpha)
    wanted = _tensors(_adapted(made))
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
    return made


def _read(
    model: NetworkDenoiser, path: str | os.PathLike[str]
) -> tuple[dict[str, Tensor], list[str], int, float, list[float] | None]:
    """A file's tensors, layers, rank, alpha and nodes; `ValueError` as `load_lora`."""
    data = Path(path).read_bytes()
    try:
        tensors, header = load_tensors(data), json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        about = json.loads(header["__metadata__"]["fewstep"])
        if about["format"] != FORMAT:
            raise KeyError("format")
        network, names, rank, alpha, nodes = (about[key] for key in ("network", "layers", "rank", "alpha", "nodes"))
    except (SafetensorError, ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is no fewstep adapter (safetensors with a {FORMAT!r} header)") from None
    own = _network(model)
    if wrong := sorted(key for key in own.keys() | network.keys() if own.get(key) != network.get(key)):
        differ = ", ".join(f"{key} {network.get(key)!r}, not {own.get(key)!r}" for key in wrong)
        raise ValueError(f"{path} is an adapter for another network: it has {differ}")
    return tensors, names, rank, alpha, nodes


def read_factors(model: NetworkDenoiser, path: str | os.PathLike[str]) -> dict[str, Factors]:
    """The two sides of a file's adapter, and its scale, by layer of `model.network`, for `low_rank.adapted`.

    Raises:
        ValueError: as `load_lora`; an adapter that depends on the time.
    """
    tensors, names, rank, alpha, nodes = _read(model, path)
    if nodes is not None:
        raise ValueError(f"{path} depends on the time: load it with load_lora")
    try:
        sides = {name: [tensors[f"{name}.{ADAPTER}.{side}"] for side in "AB"] for name in names}
    except KeyError as error:
        raise ValueError(f"{path} does not fit its own description: {error.args[0]} is missing") from None
    return {name: (down, up, alpha / rank) for name, (down, up) in sides.items()}
