"""Claims of routing by the caption, on captions that the router was not fitted to.

All options draw the same noises. A router's quality at a cost is that of the price at which it costs as much. What it
is held against is the best that fixed options do on the held-out captions themselves: the upper hull of their points,
which is the best coin between two of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from scipy.stats import spearmanr
from torch import Tensor

from claims.common import Outcome, slow, thrice
from fewstep.data.captions import parse
from fewstep.hub.models import load as load_model
from fewstep.serving.routing import Option, Router, along, budget_curve, fit_router, mixture
from fewstep.serving.scoring import Scores, score, shapes_captions

FITTED, HELD = 400, 400
OPTIONS = (
    Option("shapes", 1), Option("shapes", 2), Option("shapes", 4),
    Option("shapes", 4, guidance=2.0), Option("shapes", 6, guidance=2.0), Option("shapes", 8, guidance=2.0),
)  # fmt: skip
PRICE = 0.1
LESS = 0.02
RIGHT = "share of right pictures"


@functools.cache
def _scored(seed: int) -> tuple[Scores, Scores]:
    """Scores to fit to, and held-out ones of combinations that no training picture shows."""
    models = {"shapes": load_model("shapes")}
    fitted = shapes_captions(FITTED, 10 + seed)
    held = shapes_captions(HELD, 20 + seed, without=fitted, split="validation")
    return score(models, OPTIONS, fitted, seed=100 + seed), score(models, OPTIONS, held, seed=200 + seed)


@functools.cache
def _router(seed: int, predictor: str) -> Router:
    known = _scored(seed)[0]
    settings = {"seed": seed} if predictor == "learned" else {}
    return fit_router(known.captions, known.options, known.quality, predictor, **settings)


@functools.cache
def _curves(seed: int, predictor: str) -> tuple[Tensor, Tensor, list[float]]:
    """The router's budget curve, the points of the fixed options, and their costs."""
    held = _scored(seed)[1]
    costs = [option.cost for option in held.options]
    fixed = torch.stack((torch.tensor(costs, dtype=torch.float64), held.quality.mean(0)), dim=1)
    return budget_curve(_router(seed, predictor).predict(held.captions), held.quality, costs), fixed, costs


def _about(predictor: str) -> str:
    return (
        f"embedded shapes, {len(OPTIONS)} options of 1 to 16 evaluations of the network, {predictor}, fitted to"
        f" {FITTED} captions with one picture each; {HELD} held-out captions"
    )


def _area(predictor: str) -> Callable[[int], Outcome]:
    def run(seed: int) -> Outcome:
        curve, fixed, costs = _curves(seed, predictor)
        grid = torch.linspace(min(costs), max(costs), 101, dtype=torch.float64).tolist()
        both = ((along, curve), (mixture, fixed))
        ours, theirs = (sum(read(each, cost) for cost in grid) / len(grid) for read, each in both)
        unit = f"{RIGHT}, mean over budgets"
        return Outcome(ours, theirs, "the best mixture of fixed options", _about(predictor), "high", unit)

    return run


def _at_half(seed: int) -> Outcome:
    curve, fixed, costs = _curves(seed, "learned")
    budget = max(costs) / 2
    about = f"{_about('learned')}; mean cost {budget:g}"
    return Outcome(
        along(curve, budget), mixture(fixed, budget), "the best mixture of fixed options", about, "high", RIGHT
    )


def _against(which: int, name: str) -> Callable[[int], Outcome]:
    """The router at the cost of a fixed option."""

    def run(seed: int) -> Outcome:
        curve, fixed, costs = _curves(seed, "learned")
        about = f"{_about('learned')}; mean cost {costs[which]:g}"
        return Outcome(along(curve, costs[which]), float(fixed[which, 1]), name, about, "high", RIGHT)

    return run


def _cost_of(seed: int) -> Outcome:
    """Evaluations for nearly what always taking the dearest reaches."""
    curve, fixed, costs = _curves(seed, "learned")
    wanted = float(fixed[-1, 1]) - LESS
    grid = torch.linspace(min(costs), max(costs), 601, dtype=torch.float64).tolist()
    ours, theirs = (
        next((cost for cost in grid if read(each, cost) >= wanted), max(costs))
        for read, each in ((along, curve), (mixture, fixed))
    )
    about = f"{_about('learned')}; for what always the dearest reaches, less {LESS:g}"
    return Outcome(ours, theirs, "the best mixture of fixed options", about, "low", "evaluations a picture")


def _ranked(seed: int) -> Outcome:
    held, router = _scored(seed)[1], _router(seed, "learned")
    things = [len(parse(caption).things) for caption in held.captions]
    taken = [held.options[k].cost for k in router.choices(router.predict(held.captions), PRICE).tolist()]
    chance = 2.576 / (HELD - 1) ** 0.5
    about = f"{_about('learned')}; price {PRICE:g}"
    return Outcome(
        float(spearmanr(things, taken).statistic), chance, "what one in 200 reaches by chance", about, "high",
        "rank correlation of things and evaluations",
    )  # fmt: skip


def _predictors(seed: int) -> Outcome:
    ours, theirs = (_area(name)(seed) for name in ("learned", "knn"))
    return Outcome(ours.ours, theirs.ours, "the nearest captions' mean", _about("both"), "high", ours.unit)


CLAIMS = (
    slow("cost-routing", "learned from scored captions, beats every mixture of fixed options over all budgets",
         thrice(_area("learned"))),
    slow("cost-routing", "by the nearest scored captions, too, over all budgets", thrice(_area("knn"))),
    slow("cost-routing", "and at half of the dearest option's cost", thrice(_at_half)),
    slow("cost-routing", "gives more right pictures than always 4 evaluations, at their cost",
         thrice(_against(2, "always 4 evaluations"))),
    slow("cost-routing", "gives more right pictures than always 6 guided evaluations, at their cost",
         thrice(_against(4, "always 6 guided evaluations"))),
    slow("cost-routing", "gives more right pictures than always the dearest, at its cost",
         thrice(_against(5, "always the dearest"))),
    slow("cost-routing", "reaches nearly what always the dearest reaches for fewer evaluations", thrice(_cost_of)),
    slow("cost-routing", "spends more on captions with more things", thrice(_ranked)),
    slow("cost-routing", "learned is better than nearest captions", thrice(_predictors)),
)  # fmt: skip
