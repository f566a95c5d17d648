"""`fs.check_operator(operator, shape)`: is it what it claims to be, what does it see, and what does a call cost?"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.arguments import checked
from fewstep.core.findings import Finding, below
from fewstep.core.methods import Method
from fewstep.core.noise import Noise
from fewstep.operators.krylov import dot
from fewstep.operators.linear import Linear
from fewstep.operators.operator import LinearOperator, Operator
from fewstep.operators.spectrum import LEAST

METHODS = (
    Method(
        "check-operator",
        kind="check",
        claim="finds an adjoint that is none, what is not linear or mixes samples, and says rank and condition",
        use="check_operator",
    ),
)

ROWS = 4  # samples of a batch
EXACT = 512  # numbers of a sample or measurement up to which all singular values are found
PROBES, STEPS = 16, 64  # of Lanczos' method, beyond that
TINY = torch.finfo(torch.float64).tiny
CALLS = 5  # of which the median is the cost
SMALL = {torch.float32: 1e-4, torch.float64: 1e-9}  # errors of rounding, beside the sizes of what is compared
STEP = {torch.float32: 1e-2, torch.float64: 1e-5}  # of a difference beside a sample's size
SLOPE = 0.05  # by which a differentiated answer and its difference may differ

MEND = {
    "finite": "its answers are not finite: look for a division or a logarithm of 0",
    "dtype": "it answers in another dtype than it was asked in: end with .to(x.dtype)",
    "again": "it answers otherwise when asked again: chance belongs to the noise (operator.measure(x, noise=...))",
    "alone": "its answer for a sample depends on the batch: average, normalise and draw for each sample alone",
    "linear": "it is not linear: take fs.operators.Nonlinear(function), or leave out what is added, cut or rounded",
    "adjoint": "the adjoint is none: leave it out to have it by differentiation, or look for a missing factor, flip,"
    " conjugate or border",
    "pinv": "A A^+ A is not A: leave the pseudo-inverse out to have it from the spectrum or by conjugate gradients",
    "slope": "its gradient is not that of its answers: look for in-place changes, detach() or rounding",
}


@dataclass(frozen=True)
class Report:
    """What a check found. `print(report)` shows all of it; `ok` is the verdict.

    norm: the largest singular value. rank, of `columns`: how many numbers of a sample are seen; an estimate with
    `rank_error` (its standard error) beyond 512 numbers. condition: the largest singular value over the least that is
    not 0, of an estimate a lower bound. These are NaN for what is not linear. low, high: of the answers to standard
    normal samples. seconds: of a call with one sample, and of the adjoint or gradient.
    """

    ok: bool
    name: str
    shape: tuple[int, ...]
    measured: tuple[int, ...]
    findings: tuple[Finding, ...]
    norm: float
    rank: float
    rank_error: float
    condition: float
    low: float
    high: float
    seconds: tuple[float, float]
    advice: str

    @property
    def columns(self) -> int:
        return math.prod(self.shape)

    def raise_if_wrong(self) -> Report:
        """The report itself; `ValueError` with the advice where something is wrong."""
        if not self.ok:
            raise ValueError(self.advice)
        return self

    def __str__(self) -> str:
        lines = [f"{'fits' if self.ok else 'DOES NOT FIT'}: {self.name}, {self.shape} to {self.measured}"]
        lines += [f"  {found}" for found in self.findings]
        if not math.isnan(self.rank):
            guess = self.rank_error > 0
            rank = f"{self.rank:.0f}" + (f" +- {math.ceil(self.rank_error)}" if guess else "")
            lines.append(f"  rank {rank} of {self.columns}, largest singular value {self.norm:.4g}")
            lines.append(f"  condition (of what is seen) {'at least ' if guess else ''}{self.condition:.4g}")
        lines.append(f"  answers to standard normal samples: {self.low:.3g} to {self.high:.3g}")
        back = "the gradient" if math.isnan(self.rank) else "the adjoint"
        lines.append(f"  seconds a call: {self.seconds[0]:.2g}, of {back} {self.seconds[1]:.2g}")
        return "\n".join([*lines, *([f"  {self.advice}"] if self.advice else [])])


@checked
def check_operator(
    operator: Operator | Callable[[Tensor], Tensor],
    shape: Sequence[int],
    *,
    adjoint: Callable[[Tensor], Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Report:
    """Whether an operator is what restoration takes it for; if not, what to mend.

    On random samples: answers are finite, in the samples' dtype, the same when asked again, and each sample's is its
    own; `A(a x + b y) = a A x + b A y`, `<A x, y> = <x, A^T y>` and `A A^+ A = A` where it claims to be linear, else
    that its gradient is that of its answers. Rank, condition and norm are from all singular values of at most 512
    numbers, and by Lanczos' method with 16 random starts beyond; in float32 the first tell singular values of
    at least 1e-4 of the largest from none, the second those of 1e-3.

    Args:
        operator: of `fewstep.operators`, one of your own, or a function of samples `(B, *shape)` that should be linear.
        shape: of a sample. adjoint: that of a function; by default it is found by differentiation.
        dtype: float32 or float64, the one to check in.

    Raises:
        ValueError: a shape that does not fit. The findings are in the report, which `raise_if_wrong()` raises.
    """
    if dtype not in SMALL:
        raise ValueError(f"operators are checked in float32 or float64, got {dtype}")
    if not isinstance(operator, Operator):
        operator = Linear(operator, shape, adjoint, dtype, check=False)
    elif adjoint is not None:
        raise ValueError("an adjoint goes with a function: an operator has its own")
    operator.fit(shape)
    source = Noise(seed)
    x, other = (source.normal(draw, (ROWS, *(operator.shape or ())), dtype=dtype) for draw in (0, 1))
    answer = operator(x)
    y = source.normal(2, tuple(answer.shape), dtype=dtype)
    findings = _general(operator, x, answer, dtype)
    if isinstance(operator, LinearOperator) and findings["finite"].ok:
        findings |= _linear(operator, x, other, y, dtype)
        norm, rank, error, condition = _values(operator, dtype, seed)
    else:
        findings |= _slope(operator, x, other, y, dtype)
        norm = rank = error = condition = math.nan
    failed = next((name for name, found in findings.items() if not found.ok), None)
    low, high = (float(value) for value in answer.detach().aminmax())
    back = operator.adjoint if isinstance(operator, LinearOperator) else lambda y: operator.pulled(x[:1], y)
    return Report(
        failed is None,
        str(operator),
        operator.shape or (),
        operator.out,
        tuple(findings.values()),
        norm,
        rank,
        error,
        condition,
        low,
        high,
        (_seconds(operator, x[:1]), _seconds(back, y[:1])),
        "" if failed is None else MEND[failed],
    )


def _off(a: Tensor, b: Tensor, size: Tensor) -> float:
    """The largest difference of two answers, beside the size `(B, 1, ...)` of what is compared."""
    difference = dot(a - b, a - b).sqrt() / size.clamp_min(TINY)
    return float(difference.max().nan_to_num(math.inf))


def _size(a: Tensor) -> Tensor:
    return dot(a, a).sqrt()


@torch.no_grad()
def _general(operator: Operator, x: Tensor, answer: Tensor, dtype: torch.dtype) -> dict[str, Finding]:
    alone = torch.cat([operator(row) for row in x.split(1)])
    size, small = _size(answer), SMALL[dtype]
    return {
        "finite": below("answers that are not finite", float((~torch.isfinite(answer)).sum()), 0),
        "dtype": below("answers in another dtype", float(answer.dtype != x.dtype), 0),
        "again": below("asked again, the difference", _off(operator(x), answer, size), small),
        "alone": below("each sample alone, the difference", _off(alone, answer, size), small),
    }


@torch.no_grad()
def _linear(operator: LinearOperator, x: Tensor, other: Tensor, y: Tensor, dtype: torch.dtype) -> dict[str, Finding]:
    a, b, small = 1.7, -0.6, SMALL[dtype]
    first, second = operator(x), operator(other)
    size = abs(a) * _size(first) + abs(b) * _size(second)
    whole = _off(operator(a * x + b * other), a * first + b * second, size)
    back = operator.adjoint(y)
    size = (_size(first) * _size(y)).flatten().clamp_min(TINY)
    sides = (dot(first, y).flatten() - dot(x, back).flatten()).abs() / size
    found = {
        "linear": below("A(a x + b y) - a A x - b A y", whole, small),
        "adjoint": below("<A x, y> - <x, A^T y> over |A x| |y|", float(sides.max().nan_to_num(math.inf)), small),
    }
    if all(one.ok for one in found.values()):
        found["pinv"] = below("A A^+ A x - A x", _off(operator(operator.project(x)), first, _size(first)), 10 * small)
    return found


def _slope(operator: Operator, x: Tensor, other: Tensor, y: Tensor, dtype: torch.dtype) -> dict[str, Finding]:
    """The gradient of `<A(x), y>` along a way against the difference, over |A(x)| |y|."""
    step = STEP[dtype]
    with torch.no_grad():
        ahead, behind = operator(x + step * other), operator(x - step * other)
        wanted = dot(ahead - behind, y).flatten() / (2 * step)
        found = dot(operator.pulled(x, y), other).flatten()
        size = (_size(ahead - behind) * _size(y) / (2 * step)).flatten().clamp_min(TINY)
    off = float(((found - wanted).abs() / size).max().nan_to_num(math.inf))
    return {"slope": below("the gradient, off the difference", off, SLOPE)}


@torch.no_grad()
def _values(operator: LinearOperator, dtype: torch.dtype, seed: int) -> tuple[float, float, float, float]:
    """The largest singular value, the rank, its standard error, and the condition."""
    shape = operator.shape or ()
    d = math.prod(shape)
    # Rounding leaves singular values of about its own size where there are none.
    least = max(LEAST, SMALL[dtype])
    if max(d, math.prod(operator.out)) <= EXACT:
        columns = operator(torch.eye(d, dtype=dtype).reshape(d, *shape)).flatten(1)
        values = torch.linalg.svdvals(columns.double())
        seen = values[values > least * values.max()]
        if not len(seen):
            return 0.0, 0.0, 0.0, math.nan
        return float(seen.max()), float(len(seen)), 0.0, float(seen.max() / seen.min())
    start = Noise(seed).normal(3, (PROBES, *shape), dtype=dtype)
    ritz, weights = lanczos(lambda x: operator.adjoint(operator(x)), start, min(STEPS, d))
    largest = ritz.max()
    seen_values = (ritz > max(LEAST**2, SMALL[dtype] / 100) * largest) & (weights > SMALL[dtype] ** 2)
    # Of each start, the part that A sees; its mean is the rank's share of d (Ubaru and Saad, 2016).
    share = (weights * seen_values).sum(1)
    error = d * float(share.std()) / math.sqrt(PROBES)
    least_seen = ritz[seen_values].min() if bool(seen_values.any()) else largest
    return float(largest.sqrt()), d * float(share.mean()), error, float((largest / least_seen).sqrt())


def lanczos(apply: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Ritz values `(B, steps)` of a symmetric operator from each start `(B, ...)`, and the squares of their vectors'
    parts along it, which sum to 1. With full orthogonalisation; a start whose Krylov space ends stands still there.
    """
    unit = (start.double() / _size(start)).flatten(1)
    whole = unit.new_zeros(len(unit), steps + 1, unit.shape[1])
    whole[:, 0] = unit
    diagonal, beside = [], []
    for step in range(steps):
        basis, last = whole[:, : step + 1], whole[:, step]
        image = apply(last.reshape(start.shape).to(start.dtype)).double().flatten(1)
        diagonal.append((last * image).sum(1))
        size = image.norm(dim=1)
        for _ in range(2):  # once is not enough, twice is
            image = image - ((basis @ image[..., None]).mT @ basis)[:, 0]
        length = image.norm(dim=1)
        on = length > torch.finfo(start.dtype).eps * 10 * size
        beside.append(torch.where(on, length, 0.0))
        whole[:, step + 1] = image * torch.where(on, 1 / length, 0.0)[:, None]
    matrix = torch.diag_embed(torch.stack(diagonal, 1))
    matrix += torch.diag_embed(torch.stack(beside[:-1], 1), 1) + torch.diag_embed(torch.stack(beside[:-1], 1), -1)
    values, vectors = torch.linalg.eigh(matrix)
    return values, vectors[:, 0].square()


def _seconds(call: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """The median of a few calls, the first one left out."""
    found = []
    for _ in range(CALLS + 1):
        begun = time.perf_counter()
        call(x)
        found.append(time.perf_counter() - begun)
    return sorted(found[1:])[CALLS // 2]
