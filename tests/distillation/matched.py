"""What the tests of distribution matching share: Gaussian laws in closed form, quadrature, small networks, a run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.conditions.label import Label
from fewstep.core.methods import made
from fewstep.core.process import Process
from fewstep.data.dataset import Dataset, DataSpec
from fewstep.denoisers.gaussian_map import GaussianMap
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.distillation.method import Batch, Distiller, Setting
from fewstep.networks.mlp import MLP
from fewstep.processes.ve import EDM
from fewstep.training.players import optimise
from fewstep.training.players import restore as restore_players
from fewstep.training.players import state as players_state

F64 = torch.float64
RATIO = 3.0  # sigma / alpha at the start
MEAN, COVARIANCE = torch.tensor([0.3, -0.2], dtype=F64), torch.tensor([[0.6, 0.2], [0.2, 0.4]], dtype=F64)


# Gaussian laws


def start_of(process: Process) -> float:
    return float(process.time(-float(np.log(RATIO))))


def jumper(process: Process, mean: Tensor = MEAN, covariance: Tensor = COVARIANCE) -> GaussianMap:
    """A student of one step whose samples are Gaussian."""
    return GaussianMap(mean, covariance, process, "jump")


def affine(student: GaussianMap) -> tuple[Tensor, Tensor]:
    """mu and S with `f(sigma z, start) = mu + S z`, with their gradient."""
    start = torch.tensor([start_of(student.process)], dtype=F64)
    zero, one = torch.zeros(1, 1, dtype=F64), torch.eye(len(student.mean), dtype=F64)
    sigma = student.process.sigma(start)
    at = [student(sigma * z, start.expand(len(z))).x0 for z in (zero.expand(1, len(one)), one)]
    return at[0][0], (at[1] - at[0]).mT


def law(student: GaussianMap, kind: str = "denoiser") -> GaussianMap:
    """The denoiser of the law of a student's samples: the exact fake score."""
    with torch.no_grad():
        mean, root = affine(student)
    return GaussianMap(mean, root @ root.mT, student.process, kind)


def setting(student: Any, teacher: Any, fake: Any, **more: Any) -> Setting:
    return Setting(teacher, student, start_of(student.process), own=True, fake=fake, data_std=0.7, **more)


def one_component(mean: Tensor, covariance: Tensor, process: Process) -> GaussianMixture:
    return GaussianMixture(torch.ones(1), mean[None], covariance[None], process)


def hermite(d: int, process: Process, ratios: Sequence[float] = (0.1, 0.6, 2.0), n: int = 3) -> tuple[Batch, Tensor]:
    """Gauss and Hermite's nodes for z and eps in d dimensions, at some ratios sigma / alpha, and their weights."""
    points, weights = np.polynomial.hermite_e.hermegauss(n)
    grid = torch.tensor(list(itertools.product(points, repeat=2 * d)), dtype=F64)
    mass = torch.tensor([np.prod(one) for one in itertools.product(weights / weights.sum(), repeat=2 * d)], dtype=F64)
    return batch_of(grid[:, :d], grid[:, d:], mass, process, ratios)


def trapezoid(process: Process, ratio: float, n: int = 301, reach: float = 8.5) -> tuple[Batch, Tensor]:
    """Even nodes for z and eps in one dimension, whose error for analytic functions falls exponentially."""
    points = torch.linspace(-reach, reach, n, dtype=F64)
    mass = torch.exp(-(points**2) / 2)
    mass = mass / mass.sum()
    z, eps = (part.reshape(-1, 1) for part in torch.meshgrid(points, points, indexing="ij"))
    return batch_of(z, eps, torch.outer(mass, mass).flatten(), process, (ratio,))


def batch_of(z: Tensor, eps: Tensor, mass: Tensor, process: Process, ratios: Sequence[float]) -> tuple[Batch, Tensor]:
    k, n = len(ratios), len(z)
    t = torch.stack([torch.as_tensor(process.time(-float(np.log(ratio))), dtype=F64) for ratio in ratios])
    drawn = {
        "z": z.repeat(k, 1)[:, None], "place": 0, "eps": eps.repeat(k, 1), "t": t.repeat_interleave(n),
        "share": torch.full((k * n,), 0.5, dtype=F64), "condition": {},
    }  # fmt: skip
    return drawn, mass.repeat(k) / k


