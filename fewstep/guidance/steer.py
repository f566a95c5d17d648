"""Particles: `fs.steer(plan, "fk", reward=..., particles=16)` samples a tilted law with any stochastic plan.

One loop for all methods. It drives the plan's program, whose rows are the particles of all samples, and between two
evaluations it weighs the particles and resamples them within their groups. What a method adds is in files of their own:
`feynman_kac`, `twisted` and `fkc`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.core.arguments import checked, shown
from fewstep.core.errors import suggest
from fewstep.core.methods import made
from fewstep.core.model import Callback
from fewstep.core.ops import Number
from fewstep.core.plan import Plan
from fewstep.core.program import Rows, program
from fewstep.core.run import check_answer, check_given, inspect
from fewstep.core.sampler import Run, Sampler
from fewstep.guidance.particles import drawn, effective, log_mean, resampled
from fewstep.guidance.swarm import Steering, Swarm

CHOICES = ("draw", "best")


@dataclass(frozen=True)
class Steered(Sampler):
    """A plan with several particles for each sample, of which one is the result; `fs.steer` makes it.

    Particle 0 starts from the run's own noise and the others from further draws of the sample's own stream, from which
    everything random of a sample comes: it depends neither on the batch nor on the number of samples. One particle
    without a reward is the plan, bit for bit.

    A callback sees the states of all particles, `(n k, *shape)`, those of a sample one after another; a trajectory's
    are these too, but for the result. `Result.report` has

        ess             (evaluations, n), the effective number of particles before resampling
        log_normaliser  (n,), the logarithm of the unbiased estimate of the tilted law's normaliser
        resampled       (n,), how often a group was resampled
        rows            how many rows the innermost network saw for one sample, all its particles together

    and with `keep` also `particles` `(n, k, *shape)` and their `log_weights` `(n, k)`.
    """

    plan: Plan
    way: Steering
    particles: int
    threshold: float
    choose: str
    keep: bool
    times: tuple[float, ...]
    start: tuple[Number, Number]
    process: Mapping[str, Any]
    about: Mapping[str, Any]

    @property
    def nfe(self) -> int:
        """Network evaluations of one run, each of as many rows as there are particles."""
        return self.plan.nfe

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def moments(self) -> tuple[float, ...]:
        return self.plan.moments

    def __str__(self) -> str:
        own = ", ".join(f"{key} {value}" for key, value in self.about.items() if key not in self.plan.about)
        return f"Steered: {self.name}, {own}\n{self.plan}"

    def execute(self, run: Run) -> tuple[Tensor, int]:
        """As every sampler; `ValueError` for a reward that is not finite, and what the method refuses."""
        table, k = self.plan.table, self.particles
        check_given(table, run.model)
        swarm = Swarm(run, self.plan, k)
        x = self.way.start(swarm, self._begin(run, swarm))
        rows, shape = Rows(table, x), x.shape
        steps = program(table, x, self.way.source(swarm), rows)
        del x
        found, sizes = next(steps), []
        for number, evaluation in enumerate(table.evaluations):
            x, t, given = found
            swarm.number, swarm.t = number + 1, evaluation.t
            if swarm.memory is not None:
                swarm.memory.advance(given=evaluation.given)
            answer = self.way.answer(swarm, x, t, {**swarm.condition, **given})
            if answer.value.shape != shape:
                check_answer(answer.value, x, number + 1, evaluation.t)
            if run.watch is not None:
                run.watch(number + 1, evaluation.t, x, answer)
            value = answer.value
            self._add(swarm, self.way.weigh(swarm, answer))
            sizes.append(effective(swarm.log_weights))
            if k > 1:
                index = self._resample(swarm, number)
                rows.reorder(index)
                value = value[index]
            try:
                found = steps.send((value, answer.kind))
            except StopIteration as stop:
                samples = stop.value
        swarm.number += 1
        self._add(swarm, self.way.end(swarm, samples))
        swarm.check()
        return self._chosen(run, swarm, samples, torch.stack(sizes)), self.nfe

    def _begin(self, run: Run, swarm: Swarm) -> Tensor:
        """The states of all particles at the first time: each one's own noise in the place of the run's."""
        x, k, noise = run.begin(), self.particles, run.noise
        (sigma,) = self.plan.table.weigh([self.start[1]], x.device, x.dtype)
        shape = (len(noise) * k, *noise.shape[1:])

        def normal(draw: int) -> Tensor:
            return swarm.source.normal(draw, shape, noise.device, noise.dtype)

        if k == 1:
            return x
        others = swarm.model.process.start(normal).to(x.dtype)
        if run.init:
            others = others - noise.to(x.dtype).repeat_interleave(k, 0)
        states = (others * sigma).unflatten(0, (len(noise), k))
        if run.init:
            states = states + x.unsqueeze(1)
        states[:, 0] = x
        return states.flatten(0, 1)

    def _add(self, swarm: Swarm, log_weights: Tensor | None) -> None:
        if log_weights is not None:
            swarm.log_weights = swarm.log_weights + log_weights.view_as(swarm.log_weights)

    def _resample(self, swarm: Swarm, number: int) -> Tensor:
        """Which row comes in the place of each, `(R,)`; what is kept of the rows follows."""
        log_weights, uniform = swarm.log_weights, swarm.uniform(number)
        index, swarm.log_weights, gained, which = resampled(log_weights, uniform, self.threshold)
        swarm.log_normaliser = swarm.log_normaliser + gained
        swarm.resampled = swarm.resampled + which
        begins = torch.arange(swarm.samples, device=index.device).unsqueeze(1) * self.particles
        flat = (index + begins).flatten()
        swarm.kept = {name: value[flat] for name, value in swarm.kept.items()}
        if swarm.memory is not None:
            swarm.memory.change(lambda kept: kept[flat.to(kept.device)])
        return flat

    def _chosen(self, run: Run, swarm: Swarm, samples: Tensor, sizes: Tensor) -> Tensor:
        """One particle of each sample; fills the run's report."""
        every = samples.unflatten(0, (swarm.samples, self.particles))
        if self.choose == "best":
            index = swarm.kept["reward"].view_as(swarm.log_weights).argmax(1)
        else:
            index = drawn(swarm.log_weights, swarm.uniform(self.nfe))
        run.report |= {
            "ess": sizes,
            "log_normaliser": swarm.log_normaliser + log_mean(swarm.log_weights),
            "resampled": swarm.resampled,
        }
        if swarm.memory is None:
            run.report["rows"] = self.nfe * self.particles + swarm.extra
        if self.keep:
            run.report |= {"particles": every, "log_weights": swarm.log_weights}
        return every[torch.arange(len(every), device=index.device), index]

    def blame(self, again: Callable[[Callback], Run]) -> ValueError:
        self.execute(again(inspect))
        return ValueError(f"the samples of {self.name!r} are not finite, although every answer of the network is")


