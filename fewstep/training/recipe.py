"""Recipes: everything that determines a training run, read from a TOML file and checked before anything starts."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from fewstep.core.errors import suggest
from fewstep.core.methods import find
from fewstep.core.process import Process, process_from_config
from fewstep.data.spec import DataSpec
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.training.couplings import coupling
from fewstep.training.fit import Coupling
from fewstep.training.importance import ImportanceLevels
from fewstep.training.learned_variance import VariationalBound
from fewstep.training.multiscale import multiscale
from fewstep.training.noise_levels import NoiseLevels
from fewstep.training.objective import Objective, Weighting, squared_error
from fewstep.training.weightings import weighting

PRECISIONS = ("fp32", "bf16")
SCHEDULES = ("constant", "cosine")
HYBRID = 0.001  # of the bound beside the simple loss (iDDPM, section 3.1)


@dataclass(frozen=True)
class DataPart:
    """What `fewstep.data.open.open_data` opens, or tar shards (`train-{0000..0127}.tar`, `fewstep.data.stream`).

    labels: condition on the classes; captions: on the captions. share: of the data that one round takes; the next
    takes others (RS2, see `fewstep.training.draws.Draws`).
    """

    source: str
    size: int | tuple[int, int] | None = None
    mode: str = "RGB"
    labels: bool = False
    captions: bool = False
    value_range: tuple[float, float] | None = None
    validation: float = 0.1
    seed: int = 0
    share: float = 1.0


@dataclass(frozen=True)
class DenoiserPart:
    """What the network predicts. `data_std` is measured on the training split when it is needed and not given.

    learned_variance: the network also learns the variance of the reverse steps (`hybrid-vlb`).
    """

    predicts: str = "x0"
    precondition: str = "none"
    data_std: float | None = None
    learned_variance: bool = False


@dataclass(frozen=True)
class NoiseLevelsPart:
    """See `fewstep.training.noise_levels.NoiseLevels`. importance: redrawn by the size of the losses."""

    draw: str = "uniform"
    mean: float | None = None
    std: float | None = None
    importance: bool = False


@dataclass(frozen=True)
class TrainPart:
    """The optimisation.

    batch: samples a step, over all devices. warmup: steps in which the rate rises linearly to `lr`; after them it is
    "constant" or falls to zero at the last step as half a "cosine". clip: largest norm of the gradient, inf for none.
    ema: decay of the average. condition_dropout: the share of samples whose label or caption is hidden
    (classifier-free guidance).
    multiscale: also count the errors of the pictures averaged down, until so many pixels are left; 0 does not.
    log_every, save_every, validate_every: in steps; validate_every = 0 never measures the held-out loss.
    """

    batch: int
    steps: int
    lr: float
    warmup: int = 0
    schedule: str = "constant"
    clip: float = 1.0
    ema: float = 0.999
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    precision: str = "fp32"
    condition_dropout: float = 0.0
    multiscale: int = 0
    seed: int = 0
    log_every: int = 50
    save_every: int = 1000
    validate_every: int = 0

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise suggest("train.precision", self.precision, PRECISIONS)
        if self.schedule not in SCHEDULES:
            raise suggest("train.schedule", self.schedule, SCHEDULES)
        rules = {
            "batch": (self.batch >= 1, "at least 1"),
            "steps": (self.steps >= 1, "at least 1"),
            "lr": (0 < self.lr < math.inf, "positive"),
            "warmup": (0 <= self.warmup <= self.steps, "0 to steps"),
            "clip": (self.clip > 0, "positive (inf for no clipping)"),
            "ema": (0 <= self.ema < 1, "at least 0 and below 1"),
            "weight_decay": (self.weight_decay >= 0, "at least 0"),
            "betas": (all(0 <= beta < 1 for beta in self.betas), "two numbers of at least 0 and below 1"),
            "condition_dropout": (0 <= self.condition_dropout < 1, "at least 0 and below 1"),
            "multiscale": (self.multiscale >= 0, "at least 0"),
            "log_every": (self.log_every >= 1, "at least 1"),
            "save_every": (self.save_every >= 1, "at least 1"),
            "validate_every": (self.validate_every >= 0, "at least 0"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ValueError(f"train.{name} must be {rule}, got {getattr(self, name)}")

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.schedule == "constant":
            return self.lr
        return self.lr * (1 + math.cos(math.pi * (step - self.warmup) / max(self.steps - self.warmup, 1))) / 2


@dataclass(frozen=True)
class Recipe:
    """A whole run. `network`, `process`, `weighting` and `coupling` are the registered name under "name" and the
    arguments of what it names; the last two may be left out.
    """

    data: DataPart
    network: dict[str, Any]
    process: dict[str, Any]
    train: TrainPart
    denoiser: DenoiserPart = field(default_factory=DenoiserPart)
    noise_levels: NoiseLevelsPart = field(default_factory=NoiseLevelsPart)
    weighting: dict[str, Any] | None = None
    coupling: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.data.share <= 1:
            raise ValueError(f"data.share must be above 0 and at most 1, got {self.data.share}")
        self.make_levels()
        self.make_weighting()
        self.make_coupling()
        _network_class(self.network)

    @classmethod
    def read(cls, path: str | Path) -> Recipe:
        """The recipe in a TOML file.

        Raises ValueError for a file that is missing or no TOML, for an unknown or missing key, a wrong type or value.
        """
        try:
            with open(path, "rb") as file:
                values = tomllib.load(file)
        except OSError as error:
            raise ValueError(f"cannot read the recipe {str(path)!r}: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"the recipe {str(path)!r} is not TOML: {error}") from None
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"in the recipe {str(path)!r}: {error}") from None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """The recipe of nested dictionaries, one a section, with the same checks as a file."""
        return _build(cls, values, "")

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON, every default written out."""
        return _plain(dataclasses.asdict(self))

    def make_process(self) -> Process:
        """The process of section [process]."""
        return process_from_config({"process": _name("process", self.process, "edm"), **_rest(self.process)})

    def make_levels(self) -> NoiseLevels:
        """The distribution of the noise levels."""
        given = self.noise_levels
        levels = NoiseLevels(self.make_process(), given.draw, given.mean, given.std)
        return ImportanceLevels(levels) if given.importance else levels

    def make_weighting(self) -> Weighting | None:
        """The weights of section [weighting], None without one."""
        if self.weighting is None:
            return None
        return weighting(_name("weighting", self.weighting, "min-snr"), **_rest(self.weighting))

    def make_coupling(self) -> Coupling | None:
        """The coupling of section [coupling], None without one."""
        if self.coupling is None:
            return None
        return coupling(_name("coupling", self.coupling, "immiscible"), **_rest(self.coupling))

    def make_objective(self, denoiser: NetworkDenoiser) -> Objective:
        """What a step minimises."""
        terms = [(HYBRID, VariationalBound())] if self.denoiser.learned_variance else []
        smallest = self.train.multiscale
        distance = functools.partial(multiscale, smallest=smallest) if smallest else squared_error
        return Objective(denoiser, self.make_weighting(), distance, terms)

    def make_network(self, spec: DataSpec) -> nn.Module:
        """The network for the data: channels, size and classes follow from it where the recipe does not state them.

        Raises ValueError when the recipe states something else than the data has.
        """
        made = _network_class(self.network)
        arguments = _rest(self.network)
        height, width = spec.shape[1:]
        size: int | list[int] = height if height == width else [height, width]
        needed = {"channels": spec.shape[0], "size": size, "classes": spec.classes if self.data.labels else None}
        if self.denoiser.learned_variance:
            needed["out"] = 2 * spec.shape[0]
        if self.data.captions and spec.text is not None:
            if "vocabulary" not in inspect.signature(made).parameters:
                raise ValueError(f"a network {self.network['name']!r} takes no captions (data.captions = true)")
            needed |= {"vocabulary": len(spec.text.vocabulary), "captions": spec.text.length}
        for key, value in needed.items():
            if arguments.setdefault(key, value) != value:
                raise ValueError(f"network.{key} = {arguments[key]}, yet the data {spec.name!r} has {value}")
        return made(**arguments)


