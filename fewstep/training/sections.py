"""The sections of a recipe: four with keys of their own, and any number that name a registered method."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fewstep.conditions.degraded import FORMS, Degraded
from fewstep.core.errors import suggest
from fewstep.core.methods import find, made
from fewstep.data.dataset import DataSpec
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.operators.spec import read_operator

PRECISIONS = ("fp32", "bf16", "fp16")
SCHEDULES = ("constant", "cosine")
PLAIN = ("network", "learned-variance", "bridge-network")
BY_THE_RUN = ("network", "process", "shape", "conditions", "value_range", "data", "coordinates", "args")


@dataclass(frozen=True)
class DataPart:
    """What `fewstep.data.open.open_data` opens, or tar shards (`train-{0000..0127}.tar`, `fewstep.data.stream`).

    labels: condition on the classes; captions: on the captions. share: of the data that one round uses; the next
    uses others (RS2, see `fewstep.training.draws.Draws`). noise: the standard deviation of the noise in all
    training samples but a share `clean` of them; the objective `ambient` receives the noise level of each.
    flip: mirror every second picture, by chance. crop: cut random squares of this many pixels out of the pictures
    (central ones for validation); 0 leaves them whole (`fewstep.data.augment`).
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
    noise: float = 0.0
    clean: float = 0.0
    flip: bool = False
    crop: int = 0

    def __post_init__(self) -> None:
        rules = {
            "share": (0 < self.share <= 1, "above 0 and at most 1"),
            "crop": (self.crop >= 0, "at least 0"),
            "noise": (0 <= self.noise < math.inf, "at least 0"),
            "clean": (0 <= self.clean <= 1, "0 to 1"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ValueError(f"data.{name} must be {rule}, got {getattr(self, name)}")


@dataclass(frozen=True)
class DenoiserPart:
    """Which denoiser the network makes, and what it predicts; further keys are `options` of the named one.

    `data_std` is measured on the training split when it is needed and not given. predicts: by default "x0", or the
    named denoiser's own kind. learned_variance: another way to write name = "learned-variance" (`hybrid-vlb`).
    """

    name: str = "network"
    predicts: str | None = None
    precondition: str = "none"
    data_std: float | None = None
    learned_variance: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        name = "learned-variance" if self.learned_variance and self.name == "network" else self.name
        own = inspect.signature(find(name, "denoiser")).parameters
        # A denoiser that passes further arguments on takes those of a plain network.
        known = dict(inspect.signature(NetworkDenoiser).parameters) | dict(own) if "options" in own else dict(own)
        if "network" not in known:
            raise ValueError(f"the denoiser {name!r} is made of no network, so there is nothing to train")
        for key in self.options:
            if key not in known or key in BY_THE_RUN:
                options = {*(field.name for field in dataclasses.fields(self)), *known} - {*BY_THE_RUN, "options"}
                raise suggest("key in section [denoiser]", key, sorted(options))
        if self.precondition != "none" and "precondition" not in known:
            raise ValueError(f"the denoiser {name!r} takes no precondition, got {self.precondition!r}")
        if self.learned_variance and name != "learned-variance":
            raise ValueError(f"denoiser.learned_variance names another denoiser than {name!r}: leave one of them out")
        predicts = "x0" if "options" in own or name in PLAIN else known["predicts"].default
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "predicts", self.predicts or predicts)
        object.__setattr__(self, "learned_variance", name == "learned-variance")

    @property
    def doubles(self) -> bool:
        """Whether the network answers with twice as many channels as a sample has."""
        return self.learned_variance or self.predicts in ("residual+eps", "both")


@dataclass(frozen=True)
class DegradePart:
    """What a restorer is given beside each sample, the condition `y`: a measurement by an operator with noise, drawn on
    the fly. The keys are those of `fewstep.conditions.degraded.Degraded`."""

    operator: str | list[str]
    noise: float | str | tuple[float, float] = 0.0
    picture: str | None = None

    def __post_init__(self) -> None:
        read_operator(self.operator, "degrade.operator")
        if self.picture is not None and self.picture not in FORMS:
            raise suggest("degrade.picture", self.picture, FORMS)
        Degraded(data=(1, 1, 1), noise=self.noise)

    def condition(self, spec: DataSpec) -> Degraded:
        """The condition of a model of such data; `ValueError` where the operator does not fit them."""
        low = 0.0 if spec.value_range is None else spec.value_range[0]
        operator = self.operator if isinstance(self.operator, str) else tuple(self.operator)
        return Degraded((), tuple(spec.shape), operator, self.noise, self.picture, low)


@dataclass(frozen=True)
class AdapterPart:
    """What trains in place of a network of its own: low-rank adapters of a rank on the weights of a model, which is one
    of the package by name, or a folder."""

    model: str
    rank: int = 8

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"adapter.rank must be at least 1, got {self.rank}")


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

    batch: samples per step, over all devices. warmup: steps in which the rate rises linearly to `lr`; after them it is
    "constant" or falls to zero at the last step as half a "cosine". clip: largest norm of the gradient, inf for none.
    ema: decay of the average. condition_dropout: the share of samples whose label or caption is hidden
    (classifier-free guidance). accumulate: parts in which a step goes through its batch, for batches that do not fit
    into memory: the gradients are those of the whole. precision: "fp16" comes with loss scaling.
    multiscale: also count the errors of pictures averaged down, to no fewer than this many pixels; 0 does not.
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
    accumulate: int = 1
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
            "accumulate": (self.accumulate >= 1, "at least 1"),
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
class Named:
    """How a section `{name, options}` becomes the method: how many arguments a call has, and which the run supplies.

    What the run supplies may also be an option, which then takes precedence (`cuts` of gradients by clusters).
    """

    at_calls: int = 0
    by_the_run: tuple[str, ...] = ()


