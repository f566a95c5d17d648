"""What consistency methods share: pairs of states on one path, to which the student is to give one answer."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.distillation.adapter import apart, own_state
from fewstep.distillation.distances import Distance
from fewstep.distillation.method import Batch, Distiller, Setting
from fewstep.distillation.teacher import step

STATES = ("data", "teacher")
AVERAGE = 0.95  # decay of the target's average (LCM's; CM has 0.95 to 0.9999)
WALK = 4  # midpoint steps of the teacher from pure noise to a state of its own path


def drawn_from(setting: Setting, states: str | None = None) -> str:
    """Where the noisy states of training come from, by name: "data" (noised) or "teacher" (its paths from pure noise);
    by default the data where they are given.

    Raises:
        ValueError: another name, or data that are not known.
    """
    found = ("data" if setting.data is not None else "teacher") if states is None else states
    if found not in STATES:
        raise suggest("kind of states", found, STATES)
    if found == "data":
        setting.opened()
    return found


def draw_states(setting: Setting, states: str, batch: int, generator: torch.Generator) -> Batch:
    """What noisy states are made of: data "x0" and noise "eps", or pure noise "z", and their conditions."""
    if states == "data":
        x0, condition = setting.real(batch, generator)
        return {"x0": x0, "eps": setting.noise(batch, generator), "condition": condition}
    return {"z": setting.noise(batch, generator), "condition": setting.condition(batch, generator)}


@torch.no_grad()
def noisy(setting: Setting, drawn: Batch) -> Tensor:
    """The states at times `drawn["t"]`: data noised, or the ends of the teacher's paths from pure noise at the start.

    The paths are walked in four midpoint steps, eight evaluations of the teacher: where a state lies among those that
    the teacher passes matters little, as what is learnt at it is the teacher's next step from there.
    """
    t = drawn["t"]
    if "x0" in drawn:
        return setting.noised(drawn["x0"], drawn["eps"], t)
    x, start = setting.begin(drawn["z"]), setting.times(setting.start, len(t))
    known = {name: value for name, value in drawn["condition"].items() if name in setting.teacher.conditions}
    return step(setting.teacher, x, start, t, known, order=2, substeps=WALK)


@contextmanager
def kept_masks(device: torch.device) -> Iterator[None]:
    """Puts torch's generators back at the end of the block, so that what follows it drops out the same units."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