def _name(section: str, given: dict[str, Any], example: str) -> str:
    if "name" not in given:
        raise ValueError(f'section [{section}] needs a name, for example name = "{example}"')
    return str(given["name"])


def _rest(given: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if key != "name"}


def differences(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> list[str]:
    """Where two recipes, as dictionaries, differ: "train.lr (0.001, then 0.01)"."""
    found = []
    for key in sorted(ours.keys() | theirs.keys()):
        one, other, name = ours.get(key), theirs.get(key), prefix + key
        if isinstance(one, dict) and isinstance(other, dict):
            found += differences(one, other, name + ".")
        elif one != other:
            found.append(f"{name} ({one}, then {other})")
    return found


def _network_class(network: dict[str, Any]) -> Any:
    made = find(_name("network", network, "unet"), "network")
    known = [name for name in inspect.signature(made).parameters]
    for key in network:
        if key != "name" and key not in known:
            raise suggest(f"key in section [network] of a {network['name']}", key, known)
    return made


def _build(cls: Any, values: dict[str, Any], section: str) -> Any:
    hints, fields = typing.get_type_hints(cls), {entry.name: entry for entry in dataclasses.fields(cls)}
    where = f"key in section [{section}]" if section else "section"
    for key in values:
        if key not in fields:
            raise suggest(where, key, fields)
    for name, entry in fields.items():
        if name not in values and entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING:
            raise ValueError(f"section [{section}] needs {name}" if section else f"there is no section [{name}]")
    return cls(**{key: _convert(value, hints[key], f"{section}.{key}".lstrip(".")) for key, value in values.items()})


def _convert(value: Any, wanted: Any, name: str) -> Any:
    """The value as the annotated type; ints pass as floats, lists as tuples of the stated length."""
    if typing.get_origin(wanted) is types.UnionType:
        for option in typing.get_args(wanted):
            try:
                return _convert(value, option, name)
            except ValueError:
                continue
        raise ValueError(f"{name} must be {' or '.join(_spoken(a) for a in typing.get_args(wanted))}, got {value!r}")
    if dataclasses.is_dataclass(wanted):
        if isinstance(value, dict):
            return _build(wanted, value, name)
    elif typing.get_origin(wanted) is dict:
        if isinstance(value, dict):
            return dict(value)
    elif typing.get_origin(wanted) is tuple:
        parts = typing.get_args(wanted)
        if isinstance(value, list | tuple) and len(value) == len(parts):
            return tuple(_convert(entry, part, name) for entry, part in zip(value, parts, strict=True))
    elif wanted is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value):
            return float(value)
    elif isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool)):
        return value
    raise ValueError(f"{name} must be {_spoken(wanted)}, got {value!r}")


def _spoken(wanted: Any) -> str:
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "left out"}
    if typing.get_origin(wanted) is tuple:
        return f"a list of {len(typing.get_args(wanted))} numbers"
    return words.get(wanted, "a section")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
