"""Low-rank adapters: a network stays as it is, and each of its layers gains a trained product of two thin matrices."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.core.prediction import expand
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.low_rank import put_in
from fewstep.networks.surgery import linked

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
    copied: bool = True,
) -> NetworkDenoiser:
    """A copy of the model with adapters; only these require gradients.

    A weight W acts as `W + (alpha / rank) B A`, A `(rank, in)` random and B `(out, rank)` zero: the predictions are
    still the model's.

    The adapted layers are PEFT's, which change the names of the weights inside the network: save the adapter
    (`save_lora`), or merge it first (`merge_lora`) and save the model.

    Args:
        targets: which layers, as `layers`; by default all. alpha: by default the rank. seed: of A.
        names: of the adapters; all of them act, added up, until their scales are changed (`set_scale`).
        copied: whether the model's weights are; without, the adapters stand on the model's own, which then ask for no
            gradient, and several models with adapters share them.

    Raises:
        ValueError: rank below 1; a model that has adapters already; an unknown target; a network without a layer that
            could have one. ImportError: without peft.
    """
    if rank < 1:
        raise ValueError(f"the rank must be at least 1, got {rank}")
    if adapted_layers(model):
        raise ValueError("the model has adapters already: merge them first (merge_lora)")
    peft = _peft()
    chosen = layers(model, targets)
    if not chosen:
        raise ValueError(
            f"an adapter stands on linear layers and convolutions, and the network {type(model.network).__name__} has"
            " none"
        )
    # A regular expression, because PEFT takes a plain name for the end of a path, and would adapt others with it.
    pattern = "|".join(name.replace(".", r"\.") for name in chosen)
    config = peft.LoraConfig(r=rank, lora_alpha=alpha if alpha is not None else rank, target_modules=pattern)
    made = copy.deepcopy(model) if copied else linked(model)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are intended
        torch.manual_seed(seed)
        for name in names:
            peft.inject_adapter_in_model(config, made.network, adapter_name=name)
    for layer in adapted_layers(made).values():
        layer.set_adapter(list(names))
    made.requires_grad_(False)
    for parameter in lora_parameters(made):
        parameter.requires_grad_(True)
    return made


def adapted_layers(model: NetworkDenoiser) -> dict[str, Any]:
    """The adapted layers by their paths."""
    return {name: module for name, module in model.network.named_modules() if hasattr(module, "lora_A")}


def adapted_or_error(model: NetworkDenoiser) -> dict[str, Any]:
    found = adapted_layers(model)
    if not found:
        raise ValueError("the model has no adapter: make one with add_lora or load_lora")
    return found


def lora_parameters(model: NetworkDenoiser, name: str | None = None) -> list[nn.Parameter]:
    """The adapters' own weights, of all or of the one called `name`."""
    return [
        module[key].weight
        for layer in adapted_or_error(model).values()
        for module in (layer.lora_A, layer.lora_B)
        for key in module
        if name in (None, key)
    ]


def set_scale(model: NetworkDenoiser, scale: float, name: str = ADAPTER) -> None:
    """Makes an adapter act with `scale` times its trained strength; 0 gives the base's predictions bit for bit.

    Adapters that depend on the time (`add_timed_lora`) set their own scales, regardless of this one.
    """
    for layer in adapted_or_error(model).values():
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
    return timed(model, sorted(told), rank, targets, alpha, seed)


def timed(
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


def nodes_of(model: NetworkDenoiser) -> list[float] | None:
    """The nodes of adapters that depend on the time."""
    return next((h.nodes for h in model.network._forward_pre_hooks.values() if isinstance(h, _Timed)), None)


def merge_lora(model: NetworkDenoiser) -> NetworkDenoiser:
    """A plain copy with the adapters, at their present scales, added to the weights. It can be saved like any model."""
    adapted_or_error(model)
    return without_adapters(model).requires_grad_(True)


def without_adapters(model: Denoiser) -> Any:
    """The model or, where networks in it have adapters, a copy with those added to the weights, at their scales.

    Raises:
        ValueError: adapters that depend on the time.
    """
    model = put_in(model)  # type: ignore[assignment]
    if not any(adapted_layers(part) for part in _around_networks(model)):
        return model
    made = copy.deepcopy(model)
    for part in _around_networks(made):
        _merge(part)
    return made


def _around_networks(model: nn.Module) -> list[Any]:
    """The denoisers in a model that are around a network: ours, and pipelines."""
    return [part for part in model.modules() if isinstance(getattr(part, "network", None), nn.Module)]


def _merge(model: NetworkDenoiser) -> None:
    for path, layer in adapted_layers(model).items():
        if any(isinstance(scale, _Share) for scale in layer.scaling.values()) or nodes_of(model) is not None:
            raise ValueError("adapters that depend on the time have no one set of weights: they cannot be merged")
        layer.merge()
        parent, _, name = path.rpartition(".")
        setattr(model.network.get_submodule(parent), name, layer.get_base_layer())
    if hasattr(model.network, "peft_config"):
        del model.network.peft_config
