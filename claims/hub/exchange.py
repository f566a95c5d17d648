"""Claims of what is exchanged with other programs: checkpoints, schedules, schedulers, exported models."""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from claims.claim import Claim, Outcome, compared, experiment, slow
from claims.common import ENDPOINT, F64, endpoint_error, gap, plan
from claims.parts import Discrete, Noise
from claims.problems import Problem, problem
from claims.trained import fresh
from fewstep.hub.checkpoints import load_checkpoint
from fewstep.hub.models import load
from fewstep.hub.onnx import export_onnx, load_onnx
from fewstep.hub.program import export_program, load_program
from fewstep.hub.schedules import TABLE, open_schedule

SIGMAS = (0.002, 0.05, 0.5, 3.0, 80.0)
DATA_STD = 0.5
EVALUATIONS = 8


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return torch.tanh(self.inner(x)) * torch.cos(noise)[:, None]


def _table_1(net: nn.Module, kind: str, x: Tensor, s: float) -> Tensor:
    """D(x; sigma) of Karras et al., Table 1, in float64, for the columns EDM, VP and VE."""
    sigma = torch.full((len(x), 1), s, dtype=F64)
    if kind == "VEPrecond":
        return x + sigma * net(x, (sigma / 2).log()[:, 0])
    if kind == "VPPrecond":
        t = ((0.01 + 39.8 * (1 + sigma**2).log()).sqrt() - 0.1) / 19.9
        return x - sigma * net(x / (1 + sigma**2).sqrt(), 999 * t[:, 0])
    norm = (sigma**2 + DATA_STD**2).sqrt()
    return DATA_STD**2 / norm**2 * x + sigma * DATA_STD / norm * net(x / norm, sigma.log()[:, 0] / 4)


def _formulas(seed: int) -> Outcome:
    net, worst = fresh(_Net, seed).eval(), 0.0
    clean, eps = (Noise(seed).normal(draw, (8, 6), "cpu", F64) for draw in (0, 1))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "net.safetensors"
        save_file({f"ema.{key}": value for key, value in net.state_dict().items()}, path)
        for kind in ("EDMPrecond", "VPPrecond", "VEPrecond"):
            model = load_checkpoint(_Net(), path, {"precondition": kind, "shape": [6]}, prefix="ema.").double()
            for sigma in SIGMAS:
                x = DATA_STD * clean + sigma * eps
                made = model(x, torch.tensor(sigma, dtype=F64)).x0
                worst = max(worst, gap(made, _table_1(net.double(), kind, x, sigma)))
            net.float()
    about = f"a small network saved and loaded under three preconditionings, sigma in {SIGMAS}"
    return Outcome(worst, 1e-5, "a tolerance", about, unit="largest relative difference from the formulas of Table 1")


def _loop(scheduler: Any, on: Problem) -> Tensor:
    """What a pipeline does with a scheduler, on a network that predicts eps."""
    x = on.noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(on.model(x, t.double()).eps, t, x, return_dict=False)[0]
    return x


def _more_accurate(seed: int) -> Outcome:
    """The default solver and times against DPM-Solver++ 2M as diffusers sets it up."""
    import diffusers

    process = Discrete.linear()
    on = problem(process, seed)
    theirs = diffusers.DPMSolverMultistepScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    theirs.set_timesteps(EVALUATIONS)
    ours = plan(process, "dpmpp-3m", EVALUATIONS).as_diffusers_scheduler(like=theirs)
    errors = [endpoint_error(_loop(each, on), on.reference).value for each in (ours, theirs)]
    about = f"{on.name}, {EVALUATIONS} evaluations, the same loop and network"
    return compared(errors, "DPMSolverMultistepScheduler as it comes", about, unit=ENDPOINT)


def _same(seed: int) -> Outcome:
    """A corrector's plan through the scheduler and by itself, in float64."""
    on, made = problem(Discrete.linear(), seed), plan(Discrete.linear(), "unipc-3", EVALUATIONS, "karras")
    # Only the times differ, which a pipeline hands to its network in float32.
    off = (_loop(made.as_diffusers_scheduler(), on) - on.run(made)).abs()
    return Outcome(float(off.max()), 1e-5, "a tolerance", f"{on.name}, unipc-3, {EVALUATIONS} steps")


@experiment
def _agrees(seed: int, export: Callable[..., Any], solver: str, n: int, steps: int, limit: float, unit: str) -> Outcome:
    """Samples of what was exported, for label 3, against torch's."""
    model = load("digits")
    noise = torch.randn(n, *model.shape, generator=torch.Generator().manual_seed(seed))
    made = plan(model.process, solver, steps)
    with tempfile.TemporaryDirectory() as folder:
        off = export(made, model, Path(folder))(noise, seed=seed, label=3) - made(model, noise, seed=seed, label=3)
    about = f"embedded digits, {n} samples of {steps} steps of {solver}, label 3"
    return Outcome(float(off.abs().max()), limit, "a tolerance", about, unit=unit)


def _levels(seed: int) -> Outcome:
    """The noise levels at which fewstep evaluates and those of diffusers, over all schedulers that list theirs."""
    import diffusers

    worst = 0.0
    for name in TABLE:
        if name == "DPMSolverSDEScheduler":  # needs a further package
            continue
        made = getattr(diffusers, name)(use_karras_sigmas=True) if "DPMSolver" in name else getattr(diffusers, name)()
        made.set_timesteps(7)
        if hasattr(made, "sigmas"):
            own, theirs = open_schedule(made), list(dict.fromkeys(made.sigmas.tolist()))
            for t, sigma in zip(own.rule()(own.process, 7)[:-1], theirs, strict=False):
                worst = max(worst, abs(math.log(sigma) + own.process.log_snr(t)))
    return Outcome(worst, 2e-3, "a tolerance", "7 steps of every scheduler with noise levels; largest gap of log-SNR")


CLAIMS = (
    Claim("checkpoint", "a loaded network is the paper's function", _formulas),
    slow("diffusers-scheduler",
         "dpmpp-3m on log-SNR times in a pipeline's loop ends nearer than diffusers' own default DPM-Solver++",
         _more_accurate),
    slow("diffusers-scheduler", "gives the plan's own samples, corrector included", _same),
    slow("onnx", "ONNX Runtime's samples agree with torch's",
         _agrees(lambda made, model, at: functools.partial(made, load_onnx(export_onnx(model, at / "digits.onnx"))),
                 "dpmpp-3m", 5, 8, 1e-4, "largest difference from torch")),
    slow("program", "a stochastic plan exported with its network gives the plan's samples",
         _agrees(lambda made, model, at: load_program(export_program(made, model, at / "digits.pt2")),
                 "dpmpp-2m-sde", 3, 4, 1e-5, "largest difference")),
    slow("diffusers-schedule", "the grid has the noise levels of diffusers' own", _levels),
)  # fmt: skip
