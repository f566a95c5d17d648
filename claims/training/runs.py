"""Claims of the trainer, of small models trained with it, and of tuning a part of the weights."""

from __future__ import annotations

import copy
import functools
import math
import tempfile
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from claims.claim import Outcome, arms, compared, over_seeds, slow, tolerance
from claims.common import F64, frechet, gap, sliced
from claims.parts import VP, Flow, Noise
from claims.problems import mixture
from claims.short_run import STEPS, advance, held_out, recipe, samples, start, trained
from claims.trained import NetworkDenoiser, NoiseLevels, Objective, UNet, fit, fresh, rows_of
from claims.tuning import chain, class_distance, data, in_turn
from claims.tuning import samples as adapter_samples
from fewstep.data import digits
from fewstep.data.digits import load as load_digits
from fewstep.hub.models import load as load_model
from fewstep.training.checkpoint import checkpoints, load_checkpoint, part
from fewstep.training.draws import Draws
from fewstep.training.lora import add_lora, layers, lora_parameters, merge_lora, set_scale
from fewstep.training.noise_classifier import exact_levels, noise_times, train_noise_classifier
from fewstep.training.sara import sara, smallest
from fewstep.training.state import TrainingState
from fewstep.training.trainer import train

SHARE_STEPS, BATCH, SHARE = 500, 64, 0.1
ABOUT = f"unet, {STEPS} steps of 64 digits at a constant rate, decay 0.99"
UNIT = "largest difference of a weight"
CLASS, SHOTS, LENGTHS, RANK = 3, 20, (15, 30, 60), 1
SLACK = 1.1  # of the other classes' distance from their digits, at which the two are compared


@torch.no_grad()
def _held_out(model: NetworkDenoiser) -> float:
    """Mean loss of the 360 held-out digits, each at eight noise levels spread evenly, under fixed noise."""
    images, generator = load_digits("validation")[0].repeat(8, 1, 1, 1), torch.Generator().manual_seed(0)
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
    images = load_digits("train")[0]
    draws = Draws(seed, len(images), SHARE)
    if arm == "fixed":
        images = images[draws.rows(0, round(SHARE * len(images)))]  # the first round's share, for good
        draws = Draws(seed, len(images))
    model = NetworkDenoiser(fresh(UNet, seed, width=(16, 32), classes=None), Flow(), "velocity", shape=(1, 8, 8))
    return _held_out(fit(model, _rows(draws, images), steps=SHARE_STEPS, batch=BATCH, lr=2e-3, seed=seed))


def _samples(seed: int) -> Outcome:
    state, real = trained("unet", seed), load_digits("train")[0]
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


def _merged(seed: int) -> Outcome:
    """An adapter of rank 4 on every layer, with random weights that change the answers."""
    model, generator = load_model("digits"), torch.Generator().manual_seed(seed)
    adapted = add_lora(model, 4)
    for parameter in lora_parameters(adapted):
        nn.init.normal_(parameter, std=0.05, generator=generator)
    x, label = Noise(seed).normal(0, (32, 1, 8, 8)), in_turn(32)
    worst = effect = 0.0
    with torch.no_grad():
        plain = merge_lora(adapted)
        for t in (0.05, 0.5, 5.0):
            time = torch.tensor(t)
            answers = [made((1 + t) * x, time, label=label).x0 for made in (adapted, plain, model)]
            worst = max(worst, float((answers[0] - answers[1]).abs().max()))
            effect = max(effect, float((answers[0] - answers[2]).abs().max()))
        set_scale(adapted, 0.0)
        same = torch.equal(adapted(x, time, label=label).x0, model(x, time, label=label).x0)
    about = "rank 4 on every layer of the digits' unet, 32 states at three noise levels; the adapter itself changes"
    about += f" answers by up to {effect:.2g}; at scale 0 they are {'' if same else 'not '}the base's bit for bit"
    return tolerance(worst, 1e-5, about, "largest difference of x0")


def _smallest_do_least(seed: int) -> Outcome:
    """How far samples move when the tenth of the weights that is smallest is set to zero, or a random tenth."""
    model, label = load_model("digits"), in_turn(64)
    made, rows = chain(model, 8), smallest(model, 0.1)[1]
    before = adapter_samples(model, made, 64, seed, label)
    generator, moved = torch.Generator().manual_seed(seed), []
    for chosen in (True, False):
        cut = copy.deepcopy(model)
        for path in layers(cut):
            weight = cut.network.get_submodule(path).weight
            assert isinstance(weight, Tensor)
            own = rows.get(path, torch.empty(0, dtype=torch.long))
            if not chosen:
                own = torch.randperm(weight.numel(), generator=generator)[: round(0.1 * weight.numel())]
            weight.data.view(-1)[own] = 0
        moved.append(gap(adapter_samples(cut, made, 64, seed, label), before))
    about = "digits, 64 samples of 8 evaluations, a tenth of the weights set to zero"
    return compared(moved, "a random tenth of every layer", about, unit="relative change of the samples")


