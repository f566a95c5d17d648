"""A learned plan: times and coefficients fitted by gradient to land where the reference lands.

Every deterministic plan with evaluations at falling times is, in the predictions x0_j it sees,

    x_{i+1} = s_i (sigma_{i+1} / sigma_i) x_i + (alpha_{i+1} - alpha_i sigma_{i+1} / sigma_i) sum_{j <= i} m_ij x0_j

with s_i = 1 and rows of m that sum to 1 for a consistent solver, and x_0 = s_0 sigma_0 / sigma_start x_start. The
times, s and the whole lower triangle m are the parameters: a few dozen numbers, started from the best hand-made plans.
The first time is among them: at pure noise the network can only answer with the mean of the data, so with few
evaluations it pays to ask it first a little later. The form keeps a state on its noise level when a
time moves, so that times and coefficients can be learned together.

With so few parameters and thousands of residuals, Gauss-Newton steps (Levenberg-Marquardt) reach in a dozen iterations
what stochastic gradient descent takes a thousand for. Their Jacobian is taken by differences, one run of the plan a
parameter, so the network needs no gradient: it may be compiled, quantised or any callable.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.ops import Combine, Draw, Evaluate, play
from fewstep.core.plan import Plan
from fewstep.core.prediction import scales
from fewstep.core.process import Process
from fewstep.sampling.tell import tell
from fewstep.searching.candidates import Candidate, Watch, hand_made, rank, score, unwatched
from fewstep.searching.grids import SOLVERS
from fewstep.searching.job import Job
from fewstep.searching.olss import olss
from fewstep.searching.problem import Problem
from fewstep.searching.shared import Ran, run_shared

METHODS = (
    Method(
        "learned-plan",
        paper="S4S: Solving for a Diffusion Model Solver (Frankel et al., 2025)",
        arxiv="2502.17423",
        claim="fitted times and coefficients beat every hand-made plan at 4 to 10 evaluations",
        use="learned_plan",
        facts={"quick": {"iterations": 1}},
    ),
)


def tabulate(plan: Plan) -> tuple[list[float], np.ndarray] | None:
    """Times of the evaluations and, for each state fed and the result, its row over (start, x0_0 ... x0_{n-1}).

    None for a plan that draws noise, evaluates a time twice or goes back in time.
    """
    times = [e.t for e in plan.evaluations]
    if (
        plan.stochastic
        or plan.spread is not None
        or any(t <= s for t, s in zip(times, [*times[1:], plan.times[-1]], strict=True))
    ):
        return None
    n = len(times)
    start = np.zeros(n + 1)
    start[0] = 1.0
    values: dict[int, np.ndarray] = {0: start}
    rows: list[np.ndarray] = []

    def answer(op: Evaluate, x: np.ndarray) -> tuple[str, np.ndarray]:
        rows.append(x)
        return "x0", np.eye(n + 1)[len(rows)]

    for _ in play(plan.ops, values, answer, _no_draw):
        pass
    return times, np.stack([*rows, values[plan.result]])


def _aim(to: float | None, times: list[float]) -> int | None:
    """Which of the times a flow map is sent to; None where it is sent nowhere."""
    if to is None or to in times:
        return None if to is None else times.index(to)
    raise ValueError(
        f"a plan that sends a flow map to {to:g}, none of its own times, is not learned: they move, and it would stay"
    )


def _no_draw(op: Draw) -> np.ndarray:
    raise ValueError("a plan that draws noise is not learned")


class Learner:
    """A plan as a vector of parameters, and back.

    The vector holds the log-SNRs of the n evaluations, s `(n + 1)`, and the lower triangle of m row by row
    `(n (n + 1) / 2)`, in float64; all of them are of order 1. With `numbers`, it ends with what the plan tells the
    network at its evaluations (`Evaluate.given`), in their order; without, these numbers stay as they are. The times
    to which a flow map goes (`to`) are times of the plan, and move with them.

    Raises:
        ValueError: a plan that sends a flow map to a time which is none of its own.
    """

    def __init__(self, process: Process, plan: Plan, numbers: bool = False):
        table = tabulate(plan)
        self.numbers = numbers
        self.given = [tuple(pair for pair in op.given if pair[0] != "to") for op in plan.evaluations]
        assert table is not None
        times, rows = table
        self.aims = [_aim(dict(op.given).get("to"), [*times, plan.times[-1]]) for op in plan.evaluations]
        self.process, self.start, self.end, self.n = process, plan.times[0], plan.times[-1], len(times)
        self.source = plan
        alpha = [process.alpha(t) for t in (*times, self.end)]
        sigma = [process.sigma(t) for t in (*times, self.end)]
        s, m = np.ones(self.n + 1), np.zeros((self.n, self.n))
        s[0] = rows[0][0] * process.sigma(self.start) / sigma[0]  # not 1 where a fitted plan scales its start
        for i in range(self.n):
            carry = sigma[i + 1] / sigma[i]
            if carry > 0 and rows[i][0] != 0:
                s[i + 1] = rows[i + 1][0] / (carry * rows[i][0])
            m[i] = (rows[i + 1] - s[i + 1] * carry * rows[i])[1:] / (alpha[i + 1] - alpha[i] * carry)
        self._triangle = np.tril_indices(self.n)
        # A start at alpha = 0 has no finite log-SNR; a parameter at or below `_low` stands for the start itself.
        low = process.log_snr(self.start)
        self._low = low if math.isfinite(low) else process.log_snr(process.time(-8.0))
        self._high = process.log_snr(process.t_min)
        first = self._low if times[0] == self.start else process.log_snr(times[0])
        log_snr = [first, *(process.log_snr(t) for t in times[1:])]
        told = [value for own in self.given for _, value in own] if numbers else []
        self.initial = np.concatenate((log_snr, s, m[self._triangle], told))

    def clamp(self, theta: np.ndarray) -> np.ndarray:
        """Log-SNRs that rise, inside the process's clock."""
        theta, n, gap = theta.copy(), self.n, 1e-3
        log_snr = np.clip(theta[:n], self._low, self._high)
        for i in range(1, n):
            log_snr[i] = max(log_snr[i], log_snr[i - 1] + gap)
        for i in range(n):
            log_snr[i] = min(log_snr[i], self._high - gap * (n - 1 - i))
        theta[:n] = log_snr
        return theta

    def plan(self, theta: np.ndarray) -> Plan:
        """The parameters as a Plan."""
        process, n = self.process, self.n
        times = [process.time(float(v)) for v in theta[:n]]
        if theta[0] <= self._low:
            times[0] = self.start
        s, m = theta[n : 2 * n + 1], np.zeros((n, n))
        end = 2 * n + 1 + len(self._triangle[0])
        m[self._triangle] = theta[2 * n + 1 : end]
        told = iter(float(value) for value in theta[end:])
        given = [tuple((name, next(told)) for name, _ in own) for own in self.given] if self.numbers else self.given
        later = process.sigma(times[0]) / process.sigma(self.start)
        x = 2 * n + 1
        ops: list[Evaluate | Combine] = [Combine(x, ((0, float(s[0]) * later),))]
        for i, (a, b) in enumerate(pairwise([*times, self.end])):
            carry = process.sigma(b) / process.sigma(a)
            pull = process.alpha(b) - process.alpha(a) * carry
            to = () if (aim := self.aims[i]) is None else (("to", [*times, self.end][aim]),)
            ops.append(Evaluate(x, a, (("x0", 2 * i + 1),), scales(process, a), (*to, *given[i])))
            terms = [(x, float(s[i + 1]) * carry)] + [(2 * j + 1, float(m[i, j]) * pull) for j in range(i + 1)]
            x = 2 * i + 2
            ops.append(Combine(x, tuple(terms)))
        about = {key: self.source.about[key] for key in ("timesteps", "end") if key in self.source.about}
        return Plan(
            ops=tuple(ops),
            result=x,
            times=(*([self.start] if times[0] < self.start else []), *times, self.end),
            start=self.source.start,
            process=dict(self.source.process),
            about={"solver": "learned", "from": self.source.about["solver"], **about, "steps": n},
        )


