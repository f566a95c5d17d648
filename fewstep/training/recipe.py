"""Recipes: everything that determines a training run, read from a TOML file and checked before anything starts."""

from __future__ import annotations

import dataclasses
import inspect
import math
import os
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from fewstep.core.condition import Condition
from fewstep.core.errors import suggest
from fewstep.core.files import read_text
from fewstep.core.methods import find
from fewstep.core.process import Process, process_from_config
from fewstep.data.dataset import Dataset, DataSpec
from fewstep.data.stream import Stream
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.training.adapted import with_model
from fewstep.training.couplings import coupling
from fewstep.training.draws import Draws
from fewstep.training.ema import EMA
from fewstep.training.fit import Coupling
from fewstep.training.importance import ImportanceLevels
from fewstep.training.learned_variance import VariationalBound
from fewstep.training.noise_levels import NoiseLevels
from fewstep.training.objective import Objective, Term, Weighting, squared_error
from fewstep.training.sections import (
    AdapterPart,
    DataPart,
    DegradePart,
    DenoiserPart,
    NoiseLevelsPart,
    TrainPart,
    build,
    check,
    name_of,
    options_of,
)  # fmt: skip
from fewstep.training.weightings import weighting

HYBRID = 0.001  # factor of the bound beside the simple loss (iDDPM, section 3.1)
# Two ways to state the same: the section that names the method, and the older key.
FURTHER = (  # what data may have beside pictures of one kind, and the argument of a network that takes it
    ("captions (data.captions = true)", "vocabulary"),
    ("measurements ([degrade])", "picture"),
    ("clips", "frames"),
)
TWICE = (
    ("levels", "noise_levels", "importance", False),
    ("distance", "train", "multiscale", 0),
    ("rows", "data", "share", 1.0),
)
Section = dict[str, Any]
Made = TypeVar("Made")


