"""Claims of students of clips: four frames of one red circle that sets out near the middle and moves as its caption
says, under a slight blur.

The teacher is trained by the claim, on blurred clips, so that every frame of its own is degraded. All students begin as
it and take four evaluations to a sample. An evaluation is a forward pass of one clip; with its backward pass it is 3,
and a single frame is counted as a clip, so that what learns from pictures pays more than it costs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from claims.claim import Claim, Run, over_seeds, slow
from claims.common import SLICED, sliced
from claims.trained import fresh
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import made
from fewstep.core.student import Student, default_start
from fewstep.data.dataset import Dataset, DataSpec
from fewstep.data.moving import DIRECTIONS, LENGTH, SIDE, SPEEDS, TEXT, Moving, path, render
from fewstep.denoisers.controlled import layout_of
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.distillation.distill import plan_of
from fewstep.distillation.method import Distiller, Setting
from fewstep.distillation.state import DistillState
from fewstep.metrics.motion import motion, read
from fewstep.networks.attention import blur
from fewstep.networks.temporal import TemporalUNet
from fewstep.processes.flow import Flow
from fewstep.sampling.sample import sample
from fewstep.training.fit import fit, rows_of

PROCESS = Flow()
FRAMES, CLIPS, BLUR, JITTER = 4, 3000, 0.6, 1.0  # the last two in pixels
STEPS, BATCH, RATE = 300, 16, 2e-3  # of the teacher's training
BUDGET, ITERATIONS, LEARN, TRIAL, NFE = 3000, 40, 1e-3, 4, 4  # evaluations, or iterations; of trials; of a sample
N = 96  # clips judged
ABOUT = f"clips of {FRAMES} blurred frames, {NFE} evaluations, {N} clips"
WORDS = [Moving("red", "circle", way, speed).caption for way in DIRECTIONS for speed in SPEEDS]
VELOCITY, SHARP = "velocity error, pixels a frame", "sharpness"


class Arm(NamedTuple):
    """A method with its options, of so many iterations, or as many as the budget of evaluations has room for."""

    method: str
    options: tuple[tuple[str, Any], ...] = ()
    iterations: int | None = None


MCM = Arm("mcm", (("motion", "difference"), ("stills", "sharp")))
RAW = Arm("mcm", (("motion", "raw"), ("gan", 0.0), ("mix", 0.0)))
DECOUPLED = Arm("animate-lcm", (("fade", 20),), ITERATIONS)
CONTROL, ADAPT = Arm("animate-control", (), 200), 4e-3  # and its rate
LAYOUT = CONTROL._replace(options=(("control", "layout"),))
JOINT = Arm("animate-lcm", (("joint", True),), ITERATIONS)


@functools.cache
def sharp(seed: int) -> tuple[Tensor, Tensor]:
    """Clips without blur and the numbers of their captions."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.arange(CLIPS) % len(WORDS)
    ways = torch.tensor(list(DIRECTIONS.values()))[which // len(SPEEDS)]
    speeds = torch.tensor(list(SPEEDS.values()))[which % len(SPEEDS), None]
    start = SIDE / 2 + JITTER * (2 * torch.rand(CLIPS, 2, generator=generator) - 1)
    zero = torch.zeros(CLIPS, dtype=torch.int64)
    return render(zero, zero, path(start, ways * speeds, FRAMES)), which


@functools.cache
def data(seed: int, blurred: bool = True) -> Dataset:
    clips, which = sharp(seed)
    tokens = torch.tensor([TEXT.tokens(caption) for caption in WORDS])[which]
    shown = blur(clips, BLUR) if blurred else clips
    return Dataset(DataSpec("clips", tuple(clips.shape[1:]), (-1.0, 1.0), None, CLIPS, TEXT), shown,
                   given={"text": tokens})  # fmt: skip


@functools.cache
def teacher(seed: int) -> NetworkDenoiser:
    clips, std = data(seed), data(seed).std()
    network = fresh(
        TemporalUNet, seed, channels=3, size=16, width=(64,), attention=(4,), classes=None, patch=4, embedding=64,
        vocabulary=len(TEXT.vocabulary), captions=LENGTH, places=True, frames=FRAMES,
    )  # fmt: skip
    model = NetworkDenoiser(
        network, PROCESS, "x0", clips.spec.shape, {"text": TEXT}, data_std=std
    )  # fmt: skip
    rows = rows_of(clips.images, **clips.given)
    return fit(model, rows, steps=STEPS, batch=BATCH, lr=RATE, seed=seed)


def built(arm: Arm, seed: int, iterations: int, beside: Denoiser | None = None) -> Distiller:
    """The method at work on the teacher's network, or beside a student."""
    model = teacher(seed) if beside is None else beside
    std = float(model.facts.data_std or 0)
    own = Setting(
        model, model, default_start(PROCESS, std), NFE, iterations, data(seed), data_std=std, batch=BATCH,
        lr=LEARN if beside is None else ADAPT, seed=seed,
    )  # fmt: skip
    options = {name: data(seed, blurred=False) if name == "stills" else value for name, value in arm.options}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found: Distiller = made("distiller", arm.method, 1, **options)(own)
    return found


def run(work: Distiller, seed: int, last: int) -> DistillState:
    state = DistillState(work, {}, seed=seed, batch=BATCH, accelerator=None)
    state.run(last)
    return state


@functools.cache
def student(arm: Arm, seed: int) -> Denoiser:
    iterations = arm.iterations
    if iterations is None:
        trial = built(arm, seed, TRIAL)
        run(trial, seed, TRIAL)
        iterations = int(BUDGET / trial.setting.count.evaluations * TRIAL)
    return trained(arm, built(arm, seed, iterations), seed)


def trained(arm: Arm, work: Distiller, seed: int) -> Denoiser:
    """The student that a method ends with, with its plan."""
    made: Any = run(work, seed, work.setting.iterations).averaged()
    made.plan = plan_of(PROCESS, "jump", NFE, work.setting.start, work.times())
    made.student = Student(work.kind, arm.method, "clips", work.setting.start, work.times())
    return made  # type: ignore[no-any-return]


@functools.cache
def samples(arm: Arm | None, seed: int) -> Tensor:
    """Clips of an arm's student, or of the teacher in 16 evaluations; of noises that no training has seen."""
    text = [WORDS[k % len(WORDS)] for k in range(N)]
    if arm is None:
        return sample(teacher(seed), N, seed=seed + 1000, nfe=16, text=text)
    return sample(student(arm, seed), N, seed=seed + 1000, text=text)


@functools.cache
def begun(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """First frames of clips that no training has seen, and clips of the student of their captions, of the same noises:
    with its adapter for the first frame, and without."""
    rows = torch.arange(N)
    unseen = data(seed + 1000)
    first = unseen.images[rows, 0]
    text = [WORDS[k] for k in sharp(seed + 1000)[1][rows].tolist()]
    free = student(DECOUPLED, seed)
    told = trained(CONTROL, built(CONTROL, seed, CONTROL.iterations or 0, free), seed)
    asked: dict[str, Any] = {"seed": seed + 1000, "text": text}
    return first, sample(told, N, picture=first, **asked), sample(free, N, **asked)


@functools.cache
def laid(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Clips that no training has seen, and the student's of their captions, with their layouts and without."""
    rows = torch.arange(N)
    unseen = data(seed + 1000).images[rows]
    text = [WORDS[k] for k in sharp(seed + 1000)[1][rows].tolist()]
    free = student(DECOUPLED, seed)
    told = trained(LAYOUT, built(LAYOUT, seed, LAYOUT.iterations or 0, free), seed)
    asked: dict[str, Any] = {"seed": seed + 1000, "text": text}
    return unseen, sample(told, N, layout=layout_of(unseen), **asked), sample(free, N, **asked)


def figure(arm: Arm | None, seed: int, unit: str) -> float:
    clips = samples(arm, seed)
    if unit == SLICED:
        return sliced(clips.flatten(0, 1), data(seed).images[:N].flatten(0, 1))
    found = motion(clips, [WORDS[k % len(WORDS)] for k in range(N)])
    return found.velocity_error if unit == VELOCITY else found.sharpness


def _decoupled(unit: str) -> Run:
    def figures(seed: int) -> list[float]:
        return [figure(arm, seed, unit) for arm in (DECOUPLED, JOINT)]

    return over_seeds(
        figures, "joint training, equal updates", f"{ABOUT}, {ITERATIONS} iterations of {BATCH}", "low", unit
    )


def _motion_alone(unit: str) -> Run:
    def figures(seed: int) -> list[float]:
        return [figure(arm, seed, unit) for arm in (MCM, RAW)]

    better = "high" if unit == SHARP else "low"
    return over_seeds(figures, "raw consistency", f"{ABOUT}, {BUDGET:,} evaluations each", better, unit)


def _first_frame(seed: int) -> list[float]:
    first, *both = begun(seed)
    return [float((clips[:, 0] - first).square().mean()) for clips in both]


def _first_place(seed: int) -> list[float]:
    first, *both = begun(seed)
    given = read(torch.stack([first, first], dim=1)).centre[:, 0]
    return [float((read(clips).centre[:, 0] - given).norm(dim=1).mean()) for clips in both]


def _still_moving(seed: int) -> list[float]:
    _, *both = begun(seed)
    text = [WORDS[k] for k in sharp(seed + 1000)[1][:N].tolist()]
    return [motion(clips, text).velocity_error for clips in both]


def _layout(seed: int) -> list[float]:
    unseen, *both = laid(seed)
    return [float((layout_of(clips) - layout_of(unseen)).square().mean()) for clips in both]


def _path(seed: int) -> list[float]:
    """How far the centres of all frames are from those of the clips whose layouts were given, pixels."""
    unseen, *both = laid(seed)
    given = read(unseen).centre
    return [float((read(clips).centre - given).norm(dim=-1).mean()) for clips in both]


def _controlled(figures: Callable[[int], list[float]], unit: str) -> Run:
    about = f"{ABOUT}, an adapter of {CONTROL.iterations} iterations of {BATCH} beside a student of animate-lcm"
    return over_seeds(figures, "the student without it", about, "low", unit)


def _near_teacher(seed: int) -> list[float]:
    return [figure(MCM, seed, VELOCITY), 1.2 * figure(None, seed, VELOCITY)]


def _near_stills(seed: int) -> list[float]:
    return [figure(MCM, seed, SHARP), 0.8]


CLAIMS: tuple[Claim, ...] = (
    slow("animate-lcm", "pictures first, then motion, has frames nearer to the data's than both at once",
         _decoupled(SLICED)),
    slow("animate-lcm", "pictures first, then motion, moves nearer to its captions than both at once",
         _decoupled(VELOCITY)),
    slow("animate-control", "clips begin with the first frame that is given",
         _controlled(_first_frame, "squared error of the first frame")),
    slow("animate-control", "the shape begins at the place in the first frame that is given",
         _controlled(_first_place, "distance of the first centre, pixels")),
    slow("animate-control", "with a first frame given, clips move no worse", _controlled(_still_moving, VELOCITY)),
    slow("animate-control", "clips keep to the layout that is given",
         _controlled(_layout, "squared error of the layout")),
    slow("animate-control", "with a layout given the shape takes its path",
         _controlled(_path, "distance of the centres, pixels")),
    slow("mcm", "its frames are sharper than those of consistency of whole clips", _motion_alone(SHARP)),
    slow("mcm", "its clips move nearer to their captions than those of consistency of whole clips",
         _motion_alone(VELOCITY)),
    slow("mcm", "its velocity error is at most 1.2 of its teacher's",
         over_seeds(_near_teacher, "1.2 of the teacher's in 16 evaluations", ABOUT, "low", VELOCITY)),
    slow("mcm", "of a degraded teacher, its frames have at least 0.8 of the sharpness of stills",
         over_seeds(_near_stills, "0.8 of clean renders", ABOUT, "high", SHARP)),
)  # fmt: skip