FEW = 32  # noises on which the starts of a fit race each other


class Fit:
    """Levenberg-Marquardt on `sum_b |x_b - reference_b|`, the score's numerator, by reweighted least squares."""

    def __init__(self, learner: Learner, model: Denoiser, train: Problem, held_out: Problem):
        self.learner, self.model, self.train, self.held_out = learner, model, train, held_out
        self.theta, self.damping, self.stalled = learner.initial.copy(), 1e-2, 0
        self.residual = self._residual(self.theta)
        self.best, self.score = self.theta, self._held_out(self.theta)

    def state(self) -> dict[str, object]:
        """The fit as JSON, to go on from."""
        best, theta = self.best.tolist(), self.theta.tolist()
        return {"theta": theta, "best": best, "score": self.score, "damping": self.damping, "stalled": self.stalled}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.theta, self.best = np.array(state["theta"]), np.array(state["best"])
        self.score, self.damping, self.stalled = state["score"], state["damping"], state["stalled"]
        self.residual = self._residual(self.theta)

    def _residual(self, theta: np.ndarray) -> Tensor | None:
        """`(B, D)` in float64, or None where the plan diverges."""
        return self._far(run_shared([self.learner.plan(theta)], self.model, self.train)[0])

    def _far(self, run: Ran) -> Tensor | None:
        if run.samples is None:
            return None
        return (run.samples.double() - self.train.reference.double()).flatten(1)

    def on(self, train: Problem) -> None:
        """Go on from the best so far with other noises to learn from."""
        self.train, self.theta, self.stalled = train, self.best, 0
        self.residual = self._residual(self.theta)

    def _held_out(self, theta: np.ndarray) -> float:
        return score(self.learner.plan(theta), self.model, self.held_out)

    def step(self, tick: Callable[[], None]) -> None:
        """One Jacobian, then the damped step that lowers the training score (the damping rises until one does)."""
        residual, theta = self.residual, self.theta
        if residual is None:
            self.stalled = 2
            return
        moves = []
        for k in range(len(theta)):
            h = 2e-3
            moved = theta.copy()
            # A log-SNR moves away from the upper end of the clock.
            moved[k] += h if k >= self.learner.n or theta[k] + h < self.learner._high else -h
            moves.append(moved)
        columns = []
        # What a number moves comes late in the plan, most often: all before is evaluated once for many of them.
        runs = run_shared([self.learner.plan(moved) for moved in moves], self.model, self.train, tick)
        for k, (moved, run) in enumerate(zip(moves, runs, strict=True)):
            there = self._far(run)
            columns.append(torch.zeros_like(residual) if there is None else (there - residual) / (moved[k] - theta[k]))
        jacobian = torch.stack([column.flatten() for column in columns], dim=1)
        norms = residual.norm(dim=1)
        weights = (1 / (norms + 1e-2 * norms.mean() + 1e-12)).repeat_interleave(residual.shape[1])
        weighted = jacobian * weights.unsqueeze(1)
        normal = (jacobian.T @ weighted).cpu().numpy()
        slope = (weighted.T @ residual.flatten()).cpu().numpy()
        before = float(norms.mean())
        for _ in range(6):
            lhs = normal + self.damping * np.diag(np.diag(normal) + 1e-9 * np.trace(normal))
            trial = self.learner.clamp(theta - np.linalg.lstsq(lhs, slope, rcond=None)[0])
            there = self._residual(trial)
            if there is not None and float(there.norm(dim=1).mean()) < before:
                self.theta, self.residual = trial, there
                self.damping = max(self.damping / 4, 1e-8)
                break
            self.damping = min(self.damping * 6, 1e6)
        else:
            self.stalled = 2
            return
        value = self._held_out(self.theta)
        self.stalled = 0 if value < 0.998 * self.score else self.stalled + 1
        if value < self.score:
            self.best, self.score = self.theta, value