@dataclass(frozen=True)
class Recipe:
    """A whole run. `network`, `process` and everything after `noise_levels` hold a registered name under "name" and
    the arguments of what it names; the sections after `noise_levels` may be left out.

        weighting, coupling     of the noise levels, of noise with samples
        levels                  noise levels drawn in another way, from those of `noise_levels`
        term                    what is added to the loss, times "factor" (1); or a list of such sections
        objective               what wraps the loss
        distance                how an error is measured
        backward, clusters      how gradients are taken, and the clusters of noise levels that it uses
        rows, average           the order of the data, and the average of the weights (for `train.ema`)
        coordinates             of the denoiser "coordinates"
        degrade                 what a restorer is given: an operator, noise, and the form of the picture `y`
        adapter                 low-rank adapters train on a model's weights (`fewstep.training.adapted`)

    In Python an option may be a function (a term's residual). Checkpoints keep only its name.
    """

    data: DataPart
    network: Section
    process: Section
    train: TrainPart
    denoiser: DenoiserPart = field(default_factory=DenoiserPart)
    noise_levels: NoiseLevelsPart = field(default_factory=NoiseLevelsPart)
    weighting: Section | None = None
    coupling: Section | None = None
    levels: Section | None = None
    term: Section | list[Section] | None = None
    objective: Section | None = None
    distance: Section | None = None
    backward: Section | None = None
    clusters: Section | None = None
    rows: Section | None = None
    average: Section | None = None
    coordinates: Section | None = None
    adapter: AdapterPart | None = None
    degrade: DegradePart | None = None

    def __post_init__(self) -> None:
        for section, part, key, default in TWICE:
            if getattr(self, section) is not None and getattr(getattr(self, part), key) != default:
                raise ValueError(f"section [{section}] and {part}.{key} say the same: leave one of them out")
        for kind in ("objective", "distance", "rows", "average", "coordinates"):
            if (section := getattr(self, kind)) is not None:
                check(kind, section)
        for term in self.terms:
            check("term", {key: value for key, value in term.items() if key != "factor"})
        if isinstance(self.make_levels(), ImportanceLevels) and self.backward is not None:
            raise ValueError("noise levels by importance weigh the gradients themselves: leave [backward] out")
        if self.denoiser.name == "bridge-network" and self.degrade is None:
            raise ValueError("a bridge leads from a picture to the sample: it needs a section [degrade]")
        if (self.coordinates is None) != (self.denoiser.name != "coordinates"):
            raise ValueError('section [coordinates] goes with [denoiser] name = "coordinates", and that with it')
        if self.clusters is not None and self.backward is None:
            raise ValueError("section [clusters] is for a section [backward], which is missing")
        self.make_weighting()
        self.make_coupling()
        self.make_backward()
        _network_class(self.network)

    @classmethod
    def read(cls, path: str | Path) -> Recipe:
        """The recipe in a TOML file.

        Raises ValueError for a file that is missing or not TOML, for an unknown or missing key, a wrong type or value.
        """
        return read_recipe(path, cls.from_dict)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """The recipe of nested dictionaries, one per section, with the same checks as a file."""
        return _build(cls, with_model(values), "")

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON, every default written out."""
        return _plain(dataclasses.asdict(self))

    @property
    def terms(self) -> list[Section]:
        """The sections of the loss's terms."""
        return [self.term] if isinstance(self.term, dict) else list(self.term or ())

    def make_process(self) -> Process:
        """The process of section [process]."""
        return process_from_config({"process": name_of("process", self.process, "edm"), **options_of(self.process)})

    def make_levels(self) -> NoiseLevels:
        """The distribution of the noise levels."""
        given = self.noise_levels
        levels = NoiseLevels(self.make_process(), given.draw, given.mean, given.std)
        if self.levels is not None:
            return build("levels", self.levels, {"base": levels})
        return ImportanceLevels(levels) if given.importance else levels

    def make_weighting(self) -> Weighting | None:
        """The weights of section [weighting], None without one."""
        if self.weighting is None:
            return None
        return weighting(name_of("weighting", self.weighting, "min-snr"), **options_of(self.weighting))

    def make_coupling(self) -> Coupling | None:
        """The coupling of section [coupling], None without one."""
        if self.coupling is None:
            return None
        return coupling(name_of("coupling", self.coupling, "immiscible"), **options_of(self.coupling))

    def make_backward(self) -> Any | None:
        """How gradients are taken, None for those of the mean."""
        if self.backward is None:
            return None
        clusters = self.clusters
        run = {} if clusters is None else {"cuts": build("clusters", clusters, {"process": self.make_process()})}
        return build("backward", self.backward, run)

    def make_draws(self, data: Dataset | Stream) -> Draws:
        """The order of the samples, and everything else that is random."""
        if self.rows is None:
            return Draws(self.train.seed, len(data), self.data.share)
        return build("rows", self.rows, {"seed": self.train.seed, "samples": len(data), "data": data})

    def make_average(self, network: nn.Module) -> EMA:
        """The average of the weights."""
        if self.average is None:
            return EMA(network, self.train.ema)
        return build("average", self.average, {"network": network})

    def make_objective(
        self,
        denoiser: NetworkDenoiser,
        example: Callable[[], tuple[Tensor, Mapping[str, Tensor]]] | None = None,
        levels: NoiseLevels | None = None,
    ) -> nn.Module:
        """What a step minimises. example: a few samples and their conditions, for terms that need their widths."""
        terms: list[tuple[float, Term]] = []
        run: dict[str, Any] = {"network": denoiser.network}
        rest: Mapping[str, Tensor] = {}
        if self.terms and example is not None:
            run["example"], rest = example()
        for section in self.terms:
            named = {key: value for key, value in section.items() if key != "factor"}
            terms.append((float(section.get("factor", 1.0)), build("term", named, run, **rest)))
        if self.denoiser.learned_variance and not any(isinstance(term, VariationalBound) for _, term in terms):
            terms.insert(0, (HYBRID, VariationalBound()))
        distance, smallest = self.distance, self.train.multiscale
        if distance is None and smallest:
            distance = {"name": "multiscale", "smallest": smallest}
        counted = squared_error if distance is None else build("distance", distance, {})
        objective = Objective(denoiser, self.make_weighting(), counted, terms)
        if self.objective is None:
            return objective
        return build("objective", self.objective, {"objective": objective, "levels": levels or self.make_levels()})

    def make_network(self, spec: DataSpec) -> nn.Module:
        """The network for the data: channels, size and classes follow from it where the recipe does not state them.

        Raises ValueError when the recipe contradicts the data.
        """
        made = _network_class(self.network)
        arguments, taken = options_of(self.network), inspect.signature(made).parameters
        *frames, channels, height, width = spec.shape
        size: int | list[int] = height if height == width else [height, width]
        needed = {"channels": channels, "size": size, "classes": spec.classes if self.data.labels else None}
        needed |= {"frames": frames[0]} if frames else {}
        needed |= {"out": 2 * channels} if self.denoiser.doubles else {}
        if self.degrade is not None:
            needed |= {"picture": self._seen(spec)}
        if self.data.captions and spec.text is not None:
            needed |= {"vocabulary": len(spec.text.vocabulary), "captions": spec.text.length}
        for what, key in FURTHER:
            if key in needed and key not in taken:
                raise ValueError(f"a network {self.network['name']!r} takes no {what}")
        for key, value in needed.items():
            if arguments.setdefault(key, value) != value:
                raise ValueError(f"network.{key} = {arguments[key]}, yet the data {spec.name!r} has {value}")
        return made(**arguments)

    def _seen(self, spec: DataSpec) -> int:
        """The channels of the pictures of [degrade]; `ValueError` for those of another size than the data."""
        assert self.degrade is not None
        seen, wanted = self.degrade.condition(spec).shape, tuple(spec.shape[1:])
        if seen[1:] != wanted:
            raise ValueError(
                f"[degrade] makes pictures {seen}, and the network reads them beside samples {tuple(spec.shape)}:"
                ' picture = "pinv" or "upsampled" has their size'
            )
        return seen[0]

    def make_denoiser(
        self,
        network: nn.Module,
        spec: DataSpec,
        conditions: Mapping[str, Condition],
        measured: Mapping[str, float],
        data: str | None = None,
    ) -> NetworkDenoiser:
        """The denoiser of section [denoiser]. measured: standard deviations of the data, where they are needed."""
        given = self.denoiser
        options: dict[str, Any] = {"predicts": given.predicts, "shape": spec.shape, "conditions": dict(conditions)}
        options |= {"precondition": given.precondition, "data_std": 1.0, "value_range": spec.value_range, "data": data}
        options |= dict(measured) | ({} if given.data_std is None else {"data_std": given.data_std}) | given.options
        made = find(given.name, "denoiser")
        taken = inspect.signature(made).parameters
        if "options" not in taken:
            options = {key: value for key, value in options.items() if key in taken}
        if self.coordinates is not None:
            options["coordinates"] = build("coordinates", self.coordinates, {"shape": spec.shape})
        return made(network, self.make_process(), **options)


