"""One row of numbers fitted to many problems at once: what `sampling/universal.json` is made with.

All problems run on the clock `y = x0 + s z` (`processes/ve.py`), relative to the standard deviation of their data. What
is lowered is the mean of the logarithms of their end-point errors, so that a problem counts by the factor that it gains
or loses and not by the size of its error; each step is one of Levenberg-Marquardt on reweighted residuals, its
Jacobian taken by differences: all moved numbers run side by side, and each joins where it first matters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.sampling.universal import Row
from fewstep.searching.problem import Problem
from fewstep.searching.reference import solve

LOW = -5.0  # log-SNR, relative to the data, below which no evaluation is placed: most processes begin about there
GAP = 0.05  # between two evaluations
MOVE = 2e-3  # of the differences
FLOOR = 1e-4  # errors below it count as this: what float32 runs of networks leave
ROWS = 4096  # samples of 64 numbers in a call


@dataclass(frozen=True)
class Joint:
    """A problem of the fit: a denoiser on `processes/ve.py`'s clock, noises and the end points of their exact paths.

    Args:
        name, family: as in `searching/zoo.py`. std: the standard deviation of the data. problem: noises, references and
            conditions. weight: in the fit.
    """

    name: str
    family: str
    model: Denoiser
    std: float
    problem: Problem
    weight: float = 1.0

    @cached_property
    def reference(self) -> Tensor:
        """`(B, D)` in float64."""
        return self.problem.reference.double().flatten(1)

    @cached_property
    def norm(self) -> float:
        return float(self.reference.norm(dim=1).mean())

    def x0(self, y: Tensor, log_snr: Tensor) -> Tensor:
        """What the denoiser says at states `(R, B, D)` on levels `(R,)`: `(R, B, D)`."""
        runs, noises, size = y.shape
        sigma = self.std * torch.exp(-log_snr)
        together = max(1, ROWS * 64 // (noises * max(size, 64)))
        found = []
        for begin in range(0, runs, together):
            part = y[begin : begin + together]
            named = {
                key: value.repeat(len(part), *(1,) * (value.ndim - 1)) for key, value in self.problem.condition.items()
            }
            x = part.reshape(len(part) * noises, *self.problem.noise.shape[1:])
            t = sigma[begin : begin + together].repeat_interleave(noises)
            found.append(self.model(x, t, **named).x0.reshape(part.shape).to(y.dtype))
        return torch.cat(found)


def joint(name: str, family: str, model: Denoiser, std: float, n: int, *, seed: int = 7, first: int = 0) -> Joint:
    """The problem of n noises, solved by the reference."""
    return Joint(name, family, model, std, solve(model, seed, first, n, 100, torch.float32))


class Form:
    """A row of n evaluations as a vector: log-SNRs, carries, and the weights below the diagonal, `band` of them a row.

    The weights of the newest prediction follow: each row of them sums to 1. No evaluation lies below `low`.
    """

    def __init__(self, n: int, band: int | None = None, low: float = LOW):
        self.n, self.band, self.low = n, n if band is None else band, low
        self.pairs = [(i, j) for i in range(n) for j in range(max(0, i - self.band), i)]
        # The state that each number moves first; state n is the result.
        self.first = np.array([*range(n), *range(n), *(i + 1 for i, _ in self.pairs)])

    def __len__(self) -> int:
        return len(self.first)

    def parts(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Log-SNRs `(..., n)`, carries `(..., n)` and weights `(..., n, n)` of vectors `(..., len(self))`."""
        n = self.n
        mix = np.zeros((*theta.shape[:-1], n, n))
        for k, (i, j) in enumerate(self.pairs):
            mix[..., i, j] = theta[..., 2 * n + k]
        mix[..., range(n), range(n)] = 1 - mix.sum(-1)
        return theta[..., :n], theta[..., n : 2 * n], mix

    def row(self, theta: np.ndarray) -> Row:
        log_snr, carry, mix = self.parts(theta)
        return Row(
            tuple(map(float, log_snr)),
            tuple(map(float, carry)),
            tuple(tuple(float(v) for v in line[: i + 1]) for i, line in enumerate(mix)),
        )

    def vector(self, row: Row) -> np.ndarray:
        """The other way; weights outside the band are given to the newest prediction."""
        weights = [row.mix[i][j] for i, j in self.pairs]
        return np.array([*row.log_snr, *row.carry, *weights])

    def start(self, low: float = -2.2, high: float = 2.0) -> np.ndarray:
        """DPM-Solver++ 2M on equal steps in log-SNR, the last straight to the end: what a first fit starts from."""
        n = self.n
        theta = np.concatenate([np.linspace(low, high, n), np.ones(n), np.zeros(len(self.pairs))])
        for k, (i, j) in enumerate(self.pairs):
            if j == i - 1 and i < n - 1:
                theta[2 * n + k] = -0.5
        return theta

    def longer(self, shorter: Row) -> np.ndarray:
        """A row of fewer evaluations with further ones in its widest gaps, whose answers are not used yet.

        It ends where the shorter row ends, but for weights that fall out of the band.
        """
        while len(shorter.log_snr) < self.n:
            shorter = _split(shorter)
        return self.vector(shorter)

    def clamp(self, theta: np.ndarray) -> np.ndarray:
        """Log-SNRs that rise."""
        theta = theta.copy()
        theta[0] = max(theta[0], self.low)
        for i in range(1, self.n):
            theta[i] = max(theta[i], theta[i - 1] + GAP)
        return theta


