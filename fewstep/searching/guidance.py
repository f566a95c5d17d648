"""A search for guidance: the rule, its scale, the noise levels between which it acts and a clamp, for a reward."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.core.arguments import check_whole, checked
from fewstep.core.denoiser import Denoiser
from fewstep.core.files import read_text
from fewstep.core.methods import Method
from fewstep.core.noise import VERSION
from fewstep.core.sampler import Sampler
from fewstep.data.dataset import Dataset
from fewstep.guidance.guide import guide
from fewstep.guidance.guided import Guided
from fewstep.guidance.parts import level
from fewstep.guidance.reward import Reward, asked
from fewstep.report.files import write_json
from fewstep.sampling.sample import choose_plan
from fewstep.searching.problem import draw, own_data, run_all
from fewstep.searching.tpe import _optuna

METHODS = (
    Method(
        "guidance",
        kind="guidance-search",
        paper="Optuna: A Next-generation Hyperparameter Optimization Framework (Akiba et al., 2019)",
        arxiv="1907.10902",
        claim="the rule, scale, interval and clamp of guidance for a reward, never worse than the best plain scale",
        use="search_guidance",
    ),
)

RULES = ("cfg", "apg", "zero-star", "tcfg")
SCALES = (1.0, 12.0)
PLAIN = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # scales of the plain rule, which are tried first
BEST = 3  # so many of the searched ones are compared with the best plain one on held-out noises
FORMAT = "fewstep-guidance-search-1"


@dataclass(frozen=True)
class FoundGuidance:
    """What a search for guidance found: the guided model and the words that make it.

    `rows` hold it and the best plain scale: name, options, mean reward and its standard error on noises that neither
    was chosen by, best first. `evaluations` counts rows of the network; `history` is how the mean reward on the
    training noises rose: (trial, reward).
    """

    model: Guided
    method: str
    options: dict[str, Any]
    plan: Sampler
    rows: list[dict[str, Any]]
    evaluations: int
    seconds: float
    history: list[tuple[int, float]] = field(default_factory=list)
    finished: bool = True

    @property
    def spec(self) -> str:
        """As `--guide` takes it."""
        words = []
        for name, value in self.options.items():
            text = f"{value[0]:.4g}..{value[1]:.4g}" if isinstance(value, list | tuple) else f"{value}"
            words.append(name if value is True else f"{name}={text}")
        return f"{self.method}:{','.join(words)}"


@checked
def search_guidance(
    model: Denoiser,
    nfe: int = 10,
    reward: Reward | str | Mapping[str, Any] = "caption",
    *,
    solver: str | None = None,
    trials: int = 40,
    noises: int = 64,
    seed: int = 0,
    seconds: float | None = None,
    folder: str | os.PathLike[str] | None = None,
    tell: Callable[[str], None] | None = None,
    data: Dataset | None = None,
) -> FoundGuidance:
    """Searches the guidance of a model for a reward, by Optuna's estimator.

    Every candidate samples the same noises with the same plan of `nfe` evaluations, at two rows each at most. Scales of
    the plain rule come first, then trials over rule, scale, interval and clamp. The best few and the best plain scale
    are compared on as many noises again; what is best there is returned, so it is never worse than plain guidance on
    those. `rows` are of a third set.

    Args:
        reward: a function `(x, **condition) -> (B,)` of samples as data, or a name ("caption", "digit"); higher is
            better. It sees the conditions as the model does.
        solver: as of `fs.sample`; by default what that takes. trials: beside the plain scales.
        noises: of each of the three sets, at least 8.
        seconds: a budget; what is best so far is returned when it is spent.
        folder: keep the search there (`guidance.json`): the same call goes on where one was stopped.
        data: where the conditions come from; by default classes in turn, and the captions of the model's own data.

    Raises:
        ValueError: a model without a label or a caption or without a shape, fewer than 8 noises, a folder that holds
            another search, a reward that is no function or name or returns another shape.
    """
    begin = time.perf_counter()
    check_whole("nfe", nfe)
    check_whole("trials", trials, 0)
    check_whole("noises", noises, 8)
    if model.shape is None:
        raise ValueError("a search draws noise, so the denoiser needs a shape: set model.shape = (...)")
    run = _Run(
        model, choose_plan(guide(model, "cfg", scale=2.0), nfe, solver=solver), asked(reward), noises, seed, data
    )
    kept = _Kept(folder, {"nfe": nfe, "noises": noises, "seed": seed, "noise_version": VERSION, "plan": run.plan.name})
    finished = _search(run, kept, trials, seconds, begin, tell)
    done = [(entry["method"], entry["options"], entry["reward"]) for entry in kept.trials]
    plain = [one for one in done if one[0] == "cfg" and set(one[1]) == {"scale"}]
    finalists = sorted((one for one in done if one not in plain), key=lambda one: -one[2])[:BEST]
    finalists = [max(plain, key=lambda one: one[2]), *finalists]
    held_out = [run.mean(name, options, 1)[0] for name, options, _ in finalists]
    best = max(range(len(finalists)), key=lambda i: (held_out[i], -i))
    rows = []
    for i in dict.fromkeys((best, 0)):
        name, options, _ = finalists[i]
        mean, error = run.mean(name, options, 2)
        role = "searched" if i == best else "plain"
        rows.append(
            {"role": role, "name": name, "options": options, "reward": mean, "error": error, "nfe": run.plan.nfe}
        )
    name, options, _ = finalists[best]
    rising, history = -math.inf, []
    for number, entry in enumerate(kept.trials):
        if entry["reward"] > rising:
            rising = entry["reward"]
            history.append((number, rising))
    spent = time.perf_counter() - begin
    rows.sort(key=lambda row: -row["reward"])
    return FoundGuidance(
        run.guided(name, options), name, options, run.plan, rows, run.evaluations, spent, history, finished
    )


class _Run:
    """Three sets of noises with their conditions, and the mean reward of a candidate on each."""

    def __init__(self, model: Denoiser, plan: Sampler, reward: Reward, noises: int, seed: int, data: Dataset | None):
        self.model, self.plan, self.reward, self.seed, self.noises = model, plan, reward, seed, noises
        self.sets: list[tuple[Tensor, dict[str, Tensor]]] = []
        source = data if data is not None else own_data(model)
        for first in (0, noises, 2 * noises):
            noise, named = draw(model, seed, first, noises, torch.float32, source)
            self.sets.append((noise, named))
        self.evaluations = 0

    def guided(self, name: str, options: Mapping[str, Any]) -> Guided:
        made = guide(self.model, name, **options)
        assert isinstance(made, Guided)
        return made

    def mean(self, name: str, options: Mapping[str, Any], number: int) -> tuple[float, float]:
        """The mean reward on a set, and its standard error."""
        noise, named = self.sets[number]
        guided = self.guided(name, options)
        samples = run_all(self.plan, guided, noise, named, self.seed, number * self.noises)
        self.evaluations += 2 * self.plan.nfe * len(noise)
        found = self.reward(guided.decode(samples, **named), **named)
        if not isinstance(found, Tensor) or found.shape != (len(noise),):
            got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"the reward must return one number for each sample, shape ({len(noise)},), got {got}")
        found = found.double()
        return float(found.mean()), float(found.std() / len(noise) ** 0.5)


class _Kept:
    """The trials so far, in a file where there is a folder."""

    def __init__(self, folder: str | os.PathLike[str] | None, about: dict[str, Any]):
        self.path = None if folder is None else Path(folder) / "guidance.json"
        self.about, self.trials = {"format": FORMAT, **about}, list[dict[str, Any]]()
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            known = json.loads(read_text(self.path))
            if {key: known.get(key) for key in self.about} != self.about:
                raise ValueError(f"{self.path} holds another search: name another folder, or make the same call")
            self.trials = known["trials"]

    def add(self, method: str, options: dict[str, Any], values: dict[str, Any], reward: float) -> None:
        self.trials.append({"method": method, "options": options, "values": values, "reward": reward})
        if self.path is not None:
            write_json(self.path, self.about | {"trials": self.trials})


def _search(
    run: _Run, kept: _Kept, trials: int, seconds: float | None, begin: float, tell: Callable[[str], None] | None
) -> bool:
    """Fill the trials; whether all of them were made."""
    optuna = _optuna()
    study = optuna.create_study(direction="maximize")
    space = _space(run, optuna)
    for entry in kept.trials:
        if entry["values"]:
            own = {name: space[name] for name in entry["values"]}
            study.add_trial(optuna.trial.create_trial(params=entry["values"], distributions=own, value=entry["reward"]))
    for number in range(len(kept.trials), len(PLAIN) + trials):
        if seconds is not None and number > 0 and time.perf_counter() - begin > seconds:
            return False
        if number < len(PLAIN):
            method, options, values, trial = "cfg", {"scale": PLAIN[number]}, {}, None
        else:
            study.sampler = optuna.samplers.TPESampler(
                seed=(run.seed * 1_000_003 + number) % 2**32, n_startup_trials=10
            )
            trial = study.ask(space)
            values = dict(trial.params)
            method, options = _options(run, values)
        reward = run.mean(method, options, 0)[0]
        if trial is not None:
            study.tell(trial, reward)
        best = max((entry["reward"] for entry in kept.trials), default=-math.inf)
        kept.add(method, options, values, reward)
        if tell is not None and reward > best:
            tell(f"trial {number}: {method} {options}: {reward:.4g}")
    return True


def _space(run: _Run, optuna: Any) -> dict[str, Any]:
    of = optuna.distributions
    found = {
        "rule": of.CategoricalDistribution(RULES),
        "scale": of.FloatDistribution(*SCALES, log=True),
        "begin": of.FloatDistribution(0.0, 1.0),  # of the plan's levels, in the logarithm
        "end": of.FloatDistribution(0.0, 1.0),
    }
    if run.model.value_range is not None:
        found["clamp"] = of.CategoricalDistribution((False, True))
    return found


def _options(run: _Run, values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A method and its options, of a trial's parameters."""
    options: dict[str, Any] = {"scale": round(values["scale"], 4)}
    process = run.model.process
    levels = [level(process, t) for t in run.plan.times if 0 < level(process, t) < math.inf]
    span = math.log(min(levels)), math.log(max(levels))
    low, high = sorted(math.exp(span[0] + values[name] * (span[1] - span[0])) for name in ("begin", "end"))
    if high > 1.05 * low:
        options["interval"] = [float(f"{low:.4g}"), float(f"{high:.4g}")]
    if values.get("clamp"):
        options["clamp"] = True
    return values["rule"], options