def gradient(loss: Callable[[Batch], Tensor], student: GaussianMap, drawn: Batch, weights: Tensor) -> Tensor:
    """Of the weighted mean of a loss, in the student's mean and log variances."""
    return flat(torch.autograd.grad((weights * loss(drawn)).sum(), list(student.parameters())))


def flat(parts: Any) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


def moved(student: GaussianMap, by: float = 0.1) -> GaussianMap:
    """The student beside itself: mean and log variances moved."""
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += by
    return student


# Networks


def perceptron(seed: int = 0, classes: int | None = None, process: Process | None = None, **options: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = MLP((2,), classes=classes, **{"width": 8, "depth": 3, **options})
    named = {} if classes is None else {"label": Label(classes)}
    return NetworkDenoiser(network, process or EDM(), "x0", (2,), named, "edm", 0.5, None)


def shaken(model: Any, seed: int = 1) -> Any:
    """With weights that are nowhere zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter)
    return model


def points(n: int = 50, classes: int | None = 3) -> Dataset:
    raw = torch.randn(n, 2, generator=torch.Generator().manual_seed(2))
    labels = None if classes is None else torch.arange(n) % classes
    return Dataset(DataSpec("points", (2,), (-1.0, 1.0), classes, n), raw, labels)


def built(name: str, iterations: int = 20, steps: int = 2, **options: Any) -> Distiller:
    """A method at work on tiny networks with three labels."""
    base = shaken(perceptron(classes=3))
    whole = Setting(
        base, base, 2.5, steps=steps, iterations=iterations, data=points(), data_std=0.5, lr=1e-2, hidden=0.2, ema=0.9
    )
    return made("distiller", name, 1, **options)(whole)


def train(method: Distiller, last: int, first: int = 0, batch: int = 6) -> Distiller:
    """Iterations up to the last, as a run makes them."""
    step = first

    def draw(batch: int, generator: torch.Generator) -> Batch:
        nonlocal step
        method.setting.step, step = step, step + 1
        return method.setting.mine(method.draw(batch, generator))

    optimise(method.players, draw, steps=last, batch=batch, seed=3, first=first)
    return method


def resumes(name: str, iterations: int = 20, **options: Any) -> bool:
    """Whether ten iterations, their state in another object, and ten more have the bits of twenty."""
    whole = train(built(name, iterations, **options), iterations)
    half = train(built(name, iterations, **options), iterations // 2)
    kept, own = players_state(half.players), {key: value.clone() for key, value in half.state().items()}
    other = built(name, iterations, **options)
    other.restore(own)
    restore_players(other.players, kept)
    train(other, iterations, iterations // 2)
    ends = [players_state(each.players) | each.state() for each in (whole, other)]
    return ends[0].keys() == ends[1].keys() and all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


# Learning


def mixture(process: Process | None = None) -> GaussianMixture:
    """Five components on a circle, near enough to touch: an exact teacher."""
    angle = torch.arange(5) * 2 * np.pi / 5
    means = 0.5 * torch.stack([angle.cos(), angle.sin()], 1)
    return GaussianMixture(torch.ones(5), means, 0.15**2, process or EDM())


def learned(
    name: str, iterations: int, steps: int = 1, batch: int = 128, lr: float = 3e-3, **options: Any
) -> tuple[float, float]:
    """Sliced Wasserstein distances of a student of the mixture, before and after so many iterations."""
    from fewstep.metrics.sliced_wasserstein import sliced_wasserstein
    from fewstep.sampling.build import plan

    teacher, wide = mixture(), {"width": 32, "depth": 3}
    raw = teacher.sample(4096, 1).float()
    data = Dataset(DataSpec("mixture", (2,), (-1.0, 1.0), None, len(raw)), raw)
    whole = Setting(
        teacher, perceptron(0, **wide), 3.0, steps=steps, iterations=iterations, data=data, data_std=0.5, lr=lr,
        own=True, fake=perceptron(1, **wide),
    )  # fmt: skip
    method = made("distiller", name, 1, **options)(whole)
    noise, real = torch.randn(1000, 2, generator=torch.Generator().manual_seed(9)), teacher.sample(1000, 5)
    made_plan = plan(
        teacher.process, "multistep-consistency", timesteps=[*(method.times() or ()), teacher.process.t_zero]
    )

    def distance() -> float:
        return sliced_wasserstein(made_plan(method.student, noise, seed=1).double(), real, projections=64).value

    before = distance()
    train(method, iterations, batch=batch)
    average = method.players["student"].average
    assert average is not None
    average.copy_to(method.student)
    return before, distance()