def _split(row: Row) -> Row:
    """The row with one more evaluation in the middle of its widest gap: two steps with the weights of the one."""
    levels = [*row.log_snr, row.log_snr[-1] + 1.0]
    i = max(range(len(levels) - 1), key=lambda i: levels[i + 1] - levels[i])
    mix = [list(weights) for weights in row.mix]
    later = [[*weights[: i + 1], 0.0, *weights[i + 1 :]] for weights in mix[i:]]
    return Row(
        (*row.log_snr[: i + 1], (levels[i] + levels[i + 1]) / 2, *row.log_snr[i + 1 :]),
        (*row.carry[: i + 1], 1.0, *row.carry[i + 1 :]),
        tuple(map(tuple, [*mix[: i + 1], *later])),
    )


def _columns(values: np.ndarray) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32)[:, None, None]


@torch.no_grad()
def ends(form: Form, problem: Joint, thetas: np.ndarray, first: np.ndarray | None = None) -> Tensor:
    """Where the plans of several vectors `(R, P)` end: `(R, B, D)`.

    `first` `(R,)`, rising from 0, says from which state on a vector differs from the first one: it is not run before.
    """
    joined = np.zeros(len(thetas), dtype=int) if first is None else first
    log_snr, carry, mix = form.parts(thetas)
    s = problem.std * np.exp(-log_snr)

    def grown(value: Tensor, rows: int) -> Tensor:
        more = rows - len(value)
        return torch.cat([value, value[:1].expand(more, *value.shape[1:])]) if more else value

    rows = int((joined <= 0).sum())
    y = _columns(carry[:rows, 0] * s[:rows, 0]) * problem.problem.noise.flatten(1)
    seen: list[Tensor] = []
    for i in range(form.n):
        seen.append(problem.x0(y, torch.as_tensor(log_snr[:rows, i])))
        rows = int((joined <= i + 1).sum())
        seen, y = [grown(value, rows) for value in seen], grown(y, rows)
        mean = torch.zeros_like(y)
        for j in range(max(0, i - form.band), i + 1):
            mean.addcmul_(_columns(mix[:rows, i, j]), seen[j])
        if i + 1 == form.n:
            return mean
        q = carry[:rows, i + 1] * s[:rows, i + 1] / s[:rows, i]
        y = _columns(q) * y + _columns(1 - q) * mean
    raise AssertionError("a form has at least one evaluation")


def errors(form: Form, problem: Joint, thetas: np.ndarray) -> np.ndarray:
    """The relative end-point error of several vectors `(R, P)`: `(R,)`, infinite where one diverges."""
    far = (ends(form, problem, thetas).double() - problem.reference).norm(dim=2).mean(1) / problem.norm
    return torch.nan_to_num(far, nan=math.inf).numpy()


def objective(form: Form, problems: Sequence[Joint], thetas: np.ndarray) -> np.ndarray:
    """The mean logarithm of the errors of several vectors: `(R,)`."""
    logs = [np.log(errors(form, problem, thetas) + FLOOR) for problem in problems]
    return np.average(logs, axis=0, weights=[problem.weight for problem in problems])


def _normal(form: Form, problems: Sequence[Joint], theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The normal equations of the reweighted residuals at a vector: matrix and gradient."""
    order = np.argsort(form.first, kind="stable")
    moved = np.repeat(theta[None], len(form) + 1, axis=0)
    moved[np.arange(len(form)) + 1, order] += MOVE
    first = np.concatenate([[0], form.first[order]])
    matrix, gradient = np.zeros((len(form), len(form))), np.zeros(len(form))
    total = sum(problem.weight for problem in problems)
    for problem in problems:
        found = ends(form, problem, moved, first)
        residual = found[0].double() - problem.reference
        norms = residual.norm(dim=1)
        weights = 1 / ((norms + 0.01 * norms.mean()) * (norms.sum() + FLOOR * problem.norm * len(norms)))
        jacobian = ((found[1:] - found[:1]) / MOVE).flatten(1)
        weighted = jacobian * weights.float().repeat_interleave(residual.shape[1])
        matrix[np.ix_(order, order)] += (weighted @ jacobian.T).double().numpy() * problem.weight / total
        gradient[order] += (weighted @ residual.float().flatten()).double().numpy() * problem.weight / total
    return matrix, gradient


def fit(
    form: Form,
    problems: Sequence[Joint],
    theta: np.ndarray,
    iterations: int = 15,
    tell: Callable[[int, float], None] | None = None,
) -> tuple[np.ndarray, float]:
    """Lower `objective` from a vector: the best one found and its value.

    Each iteration tries six dampings side by side; three in a row that bring less than 0.2 % end the fit.
    """
    value, damping, idle = float(objective(form, problems, theta[None])[0]), 1e-2, 0
    for iteration in range(iterations):
        matrix, gradient = _normal(form, problems, theta)
        diagonal = np.diag(np.diag(matrix) + 1e-9 * np.trace(matrix) + 1e-12)
        dampings = damping * 4.0 ** np.arange(-2, 4)
        trials = np.stack([form.clamp(theta - np.linalg.solve(matrix + d * diagonal, gradient)) for d in dampings])
        values = objective(form, problems, trials)
        best = int(np.argmin(values))
        if values[best] < value:
            idle = 0 if value - values[best] > 2e-3 else idle + 1
            theta, value, damping = trials[best], float(values[best]), max(float(dampings[best]), 1e-7)
        else:
            idle, damping = idle + 1, float(dampings[-1]) * 4
        if tell is not None:
            tell(iteration, value)
        if idle == 3:
            break
    return theta, value
