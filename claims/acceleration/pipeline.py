"""Claims of fewstep/acceleration/pipeline.py."""

from __future__ import annotations

import functools
import math

import torch

from claims.common import ENDPOINT, VP, Outcome, experiment, slow
from claims.problems import mixture
from claims.restored import TASKS, plan_of, restorer
from fewstep.acceleration.pipeline import Accelerated, accelerate
from fewstep.core.denoiser import Denoiser
from fewstep.core.sampler import Sampler
from fewstep.data.dataset import Dataset, DataSpec
from fewstep.data.digits import load
from fewstep.guidance.guide import guide
from fewstep.hub.models import load as load_model
from fewstep.sampling.build import fixed_plan
from fewstep.searching.evaluate import evaluate
from fewstep.searching.reference import reference_plan

EVALUATIONS, NOISES, ITERATIONS = 4, 640, 12
BRIDGE_NOISES, BRIDGE_ITERATIONS, RESTORED = 256, 4, 128
GUIDED_EVALUATIONS, GUIDED_NOISES, GUIDED_ITERATIONS, GUIDED_DRAWN = 5, 192, 6, 128
TASK = TASKS[0]  # digits under noise of 0.5


@functools.cache
def _mixture(seed: int) -> Accelerated:
    return accelerate(mixture(VP()), EVALUATIONS, noises=NOISES, iterations=ITERATIONS, seed=seed)


@experiment
def _against(seed: int, role: str, against: str) -> Outcome:
    """The returned plan's error on the verdict's noises, beside the best of another role."""
    found = _mixture(seed)
    best: dict[str, float] = {}
    for row in found.rows:
        if row["endpoint"] is not None:
            best[row["role"]] = min(row["endpoint"], best.get(row["role"], math.inf))
    ours = best["learned"] if found.plan.name == "learned" else best["candidate"]
    about = f"{EVALUATIONS} evaluations, 8-component mixture, vp, {found.figures['noises']['verdict']} unseen noises of"
    about += f" {NOISES}, {found.figures['searched']} plans searched, {ITERATIONS} iterations"
    return Outcome(ours, best[role], against, about, unit=ENDPOINT)


def _pairs(split: str, seed: int) -> Dataset:
    """Digits, and with each of them the same with noise."""
    x0, _ = load(split)
    y = TASK.degrade(x0, torch.Generator().manual_seed(seed))
    spec = DataSpec("noisy digits", tuple(x0.shape[1:]), (-1.0, 1.0), None, len(x0))
    return Dataset(spec, x0, given={"y": y})


Figures = dict[str, float]


def _beside(
    model: Denoiser, found: Accelerated, usual: Sampler, n: int, metric: str, seed: int, data: Dataset | None = None
) -> tuple[Figures, Figures, Figures, str]:
    """A metric and the end point error of the accelerated plan, the usual one and the reference; its name."""

    def measured(plan: Sampler) -> Figures:
        out = evaluate(model, plan, n, [metric, "endpoint"], seed=seed, data=data)
        return {name: out["figures"][name]["value"] for name in (metric, "endpoint")}

    ours, theirs, reference = (measured(plan) for plan in (found.plan, usual, reference_plan(model, 100)))
    return ours, theirs, reference, f"{found.plan.name} on {found.plan.about.get('timesteps')}"


@functools.cache
def _bridge(seed: int) -> tuple[Figures, Figures, Figures, str]:
    """PSNR and end point error on digits held out: of the accelerated bridge, of ddim, and of the reference."""
    model = restorer(TASK, "ddbm", seed).eval()
    train, held = _pairs("train", seed), _pairs("validation", seed + 1)
    found = accelerate(model, EVALUATIONS, noises=BRIDGE_NOISES, iterations=BRIDGE_ITERATIONS, seed=seed, data=train)
    return _beside(model, found, plan_of("ddbm", "ddim", EVALUATIONS), RESTORED, "psnr", seed + 2, held)


@experiment
def _restores(seed: int, figure: str) -> Outcome:
    """The accelerated bridge beside ddim at as many evaluations, on pictures it has not seen."""
    ours, theirs, reference, name = _bridge(seed)
    about = (
        f"{name}, {EVALUATIONS} evaluations, DDBM trained for 600 iterations, {RESTORED} held-out digits under noise of"
        f" 0.5; PSNR {ours['psnr']:.2f} dB, of ddim {theirs['psnr']:.2f}, of the reference {reference['psnr']:.2f};"
        f" {BRIDGE_NOISES} noises and {BRIDGE_ITERATIONS} iterations to learn"
    )
    against = f"ddim, {EVALUATIONS} evaluations, times uniform"
    if figure == "endpoint":
        return Outcome(ours[figure], theirs[figure], against, about, unit=ENDPOINT)
    off = [abs(value["psnr"] - reference["psnr"]) for value in (ours, theirs)]
    return Outcome(off[0], off[1], against, about, unit="dB off the reference's PSNR")


@functools.cache
def _guided(seed: int) -> tuple[Figures, Figures, Figures, str]:
    """Captions followed and end point error under guidance: of the accelerated plan, of dpmpp-2m, of the reference."""
    model = guide(load_model("shapes"), "cfg", scale=2.0)
    found = accelerate(model, GUIDED_EVALUATIONS, noises=GUIDED_NOISES, iterations=GUIDED_ITERATIONS, seed=seed)
    usual = fixed_plan(model.process, "dpmpp-2m", nfe=GUIDED_EVALUATIONS)
    return _beside(model, found, usual, GUIDED_DRAWN, "captions", seed + 2)


@experiment
def _under_guidance(seed: int, figure: str) -> Outcome:
    """The accelerated plan of a guided model, beside the usual solver at as many evaluations."""
    ours, theirs, reference, name = _guided(seed)
    about = (
        f"{name}, {GUIDED_EVALUATIONS} evaluations, embedded shapes under guidance of 2, {GUIDED_DRAWN} fresh noises;"
        f" captions followed {ours['captions']:.3g}, by dpmpp-2m {theirs['captions']:.3g}, by the reference"
        f" {reference['captions']:.3g}; {GUIDED_NOISES} noises and {GUIDED_ITERATIONS} iterations to learn"
    )
    against = f"dpmpp-2m, {GUIDED_EVALUATIONS} evaluations, times log-snr"
    if figure == "endpoint":
        return Outcome(ours[figure], theirs[figure], against, about, unit=ENDPOINT)
    return Outcome(ours[figure], theirs[figure], against, about, better="high", unit="share of captions followed")


CLAIMS = (
    slow("accelerate", "4 evaluations land nearer to the reference than 20 of ddim on log-SNR times",
         _against("baseline", "ddim, 20 evaluations, times log-snr")),
    slow("accelerate", "returns something better than every hand-made plan of 4 evaluations",
         _against("candidate", "the best hand-made plan")),
    slow("accelerate", "a bridge that denoises digits lands nearer to its own ODE's restoration than ddim",
         _restores("endpoint")),
    slow("accelerate", "a bridge that denoises digits keeps the PSNR of its own ODE better than ddim",
         _restores("psnr")),
    slow("accelerate", "under guidance 5 evaluations land nearer to the guided reference than dpmpp-2m's",
         _under_guidance("endpoint")),
    slow("accelerate", "under guidance 5 evaluations follow more captions than dpmpp-2m's",
         _under_guidance("captions")),
)  # fmt: skip
