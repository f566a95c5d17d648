"""AdaDiff: a policy that picks a step count for each condition, trained by REINFORCE on quality and saved steps."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.conditions.label import Label
from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.core.files import read_text
from fewstep.core.methods import Method, card
from fewstep.core.noise import Noise
from fewstep.core.plan import Plan
from fewstep.metrics.accuracy import correct
from fewstep.report.files import write_json
from fewstep.sampling.build import fixed_plan as make_plan
from fewstep.sampling.mixed import Request, run_mixed
from fewstep.searching.job import Job
from fewstep.searching.problem import Problem

METHODS = (
    Method(
        "adadiff",
        paper="AdaDiff: Adaptive Step Selection for Fast Diffusion (Zhang et al., 2023)",
        arxiv="2311.14768",
        claim="a small policy picks the steps of each condition, for quality at fewer steps on average",
        use="adadiff",
        facts={"quick": {"updates": 50}},
    ),
)

FORMAT = "fewstep-policy-1"


class Policy:
    """`policy(model, n, label=..., seed=...)` draws samples, each with the plan the policy picks for its condition.

    Of a request it sees the condition alone: the labels one-hot, one layer of `tanh`, and a logit for each plan. The
    plan of the largest logit is picked. `weights` are `(hidden, features)`, `(hidden,)`, `(plans, hidden)`,
    `(plans,)`, in float64.

    Raises:
        ValueError: plans that draw noise, weights that do not fit them.
    """

    def __init__(self, plans: Sequence[Plan], conditions: Mapping[str, Label], weights: Sequence[Tensor]):
        self.plans, self.conditions = tuple(plans), dict(conditions)
        self.weights = tuple(w.detach().double().cpu() for w in weights)
        features = sum(kind.classes for kind in self.conditions.values())
        shapes = [tuple(w.shape) for w in self.weights]
        hidden = shapes[1][0] if len(shapes) == 4 and shapes[1] else 0
        wanted = [(hidden, features), (hidden,), (len(self.plans), hidden), (len(self.plans),)]
        if not self.plans or not features or not hidden or shapes != wanted:
            raise ValueError(f"weights of shapes {shapes} do not fit {len(self.plans)} plans and {features} features")
        if not all(bool(torch.isfinite(w).all()) for w in self.weights):
            raise ValueError("a policy's weights must be finite")
        if stochastic := [made.name for made in self.plans if made.stochastic]:
            raise ValueError(f"a policy picks among deterministic plans, and {stochastic[0]!r} draws noise")

    def features(self, n: int, **condition: Any) -> Tensor:
        """The conditions of n requests `(n, features)`, one-hot.

        Raises:
            ValueError: a condition that the policy does not know, or that is missing: it was never asked about those.
        """
        for name in condition:
            if name not in self.conditions:
                raise suggest("condition", name, self.conditions)
        parts = []
        for name, kind in self.conditions.items():
            labels = kind.check(name, condition.get(name), n, torch.device("cpu"))
            if bool((labels == kind.classes).any()):
                raise ValueError(
                    f"the policy knows {name} 0 to {kind.classes - 1}, and none of it for requests without"
                )
            parts.append(torch.nn.functional.one_hot(labels, kind.classes).double())
        return torch.cat(parts, dim=1)

    def choose(self, n: int = 1, **condition: Any) -> Tensor:
        """Which plan each of n requests gets `(n,)`, as its place in `plans`."""
        return _logits(self.weights, self.features(n, **condition)).argmax(1)

    def counts(self, label: Any = None, **condition: Any) -> list[int]:
        """The evaluations picked for one label or a list of them; without any, for every label in turn.

        For a model whose only condition is not called `label`, give it by its name.
        """
        if label is not None:
            condition = {"label": label, **condition}
        if not condition and len(self.conditions) == 1:
            ((name, kind),) = self.conditions.items()
            condition = {name: list(range(kind.classes))}
        n = max((len(torch.as_tensor(value).reshape(-1)) for value in condition.values()), default=1)
        return [self.plans[int(k)].nfe for k in self.choose(n, **condition)]

    def __call__(
        self,
        model: Denoiser,
        n: int,
        *,
        seed: int = 0,
        first: int = 0,
        max_batch: int | None = 256,
        dtype: torch.dtype = torch.float32,
        **condition: Any,
    ) -> Tensor:
        """n samples `(n, *shape)`: as `fs.sample` with each sample's own plan. Different plans share network calls.

        Raises:
            ValueError: unknown conditions; a model for another process, or without a shape.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        if model.shape is None:
            raise ValueError("the policy draws noise, so the denoiser needs a shape: set model.shape = (...)")
        device = model.device
        named = model.check_condition(condition, n, device)
        chosen = self.choose(n, **condition)
        noise = Noise(seed, first).normal(0, (n, *model.shape), device, dtype)
        requests, rows = [], []
        for k, made in enumerate(self.plans):
            mine = (chosen == k).nonzero().squeeze(1)
            for part in mine.split(max_batch or n) if len(mine) else ():
                part = part.to(device)
                requests.append(Request(made, noise[part], {name: value[part] for name, value in named.items()}))
                rows.append(part)
        out = torch.empty_like(noise)
        for part, samples in zip(rows, run_mixed(requests, model, max_batch, dtype), strict=True):
            out[part] = samples
        return out

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the policy as JSON, in which every number is exact."""
        write_json(
            Path(path),
            {
                "format": FORMAT,
                "conditions": {name: kind.classes for name, kind in self.conditions.items()},
                "weights": [w.tolist() for w in self.weights],
                "plans": [made.to_json() for made in self.plans],
            },
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Policy:
        """Read a policy; `ValueError` names the file if it is none."""
        try:
            data = json.loads(read_text(path))
            if data["format"] != FORMAT:
                raise ValueError(f"format {data['format']!r}, expected {FORMAT!r}")
            weights = [torch.tensor(w, dtype=torch.float64) for w in data["weights"]]
            conditions = {str(name): Label(int(classes)) for name, classes in data["conditions"].items()}
            return cls([Plan.from_json(text) for text in data["plans"]], conditions, weights)
        except (ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is no fewstep policy: {error}") from None


def _logits(weights: Sequence[Tensor], features: Tensor) -> Tensor:
    first, bias, second, offset = weights
    return torch.tanh(features @ first.T + bias) @ second.T + offset


def rewards(
    errors: Tensor, lost: Tensor, counts: Sequence[int], tolerance: float, saving: float, penalty: float
) -> Tensor:
    """`(n, K)` from relative endpoint errors `(n, K)`, and whether the class that the reference shows was lost.

    `1 - error + saving (1 - count / largest count)` while the quality is that of the reference, error at most
    `tolerance` and the class kept; `-penalty - min(error, 1)` where it falls below. (The penalty of Zhang et al. is a
    constant; this one asks for the best count where none will do.)
    """
    spared = 1 - torch.tensor(counts, dtype=torch.float64) / max(counts)
    return torch.where((errors > tolerance) | lost, -penalty - errors.clamp(max=1), 1 - errors + saving * spared)


def reinforce(features: Tensor, table: Tensor, seed: int, hidden: int, updates: int) -> list[Tensor]:
    """Train a policy's weights by policy gradient on a table of rewards `(n, K)` of requests with `features` `(n, F)`.

    Each update draws one plan a request, and follows `(reward - baseline) grad log pi`; the baseline is the request's
    expected reward under the policy, which no draw depends on. A bonus on the entropy, falling to 0, keeps it looking.
    """
    from fewstep.training.players import Player, optimise

    generator = torch.Generator().manual_seed(seed)
    f, k = features.shape[1], table.shape[1]
    shapes = ((hidden, f), (hidden,), (k, hidden), (k,))
    weights = torch.nn.ParameterList(
        torch.randn(shape, generator=generator, dtype=torch.float64) * (0.5 if i == 0 else 0.0)
        for i, shape in enumerate(shapes)
    )
    with torch.no_grad():
        weights[2].copy_(0.1 * torch.randn(k, hidden, generator=generator, dtype=torch.float64))
    numbers = itertools.count()

    def loss(update: int) -> Tensor:
        log_p = _logits(list(weights), features).log_softmax(1)
        p = log_p.detach().exp()
        drawn = torch.multinomial(p, 1, generator=generator)
        advantage = table.gather(1, drawn) - (p * table).sum(1, keepdim=True)
        entropy = -(log_p.exp() * log_p).sum(1).mean()
        return -(advantage * log_p.gather(1, drawn)).mean() - 0.05 * (1 - update / updates) * entropy

    policy = Player(weights, loss, lr=0.03, betas=(0.9, 0.999))
    optimise({"policy": policy}, lambda n, generator: next(numbers), steps=updates, batch=len(features), seed=generator)
    return [w.detach() for w in weights]


def _qualities(job: Job, made: Plan, problem: Problem) -> list[list[float]]:
    """For each noise: the relative endpoint error of the plan, and 1 where the class the reference shows is lost (of
    data whose classes can be judged)."""
    try:
        x = job.run(made, problem).double().flatten(1)
    except ValueError as error:
        if "not finite" in str(error):
            return [[1.0, 1.0]] * len(problem)
        raise
    reference = problem.reference.double().flatten(1)
    errors = (x - reference).norm(dim=1) / reference.norm(dim=1).mean()
    lost = torch.zeros(len(errors), dtype=torch.bool)
    judged = card("accuracy", "metric")[0].facts["of"]
    if job.model.facts.data == judged and "label" in problem.condition:
        label = problem.condition["label"]
        right = [correct(y.view_as(problem.reference).float(), label) for y in (reference, x)]
        lost = right[0] & ~right[1]
    return [[float(e), float(gone)] for e, gone in zip(errors, lost, strict=True)]


def adadiff(
    job: Job,
    counts: Sequence[int] | None = None,
    solver: str = "dpmpp-2m",
    timesteps: str = "karras",
    tolerance: float = 0.1,
    saving: float = 1.0,
    penalty: float = 1.0,
    hidden: int = 16,
    updates: int = 600,
) -> None:
    """A policy that picks one of a few evaluation counts for each condition (Zhang et al., 2023).

    Every training noise is run with every plan once; the policy is trained by REINFORCE on the rewards of that table
    (`rewards`). With the digits, a sample's class is verified by their classifier. `job.result` is the `Policy`;
    `job.best` is the plan it picks most often, or a fixed one where that has the greater mean reward on the held-out
    noises.

    Args:
        counts: evaluations to pick from; by default a quarter, a half, three quarters and all of `job.nfe`.
        tolerance: the largest relative endpoint error that counts as the reference's quality; saving: the reward of a
            run that would take no steps, beside 1 for one without error; penalty: for falling below.

    Raises:
        ValueError: an unconditional model, a stochastic solver, fewer than two counts or some above `job.nfe`.
    """
    model = job.model
    if not model.conditions:
        raise ValueError("adadiff picks the steps by the condition, and this model is unconditional")
    if other := [name for name, kind in model.conditions.items() if not isinstance(kind, Label)]:
        raise ValueError(f"adadiff reads class labels, and {other[0]!r} is none")
    facts = card(solver, "solver")[0].facts
    if facts.get("stochastic") or facts.get("live"):
        raise ValueError(f"the steps are picked for a deterministic solver with a plan, not for {solver!r}")
    asked = counts if counts is not None else [max(1, round(job.nfe * k / 4)) for k in (1, 2, 3, 4)]
    if max(asked, default=0) > job.nfe or min(asked, default=0) < 1:
        raise ValueError(f"counts must lie between 1 and the search's nfe, {job.nfe}, got {list(asked)}")
    plans = {made.nfe: made for made in (make_plan(job.process, solver, nfe=n, timesteps=timesteps) for n in asked)}
    plans = dict(sorted(plans.items()))
    if len(plans) < 2:
        raise ValueError(f"there must be two counts at least to pick from, got {sorted(plans)}")
    for name, value in {"tolerance": tolerance, "hidden": hidden, "updates": updates}.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
    job.measure = "less the mean reward"

    sides = {"train": job.train, "held_out": job.held_out}
    state: dict[str, Any] = dict(job.state or {"train": [], "held_out": []})  # qualities, plan by plan

    def table(side: str) -> Tensor:
        found = torch.tensor(state[side], dtype=torch.float64)
        return rewards(found[..., 0].T, found[..., 1].T > 0, list(plans)[: len(found)], tolerance, saving, penalty)

    # From the most steps down, so that savings are known from the first.
    plans = dict(reversed(plans.items()))
    for k, made in enumerate(plans.values()):
        if k < len(state["held_out"]):
            continue
        job.check()
        for side, problem in sides.items():
            state[side] = [*state[side][:k], _qualities(job, made, problem)]
        job.offer(made, -float(table("held_out")[:, k].mean()))
        job.save(state)
    features = {
        side: torch.cat(
            [
                torch.nn.functional.one_hot(problem.condition[name].cpu(), kind.classes).double()  # type: ignore[attr-defined]
                for name, kind in model.conditions.items()
            ],
            dim=1,
        )
        for side, problem in sides.items()
    }
    weights = reinforce(features["train"], table("train"), job.seed, hidden, updates)
    labels = {name: kind for name, kind in model.conditions.items() if isinstance(kind, Label)}  # all, as checked
    policy = Policy(list(plans.values()), labels, weights)
    job.result = policy
    chosen = _logits(policy.weights, features["held_out"]).argmax(1)
    frequent = int(torch.bincount(chosen, minlength=len(plans)).argmax())
    job.offer(policy.plans[frequent], -float(table("held_out").gather(1, chosen[:, None]).mean()))
