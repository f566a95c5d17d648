"""TPE: a black-box search over solvers, timestep rules and their numbers, ends, and a shift of every time by itself."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fewstep.core.errors import suggest
from fewstep.core.methods import Method, card, find
from fewstep.core.plan import Plan
from fewstep.core.process import Process
from fewstep.sampling.build import fixed_plan as make_plan
from fewstep.sampling.build import solver_names
from fewstep.searching.job import Job
from fewstep.timesteps.grid import ENDS

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import Trial

METHODS = (
    Method(
        "tpe",
        paper="Optuna: A Next-generation Hyperparameter Optimization Framework (Akiba et al., 2019)",
        arxiv="1907.10902",
        claim="a tree-structured Parzen estimator over solvers, rules with their numbers, ends and shifts of times",
        use="tpe",
        facts={"quick": {"trials": 10, "startup": 4}},
    ),
)

SAMPLERS = ("tpe", "random")
# The numbers of each rule, with their ranges and whether they are searched on a logarithmic scale.
RULES: dict[str, dict[str, tuple[float, float, bool]]] = {
    "log-snr": {},
    "uniform": {},
    "quadratic": {},
    "karras": {"rho": (1.0, 20.0, True)},
    "polyexponential": {"rho": (0.4, 3.0, True)},
    "short": {"start": (-4.0, 0.0, False), "stop": (0.5, 6.0, False)},
    "beta": {"a": (0.2, 2.0, True), "b": (0.2, 2.0, True)},
}
REACH = 0.45  # of the way to the next time: below a half they keep their order
FAILED = 1e3  # the value of what diverges or cannot be made
# What the first trials are, so that the search starts beside common plans.
FIRST: tuple[dict[str, Any], ...] = (
    {"solver": "dpmpp-2m", "rule": "log-snr", "end": "zero"},
    {"solver": "unipc-2", "rule": "karras", "karras rho": 7.0, "end": "zero"},
    {"solver": "vab-2", "rule": "short", "short start": -1.6, "short stop": 2.0, "end": "zero"},
)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ValueError("the search 'tpe' needs optuna: pip install 'fewstep[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def solvers(process: Process, nfe: int) -> list[str]:
    """The deterministic solvers that make a plan of exactly `nfe` evaluations, to one end or the other."""
    found = []
    for name in solver_names():
        if card(name, "solver")[0].facts.get("stochastic"):
            continue
        for end in ENDS:
            try:
                exact = make_plan(process, name, nfe=nfe, end=end).nfe == nfe
            except ValueError:  # it cannot do with so few
                exact = False
            if exact:
                found.append(name)
                break
    return found


def shifted(process: Process, times: Sequence[float], offsets: Sequence[float]) -> list[float]:
    """The times, each but the first and the last moved in log-SNR by its offset, in parts of the way to the next time
    (to the one before, for a negative offset). Offsets within +-REACH keep the order."""
    grid = [process.log_snr(t) for t in times]
    most, moved = process.log_snr(process.t_min), list(times)
    for i, offset in zip(range(1, len(times) - 1), offsets, strict=False):
        before, after = grid[i] - grid[i - 1], min(grid[i + 1], most) - grid[i]
        way = after if offset > 0 else before
        if way > 0:
            way = way if math.isfinite(way) else min(w for w in (before, after, 1.0) if w > 0)
            moved[i] = process.time(grid[i] + offset * way) if offset else times[i]
    return moved


class Space:
    """What is searched, as named parameters: choices, and numbers with ranges."""

    def __init__(self, process: Process, nfe: int, names: Sequence[str], offsets: bool):
        self.process, self.nfe = process, nfe
        self.choices: dict[str, Sequence[str]] = {"solver": names, "rule": list(RULES), "end": ENDS}
        self.numbers = {f"{rule} {key}": span for rule, keys in RULES.items() for key, span in keys.items()}
        self.offsets = [f"offset {i}" for i in range(1, nfe)] if offsets else []
        self.numbers |= dict.fromkeys(self.offsets, (-REACH, REACH, False))

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """A trial's parameters: those of its own rule alone."""
        values: dict[str, Any] = {name: trial.suggest_categorical(name, tuple(of)) for name, of in self.choices.items()}
        for name in [f"{values['rule']} {key}" for key in RULES[values["rule"]]] + self.offsets:
            low, high, log = self.numbers[name]
            values[name] = trial.suggest_float(name, low, high, log=log)
        return values

    def distributions(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Optuna's description of the given parameters."""
        distributions = _optuna().distributions
        return {
            name: distributions.CategoricalDistribution(tuple(self.choices[name]))
            if name in self.choices
            else distributions.FloatDistribution(*self.numbers[name][:2], log=self.numbers[name][2])
            for name in values
        }

    def plan(self, values: Mapping[str, Any]) -> Plan | None:
        """The plan of some parameters; None where a rule cannot place its times, or they make another count."""
        rule, solver, end = values["rule"], values["solver"], values["end"]
        options = {key: values[f"{rule} {key}"] for key in RULES[rule]}
        place = functools.partial(find(rule, "rule"), **options)
        try:
            made = make_plan(self.process, solver, timesteps=place, nfe=self.nfe, end=end)
            times = shifted(self.process, made.times, [values.get(name, 0.0) for name in self.offsets])
            made = make_plan(self.process, solver, timesteps=times, end=end)
        except ValueError:
            return None
        if made.nfe != self.nfe:
            return None
        text = ", ".join([rule, *(f"{key} {value:.3g}" for key, value in options.items())])
        text += ", shifted" if self.offsets else ""
        return dataclasses.replace(made, about={**made.about, "timesteps": text})


def tpe(job: Job, trials: int = 100, sampler: str = "tpe", startup: int = 20, offsets: bool = True) -> None:
    """A black-box search with Optuna's tree-structured Parzen estimator (Bergstra et al., 2011).

    Searched are the solver (all deterministic ones that make a plan), the timestep rule and its numbers, the end, and
    with `offsets` a shift of every time but the first and last by up to 0.45 of its steps in log-SNR. Plans are rated
    on the training noises; each that is better than all before is offered. A trial that makes no plan of `job.nfe`
    evaluations costs none.

    Every trial has a sampler of its own, seeded by the job's seed and its number, so a search taken up again goes on as
    it would have.

    Args:
        sampler: "tpe", or "random" for its baseline; startup: trials at random before the estimator is asked.

    Raises:
        ValueError: an unknown sampler, no trials, no solver that can do with so few evaluations, no optuna.
    """
    if sampler not in SAMPLERS:
        raise suggest("sampler", sampler, SAMPLERS)
    for name, value in {"trials": trials, "startup": startup}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    optuna = _optuna()
    names = solvers(job.process, job.nfe)
    if not names:
        raise ValueError(f"no deterministic solver makes a plan of {job.nfe} evaluations")
    space = Space(job.process, job.nfe, names, offsets)
    study: Study = optuna.create_study()
    done: list[list[Any]] = [] if job.state is None else [list(pair) for pair in job.state["trials"]]
    for values, value in done:
        study.add_trial(
            optuna.trial.create_trial(params=values, distributions=space.distributions(values), value=value)
        )
    for number in range(len(done), trials):
        seed = (job.seed * 1_000_003 + number) % 2**32
        study.sampler = (
            optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)
            if sampler == "tpe"
            else optuna.samplers.RandomSampler(seed=seed)
        )
        if number < len(FIRST) and FIRST[number]["solver"] in names:
            study.enqueue_trial(FIRST[number] | dict.fromkeys(space.offsets, 0.0))
        trial = study.ask()
        values = space.suggest(trial)
        made = space.plan(values)
        rating = FAILED if made is None else min(job.rate(made), FAILED)
        if made is not None and rating < min((value for _, value in done), default=math.inf):
            job.offer(made)
        study.tell(trial, rating)
        done.append([values, rating])
        job.save({"trials": done})
