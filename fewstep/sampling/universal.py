"""Universal plans: times and coefficients fitted once, over many kinds of data, and used for any model.

In `y = x / alpha` every Gaussian process is `y = x0 + s eps` with `s = sigma / alpha`: processes differ in the range of
s alone, and the data's standard deviation only shifts `log_snr = -log s`. So one row of numbers serves them all,

    y_0 = c_0 s_0 z,    y_{i+1} = q_i y_i + (1 - q_i) sum_{j <= i} m_ij x0_j,    q_i = c_{i+1} s_{i+1} / s_i,

with z the noise, the rows of m summing to 1 and q = 0 at the end. The numbers are fitted to many problems at once
(`fewstep.searching.joint`), for each number of evaluations and each of a few kinds of spectrum, and lie in
`universal.json`.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.core.trace import Trace, Value

METHODS = (
    Method(
        "universal",
        paper="fitted over a zoo of problems, after S4S: Solving for a Diffusion Model Solver (Frankel et al., 2025)",
        arxiv="2502.17423",
        claim="few evaluations without a search: times and coefficients fitted once for all models",
        use="universal",
        facts={"own_times": "universal_times"},
    ),
)

TABLES = Path(__file__).with_name("universal.json")
DATA_STD = 0.5  # of data in [-1, 1], where it is not known
SPECTRUM = "mild"  # where it is not known
GAP = 0.05  # of log-SNR between two evaluations, at least


@dataclass(frozen=True)
class Row:
    """The numbers of a universal plan of n evaluations.

    `log_snr` `(n)`: of the evaluations, plus the log of the data's standard deviation. `carry` `(n)`: c above. `mix`: n
    rows, row i the i + 1 weights m of the predictions so far.
    """

    log_snr: tuple[float, ...]
    carry: tuple[float, ...]
    mix: tuple[tuple[float, ...], ...]


@functools.cache
def rows() -> dict[str, dict[int, Row]]:
    """The rows that come with the library, by spectrum and number of evaluations."""
    told = json.loads(TABLES.read_text("utf-8"))["rows"]
    return {
        spectrum: {
            int(n): Row(tuple(row["log_snr"]), tuple(row["carry"]), tuple(map(tuple, row["mix"])))
            for n, row in by_count.items()
        }
        for spectrum, by_count in told.items()
    }


def row(n: int, spectrum: str = SPECTRUM) -> Row:
    """The row for n evaluations.

    Raises:
        ValueError: a spectrum or a number of evaluations that no row is for.
    """
    known = rows()
    if spectrum not in known:
        raise suggest("spectrum", spectrum, known)
    if n not in known[spectrum]:
        raise ValueError(f"'universal' has plans of {counts(sorted(known[spectrum]))} evaluations, not of {n}")
    return known[spectrum][n]


def counts(numbers: Sequence[int]) -> str:
    """ "1 to 12, 15 and 20" for those numbers, in rising order."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    parts = [f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def universal_times(
    process: Process, steps: int, end: str = "zero", data_std: float = DATA_STD, spectrum: str = SPECTRUM
) -> list[float]:
    """The times of the evaluations, and the end. Levels that the process does not have are moved to where it begins or
    ends.

    Raises:
        ValueError: what `row` raises, a `data_std` that is not positive, a process of hardly any noise levels.
    """
    if not data_std > 0:
        raise ValueError(f"data_std must be positive, got {data_std}")
    low, high = process.log_snr(process.t_max), process.log_snr(process.t_min) - (GAP if end == "min" else 0.0)
    if low + GAP * steps > high:
        raise ValueError(
            f"'universal' needs a process of more noise levels: {process.name!r} has log-SNR {low:.3g} to {high:.3g}"
        )
    times: list[float] = []
    at = -math.inf
    for i, level in enumerate(row(steps, spectrum).log_snr):
        at = min(max(level - math.log(data_std), low, at + GAP), high - GAP * (steps - 1 - i))
        times.append(process.t_max if at <= low else process.time(at))
    return [*times, process.t_zero if end == "zero" else process.t_min]


def universal(
    trace: Trace,
    process: Process,
    times: Sequence[float],
    data_std: float = DATA_STD,
    spectrum: str = SPECTRUM,
) -> Value:
    """The universal plan on its own times (`universal_times`).

    Args:
        data_std: standard deviation of the data; it moves the times.
        spectrum: how the data's variance is spread over its directions: "mild", or "steep", where a few directions have
            most of it, as in natural images; "small" for samples of a few numbers; "late" for processes that begin
            where some of the data is left, as Stable Diffusion's; all but "small" with ", guided" behind it for models
            under classifier-free guidance.
    """
    numbers = row(len(times) - 1, spectrum)
    x = trace.start() * numbers.carry[0]
    predictions: list[Value] = []
    for i, (a, b) in enumerate(pairwise(times)):
        predictions.append(trace.evaluate(x, a).x0)
        carry = process.sigma(b) / process.sigma(a) * (numbers.carry[i + 1] if i + 1 < len(numbers.carry) else 1.0)
        pull = process.alpha(b) - process.alpha(a) * carry
        x = x * carry if carry else Value({})
        for weight, x0 in zip(numbers.mix[i], predictions, strict=True):
            if weight:
                x = x + x0 * (weight * pull)
    return x
