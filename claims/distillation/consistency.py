"""Claims of consistency methods: on the eight-component mixture, both sides of each at equal evaluations.

An evaluation is a forward pass of one sample by any of the networks or the teacher; with its backward pass it is 3. The
teacher is exact. Every student begins as the same perceptron, which was trained on the data as a diffusion model.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from claims.common import (
    EDM,
    ENDPOINT,
    F64,
    SLICED,
    Claim,
    Denoiser,
    Noise,
    Run,
    endpoint_error,
    over_seeds,
    plan,
    sliced,
    slow,
)  # fmt: skip
from claims.problems import mixture
from claims.trained import MLP, NetworkDenoiser, NoiseLevels, fit, fresh
from fewstep.core.denoiser import Wrapper
from fewstep.core.methods import made
from fewstep.core.prediction import Prediction, expand
from fewstep.core.student import Student, default_start
from fewstep.data.dataset import Dataset, DataSpec
from fewstep.distillation.method import Batch, Distiller, Setting
from fewstep.distillation.regression import pairing_plan
from fewstep.sampling.sample import choose_plan
from fewstep.sampling.student import begun
from fewstep.training.players import optimise

PROCESS = EDM()
BUDGET, BATCH, RATE, TRIAL = 500_000, 128, 2e-3, 16  # evaluations of a run; iterations by which its cost is found
BASE_STEPS, BASE_BATCH = 1500, 256  # of the diffusion model that students begin as
N, TRUTH = 2048, 1000  # samples that are judged; what is added to the seeds of exact ones
BIASES = {"scaled": (0.9, 0.0), "field": (1.0, 0.3)}  # a factor of the score, and the size of a field that is added
NEAR, MANY = 0.05, 8192  # of the data, asked of one step by so many samples: two sets of exact ones are 0.015 apart
ABOUT = f"8-component mixture, perceptron of 64, {BUDGET:,} evaluations"
MODES = "total variation of the modes' weights"


class Arm(NamedTuple):
    """One side of a claim: a method with its options, the teacher's bias, and the share of the budget."""

    method: str
    options: tuple[tuple[str, Any], ...] = ()
    bias: str = ""
    share: float = 1.0


def arm(method: str, bias: str = "", share: float = 1.0, **options: Any) -> Arm:
    return Arm(method, tuple(sorted(options.items())), bias, share)


class Biased(Wrapper):
    """A teacher with a wrong score: `scale` times it, and a smooth field of the size `field`."""

    def __init__(self, model: Denoiser, scale: float, field: float) -> None:
        super().__init__(model)
        self.scale, self.field = scale, field

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        sigma, answer = expand(self.process.sigma(t), x), self.model(x, t, **condition)
        wave = torch.stack([torch.sin(3 * x[:, 1]), torch.cos(3 * x[:, 0])], 1)
        x0 = x - self.scale * sigma * answer.eps + self.field * sigma**2 / (1 + sigma**2) * wave
        return Prediction(x0, "x0", x, t, self.process)


@functools.cache
def data(seed: int) -> Dataset:
    raw = mixture(PROCESS).sample(8192, seed).float()
    return Dataset(DataSpec("mixture", (2,), (-math.inf, math.inf), None, len(raw)), raw)


@functools.cache
def base(seed: int) -> NetworkDenoiser:
    """The diffusion model that every student of a seed begins as."""
    std = data(seed).std()
    network = fresh(MLP, seed, width=64, depth=3)
    model = NetworkDenoiser(network, PROCESS, "x0", (2,), precondition="edm", data_std=std, value_range=None)
    levels = NoiseLevels(PROCESS, "log-normal", -1.2, 1.2)
    return fit(model, data(seed).images, steps=BASE_STEPS, batch=BASE_BATCH, lr=RATE, levels=levels, seed=seed)


def setting(arm: Arm, seed: int, iterations: int) -> Setting:
    std = data(seed).std()
    teacher: Denoiser = mixture(PROCESS)
    if arm.bias:
        teacher = Biased(teacher, *BIASES[arm.bias])
    return Setting(
        teacher, base(seed), default_start(PROCESS, std), iterations=iterations, data=data(seed), data_std=std,
        batch=BATCH, lr=RATE, seed=seed,
    )  # fmt: skip


def train(method: Distiller, first: int, last: int, seed: int) -> None:
    """The iterations from `first` to before the last."""
    own = method.setting
    own.step = first

    def draw(batch: int, generator: torch.Generator) -> Batch:
        return own.mine(method.draw(batch, generator))

    def after(moment: Any) -> None:
        own.step = moment.step + 1

    optimise(method.players, draw, steps=last, batch=BATCH, seed=seed, first=first, watch=after)


