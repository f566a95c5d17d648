"""Claims of the deterministic solvers: measured orders, and errors beside another solver's at equal evaluations."""

from __future__ import annotations

import functools

import torch

from claims.claim import Claim, Outcome, experiment, slow, tolerance
from claims.common import ENDPOINT, F64, plan
from claims.duels import duel, orders, stochastic_duel
from claims.parts import EDM, VP, Discrete, Flow, GaussianMixture, Process
from claims.problems import NOISES, exact, first_order_start, order, problem
from fewstep.sampling.statistics import Statistics, estimate_statistics
from fewstep.sampling.unified import unified

RIVALS = (("dpmpp-2m", 5), ("unipc-2", 8), ("unipc-2", 10))
DDPM = Discrete.linear()
KNOWN = {
    "ddim": ("eps", 1, "full"),
    "ab-2": ("eps", 2, "full"),
    "ab-x0-2": ("x0", 2, "full"),
    "dpmpp-2m": ("x0", 2, "middle"),
    "dpm-solver-2": ("eps", 2, "inside"),
    "dpm-solver-3": ("eps", 3, "inside"),
    "dpmpp-2s": ("x0", 2, "inside"),
}


@functools.cache
def _statistics(where: Process | str, seed: int) -> Statistics:
    """From the model's own samples, 1024 of the mixture or 256 digits; their seed is not that of the claim's noises."""
    n, condition = (256, {"label": torch.arange(256) % 10}) if where == "digits" else (1024, {})
    return estimate_statistics(problem(where, seed).model, n=n, points=120, seed=seed + 1000, **condition)


@experiment
def _duel(seed: int, where: Process | str, theirs: str, nfe: int) -> Outcome:
    on = problem(where, seed)
    ours = plan(on.model.process, "dpm-solver-v3", nfe, "log-snr", statistics=_statistics(where, seed))
    made = plan(on.model.process, theirs, nfe, "log-snr")
    about = f"dpm-solver-v3 of order 2, {nfe} evaluations, times log-snr, {on.about}"
    about += "; statistics from samples of other noises"
    return Outcome(on.error(ours), on.error(made), f"{theirs}, {made.nfe} evaluations", about, unit=ENDPOINT)


def _start(seed: int) -> Outcome:
    ours, theirs = order(VP(), "dpmpp-3m", seed), order(VP(), first_order_start, seed)
    against = "the same solver, its orders rising from 1 with nothing corrected"
    about = "96 and 192 steps, smooth 5-component mixture, vp"
    return Outcome(ours, theirs, against, about, better="high", unit="measured order")


def _is_ddim(seed: int) -> Outcome:
    on = exact(VP(), seed)
    off = on.run(plan(VP(), "gradient-estimation", 10, gamma=1.0)) - on.run(plan(VP(), "ddim", 10))
    about = f"vp, 10 log-snr steps, 8-component mixture, {NOISES} noises"
    return tolerance(float(off.abs().max()), 1e-300, about, "largest difference")


def _euler_is_ddim(seed: int) -> Outcome:
    worst = 0.0
    for process in (EDM(), Flow()):
        a, b = (exact(process, seed).run(plan(process, solver, 10, "uniform")) for solver in ("euler", "ddim"))
        worst = max(worst, float((a - b).abs().max() / b.abs().max()))
    about = f"edm and flow, 10 uniform steps, 8-component mixture, {NOISES} noises"
    return tolerance(worst, 1e-12, about, "largest relative difference")


def _linear_part(seed: int) -> Outcome:
    variances = torch.tensor([0.02, 0.3, 1.5], dtype=F64)
    model = GaussianMixture(torch.ones(1), torch.tensor([[0.5, -0.2, 0.0]], dtype=F64), variances[None], VP())
    found = estimate_statistics(model, model.sample(256, seed + 1), n=64, seed=seed)
    exact = torch.sigmoid(-2 * found.log_snr[:, None] - variances.log())
    about = "anisotropic Gaussian of 3 coordinates, vp, 64 samples at 120 points; l = sigma^2 / (alpha^2 c + sigma^2)"
    return tolerance(float((found.l - exact).abs().max()), 0.01, about, "largest error of l")


def _third(seed: int) -> Outcome:
    """Two single steps of order 3, then order 3 over the known predictions."""

    def solver(trace, process, times):  # type: ignore[no-untyped-def]
        start = [("eps", 3, "inside")] * 2
        return unified(trace, process, times, start + [("x0", 3, "full")] * (len(times) - 3))

    measured = order(VP(), solver, seed)
    about = f"measured {measured:.2f}; two steps of eps with evaluations inside, then x0 over the known predictions; 96"
    about += " and 192 steps, smooth 5-component mixture, vp"
    return tolerance(abs(measured - 3), 0.2, about, "|measured - stated order|")


