"""USF's schedule search (S3): times and a choice for every step, evolved; a predictor screens the offspring."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fewstep.core.methods import Method
from fewstep.core.plan import Plan
from fewstep.core.process import Process
from fewstep.sampling.build import fixed_plan as make_plan
from fewstep.sampling.unified import ESTIMATES, KINDS, ORDERS, Choice, evaluations
from fewstep.searching.evolve import Genome, Rated, best, evolve
from fewstep.searching.job import Job
from fewstep.searching.predictor import Predictor
from fewstep.timesteps.grid import make_times

METHODS = (
    Method(
        "usf",
        paper="A Unified Sampling Framework for Solver Searching of Diffusion Probabilistic Models (Liu et al., 2024)",
        arxiv="2312.07243",
        claim="times, prediction kind, order and derivative estimate of every step, evolved under a predictor",
        use="usf",
        facts={"quick": {"population": 6, "generations": 2, "children": 4, "screened": 32, "parents": 3}},
    ),
)

GAP = 0.05  # the least distance of two times in log-SNR
ANCHORS = (Choice("x0", 2, "middle"), Choice("eps", 2, "full"), Choice("x0", 3, "full"))
ANCHOR_RULES = ("log-snr", "karras", "short")
CHOICES = [Choice(*c) for c in ((k, p, e) for k in KINDS for p in ORDERS[1:] for e in ESTIMATES)] + [
    Choice("x0", 1, "full")
]


class Space:
    """The schedules of exactly `nfe` evaluations that end at the clean sample.

    A schedule is JSON: `[[log_snr, kind, order, estimate], ...]`, one entry a step, the log-SNR where it starts. A step
    whose choice means the same as a lower one (the first has no history; the last, to sigma = 0, is of first order) is
    written as that, so that each schedule is written in one way. The first log-SNR is free: the noise is taken for a
    state there, as the rule `short` does.
    """

    def __init__(self, process: Process, nfe: int):
        self.process, self.nfe = process, nfe
        low = process.log_snr(process.t_max)
        self.pure = not math.isfinite(low)  # the lowest log-SNR stands for pure noise
        self.low = process.log_snr(process.t_max - 1e-3 * (process.t_max - process.t_min)) if self.pure else low
        self.high = process.log_snr(process.t_min)

    def cost(self, schedule: Genome) -> int:
        """Its evaluations."""
        return sum(evaluations(Choice(*step[1:])) for step in schedule)

    def canonical(self, log_snrs: list[float], choices: list[Choice]) -> Genome:
        """The schedule of these steps: times that rise with GAP between them, choices without a second spelling."""
        n = len(choices)
        values = [min(max(float(v), self.low), self.high) for v in log_snrs]
        for i in range(1, n):
            values[i] = max(values[i], values[i - 1] + GAP)
        for i in range(n):
            values[i] = min(values[i], self.high - GAP * (n - 1 - i))
        known, schedule = 0, []
        for i, (value, choice) in enumerate(zip(values, choices, strict=True)):
            endless = self.pure and value <= self.low
            known = 0 if endless else min(known + 1, 3)
            if endless or i == n - 1:
                choice = Choice("x0", 1, "full")
            elif choice.estimate != "inside":
                order = min(choice.order, known)
                estimate = "full" if order == 2 and choice.estimate == "low" else choice.estimate
                choice = Choice("x0", 1, "full") if order == 1 else Choice(choice.kind, order, estimate)
            elif choice.order == 1:
                choice = Choice("x0", 1, "full")
            schedule.append([value, *choice])
        return schedule

    def anchors(self) -> list[Genome]:
        """Uniform schedules of one evaluation a step on common rules: what a search starts beside."""
        found = []
        for rule in ANCHOR_RULES:
            times = make_times(self.process, self.nfe, rule)
            log_snrs = [self.process.log_snr(t) if self.process.alpha(t) > 0 else self.low for t in times[:-1]]
            found += [self.canonical(log_snrs, [choice] * self.nfe) for choice in ANCHORS]
        return [schedule for i, schedule in enumerate(found) if schedule not in found[:i]]

    def random(self, rng: np.random.Generator) -> Genome:
        """Random choices, and times of random steps between a start in the noise and a last time near the data."""
        while True:
            choices: list[Choice] = []
            left = self.nfe - 1  # the last step takes one
            while left > 0:
                choice = CHOICES[rng.integers(len(CHOICES))]
                if evaluations(choice) <= left:
                    choices.append(choice)
                    left -= evaluations(choice)
            choices.append(Choice("x0", 1, "full"))
            start = self.low if rng.random() < 0.2 else self.low * rng.uniform(0.2, 1.0)
            stop = rng.uniform(0.5, min(self.high, 5.0))
            steps = rng.gamma(4.0, size=max(len(choices) - 1, 1)).cumsum()
            inner = start + (stop - start) * steps / steps[-1]
            schedule = self.canonical([start, *inner][: len(choices)], choices)
            if self.cost(schedule) == self.nfe:
                return schedule

    def mutate(self, schedule: Genome, rng: np.random.Generator, scale: float) -> Genome:
        """Times moved, each by `scale` of its steps, or all of them stretched; then perhaps a choice changed, or steps
        joined to one with evaluations inside, or such a one split."""
        log_snrs = np.array([step[0] for step in schedule])
        choices = [Choice(*step[1:]) for step in schedule]
        n = len(choices)
        if rng.random() < 0.8:
            width = np.gradient(log_snrs) if n > 1 else np.ones(1)
            moved = rng.random(n) < 0.5
            log_snrs = np.sort(log_snrs + scale * width * rng.normal(size=n) * moved)
        if rng.random() < 0.3:
            middle = rng.uniform(log_snrs[0], log_snrs[-1])
            log_snrs = middle + (log_snrs - middle) * math.exp(0.3 * scale * rng.normal())
        if rng.random() < 0.5 and n > 1:
            i = int(rng.integers(n - 1))
            own = evaluations(choices[i])
            other = CHOICES[rng.integers(len(CHOICES))]
            if evaluations(other) == own:
                choices[i] = other
            elif evaluations(other) == 1:  # split into as many steps
                after = log_snrs[i + 1]
                inner = [log_snrs[i] + (after - log_snrs[i]) * k / own for k in range(own)]
                log_snrs = np.array([*log_snrs[:i], *inner, *log_snrs[i + 1 :]])
                choices[i : i + 1] = [other] * own
            elif (count := evaluations(other)) + i < n and all(evaluations(c) == 1 for c in choices[i : i + count]):
                log_snrs = np.array([*log_snrs[: i + 1], *log_snrs[i + count :]])
                choices[i : i + count] = [other]
        return self.canonical(list(log_snrs), choices)

    def cross(self, a: Genome, b: Genome, rng: np.random.Generator) -> Genome:
        """The first steps of one and the last of the other, joined where both have spent as many evaluations."""
        spent_a, spent_b = (np.cumsum([evaluations(Choice(*step[1:])) for step in s]).tolist() for s in (a, b))
        joints = [
            (i + 1, spent_b.index(count) + 1)
            for i, count in enumerate(spent_a[:-1])
            if count in spent_b[:-1] and a[i][0] < b[spent_b.index(count) + 1][0]
        ]
        if not joints:
            return a
        i, j = joints[rng.integers(len(joints))]
        steps = a[:i] + b[j:]
        return self.canonical([step[0] for step in steps], [Choice(*step[1:]) for step in steps])

    def features(self, schedule: Genome) -> list[float]:
        """Numbers of a fixed length, evaluation by evaluation: log-SNR of its step, kind, order, estimate, one-hot."""
        rows: list[list[float]] = []
        for i, (log_snr, kind, order, estimate) in enumerate(schedule):
            count = evaluations(Choice(kind, order, estimate))
            after = schedule[i + 1][0] if i + 1 < len(schedule) else self.high
            marks = [kind == k for k in KINDS] + [order == p for p in ORDERS] + [estimate == e for e in ESTIMATES]
            rows += [[log_snr + (after - log_snr) * k / count, *map(float, marks)] for k in range(count)]
        return [value for row in rows for value in row]

    def plan(self, schedule: Genome) -> Plan:
        """The schedule as a plan."""
        process = self.process
        times = [process.t_max if step[0] <= self.low else process.time(step[0]) for step in schedule]
        made = make_plan(
            process, "unified", timesteps=[*times, process.t_zero], schedule=[step[1:] for step in schedule]
        )
        assert made.nfe == self.nfe
        return made


def logs(values: list[float]) -> np.ndarray:
    """Logarithms of scores; those that diverged count as ten times the worst that did not."""
    found = np.array(values)
    finite = found[np.isfinite(found)]
    worst = float(finite.max()) if finite.size else 1.0
    return np.log(np.maximum(np.where(np.isfinite(found), found, 10 * worst), 1e-12))


def usf(
    job: Job,
    population: int = 32,
    generations: int = 10,
    children: int = 16,
    screened: int = 512,
    parents: int = 12,
) -> None:
    """Solver schedule search (Liu et al., section 4): what was rated trains a predictor that picks what is rated next.

    The first population holds uniform schedules on common rules and random ones. In each generation `screened`
    offspring of the best `parents` are bred by crossover and mutation, ever finer; the predictor, fitted on all that
    was rated so far, picks the `children` it holds best, but for a quarter that is taken as it comes. Schedules are
    rated on the training noises; each that is better than all before is offered.

    Args:
        population: how many are rated first; generations, children: how often, and how many each time.
    """
    sizes = {"population": population, "children": children, "parents": parents}
    for name, value in sizes.items():
        if value < 2:
            raise ValueError(f"{name} must be at least 2, got {value}")
    if generations < 0 or screened < children:
        raise ValueError(f"{generations} generations of {children} out of {screened} screened cannot be bred")
    space = Space(job.process, job.nfe)

    def first(rng: np.random.Generator) -> list[Genome]:
        group = space.anchors()[:population]
        return group + [space.random(rng) for _ in range(population - len(group))]

    def breed(rated: Rated, rng: np.random.Generator, generation: int) -> list[Genome]:
        scale = 0.6 * 0.2 ** (generation / max(generations, 1))
        elite = [schedule for schedule, _ in best(rated, parents)]
        seen = {str(schedule) for schedule, _ in rated}
        offspring: list[Any] = []
        for _ in range(screened):
            a, b = (elite[i] for i in rng.integers(len(elite), size=2))
            child = space.mutate(space.cross(a, b, rng) if rng.random() < 0.5 else a, rng, scale)
            if str(child) not in seen and space.cost(child) == job.nfe:
                seen.add(str(child))
                offspring.append(child)
        predictor = Predictor(np.array([space.features(s) for s, _ in rated]), logs([value for _, value in rated]))
        unscreened, rest = offspring[: children // 4], offspring[children // 4 :]
        if not rest:
            return unscreened
        order = np.argsort(predictor(np.array([space.features(s) for s in rest])), kind="stable")
        return unscreened + [rest[i] for i in order[: children - len(unscreened)]]

    evolve(
        job,
        "schedules",
        first,
        breed,
        lambda schedule: job.rate(space.plan(schedule)),
        lambda schedule: job.offer(space.plan(schedule)),
        generations,
    )
