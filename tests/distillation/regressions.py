"""What tests of regression methods share: the exact flow of a Gaussian, gradients at it and beside it, tiny runs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.conditions.label import Label
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import made
from fewstep.core.process import Process
from fewstep.core.student import default_start
from fewstep.data.dataset import Dataset, DataSpec
from fewstep.denoisers.gaussian_map import GaussianMap
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.distillation.distill import plan_of
from fewstep.distillation.method import Distiller, Setting
from fewstep.distillation.state import DistillState
from fewstep.metrics.sliced_wasserstein import sliced_wasserstein
from fewstep.networks.mlp import MLP
from fewstep.processes.ve import EDM
from fewstep.training.players import optimise, restore, state

MEAN = torch.tensor([0.3, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
STD = 0.6


def gaussian(process: Process, answers: str = "map") -> GaussianMap:
    return GaussianMap(MEAN, COVARIANCE, process, answers)


def setting_of(process: Process, student: Denoiser, steps: int = 1, **options: Any) -> Setting:
    """The Gaussian's own denoiser as the teacher of a student that is given."""
    teacher = gaussian(process, "denoiser").requires_grad_(False)
    options = {"start": default_start(process, STD), "data_std": STD, "own": True, **options}
    return Setting(teacher, student, steps=steps, **options)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(student: nn.Module, losses: Callable[[], Tensor]) -> tuple[float, float]:
    """The norm of the gradient of the mean loss at a student, and beside it: moments moved by a tenth."""

    def norm() -> float:
        found = torch.autograd.grad(losses().mean(), list(student.parameters()))
        return float(torch.cat([part.flatten() for part in found]).norm())

    at = norm()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1)
    return at, norm()


def labelled(n: int = 40) -> Dataset:
    raw = 0.5 * torch.randn(n, 2, generator=torch.Generator().manual_seed(5))
    return Dataset(DataSpec("drawn", (2,), None, 3, n), raw, torch.arange(n) % 3)


def work_of(name: str, process: Process, steps: int = 1, iterations: int = 20, **options: Any) -> Distiller:
    """A method at work on a tiny perceptron with three labels."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = NetworkDenoiser(MLP((2,), 8, 3, 3), process, "v", (2,), {"label": Label(3)}, value_range=None)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        start = default_start(process, 0.5)
        setting = Setting(model.requires_grad_(False), copy.deepcopy(model), start, steps, iterations,
                          None, labelled, 0.5, lr=1e-2, hidden=0.2)  # fmt: skip
        built: Distiller = made("distiller", name, 1, **options)(setting)
    return built


def on(work: Distiller, first: int, last: int) -> None:
    """Iterations first ... last - 1."""

    def draw(batch: int, generator: torch.Generator) -> Any:
        drawn = work.setting.mine(work.draw(batch, generator))
        work.setting.step += 1
        return drawn

    work.setting.step = first
    optimise(work.players, draw, steps=last, batch=6, seed=4, first=first)


def all_of(work: Distiller) -> dict[str, Tensor]:
    return state(work.players) | {f"own.{name}": value.clone() for name, value in work.state().items()}


def stopped_and_whole(build: Callable[[], Distiller], half: int = 10) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All tensors after ten iterations, a new start from what was saved and ten more, and after twenty; or others."""
    first = build()
    on(first, 0, half)
    players, own = state(first.players), {name: value.clone() for name, value in first.state().items()}
    again = build()
    again.restore(own)
    restore(again.players, players)
    on(again, half, 2 * half)
    whole = build()
    on(whole, 0, 2 * half)
    return all_of(again), all_of(whole)


def same(sides: tuple[dict[str, Tensor], dict[str, Tensor]]) -> bool:
    one, other = sides
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def learnt(
    name: str, teacher: Denoiser, student: Denoiser, steps: int, iterations: int, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """A plan's samples from 1000 noises before and after training a copy of the student, and those noises."""
    setting = Setting(teacher, copy.deepcopy(student), default_start(EDM(), 0.5), steps, iterations, data_std=0.5,
                      own=True, data=options.pop("data", None), lr=options.pop("lr", 4e-3))  # fmt: skip
    work: Distiller = made("distiller", name, 1, **options)(setting)
    run = DistillState(work, {}, seed=1, batch=128, accelerator=None)
    run.run(iterations)
    plan = plan_of(EDM(), work.kind, steps, setting.start, work.times())
    z = torch.randn(1000, 2, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        return plan(student, z), plan(run.averaged(), z), z


def distance(samples: Tensor, teacher: Any) -> float:
    """From exact samples of a mixture."""
    return sliced_wasserstein(samples, teacher.sample(4000, 2).float(), projections=64).value
