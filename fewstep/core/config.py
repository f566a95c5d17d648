"""Things as configurations and back: `config(thing)` is JSON, and `built` rebuilds the thing from it.

A configuration is a tree: `{"kind": ..., "name": ...}` name a thing's card in the registry, and the rest are its
options, among them other things as configurations of their own.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor, nn

from fewstep.core.condition import condition_from_config
from fewstep.core.coordinates import Coordinates, coordinates_from_config
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method, card, find, made, methods
from fewstep.core.process import Process, process_from_config

# Options stored beside the tree, under their paths in it: among the tensors, or in a folder of their own.
TENSOR, FOLDER = {"kind": "tensor"}, {"kind": "folder"}
# The kinds that are no denoisers: what samples by itself, what measurements do, their noise, and what makes latents.
MODULES = ("restorer", "operator", "noise", "autoencoder")


def config(thing: Any, beside: MutableMapping[str, Any] | None = None, path: str = "") -> dict[str, Any]:
    """The configuration of a denoiser, restorer, operator, network, process, condition or coordinates, as JSON.

    Args:
        beside: receives the options that are not JSON, by their paths ("model.picture"): tensors, and what diffusers
            writes into a folder (`save_pretrained`).
        path: where in a tree the thing stands, with a trailing dot.

    Raises:
        ValueError: a thing, or a part of one, that is not one of fewstep's own methods.
    """
    thing = getattr(thing, "_orig_mod", thing)  # what torch.compile has wrapped
    card = _card(thing)
    if card is not None and card.kind in MODULES:
        values = {option: _plain(value, beside, f"{path}{option}") for option, value in thing.config().items()}
        return {"kind": card.kind, "name": card.name} | values
    if isinstance(thing, Denoiser):
        options = thing.config()
        if card is None:
            raise thing.unsaved()
        parameters = inspect.signature(card.load()).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values()) or not isinstance(card.load(), type)
        # A class with a `from_config` of its own makes options of its state.
        own_way = any("from_config" in vars(base) for base in type(thing).__mro__ if base is not Denoiser)
        if not own_way and not takes_any and not set(options) <= set(parameters):
            raise thing.unsaved()
        values = {option: _plain(value, beside, f"{path}{option}") for option, value in options.items()}
        return {"kind": card.kind, "name": card.name} | values
    if not callable(getattr(thing, "config", None)):
        what = f"a network of class {type(thing).__name__}" if isinstance(thing, nn.Module) else repr(thing)
        raise ValueError(f"{what} cannot be saved: it has no config() that says what it is made of")
    own = dict(thing.config())
    kind = "process" if isinstance(thing, Process) else "coordinates" if isinstance(thing, Coordinates) else "network"
    if not isinstance(thing, Process | nn.Module):
        return {"kind": "condition", "name": own.pop("kind")} | own
    return {"kind": kind, "name": own.pop(kind)} | own


def built(config: Mapping[str, Any], tensors: Mapping[str, Any] | None = None) -> Any:
    """The thing that a configuration describes, with its weights and buffers from `tensors` (else as initialised).

    Parameters and buffers take on the tensors' floating dtypes. Where an option is a folder, `tensors` has its path.

    Raises:
        ValueError: an unknown kind or name. KeyError: a configuration without them. TypeError, RuntimeError: options
            or tensors that do not fit.
    """
    told: set[str] = set()
    thing = _built(config, tensors or {}, "", told)
    if tensors is not None and isinstance(thing, nn.Module):
        whole = owners(name for name in told if not isinstance(tensors[name], Tensor))
        load(thing, {name: tensor for name, tensor in tensors.items() if name not in told}, whole)
    return thing


def owners(folders: Iterable[str]) -> tuple[str, ...]:
    """Prefixes of the names of tensors that lie in folders of their own: the paths of the folders' owners."""
    return tuple(path.rpartition(".")[0] + "." for path in folders)


def load(module: nn.Module, state: Mapping[str, Tensor], whole: tuple[str, ...] = ()) -> None:
    """Load a module's state, in the state's floating dtypes. whole: parts, by path, that are loaded already."""
    kept = module.state_dict(keep_vars=True)
    for name, own in kept.items():
        if name in state and own.is_floating_point() and state[name].is_floating_point():
            own.data = own.data.to(state[name].dtype)
    module.load_state_dict({name: own for name, own in kept.items() if name.startswith(whole)} | dict(state))


def _card(thing: Any) -> Method | None:
    kind = type(thing)
    if (made_by := getattr(thing, "made_by", None)) is not None:  # by a card's function, not its class
        return card(made_by[1], made_by[0])[0]
    return next((card for card in methods() if (card.module, card.use) == (kind.__module__, kind.__name__)), None)


def _plain(value: Any, beside: MutableMapping[str, Any] | None, path: str) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor) or callable(getattr(value, "save_pretrained", None)):
        if beside is not None:
            beside[path] = value
        return dict(TENSOR if isinstance(value, Tensor) else FOLDER)
    if isinstance(value, Mapping):
        return {name: _plain(own, beside, f"{path}.{name}") for name, own in value.items()}
    if isinstance(value, Sequence | nn.ModuleList):
        return [_plain(own, beside, f"{path}.{number}") for number, own in enumerate(value)]
    return config(value, beside, f"{path}.")


def _value(value: Any, tensors: Mapping[str, Any], path: str, told: set[str]) -> Any:
    if isinstance(value, Mapping):
        if dict(value) in (TENSOR, FOLDER):
            told.add(path)
            return tensors[path]
        if "kind" in value and "name" in value:
            return _built(value, tensors, f"{path}.", told)
        return {name: _value(own, tensors, f"{path}.{name}", told) for name, own in value.items()}
    if isinstance(value, list):
        return tuple(_value(own, tensors, f"{path}.{number}", told) for number, own in enumerate(value))
    return value


def _built(config: Mapping[str, Any], tensors: Mapping[str, Any], path: str, told: set[str]) -> Any:
    rest = dict(config)
    kind, name = rest.pop("kind"), rest.pop("name")
    if kind == "process":
        return process_from_config({"process": name} | rest)
    if kind == "coordinates":
        return coordinates_from_config({"coordinates": name} | rest)
    if kind == "condition":
        return condition_from_config({"kind": name} | rest)
    if kind == "network":
        return made("network", name, **rest)()
    found = find(name, kind)
    options = {option: _value(value, tensors, f"{path}{option}", told) for option, value in rest.items()}
    own = {key.removeprefix(path): tensor for key, tensor in tensors.items() if key.startswith(path)}
    if kind in MODULES:
        return found.from_config(options, own) if hasattr(found, "from_config") else found(**options)
    if not hasattr(found, "from_config"):
        raise ValueError(f"the {kind} {name!r} is no denoiser")
    denoiser = found.from_config(options, own)
    if not isinstance(denoiser, Denoiser):
        raise ValueError(f"the {kind} {name!r} is no denoiser")
    if not isinstance(denoiser.process, Process):
        raise TypeError(f"the process of {name!r} is {denoiser.process!r}")
    return denoiser
