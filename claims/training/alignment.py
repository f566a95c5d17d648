"""Claims of fewstep/training/alignment.py."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from claims.common import F64, Claim, Noise, Outcome, arms, experiment
from claims.objectives import PROCESS, digits_distance, digits_x0_error
from claims.trained import NetworkDenoiser, Objective, UNet, fit, fresh
from fewstep.data.digits import load
from fewstep.metrics.digits_classifier import digits_classifier
from fewstep.networks.dit import DiT
from fewstep.training.alignment import Alignment

STEPS, BATCH, FACTOR = 400, 64, 0.5
BLOCKS = {"dit": "block.1.mlp", "unet": "mid.res0"}
NETWORKS: dict[str, tuple[Any, dict[str, Any]]] = {"dit": (DiT, {"width": 64}), "unet": (UNet, {"width": (32, 48)})}


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


@experiment
def _aligned(seed: int, network: str, figure: Callable[..., float], what: str, unit: str) -> Outcome:
    """A network trained with the term and without."""
    about = f"{network} for v, {STEPS} steps of {BATCH} unlabelled digits, vp; factor {FACTOR} at {BLOCKS[network]},"
    about += f" teacher the digits classifier; {what}"
    better = "high" if unit == "accuracy" else "low"
    return arms(seed, functools.partial(figure, network), True, False, "no alignment", about, better, unit)


CLAIMS = tuple(
    Claim("repa", f"{sentence} ({network})", _aligned(network, figure, what, unit), quick=False)
    for network in NETWORKS
    for sentence, figure, what, unit in (
        ("denoises held-out digits better at equal steps",
         lambda net, on, s: digits_x0_error(_trained(net, on, s), s, (2.0, -3.0)),
         "held-out digits, log(alpha / sigma) from -3 to 2", "error of x0"),
        ("samples digits better at equal steps", lambda net, on, s: digits_distance(_trained(net, on, s), s, 10),
         "dpmpp-2m, 10 evaluations, 1000 samples", "Frechet distance in pixels"),
        ("the aligned block tells digits apart better", _accuracy,
         "probe of the block's mean on held-out digits at alpha = sigma", "accuracy"),
    )
)  # fmt: skip
