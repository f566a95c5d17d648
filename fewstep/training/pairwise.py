"""Pairwise sample optimisation: a few-step student learns from pairs of samples, one of which is preferred."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise as neighbours
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.core.noise import Noise
from fewstep.core.process import Process
from fewstep.metrics.rewards import Reward
from fewstep.training.players import Moment, Player, optimise
from fewstep.training.reward import Conditions, fixed_or_drawn

METHODS = (
    Method(
        "pso",
        kind="tuner",
        paper="Tuning Timestep-Distilled Diffusion Model Using Pairwise Sample Optimization (Miao et al., 2024)",
        arxiv="2410.03190",
        claim="tunes a few-step student by pairs of samples, without distilling again and without blur",
        use="pairwise",
    ),
)

NOISES = ("fresh", "posterior")

# (count, generator) to preferred samples, others, both data (B, ...), and the conditions of both.
Pairs = Callable[[int, torch.Generator], tuple[Tensor, Tensor, Mapping[str, Any]]]
# The states of the preferred samples and of the others, the weight of each pair (B,), and its conditions.
Sides = tuple[list[list[Tensor]], Tensor, dict[str, Tensor]]


@dataclass(frozen=True)
class Transition:
    """One step of a student: from time a to b, `x_b = of_x x_a + of_x0 x0 + std z`, x0 what it predicts at x_a."""

    a: float
    b: float
    of_x: float
    of_x0: float
    std: float

    def mean(self, x: Tensor, x0: Tensor) -> Tensor:
        return self.of_x * x + self.of_x0 * x0


def transitions(process: Process, times: Sequence[float], noise: str = "fresh") -> list[Transition]:
    """The steps of a student over decreasing times, the last of which may be the clean sample's.

    noise "fresh": x0 is predicted and all noise is redrawn (consistency models); "posterior": the noise of
    DDPM's posterior (DDIM's eta = 1). `x_b = alpha_b x0 + sqrt(sigma_b^2 - std^2) eps + std z` holds for both.

    Raises:
        ValueError: another noise, fewer than two times, times that do not decrease.
    """
    from fewstep.sampling.ddim import ancestral

    if noise not in NOISES:
        raise suggest("noise of a student", noise, NOISES)
    if len(times) < 2 or any(a <= b for a, b in neighbours(times)):
        raise ValueError(f"a student needs two or more decreasing times, got {list(times)}")
    made = []
    for a, b in neighbours(times):
        std = process.sigma(b) if noise == "fresh" else ancestral(process, a, b, 1.0)
        rest = math.sqrt(max(process.sigma(b) ** 2 - std**2, 0.0)) / process.sigma(a)
        made.append(Transition(a, b, rest, process.alpha(b) - rest * process.alpha(a), std))
    return made


def rollout(
    model: Denoiser,
    steps: Sequence[Transition],
    count: int,
    *,
    seed: int = 0,
    first: int = 0,
    data: Tensor | None = None,
    **condition: Any,
) -> list[Tensor]:
    """The states `(count, *shape)` of a student at all its times; sample i is that of `(seed, first + i)`.

    With `data` `(count, ...)` they are states from which the student would have reached these samples: the same chain
    with the data (in the process's coordinates) in place of the predicted x0. Its last state is then the data.

    Raises:
        ValueError: a model without a shape, unknown conditions.
    """
    if model.shape is None:
        raise ValueError("this denoiser takes any shape: a rollout needs one that has its own")
    device = model.device
    named = model.check_condition(condition, count, device)
    source, shape = Noise(seed, first), (count, *model.shape)
    process = model.process
    x = process.sigma(steps[0].a) * process.start(lambda draw: source.normal(draw, shape, device))
    if data is not None:
        x = x + process.alpha(steps[0].a) * data
    states = [x]
    for number, step in enumerate(steps, 1):
        with torch.no_grad():
            x0 = data if data is not None else model(x, torch.tensor(step.a, dtype=x.dtype, device=device), **named).x0
        x = step.mean(x, x0)
        if step.std > 0:
            x = x + step.std * source.normal(number, shape, device)
        states.append(x)
    return states


def log_ratio(
    model: Denoiser,
    base: Denoiser,
    steps: Sequence[Transition],
    states: Sequence[Tensor],
    last_std: float = 0.0,
    **condition: Tensor,
) -> Tensor:
    """log p(states) - log p_base(states) of two students, `(B,)`, given the first state.

    Every step is Gaussian, so it is the sum of `(|x_b - mean_base|^2 - |x_b - mean|^2) / (2 std^2)`. A step without
    noise has no density: it counts as if it had noise of `last_std`, or not at all where that is 0.

    Raises:
        ValueError: no step has noise.
    """
    total, counted = torch.zeros(len(states[0]), device=states[0].device), False
    for step, x, reached in zip(steps, states[:-1], states[1:], strict=True):
        std = step.std if step.std > 0 else last_std
        if std <= 0:
            continue
        counted = True
        t = torch.tensor(step.a, dtype=x.dtype, device=x.device)
        with torch.no_grad():
            before = step.mean(x, base(x, t, **condition).x0)
        now = step.mean(x, model(x, t, **condition).x0)
        # The difference of the squares as a product: equal means give exactly zero.
        total = total + ((now - before) * (reached - (now + before) / 2)).flatten(1).sum(1) / std**2
    if not counted:
        raise ValueError("no step of this student has noise: give last_std, the noise its last step counts as")
    return total


@dataclass(frozen=True)
class Preferred:
    """The model; for each step the loss, and the share of pairs whose preferred sample has the higher log-ratio."""

    model: Denoiser
    losses: list[float]
    right: list[float]


def pairwise(
    model: Denoiser,
    times: Sequence[float],
    *,
    steps: int,
    pairs: Pairs | None = None,
    score: Reward | None = None,
    conditions: Conditions | Mapping[str, Any] | None = None,
    batch: int = 32,
    lr: float = 1e-4,
    beta: float = 0.1,
    noise: str = "fresh",
    last_std: float = 0.0,
    parameters: Sequence[nn.Parameter] | None = None,
    clip: float = 1.0,
    seed: int = 0,
    watch: Callable[[int, Tensor], Any] | None = None,
) -> Preferred:
    """Makes a student prefer one sample of each pair to the other, in place.

    Minimises `-log sigmoid(beta (r(preferred) - r(other)))`, r the `log_ratio` of a sample's states to the original
    student. Only the margin counts: neither sample is a target to be averaged with others, which is what blurs a
    distilled student that is trained to denoise.

    Args:
        times: of the student, decreasing; noise: how it goes from one to the next, as `transitions`.
        pairs: offline, stored pairs; their states are drawn by the forward process.
        score: online instead, `score(x, **condition) -> (B,)`: the current student draws both samples of a pair, and
            the higher score is preferred; equal ones have no effect. conditions: of those samples, as in `tune`.
        beta: nats to logits; the larger, the closer the student stays to the original.
        last_std: the noise ascribed to a last step without noise, in units of the samples; 0 leaves the step out.
        parameters: those to train, by default all that require gradients.

    Raises:
        ValueError: neither or both of pairs and score, counts or beta out of range; as `transitions`, `log_ratio`.
        FloatingPointError: a loss that is not finite, at the end.
    """
    if (pairs is None) == (score is None):
        raise ValueError("give either pairs (offline) or score (online)")
    if min(steps, batch) < 1 or not beta > 0:
        raise ValueError(f"steps and batch must be at least 1 and beta positive, got {steps}, {batch} and {beta}")
    trained = [p for p in (parameters if parameters is not None else model.parameters()) if p.requires_grad]
    if not trained:
        raise ValueError("no parameter to train asks for gradients")
    chain = transitions(model.process, times, noise)
    model.eval()
    base = copy.deepcopy(model).requires_grad_(False)
    draw, device, numbers = fixed_or_drawn(conditions), trained[0].device, itertools.count()
    losses, right, margins = torch.zeros(steps), torch.zeros(steps), list[Tensor]()

    def sides(count: int, generator: torch.Generator) -> Sides:
        first = 2 * next(numbers) * count
        if pairs is not None:
            better, worse, condition = pairs(count, generator)
            named = model.check_condition(dict(condition), count, device)
            both = [
                rollout(model, chain, count, seed=seed, first=start, data=model.encode(x.to(device), **named), **named)
                for start, x in ((first, better), (first + count, worse))
            ]
            return both, torch.ones(count, device=device), named
        assert score is not None
        named = model.check_condition(dict(draw(count, generator)), count, device)
        both = [rollout(model, chain, count, seed=seed, first=start, **named) for start in (first, first + count)]
        scores = [score(model.decode(side[-1], **named), **named) for side in both]
        swap = scores[1] > scores[0]
        ordered = [
            [torch.where(swap.view(-1, *[1] * (u.ndim - 1)), v, u) for u, v in zip(one, two, strict=True)]
            for one, two in (both, both[::-1])
        ]
        return ordered, (scores[0] != scores[1]).float(), named

    def loss(drawn: Sides) -> Tensor:
        both, weight, named = drawn
        states = [torch.cat(pair) for pair in zip(*both, strict=True)]
        twice = {name: torch.cat([value, value]) for name, value in named.items()}
        preferred, other = log_ratio(model, base, chain, states, last_std, **twice).chunk(2)
        margins[:] = [preferred - other]
        return -(weight * F.logsigmoid(beta * margins[0])).sum() / weight.sum().clamp(min=1)

    def watched(moment: Moment) -> None:
        margin = margins[0].detach()
        losses[moment.step], right[moment.step] = moment.losses["model"], (margin > 0).float().mean()
        if watch is not None:
            watch(moment.step, margin)

    player = Player(model, loss, parameters=trained, lr=lr, clip=clip)
    seeded = torch.Generator().manual_seed(seed)
    optimise({"model": player}, sides, steps=steps, batch=batch, seed=seeded, watch=watched)
    return Preferred(model, losses.tolist(), right.tolist())
