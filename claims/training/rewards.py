"""Claims of tuning by rewards and preferences."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise as neighbours
from typing import Any

import torch
from torch import Tensor, nn

from claims import tuning
from claims.common import F64, VP, Claim, Noise, Outcome, arms, compared, experiment, gap, plan, slow, tolerance
from claims.problems import smooth
from claims.trained import NetworkDenoiser, NoiseLevels, fit, rows_of
from claims.tuning import chain, class_distance, data, in_turn, labels, samples
from fewstep.data import shapes
from fewstep.data.captions import detokenize
from fewstep.hub.models import load
from fewstep.metrics.rewards import Reward, ink, symmetry
from fewstep.metrics.shapes_reward import soft_scores
from fewstep.metrics.shapes_verifier import check
from fewstep.training.lora import add_lora, lora_parameters
from fewstep.training.pairwise import pairwise
from fewstep.training.reward import reward_samples, tune
from fewstep.training.short_chain import short_chain
from fewstep.training.text_encoder import interpolate_encoders, tune_text_encoder

STEPS, SAMPLES = 60, 300
LONG, BATCH = 50, 16
# Steps for one budget of about 620 evaluations a sample, one with a gradient counted as three: 69 x 9 on chains of two
# and four, 12 x 52 through the last of fifty, 4 x 150 through all fifty.
BUDGET = {"short": 69, "truncated": 12, "full": 4}
NFE, CAPTIONS = 6, 96
TUNING: dict[str, Any] = {"steps": 20, "batch": 12, "lr": 3e-4, "every": 1000, "fresh": 12}
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def _measured(model: NetworkDenoiser, seed: int) -> tuple[float, float, float]:
    """Share of the preferred, distance from the class's digits, energy of the high frequencies."""
    x, label = tuning.student_samples(model, SAMPLES, 700 + seed), in_turn(SAMPLES)
    return float(tuning.heavy(x, label).mean()), class_distance(x, label), tuning.detail(x)


@functools.cache
def _tuned(way: str, seed: int) -> tuple[float, float, float]:
    """By "pairs", or by "denoising" as diffusion models are trained, on the digits that are preferred."""
    model = copy.deepcopy(tuning.student())
    if way == "pairs":
        times = [*tuning.STUDENT_TIMES[:-1], model.process.t_zero]
        options: dict[str, Any] = {"conditions": labels, "batch": 32, "lr": 3e-4, "beta": 0.1, "last_std": 0.5}
        pairwise(model, times, steps=STEPS, score=lambda x, label: tuning.heavy(x, label), seed=seed, **options)
        return _measured(model, seed)
    images, own = data()
    kept = tuning.heavy(images, own) > 0
    levels = NoiseLevels(model.process, "log-normal", mean=-1.2, std=1.2)
    draw = rows_of(images[kept], label=own[kept])
    return _measured(fit(model, draw, steps=STEPS, batch=64, lr=3e-4, levels=levels, ema=0.0, seed=seed), seed)


@experiment
def _compare(seed: int, part: int, unit: str, better: str = "high") -> Outcome:
    """One of the three figures of `_measured`."""
    before = _measured(tuning.student(), 0)
    ours, theirs = (sum(_tuned(way, s)[1] for s in (seed, seed + 1, seed + 2)) / 3 for way in ("pairs", "denoising"))
    about = "two-step student of the digits; preferred: more ink than the class's median, no more than its most;"
    about += f" {STEPS} steps of 32 pairs or 64 pictures; the student itself: preferred {before[0]:.2f}, high-frequency"
    about += f" energy {before[2]:.3f}, distance of a class from its digits {before[1]:.3f}, which becomes {ours:.3f}"
    about += f" and {theirs:.3f}"
    against = "denoising on the preferred digits, as many steps"
    return arms(lambda way, s: _tuned(way, s)[part], "pairs", "denoising", against, about, better, unit)(seed)


def _finite_differences(seed: int) -> Outcome:
    """The gradient of a reward in a mixture's log-weights, by autograd through five steps and by differences."""
    model = copy.deepcopy(smooth(VP()))
    model.log_weights = nn.Parameter(model._buffers.pop("log_weights").clone())  # type: ignore[union-attr, assignment]
    made, noise = plan(model.process, "dpmpp-2m", 5), Noise(seed).normal(0, (16, 2), "cpu", F64)

    def reward(x: Tensor) -> Tensor:
        return -(x - 0.5).square().sum(1).mean()

    (gradient,) = torch.autograd.grad(reward(reward_samples(model, noise, made, "full")), model.log_weights)
    flat, found = model.log_weights.detach(), torch.zeros_like(gradient)
    for k in range(len(flat)):
        for sign in (1, -1):
            flat[k] += sign * 1e-5
            found[k] += sign * reward(made(model, noise, dtype=F64)) / 2e-5
            flat[k] -= sign * 1e-5
    about = "full gradient in the 5 log-weights of the smooth mixture, dpmpp-2m of 5 steps, central differences of 1e-5"
    return tolerance(gap(gradient, found), 1e-6, about, "relative error")


