"""Claims of what is added to the loss."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from claims.claim import Claim, Outcome, Run, arms, compared, slow, tolerance
from claims.common import F64, plan, sliced
from claims.objectives import PROCESS, digits_distance, digits_x0_error, points
from claims.parts import EDM, VE, Answers, Cosine, Flow, Noise
from claims.problems import mixture, smooth
from claims.trained import MLP, NetworkDenoiser, Objective, UNet, fit, fresh
from fewstep.data.digits import load
from fewstep.metrics.digits_classifier import digits_classifier
from fewstep.networks.dit import DiT
from fewstep.processes.vp import SubVP
from fewstep.training.alignment import Alignment
from fewstep.training.constraint import Constraint, Residual
from fewstep.training.fokker_planck import FokkerPlanck, Gap, ode_sde_gap, residual

STEPS, BATCH, FACTOR = 400, 64, 0.5
BLOCKS = {"dit": "block.1.mlp", "unet": "mid.res0"}
NETWORKS: dict[str, tuple[Any, dict[str, Any]]] = {"dit": (DiT, {"width": 64}), "unet": (UNet, {"width": (32, 48)})}
SAMPLES = 4096
RESIDUALS: dict[str, Residual] = {
    "circle": lambda x, condition: x.square().sum(1) - 1,
    "zero sum": lambda x, condition: x.sum(1),
}
ABOUT = (
    "perceptron for eps, 800 plain steps of 64 points of the 8-component mixture, then 150 with the term,"
    " exact divergence, vp; 2000 samples, 100 steps of dpmpp-3m and of dpmpp-2m-sde"
)


@functools.cache
def _trained(network: str, aligned: bool, seed: int) -> NetworkDenoiser:
    made, options = NETWORKS[network]
    model = NetworkDenoiser(fresh(made, seed, **options, classes=None), PROCESS, "v", (1, 8, 8))
    data = load("train")[0]
    term = Alignment(model.network, BLOCKS[network], digits_classifier().features, data[:2])
    objective = Objective(model, terms=[(FACTOR if aligned else 0.0, term)])
    result = fit(model, data, steps=STEPS, batch=BATCH, lr=2e-3, objective=objective, seed=seed)
    term.close()
    return result


def _features(model: NetworkDenoiser, name: str, images: Tensor, seed: int) -> Tensor:
    """The block's mean over its tokens, on images at log(alpha / sigma) = 0, with a constant 1."""
    found: list[Tensor] = []
    hook = model.network.get_submodule(name).register_forward_hook(lambda m, i, out: found.append(out))
    t = torch.tensor(PROCESS.time(0.0), dtype=F64)
    eps = Noise(seed).normal(1, tuple(images.shape))
    with torch.no_grad():
        model(PROCESS.alpha(float(t)) * images + PROCESS.sigma(float(t)) * eps, t)
    hook.remove()
    hidden = found[0].mean(1) if found[0].ndim == 3 else found[0].flatten(2).mean(2)
    return torch.cat([hidden, torch.ones(len(hidden), 1)], dim=1).double()


def _accuracy(network: str, aligned: bool, seed: int) -> float:
    """Of a linear probe (ridge regression on the one-hot labels), on held-out digits."""
    model, name = _trained(network, aligned, seed), BLOCKS[network]
    (images, labels), (held, wanted) = load("train"), load("validation")
    x, y = _features(model, name, images, seed), torch.nn.functional.one_hot(labels, 10).double()
    weights = torch.linalg.solve(x.T @ x + 1e-2 * torch.eye(x.shape[1], dtype=F64), x.T @ y)
    guessed = (_features(model, name, held, seed + 1) @ weights).argmax(1)
    return float((guessed == wanted).double().mean())


def _aligned(network: str, figure: Callable[..., float], what: str, unit: str) -> Run:
    """A network trained with the term and without."""
    about = f"{network} for v, {STEPS} steps of {BATCH} unlabelled digits, vp; factor {FACTOR} at {BLOCKS[network]},"
    about += f" teacher the digits classifier; {what}"
    better = "high" if unit == "accuracy" else "low"
    return arms(functools.partial(figure, network), True, False, "no alignment", about, better, unit)


def _data(problem: str, n: int, seed: int) -> Tensor:
    """Points on the unit circle, twice as dense at one side; or in four dimensions with a sum of zero."""
    generator = torch.Generator().manual_seed(seed)
    if problem == "circle":
        angle = 2 * math.pi * torch.rand(n, generator=generator)
        angle = angle + angle.sin() / 3
        return torch.stack([angle.cos(), angle.sin()], dim=1)
    x = torch.randn(n, 4, generator=generator) * torch.tensor([1.0, 0.6, 0.4, 0.2])
    x = x + x[:, :1].abs()
    return x - x.mean(1, keepdim=True)


