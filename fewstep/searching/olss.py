"""OLSS: every state is the teacher's projection onto the span of the noise and the predictions so far."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.ops import Combine, Evaluate
from fewstep.core.plan import Plan
from fewstep.core.prediction import scales
from fewstep.core.process import Process
from fewstep.searching.grids import fine_grid
from fewstep.searching.job import Job
from fewstep.timesteps.grid import make_times

METHODS = (
    Method(
        "olss",
        paper="Optimal Linear Subspace Search (Duan et al., 2023)",
        arxiv="2305.14677",
        claim="coefficients by least squares on a teacher's states, times that bound the largest step's error",
        use="olss",
        facts={"quick": {"points": 21}},
    ),
)

BISECTIONS = 16  # of the bound on the step error, in its logarithm


def regress(columns: Tensor, targets: Tensor, tolerance: float = 1e-12) -> tuple[Tensor, Tensor]:
    """Least squares by QR: coefficients `(k, m)` for `columns` `(N, k)` and `targets` `(N, m)`, and residuals `(N, m)`.

    All in float64. Columns whose part outside the span of those before them is below `tolerance` of their length say
    nothing new; their coefficients are 0.
    """
    columns, targets = columns.double(), targets.double()
    r = torch.linalg.qr(columns, mode="r").R
    kept = (r.diagonal().abs() > tolerance * columns.norm(dim=0)).nonzero().flatten()
    q, r = torch.linalg.qr(columns[:, kept])
    projection = q.T @ targets
    coefficients = targets.new_zeros(columns.shape[1], targets.shape[1])
    coefficients[kept] = torch.linalg.solve_triangular(r, projection, upper=True)
    return coefficients, targets - q @ projection


class Rollout:
    """A plan that grows step by step on training noises, each state the projection of the teacher's.

    The predictions are made at the states that the plan itself reaches, so it corrects what it has missed. The span
    holds the current state as well, which is a combination of the noise and the predictions before it.

    Attributes:
        rows: coefficients over (start, x0_1 ... x0_k) of each state made so far.
        times: of the evaluations made so far.
        error: the largest root mean square residual of a step so far, in parts of `sqrt(alpha^2 + sigma^2)` there.
    """

    def __init__(self, model: Denoiser, process: Process, start: Tensor, condition: dict[str, Tensor]):
        self.model, self.process, self.condition, self.shape = model, process, condition, start.shape
        self.columns = [start.double().flatten()]
        # Predictions carry the network's rounding: what lies below it is no direction.
        self.tolerance = 100 * torch.finfo(start.dtype).eps
        self.dtype, self.rows, self.times, self.error = start.dtype, list[list[float]](), list[float](), 0.0

    def fit(self, states: Tensor, times: Sequence[float]) -> tuple[Tensor, list[float]]:
        """Coefficients `(k, m)` and errors of the projections of m states `(m, n, *shape)`."""
        coefficients, residual = regress(torch.stack(self.columns, 1), states.double().flatten(1).T, self.tolerance)
        size = torch.tensor([math.hypot(self.process.alpha(t), self.process.sigma(t)) for t in times])
        return coefficients, (residual.square().mean(0).sqrt().cpu() / size).tolist()

    def advance(self, row: Tensor, error: float, t: float | None) -> None:
        """Go to the state with coefficients `row` `(k,)`, and predict there, at time t (None at the end)."""
        self.rows.append(row.tolist())
        self.error = max(self.error, error)
        if t is not None:
            x = (torch.stack(self.columns, 1) @ row).reshape(self.shape).to(self.dtype)
            time = torch.tensor(t, dtype=self.dtype, device=x.device)
            parts = []
            for begin in range(0, len(x), 256):
                named = {name: value[begin : begin + 256] for name, value in self.condition.items()}
                parts.append(self.model(x[begin : begin + 256], time, **named).x0)
            self.columns.append(torch.cat(parts).double().flatten())
            self.times.append(t)

    def plan(self, end: float, rule: str) -> Plan:
        """The states made so far as a plan; the last is the result, at time `end`."""
        process, n = self.process, len(self.times)
        ops: list[Evaluate | Combine] = []
        first = process.t_max
        slots = [0]  # of the columns
        for i, row in enumerate(self.rows):
            state = 2 * i + 1
            ops.append(Combine(state, tuple(zip(slots, row, strict=True))))
            if i < n:
                t = self.times[i]
                ops.append(Evaluate(state, t, (("x0", 2 * i + 2),), scales(process, t)))
                slots.append(2 * i + 2)
        return Plan(
            ops=tuple(ops),
            result=2 * n + 1,
            times=(*([first] if self.times[0] < first else []), *self.times, end),
            start=(process.alpha(first), process.sigma(first)),
            process=process.config(),
            about={"solver": "olss", "timesteps": rule, "steps": n, "end": "zero"},
        )


def _rollout(job: Job, n: int) -> Rollout:
    part = job.train.part(0, n)
    start = part.noise * job.process.sigma(job.process.t_max)
    return Rollout(job.model, job.process, start, part.condition)


def follow(job: Job, times: Sequence[float], states: Tensor) -> Rollout:
    """Fit each state in turn, on given times; `states` `(len(times), n, *shape)` are the teacher's."""
    rollout = _rollout(job, states.shape[1])
    for i, t in enumerate(times):
        coefficients, errors = rollout.fit(states[i : i + 1], [t])
        rollout.advance(coefficients[:, 0], errors[0], t if i < len(times) - 1 else None)
    return rollout


