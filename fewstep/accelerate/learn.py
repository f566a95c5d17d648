"""A learned plan: times and coefficients fitted by gradient to land where the reference lands.

Every deterministic plan with evaluations at falling times is, in the predictions x0_j it sees,

    x_{i+1} = s_i (sigma_{i+1} / sigma_i) x_i + (alpha_{i+1} - alpha_i sigma_{i+1} / sigma_i) sum_{j <= i} m_ij x0_j

with s_i = 1 and rows of m that sum to 1 for a consistent solver. The times, s and the whole lower triangle m are the
parameters: a few dozen numbers, started from the best hand-made plans. The form keeps a state on its noise level when a
time moves, so that times and coefficients can be learned together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fewstep.accelerate.candidates import Candidate
from fewstep.accelerate.point import Problem
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.plan import Combine, Evaluate, Plan
from fewstep.core.prediction import conversion, scales
from fewstep.core.process import Process

METHODS = (
    Method(
        "learned-plan",
        paper="S4S: Solving for a Fast Diffusion Model Solver (Frankel et al., 2025), with free times and a full table",
        arxiv="2502.17423",
        claim="times and coefficients fitted to the reference's end points beat every hand-made plan at 4 to 10 evaluations",
        use="learn",
    ),
)


def tabulate(plan: Plan) -> tuple[list[float], np.ndarray] | None:
    """Times of the evaluations and, for each state fed and the result, its row over (start, x0_0 ... x0_{n-1}).

    None for a plan that draws noise, evaluates a time twice or goes back in time.
    """
    times = [e.t for e in plan.evaluations]
    if plan.stochastic or any(t <= s for t, s in zip(times, [*times[1:], plan.times[-1]], strict=True)):
        return None
    n = len(times)
    start = np.zeros(n + 1)
    start[0] = 1.0
    values, rows, count = {0: start}, [], 0
    for op in plan.ops:
        if isinstance(op, Combine):
            values[op.slot] = sum((c * values[slot] for slot, c in op.terms), start=np.zeros(n + 1))
        elif isinstance(op, Evaluate):
            rows.append(values[op.x])
            count += 1
            x0 = np.zeros(n + 1)
            x0[count] = 1.0
            for kind, slot in op.outputs:
                p, q = conversion("x0", kind, *op.scales)
                values[slot] = p * values[op.x] + q * x0
    return times, np.stack([*rows, values[plan.result]])


@dataclass
class Parameters:
    """The plan's free numbers: log-SNRs of the evaluations after the first, s `(n,)` and m `(n, n)` lower triangular."""

    log_snr: Tensor
    s: Tensor
    m: Tensor

    def tensors(self) -> list[Tensor]:
        return [self.log_snr, self.s, self.m]

    def copy(self) -> Parameters:
        return Parameters(*(tensor.detach().clone() for tensor in self.tensors()))


