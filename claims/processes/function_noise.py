"""Claims of fewstep/processes/function_noise.py."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from claims.common import F64, Claim, Cosine, Noise, Outcome, Run, arms, over_seeds, plan, sample, slow, tolerance
from claims.trained import MLP, CoordinateDenoiser, NetworkDenoiser, fit, fresh
from fewstep.conditions.picture import Picture
from fewstep.processes.function_noise import FunctionNoise, covariance, factor

N = 12  # observation times a function
KERNEL, LENGTH = "rbf", 0.2  # of the functions; the noise is the rougher "ou" of the same length
JITTER = 1e-6
STEPS, BATCH, SAMPLES, NFE = 1500, 128, 1000, 10
ABOUT = (
    f"functions of an {KERNEL} kernel at {N} irregular times, perceptron of width 128, {STEPS * BATCH} functions seen,"
    f" noise ou against white, dpmpp-2m with {NFE} evaluations"
)
GRID = (torch.arange(N, dtype=F64) + 0.5) / N  # new times: the middles of equal cells, where exact samples are at hand


def _functions(times: Tensor, generator: torch.Generator) -> Tensor:
    lower = factor(covariance(times, KERNEL, LENGTH, JITTER))
    return (lower @ torch.randn(*times.shape, 1, generator=generator, dtype=F64))[..., 0]


@functools.cache
def _trained(kernel: str, seed: int, rows: int) -> NetworkDenoiser:
    """Trained on functions at random times; with 3 rows, some of their values are known (values, and where)."""
    network, conditions = fresh(MLP, seed, (N,), width=128, depth=3, picture=rows * N), {"y": Picture((rows, N))}
    model = CoordinateDenoiser(network, Cosine(), FunctionNoise(kernel, LENGTH), "v", (N,), conditions)

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        times = torch.rand(count, N, generator=generator, dtype=F64).sort(-1).values
        values = _functions(times, generator)
        y = times[:, None]
        if rows == 3:
            known = (torch.rand(count, N, generator=generator) < 0.4).double()
            y = torch.stack([times, values * known, known], 1)
        return model.encode(values, y=y).float(), {"y": y}

    return fit(model, draw, steps=STEPS, batch=BATCH, lr=2e-3, seed=seed)


def _sampled(model: NetworkDenoiser, n: int, seed: int, y: Tensor) -> Tensor:
    made = plan(model.process, "dpmpp-2m", timesteps="log-snr", nfe=NFE)
    return sample(model, n, plan=made, seed=seed, batch_size=2000, y=y).double()


@functools.cache
def _drawn(kernel: str, seed: int) -> Tensor:
    return _sampled(_trained(kernel, seed, 1), SAMPLES, seed, GRID.expand(SAMPLES, 1, N))


def _energy(kernel: str, seed: int) -> float:
    """Energy distance from exact functions, its unbiased estimate: the root of 2 E|a - b| - E|a - a'| - E|b - b'|."""
    a = _drawn(kernel, seed)
    b = _functions(GRID.expand(4 * SAMPLES, N), torch.Generator().manual_seed(seed + 100))
    own = [torch.cdist(x, x).sum() / (len(x) * (len(x) - 1)) for x in (a, b)]
    return math.sqrt(max(float(2 * torch.cdist(a, b).mean() - own[0] - own[1]), 0.0))


def _increment_error(kernel: str, seed: int) -> float:
    """Mean relative error of the variance of the differences of neighbours, whose true value the kernel gives."""
    wanted = 2 * (1 - covariance(GRID, KERNEL, LENGTH, JITTER)[0, 1])
    return float((_drawn(kernel, seed).diff(dim=1).var(0) / wanted - 1).abs().mean())


def _crps(draws: Tensor, truth: Tensor) -> Tensor:
    """Of samples `(n, ...)` at `(...)`: E|X - truth| - E|X - X'| / 2."""
    n, ordered = len(draws), draws.sort(0).values
    rank = (2 * torch.arange(1, n + 1, dtype=draws.dtype) - n - 1).reshape(-1, *[1] * truth.ndim)
    return (draws - truth).abs().mean(0) - (rank * ordered).sum(0) / n**2


@functools.cache
def _imputed(seed: int) -> tuple[float, float, float]:
    """CRPS at the unknown points of 40 functions, 32 draws each: with correlated noise, white noise, and exactly."""
    functions, draws, generator = 40, 32, torch.Generator().manual_seed(seed + 200)
    times = torch.rand(functions, N, generator=generator, dtype=F64).sort(-1).values
    values, known = _functions(times, generator), torch.zeros(functions, N, dtype=F64)
    known[:, ::3] = 1  # four of twelve
    y = torch.stack([times, values * known, known], 1)
    unknown, scores = known[0] == 0, []
    for kernel in ("ou", "white"):
        found = _sampled(_trained(kernel, seed, 3), functions * draws, seed, y.repeat(draws, 1, 1))
        scores.append(float(_crps(found.reshape(draws, functions, N), values)[:, unknown].mean()))
    k = covariance(times, KERNEL, LENGTH, JITTER)
    gain = torch.linalg.solve(k[:, ~unknown][:, :, ~unknown], k[:, ~unknown][:, :, unknown]).mT
    mean = (gain @ values[:, ~unknown, None])[..., 0]
    spread = k[:, unknown][:, :, unknown] - gain @ k[:, ~unknown][:, :, unknown]
    noise = Noise(seed).normal(0, (draws * functions, 8), "cpu", F64).reshape(draws, functions, 8, 1)
    exact = mean + (factor(spread + 1e-9 * torch.eye(8, dtype=F64)) @ noise)[..., 0]
    return scores[0], scores[1], float(_crps(exact, values[:, unknown]).mean())


def _new_grid(figure: Callable[[str, int], float], unit: str) -> Run:
    """Samples at times that training did not see."""
    return arms(figure, "ou", "white", "white noise", f"{ABOUT}, {SAMPLES} samples on a new grid", unit=unit)


def _imputation(seed: int) -> Outcome:
    exact = sum(_imputed(s)[2] for s in (seed, seed + 1, seed + 2)) / 3
    about = f"{ABOUT}, 4 of {N} values given, 40 functions; the exact posterior has {exact:.3f}"
    return over_seeds(lambda s: _imputed(s)[:2], "white noise", about, unit="CRPS")(seed)


def _identity(seed: int) -> Outcome:
    times = torch.rand(64, N, generator=torch.Generator().manual_seed(seed), dtype=F64)
    data = Noise(seed).normal(0, (64, N), "cpu", F64)
    rough = FunctionNoise("ou", LENGTH)
    unchanged = float((FunctionNoise("white").decode(data, {"y": times}) - data).abs().max())
    back = rough.decode(rough.encode(data, {"y": times}), {"y": times})
    about = f"white noise changes nothing ({unchanged:.1g}), and ou coordinates invert, 64 irregular grids of {N} times"
    return tolerance(max(unchanged, float((back - data).abs().max())), 1e-9, about, "largest difference")


CLAIMS = (
    Claim("function-noise", "is the base process for white noise, and inverts for a rough one", _identity),
    slow("function-noise", "functions on a new grid are nearer the truth than with white noise",
         _new_grid(_energy, "energy distance")),
    slow("function-noise", "increments vary more as the truth's than with white noise",
         _new_grid(_increment_error, "relative error of the increments' variance")),
    slow("function-noise", "fills in functions with a lower CRPS than with white noise", _imputation),
)  # fmt: skip
