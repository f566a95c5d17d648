"""What every method of distillation is made of: a setting, players, and what an iteration draws.

A method's `draw` draws and nothing else: noises, times, rows of the data, conditions, each with one row a sample and
for the whole batch, on the CPU, from the generator that it is given. So a run draws the same on one process as on
several, and one that is resumed as one that never stopped. All work is in the losses of its players.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fewstep.conditions.label import Label
from fewstep.conditions.latent import Latent
from fewstep.conditions.time import Time
from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.core.prediction import expand
from fewstep.core.process import Process
from fewstep.data.dataset import Dataset
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.distillation.adapter import beside, copied, load_trained, network_of, trained
from fewstep.distillation.given import rows_with
from fewstep.distillation.memory import demand, too_much
from fewstep.distillation.scales import Scales, numbers_of, told_scale
from fewstep.distillation.teacher import Count, Counted
from fewstep.guidance.guided import SCALE
from fewstep.guidance.reward import Reward
from fewstep.networks.embedding import extended
from fewstep.searching.problem import Problem, conditions
from fewstep.training.ema import EMA
from fewstep.training.players import Gradients, Player, cosine

Batch = dict[str, Any]  # tensors (B, ...) by name, dictionaries of such ("condition"), numbers that hold for all


@dataclass
class Setting:
    """What a method is built with.

    Args:
        teacher: what is distilled; it is counted, asks for no gradients and stays as it is.
        base: the network denoiser that students are copies of, or the student itself with `own`.
        start: the time whose pure noise a student begins from. steps: of the student.
        iterations: of the whole run; it is known only when the run begins, so it is read in iterations, not before.
        data: real samples, whose conditions are drawn as well. known: opens the data that the teacher was trained on;
            methods that need real samples take those where none are given, all others never open them.
        lr, ema, clip, betas: of every player that does not say otherwise. seed: of what is drawn before the run.
        fake: what scores of the student's own samples begin as, by default the base; fake_lr: their rate.
        hidden: share of the samples whose conditions are hidden (a label at its empty value).
        share: (rank, processes): which part of a batch this process works on.
        given: conditions to draw from in place of the data's, (n, ...) each: a row of them is drawn for each sample.
        lora: rank of the adapter on the base's own weights that the student is, in place of a copy of it.
        folder: of the run, for what a method keeps in files; None without one.
        free: bytes that networks which train may take, beside what is held already; None is not checked.
        first: weights that the student begins with, where they are not the base's.
    """

    teacher: Denoiser
    base: Denoiser
    start: float
    steps: int = 1
    iterations: int = 1000
    data: Dataset | None = None
    known: Callable[[], Dataset | None] | None = None
    data_std: float = 1.0
    lr: float = 1e-3
    ema: float = 0.99
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.99)
    batch: int = 256
    seed: int = 0
    hidden: float = 0.0
    own: bool = False
    fake: Denoiser | None = None
    fake_lr: float | None = None
    share: tuple[int, int] = (0, 1)
    given: Mapping[str, Tensor] = field(default_factory=dict)
    lora: int | None = None
    folder: Path | None = None
    free: float | None = None
    first: Mapping[str, Tensor] = field(default_factory=dict)
    claimed: float = 0.0  # of those
    reduce: Callable[[Tensor], Tensor] | None = None  # the mean over processes
    count: Count = field(default_factory=Count)
    step: int = 0  # iterations done, kept by the run
    _known: Dataset | None = None
    _rows: Tensor | None = None  # of the real samples, those with a condition that is given

    def __post_init__(self) -> None:
        self.teacher = Counted(self.teacher, self.count)

    @property
    def process(self) -> Process:
        return self.base.process

    @property
    def shape(self) -> tuple[int, ...]:
        assert self.base.shape is not None
        return self.base.shape

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    @property
    def spent(self) -> float:
        """Evaluations of all processes, whose parts of a batch are of one size."""
        return self.count.evaluations * self.share[1]

    # Models

    def student(self, late: int = 0, scales: Scales | None = None, **extras: int) -> Denoiser:
        """A copy of the base that trains. extras: further inputs of its network (`networks.embedding`); with `target`
        it is a map, and takes the condition `to`; with `latent` it takes that one. scales: the range of the condition
        `guidance` that it takes."""
        if self.own:
            self.claim(self.base, average=True)
            return self.base.requires_grad_(True)
        extras |= {SCALE: 1} if scales is not None else {}
        model = self.training(self.base, self.lora, average=True)
        if extras or late:
            tell: Any = getattr(model, "tell_scale", None)
            if scales is not None and tell is not None and not late and len(extras) == 1:
                tell(*scales)  # a pipeline
            else:
                model = self.told_more(model, late, copied=self.lora is None, scales=scales, **extras)
        if self.first:
            load_trained(trained(model), self.first)
        return model

    @staticmethod
    def told_more(
        model: Denoiser, late: int = 0, copied: bool = True, scales: Scales | None = None, **extras: int
    ) -> Denoiser:
        """The model with further inputs of its network, and the conditions `to`, `latent` and `guidance` that go with
        them.

        Raises:
            ValueError: a network that takes none.
        """
        if not isinstance(model, NetworkDenoiser):
            raise ValueError("this method gives a network further inputs, which only fewstep's own networks take")
        model.network = extended(model.network, late, copied=copied, **extras)
        if "target" in extras or late:
            model.conditions = {**model.conditions, "to": Time()}
        if "latent" in extras:
            model.conditions = {**model.conditions, "latent": Latent(extras["latent"])}
        if scales is not None:
            model.conditions = {**model.conditions, SCALE: told_scale(scales)}
        return model

    def training(self, base: Denoiser, lora: int | None, *, average: bool = False, seed: int | None = None) -> Denoiser:
        """A model that trains: a copy of the base, or an adapter of a rank on its own weights. average: whether its
        weights are averaged. seed: of an adapter's first weights.

        Raises:
            ValueError: what `adapter.beside` raises; more memory than there is.
        """
        if lora is not None:
            model = beside(base, lora, self.seed if seed is None else seed)
            self.claim(model, average, shared=True)
            return model
        self.claim(network_of(base), average)
        return copied(base)

    def claim(self, model: nn.Module, average: bool, shared: bool = False) -> None:
        """Counts what a model that trains will hold; `ValueError` where that is more than there is."""
        self.claimed += demand(model, average, shared).total
        if self.free is not None and self.claimed > self.free:
            raise ValueError(too_much(self.claimed, self.free))

    def counted(self, model: Denoiser) -> Denoiser:
        """The model, its calls counted; for calls, while its parameters belong to a player."""
        return Counted(model, self.count)

    def player(
        self, module: nn.Module, loss: Callable[[Batch], Tensor], *, lr: float | None = None, every: int = 1,
        average: bool = False, parameters: list[nn.Parameter] | None = None,
    ) -> Player:  # fmt: skip
        """A player with the setting's optimiser; `average`: with an average of its weights, for the student."""
        module = trained(module)
        return Player(
            module,
            loss,
            parameters=parameters,
            lr=lambda step: self.rate(step, self.lr if lr is None else lr),
            betas=self.betas,
            clip=self.clip,
            every=every,
            average=EMA(module, self.ema) if average else None,
            backward=None if self.reduce is None else self._shared(self.reduce),
        )

    def rate(self, step: int, lr: float) -> float:
        """The rate of an iteration: up over the first twentieth of the run, then down as half a cosine."""
        return cosine(lr, self.iterations, warmup=max(1, self.iterations // 20))(step)

    @staticmethod
    def _shared(reduce: Callable[[Tensor], Tensor]) -> Gradients:
        """Gradients of the mean over all processes."""

        def backward(losses: Tensor, drawn: Any, parameters: Any) -> None:
            losses.mean().backward(inputs=list(parameters))
            flat = torch.cat([p.grad.reshape(-1) for p in parameters])
            for parameter, part in zip(parameters, reduce(flat).split([p.numel() for p in parameters]), strict=True):
                parameter.grad.copy_(part.view_as(parameter))

        return backward

    # Chance: all for the whole batch, on the CPU

    def noise(self, batch: int, generator: torch.Generator, *more: int) -> Tensor:
        """The process's standard noise, (batch, *more, *shape)."""
        count = batch
        for number in more:
            count *= number
        dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        flat = self.process.eps(lambda: torch.randn((count, *self.shape), generator=generator, dtype=dtype))
        return flat.view(batch, *more, *self.shape)

    def uniform(self, batch: int, generator: torch.Generator, *more: int) -> Tensor:
        """Numbers in [0, 1), float64, (batch, *more)."""
        return torch.rand((batch, *more), generator=generator, dtype=torch.float64)

    def opened(self) -> Dataset:
        """The real samples: those given, or those that are known. `ValueError` where there are none."""
        if self.data is not None:
            return self.data
        if self._known is None and self.known is not None:
            self._known = self.known()
        if self._known is None:
            raise ValueError("this method needs real samples: give data=..., those that the teacher was trained on")
        return self._known

    def real(self, batch: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Real samples, in the process's coordinates, and their conditions, some of them hidden.

        Raises:
            ValueError: no real samples, none with a condition that is given.
        """
        data = self.opened()
        if self.given and self._rows is None:
            self._rows = rows_with(data, self.given)
        rows = torch.randint(len(data) if self._rows is None else len(self._rows), (batch,), generator=generator)
        rows = rows if self._rows is None else self._rows[rows]
        images, named = data.batch(rows)
        found = self._hide({name: named[name] for name in self.base.conditions if name in named}, batch, generator)
        told = {name: value for name, value in self._numbers(batch, generator).items() if name not in found}
        return self.base.encode(images, **found).to(self.dtype), found | told

    def condition(self, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        """The teacher's conditions: drawn of those given; else as they come in the data, where those are given, and
        every label equally often where not; numbers of a known range, such as a scale that is told, evenly in it."""
        rows = torch.randint(len(self.data) if self.data is not None else 2**31, (batch,), generator=generator)
        own = dict[str, Tensor]()
        if self.given:
            which = torch.randint(len(next(iter(self.given.values()))), (batch,), generator=generator)
            own = {name: value[which] for name, value in self.given.items()}
        own = self._numbers(batch, generator) | own
        found = conditions(self.base, self.data, rows, own)
        asked = self.teacher.conditions  # a student that is given may have more, such as the time to go to
        return self._hide({name: value.cpu() for name, value in found.items() if name in asked}, batch, generator)

    def _numbers(self, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        """The numbers of a known range that the base and the teacher are told, drawn; none where there are none."""
        found = numbers_of(self.base, batch, generator)
        return {name: value for name, value in found.items() if name in self.teacher.conditions}

    def _hide(self, condition: dict[str, Tensor], batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        hidden = torch.rand(batch, generator=generator) < self.hidden
        for name, kind in self.base.conditions.items():
            if name in condition and self.hidden and isinstance(kind, Label):
                empty = kind.check(name, None, 1, torch.device("cpu"))
                condition[name] = torch.where(hidden, empty, condition[name])
        return condition

    def mine(self, drawn: Batch) -> Batch:
        """This process's part of a batch, on the device."""
        rank, processes = self.share

        def part(value: Any) -> Any:
            if isinstance(value, Tensor):
                size = len(value) // processes
                return value[rank * size : (rank + 1) * size].to(self.device)
            return {name: part(own) for name, own in value.items()} if isinstance(value, dict) else value

        return {name: part(value) for name, value in drawn.items()}

    # States

    def begin(self, noise: Tensor) -> Tensor:
        """The state of pure noise at the start."""
        return noise * self.process.sigma(self.start)

    def noised(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """`alpha_t x0 + sigma_t eps`, t `(B,)`."""
        return expand(self.process.alpha(t), x0) * x0 + expand(self.process.sigma(t), x0) * eps

    def times(self, t: float, batch: int) -> Tensor:
        """One time for all, (batch,) float64, on the device."""
        return torch.full((batch,), t, dtype=torch.float64, device=self.device)


class Distiller(abc.ABC):
    """A method at work on one student.

    Attributes:
        kind: of the student: "denoiser", "jump" or "map" (`fewstep.core.student`).
        solver: by which it is sampled, where that is not what suits its kind.
        setting, student: what it was built with, and what it trains.
        players: in the order in which they take their turns in an iteration; "student" is the one that is exported.
        reward: what it raises, of samples as data and their conditions; None where the best weights are those whose
            samples are nearest to the teacher's.
        scale_inside: the scale that the method itself puts inside the student, or the range that the student is told.
    """

    kind: ClassVar[str]
    solver: str | None = None
    setting: Setting
    student: Denoiser
    players: dict[str, Player]
    reward: Reward | None = None
    scale_inside: float | Scales | None = None

    @abc.abstractmethod
    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        """All chance of iteration `setting.step`, for the whole batch."""

    def times(self) -> tuple[float, ...] | None:
        """The times at which the student was trained, first to last but without the clean end; None for every time."""
        return None

    def judged(self, teacher: Denoiser) -> Denoiser:
        """What the student is held against in checks and in the verdict: the teacher, with the guidance that the method
        puts inside the student."""
        return teacher

    def problem(self, first: int, n: int) -> Problem | None:
        """What checks hold n samples against, from noise number `first` on; None for the teacher's own samples, which
        the verdict needs too."""
        return None

    def copies(self) -> list[nn.Module]:
        """Modules whose trained weights the method holds once more at some time, one entry for each time."""
        return []

    def state(self) -> dict[str, Tensor]:
        """What the next iteration depends on besides the players, as tensors."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continues from what `state` returned; a method with a state of its own has its own way."""
        assert not tensors, sorted(tensors)

    def figures(self) -> dict[str, float]:
        """Numbers of the log beside the losses."""
        return {}


def noises(seed: int, first: int, count: int, model: Denoiser) -> Tensor:
    """Noises of a numbered stream, those of samples `first ...` under the seed: (count, *shape)."""
    assert model.shape is not None
    source, dtype = Noise(seed, first), torch.float64 if model.dtype == torch.float64 else torch.float32
    return model.process.start(lambda draw: source.normal(draw, (count, *model.shape), model.device, dtype))  # type: ignore[misc]