def within(build: Callable[[int], Distiller], budget: float, seed: int) -> int:
    """How many iterations fit into a budget of evaluations: by one in each of so many equal parts of a run."""
    trial = build(TRIAL)
    train(trial, 0, TRIAL, seed)
    return int(budget / trial.setting.count.evaluations * TRIAL)


@functools.cache
def student(arm: Arm, seed: int) -> Denoiser:
    """An arm's student after its budget, with its averaged weights."""

    def build(iterations: int) -> Distiller:
        found: Distiller = made("distiller", arm.method, 1, **dict(arm.options))(setting(arm, seed, iterations))
        return found

    budget = BUDGET * arm.share
    method = build(within(build, budget, seed))
    train(method, 0, method.setting.iterations, seed)
    assert abs(method.setting.count.evaluations / budget - 1) < 0.03
    found = copy.deepcopy(method.student).eval().requires_grad_(False)
    average = method.players["student"].average
    assert average is not None
    average.copy_to(found)
    found.student = Student(method.kind, arm.method, start=method.setting.start, times=method.times())
    return found


@functools.cache
def samples(arm: Arm, seed: int, steps: int = 1, n: int = N) -> Tensor:
    """n of an arm's student, of one series of noises for all arms of a seed."""
    model = student(arm, seed)
    noise = Noise(seed + 100).normal(0, (n, 2))
    return choose_plan(model, steps=steps)(model, noise, seed=seed).double()


@functools.cache
def truth(seed: int, n: int = N) -> Tensor:
    return mixture(PROCESS).sample(n, TRUTH + seed)


@functools.cache
def ends(seed: int) -> Tensor:
    """Where the teacher's own flow takes the same noises."""
    start = default_start(PROCESS, data(seed).std())
    noise = Noise(seed + 100).normal(0, (N, 2)).double()
    return plan(PROCESS, "vab-4", 100, begun("karras", start))(mixture(PROCESS), noise, dtype=F64)


def wasserstein(arm: Arm, seed: int, steps: int = 1, n: int = N) -> float:
    return sliced(samples(arm, seed, steps, n), truth(seed, n))


def endpoint(arm: Arm, seed: int) -> float:
    return endpoint_error(samples(arm, seed), ends(seed)).value


def modes(arm: Arm, seed: int, steps: int = 2) -> float:
    """Total variation between the shares of samples nearest to each component and those of exact ones."""
    centres = mixture(PROCESS).means.double()

    def shares(x: Tensor) -> Tensor:
        return torch.bincount(torch.cdist(x, centres).argmin(1), minlength=len(centres)) / len(x)

    return float((shares(samples(arm, seed, steps)) - shares(truth(seed))).abs().sum() / 2)


def _plan(seed: int, nfe: int) -> float:
    """The distance of the teacher's best plan of so many evaluations."""
    chosen = pairing_plan(setting(CONSISTENCY, seed, 1), None, nfe)
    return sliced(chosen(mixture(PROCESS), Noise(seed + 100).normal(0, (N, 2)).double(), dtype=F64), truth(seed))


def _distance(ours: Arm, theirs: Arm, against: str, steps: int = 1, about: str = ABOUT) -> Run:
    about = f"{about}; {steps} step{'s' if steps > 1 else ''}"
    return over_seeds(lambda s: [wasserstein(side, s, steps) for side in (ours, theirs)], against, about, unit=SLICED)


def _ends(ours: Arm, theirs: Arm, against: str, about: str = ABOUT) -> Run:
    return over_seeds(
        lambda s: [endpoint(side, s) for side in (ours, theirs)], against, f"{about}; 1 step", unit=ENDPOINT
    )


def _against_plan(ours: Arm, steps: int, nfe: int) -> Run:
    about = f"{ABOUT}; {steps} step{'s' if steps > 1 else ''}"
    against = f"the teacher's best plan of {nfe} evaluations"
    return over_seeds(lambda s: [wasserstein(ours, s, steps), _plan(s, nfe)], against, about, unit=SLICED)


def _near(side: Arm) -> Run:
    about = f"{ABOUT}; 1 step, {MANY:,} samples"
    return over_seeds(lambda s: [wasserstein(side, s, n=MANY), NEAR], "tolerance", about, unit=SLICED)


METHODS = ("consistency", "ict", "ect", "scm", "tcm", "lcm", "mlcm", "tscd", "scott", "splam")
CONSISTENCY, ICT, ECT, SCM, TCM = map(arm, ("consistency", "ict", "ect", "scm", "tcm"))
FIRST = arm("ict", average=True, distance="squared", curriculum="root", levels="even", weight="one")
SWITCHES: dict[str, dict[str, Any]] = {
    "no average in the target": {"average": True},
    "the pseudo-Huber distance": {"distance": "squared"},
    "a number of levels that doubles": {"curriculum": "root"},
    "log-normal levels": {"levels": "even"},
    "the inverse weight": {"weight": "one"},
}
QUARTER = arm("ect", share=0.25)
LESS = f"{ABOUT}, of which ect takes a quarter"
MLCM, LCM, ONE, NOISED = arm("mlcm"), arm("lcm"), arm("mlcm", segments=(1,)), arm("mlcm", states="data")