def _measure(model: NetworkDenoiser, seed: int) -> tuple[float, float]:
    """Distance of the adapted class from held-out inverted digits, and of the other classes from theirs."""
    images, own = digits.load("validation")
    made, label = chain(model, 6), torch.cat([torch.full((60,), CLASS), in_turn(100)])
    model.eval()
    with torch.no_grad():
        x = adapter_samples(model, made, 160, 500 + seed, label)
    target = sliced(x[:60], -images[own == CLASS])
    return target, class_distance(x[60:], label[60:], [k for k in range(10) if k != CLASS])


@functools.cache
def _before() -> tuple[float, float]:
    return _measure(load_model("digits"), 0)


def _at_equal_retention(path: list[tuple[float, float]]) -> float:
    """The target's distance where the others' first exceeds its limit, linearly between runs of growing length; that of
    the longest where it never does."""
    limit = SLACK * _before()[1]
    for (target, kept), (later, lost) in pairwise(path):
        if lost > limit:
            return target + (later - target) * min(1.0, max(0.0, (limit - kept) / (lost - kept)))
    return path[-1][0]


@functools.cache
def _few_shot(seed: int) -> tuple[float, float, str]:
    """The target's distance of both methods, and what is said of them."""
    (images, own), base = data(), load_model("digits")
    count = int((own == CLASS).sum())
    shots = -images[own == CLASS][torch.randperm(count, generator=torch.Generator().manual_seed(seed))]
    draw = rows_of(shots[:SHOTS], label=torch.full((SHOTS,), CLASS))
    levels = NoiseLevels(base.process, "log-normal", mean=-1.2, std=1.2)
    options: dict[str, Any] = {"batch": 16, "lr": 3e-3, "levels": levels, "ema": 0.0, "seed": seed}
    low_rank, sparse = [_before()], [_before()]
    count = sum(p.numel() for p in lora_parameters(add_lora(base, RANK)))
    entries = sum(base.network.get_submodule(path).weight.numel() for path in layers(base))  # type: ignore[operator, misc, union-attr]
    for steps in LENGTHS:
        low_rank.append(_measure(fit(add_lora(base, RANK, seed=seed), draw, steps=steps, **options), seed))
        found = sara(base, draw, steps=steps, share=count / entries, **options)
        sparse.append(_measure(found.model, seed))
    said = f"{count} weights of LoRA (rank {RANK}), {found.chosen[0]} then {found.chosen[1]} of SaRA, whose optimiser"
    said += f" holds {found.optimiser_bytes / 1e3:.0f} kB of {found.full_bytes / 1e3:.0f} kB for all"
    return _at_equal_retention(sparse), _at_equal_retention(low_rank), said


def _against_lora(seed: int) -> Outcome:
    about = f"digits, class {CLASS} turned into its inverse by {SHOTS} pictures, runs of {', '.join(map(str, LENGTHS))}"
    about += " steps of 16; distance of the class from held-out inverted digits where the other classes' has grown by a"
    about += f" tenth; {_few_shot(seed)[2]}"
    unit = "sliced Wasserstein distance"
    return over_seeds(lambda s: _few_shot(s)[:2], "LoRA of as many weights", about, unit=unit)(seed)


CLAIMS = (
    slow("rs2", "a fresh tenth of the data every round beats a fixed tenth",
         arms(_loss, "fresh", "fixed", "one fixed tenth",
              f"unet on digits, {SHARE_STEPS} steps of {BATCH}, a tenth of the data a round", unit="held-out loss")),
    slow("ema", "averaged weights have a lower held-out loss than the last ones",
         lambda seed: compared([held_out(trained("unet", seed), averaged) for averaged in (True, False)],
                               "the last weights", ABOUT, unit="held-out loss")),
    slow("ema", "averaged weights sample better than the last ones", _samples),
    slow("noise-classifier", "has learned the posterior over noise levels", _posterior),
    slow("trainer", "a stopped run, resumed, ends in the same bits", _resume),
    slow("trainer", "a seed gives the same bits again", _same_seed),
    slow("lora", "merged into the weights, an adapter answers as before", _merged),
    slow("sara", "the smallest tenth of the weights does less than a random tenth", _smallest_do_least),
    slow("sara", "adapts further than LoRA before other classes suffer", _against_lora),
)  # fmt: skip