@functools.cache
def _bounds() -> tuple[Tensor, Tensor]:
    """Per class: the median ink, and the 95th percentile of a digit's distance to the nearest other, (10,) each."""
    images, own = data()
    flat, near = images.flatten(1), []
    for k in range(10):
        distance = torch.cdist(flat[own == k], flat[own == k])
        near.append(distance.fill_diagonal_(math.inf).min(1).values.quantile(0.95))
    return torch.stack([ink(images[own == k]).median() for k in range(10)]), torch.stack(near)


def _still_digits(x: Tensor, label: Tensor) -> Tensor:
    """Whether a picture has more ink than its class's median and is as near a digit of the class as digits are."""
    (median, limit), (images, own) = _bounds(), data()
    distance = torch.cdist(x.flatten(1), images.flatten(1))
    distance = distance.masked_fill(label[:, None] != own[None, :], math.inf).min(1).values
    return ((ink(x) > median[label]) & (distance <= limit[label])).float()


@torch.no_grad()
def _share(model: NetworkDenoiser, seed: int) -> float:
    """Of 200 new samples: how many are still digits, with more ink."""
    label = in_turn(200)
    return float(_still_digits(samples(model, chain(model, 6), 200, 900 + seed, label), label).mean())


def _hacked(verified: bool, seed: int) -> float:
    model = load("digits")
    options: dict[str, Any] = {"steps": 40, "batch": 16, "lr": 3e-4, "conditions": labels, "seed": seed, "fresh": 60}
    options |= {"verify": _still_digits, "every": 5} if verified else {"verify": None, "every": 40}
    tune(model, lambda x, **_: ink(x), chain(model, 6), **options)
    return _share(model, seed)


def _verified(seed: int) -> Outcome:
    about = "digits, reward: ink, gradient through the last of 6 evaluations; share of 200 new samples with more ink"
    about += " than their class's median that are as near a digit of it as digits are to each other; untuned"
    about += f" {_share(load('digits'), seed):.2f}"
    return arms(_hacked, True, False, "no verifier, all 40 steps", about, better="high")(seed)


def _symmetric(model: NetworkDenoiser, seed: int) -> float:
    with torch.no_grad():
        return float(symmetry(samples(model, chain(model, 6), 200, 900 + seed, in_turn(200))).mean())


def _through(method: str, seed: int) -> float:
    """Equal evaluations, one with a gradient counted as three: 12 x 18 through all six, 27 x 8 through the last."""
    model = load("digits")
    options: dict[str, Any] = {"steps": {"full": 12, "truncated": 27}[method], "batch": 16, "lr": 3e-4, "seed": seed}
    options |= {"method": method, "segment": 6, "conditions": labels, "every": 100, "fresh": 20}
    tune(model, lambda x, **_: symmetry(x), chain(model, 6), **options)
    return _symmetric(model, seed)


def _full(seed: int) -> Outcome:
    about = "digits, reward: left-right symmetry, 6 evaluations, 12 steps of 16 through all of them: as many"
    about += f" evaluations, one with a gradient counted as three; untuned {_symmetric(load('digits'), seed):.3f}"
    against, unit = "the last evaluation alone, 27 steps", "reward of 200 new samples"
    return arms(_through, "full", "truncated", against, about, better="high", unit=unit)(seed)


def _reward(x: Tensor, **condition: Tensor) -> Tensor:
    return symmetry(x)


@torch.no_grad()
def _on_the_long_chain(model: NetworkDenoiser, seed: int) -> float:
    return float(symmetry(samples(model, chain(model, LONG), 100, 900 + seed, in_turn(100))).mean())


@functools.cache
def _rewarded(way: str, seed: int) -> float:
    model = load("digits")
    options: dict[str, Any] = {"steps": BUDGET[way], "batch": BATCH, "lr": 1e-3, "conditions": labels, "seed": seed}
    options |= {"every": 1000, "fresh": 10, "segment": LONG}
    if way == "short":
        return _on_the_long_chain(short_chain(model, _reward, **options).model, seed)  # type: ignore[arg-type]
    adapted = add_lora(model, 4, seed=seed)
    tune(adapted, _reward, chain(model, LONG), method=way, parameters=lora_parameters(adapted), **options)
    return _on_the_long_chain(adapted, seed)


@experiment
def _against(seed: int, way: str, against: str) -> Outcome:
    about = f"digits, reward: left-right symmetry, adapters of rank 4, {BUDGET['short']} steps of {BATCH} on chains of"
    about += f" 2 and 4 evaluations: as many evaluations, one with a gradient counted as three; sampled with {LONG}"
    about += f" evaluations, untuned {_on_the_long_chain(load('digits'), seed):.3f}"
    against, unit = f"{against}, {BUDGET[way]} steps", "reward of 100 new samples"
    return arms(_rewarded, "short", way, against, about, better="high", unit=unit)(seed)