def _same(seed: int) -> Outcome:
    on, worst = problem(VP(), seed), 0.0
    for name, choice in KNOWN.items():
        x, y = (on.run(made) for made in (plan(VP(), "unified", 10, schedule=[choice]), plan(VP(), name, 10)))
        worst = max(worst, float((x - y).abs().max()))
    return tolerance(worst, 1e-10, f"{', '.join(KNOWN)}; 10 steps, {on.about}", "largest difference")


CLAIMS = (
    Claim("deis", "orders 1 to 4 are as stated", orders("deis")),
    Claim("deis", "a polynomial for eps beats a constant one at 10 evaluations, on the quadratic times of the paper",
          duel("deis-3", "ddim", 10, "quadratic")),
    Claim("ab", "orders 1 to 5 are as stated", orders("ab")),
    Claim("ab", "order 3 beats order 1 at 10 evaluations", duel("ab-3", "ddim", 10)),
    Claim("lms", "orders 1 to 4 are as stated", orders("lms", EDM())),
    Claim("lms", "order 4 beats Euler at 20 evaluations on EDM's process and times",
          duel("lms-4", "euler", 20, "karras", EDM())),
    Claim("ab-x0", "orders 1 to 4 are as stated", orders("ab-x0")),
    Claim("ab-x0", "order 2 beats order 1 at 10 evaluations", duel("ab-x0-2", "ddim", 10)),
    Claim("ab-x0", "order 2 beats the midpoint form of the same, dpmpp-2m, at 10 evaluations",
          duel("ab-x0-2", "dpmpp-2m", 10)),
    Claim("ab-v", "orders 1 to 4 are as stated", orders("ab-v")),
    Claim("ab-v", "order 2 beats ddim at 10 evaluations", duel("ab-v-2", "ddim", 10)),
    Claim("ab-v", "order 2 in the angle beats order 2 on the flow's velocity at 10 evaluations under VP",
          duel("ab-v-2", "vab-2", 10)),
    Claim("vab", "orders 1 to 4 are as stated", orders("vab", Flow())),
    Claim("vab", "order 3 on the velocity beats dpmpp-2m at 5 evaluations", duel("vab-3", "dpmpp-2m", 5)),
    Claim("vab", "order 2 beats Euler at 10 evaluations on the flow with equal steps",
          duel("vab-2", "euler", 10, "uniform", Flow())),
    Claim("ddim", "is of order 1", orders("ddim")),
    Claim("ddim", "solving the linear part exactly is more accurate than Euler's step in time",
          duel("ddim", "euler", 10, "uniform")),
    Claim("ddim", "is nearer to the data's distribution than ancestral sampling in 20 steps",
          stochastic_duel("ddim", "ddpm", 20, "uniform")),
    Claim("ddpm", "fresh noise forgets an initial noise that was a fifth too wide, which the ODE carries to the end",
          stochastic_duel("ddpm", "ddim", 100, spread=1.2)),
    Claim("dpm-solver", "orders 1 to 3 are as stated", orders("dpm-solver")),
    Claim("dpm-solver", "order 2 beats ddim at 12 evaluations", duel("dpm-solver-2", "ddim", 12)),
    Claim("dpm-solver", "order 3 beats ddim at 12 evaluations", duel("dpm-solver-3", "ddim", 12)),
    Claim("dpm-fast", "is of order 2", orders("dpm-fast")),
    Claim("dpm-fast", "beats order 2 throughout at 12 evaluations", duel("dpm-fast", "dpm-solver-2", 12)),
    slow("dpm-solver-v3", "is of order p + 1 without statistics", orders("dpm-solver-v3")),
    *(slow("dpm-solver-v3", f"beats {theirs} at {nfe} evaluations", _duel(VP(), theirs, nfe))
      for theirs, nfe in RIVALS),
    *(slow("dpm-solver-v3", f"beats {theirs} at {nfe} evaluations on the embedded digits", _duel("digits", theirs, nfe))
      for theirs, nfe in RIVALS),
    *(Claim(f"dpmpp-{p}{s}", f"is of order {p}", orders(f"dpmpp-{p}{s}")) for s in "ms" for p in (2, 3)),
    Claim("dpmpp-2m", "beats ddim at 10 evaluations", duel("dpmpp-2m", "ddim", 10)),
    slow("dpmpp-2m", "beats ddim at 8 evaluations on the embedded digits", duel("dpmpp-2m", "ddim", 8, where="digits")),
    Claim("dpmpp-3m", "the corrected start is what makes it order 3", _start),
    Claim("dpmpp-3m", "beats dpmpp-2m at 15 evaluations", duel("dpmpp-3m", "dpmpp-2m", 15)),
    Claim("dpmpp-2s", "beats ddim at 10 evaluations", duel("dpmpp-2s", "ddim", 10)),
    Claim("dpmpp-3s", "beats dpmpp-2s at 16 evaluations", duel("dpmpp-3s", "dpmpp-2s", 16)),
    *(Claim(sde, "is nearer to the data's distribution than ancestral sampling at 20 evaluations",
            stochastic_duel(sde, "ddpm", 20)) for sde in ("dpmpp-2m-sde", "dpmpp-3m-sde", "dpmpp-2s-sde")),
    *(Claim("evodiff", f"beats dpmpp-2m at {nfe} evaluations", duel("evodiff", "dpmpp-2m", nfe)) for nfe in (5, 10)),
    *(slow("evodiff", f"beats dpmpp-2m at {nfe} evaluations on the embedded digits",
           duel("evodiff", "dpmpp-2m", nfe, where="digits")) for nfe in (5, 10)),
    Claim("evodiff", "is nearer to the data's distribution than dpmpp-2m at 8 evaluations",
          stochastic_duel("evodiff", "dpmpp-2m", 8)),
    Claim("gradient-estimation", "is of order 1", orders("gradient-estimation", EDM())),
    Claim("gradient-estimation", "gamma = 1 is ddim bit for bit", _is_ddim),
    *(Claim("gradient-estimation", f"beats ddim at {nfe} evaluations",
            duel("gradient-estimation", "ddim", nfe, where=EDM())) for nfe in (5, 10)),
    Claim("euler", "is of order 1", orders("euler", EDM())),
    Claim("euler", "is ddim where alpha and sigma are straight lines in time", _euler_is_ddim),
    Claim("heun", "is of order 2", orders("heun", EDM())),
    *(Claim("heun", f"beats Euler with {nfe} evaluations to spend, on EDM's process and times{paper}",
            duel("heun", "euler", nfe, "karras", EDM()))
      for nfe, paper in ((10, ""), (20, ""), (36, " (the paper's 35 on CIFAR-10)"))),
    Claim("pndm", "is of order 2", orders("pndm")),
    Claim("pndm", "beats ddim at 20 evaluations on DDPM's table with equal steps",
          duel("pndm", "ddim", 20, "uniform", DDPM)),
    Claim("plms", "is of order 2", orders("plms")),
    Claim("plms", "beats ddim at 20 evaluations on DDPM's table with equal steps",
          duel("plms", "ddim", 20, "uniform", DDPM)),
    Claim("ipndm", "is of order 2 with the weights of 2, 3 and 4 steps", orders("ipndm")),
    slow("ipndm", "beats plms at 10 evaluations on DDPM's table with equal steps",
          duel("ipndm-4", "plms", 10, "uniform", DDPM)),
    Claim("rho-rk", "orders 2 to 4 are as stated", orders("rho-rk")),
    Claim("rho-rk", "order 2 beats Heun in the process's own time at 15 evaluations under VP",
          duel("rho-rk-2", "heun", 15, "karras")),
    Claim("rho-rk", "order 3 beats order 2 at 25 evaluations on EDM's process and times",
          duel("rho-rk-3", "rho-rk-2", 25, "karras", EDM())),
    slow("model-statistics", "finds the linear part of a Gaussian from 64 samples", _linear_part),
    Claim("unified", "the order is as stated", orders("unified")),
    Claim("unified", "a schedule of third-order steps is of order 3", _third),
    Claim("unified", "uniform schedules are seven known solvers", _same),
    Claim("unified", "beats ddim at 12 evaluations", duel("unified", "ddim", 12)),
    Claim("unipc", "orders 1 to 4 are p + 1, as stated", orders("unipc")),
    Claim("unipc", "order 2 with its corrector beats dpmpp-2m at 8 evaluations", duel("unipc-2", "dpmpp-2m", 8)),
    slow("unipc", "order 2 beats dpmpp-2m at 8 evaluations on the embedded digits",
         duel("unipc-2", "dpmpp-2m", 8, where="digits")),
)  # fmt: skip
