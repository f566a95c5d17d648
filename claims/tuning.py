"""What the claims about fine-tuning share: the digits as data, what is measured on them, and a few-step student."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from claims.common import Denoiser, Noise, Plan, plan, sliced
from claims.trained import NetworkDenoiser, UNet, fresh
from fewstep.data import digits
from fewstep.hub.models import load
from fewstep.training.pairwise import rollout, transitions

STUDENT_TIMES = (80.0, 1.2, 0.0)


@functools.cache
def data() -> tuple[Tensor, Tensor]:
    """The digits' training split."""
    return digits.load("train")


def labels(count: int, generator: torch.Generator) -> Mapping[str, Any]:
    """Classes drawn evenly."""
    return {"label": torch.randint(0, 10, (count,), generator=generator)}


def in_turn(count: int) -> Tensor:
    return torch.arange(count) % 10


def chain(model: Denoiser, nfe: int) -> Plan:
    return plan(model.process, "dpmpp-2m", timesteps="karras", nfe=nfe)


def samples(model: Denoiser, made: Plan, count: int, seed: int, label: Tensor) -> Tensor:
    return made(model, Noise(seed).normal(0, (count, 1, 8, 8)), seed=seed, label=label)


def class_distance(x: Tensor, label: Tensor, classes: Sequence[int] = range(10)) -> float:
    """Mean over classes of the sliced Wasserstein distance of the samples of a class from its training digits."""
    images, own = data()
    parts = [sliced(x[label == k], images[own == k]) for k in classes]
    return sum(parts) / len(parts)


def detail(x: Tensor) -> float:
    """Mean energy of the frequencies above half of the highest, in either direction: what blur takes away."""
    spectrum = torch.fft.fft2(x[:, 0] - x[:, 0].mean(), norm="ortho").abs().square()
    high = torch.fft.fftfreq(8).abs() > 0.25
    return float(spectrum[:, high[:, None] | high[None, :]].mean())


@functools.cache
def ink_range() -> Tensor:
    """Per class the median and the most ink of a training digit, (10, 2), as mean pixels."""
    images, own = data()
    ink = images.flatten(1).mean(1)
    return torch.stack([torch.stack([ink[own == k].median(), ink[own == k].max()]) for k in range(10)])


def heavy(x: Tensor, label: Tensor) -> Tensor:
    """Whether a digit has more ink than the median of its class, and no more than the most: (B,) of 0 and 1."""
    ink, (median, most) = x.flatten(1).mean(1), ink_range()[label].unbind(1)
    return ((ink > median) & (ink <= most)).float()


@functools.cache
def student() -> NetworkDenoiser:
    """A two-step student of the embedded digits: a small network that gives the ends of the teacher's paths.

    From noise, at the first time, it is shown the end of the teacher's path; from that end with noise of the second
    time, the end of the path from there. 512 pairs each, 300 steps of 32 of each.
    """
    teacher = load("digits")
    count, process = 512, teacher.process
    noise, label = Noise(1000).normal(0, (2 * count, 1, 8, 8)), in_turn(count)
    first, second = noise.split(count)
    ends = chain(teacher, 6)(teacher, first, label=label)
    middle = STUDENT_TIMES[1]
    rest = plan(process, "dpmpp-2m", timesteps=[middle, 0.5, 0.2, 0.06, process.t_zero])
    again = rest(teacher, second, init=ends, label=label)
    pairs = ((STUDENT_TIMES[0] * first, ends, STUDENT_TIMES[0]), (ends + middle * second, again, middle))
    network = fresh(UNet, 0, channels=1, size=8, width=(16, 32), attention=(4,), classes=10)
    made = NetworkDenoiser(network, process, "x0", (1, 8, 8), teacher.conditions, "edm", teacher.data_std)
    steps, generator = 300, torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(made.parameters(), lr=3e-3, weight_decay=0.0)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
        rows = torch.randint(count, (32,), generator=generator)
        errors = [made(x[rows], torch.tensor(t), label=label[rows]).x0 - wanted[rows] for x, wanted, t in pairs]
        loss = torch.zeros(()) + errors[0].square().mean() + errors[1].square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return made.eval()


def student_samples(model: NetworkDenoiser, count: int, seed: int) -> Tensor:
    """Two-step samples, classes in turn."""
    steps = transitions(model.process, [*STUDENT_TIMES[:-1], model.process.t_zero])
    return rollout(model, steps, count, seed=seed, label=in_turn(count))[-1]


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most memory that a run holds beyond what was held when it began, in tensors on the CPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    events = sorted(
        (event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"),  # type: ignore[union-attr]
        key=lambda event: event.start_ns(),
    )
    held = most = 0
    for event in events:
        held += event.nbytes()
        most = max(most, held)
    return most
