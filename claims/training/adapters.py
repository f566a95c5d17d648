"""Claims of tuning a part of the weights."""

from __future__ import annotations

import copy
import functools
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from claims.common import Noise, Outcome, compared, gap, over_seeds, sliced, slow, tolerance
from claims.trained import NetworkDenoiser, NoiseLevels, fit, rows_of
from claims.tuning import chain, class_distance, data, in_turn, samples
from fewstep.data import digits
from fewstep.hub.models import load
from fewstep.training.lora import add_lora, layers, lora_parameters, merge_lora, set_scale
from fewstep.training.sara import sara, smallest

CLASS, SHOTS, LENGTHS, RANK = 3, 20, (15, 30, 60), 1
SLACK = 1.1  # of the other classes' distance from their digits, at which the two are compared


def _merged(seed: int) -> Outcome:
    """An adapter of rank 4 on every layer, with random weights that change the answers."""
    model, generator = load("digits"), torch.Generator().manual_seed(seed)
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
    model, label = load("digits"), in_turn(64)
    made, rows = chain(model, 8), smallest(model, 0.1)[1]
    before = samples(model, made, 64, seed, label)
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
        moved.append(gap(samples(cut, made, 64, seed, label), before))
    about = "digits, 64 samples of 8 evaluations, a tenth of the weights set to zero"
    return compared(moved, "a random tenth of every layer", about, unit="relative change of the samples")


def _measure(model: NetworkDenoiser, seed: int) -> tuple[float, float]:
    """Distance of the adapted class from held-out inverted digits, and of the other classes from theirs."""
    images, own = digits.load("validation")
    made, label = chain(model, 6), torch.cat([torch.full((60,), CLASS), in_turn(100)])
    model.eval()
    with torch.no_grad():
        x = samples(model, made, 160, 500 + seed, label)
    target = sliced(x[:60], -images[own == CLASS])
    return target, class_distance(x[60:], label[60:], [k for k in range(10) if k != CLASS])


@functools.cache
def _before() -> tuple[float, float]:
    return _measure(load("digits"), 0)


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
    (images, own), base = data(), load("digits")
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
    slow("lora", "merged into the weights, an adapter answers as before", _merged),
    slow("sara", "the smallest tenth of the weights does less than a random tenth", _smallest_do_least),
    slow("sara", "adapts further than LoRA before other classes suffer", _against_lora),
)  # fmt: skip