@checked
def steer(
    plan: Sampler,
    method: str = "fk",
    *,
    particles: int = 16,
    threshold: float = 0.5,
    choose: str | None = None,
    keep: bool = False,
    **options: Any,
) -> Steered:
    """A plan steered by particles, to be used in its place: `fs.sample(model, 4, plan=fs.steer(plan, "fk", ...))`.

        fk    any reward, asked as the samples form       reward, strength, potential, when
        tds   a reward's gradient moves the noise too     reward, strength, when
        fkc   a composition of models, by its powers      (none)

    Args:
        plan: any stochastic plan, of any order.
        particles: k rows for each sample.
        threshold: a group is resampled where its effective number of particles is below `threshold` k.
        choose: the result is a particle drawn by its final weight ("draw"), or the one of the highest reward ("best").
            By default as the method has it: drawn, but for the potential "best".
        keep: report all particles and their log weights too.
        **options: those of the method.

    Raises:
        ValueError: an unknown method or option, a plan that draws no noise, no plan, counts and thresholds out of
            range, a plan that the method refuses.
    """
    if not isinstance(plan, Plan):
        raise ValueError(f"steer takes a plan, whose program it can drive; {plan.name!r} is none: it has no table")
    if not plan.stochastic:
        raise ValueError(f"steering {plan.name!r} needs noise: a plan with eta or an SDE solver")
    if particles < 1:
        raise ValueError(f"particles must be at least 1, got {particles}")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is a share of the particles, from 0 to 1, got {shown(threshold)}")
    if choose is not None and choose not in CHOICES:
        raise suggest("choice of the result", choose, CHOICES)
    way = made("steering", method, **options)()
    choose = choose or ("best" if getattr(way, "potential", None) == "best" else "draw")
    if choose == "best" and not way.scores:
        raise ValueError(f"choose='best' takes the particle of the highest reward, and {method!r} has none here")
    way.check(plan)
    about = dict(plan.about) | {"solver": f"{plan.name}, {method}", "particles": particles}
    return Steered(
        plan, way, particles, threshold, choose, keep, plan.times, plan.start, plan.process, about
    )  # fmt: skip