def within(job: Job, times: Sequence[float], states: Tensor, nfe: int, bound: float, first: bool) -> Rollout | None:
    """The greedy path: each step goes as far as its error allows; None if `nfe` evaluations do not reach the end.

    The first evaluation is at the first time, or (`first=False`) as late as the span of the noise alone allows.
    """
    rollout, i, last = _rollout(job, states.shape[1]), -1, len(times) - 1
    for made in range(nfe + 1):
        furthest = 0 if made == 0 and first else last - (nfe - made)  # a time is left for each evaluation to come
        ahead = list(range(i + 1, furthest + 1))
        coefficients, errors = rollout.fit(states[ahead], [times[j] for j in ahead])
        allowed = [k for k, error in enumerate(errors) if error <= bound]
        if made == nfe:
            if errors[-1] > bound:
                return None
            allowed = [len(ahead) - 1]
        k = max(allowed, default=0)  # no step at all is within the bound: the shortest, and the path fails
        if errors[k] > bound:
            return None
        i = ahead[k]
        rollout.advance(coefficients[:, k], errors[k], times[i] if made < nfe else None)
    return rollout


def olss(job: Job, timesteps: str | None = None, points: int = 101, trajectories: int = 256) -> None:
    """Coefficients by projection, and times by the least bound on every step's error (Duan et al., 2023).

    The planner bisects the bound; for each it goes greedily from the noise as far as the bound allows in every step.
    Beside the paper's path, which begins at the first time, one is planned that is free to begin later, where the
    initial noise is still a good state.

    Args:
        timesteps: a rule whose times are used instead of planned ones.
        points: times of the fine grid from which the planner chooses.
        trajectories: how many of the training noises are fitted to, at most.

    Raises:
        ValueError: fewer points than `job.nfe` evaluations need.
    """
    process, nfe = job.process, job.nfe
    if points < nfe + 2:
        raise ValueError(f"{nfe} evaluations need at least {nfe + 2} points, got {points}")
    times = fine_grid(process, points) if timesteps is None else make_times(process, nfe, timesteps)
    states = torch.stack(job.trajectory(times, trajectories))
    if timesteps is not None:
        job.offer(follow(job, times, states).plan(times[-1], timesteps))
        return
    state = job.state or {"tried": 0, "bisected": 0, "low": None, "high": None}
    for variant in range(state["tried"], 2):
        first = variant == 0
        if state["high"] is None:
            # On equal steps of the grid every error is known: a bound that can be met.
            even = [round(k * (points - 1) / nfe) for k in range(nfe + 1)]
            made = follow(job, [times[i] for i in even], states[even])
            state |= {"high": max(2 * made.error, 1e-12), "low": max(2e-6 * made.error, 1e-18)}
            while within(job, times, states, nfe, state["high"], first) is None:
                state["high"] *= 4
            job.save(state)
        while state["bisected"] < BISECTIONS:
            bound = math.sqrt(state["low"] * state["high"])
            met = within(job, times, states, nfe, bound, first)
            state["low" if met is None else "high"] = bound
            state["bisected"] += 1
            job.save(state)
        found = within(job, times, states, nfe, state["high"], first)
        assert found is not None
        job.offer(found.plan(times[-1], "olss" if first else "olss, from noise"))
        state |= {"tried": variant + 1, "bisected": 0, "low": None, "high": None}
        job.save(state)
