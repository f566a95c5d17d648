"""Claims of the timestep rules."""

from __future__ import annotations

import itertools
import math

import torch

from claims.common import EDM, F64, VP, Claim, Discrete, Flow, Outcome, compared, experiment, slow, tolerance
from claims.duels import rules
from fewstep.timesteps.admissible import admissible_step
from fewstep.timesteps.grid import make_times

STEPS = (2, 3, 5, 10, 20, 50)
DDPM = Discrete.linear()


def _limit(seed: int) -> Outcome:
    """(1 - beta)^n against its limit nu^(-1/eta)."""
    n, errors = 1_000_000, []
    for eta, nu in ((0.05, 2.0), (0.1, 2.0), (0.3, 1.5)):
        errors.append(abs(n * math.log1p(-admissible_step(n, eta, nu)) / (-math.log(nu) / eta) - 1))
    return tolerance(max(errors), 1e-4, f"three pairs of eta and nu, {n} steps", "relative error")


def _equal_steps(seed: int) -> Outcome:
    errors = []
    for process, n in itertools.product((VP(), Flow()), STEPS):
        steps = -torch.tensor(make_times(process, n, "uniform"), dtype=F64).diff()
        errors.append(float((steps * n / process.t_max - 1).abs().max()))
    return tolerance(max(errors), 1e-12, f"vp and flow, {STEPS} steps: each step against t_max / n")


def _exponential(seed: int) -> Outcome:
    errors = []
    for process, n in itertools.product((VP(), EDM(), Flow()), STEPS):
        a, b = (torch.tensor(make_times(process, n, rule), dtype=F64) for rule in ("exponential", "log-snr"))
        errors.append(float((a - b).abs().max() / process.t_max))
    return tolerance(max(errors), 1e-12, f"vp, edm and flow, {STEPS} steps: times against those of log-snr")


def _karras_formula(seed: int) -> Outcome:
    errors = []
    for n in STEPS:
        i = torch.arange(n, dtype=F64)
        low, high = 0.002 ** (1 / 7), 80.0 ** (1 / 7)
        paper = (high + i / max(n - 1, 1) * (low - high)) ** 7  # eq. 5
        ours = torch.tensor(make_times(EDM(0.002, 80.0), n, "karras"), dtype=F64)[:-1]
        errors.append(float((ours / paper - 1).abs().max()))
    return tolerance(max(errors), 1e-12, f"sigma_0 ... sigma_(n - 1) of eq. 5, edm, {STEPS} steps, relative")


@experiment
def _conventions(seed: int, rule: str) -> Outcome:
    """The table of Lin et al. (their Table 2), T = 1000, against ours, in steps of the table."""
    errors = []
    for n in (2, 5, 10, 20, 50):
        paper = [1000 - k * 1000 / n - 1 for k in range(n)]
        if rule == "leading":
            paper = [float(k * (1000 // n)) for k in reversed(range(n))]
        ours = [t for t in make_times(DDPM, n, rule) if t >= 0]
        errors.append(max(abs(a - b) for a, b in zip(ours, paper, strict=True)))
    about = "T = 1000, 2 to 50 steps, against Lin et al., Table 2"
    return tolerance(max(errors), 1e-9, about, "largest error, in steps")


def _reach(seed: int) -> Outcome:
    ends = {rule: make_times(DDPM, 10, rule)[0] for rule in ("leading", "linspace", "trailing")}
    above = {rule: abs(DDPM.log_snr(t) - DDPM.log_snr(DDPM.t_max)) for rule, t in ends.items()}
    about = f"10 steps, DDPM's table: first times {', '.join(f'{rule} {t:g}' for rule, t in ends.items())}"
    return Outcome(above["trailing"], above["leading"], "leading", about, unit="log-SNR above the noisiest step's")


def _finer(seed: int) -> Outcome:
    share = []
    for rule in ("beta", "uniform"):
        times = torch.tensor(make_times(VP(), 50, rule), dtype=F64)
        share.append(float(((times < 0.1) | (times > 0.9)).double().mean()))
    unit = "share of times in the first and the last tenth"
    return compared(share, "uniform", "vp, 50 steps", better="high", unit=unit)


def _polynomial(seed: int) -> Outcome:
    errors = []
    for n in STEPS[1:]:
        times = make_times(EDM(), n, "polyexponential")[:-1]
        wanted = torch.linspace(1, 0, n, dtype=F64) ** 1.5 * math.log(80 / 0.002) + math.log(0.002)
        errors.append(float((torch.tensor(times, dtype=F64).log() - wanted).abs().max()))
    return tolerance(max(errors), 1e-12, f"log sigma against u^1.5, edm, {STEPS[1:]} steps")


CLAIMS = (
    Claim("admissible", "many steps fall by nu^(1/eta), the theorem's limit", _limit),
    *(Claim("admissible", f"suits {solver} better than equal steps over the whole range, at 6 evaluations",
            rules("admissible", "log-snr", solver, 6, EDM())) for solver in ("ddim", "gradient-estimation")),
    Claim("uniform", "its steps are equal in the process's time", _equal_steps),
    Claim("uniform", "suits the flow better than equal steps in log-SNR, at 10 evaluations of Euler",
          rules("uniform", "log-snr", "euler", 10, Flow())),
    Claim("log-snr", "beats uniform under VP, at 10 evaluations of dpmpp-2m",
          rules("log-snr", "uniform", "dpmpp-2m", 10)),
    Claim("karras", "is equation 5 of the paper", _karras_formula),
    Claim("karras", "beats uniform under EDM, with 10 evaluations for Heun",
          rules("karras", "uniform", "heun", 10, EDM())),
    Claim("karras", "beats log-snr under EDM, at 10 evaluations of dpmpp-2m",
          rules("karras", "log-snr", "dpmpp-2m", 10, EDM())),
    Claim("quadratic", "beats uniform under VP, at 10 evaluations of ddim", rules("quadratic", "uniform", "ddim", 10)),
    Claim("short", "beats log-snr under VP, at 4 evaluations of dpmpp-2m", rules("short", "log-snr", "dpmpp-2m", 4)),
    slow("short", "beats log-snr on the embedded digits, at 4 evaluations of dpmpp-2m",
         rules("short", "log-snr", "dpmpp-2m", 4, "digits")),
    Claim("log-snr",
          "beats short under VP, at 20 evaluations of dpmpp-2m, where cutting the ends costs more than it saves",
          rules("log-snr", "short", "dpmpp-2m", 20)),
    Claim("exponential", "is log-snr under another name", _exponential),
    Claim("polyexponential", "log sigma follows a power of the step", _polynomial),
    Claim("polyexponential", "beats log-snr under EDM, at 10 evaluations of dpmpp-2m",
          rules("polyexponential", "log-snr", "dpmpp-2m", 10, EDM())),
    Claim("beta", "places more of its times near both ends than equal steps do", _finer),
    Claim("beta", "beats uniform under VP, at 10 evaluations of ddim", rules("beta", "uniform", "ddim", 10)),
    Claim("leading", "has the published steps", _conventions("leading")),
    Claim("linspace", "beats leading on DDPM's table, at 10 evaluations of ddim",
          rules("linspace", "leading", "ddim", 10, DDPM)),
    Claim("trailing", "has the published steps", _conventions("trailing")),
    Claim("trailing", "starts where the noise is, leading above it", _reach),
    Claim("trailing", "beats leading on DDPM's table, at 10 evaluations of ddim",
          rules("trailing", "leading", "ddim", 10, DDPM)),
)  # fmt: skip