def _scott(bias: str) -> tuple[Claim, ...]:
    ours, theirs = arm("scott", bias), arm("scott", bias, eta=0.0)
    about = f"{ABOUT}; teacher with a wrong score ({bias})"
    rows = _distance(ours, theirs, "the same without noise (eta=0)", 2, about)
    weights = over_seeds(
        lambda s: [modes(side, s) for side in (ours, theirs)], "the same without noise (eta=0)", f"{about}; 2 steps",
        unit=MODES,
    )  # fmt: skip
    return (
        slow("scott", f"noise on the way brings a teacher's wrong score nearer to the data: {bias}", rows),
        slow("scott", f"noise on the way keeps the modes' weights under a wrong score: {bias}", weights),
    )


def _splam(k: int, steps: int) -> Claim:
    ours, theirs = arm("splam", stride=k), arm("lcm", stride=k)
    said = f"at skips of {k} on the grid of 50, {steps} steps are nearer to the data"
    return slow("splam", said, _distance(ours, theirs, f"lcm at skips of {k}", steps))


def _growth(steps: int = 2) -> Run:
    def figures(seed: int) -> list[float]:
        sides = [[wasserstein(arm(name, stride=k), seed, steps) for k in (5, 20)] for name in ("splam", "lcm")]
        return [far - near for near, far in sides]

    about = f"{ABOUT}; {steps} steps, skips of 20 less those of 5"
    return over_seeds(figures, "lcm", about, unit=f"growth of the {SLICED}")


CLAIMS = (
    slow("consistency", "one step is nearer to the data than two evaluations of the teacher's best plan",
         _against_plan(CONSISTENCY, 1, 2)),
    slow("ict", "one step is nearer to the data than consistency training as first published",
         _distance(ICT, FIRST, "consistency training as first published")),
    slow("ict", "two steps are nearer to the data than consistency training as first published",
         _distance(ICT, FIRST, "consistency training as first published", 2)),
    slow("ict", "its ends are nearer to the flow's than those of consistency training as first published",
         _ends(ICT, FIRST, "consistency training as first published")),
    *(slow("ict", f"{said} brings one step nearer to the data", _distance(ICT, arm("ict", **off), "taken back"))
      for said, off in SWITCHES.items()),
    slow("ect", "at a quarter of the cost one step is as near to the data", _distance(QUARTER, ICT, "ict", about=LESS)),
    slow("ect", "at a quarter of the cost two steps are as near to the data",
         _distance(QUARTER, ICT, "ict", 2, about=LESS)),
    slow("ect", "at a quarter of the cost its ends are as near to the flow's", _ends(QUARTER, ICT, "ict", about=LESS)),
    slow("scm", "one step is nearer to the data than on a grid", _distance(SCM, CONSISTENCY, "consistency")),
    slow("scm", "two steps are nearer to the data than on a grid", _distance(SCM, CONSISTENCY, "consistency", 2)),
    slow("scm", "its ends are nearer to the flow's than on a grid", _ends(SCM, CONSISTENCY, "consistency")),
    slow("tcm", "a second stage at large noise alone brings one step nearer to the data",
         _distance(TCM, ECT, "stage one (ect) run on")),
    slow("lcm", "four steps are nearer to the data than two evaluations of the teacher's best plan",
         _against_plan(LCM, 4, 2)),
    *(slow("mlcm", f"falling numbers of segments bring {k} steps nearer to the data than one segment from the outset",
           _distance(MLCM, ONE, "one segment on the same states", k)) for k in (2, 4, 8)),
    *(slow("mlcm", f"states of the teacher's bring {k} steps nearer to the data than noised data",
           _distance(MLCM, NOISED, "noised data", k)) for k in (2, 4, 8)),
    slow("tscd", "its adversarial loss brings two steps nearer to the data",
         _distance(arm("tscd"), arm("tscd", gan=0.0), "the same without the adversarial loss", 2)),
    *_scott("scaled"),
    *_scott("field"),
    *(_splam(k, 2) for k in (5, 10, 20)),
    *(_splam(k, 4) for k in (5, 10, 20)),
    slow("splam", "its distance grows less with the length of the skips", _growth()),
    *(slow(name, f"one step is within {NEAR} of the data", _near(arm(name))) for name in METHODS),
)  # fmt: skip
