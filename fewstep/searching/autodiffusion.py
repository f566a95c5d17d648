"""AutoDiffusion: evolve the times to evaluate at, and then which of the network's blocks to leave out at each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.core.plan import Plan
from fewstep.data.dataset import Dataset
from fewstep.denoisers.masked import MaskedDenoiser, flops, skippable
from fewstep.metrics.frechet import frechet
from fewstep.searching.candidates import score
from fewstep.searching.evolve import Genome, Rated, best, evolve
from fewstep.searching.grids import fine_grid, on_grid, solver_steps
from fewstep.searching.job import Job
from fewstep.searching.problem import Problem, own_data, run_all
from fewstep.timesteps.grid import make_times

METHODS = (
    Method(
        "autodiffusion",
        paper="AutoDiffusion: Training-Free Optimization of Time Steps and Architectures (Li et al., 2023)",
        arxiv="2309.10438",
        claim="times, then blocks to leave out at each, evolved for the samples' distribution or their endpoints",
        use="autodiffusion",
        facts={"quick": {"points": 40, "population": 6, "generations": 2, "children": 4, "parents": 3}},
    ),
)

FITNESS = ("endpoint", "frechet")
RULES = ("karras", "log-snr", "uniform", "quadratic", "short")


@dataclass(frozen=True)
class Pruned:
    """Times with blocks to leave out: `pruned.plan(pruned.denoiser(model), noise)` samples.

    `flops` are the operations of one sample, at most `limit`, those of the searched evaluations with every block.
    `score` is the search's measure on the held-out noises.
    """

    plan: Plan
    masks: dict[float, tuple[str, ...]]
    flops: int
    limit: int
    score: float

    def denoiser(self, model: Denoiser) -> MaskedDenoiser:
        return MaskedDenoiser(model, self.masks)


class Fitness:
    """What candidates are compared by, lower is better: on a problem's noises, with the model or a wrapper of it.

    "endpoint": the relative error against the reference from the same noises. "frechet": the Frechet distance of the
    samples from the model's data set, or where that is not known from the reference's samples.
    """

    def __init__(self, model: Denoiser, fitness: str, features: str, data: Dataset | None = None):
        if fitness not in FITNESS:
            raise suggest("fitness", fitness, FITNESS)
        self.distance, self.features = fitness == "frechet", features
        self.real: Tensor | None = None
        if self.distance and (real := data if data is not None else own_data(model)) is not None:
            self.real = real.images

    def __call__(self, plan: Plan, model: Denoiser, problem: Problem) -> float:
        if not self.distance:
            return score(plan, model, problem)
        try:
            x = run_all(plan, model, problem.noise, problem.condition, problem.seed, problem.first)
        except ValueError as error:
            if "not finite" in str(error):
                return float("inf")
            raise
        if self.real is None:
            return frechet(x.cpu(), problem.reference.cpu(), self.features).value
        return frechet(model.decode(x, **problem.condition).cpu(), self.real, self.features).value


def _draw(rng: np.random.Generator, of: Sequence[int], n: int) -> list[int]:
    return sorted(int(i) for i in rng.choice(np.array(of), n, replace=False))


class Times:
    """Sequences of `steps` rising indices into a fine grid; the last time is always the clean sample's."""

    def __init__(self, job: Job, steps: int, points: int):
        self.grid, self.steps = fine_grid(job.process, points), steps
        self.free = range(points - 1)
        self.starts: list[Genome] = []
        for rule in RULES:
            nearest = {
                min(self.free, key=lambda i: abs(self.grid[i] - t)) for t in make_times(job.process, steps, rule)[:-1]
            }
            if len(nearest) == steps and sorted(nearest) not in self.starts:
                self.starts.append(sorted(nearest))

    def times(self, indices: Sequence[int]) -> list[float]:
        return [*(self.grid[i] for i in indices), self.grid[-1]]

    def random(self, rng: np.random.Generator) -> Genome:
        return _draw(rng, self.free, self.steps)

    def cross(self, a: Genome, b: Genome, rng: np.random.Generator) -> Genome:
        """As many of both parents' times, by lot; those that both have are kept."""
        both = set(a) & set(b)
        return sorted(both | set(_draw(rng, sorted(set(a) ^ set(b)), self.steps - len(both))))

    def mutate(self, a: Genome, rng: np.random.Generator) -> Genome:
        """Each time, with probability 0.4, moved to a near free one (or, one in four, to any)."""
        chosen = list(a)
        for k in range(self.steps):
            if rng.random() < 0.4:
                far = rng.random() < 0.25
                target = (
                    int(rng.integers(len(self.free))) if far else chosen[k] + int(rng.normal(scale=len(self.free) / 12))
                )
                target = min(max(target, 0), len(self.free) - 1)
                if target not in chosen:
                    chosen[k] = target
        return sorted(chosen)


