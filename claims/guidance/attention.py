"""Claims of the methods that lead away from a weak version of the model: another one, or itself made worse.

A weak answer costs a second row, so the model without guidance takes twice the evaluations.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fewstep
from claims.claim import Claim, Outcome, compared, experiment, over_seeds, slow, thrice, tolerance
from claims.common import F64, frechet, plan, sample
from claims.parts import EDM, Denoiser, GaussianMixture
from claims.short_run import advance, start
from fewstep.data.digits import load as load_digits
from fewstep.guidance.guide import guide
from fewstep.hub.models import load as load_model
from fewstep.metrics.digits_classifier import digits_classifier
from fewstep.metrics.precision_recall import PrecisionRecall, precision_recall
from fewstep.metrics.shapes_verifier import verify
from fewstep.training.recipe import Recipe

DIGITS, SCENES, STEPS = 360, 128, 20
SHORT = 800  # steps of training, a fifth of the recipe's
ROWS = f"{STEPS} evaluations of two rows by dpmpp-2m against {2 * STEPS} of one"
WITHOUT = "no guidance, equal rows"
SCALES = {"sag": 0.5, "blur": 0.25}
BLURS = (0.0, 0.125, 0.25)  # scales of blur guidance, among which that of a recall is interpolated


@functools.cache
def _early(seed: int) -> Denoiser:
    """The digits' recipe with a fifth of its steps, trained from a seed."""
    settings = Recipe.read(Path(fewstep.__file__).parent / "recipes" / "digits.toml").to_dict()
    state = start(Recipe.from_dict(settings | {"train": settings["train"] | {"steps": SHORT, "seed": seed}}))
    advance(state, SHORT)
    return state.averaged()


@functools.cache
def _real() -> Tensor:
    return torch.cat([load_digits(split)[0] for split in ("train", "validation")])


@functools.cache
def _drawn(model: str, method: str, scale: float, seed: int) -> Tensor:
    """Samples without a condition of "digits", "early" or "shapes", guided or, with method "", in twice the steps."""
    base, options = _early(seed) if model == "early" else load_model(model), {}
    if method == "autoguidance":
        options = {"weak": _early(seed)}
    guided = guide(base, method, scale=scale, **options) if method else base
    n = SCENES if model == "shapes" else DIGITS
    return sample(guided, n, steps=STEPS if method else 2 * STEPS, solver="dpmpp-2m", seed=seed)


def _distance(x: Tensor) -> float:
    return frechet(x, _real(), "digits").value


def _sure(x: Tensor) -> float:
    """The classifier's mean probability of the class that it takes each sample for."""
    return float(digits_classifier()(x).softmax(1).amax(1).mean())


def _near(x: Tensor) -> PrecisionRecall:
    return precision_recall(x, _real(), "digits")


def _scenes(x: Tensor) -> float:
    """The share of pictures of one or two known shapes in known colours and nothing else."""
    found = verify(x.clamp(-1, 1))
    whole = (s.clean and len(s.things) in (1, 2) and all(one.colour and one.shape for one in s.things) for s in found)
    return sum(whole) / len(x)


FIGURES: dict[str, tuple[Any, str, str]] = {
    "frechet": (_distance, "low", "Frechet distance in the classifier's features"),
    "precision": (lambda x: _near(x).precision, "high", "precision"),
    "recall": (lambda x: _near(x).recall, "high", "recall"),
    "sure": (_sure, "high", "mean confidence of the classifier"),
    "scenes": (_scenes, "high", "share of pictures of known shapes alone"),
}


def _against_rows(model: str, method: str, scale: float, figure: str) -> Any:
    measure, better, unit = FIGURES[figure]
    n = SCENES if model == "shapes" else DIGITS
    what = {"early": f"digits, {SHORT} steps of training", "shapes": "shapes without captions"}
    about = f"{what.get(model, 'digits without labels')}, {n} samples, scale {scale:g}, {ROWS}"
    return over_seeds(
        lambda seed: [measure(_drawn(model, *arm, seed)) for arm in ((method, scale), ("", 0.0))],
        WITHOUT, about, better, unit,
    )  # fmt: skip


@experiment
def _law(seed: int, a: float, b: float, w: float) -> Outcome:
    """The variance at the end of two Gaussians against the closed form."""
    models = [GaussianMixture(torch.ones(1), torch.zeros(1, 1), std**2, EDM()) for std in (a, b)]
    guided, top = guide(models[0], "autoguidance", weak=models[1], scale=w), 80.0
    made = plan(EDM(), "heun", timesteps=[*np.geomspace(top, 1e-3, 400).tolist(), 0.0])
    found = float(made(guided, torch.ones(1, 1, dtype=F64), dtype=F64)) ** 2
    exact = top**2 * (a**2 / (a**2 + top**2)) ** w * (b**2 / (b**2 + top**2)) ** (1 - w)
    return tolerance(abs(found / exact - 1), 2e-3, f"N(0, {a}^2) led away from N(0, {b}^2), w {w:g}, 400 steps of heun",
                     "relative error of the variance")  # fmt: skip


def _matched(seed: int) -> Outcome:
    """Precision of sag, and of blur guidance at the scale at which its recall is sag's."""
    ours = _near(_drawn("early", "sag", SCALES["sag"], seed))
    blurs = [_near(_drawn("early", "blur" if scale else "", scale, seed)) for scale in BLURS]
    recalls, precisions = ([getattr(one, name) for one in blurs] for name in ("recall", "precision"))
    order = np.argsort(recalls)
    theirs = float(np.interp(ours.recall, np.array(recalls)[order], np.array(precisions)[order]))
    about = f"digits, {SHORT} steps of training, {DIGITS} samples, sag at scale {SCALES['sag']:g}, {STEPS} evaluations"
    return compared([ours.precision, theirs], "blur guidance at the same recall", about, "high", "precision")


CLAIMS = (
    Claim("autoguidance", "ends two Gaussians in the variance of their powers", _law(0.5, 0.8, 2.0)),
    slow("autoguidance", "digits come closer to the data", _against_rows("digits", "autoguidance", 1.5, "frechet")),
    slow("pag", "digits come closer to the data", _against_rows("digits", "pag", 0.25, "frechet")),
    slow("pag", "more scenes show known shapes alone", _against_rows("shapes", "pag", 1.0, "scenes")),
    slow("seg", "digits come closer to the data", _against_rows("digits", "seg", 0.25, "frechet")),
    slow("seg", "more scenes show known shapes alone", _against_rows("shapes", "seg", 3.0, "scenes")),
    slow("slg", "digits come closer to the data", _against_rows("digits", "slg", 0.25, "frechet")),
    slow("slg", "more scenes show known shapes alone", _against_rows("shapes", "slg", 0.5, "scenes")),
    *(
        slow(name, f"digits of an under-trained network {words}", _against_rows("early", name, SCALES[name], figure))
        for name in SCALES
        for figure, words in (("sure", "are surer"), ("precision", "are more precise"), ("recall", "are as various"))
    ),
    slow("sag", "is more precise than blur guidance of the same recall", thrice(_matched)),
)  # fmt: skip
