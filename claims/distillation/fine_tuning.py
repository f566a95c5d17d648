"""Claims of fine-tuning at few steps of DDIM: against plain training of the same network, at equal evaluations.

An evaluation is a forward pass of one sample by any network; with its backward pass it is 3. Both sides of a claim
begin as one network, have one rate, and are sampled by DDIM at the same times. On the mixture that network is a
perceptron trained on the data before, which is its own teacher; on digits the embedded model.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from claims.claim import Run, over_seeds, slow
from claims.common import SLICED, Denoiser, Noise, sliced
from claims.distillation import consistency, digits
from fewstep.core.methods import made
from fewstep.core.student import default_start
from fewstep.distillation.distill import plan_of
from fewstep.distillation.fake import denoising
from fewstep.distillation.levels import at_shares
from fewstep.distillation.method import Batch, Distiller, Setting
from fewstep.distillation.mmd import gaussian, mmd2
from fewstep.distillation.state import DistillState
from fewstep.distillation.teacher import BACKWARD
from fewstep.searching.problem import conditions, own_data, run_all

BUDGETS, BATCHES = {"mixture": 500_000, "digits": 120_000}, {"mixture": 128, "digits": 64}
RATES, TRIAL = {"mixture": 1e-3, "digits": 3e-4}, 4  # iterations by which the cost of one is found
N, FIRST = {"mixture": 4096, "digits": 1024}, 1 << 20  # samples judged, the number of the first digit's noise
STEPS = (1, 2, 4)
UNSEEN = "squared MMD of a Gaussian kernel, in thousandths"
PLAIN = "plain"


class Plain(Distiller):
    """Denoising of real samples, at levels that are even on the way."""

    kind = "denoiser"

    def __init__(self, setting: Setting) -> None:
        self.setting, self.student = setting, setting.student()
        self.players = {"student": setting.player(self.student, self._loss, average=True)}

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        x0, condition = self.setting.real(batch, generator)
        t = at_shares(self.setting.process, self.setting.start, self.setting.uniform(batch, generator))
        return {"x0": x0, "condition": condition, "eps": self.setting.noise(batch, generator), "t": t}

    def _loss(self, drawn: Batch) -> Tensor:
        self.setting.count.evaluations += BACKWARD * len(drawn["x0"])
        return denoising(self.student, drawn["x0"], drawn["eps"], drawn["t"], drawn["condition"])


def setting(where: str, steps: int, seed: int, iterations: int) -> Setting:
    model: Any = consistency.base(seed) if where == "mixture" else digits.teacher()
    data = consistency.data(seed) if where == "mixture" else own_data(model)
    assert data is not None
    std = data.std() if where == "mixture" else float(model.data_std)
    return Setting(model, model, default_start(model.process, std), steps, iterations, data, data_std=std,
                   lr=RATES[where], batch=BATCHES[where], seed=seed)  # fmt: skip


def built(where: str, method: str, steps: int, seed: int, iterations: int) -> DistillState:
    own = setting(where, steps, seed, iterations)
    work: Distiller = Plain(own) if method == PLAIN else made("distiller", method, 1)(own)
    return DistillState(work, {}, seed=seed, batch=own.batch, accelerator=None)


@functools.cache
def tuned(where: str, method: str, seed: int, steps: int = 1) -> Denoiser:
    """The network after its budget, with its averaged weights. steps: of a method that trains for so many."""
    trial = built(where, method, steps, seed, TRIAL)
    trial.run(TRIAL)
    state = built(where, method, steps, seed, int(BUDGETS[where] / trial.method.setting.count.evaluations * TRIAL))
    state.run(state.method.setting.iterations)
    assert abs(state.method.setting.count.evaluations / BUDGETS[where] - 1) < 0.05
    return state.averaged()


@functools.cache
def samples(where: str, method: str, seed: int, steps: int, trained: int = 1) -> Tensor:
    """Of DDIM in so many steps from the start; `trained`: the steps that a method trained for."""
    model = tuned(where, method, seed, trained)
    start = setting(where, steps, seed, 1).start
    plan, n = plan_of(model.process, "denoiser", steps, start, None), N[where]
    if where == "mixture":
        return plan(model, Noise(seed + 100).normal(0, (n, 2)), seed=seed).double()
    noise = Noise(seed, FIRST).normal(0, (n, *(model.shape or ())))
    return run_all(plan, model, noise, conditions(model, None, torch.arange(n)), seed, FIRST).double()


def truth(where: str, seed: int) -> Tensor:
    if where == "mixture":
        return consistency.truth(seed, N[where])
    data = own_data(digits.teacher())
    assert data is not None
    return data.images.double()


def figure(where: str, x: Tensor, seed: int, unit: str) -> float:
    real = truth(where, seed)
    if unit == SLICED:
        return sliced(x, real)
    x, real = x.flatten(1), real.flatten(1)
    return 1e3 * float(mmd2(x, real, gaussian((2 * real.var(0).sum()).sqrt())).mean())


def row(where: str, method: str, steps: int, unit: str = SLICED, trained: int = 1) -> Run:
    def run(seed: int) -> list[float]:
        ours = samples(where, method, seed, steps, trained)
        return [figure(where, x, seed, unit) for x in (ours, samples(where, PLAIN, seed, steps))]

    told = "8-component mixture, perceptron of 64" if where == "mixture" else "embedded digits"
    about = (
        f"{told}, {BUDGETS[where]:,} evaluations, DDIM in {steps} step{'s' if steps > 1 else ''}, {N[where]} samples"
    )
    return over_seeds(run, "plain training at the same cost", about, unit=unit)


def _steps(count: int) -> str:
    return f"{count} step{'s' if count > 1 else ''}"


CLAIMS = (
    slow("mmd-ddm", "on digits five steps are nearer to the data than after plain training",
         row("digits", "mmd-ddm", 5, SLICED, 5)),
    slow("mmd-ddm", "on digits five steps are nearer in a kernel that it was not trained on",
         row("digits", "mmd-ddm", 5, UNSEEN, 5)),
    *(slow("shortdf", f"on {told} {_steps(steps)} of DDIM {'is' if steps == 1 else 'are'} nearer to the data than after"
           " plain training", row(where, "shortdf", steps))
      for where, told in (("mixture", "the mixture"), ("digits", "digits")) for steps in STEPS),
)  # fmt: skip