def read_recipe(path: str | os.PathLike[str], made: Callable[[dict[str, Any]], Made]) -> Made:
    """What `made` makes of the dictionaries in a TOML file.

    Raises ValueError for a file that is missing or not TOML, and what `made` raises, each with the file's name.
    """
    try:
        values = tomllib.loads(read_text(path))
    except OSError as error:
        raise ValueError(f"cannot read the recipe {str(path)!r}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"the recipe {str(path)!r} is not TOML: {error}") from None
    try:
        return made(values)
    except ValueError as error:
        raise ValueError(f"in the recipe {str(path)!r}: {error}") from None


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
    made = find(name_of("network", network, "unet"), "network")
    known = [name for name in inspect.signature(made).parameters]
    for key in network:
        if key != "name" and key not in known:
            raise suggest(f"key in section [network] of a {network['name']}", key, known)
    return made


def _build(cls: Any, values: dict[str, Any], section: str) -> Any:
    hints, fields = typing.get_type_hints(cls), {entry.name: entry for entry in dataclasses.fields(cls)}
    if cls is DenoiserPart:  # it checks the keys of the named denoiser itself
        further = {key: value for key, value in values.items() if key not in fields}
        values = {key: value for key, value in values.items() if key in fields}
        values["options"] = values.get("options", {}) | further
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
            if dataclasses.is_dataclass(option) and isinstance(value, dict):  # which says itself what is wrong
                return _build(option, value, name)
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
    elif typing.get_origin(wanted) is list:
        if isinstance(value, list | tuple):
            return [_convert(entry, typing.get_args(wanted)[0], name) for entry in value]
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
    if callable(value):
        return f"{value.__module__}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