class Learner:
    """Runs a parameterised plan with gradients, and writes it down as a Plan."""

    def __init__(self, process: Process, plan: Plan):
        table = tabulate(plan)
        assert table is not None
        times, rows = table
        self.process, self.first, self.end, self.n = process, times[0], plan.times[-1], len(times)
        self.source = plan
        alpha = [process.alpha(t) for t in (*times, self.end)]
        sigma = [process.sigma(t) for t in (*times, self.end)]
        s, m = np.ones(self.n), np.zeros((self.n, self.n))
        for i in range(self.n):
            carry = sigma[i + 1] / sigma[i]
            if carry > 0 and rows[i][0] != 0:
                s[i] = rows[i + 1][0] / (carry * rows[i][0])
            m[i] = (rows[i + 1] - s[i] * carry * rows[i])[1:] / (alpha[i + 1] - alpha[i] * carry)
        self.initial = Parameters(
            torch.tensor([process.log_snr(t) for t in times[1:]], dtype=torch.float64),
            torch.from_numpy(s),
            torch.from_numpy(m),
        )
        self.low = process.log_snr(process.t_max - 1e-4 * (process.t_max - process.t_min))
        self.high = process.log_snr(process.t_min)

    def _coefficients(self, p: Parameters) -> tuple[Tensor, Tensor, Tensor]:
        """Times `(n,)`, carries `(n,)` and weights `(n, n)` of the recursion."""
        first = torch.tensor([self.first], dtype=torch.float64)
        times = torch.cat((first, self.process.time(p.log_snr)))
        every = torch.cat((times, torch.tensor([self.end], dtype=torch.float64)))
        alpha, sigma = self.process.alpha(every), self.process.sigma(every)
        carry = sigma[1:] / sigma[:-1]
        pull = alpha[1:] - alpha[:-1] * carry
        return times, p.s * carry, torch.tril(p.m) * pull.unsqueeze(1)

    def run(self, p: Parameters, model: Denoiser, problem: Problem) -> Tensor:
        """The samples, differentiable in the parameters."""
        times, carry, weights = self._coefficients(p)
        dtype, device = problem.noise.dtype, problem.noise.device
        carry, weights = carry.to(device, dtype), weights.to(device, dtype)
        times = times.to(device, dtype)
        x = problem.noise * self.source.start[1]
        seen: list[Tensor] = []
        for i in range(self.n):
            seen.append(model(x, times[i], **problem.condition).x0.to(dtype))
            x = carry[i] * x
            for j, x0 in enumerate(seen):
                x = x + weights[i, j] * x0
        return x

    def clamp(self, p: Parameters) -> None:
        """Keep the log-SNRs rising, inside the process's clock."""
        with torch.no_grad():
            gap = 1e-3
            p.log_snr.clamp_(self.low, self.high)
            for i in range(1, len(p.log_snr)):
                p.log_snr[i] = torch.maximum(p.log_snr[i], p.log_snr[i - 1] + gap)
            for i in reversed(range(len(p.log_snr))):
                p.log_snr[i] = torch.minimum(p.log_snr[i], torch.tensor(self.high - gap * (len(p.log_snr) - 1 - i)))

    def plan(self, p: Parameters) -> Plan:
        """The parameters as a Plan, in float64."""
        times, carry, weights = (value.detach().tolist() for value in self._coefficients(p))
        ops: list[Evaluate | Combine] = []
        x = 0
        for i, t in enumerate(times):
            ops.append(Evaluate(x, t, (("x0", 2 * i + 1),), scales(self.process, t)))
            terms = [(x, carry[i])] + [(2 * j + 1, weights[i][j]) for j in range(i + 1)]
            x = 2 * i + 2
            ops.append(Combine(x, tuple(terms)))
        about = {key: self.source.about[key] for key in ("timesteps", "end") if key in self.source.about}
        return Plan(
            ops=tuple(ops),
            result=x,
            times=(*times, self.end),
            start=self.source.start,
            process=dict(self.source.process),
            about={"solver": "learned", "from": self.source.about["solver"], **about, "steps": self.n},
        )


def _loss(x: Tensor, reference: Tensor) -> Tensor:
    """The score itself: mean L2 error over mean L2 norm (smooth at 0)."""
    error = ((x - reference).flatten(1).square().sum(1) + 1e-12).sqrt().mean()
    return error / reference.flatten(1).norm(dim=1).mean()


@dataclass
class _Run:
    """One start: its learner, parameters, optimiser, best parameters and their held-out score."""

    learner: Learner
    parameters: Parameters
    optimiser: torch.optim.Adam
    best: Parameters
    score: float
    iterations: int = 0
    since_best: int = 0