def _memory(seed: int) -> Outcome:
    """The most that one gradient of 16 samples holds: all of a short chain, all of a long one by segments."""
    adapted = add_lora(load("digits"), 4)
    noise, label = Noise(seed).normal(0, (BATCH, 1, 8, 8)), in_turn(BATCH)

    def held(nfe: int, method: str) -> float:
        def gradient() -> None:
            x = reward_samples(adapted, noise, chain(adapted, nfe), method, 1, label=label)
            torch.autograd.grad(symmetry(x).mean(), lora_parameters(adapted))

        return tuning.peak_bytes(gradient) / 1e6

    figures = held(4, "full"), held(LONG, "full")
    about = f"digits, one gradient of {BATCH} samples through 4 evaluations by segments of 2; through the last of"
    about += f" {LONG} alone {held(LONG, 'truncated'):.0f} MB"
    return compared(figures, f"all of {LONG} evaluations, also by segments", about, unit="peak of tensors in MB")


def _match(x: Tensor, text: Tensor) -> Tensor:
    """How well pictures show what the captions ask for."""
    return soft_scores(x, detokenize(text))


def _redder(x: Tensor, text: Tensor) -> Tensor:
    return (x[:, 0] - x[:, 2]).flatten(1).mean(1)


@functools.cache
def _captions(split: str, count: int) -> tuple[str, ...]:
    return tuple(shapes.captions(torch.arange(count), split))


def _encoder(reward: Reward, seed: int, anchor: float) -> NetworkDenoiser:
    model, words = load("shapes"), _captions("train", 512)
    found = tune_text_encoder(model, reward, words, chain(model, NFE), anchor=anchor, seed=seed, **TUNING)
    assert isinstance(found.model, NetworkDenoiser)
    return found.model


@torch.no_grad()
def _pictures(model: NetworkDenoiser, captions: Sequence[str], seed: int) -> Tensor:
    noise = Noise(800 + seed).normal(0, (len(captions), *(model.shape or ())))
    return chain(model, NFE)(model, noise, text=list(captions))


def _held_out(seed: int) -> Outcome:
    """Share of validation captions whose pictures show all that was asked, with the encoder tuned and as it came."""
    captions = list(_captions("validation", CAPTIONS))
    soft: dict[bool, list[float]] = {True: [], False: []}

    def figure(tuned: bool, s: int) -> float:
        x = _pictures(_encoder(_match, s, 0.1) if tuned else load("shapes"), captions, s)
        soft[tuned].append(float(soft_scores(x, captions).mean()))
        return float(check(x, captions).full.float().mean())

    about = f"shapes, {NFE} evaluations, 20 steps of 12 on other captions, verified on {CAPTIONS} validation captions"
    unit = "share of pictures right in all that was asked"
    found = arms(figure, True, False, "the encoder as it came", about, better="high", unit=unit)(seed)
    said = f"; the reward itself, tuned and not: {sum(soft[True]) / 3:.3f} and {sum(soft[False]) / 3:.3f}"
    return replace(found, conditions=found.conditions + said)


def _between(seed: int) -> Outcome:
    """Red minus blue of the pictures of encoders between one tuned to be bluer and one to be redder."""
    captions, colour = list(_captions("validation", CAPTIONS)), []
    blue, red = (_encoder(reward, seed, 0.0) for reward in (lambda x, text: -_redder(x, text), _redder))
    for share in SHARES:
        x = _pictures(interpolate_encoders(blue, red, share), captions, seed)
        colour.append(float(_redder(x, x).mean()))
    about = f"shapes, {NFE} evaluations, encoders {', '.join(map(str, SHARES))} of the way from one tuned to be bluer"
    about += f" to one tuned to be redder; red minus blue is {', '.join(f'{value:.4f}' for value in colour)}"
    rise = min(b - a for a, b in neighbours(colour))
    return Outcome(rise, 0.0, "no change", about, better="high", unit="smallest rise between neighbours")


CLAIMS = (
    slow("pso", "raises the share of preferred samples more than denoising on preferred data",
         _compare(0, f"share of {SAMPLES} samples")),
    slow("pso", "keeps more fine detail than denoising on preferred data",
         _compare(2, "energy of the high frequencies")),
    slow("pso", "stays as near to the class's digits as denoising on preferred data",
         _compare(1, "sliced Wasserstein distance", "low")),
    Claim("draft", "the gradient through a plan is that of finite differences", _finite_differences),
    slow("draft", "a verifier on fresh noises stops reward hacking", _verified),
    slow("draft", "the whole chain's gradient raises symmetry more than the last step's", _full),
    slow("shortft", "raises the long chain's reward more than the gradient of its last step",
         _against("truncated", f"the last of {LONG} evaluations (DRaFT-1)")),
    slow("shortft", "raises the long chain's reward more than that chain's whole gradient",
         _against("full", f"all {LONG} evaluations")),
    slow("shortft", "a gradient holds less than the long chain's", _memory),
    slow("textcraftor", "tuned alone, the encoder makes more of new captions come out right", _held_out),
    slow("textcraftor", "between two tuned encoders the attribute moves one way", _between),
)  # fmt: skip
