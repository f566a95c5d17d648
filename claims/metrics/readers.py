"""Claims of the metrics that read what a picture shows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from claims.common import Claim, Outcome, compared, experiment, slow, tolerance
from claims.problems import digits
from fewstep.data.captions import COLOURS, OPPOSITE, SHAPES, SIZES, Spec, Thing
from fewstep.data.digits import load
from fewstep.data.shapes import STROKE, captions, draw, render_specs, scenes
from fewstep.metrics.accuracy import class_accuracy
from fewstep.metrics.caption_accuracy import caption_accuracy
from fewstep.metrics.shapes_reward import soft_scores
from fewstep.metrics.shapes_verifier import check, in_outline

N = 60
VERIFIER_N = 2000
NOISE = "Gaussian noise of deviation 0.2"
REWARD_N = 300


def _real(seed: int) -> Outcome:
    found = class_accuracy(*load("validation"))
    return Outcome(found.value, 0.95, "demand", f"{found.n} held-out digits", better="high", unit="accuracy")


def _dealt(seed: int) -> Outcome:
    images, labels = load("validation")
    mixed = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    found = class_accuracy(images, mixed)
    return tolerance(abs(found.value - 0.1), 0.05, f"{found.n} held-out digits, labels shuffled", "|accuracy - 1/10|")


def _samples(seed: int) -> Outcome:
    on = digits(seed)
    labels = on.condition["label"]
    figures = [class_accuracy(on.reference, label).value for label in (labels, (labels + 1) % 10)]
    about = f"{len(labels)} samples of the embedded digits, 100 evaluations"
    return compared(figures, "the next class's label", about, better="high", unit="accuracy")


def _others(seed: int) -> Outcome:
    rows = torch.arange(seed * N, (seed + 1) * N)
    pictures, asked = draw(rows, "validation")[0], captions(rows, "validation")
    figures = [caption_accuracy(pictures, captions).value for captions in (asked, asked[1:] + asked[:1])]
    against, about = "each picture read against the next one's caption", f"{N} held-out pictures"
    return compared(figures, against, about, better="high", unit="share that shows what was asked")


def _pictures(seed: int, n: int = VERIFIER_N) -> tuple[Tensor, list[Spec]]:
    """Pictures of held-out combinations, and what they show with every attribute."""
    rows = torch.arange(seed * n, (seed + 1) * n)
    return draw(rows, "validation")[0], scenes(rows, "validation")


def _noisy(images: Tensor, seed: int) -> Tensor:
    return images + 0.2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))


def _blurred(images: Tensor, seed: int) -> Tensor:
    kernel = torch.exp(-0.5 * torch.arange(-6, 7) ** 2)
    kernel = (kernel / kernel.sum()).repeat(3, 1)
    images = functional.pad(images, [6] * 4, mode="replicate")
    images = functional.conv2d(images, kernel.view(3, 1, 1, 13), groups=3)
    return functional.conv2d(images, kernel.view(3, 1, 13, 1), groups=3)


@experiment
def _confirmed(seed: int, n: int, changed: Callable[[Tensor, int], Tensor], least: float, by: str) -> Outcome:
    """How many pictures still show what they showed."""
    images, shown = _pictures(seed, n)
    share = check(changed(images, seed), [spec.caption for spec in shown]).full.float().mean().item()
    about = f"{n} held-out pictures, all attributes named, {by}"
    return Outcome(share, least, "demand", about, better="high", unit="captions confirmed")


def _clean(seed: int) -> Outcome:
    images, shown = _pictures(seed)
    wrong = 1 - check(images, [spec.caption for spec in shown]).full.double().mean().item()
    about = f"{VERIFIER_N} held-out pictures, all attributes named"
    return Outcome(wrong, 1 / VERIFIER_N, "one in two thousand", about, unit="captions denied")


def altered(spec: Spec, draw: Tensor) -> Spec:
    """The spec with one attribute of one thing, or the relation, changed; `draw` is three numbers in [0, 1)."""
    which, what, value = draw.tolist()
    k = int(which * len(spec.things))
    thing = spec.things[k]
    kinds = ("colour", "shape", "size", "relation")[: 3 + len(spec.things) // 2]
    kind = kinds[int(what * len(kinds))]
    if kind == "relation":
        return Spec(spec.things, None, OPPOSITE[str(spec.relation)])
    words = {"colour": COLOURS, "shape": SHAPES, "size": SIZES}[kind]
    others = [word for word in words if word != getattr(thing, kind)]
    changed = Thing(**(vars(thing) | {kind: others[int(value * len(others))]}))
    return Spec((*spec.things[:k], changed, *spec.things[k + 1 :]), spec.place, spec.relation)


def _wrong(seed: int) -> Outcome:
    images, shown = _pictures(seed)
    draws = torch.rand(VERIFIER_N, 3, generator=torch.Generator().manual_seed(seed))
    asked = [altered(spec, draw).caption for spec, draw in zip(shown, draws, strict=True)]
    share = check(_noisy(images, seed + 1), asked).full.double().mean().item()
    about = f"{VERIFIER_N} held-out pictures under noise of 0.2, one attribute of each caption changed"
    return tolerance(share, 0.001, about, "captions confirmed")


def _ranks(seed: int) -> Outcome:
    """Right pictures against others that differ in one attribute, each where it likes."""
    rows = torch.arange(seed * REWARD_N, (seed + 1) * REWARD_N)
    shown = scenes(rows, "validation")
    asked = [spec.caption for spec in shown]
    draws = torch.rand(REWARD_N, 3, generator=torch.Generator().manual_seed(seed))
    wrong = render_specs([altered(spec, u) for spec, u in zip(shown, draws, strict=True)], seed)
    right = draw(rows, "validation")[0]
    lost = (soft_scores(right, asked) <= soft_scores(wrong, asked)).double().mean().item()
    about = f"{REWARD_N} pairs of pictures, one attribute apart"
    return Outcome(lost, 1 / REWARD_N, f"one in {REWARD_N}", about, unit="pairs misjudged")


def _ascent(seed: int) -> Outcome:
    """Pictures of other captions, before and after the ascent."""
    n = 48
    rows = torch.arange(seed * n, (seed + 1) * n)
    asked, x = [spec.caption for spec in scenes(rows, "validation")], draw(rows, "train")[0]
    before = check(x, asked).full.double().mean().item()
    for _ in range(40):
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(soft_scores(x, asked).sum(), x)
        x = (x + 40 * gradient).detach()
    after = check(x, asked).full.double().mean().item()
    about = f"{n} pictures of other captions, 40 steps of 40 times the gradient"
    return Outcome(after, before, "the pictures before", about, better="high", unit="captions confirmed")


def _styles(seed: int) -> Outcome:
    """The same scenes in outline and filled, clean and under noise."""
    rows, worst = torch.arange(seed, seed + REWARD_N), 0.0
    for stroke in (STROKE, None):
        clean = draw(rows, "validation", stroke)[0]
        noise = 0.2 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
        for images in (clean, clean + noise):
            worst = max(worst, float((in_outline(images) != (stroke is not None)).double().mean()))
    about = f"{REWARD_N} pictures in outline, as many filled, clean and under {NOISE}"
    return tolerance(worst, 0.01, about, "largest share read wrong")


CLAIMS = (
    Claim("accuracy", "is near 1 on real digits", _real),
    Claim("accuracy", "is 1/10 on labels dealt at random", _dealt),
    slow("accuracy", "tells samples of the class asked for from those of another", _samples),
    Claim("captions", "tells pictures of what was asked for from those of something else", _others),
    slow("shapes-verifier", "confirms 99 % of captions under noise of 0.2", _confirmed(400, _noisy, 0.99, NOISE)),
    slow("shapes-verifier", "reads clean pictures exactly", _clean),
    slow("shapes-verifier", "confirms 99 % of 2000 captions under noise", _confirmed(VERIFIER_N, _noisy, 0.99, NOISE)),
    slow("shapes-verifier", "confirms 98 % of captions under a blur of one pixel",
         _confirmed(VERIFIER_N, _blurred, 0.98, "Gaussian blur of one pixel")),
    slow("shapes-verifier", "denies captions that are wrong in one attribute", _wrong),
    slow("outline-verifier", "tells 99 % of shapes in outline from filled ones", _styles),
    slow("shapes-reward", "is higher on right pictures than on those wrong in one attribute", _ranks),
    slow("shapes-reward", "leads pictures to what their captions ask", _ascent),
)  # fmt: skip