class Masks:
    """Times with masks, `[[index, [name, ...]], ...]`, of no more operations than `steps` whole evaluations."""

    def __init__(self, job: Job, times: Times):
        self.times, self.most = times, min(2 * times.steps, len(times.free))
        self.names = list(skippable(job.model))
        self.whole = flops(job.model)
        self.saved = {name: self.whole - flops(job.model, [name]) for name in self.names}
        self.limit = times.steps * self.whole

    def cost(self, genome: Genome) -> int:
        return sum(self.whole - sum(self.saved[name] for name in names) for _, names in genome)

    def masks(self, genome: Genome) -> dict[float, tuple[str, ...]]:
        return {self.times.grid[i]: tuple(names) for i, names in genome if names}

    def repair(self, genome: Genome, rng: np.random.Generator) -> Genome:
        """Blocks left out by lot until the operations are within the limit; times, where no block is left."""
        genome = [[i, list(names)] for i, names in genome]
        while self.cost(genome) > self.limit:
            open_ = [(k, name) for k, (_, names) in enumerate(genome) for name in self.names if name not in names]
            if len(genome) > self.most or not open_:
                genome.pop(int(rng.integers(len(genome))))
            else:
                k, name = open_[rng.integers(len(open_))]
                genome[k][1].append(name)
        return [[i, [name for name in self.names if name in names]] for i, names in genome]

    def mutate(self, genome: Genome, rng: np.random.Generator) -> Genome:
        """A block more or less, a time moved, one more, one less: one to three such changes."""
        genome = [[i, list(names)] for i, names in genome]
        for _ in range(int(rng.integers(1, 4))):
            what, k = rng.random(), int(rng.integers(len(genome)))
            used = {i for i, _ in genome}
            if what < 0.45:
                name, names = self.names[rng.integers(len(self.names))], genome[k][1]
                names.remove(name) if name in names else names.append(name)
            elif what < 0.75:
                target = genome[k][0] + int(rng.normal(scale=len(self.times.free) / 12))
                if target in self.times.free and target not in used:
                    genome[k][0] = target
            elif what < 0.9:
                target = int(rng.integers(len(self.times.free)))
                if target not in used and len(genome) < self.most:
                    genome.append([target, []])
            elif len(genome) > 1:
                genome.pop(k)
        return self.repair(sorted(genome), rng)

    def cross(self, a: Genome, b: Genome, rng: np.random.Generator) -> Genome:
        """One parent's steps up to a time, and the other's after it."""
        cut = int(rng.integers(len(self.times.free)))
        return self.repair([step for step in a if step[0] <= cut] + [step for step in b if step[0] > cut] or a, rng)


def _offspring(rated: Rated, rng: np.random.Generator, parents: int, children: int, space: Any) -> list[Genome]:
    """Children of the best: half by crossover and mutation, half by mutation alone; none that was rated before."""
    elite = [genome for genome, _ in best(rated, parents)]
    seen = {str(genome) for genome, _ in rated}
    found: list[Genome] = []
    for _ in range(50 * children):
        a, b = (elite[i] for i in rng.integers(len(elite), size=2))
        child = space.mutate(space.cross(a, b, rng) if rng.random() < 0.5 else a, rng)
        if str(child) not in seen:
            seen.add(str(child))
            found.append(child)
            if len(found) == children:
                break
    return found


