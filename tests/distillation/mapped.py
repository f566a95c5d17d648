"""What the tests of flow maps share: the exact map of a Gaussian law as student and teacher, small networks, a run."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from fewstep.conditions.label import Label
from fewstep.conditions.time import Time
from fewstep.core.methods import made
from fewstep.core.process import Process
from fewstep.core.student import default_start
from fewstep.data.dataset import Dataset, DataSpec
from fewstep.denoisers.gaussian_map import GaussianMap
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.distillation import ctm
from fewstep.distillation.levels import grid
from fewstep.distillation.method import Distiller, Setting
from fewstep.metrics.endpoint import endpoint_error
from fewstep.networks.mlp import MLP
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.student import begun, leaps
from fewstep.training.players import optimise
from fewstep.training.players import restore as restore_players
from fewstep.training.players import state as players_state

F64 = torch.float64
PROCESSES = (EDM(), VP(), Flow())
MEAN = torch.tensor([0.3, -0.2, 0.1], dtype=F64)
COVARIANCE = torch.tensor([[0.5, 0.1, 0.0], [0.1, 0.3, 0.05], [0.0, 0.05, 0.2]], dtype=F64)
SEVEN = 7  # rows of a batch


def exact(process: Process, name: str, start: float | None = None, **options: Any) -> tuple[Distiller, GaussianMap]:
    """A method whose student is the exact map, and whose teacher and fake score are of the same law; and the law."""
    law = GaussianMap(MEAN, COVARIANCE, process, "denoiser")
    student = GaussianMap(MEAN, COVARIANCE, process)
    first = default_start(process, 0.5) if start is None else start
    setting = Setting(law, student, first, iterations=20, own=True, fake=law)
    return made("distiller", name, 1, **options)(setting), law


def beside(method: Distiller) -> None:
    """Moves the student away from the truth."""
    with torch.no_grad():
        for parameter, shift in zip(method.student.parameters(), (0.1, -0.2), strict=True):
            parameter.add_(shift)


def steepest(method: Distiller, drawn: Any = None) -> float:
    """The largest gradient of the student's loss at a batch."""
    drawn = method.draw(SEVEN, torch.Generator().manual_seed(0)) if drawn is None else drawn
    loss = method.players["student"].loss(drawn)
    assert loss.shape == (len(drawn["t"]),)
    return max(float(part.abs().max()) for part in torch.autograd.grad(loss.mean(), list(method.student.parameters())))


def exact_steps(monkeypatch: Any, law: GaussianMap) -> None:
    """The teacher's steps in closed form, where ctm takes them."""
    monkeypatch.setattr(ctm, "step", lambda model, x, t, s, condition, **options: law.flow(x, t, s))


# Networks


def network(process: Process, classes: int | None = None, seed: int = 0, width: int = 8, **extras: int) -> Any:
    """A small perceptron of points, all its weights moved."""
    torch.manual_seed(seed)
    conditions = {} if classes is None else {"label": Label(classes)}
    inner = MLP((2,), width, 3, classes=classes, extras=extras)
    for parameter in inner.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    if "target" in extras:
        conditions["to"] = Time()
    return NetworkDenoiser(inner, process, "x0", (2,), conditions, "edm", 0.5, None)


def points(n: int = 64, classes: int | None = None) -> Dataset:
    """Normal points, with labels in turn."""
    x = 0.5 * torch.randn(n, 2, generator=torch.Generator().manual_seed(3))
    labels = None if classes is None else torch.arange(n) % classes
    return Dataset(DataSpec("points", (2,), (-4.0, 4.0), classes, n), x, labels)


def built(name: str, process: Process, classes: int | None = None, data: Dataset | None = None, **options: Any) -> Any:
    """A method on small networks."""
    teacher = network(process, classes)
    setting = Setting(teacher, copy.deepcopy(teacher), default_start(process, 0.5), iterations=20, data=data)
    torch.manual_seed(1)
    return made("distiller", name, 1, **options)(setting)


def run(method: Distiller, last: int, first: int = 0, batch: int = 8) -> dict[str, Tensor]:
    """Iterations from first to last; the state of all players and of the method."""
    setting = method.setting

    def draw(size: int, generator: torch.Generator) -> Any:
        return setting.mine(method.draw(size, generator))

    def watch(moment: Any) -> None:
        setting.step = moment.step + 1

    setting.step = first
    optimise(method.players, draw, steps=last, batch=batch, seed=4, first=first, watch=watch)
    return players_state(method.players) | {f"method.{name}": value for name, value in method.state().items()}


def resumes(name: str, process: Process, classes: int | None = None, **options: Any) -> None:
    """Five iterations, a new method with the state of the old, and five more are ten, bit for bit."""
    whole = run(built(name, process, classes, **options), 10)
    half, other = built(name, process, classes, **options), built(name, process, classes, **options)
    run(half, 5)
    other.restore(half.state())
    restore_players(other.players, players_state(half.players))
    again = run(other, 10, first=5)
    assert whole.keys() == again.keys() and all(torch.equal(whole[key], again[key]) for key in whole)
    start = network(process, classes).state_dict()
    assert any(not torch.equal(whole[f"student.module.{key}"], value) for key, value in start.items())


# Learning


def mixture(process: Process) -> GaussianMixture:
    """Three components in the plane."""
    means = torch.tensor([[0.6, 0.3], [-0.6, 0.4], [0.0, -0.6]], dtype=F64)
    return GaussianMixture(torch.ones(3), means, torch.tensor([0.03, 0.05, 0.02], dtype=F64), process)


def learnt(
    name: str, process: Process, iterations: int, batch: int = 128, lr: float = 3e-3, **options: Any
) -> tuple[list[float], list[float], list[float]]:
    """Errors at 1, 2 and 4 steps of a student before and after training, and of the teacher's DDIM, relative to the
    ends of the teacher's flow, for the same noises."""
    teacher, start = mixture(process), default_start(process, 0.55)
    torch.manual_seed(0)
    conditions = {"to": Time()}
    inner = MLP((2,), 48, 3, extras={"target": 1})
    student = NetworkDenoiser(inner, process, "x0", (2,), conditions, "edm", 0.55, None)
    x = teacher.sample(4096, 2).float()
    data = Dataset(DataSpec("mixture", (2,), (-4.0, 4.0), None, len(x)), x)
    setting = Setting(teacher, student, start, iterations=iterations, data=data, data_std=0.55, lr=lr, own=True)
    method = made("distiller", name, 1, **options)(setting)
    noise = torch.randn(256, 2, generator=torch.Generator().manual_seed(8), dtype=F64)
    ends = plan(process, "vab-4", timesteps=grid(process, 100, start).tolist())(teacher, noise, dtype=F64)

    def errors(model: Any, solver: str) -> list[float]:
        plans = [plan(process, solver, timesteps=begun(leaps, start)(process, k)) for k in (1, 2, 4)]
        with torch.no_grad():
            return [endpoint_error(made(model, noise.float(), dtype=torch.float32), ends).value for made in plans]

    before = errors(student, "flow-map")
    run(method, iterations, batch=batch)
    method.players["student"].average.copy_to(student)
    return before, errors(student, "flow-map"), errors(teacher, "ddim")


def falls(before: list[float], after: list[float], ddim: list[float]) -> None:
    """The errors fall at 1, 2 and 4 steps, that of one step to a third of its start's and of DDIM's."""
    assert after[0] < min(before[0], ddim[0]) / 3
    assert all(a < b for a, b in zip(after, before, strict=True))
