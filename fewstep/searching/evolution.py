"""Diffusion Evolution: a population that is denoised towards high fitness, without a network.

The posterior mean of clean data is `x0 = integral p(x) N(x_t; alpha x, sigma^2) x dx` over the same without its last x.
Take for p(x) what is fit, `g(f(x))`, and for the integral a sum over a population drawn from some law q:

    x0 = sum_j w_j N(x_t; alpha x_j, sigma^2) x_j / sum_j w_j N(x_t; alpha x_j, sigma^2),    w_j = g(f(x_j)) / q(x_j).

In the paper (equation 8) the population is the noisy samples themselves, and q counts as constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.core.arguments import check_whole, checked, shown
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.noise import Noise
from fewstep.core.prediction import Prediction
from fewstep.core.process import Process, process_from_config
from fewstep.core.sampler import Sampler
from fewstep.processes.cosine import Cosine
from fewstep.sampling.build import plan as make_plan

METHODS = (
    Method(
        "diffusion-evolution",
        kind="optimiser",
        paper="Diffusion Models are Evolutionary Algorithms (Zhang et al., 2024)",
        arxiv="2410.02543",
        claim="a population denoised by its own fitness covers several optima",
        use="evolve",
    ),
)

# (individuals (N, *shape)) to (N,); higher is fitter.
Fitness = Callable[[Tensor], Tensor]
PROJECTION = 1 << 24  # the draw of a seed's stream that makes the projection


def posterior_mean(
    x: Tensor,
    individuals: Tensor,
    log_weights: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    projection: Tensor | None = None,
) -> Tensor:
    """x0 `(B, *shape)` of noisy x `(B, *shape)`, as the average of individuals `(N, *shape)` under their weights.

    Args:
        log_weights: `(N,)`, -inf for those that do not count. alpha, sigma: scalars, or `(B,)`.
        projection: `(D, k)`, by which distances are measured; by default in all D elements of a sample.
    """
    flat, others = x.flatten(1), individuals.flatten(1)
    here, there = (flat, others) if projection is None else (flat @ projection, others @ projection)
    alpha, sigma = (torch.as_tensor(number).to(x).reshape(-1, 1) for number in (alpha, sigma))
    # Of |x - alpha x_j|^2 what is common to all j cancels in the weights; the rest is a product.
    gaps = alpha**2 * there.square().sum(1) - 2 * alpha * (here @ there.T)
    logits = log_weights.to(x) - gaps / (2 * sigma.clamp(min=torch.finfo(x.dtype).tiny ** 0.25) ** 2)
    return (torch.softmax(logits, 1) @ others).reshape(x.shape)


class Population(Denoiser):
    """The network-free denoiser: the samples of a call are the population, and x0 of each is their weighted average.

    Args:
        fitness: `fitness(individuals) -> (N,)`, of `spread` times the state. mapping: g, from fitness to weights of at
            least 0; by default the fitness itself.
        density: the bandwidth of a kernel estimate of the population's density q, relative to `spread`; by default q
            counts as constant, so that a crowded place weighs more.
        projection: `(D, k)`: distances are measured in it.
    """

    def __init__(
        self,
        fitness: Fitness,
        process: Process,
        shape: Sequence[int],
        *,
        mapping: Callable[[Tensor], Tensor] | None = None,
        density: float | None = None,
        projection: Tensor | None = None,
        spread: float = 1.0,
    ):
        super().__init__()
        self.fitness, self.process, self.shape, self.mapping = fitness, process, tuple(shape), mapping
        self.density, self.projection, self.spread = density, projection, spread

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        weights = self._weights(x)
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        projection = None if self.projection is None else self.projection.to(x)
        log_weights = weights.log()
        if self.density is not None:
            place = x.flatten(1) if projection is None else x.flatten(1) @ projection
            gaps = torch.cdist(place, place).square() / (2 * self.density**2)
            log_weights = log_weights - torch.logsumexp(-gaps, 1)
        return Prediction(posterior_mean(x, x, log_weights, alpha, sigma, projection), "x0", x, t, self.process)

    def _weights(self, x: Tensor) -> Tensor:
        fitness = self.fitness(self.spread * x)
        if not isinstance(fitness, Tensor) or fitness.shape != x.shape[:1]:
            raise ValueError(f"the fitness must return a number an individual, ({len(x)},), got {shown(fitness)}")
        weights = (fitness if self.mapping is None else self.mapping(fitness)).to(x)
        if not bool((torch.isfinite(weights) & (weights >= 0)).all()) or not bool((weights > 0).any()):
            what = "the fitness" if self.mapping is None else "the mapping of the fitness"
            least, most = (float(value) + 0.0 for value in weights.aminmax())  # no -0
            raise ValueError(
                f"{what} must be finite and at least 0, and above 0 somewhere, got {least:g} to {most:g}: give"
                " mapping=, such as lambda f: (f / temperature).exp()"
            )
        return weights


@dataclass(frozen=True)
class Evolved:
    """The last population `(N, *shape)` and its fitness `(N,)`; the fittest individual ever seen `(*shape)` and its
    fitness; how often the fitness of one individual was computed, and all of them, `(generations, N)`."""

    population: Tensor
    fitness: Tensor
    best: Tensor
    best_fitness: float
    calls: int
    trace: Tensor


@checked
def evolve(
    fitness: Callable[[Tensor], Tensor],
    shape: Sequence[int],
    population: int = 64,
    steps: int = 25,
    *,
    plan: Sampler | None = None,
    mapping: Callable[[Tensor], Tensor] | None = None,
    density: float | None = None,
    latent: int | None = None,
    spread: float = 1.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Evolved:
    """Maximise a fitness by a population that a plan denoises (Zhang et al., algorithm 1).

    The first population is `spread` times standard normal. Each evaluation of the plan computes the fitness of all.

    Args:
        fitness: `fitness(individuals) -> (N,)` of individuals `(N, *shape)`; higher is fitter.
        steps: of ddpm on the cosine schedule, the paper's, without a plan.
        plan: a plan of any process instead, `fs.plan(process, "ddim", 50)`, or `"ddpm"`.
        mapping: g, from fitness to weights of at least 0; by default the fitness itself.
        density: the bandwidth of the estimate of the population's density, by which the weights are divided; by default
            they are not, as in the paper.
        latent: measure distances in a random projection to so many dimensions (section 5.2): for individuals of many
            elements, whose distances are all alike.
        spread: standard deviation of the first population.

    Raises:
        ValueError: a fitness of another shape; weights that are negative, not finite or all 0; options out of range.
    """
    size = tuple(check_whole("shape", n) for n in shape)
    n, steps = check_whole("population", population, 2), check_whole("steps", steps)
    elements = math.prod(size)
    for name, value in (("spread", spread), ("density", density)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
    projection = None
    if latent is not None:
        k = check_whole("latent", latent, 1, elements)
        drawn = Noise(seed).normal(PROJECTION, (1, elements, k), dtype=torch.float64)[0]
        projection = drawn / math.sqrt(elements)  # of unit variance where x is
    process = Cosine() if plan is None else process_from_config(dict(plan.process))
    runner = plan if plan is not None else make_plan(process, "ddpm", steps, "uniform")
    seen: list[tuple[Tensor, Tensor]] = []

    def recorded(individuals: Tensor) -> Tensor:
        found = fitness(individuals)
        seen.append((individuals, found))
        return found

    model = Population(
        recorded, process, size, mapping=mapping, density=density, projection=projection, spread=float(spread)
    )
    noise = process.start(lambda draw: Noise(seed).normal(draw, (n, *size), dtype=dtype))
    last = spread * runner(model, noise, seed=seed, dtype=dtype)
    recorded(last)
    trace = torch.stack([found for _, found in seen])
    generation, row = divmod(int(trace.argmax()), n)
    best = seen[generation][0][row].clone()
    return Evolved(last, trace[-1], best, float(trace[generation, row]), trace.numel(), trace)
