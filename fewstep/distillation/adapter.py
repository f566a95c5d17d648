"""Students and fake scores as low-rank adapters: networks of their own that share one backbone, their teacher's."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fewstep.core.denoiser import Denoiser
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.hub.lora import write_adapter
from fewstep.networks.surgery import linked
from fewstep.training.adapter_files import STUDENTS, save_lora
from fewstep.training.lora import add_lora, merge_lora

RANK = 8  # of a fake score that is an adapter beside a student that is none


def beside(base: Denoiser, rank: int, seed: int) -> Denoiser:
    """The base with an adapter in every linear layer and convolution, on the base's own weights.

    A call of either leaves the other as it is, so nothing is switched on or off, and the base's weights, which ask for
    no gradient from then on, are in memory once.

    Raises:
        ValueError: a rank below 1, no network or one without such a layer, adapters that are there already.
    """
    if rank < 1:
        raise ValueError(f"lora must be a rank of at least 1, got {rank}")
    if network_of(base) is base:
        raise ValueError(f"an adapter needs a teacher with a network, and {type(base).__name__} has none")
    return add_lora(base, rank, seed=seed, copied=False)  # type: ignore[arg-type]  # all it takes is a network


def copied(base: Denoiser) -> Denoiser:
    """A copy of the base whose network trains, or all of it where it has none. What surrounds a network (a pipeline's
    autoencoder and text encoders) asks for no gradient from then on, and is shared."""
    part = network_of(base)
    own = {id(each) for each in (*part.parameters(), *part.buffers())}
    rest = {id(each): each for each in (*base.parameters(), *base.buffers()) if id(each) not in own}
    for each in rest.values():
        each.requires_grad_(False)
    model = copy.deepcopy(base, rest)
    network_of(model).requires_grad_(True)
    return model


def network_of(model: Denoiser) -> nn.Module:
    """A denoiser's network, or itself where it has none."""
    network = getattr(model, "network", None)
    return network if isinstance(network, nn.Module) else model


def alone(model: Denoiser, other: Denoiser) -> Denoiser:
    """The model, or a copy where it shares tensors with another."""
    return model if len(own_state(model, other)) == len(model.state_dict()) else copy.deepcopy(model)


def apart(model: Denoiser) -> Denoiser:
    """A copy with weights of its own where they train; those that do not are shared."""
    return linked(model, trained=False)


def own_state(model: nn.Module, other: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model that is `apart` from another, without what the two share."""
    pairs = zip(model.named_parameters(), other.parameters(), strict=True)
    shared = {name for (name, mine), its in pairs if mine is its}
    return {name: value for name, value in model.state_dict().items() if name not in shared}


class Trained(nn.Module):
    """What trains of a module, under its own names: the parameters that asked for gradients when this was made.

    A player of it is saved, averaged and counted without the backbone that its adapters stand on.
    """

    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self.__dict__["of"] = of  # not in the table of submodules
        self.names = [name for name, parameter in of.named_parameters() if parameter.requires_grad]

    def named_parameters(self, *_: Any, **__: Any) -> Iterator[tuple[str, nn.Parameter]]:
        own = dict(self.__dict__["of"].named_parameters())
        return ((name, own[name]) for name in self.names)

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:  # type: ignore[override]
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *_: Any, **__: Any) -> Any:
        return self.__dict__["of"].load_state_dict(dict(state_dict), strict=False)


def trained(module: nn.Module) -> nn.Module:
    """The module, or what trains of it where that is not all."""
    return module if all(parameter.requires_grad for parameter in module.parameters()) else Trained(module)


def load_trained(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Gives a module that trains the weights of another like it. `ValueError` where they are of another network."""
    own = {name: value.shape for name, value in module.state_dict().items()}
    other = {name: value.shape for name, value in tensors.items()}
    if own != other:
        apart = sorted({*own.items(), *other.items()} - ({*own.items()} & {*other.items()}))
        raise ValueError(f"the weights to begin with are of another network: they differ in {apart[0][0]}")
    module.load_state_dict(tensors)


def merged(model: Denoiser) -> Denoiser:
    """The plain model of a student that is an adapter, with weights of its own."""
    return merge_lora(model).requires_grad_(False).eval()  # type: ignore[arg-type]


def fits(model: Denoiser, base: Denoiser) -> bool:
    """Whether the adapter of a student fits the base that it stands on: not where the student has further inputs, or
    the network is none of ours or of a pipeline's."""
    if not isinstance(model, NetworkDenoiser):
        return hasattr(model, "pipeline")
    config, own = (getattr(each.network, "config", None) for each in (model, base))
    return config is not None and own is not None and bool(config() == own())


def write_file(model: Denoiser, folder: Path) -> Path:
    """Writes the adapter of a student alone into a folder, as `--lora` takes it: `adapter.safetensors`, or
    `pytorch_lora_weights.safetensors` for a pipeline."""
    return save_lora(model, folder / STUDENTS) if isinstance(model, NetworkDenoiser) else write_adapter(model, folder)