class Behind:
    """The student as the target's side of a pair has it: without gradient, and its average over iterations if `decay`
    is above 0: `average <- decay average + (1 - decay) weights` before every iteration but the first."""

    def __init__(self, setting: Setting, student: Denoiser) -> None:
        self.setting, self.student = setting, student
        self.average: Denoiser | None = None
        self.seen = 0  # the iteration whose average this is

    @torch.no_grad()
    def at(self, decay: float) -> Denoiser:
        """The model as of the present iteration."""
        if not decay:
            return self.setting.counted(self.student)
        if self.average is None:
            self.average = apart(self.student).requires_grad_(False)
            self.seen = self.setting.step
        elif self.setting.step != self.seen:
            both = zip(self.average.parameters(), self.student.parameters(), strict=True)
            kept, weights = zip(*(pair for pair in both if pair[0] is not pair[1]), strict=True)
            torch._foreach_lerp_([*kept], [*weights], 1 - decay)
            self.seen = self.setting.step
        return self.setting.counted(self.average)

    def state(self) -> dict[str, Tensor]:
        if self.average is None:
            return {}
        own = own_state(self.average, self.student)
        return {f"behind.{name}": value.clone() for name, value in own.items()} | {
            "behind_seen": torch.tensor(self.seen)
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        if "behind_seen" not in tensors:
            return
        if self.average is None:
            self.average = apart(self.student).requires_grad_(False)
        own = own_state(self.average, self.student)
        self.average.load_state_dict({name: tensors[f"behind.{name}"] for name in own}, strict=False)
        self.seen = int(tensors["behind_seen"])


class Pairs(Distiller):
    """`w d(f(x_t, t), f-(x_s, s))` at two states of one path, x_t the noisier.

    f- is the student without gradient or its average (`decay`), and the state itself at the clean end, which is the
    boundary of every consistency model. x_t is noised data or, where there are none, lies on a path of the teacher's
    from pure noise; x_s is where the teacher's step takes it or, in training without a teacher, the same data with the
    same noise. Both halves of a pair drop out the same units.

    Args:
        student: in place of a copy of the base. average: decay of the average that the target's side is, 0 for the
            student itself. training: no teacher. states: `drawn_from`. order, substeps: of the teacher's step
            (`teacher.step`).

    Raises:
        ValueError: a decay outside [0, 1), and what `drawn_from` raises.
    """

    kind = "jump"

    def __init__(
        self, setting: Setting, distance: Distance, *, student: Denoiser | None = None, average: float = 0.0,
        training: bool = False, states: str | None = None, order: int = 1, substeps: int = 1,
    ) -> None:  # fmt: skip
        if not 0 <= average < 1:
            raise ValueError(f"average must be a decay of at least 0 and below 1, got {average}")
        self.states = drawn_from(setting, "data" if training else states)
        self.setting, self.distance, self.training = setting, distance, training
        self.average = average
        self.teacher, self.order, self.substeps = setting.teacher, order, substeps
        self.student = setting.student() if student is None else student
        self.f, self.behind = setting.counted(self.student), Behind(setting, self.student)
        self.players = {"student": setting.player(self.student, self.loss, average=True)}

    @abc.abstractmethod
    def levels(self, batch: int, generator: torch.Generator) -> Batch:
        """Times "t" and "s" of the pairs, (batch,) float64, and whatever else is drawn with them."""

    def decay(self) -> float:
        """Of the average on the target's side, in this iteration; 0 for the student itself."""
        return self.average

    def weight(self, drawn: Batch) -> Tensor | None:
        """Of each pair, (B,); None for 1."""
        return None

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        return draw_states(self.setting, self.states, batch, generator) | self.levels(batch, generator)

    @torch.no_grad()
    def reached(self, x: Tensor, drawn: Batch) -> Tensor:
        """The states at s on the paths through x at t."""
        t, s = drawn["t"], drawn["s"]
        if self.training:
            return self.setting.noised(drawn["x0"], drawn["eps"], s)
        return step(self.teacher, x, t, s, drawn["condition"], order=self.order, substeps=self.substeps)

    @torch.no_grad()
    def target(self, x: Tensor, s: Tensor, drawn: Batch) -> Tensor:
        """f- at states, and the states themselves where they are clean."""
        x0 = self.behind.at(self.decay())(x, s, **drawn["condition"]).x0
        clean = (s == self.setting.process.t_zero).reshape(-1, *[1] * (x.ndim - 1))
        return torch.where(clean, x, x0)

    def pair(self, drawn: Batch) -> tuple[Tensor, Tensor]:
        """The student's answers at x_t, with their gradient, and what they should be, (B, *shape)."""
        x = noisy(self.setting, drawn)
        y = self.reached(x, drawn)
        with kept_masks(self.setting.device):
            goal = self.target(y, drawn["s"], drawn)
        return self.f(x, drawn["t"], **drawn["condition"]).x0, goal

    def compared(self, made: Tensor, goal: Tensor, drawn: Batch) -> Tensor:
        """The weighted distances, (B,)."""
        error, weight = self.distance(made, goal), self.weight(drawn)
        return error if weight is None else weight.to(error.dtype) * error

    def loss(self, drawn: Batch) -> Tensor:
        """The student's loss, (B,)."""
        return self.compared(*self.pair(drawn), drawn)

    def copies(self) -> list[nn.Module]:
        return [self.student] if self.decay() else []

    def state(self) -> dict[str, Tensor]:
        return self.behind.state()

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.behind.restore(tensors)