@functools.cache
def _samples(problem: str, factor: float, seed: int) -> Tensor:
    shape = (2,) if problem == "circle" else (4,)
    model = NetworkDenoiser(fresh(MLP, seed, shape), PROCESS, "x0", shape)
    objective = Objective(model, terms=[(factor, Constraint(RESIDUALS[problem]))])
    data = _data(problem, 20_000, 100)
    trained = fit(model, data, steps=1000, batch=128, lr=2e-3, objective=objective, seed=seed)
    return plan(PROCESS, "dpmpp-2m", 10, "log-snr")(trained, Noise(seed).normal(0, (SAMPLES, *shape)))


def _residual(problem: str, factor: float, seed: int) -> float:
    return float(RESIDUALS[problem](_samples(problem, factor, seed), {}).square().mean().sqrt())


def _law(problem: str, factor: float, seed: int) -> float:
    return sliced(_samples(problem, factor, seed), _data(problem, SAMPLES, seed + 1))


def _constrained(problem: str, figure: Callable[[str, float, int], float], unit: str) -> Run:
    """A network trained with the residual as a term and without."""
    about = f"{problem}; perceptron for x0, 1000 steps of 128 points, vp, factor 0.1; dpmpp-2m, 10"
    about += f" evaluations, {SAMPLES} samples"
    return arms(functools.partial(figure, problem), 0.1, 0.0, "no term", about, unit=unit)


@functools.cache
def _first(seed: int) -> NetworkDenoiser:
    model = NetworkDenoiser(fresh(MLP, seed, width=48, depth=2), PROCESS, "eps", (2,))
    return fit(model, points(), steps=800, batch=64, lr=2e-3, seed=seed)


@functools.cache
def _gap(weight: float, seed: int) -> Gap:
    model = copy.deepcopy(_first(seed))
    objective = Objective(model, terms=[(weight, FokkerPlanck(None))])
    trained = fit(model, points(), steps=150, batch=64, lr=1e-3, objective=objective, seed=seed + 50)
    return ode_sde_gap(trained, mixture(PROCESS).sample(2000, seed + 1).float(), seed=seed)


def _closes(weight: float, what: str) -> Run:
    """One of the distances of `Gap`, trained with the term and without."""
    about, unit = f"weight {weight:g}; {ABOUT}", "sliced Wasserstein distance"
    return arms(lambda w, s: getattr(_gap(w, s), what), weight, 0.0, "weight 0", about, unit=unit)


def _exact(seed: int) -> Outcome:
    worst = 0.0
    for process in (PROCESS, SubVP(), Cosine(), Flow(), EDM(), VE()):
        t = process.time(torch.linspace(3, -3, 64, dtype=F64))
        normal = torch.randn(64, 2, generator=torch.Generator().manual_seed(seed), dtype=F64)
        x = normal * (process.alpha(t) ** 2 + process.sigma(t) ** 2).sqrt()[:, None]
        worst = max(worst, float(residual(smooth(process), x, t).detach().abs().max()))
    about = "smooth 5-component mixture, six processes, log(alpha / sigma) from -3 to 3"
    return tolerance(worst, 1e-10, about, "largest residual")


def _finds(seed: int) -> Outcome:
    exact = smooth(PROCESS)
    scaled = Answers(lambda x, t: 0.9 * exact(x, t).eps, PROCESS, (2,), "eps")  # the score of no diffusion
    gaps = [ode_sde_gap(model, n=1000, steps=50, seed=seed).between for model in (exact, scaled)]
    about = "exact model, smooth 5-component mixture, vp, 1000 samples, 50 steps"
    return compared(gaps, "the exact eps times 0.9", about, unit="sliced Wasserstein distance between ODE and SDE")


CLAIMS = (
    *(slow("repa", f"{sentence} ({network})", _aligned(network, figure, what, unit))
      for network in NETWORKS
      for sentence, figure, what, unit in (
          ("denoises held-out digits better at equal steps",
           lambda net, on, s: digits_x0_error(_trained(net, on, s), s, (2.0, -3.0)),
           "held-out digits, log(alpha / sigma) from -3 to 2", "error of x0"),
          ("samples digits better at equal steps", lambda net, on, s: digits_distance(_trained(net, on, s), s, 10),
           "dpmpp-2m, 10 evaluations, 1000 samples", "Frechet distance in pixels"),
          ("the aligned block tells digits apart better", _accuracy,
           "probe of the block's mean on held-out digits at alpha = sigma", "accuracy"),
      )),
    *(slow("constraint", f"{sentence} ({problem})", _constrained(problem, figure, unit))
      for problem in RESIDUALS
      for sentence, figure, unit in (
          ("samples obey the data's equation better", _residual, "root mean square residual of the samples"),
          ("samples come nearer to the data's law", _law, "sliced Wasserstein distance"),
      )),
    Claim("fokker-planck", "vanishes on the exact score of every process", _exact),
    *(slow("fokker-planck", f"at weight {weight:g} brings {sentence}", _closes(weight, what))
      for weight in (0.1, 1.0)
      for sentence, what in (
          ("the samples of ODE and SDE together", "between"),
          ("the ODE's samples nearer to the truth", "ode"),
          ("the SDE's samples nearer to the truth", "sde"),
      )),
    Claim("ode-sde-gap", "tells an exact score from one that no diffusion has", _finds),
)  # fmt: skip