def learned_plan(job: Job, iterations: int = 12, numbers: Mapping[str, float] | None = None) -> None:
    """Fit times and coefficients, as many iterations as asked, from OLSS's plan and the best hand-made ones (`Fit`).

    Two iterations for each of three starts, then the rest for the one that leads.

    Args:
        numbers: what the plan is to tell the network at each evaluation, and the values from which these numbers are
            learned as well: `{"guidance": 2.0}` finds a guidance scale for each evaluation.
    """
    state = job.state
    if state is None or "tried" in state:  # OLSS is not done
        olss(job)
        hand = rank(list(hand_made(job.process, job.nfe, SOLVERS)), job.model, job.held_out)
        assert job.best is not None
        job.offer(hand[0].plan)
        starts = _learnable([Candidate(job.best, job.score), *hand])
        told = [tell(start.plan, **(numbers or {})) for start in starts]
        state = {"done": 0, "starts": [start.to_json() for start in told], "fits": None}
        job.save(state)
    fits = [
        Fit(Learner(job.process, Plan.from_json(text), bool(numbers)), job.model, job.train, job.held_out)
        for text in state["starts"]
    ]
    for fit, kept in zip(fits, state["fits"] or [], strict=False):
        fit.restore(kept)
    while state["done"] < iterations and (active := [fit for fit in fits if fit.stalled < 2]):
        turn = state["done"] // 2
        fit = fits[turn] if turn < len(fits) and fits[turn] in active else min(active, key=lambda fit: fit.score)
        fit.step(job.check)
        job.offer(fit.learner.plan(fit.best))
        state = state | {"done": state["done"] + 1, "fits": [fit.state() for fit in fits]}
        job.save(state)