def autodiffusion(
    job: Job,
    solver: str = "ddim",
    fitness: str = "endpoint",
    features: str = "pixels",
    masks: bool = False,
    points: int = 100,
    population: int = 24,
    generations: int = 8,
    children: int = 12,
    parents: int = 8,
) -> None:
    """Two evolutionary searches (Li et al., section 3): of the times, then of what the network leaves out at each.

    The times are a subset of a fine grid. The first population holds those of common rules and random ones; the best
    `parents` of all so far (elitism) breed `children` a generation. With `masks`, times and blocks left out evolve
    together in a second search of as many ratings, from the best times of the first: candidates may have more
    evaluations than `job.nfe`, as long as all their operations are no more than those of `job.nfe` whole ones.
    Candidates are rated on the training noises.

    `job.best` is the plan of the first search, with every block; `job.result`, with `masks`, a `Pruned`.

    Args:
        fitness: "endpoint", the error against the reference, or "frechet", the distance of the samples' distribution
            from the model's data set in the space of `features` (fewstep.metrics.features), as in the paper.
        points: times of the fine grid.

    Raises:
        ValueError: an unknown name, sizes below 2, too few points, `masks` for a model that names no blocks.
    """
    for name, value in {"population": population, "children": children, "parents": parents}.items():
        if value < 2:
            raise ValueError(f"{name} must be at least 2, got {value}")
    steps = solver_steps(job.process, job.nfe, solver)[solver]
    if points - 1 < 2 * steps:
        raise ValueError(f"{points} points are too few for {steps} steps: give at least {2 * steps + 1}")
    measure = Fitness(job.model, fitness, features, job.data)
    if measure.distance:
        job.measure = f"Frechet distance, {features}"
    times = Times(job, steps, points)
    if masks and steps != job.nfe:
        raise ValueError(f"masks are searched for one evaluation a step, and {solver!r} takes {job.nfe} for {steps}")
    space = Masks(job, times) if masks else None

    def plan(indices: Sequence[int]) -> Plan:
        return on_grid(job.process, solver, times.times(indices), "autodiffusion")

    def rate(indices: Genome) -> float:
        job.check()
        return measure(plan(indices), job.model, job.train)

    def offer(indices: Genome) -> None:
        made = plan(indices)
        job.offer(made, measure(made, job.model, job.held_out))

    def first(rng: np.random.Generator) -> list[Genome]:
        starts = times.starts[:population]
        return starts + [times.random(rng) for _ in range(population - len(starts))]

    def breed(rated: Rated, rng: np.random.Generator, generation: int) -> list[Genome]:
        return _offspring(rated, rng, parents, children, times)

    rated = evolve(job, "times", first, breed, rate, offer, generations)
    if space is not None:
        _masks(
            job,
            space,
            [genome for genome, _ in best(rated, parents)],
            measure,
            plan,
            (population, generations, children),
        )


def _masks(
    job: Job, space: Masks, starts: list[Genome], measure: Fitness, plan: Any, sizes: tuple[int, int, int]
) -> None:
    population, generations, children = sizes

    def apply(genome: Genome) -> tuple[Plan, MaskedDenoiser]:
        return plan([i for i, _ in genome]), MaskedDenoiser(job.model, space.masks(genome))

    def rate(genome: Genome) -> float:
        job.check()
        return measure(*apply(genome), job.train)

    def show() -> None:
        kept = job.state.get("pruned")
        if kept is not None:
            genome, value = kept
            job.result = Pruned(apply(genome)[0], space.masks(genome), space.cost(genome), space.limit, value)

    def keep(genome: Genome) -> None:
        value = measure(*apply(genome), job.held_out)
        kept = job.state.get("pruned")
        if kept is None or value < kept[1]:
            job.state["pruned"] = [genome, value]
            show()

    def first(rng: np.random.Generator) -> list[Genome]:
        whole: list[Genome] = [[[i, []] for i in indices] for indices in starts[:population]]
        group = list(whole)
        while len(group) < population:  # as the best times, with one to three more and blocks left out for them
            genome = whole[rng.integers(len(whole))]
            more = [i for i in space.times.free if i not in {step[0] for step in genome}]
            count = min(int(rng.integers(1, 4)), space.most - len(genome))
            group.append(space.repair(sorted(genome + [[i, []] for i in _draw(rng, more, count)]), rng))
        return group

    def breed(rated: Rated, rng: np.random.Generator, generation: int) -> list[Genome]:
        return _offspring(rated, rng, len(starts), children, space)

    show()
    evolve(job, "masks", first, breed, rate, keep, generations)
    show()
