"""Particles beside azula's twisted sampler: an exactly tilted mixture, equal particles and steps."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.problems import F64
from benchmarks.table import table
from fewstep.core.noise import Noise
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.guidance.steer import steer
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan

GROUPS, STEPS, PARTICLES, STRENGTH, WIDTH = 400, 20, (4, 8), 6.0, 0.5
TIMED = 64  # particles of the one group that is timed
A = torch.tensor([[0.8, 0.2], [0.2, 0.4]], dtype=F64)
B = torch.tensor([0.6, -0.4], dtype=F64)
ARMS = (("fewstep", "fk", "dpmpp-2m-sde"), ("fewstep", "tds", "dpmpp-2m-sde"), ("fewstep", "tds", "ddpm"))

Row = dict[str, Any]


def _mixture() -> GaussianMixture:
    generator = torch.Generator().manual_seed(0)
    return GaussianMixture(torch.ones(5), torch.randn(5, 2, generator=generator, dtype=F64), 0.25**2, VP())


def _reward(x: Tensor, **condition: Any) -> Tensor:
    return x @ B - 0.5 * ((x @ A) * x).sum(1)


def _azula(model: GaussianMixture, noise: Tensor, seed: int) -> Tensor:
    """One group's particles `(K, 2)` at the end, resampled by the weights of the last step's answer."""
    from azula.denoise import Denoiser, DiracPosterior
    from azula.guidance.tds import TDSSampler
    from azula.noise import Schedule

    times = plan(model.process, "ddpm", STEPS).times
    grid = torch.tensor([*times[:-1], model.process.t_min], dtype=F64)  # it takes logarithms of the last level

    class Own(Schedule):
        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            own = grid[((1 - t) * STEPS).round().long()]
            return model.process.alpha(own), model.process.sigma(own)

    class Exact(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = Own()

        def forward(self, x_t: Tensor, t: Tensor, **rest: Any) -> Any:
            return DiracPosterior(model(x_t, grid[((1 - t) * STEPS).round().long()]).x0)

    torch.manual_seed(seed)
    sampler = TDSSampler(
        Exact(), lambda x, level: STRENGTH * _reward(x), start=1.0, stop=0.0, steps=STEPS, silent=True, dtype=F64
    )
    found: Tensor = sampler(noise)
    return found


def _discrepancy(a: Tensor, b: Tensor) -> float:
    """The maximum mean discrepancy of two sets, a Gaussian kernel."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(x, y).square() / (2 * WIDTH**2))

    def within(x: Tensor) -> Tensor:
        return (kernel(x, x).sum() - len(x)) / (len(x) * (len(x) - 1))

    return math.sqrt(max(float(within(a) + within(b) - 2 * kernel(a, b).mean()), 0.0))


def _spare(run: Any, evaluate: Any, rows: int) -> float:
    """Microseconds a particle and evaluation beyond the network's, the least of ten."""
    least = [math.inf, math.inf]
    for _ in range(10):
        for i, call in enumerate((run, evaluate)):
            begin = time.perf_counter()
            call()
            least[i] = min(least[i], time.perf_counter() - begin)
    return (least[0] - least[1]) / rows * 1e6


def measure(nfes: Any = None, workers: int = 1) -> tuple[dict[str, Any], list[Row]]:
    """One row a library, method and number of particles."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model, rows = _mixture(), []
    law, normaliser = model.tilted(STRENGTH * A, STRENGTH * B)
    exact = law.sample(4096, seed=3).to(F64)
    floor = _discrepancy(law.sample(GROUPS, seed=4).to(F64), exact)
    t = torch.tensor(0.5, dtype=F64)
    noise = Noise(0).normal(0, (GROUPS, 2), dtype=F64)
    wide = Noise(1).normal(0, (TIMED, 2), dtype=F64)

    def network(gradient: bool) -> None:
        for _ in range(STEPS):
            x = wide.clone().requires_grad_(gradient)
            reward = _reward(model(x, t).x0)
            if gradient:
                torch.autograd.grad(reward.sum(), x)

    try:
        for k in PARTICLES:
            for library, method, solver in ARMS:
                own = steer(plan(model.process, solver, STEPS), method, reward=_reward, strength=STRENGTH, particles=k)
                run = own.run(model, noise, seed=0, dtype=F64)
                big = steer(
                    plan(model.process, solver, STEPS), method, reward=_reward, strength=STRENGTH, particles=TIMED
                )
                spare = _spare(
                    lambda big=big: big.run(model, noise[:1], dtype=F64),
                    lambda method=method: network(method == "tds"),
                    TIMED * STEPS,
                )
                error = float(run.report["log_normaliser"].logsumexp(0)) - math.log(GROUPS) - float(normaliser)
                rows.append(_row(library, f"{method}, {solver}", k, _discrepancy(run.samples, exact), error, spare))
            ends = [_azula(model, Noise(0, 1000 * (g + 1)).normal(0, (k, 2), dtype=F64), g)[0] for g in range(GROUPS)]
            spare = _spare(lambda: _azula(model, wide, 0), lambda: network(True), TIMED * STEPS)
            rows.append(_row("azula", "tds, ddpm", k, _discrepancy(torch.stack(ends), exact), None, spare))
    finally:
        torch.set_num_threads(threads)
    return {"groups": GROUPS, "steps": STEPS, "strength": STRENGTH, "floor": floor}, rows


def _row(library: str, method: str, k: int, mmd: float, error: float | None, spare: float) -> Row:
    return {
        "library": library,
        "method": method,
        "particles": k,
        "mmd": mmd,
        "log_normaliser_error": error,
        "us": spare,
    }


def render(about: dict[str, Any], rows: list[Row]) -> str:
    cells = [
        [
            row["library"],
            row["method"],
            str(row["particles"]),
            f"{row['mmd']:.3f}",
            "" if row["log_normaliser_error"] is None else f"{row['log_normaliser_error']:+.3f}",
            f"{row['us']:.2f}",
        ]
        for row in rows
    ]
    columns = ["library", "method", "particles", "MMD", "log-normaliser error", "us a particle and evaluation"]
    return (
        "## Particles\n\n"
        f"A mixture of five in two dimensions tilted by a quadratic reward of strength {about['strength']:g}, whose law"
        f" is known; {about['groups']} groups, {about['steps']} steps, one particle drawn of each group. The maximum"
        f" mean discrepancy of as many exact samples is {about['floor']:.3f}. The time is what one group of {TIMED}"
        " takes beyond the network (and its gradient, for tds); one thread. azula resamples at every step and gives no"
        " normaliser.\n\n" + table(columns, cells)
    )
