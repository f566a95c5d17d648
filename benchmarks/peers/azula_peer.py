"""azula: its samplers on a schedule that visits our grid, its denoiser the exact posterior mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.harness import Build, Loop, NullNetwork, Outcome, Run, Solver, counted
from benchmarks.peers.problems import F64, Path, Problem

NAME = "azula"


def _denoiser(problem: Problem, ratio: Callable[[float], float]) -> Any:
    """Its denoiser for a problem; `ratio(u)` is the noise ratio at its time u."""
    from azula.denoise import Denoiser, DiracPosterior
    from azula.noise import Schedule

    class Visiting(Schedule):
        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            scales = [problem.path.scales(ratio(float(u))) for u in t.reshape(-1)]
            alpha = torch.tensor([pair[0] for pair in scales], dtype=F64).reshape(t.shape)
            return alpha, torch.tensor([pair[1] for pair in scales], dtype=F64).reshape(t.shape)

    class Exact(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = Visiting()

        def forward(self, x_t: Tensor, t: Tensor, **rest: Any) -> Any:
            alpha, sigma = self.schedule(t)
            return DiracPosterior(problem.x0(x_t, float(alpha), float(sigma)))

    return Exact()


def _run(sampler: str, grid: str, evaluations: int = 1, zero: bool = False, **options: Any) -> Run:
    def run(problem: Problem, nfe: int) -> Outcome:
        import azula.sample

        n = nfe // evaluations
        if n < 1:
            return None
        r = problem.path.grid(grid, n, zero)
        torch.manual_seed(1)
        make = getattr(azula.sample, f"{sampler}Sampler")
        denoiser = _denoiser(problem, lambda u: float(r[int(round((1 - u) * n))]))
        sample = make(denoiser, start=1.0, stop=0.0, steps=n, silent=True, dtype=F64, **options)
        x = sample(problem.start(float(r[0]), problem.path.scaling))
        return x / problem.path.scales(float(r[-1]))[0], float(r[-1])

    return run


def solvers(path: str, stochastic: bool) -> list[Solver]:
    """Only DDIM ends at sigma = 0; the others take logarithms there."""
    out = []
    for grid in Path(path).grids()[: 2 if stochastic else None]:
        if stochastic:
            out.append(Solver(NAME, "DDPM", grid, _run("DDPM", grid)))
            out.append(Solver(NAME, "Ito eta=1", grid, _run("Ito", grid)))
            out.append(Solver(NAME, "DDIM eta=0.5", grid, _run("DDIM", grid, eta=0.5)))
            out.append(Solver(NAME, "PC delta=0.01", grid, _run("PC", grid, 2)))
            continue
        out.append(Solver(NAME, "DDIM", f"{grid}+0", _run("DDIM", grid, zero=True)))
        out.append(Solver(NAME, "Euler", grid, _run("Euler", grid)))
        out.append(Solver(NAME, "Heun", grid, _run("Heun", grid, 2)))
        for name in ("zAB", "vAB", "zEAB", "xEAB", "REAB"):
            out += [Solver(NAME, f"{name}-{order}", grid, _run(name, grid, order=order)) for order in (2, 3)]
    return out


def _case(sampler: str, **options: Any) -> Build:
    def build(shape: tuple[int, ...], steps: int) -> tuple[Loop, int]:
        import azula.sample
        from azula.denoise import Denoiser, DiracPosterior
        from azula.noise import VPSchedule

        class Null(Denoiser):
            def __init__(self, network: NullNetwork) -> None:
                super().__init__()
                self.network, self.schedule = network, VPSchedule()

            def forward(self, x_t: Tensor, t: Tensor, **rest: Any) -> Any:
                return DiracPosterior(self.network(x_t, t))

        network, x = NullNetwork(torch.randn(shape) * 0.1), torch.randn(shape)
        sample = getattr(azula.sample, f"{sampler}Sampler")(Null(network), steps=steps, silent=True, **options)
        return counted(lambda: sample(x), network)

    return build


def overhead_cases() -> dict[str, Build]:
    plain = {name: _case(name) for name in ("DDIM", "Euler", "DDPM", "Heun")}
    return plain | {
        "zAB-2": _case("zAB", order=2),
        "vAB-3": _case("vAB", order=3),
        "xEAB-2 (DPM++ 2M)": _case("xEAB", order=2),
        "zEAB-3": _case("zEAB", order=3),
        "REAB-2": _case("REAB", order=2),
    }
