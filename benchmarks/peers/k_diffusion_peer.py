"""k-diffusion: its sampling functions on arrays of sigma, its network the denoiser D(x, sigma)."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.harness import Build, Loop, NullNetwork, Outcome, Run, Solver, counted
from benchmarks.peers.problems import Path, Problem

NAME = "k-diffusion"
STOCHASTIC: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("euler_ancestral", "euler_ancestral", "one", {}),
    ("dpm_2_ancestral", "dpm_2_ancestral", "two", {}),
    ("dpmpp_2s_ancestral", "dpmpp_2s_ancestral", "two", {}),
    ("dpmpp_sde", "dpmpp_sde", "two", {}),
    ("dpmpp_2m_sde", "dpmpp_2m_sde", "one", {}),
    ("dpmpp_3m_sde", "dpmpp_3m_sde", "one", {}),
    ("euler churn", "euler", "one", {"s_churn": 20.0}),
    ("heun churn", "heun", "two", {"s_churn": 20.0}),
)


def _fresh(x: Tensor) -> Callable[..., Tensor]:
    return lambda a, b: torch.randn_like(x)


DETERMINISTIC: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("euler", "euler", "one", {}),
    ("heun", "heun", "two", {}),
    ("dpm_2", "dpm_2", "two", {}),
    ("lms", "lms", "one", {}),
    ("dpmpp_2m", "dpmpp_2m", "one", {}),
    ("dpmpp_2s", "dpmpp_2s_ancestral", "two", {"eta": 0.0}),
    ("dpmpp_2m_sde eta=0", "dpmpp_2m_sde", "one", {"eta": 0.0, "solver_type": "heun", "noise_sampler": _fresh}),
    ("dpmpp_3m (eta=0)", "dpmpp_3m_sde", "one", {"eta": 0.0, "noise_sampler": _fresh}),
)


@functools.cache
def library() -> ModuleType:
    """`k_diffusion.sampling` alone: the package imports torchvision, scikit-image and clip, which that file, whose one
    import of the package is `utils.append_dims`, does without."""
    found = importlib.util.find_spec("k_diffusion")
    if found is None:
        raise ImportError("k-diffusion is not installed: make peers installs it")
    package, utils = ModuleType("k_diffusion"), ModuleType("k_diffusion.utils")
    package.__path__ = list(found.submodule_search_locations or ())
    utils.append_dims = lambda x, dims: x[(...,) + (None,) * (dims - x.ndim)]  # type: ignore[attr-defined]
    package.utils = utils  # type: ignore[attr-defined]
    sys.modules["k_diffusion"], sys.modules["k_diffusion.utils"] = package, utils
    return importlib.import_module("k_diffusion.sampling")


def _denoiser(problem: Problem) -> Callable[..., Tensor]:
    return lambda x, sigma, **rest: problem.x0(x, 1.0, float(sigma.reshape(-1)[0]))


def _on_grid(function: str, evaluations: str, grid: str, zero: bool, seed: int | None = None, **options: Any) -> Run:
    def run(problem: Problem, nfe: int) -> Outcome:
        n = nfe
        if evaluations == "two":  # a last step to 0 is one evaluation
            n = (nfe + 1) // 2 if zero else nfe // 2
        if n < 1 or (zero and n < 2 and evaluations == "two"):
            return None
        if seed is not None:
            torch.manual_seed(seed)
        sigmas = torch.from_numpy(problem.path.grid(grid, n, zero))
        x = problem.start(float(sigmas[0]), "ve")
        given = {key: value(x) if value is _fresh else value for key, value in options.items()}
        sample = getattr(library(), f"sample_{function}")
        return sample(_denoiser(problem), x, sigmas, disable=True, **given), float(sigmas[-1])

    return run


def _fast(problem: Problem, nfe: int) -> Outcome:
    low, high = problem.path.r_min, problem.path.r_max
    x = problem.start(high, "ve")
    return library().sample_dpm_fast(_denoiser(problem), x, low, high, nfe, disable=True), low


def _adaptive(order: int) -> Run:
    """The tightest tolerance that stays within the budget."""

    def run(problem: Problem, nfe: int) -> Outcome:
        low, high = problem.path.r_min, problem.path.r_max
        best: tuple[Tensor, int] | None = None
        for rtol in 2.0 ** -np.arange(-1, 18):
            problem.nfe = 0
            tolerances = {"rtol": float(rtol), "atol": float(0.0078 * rtol / 0.05)}
            x = library().sample_dpm_adaptive(
                _denoiser(problem),
                problem.start(high, "ve"),
                low,
                high,
                disable=True,
                order=order,
                h_init=1.0,
                **tolerances,
            )
            if problem.nfe > nfe:
                break
            best = x, problem.nfe
        if best is None:
            return None
        problem.nfe = best[1]
        return best[0], low

    return run


def solvers(path: str, stochastic: bool) -> list[Solver]:
    grids = Path(path).grids()
    if stochastic:
        return [
            Solver(NAME, name, f"{grid}+0", _on_grid(function, evaluations, grid, True, seed=1, **options))
            for grid in grids[:2]
            for name, function, evaluations, options in STOCHASTIC
        ]
    out = [
        Solver(NAME, name, grid + mark, _on_grid(function, evaluations, grid, bool(mark), **options))
        for grid in grids
        for mark in ("+0", "")
        for name, function, evaluations, options in DETERMINISTIC
    ]
    out.append(Solver(NAME, "dpm_fast", "logsnr", _fast))
    if path in ("edm", "vp_cont"):
        out += [Solver(NAME, f"dpm_adaptive{order}", "adaptive", _adaptive(order)) for order in (2, 3)]
    return out


def _case(function: str) -> Build:
    def build(shape: tuple[int, ...], steps: int) -> tuple[Loop, int]:
        network = NullNetwork(torch.randn(shape) * 0.1)
        sigmas, x = library().get_sigmas_karras(steps, 0.01, 100.0), torch.randn(shape) * 100
        sample = getattr(library(), f"sample_{function}")
        return counted(lambda: sample(network, x, sigmas, disable=True), network)

    return build


def overhead_cases() -> dict[str, Build]:
    names = ("euler", "heun", "dpm_2", "lms", "dpmpp_2m", "dpmpp_2s_ancestral")
    trees = ("dpmpp_2m_sde", "dpmpp_3m_sde")
    return {name: _case(name) for name in names} | {f"{name} (Brownian tree)": _case(name) for name in trees}
