"""Claims of the trainer and of small models trained with it."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from claims.common import F64, VP, Flow, Outcome, arms, compared, frechet, slow
from claims.problems import mixture
from claims.short_run import STEPS, advance, held_out, recipe, samples, start, trained
from claims.trained import NetworkDenoiser, NoiseLevels, Objective, UNet, fit, fresh
from fewstep.data.digits import load
from fewstep.training.checkpoint import checkpoints, load_checkpoint, part
from fewstep.training.draws import Draws
from fewstep.training.noise_classifier import exact_levels, noise_times, train_noise_classifier
from fewstep.training.state import TrainingState
from fewstep.training.trainer import train

SHARE_STEPS, BATCH, SHARE = 500, 64, 0.1
ABOUT = f"unet, {STEPS} steps of 64 digits at a constant rate, decay 0.99"
UNIT = "largest difference of a weight"


@torch.no_grad()
def _held_out(model: NetworkDenoiser) -> float:
    """Mean loss of the 360 held-out digits, each at eight noise levels spread evenly, under fixed noise."""
    images, generator = load("validation")[0].repeat(8, 1, 1, 1), torch.Generator().manual_seed(0)
    eps = torch.randn(images.shape, generator=generator)
    shares = (torch.arange(len(images), dtype=F64) + 0.5) / len(images)
    t = NoiseLevels(model.process).quantile(shares[torch.randperm(len(images), generator=generator)])
    return float(Objective(model)(images, eps, t, {}).mean())


def _rows(draws: Draws, images: Tensor) -> Callable[[int, torch.Generator], tuple[Tensor, Mapping[str, Tensor]]]:
    seen = 0

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        nonlocal seen
        rows = draws.rows(seen, count)
        seen += count
        return images[rows], {}

    return draw


def _loss(arm: str, seed: int) -> float:
    """Of a small unet trained on a fresh tenth of the digits every round, or on one "fixed" tenth."""
    images = load("train")[0]
    draws = Draws(seed, len(images), SHARE)
    if arm == "fixed":
        images = images[draws.rows(0, round(SHARE * len(images)))]  # the first round's share, for good
        draws = Draws(seed, len(images))
    model = NetworkDenoiser(fresh(UNet, seed, width=(16, 32), classes=None), Flow(), "velocity", shape=(1, 8, 8))
    return _held_out(fit(model, _rows(draws, images), steps=SHARE_STEPS, batch=BATCH, lr=2e-3, seed=seed))


def _held_out_loss(seed: int) -> Outcome:
    losses = [held_out(trained("unet", seed), averaged) for averaged in (True, False)]
    return compared(losses, "the last weights", ABOUT, unit="held-out loss")


def _samples(seed: int) -> Outcome:
    state, real = trained("unet", seed), load("train")[0]
    ours, theirs = (frechet(samples(model.eval(), 1000, seed), real) for model in (state.averaged(), state.denoiser))
    about = f"{ABOUT}; 1000 samples, 10 evaluations of dpmpp-2m; real against real {ours.floor:.2g}"
    return Outcome(ours.value, theirs.value, "the last weights", about, unit="Frechet distance in pixels")


def _posterior(seed: int) -> Outcome:
    model, times = mixture(VP()), noise_times(VP(), 24, 0.02, 1.5)
    classifier = train_noise_classifier(VP(), model.sample(20_000, seed + 2), times, seed=seed)
    level = torch.arange(24).repeat(200)
    ratio = torch.tensor([VP().sigma(t) / VP().alpha(t) for t in times])[level]
    generator = torch.Generator().manual_seed(seed)
    y = model.sample(len(level), seed + 3) + ratio[:, None] * torch.randn(len(level), 2, generator=generator)
    exact = torch.log_softmax(exact_levels(model, times)(y), 1)
    found = torch.log_softmax(classifier(y).double(), 1), torch.full_like(exact, -math.log(24))
    figures = [float((exact.exp() * (exact - other)).sum(1).mean()) for other in found]
    about = "24 levels from sigma/alpha = 1.5 to 0.02, 8-component mixture, vp, 2000 steps of training"
    about += ", 4800 new samples"
    return compared(figures, "all levels equally likely", about, unit="divergence from the exact posterior in nats")


def _saved(out: Path) -> dict[str, Tensor]:
    tensors, _ = load_checkpoint(checkpoints(out)[-1])
    return part(tensors, "network")


def _weights(state: TrainingState) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in state.network.state_dict().items()}


def _difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def _resume(seed: int) -> Outcome:
    """Twenty steps at once, ten and ten, and ten with ten more that take over the weights alone."""
    made = recipe("unet", seed, batch=16, steps=20, warmup=5, validate_every=0)
    with tempfile.TemporaryDirectory() as folder:
        whole, halves = Path(folder) / "whole", Path(folder) / "halves"
        train(made, whole, device="cpu", progress=False)
        train(made, halves, device="cpu", progress=False, steps=10)
        state = start(made)
        state.network.load_state_dict(_saved(halves))
        train(made, halves, device="cpu", progress=False, resume=True)
        straight, resumed = _saved(whole), _saved(halves)
    advance(state, 10)
    figures = _difference(resumed, straight), _difference(_weights(state), straight)
    about = "unet on digits, 20 steps of 16, stopped and resumed after 10"
    return compared(figures, "a run that goes on from the weights alone", about, unit=UNIT)


def _same_seed(seed: int) -> Outcome:
    runs = []
    for number in (seed, seed, seed + 1):
        state = start(recipe("unet", number, batch=16, steps=5, warmup=0, validate_every=0))
        advance(state, 5)
        runs.append(_weights(state))
    figures = _difference(runs[0], runs[1]), _difference(runs[0], runs[2])
    return compared(figures, "another seed", "unet on digits, 5 steps of 16", unit=UNIT)


CLAIMS = (
    slow("rs2", "a fresh tenth of the data every round beats a fixed tenth",
         arms(_loss, "fresh", "fixed", "one fixed tenth",
              f"unet on digits, {SHARE_STEPS} steps of {BATCH}, a tenth of the data a round", unit="held-out loss")),
    slow("ema", "averaged weights have a lower held-out loss than the last ones", _held_out_loss),
    slow("ema", "averaged weights sample better than the last ones", _samples),
    slow("noise-classifier", "has learned the posterior over noise levels", _posterior),
    slow("trainer", "a stopped run, resumed, ends in the same bits", _resume),
    slow("trainer", "a seed gives the same bits again", _same_seed),
)  # fmt: skip
