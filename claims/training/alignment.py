"""Claims of fewstep/training/alignment.py."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from claims.claim import Claim, Outcome, over_seeds
from claims.objectives import PROCESS, SEEDS, digits_distance, digits_x0_error, fresh
from fewstep.core.noise import Noise
from fewstep.data.digits import load
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.metrics.digits_classifier import digits_classifier
from fewstep.networks.dit import DiT
from fewstep.networks.unet import UNet
from fewstep.training.alignment import Alignment
from fewstep.training.fit import fit
from fewstep.training.objective import Objective

STEPS, BATCH, FACTOR = 400, 64, 0.5
BLOCKS = {"dit": "block.1.mlp", "unet": "mid.res0"}


def about(network: str) -> str:
    return (
        f"{network} for v, {STEPS} steps of {BATCH} unlabelled digits, vp; factor {FACTOR} at {BLOCKS[network]},"
        " teacher the digits classifier"
    )


@functools.cache
def _trained(network: str, aligned: bool, seed: int) -> NetworkDenoiser:
    made = {"dit": lambda: DiT(width=64, classes=None), "unet": lambda: UNet(width=(32, 48), classes=None)}[network]
    model = NetworkDenoiser(fresh(made, seed), PROCESS, "v", (1, 8, 8))
    data = load("train")[0]
    term = Alignment(model.network, BLOCKS[network], digits_classifier().features, data[:2])
    objective = Objective(model, terms=[(FACTOR if aligned else 0.0, term)])
    result = fit(model, data, steps=STEPS, batch=BATCH, lr=2e-3, objective=objective, seed=seed)
    term.close()
    return result


def _loss(network: str) -> Outcome:
    return over_seeds(
        lambda seed: tuple(digits_x0_error(_trained(network, a, seed), seed, (2.0, -3.0)) for a in (True, False)),
        SEEDS,
        "no alignment",
        f"{about(network)}; held-out digits, log(alpha / sigma) from -3 to 2",
        unit="error of x0",
    )


def _samples(network: str) -> Outcome:
    return over_seeds(
        lambda seed: (
            digits_distance(_trained(network, True, seed), seed, 10),
            digits_distance(_trained(network, False, seed), seed, 10),
        ),
        SEEDS,
        "no alignment",
        f"{about(network)}; dpmpp-2m, 10 evaluations, 1000 samples",
        unit="Frechet distance in pixels",
    )


def _features(model: NetworkDenoiser, name: str, images: Tensor, seed: int) -> Tensor:
    """The block's mean over its tokens, on images at log(alpha / sigma) = 0, with a constant 1."""
    found: list[Tensor] = []
    hook = model.network.get_submodule(name).register_forward_hook(lambda m, i, out: found.append(out))
    t = torch.tensor(PROCESS.time(0.0), dtype=torch.float64)
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
    weights = torch.linalg.solve(x.T @ x + 1e-2 * torch.eye(x.shape[1], dtype=torch.float64), x.T @ y)
    guessed = (_features(model, name, held, seed + 1) @ weights).argmax(1)
    return float((guessed == wanted).double().mean())


def _probe(network: str) -> Outcome:
    return over_seeds(
        lambda seed: (_accuracy(network, True, seed), _accuracy(network, False, seed)),
        SEEDS,
        "no alignment",
        f"{about(network)}; probe of the block's mean on held-out digits at alpha = sigma",
        better="high",
        unit="accuracy",
    )


CLAIMS = tuple(
    Claim("repa", f"{sentence} ({network})", lambda seed, run=run, network=network: run(network), quick=False)
    for network in ("dit", "unet")
    for sentence, run in (
        ("denoises held-out digits better at equal steps", _loss),
        ("samples digits better at equal steps", _samples),
        ("the aligned block tells digits apart better", _probe),
    )
)
