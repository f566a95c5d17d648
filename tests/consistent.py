"""Small problems of consistency methods: a Gaussian, whose map is exact, a mixture of the plane, and perceptrons."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from fewstep.conditions.label import Label
from fewstep.core.noise import Noise
from fewstep.core.process import Process
from fewstep.core.student import Student
from fewstep.data.dataset import Dataset, DataSpec
from fewstep.denoisers.gaussian_map import GaussianMap
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.distillation.method import Batch, Distiller, Setting
from fewstep.metrics.sliced_wasserstein import sliced_wasserstein
from fewstep.networks.mlp import MLP
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.sample import choose_plan
from fewstep.training.players import optimise

F64 = torch.float64
PROCESSES = [EDM(), VP(), Flow()]
MEAN, VARIANCES = torch.tensor([0.3, -0.2, 0.5], dtype=F64), torch.tensor([0.04, 0.3, 1.2], dtype=F64)


def gaussian(process: Process, kind: str, off: float = 0.0) -> GaussianMap:
    """A Gaussian in three dimensions; `off` moves its mean and the logarithms of its variances."""
    made = GaussianMap(MEAN.clone(), VARIANCES.clone(), process, kind)  # it keeps them as parameters
    with torch.no_grad():
        made.mean.add_(off)
        made.log_variances.add_(off)
    return made


def exact(process: Process, off: float = 0.0, student: torch.nn.Module | None = None, **options: object) -> Setting:
    """A setting whose teacher is exact, and whose student can be: the map to the clean end."""
    start = process.time(-math.log(5.0))
    base = gaussian(process, "jump", off) if student is None else student
    return Setting(gaussian(process, "denoiser"), base, start, own=True, data=points(3), **options)  # type: ignore[arg-type]


def points(d: int = 2, n: int = 500, classes: int | None = None) -> Dataset:
    """Gaussian points, with labels where there are classes."""
    x = 0.5 * torch.randn(n, d, generator=torch.Generator().manual_seed(7))
    labels = None if classes is None else torch.arange(n) % classes
    return Dataset(DataSpec("points", (d,), (-4.0, 4.0), classes, n), x, labels)


def plane(process: Process) -> GaussianMixture:
    """Three narrow components of the plane."""
    means = torch.tensor([[-0.8, 0.0], [0.5, 0.7], [0.5, -0.7]], dtype=F64)
    return GaussianMixture(torch.ones(3), means, 0.02, process)


def perceptron(
    process: Process, seed: int = 0, classes: int | None = None, width: int = 32, **options: object
) -> NetworkDenoiser:
    """A perceptron of points of the plane."""
    torch.manual_seed(seed)
    named = {"precondition": "edm", "predicts": "x0", "data_std": 0.6} | options
    return NetworkDenoiser(
        MLP((2,), width, 2, classes), process, shape=(2,), value_range=None,
        conditions={} if classes is None else {"label": Label(classes)}, **named,  # type: ignore[arg-type]
    )  # fmt: skip


def small(process: Process, seed: int = 0, data: bool = True, classes: int | None = None, **options: object) -> Setting:
    """A setting of a tiny student: of the mixture, or where there are classes, of a perceptron that knows them."""
    base = perceptron(process, seed, classes)
    teacher = plane(process) if classes is None else perceptron(process, seed + 1, classes)
    known = Dataset(DataSpec("plane", (2,), (-4.0, 4.0), None, 2000), plane(process).sample(2000, 1).float())
    kept = {"data": (known if classes is None else points(2, classes=classes)) if data else None, "data_std": 0.6}
    return Setting(teacher, base, process.time(-math.log(4.0)), **({"iterations": 20, "lr": 3e-3} | kept | options))  # type: ignore[arg-type]


def train(method: Distiller, last: int, batch: int = 8, seed: int = 0) -> None:
    """Iterations up to `last`, as a run has them."""
    setting = method.setting

    def draw(batch: int, generator: torch.Generator) -> Batch:
        return setting.mine(method.draw(batch, generator))

    def watch(moment: object) -> None:
        setting.step += 1

    optimise(method.players, draw, steps=last, batch=batch, seed=seed, first=setting.step, watch=watch)


def drawn(method: Distiller, batch: int = 8, seed: int = 0) -> Batch:
    """What an iteration draws."""
    return method.setting.mine(method.draw(batch, torch.Generator().manual_seed(seed)))


def slopes(method: Distiller, batch: Batch) -> Tensor:
    """The gradient of the student's loss in all its parameters, as one vector."""
    parameters = list(method.student.parameters())
    found = torch.autograd.grad(method.players["student"].loss(batch).mean(), parameters, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found, strict=True)]
    )


@torch.no_grad()
def distance(method: Distiller, n: int = 1024, steps: int = 1) -> float:
    """Sliced Wasserstein distance of the averaged student's samples to the mixture's: in one step by its own call, in
    more by the plan of a student that was trained at every time."""
    import copy

    setting, student = method.setting, copy.deepcopy(method.student)
    average = method.players["student"].average
    assert average is not None
    average.copy_to(student)
    noise = Noise(3).normal(0, (n, 2))
    if steps == 1:
        made = student(setting.begin(noise), setting.times(setting.start, n)).x0
    else:
        student.student = Student("jump", "", start=setting.start)
        made = choose_plan(student, steps=steps)(student, noise, seed=3).float()
    return sliced_wasserstein(made, plane(setting.process).sample(n, 9).float(), projections=32).value


def tensors(thing: object) -> Iterator[Tensor]:
    """All tensors in a batch."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, dict):
        for part in thing.values():
            yield from tensors(part)