NAMED = {
    "weighting": Named(2),  # process, t
    "coupling": Named(3),  # x0, eps, generator
    "distance": Named(1),  # error
    "levels": Named(by_the_run=("base",)),
    "term": Named(by_the_run=("network", "example")),
    "objective": Named(by_the_run=("objective", "levels")),
    "clusters": Named(by_the_run=("process",)),
    "backward": Named(by_the_run=("cuts",)),
    "rows": Named(by_the_run=("seed", "samples", "data")),
    "average": Named(by_the_run=("network",)),
    "coordinates": Named(by_the_run=("shape",)),
}


def name_of(kind: str, section: Mapping[str, Any], example: str = "") -> str:
    """The name in a section; ValueError without one."""
    if "name" not in section:
        raise ValueError(f"section [{kind}] needs a name" + (f', for example name = "{example}"' if example else ""))
    return str(section["name"])


def options_of(section: Mapping[str, Any]) -> dict[str, Any]:
    """A section without its name."""
    return {key: value for key, value in section.items() if key != "name"}


def build(kind: str, section: Mapping[str, Any], run: Mapping[str, Any], **rest: Any) -> Any:
    """What a section names, with its options: a function of its calls' arguments, or the object itself.

    Args:
        run: what the run supplies, by the names of `NAMED`; what the method does not take is left out. rest: for a
            method that takes any further arguments.

    Raises:
        ValueError: no name, an unknown method, an unknown or missing option.
    """
    how = NAMED[kind]
    function = bound(kind, section, {key: value for key, value in run.items() if key in how.by_the_run}, **rest)
    return function if how.at_calls else function()


def bound(kind: str, section: Mapping[str, Any], run: Mapping[str, Any], **rest: Any) -> Any:
    """As `build`, but not called yet: for checks before there is a run."""
    name, options = name_of(kind, section), options_of(section)
    parameters = inspect.signature(find(name, kind)).parameters
    fixed = [key for key, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD]
    if len(fixed) < len(parameters):  # it takes any further arguments, but no misspelt option
        known = [key for key in fixed if key not in NAMED[kind].by_the_run]
        for key in options:
            if key not in known:
                raise suggest(f"option of the {kind} {name!r}", key, known)
        options = rest | options
    return made(kind, name, NAMED[kind].at_calls, **{k: v for k, v in run.items() if k in parameters} | options)


def check(kind: str, section: Mapping[str, Any], without: tuple[str, ...] = ()) -> None:
    """Raises ValueError for a section that could not be built; the run will supply all but `without`."""
    bound(kind, section, {name: None for name in NAMED[kind].by_the_run if name not in without})
