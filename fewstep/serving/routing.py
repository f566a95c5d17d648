"""Which model, in how many steps, for which caption: what quality is to be expected, minus the price of its cost.

Of M options (models, step counts, guidance) a router predicts, from the caption c alone, the quality q_m(c) in [0, 1]
that each would reach, and takes

    argmax_m  q_m(c) - price cost_m / max cost,

the cheaper one of equals. So a price of 0.1 gives a tenth of the quality for the dearest option's whole cost, whatever
costs are counted in; all prices from 0 on trace the budget curve. The predictors are fitted to captions of which every
option has been scored: an average over the nearest of them, or a small transformer. Source: Cost-Aware Routing for
Efficient Text-To-Image Generation (Li et al., 2025), section 4, whose two predictors these are.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.core.arguments import check_kind, checked
from fewstep.core.errors import suggest
from fewstep.core.files import read_text, write
from fewstep.core.methods import Method
from fewstep.core.words import number_of
from fewstep.serving.predictors import PREDICTORS, Predictor

METHODS = (
    Method(
        "cost-routing",
        kind="router",
        paper="Cost-Aware Routing for Efficient Text-To-Image Generation (Li et al., 2025)",
        arxiv="2506.14753",
        claim="chosen by the caption, steps give more right pictures than any mixture of fixed ones at equal cost",
        use="fit_router",
    ),
)

FORMAT = "fewstep-router-1"
FACTS, TENSORS = "router.json", "router.safetensors"
TURNS = 256  # prices of a budget curve at most


@dataclass(frozen=True)
class Option:
    """One way to draw a picture: a model's name, and what `fs.sample` takes; None is the model's own default.

    steps, nfe: one of them at most. guidance: the scale of classifier-free guidance, None for none. cost: of one
    picture, in whatever unit all options of a router share (network evaluations, or seconds).

    Raises:
        ValueError: another kind of value, both steps and nfe or one below 1, a cost that is not above 0.
    """

    model: str
    steps: int | None = None
    solver: str | None = None
    guidance: float | None = None
    cost: float = 1.0
    nfe: int | None = None

    def __post_init__(self) -> None:
        kinds = (("model", str), ("steps", int | None), ("solver", str | None), ("guidance", float | None))
        for name, kind in (*kinds, ("cost", float), ("nfe", int | None)):
            check_kind(f"{name} of an option", getattr(self, name), kind)
        counts = [count for count in (self.steps, self.nfe) if count is not None]
        if not self.model or len(counts) > 1 or min(counts, default=1) < 1:
            said = f"{self.model!r}, steps {self.steps} and nfe {self.nfe}"
            raise ValueError(f"an option has a model and at least one step or evaluation, got {said}")
        if not 0 < self.cost < math.inf or not math.isfinite(self.guidance or 0):
            raise ValueError(f"cost must be above 0 and guidance finite, got {self.cost} and {self.guidance}")

    def __str__(self) -> str:
        steps = "own plan" if self.steps is None else number_of(self.steps, "step")
        steps = steps if self.nfe is None else f"at most {number_of(self.nfe, 'evaluation')}"
        return ", ".join(
            [self.model, steps]
            + ([] if self.solver is None else [self.solver])
            + ([] if self.guidance is None else [f"guidance {self.guidance:g}"])
        )


class Router:
    """Options, cheapest first, and a predictor of the quality of each.

    Threads may share it: it is never changed. `unit` says what costs are counted in.

    Raises:
        ValueError: no options, or the same twice.
    """

    def __init__(self, options: Sequence[Option], predictor: Predictor, unit: str = "evaluations") -> None:
        if not options or len({_without_cost(option) for option in options}) < len(options):
            raise ValueError(f"a router needs options that differ, got {[str(option) for option in options]}")
        self.options, self.predictor, self.unit = tuple(options), predictor, unit
        self._dearest = max(option.cost for option in options)
        self._share = torch.tensor([option.cost / self._dearest for option in options], dtype=torch.float64)
        # argmax takes the first of equals, so that must be the cheapest.
        self._order = self._share.argsort(stable=True)

    def predict(self, captions: str | Sequence[str]) -> Tensor:
        """The quality `(N, M)` float64 in [0, 1] that is expected of each option for each of the captions.

        Words that no scored caption had are passed over; of a caption without any known word, "" included, the mean
        of the scored ones is expected.
        """
        given = [captions] if isinstance(captions, str) else list(captions)
        if not all(isinstance(caption, str) for caption in given):
            raise ValueError(f"captions must be texts, got {given!r}"[:200])
        return self.predictor.predict(given)

    @checked
    def choose(self, caption: str, cost: float = 0.1) -> Option:
        """The option for a caption at a price: `cost` is what the dearest option's whole cost is worth, in quality.

        Raises:
            ValueError: a price that is not a finite number of at least 0.
        """
        return self.options[int(self.choices(self.predict(caption), cost)[0])]

    def choices(self, predicted: Tensor, cost: float) -> Tensor:
        """The numbers `(N,)` of the options for predicted qualities `(N, M)`; raises as `choose`."""
        if not 0 <= cost < math.inf:
            raise ValueError(f"cost must be a finite number of at least 0, got {cost}")
        worth = predicted.double() - cost * self._share
        return self._order[worth[:, self._order].argmax(1)]

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `router.safetensors`, then `router.json` with its checksum, each in one move; a router there gives way.

        Raises:
            ValueError: a file stands where the folder should.
        """
        from safetensors.torch import save

        path = Path(folder)
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file; name a folder")
        path.mkdir(parents=True, exist_ok=True)
        (path / FACTS).unlink(missing_ok=True)  # never an old description beside new tensors
        data = save({name: value.contiguous() for name, value in self.predictor.tensors().items()})
        write(path / TENSORS, data)
        about = {
            "format": FORMAT,
            "unit": self.unit,
            "options": [asdict(option) for option in self.options],
            "predictor": self.predictor.name,
            "facts": self.predictor.facts(),
            "tensors_sha256": hashlib.sha256(data).hexdigest(),
        }
        about["sha256"] = _fingerprint(about)
        write(path / FACTS, json.dumps(about, indent=1, ensure_ascii=False) + "\n")
        return path

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Router:
        """The router of a folder.

        Raises:
            ValueError: no router there, one that was not finished, damaged or changed files.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        path = Path(folder)
        for name in (FACTS, TENSORS):
            if not (path / name).is_file():
                raise ValueError(
                    f"{path} is no router that was finished: it has no {name} ('fewstep route fit' makes it)"
                )
        try:
            about = json.loads(read_text(path / FACTS))
        except ValueError as error:
            raise ValueError(f"{path / FACTS} is not JSON: {error}") from None
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise ValueError(f"{path / FACTS} is not a router of this version (its format is not {FORMAT!r})")
        data = (path / TENSORS).read_bytes()
        if about.get("sha256") != _fingerprint(about) or hashlib.sha256(data).hexdigest() != about["tensors_sha256"]:
            raise ValueError(f"{path} was changed or damaged: it does not have the checksums it states")
        try:
            options = [Option(**option) for option in about["options"]]
            predictor = _predictor(about["predictor"]).restored(about["facts"], load(data))
            return cls(options, predictor, about["unit"])
        except (KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"{path} holds no router: {error}") from None


@checked
def fit_router(
    captions: Sequence[str],
    options: Sequence[Option],
    quality: Tensor,
    predictor: str = "knn",
    unit: str = "evaluations",
    **settings: Any,
) -> Router:
    """A router from N scored captions.

    Args:
        quality: `(N, M)` in [0, 1], what each of the M options reached for each caption.
        predictor: "knn", the mean of the `k` nearest scored captions; or "learned", a small transformer that reads the
            words (settings `steps`, `seed`, ...: `fewstep.serving.predictors`).
        unit: what the options' costs are counted in.

    Raises:
        ValueError: another shape, qualities outside [0, 1], no captions, an unknown predictor or setting.
    """
    if quality.shape != (len(captions), len(options)) or not len(captions):
        raise ValueError(
            f"quality must be ({len(captions)}, {len(options)}), captions by options, got {tuple(quality.shape)}"
        )
    if not bool(((quality >= 0) & (quality <= 1)).all()):
        raise ValueError("quality must lie in [0, 1]")
    return Router(options, _predictor(predictor).fitted(captions, quality.double(), **settings), unit)


def budget_curve(predicted: Tensor, quality: Tensor, costs: Sequence[float]) -> Tensor:
    """The budget curve `(K, 2)` float64: mean cost and mean quality of N captions, for rising cost.

    Each point is a price, the first the highest; at most `TURNS` of those at which a choice changes are kept. Between
    two of them lie the points of a coin tossed for each caption (`along`).

    Args:
        predicted: `(N, M)`, by which the options are chosen at every price. quality: `(N, M)`, what they reach.
        costs: of the M options.
    """
    cost = torch.tensor(costs, dtype=torch.float64)
    share, rising = cost / cost.max(), (cost / cost.max()).argsort(stable=True)
    predicted, quality = predicted.double()[:, rising], quality.double()[:, rising]
    share, cost = share[rising], cost[rising]
    # A choice changes only at prices at which two options are worth the same to some caption.
    a, b = torch.triu_indices(len(costs), len(costs), 1)
    turns = ((predicted[:, b] - predicted[:, a]) / (share[b] - share[a])).flatten()
    turns = turns[turns.isfinite() & (turns > 0)].unique()
    turns = turns[torch.linspace(0, len(turns) - 1, min(TURNS, len(turns))).long()] if len(turns) else turns
    between = torch.cat((turns[:1] / 2, (turns[1:] + turns[:-1]) / 2, turns[-1:] * 2, torch.zeros(1)))
    points = []
    for price in between.unique().flip(0):
        row = (predicted - price * share).argmax(1, keepdim=True)
        points.append(torch.stack((cost[row].mean(), quality.gather(1, row).mean())))
    return torch.stack(points).unique_consecutive(dim=0)


def along(curve: Tensor, cost: float) -> float:
    """The quality of a budget curve `(K, 2)` at a mean cost: linear between points, as a coin between two prices is.

    Below the curve's first point and beyond its last, theirs.
    """
    x, y = curve.double().unbind(1)
    k = int((x <= cost).sum())
    if k in (0, len(x)):
        return float(y[min(k, len(x) - 1)])
    share = (cost - float(x[k - 1])) / float(x[k] - x[k - 1])
    return float(y[k - 1]) * (1 - share) + float(y[k]) * share


def mixture(points: Tensor, cost: float) -> float:
    """The best quality of a coin between two of K points `(K, 2)`, mean cost and quality, that costs at most `cost`.

    That is the upper hull: what the best random mixture of fixed options reaches.

    Raises:
        ValueError: a cost below that of every point.
    """
    x, y = points.double().unbind(1)
    if not cost >= float(x.min()):
        raise ValueError(f"nothing costs {cost} or less: the cheapest costs {float(x.min()):g}")
    inside, outside = x <= cost, x > cost
    best = float(y[inside].max())
    if bool(outside.any()):
        share = (cost - x[inside]).unsqueeze(1) / (x[outside] - x[inside].unsqueeze(1))
        mixed = y[inside].unsqueeze(1) * (1 - share) + y[outside] * share
        best = max(best, float(mixed.max()))
    return best


def _without_cost(option: Option) -> tuple[Any, ...]:
    return option.model, option.steps, option.solver, option.guidance, option.nfe


def _predictor(name: str) -> Any:
    if name not in PREDICTORS:
        raise suggest("predictor of quality", name, PREDICTORS)
    return PREDICTORS[name]


def _fingerprint(about: Mapping[str, Any]) -> str:
    """Checksum of what a router states of itself, without the checksum."""
    rest = {key: value for key, value in about.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