def _learnable(starts: list[Candidate]) -> list[Candidate]:
    return [c for c in starts if math.isfinite(c.score) and tabulate(c.plan) is not None][:3]


def _apart(starts: list[Candidate]) -> list[Candidate]:
    """The starts without those that differ from a better one in their end alone: they would be fitted to the same."""
    seen: dict[tuple[object, object], Candidate] = {}
    for start in starts:
        seen.setdefault((start.plan.about.get("solver"), start.plan.about.get("timesteps")), start)
    return list(seen.values())


def learn(
    model: Denoiser,
    starts: list[Candidate],
    train: Problem,
    held_out: Problem,
    *,
    seconds: float = 60.0,
    iterations: int | None = None,
    advance: Callable[[float], None] | None = None,
    watch: Watch = unwatched,
) -> tuple[Plan | None, dict[str, object]]:
    """Fit plans from the first learnable starts (three at most) and return the best on held-out noises, with figures.

    Two iterations for each start on a quarter of the noises (at least `FEW`), then the rest of the budget, on all, for
    the one that leads. A fit stops early when two iterations in a row bring no gain on the held-out noises; then the
    next best start goes on.

    Args:
        starts: candidates, best first; those that evaluate a time twice cannot be learned and are passed over.
        seconds: the budget; `iterations`, where given, is the budget after the starts instead, and makes the result
            repeatable.
        watch: is told "call" before each call of the network, and after each iteration "learned": nfe, the iteration,
            and the error of the best plan so far on the held-out noises.

    Returns:
        The plan, or None when there is nothing to learn from; and figures: iterations, held-out score before and after.
    """
    learnable = _learnable(_apart(starts))
    if not learnable:
        return None, {"learned": False, "reason": "no hand-made plan can be learned from"}
    begin = time.perf_counter()
    few = train.part(0, max(FEW, len(train) // 4))
    fits = [Fit(Learner(model.process, c.plan), model, few, held_out) for c in learnable]
    before = min(fit.score for fit in fits)
    total = rounds = 0

    def spent() -> float:
        return (time.perf_counter() - begin) / seconds

    def tick() -> None:
        watch("call", {})
        if advance is not None:
            advance(min(spent(), 1.0) if iterations is None else (total + rounds) / (iterations + 2 * len(fits)))

    def learned() -> None:
        error = min(fit.score for fit in fits)
        watch("learned", {"nfe": learnable[0].plan.nfe, "iteration": total + rounds, "error": error})

    learned()
    for fit in fits:
        for _ in range(2):
            # A third of the budget goes to the starts at most.
            if iterations is None and spent() > 1 / 3 and total > 0:
                break
            fit.step(tick)
            total += 1
            learned()
    # The leader goes on; when it has stalled, the next best start has its chance with what is left.
    while active := [fit for fit in fits if fit.stalled < 2 or fit.train is few]:
        if rounds >= iterations if iterations is not None else spent() >= 1:
            break
        leader = min(active, key=lambda fit: fit.score)
        if leader.train is few:
            leader.on(train)
        leader.step(tick)
        rounds += 1
        learned()
    leader = min(fits, key=lambda fit: fit.score)
    return leader.learner.plan(leader.best), {
        "learned": True,
        "from": learnable[fits.index(leader)].name,
        "iterations": total + rounds,
        "parameters": len(leader.theta),
        "held_out_before": before,
        "held_out_after": leader.score,
        "seconds": time.perf_counter() - begin,
    }