def learn(
    model: Denoiser,
    starts: list[Candidate],
    train: Problem,
    held_out: Problem,
    *,
    seconds: float = 60.0,
    iterations: int | None = None,
    batch: int = 64,
    lr: float = 0.03,
    seed: int = 0,
    advance: Callable[[float], None] | None = None,
) -> tuple[Plan | None, dict[str, object]]:
    """Fit plans from the first few learnable starts and return the best on held-out noises, with figures.

    A fifth of the budget goes to each of the starts (three at most), the rest to the one that leads. The step size
    falls with a cosine over the budget. Fitting stops early when 20 checks in a row bring no gain.

    Args:
        starts: candidates, best first; those that evaluate a time twice cannot be learned and are passed over.
        seconds: the budget; `iterations`, where given, is the budget instead, and makes the result repeatable.
        batch: noises a gradient step.

    Returns:
        The plan, or None when there is nothing to learn from; and figures: iterations, held-out score before and after.
    """
    process = model.process
    learnable = [c for c in starts if math.isfinite(c.score) and tabulate(c.plan) is not None][:3]
    if not learnable:
        return None, {"learned": False, "reason": "no hand-made plan can be learned from"}
    frozen = [(p, p.requires_grad) for p in model.parameters()]
    for parameter, _ in frozen:
        parameter.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    begin = time.perf_counter()

    def spent(total: int) -> float:
        return total / iterations if iterations is not None else (time.perf_counter() - begin) / seconds

    def check(run: _Run) -> None:
        with torch.no_grad():
            value = float(_loss(run.learner.run(run.parameters, model, held_out), held_out.reference))
        if value < run.score:
            run.best, run.score, run.since_best = run.parameters.copy(), value, 0
        else:
            run.since_best += 1

    def steps(run: _Run, until: float, total: int, decay: tuple[float, float]) -> int:
        """Gradient steps until the budget's fraction `until`; the step size falls by a cosine over `decay`."""
        while (fraction := spent(total)) < until and run.since_best < 20:
            place = min(max((fraction - decay[0]) / (decay[1] - decay[0]), 0.0), 1.0)
            for group in run.optimiser.param_groups:
                group["lr"] = lr * (0.5 * (1 + math.cos(math.pi * place)) * 0.99 + 0.01)
            rows = torch.randint(len(train) - batch + 1, (1,), generator=generator).item() if len(train) > batch else 0
            part = train.part(int(rows), int(rows) + batch)
            run.optimiser.zero_grad()
            loss = _loss(run.learner.run(run.parameters, model, part), part.reference)
            loss.backward()
            tensors = run.parameters.tensors()
            torch.nn.utils.clip_grad_norm_(tensors, 1.0)
            if all(bool(torch.isfinite(t.grad).all()) for t in tensors if t.grad is not None):
                run.optimiser.step()
                run.learner.clamp(run.parameters)
            run.iterations += 1
            total += 1
            if run.iterations % 10 == 0:
                check(run)
            if advance is not None:
                advance(min(spent(total), 1.0))
        return total

    try:
        runs = []
        total = 0
        for k, candidate in enumerate(learnable):
            learner = Learner(process, candidate.plan)
            parameters = learner.initial.copy()
            for tensor in parameters.tensors():
                tensor.requires_grad_(True)
            optimiser = torch.optim.Adam(parameters.tensors(), lr=lr, betas=(0.9, 0.99))
            run = _Run(learner, parameters, optimiser, parameters.copy(), math.inf)
            check(run)
            before = run.score if k == 0 else before
            runs.append(run)
            total = steps(run, 0.2 * (k + 1), total, (0.0, 1.0))
        leader = min(runs, key=lambda run: run.score)
        leader.since_best = 0
        total = steps(leader, 1.0, total, (0.2 * len(runs), 1.0))
        check(leader)
    finally:
        for parameter, wanted in frozen:
            parameter.requires_grad_(wanted)
    figures = {
        "learned": True,
        "from": learnable[runs.index(leader)].name,
        "iterations": total,
        "parameters": sum(t.numel() for t in (leader.best.log_snr, leader.best.s))
        + leader.learner.n * (leader.learner.n + 1) // 2,
        "held_out_before": before,
        "held_out_after": leader.score,
        "seconds": time.perf_counter() - begin,
    }
    return leader.learner.plan(leader.best), figures
