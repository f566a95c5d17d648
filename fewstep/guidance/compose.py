"""Several conditions in one sample, each known to a model of its own: the product of their reverse kernels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.conditions.number import Number
from fewstep.core.condition import Condition
from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.errors import suggest
from fewstep.core.memory import AnyMemory, Together, ask
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction

METHODS = (
    Method(
        "compose",
        paper="Unite and Conquer: Cross Dataset Multimodal Synthesis using Diffusion Models (Nair et al., 2023)",
        arxiv="2212.00793",
        claim="models trained apart, each on a condition of its own, sampled under all of them at once",
        use="Composed",
        facts={"wraps": True, "changes": ("plan", "conditions")},
    ),
)

# The member that is asked, its conditions by its own names, and the name of its branch of the run's memory.
Job = tuple[int, dict[str, Any], str]


class Members:
    """Denoisers side by side, with one set of conditions: what is asked of which, under which name.

    A label or caption of member k (from 0) keeps its name if no earlier member has it, else it is `label_2` for k = 1,
    `label_3` for k = 2, and so on. What does not guide, a picture or a number, goes with the sample: members that take
    the same one share it. usual: for each member, what its conditions are where a run gives nothing.

    Raises:
        ValueError: a usual value under a name that the member does not know.
    """

    def __init__(self, models: Sequence[Denoiser], usual: Sequence[Mapping[str, Any]]):
        self.usual = [dict(one) for one in usual]
        self.names: list[dict[str, str]] = []  # from a member's own names to those of the whole
        self.conditions: dict[str, Condition] = {}
        for number, (model, told) in enumerate(zip(models, self.usual, strict=True)):
            for name in told:
                if name not in model.conditions:
                    raise suggest(f"condition of member {number + 1}", name, model.conditions)
            self.names.append({})
            for name, kind in model.conditions.items():
                self.names[-1][name] = called = self._called(name, kind, number)
                self.conditions.setdefault(called, kind)
        self._empty: dict[tuple[int, torch.device], dict[str, Tensor]] = {}

    def _called(self, name: str, kind: Condition, number: int) -> str:
        known = self.conditions.get(name)
        numbers = isinstance(kind, Number) and isinstance(known, Number)  # which may differ in what is usual
        if known is None or (not kind.guides and (numbers or known == kind)):
            return name
        free = (f"{name}_{place}" for place in itertools.count(number + 1))
        return next(called for called in free if called not in self.conditions)

    def check(
        self, models: Sequence[Denoiser], condition: Mapping[str, Any], batch: int, device: torch.device
    ) -> dict[str, Tensor]:
        """The conditions as tensors, by the names of the whole; `ValueError` for a name that no member knows."""
        for name in condition:
            if name not in self.conditions:
                raise suggest("condition", name, self.conditions)
        found: dict[str, Tensor] = {}
        for model, names, usual in zip(models, self.names, self.usual, strict=True):
            told = {own: condition[name] for own, name in names.items() if condition.get(name) is not None}
            named = model.check_condition(usual | told, batch, device)
            found |= {names.get(own, own): value for own, value in named.items()}
        return found

    def given(self, number: int, condition: Mapping[str, Any]) -> dict[str, Any]:
        """A member's conditions by its own names."""
        return {own: condition[name] for own, name in self.names[number].items() if name in condition}

    def empty(self, model: Denoiser, number: int, condition: Mapping[str, Any], x: Tensor) -> dict[str, Any]:
        """A member's conditions without those that guide: the values are made once, for checking them reads tensors."""
        key = (number, x.device)
        if key not in self._empty:
            guiding = {name: kind for name, kind in model.conditions.items() if kind.guides}
            self._empty[key] = {name: kind.check(name, None, 1, x.device) for name, kind in guiding.items()}
        rows = {name: value.expand(x.shape[0], *value.shape[1:]) for name, value in self._empty[key].items()}
        return self.given(number, condition) | rows


def answers(
    models: Sequence[Denoiser], jobs: Sequence[Job], x: Tensor, t: Tensor, memory: AnyMemory | None
) -> list[Prediction]:
    """The answers to several questions at one state, in their order; those to one network share a call where they can.

    They can where their conditions have the same names and, but for the rows, the same shapes: prompts of different
    lengths do not.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, (number, condition, _) in enumerate(jobs):
        shapes = tuple((name, tuple(value.shape[1:])) for name, value in sorted(condition.items()))
        groups.setdefault((id(models[number]), shapes), []).append(place)
    found: dict[int, Prediction] = {}
    rows = x.shape[0]
    for places in groups.values():
        own = [jobs[place] for place in places]
        kept = None if memory is None else [memory.branch(name) for _, _, name in own]
        n, first = len(own), models[own[0][0]]
        if n == 1:
            found[places[0]] = ask(first, x, t, None if kept is None else kept[0], own[0][1])
            continue
        together = {name: torch.cat([job[1][name] for job in own]) for name in own[0][1]}
        times = t if t.ndim == 0 else torch.cat([t] * n)
        answer = ask(first, torch.cat([x] * n), times, None if kept is None else Together(kept), together)
        for k, place in enumerate(places):
            part = answer.part(slice(k * rows, (k + 1) * rows))
            found[place] = part.replaced(part.value, x=x, t=t)
    return [found[place] for place in range(len(jobs))]


def combined(weights: Sequence[float], found: Sequence[Prediction]) -> Prediction:
    """`sum_i w_i answer_i` for weights that sum to 1, which is then the same rule in every kind; the first answer's
    kind, and its other fields. One answer of weight 1 is itself, bit for bit."""
    first = found[0]
    if len(found) == 1 and weights[0] == 1:
        return first
    value = first.value * weights[0]
    for weight, answer in zip(weights[1:], found[1:], strict=True):
        value = value + weight * answer.to(first.kind).to(value.dtype)
    return first.replaced(value)


def number_list(name: str, values: Sequence[float] | None, count: int, usual: float) -> list[float]:
    """One finite number a member."""
    found = [usual] * count if values is None else [float(value) for value in values]
    if len(found) != count or not all(math.isfinite(value) for value in found):
        raise ValueError(f"{name} must be {count} finite numbers, one for each model, got {values}")
    return found


class Composed(Wrapper):
    """`eps = sum_k a_k eps_k(empty) + sum_k w_k (eps_k(given) - eps_k(empty))` (Nair et al., equations 11 to 13).

    The reverse kernels of one process have one variance whatever the model. So the product of the kernels to powers
    that sum to 1, `prod_k p_k(empty)^(a_k - w_k) p_k(given)^(w_k)`, is Gaussian with the mean that this eps has. At a
    single noise level the score is that of the product of the noised laws, which is not the noised product's: where the
    models' conditions are independent given x, the two agree as the noise vanishes. A negative weight leads away from a
    condition. A model without labels and captions counts by its reliability alone.

    Conditions that guide are named apart where names clash: `text` is the first model's, `text_2` the second's
    (`fs.sample(mix, 4, text="a circle", text_2="red")`); what is left out is empty. Questions to one network are asked
    in one call; those that no coefficient needs are not asked.

    Args:
        others: the other models, of the first one's process, shape and value range. In place of a model, a mapping: the
            first model again, with conditions of its own, by default these (`{"label": 3}`, or `{}`).
        weights: w_k, one for each model, the first one's included; 1 each by default.
        reliability: a_k, which sum to 1; equal by default.

    Raises:
        ValueError: no others, models that differ in process, shape or range, weights and reliabilities that are not one
            finite number for each, reliabilities that do not sum to 1.
    """

    def __init__(
        self,
        model: Denoiser,
        others: Sequence[Denoiser | Mapping[str, Any]],
        weights: Sequence[float] | None = None,
        reliability: Sequence[float] | None = None,
    ):
        if isinstance(others, Mapping) or not len(others):
            raise ValueError("compose needs other models or conditions in a list: others=[colour_model]")
        plain: list[Denoiser | dict[str, Any]] = [
            {} if one is model else dict(one) if isinstance(one, Mapping) else one for one in others
        ]
        apart = [one for one in plain if not isinstance(one, dict)]
        for name in ("process", "shape", "value_range"):
            if any(getattr(other, name) != getattr(model, name) for other in apart):
                found = [getattr(one, name) for one in (model, *apart)]
                raise ValueError(f"composed models must have the same {name}, got {found}")
        count = 1 + len(plain)
        self.weights = number_list("weights", weights, count, 1.0)
        self.reliability = number_list("reliability", reliability, count, 1 / count)
        if abs(sum(self.reliability) - 1) > 1e-6:
            raise ValueError(f"the reliabilities must sum to 1, got {self.reliability} (sum {sum(self.reliability):g})")
        every = [model, *(model if isinstance(one, dict) else one for one in plain)]
        self.members = Members(every, [{}, *(one if isinstance(one, dict) else {} for one in plain)])
        super().__init__(model, plan=None, conditions=self.members.conditions)
        self.others = nn.ModuleList(apart)
        self._apart = [None if isinstance(one, dict) else apart.index(one) for one in plain]

    @property
    def carries(self) -> bool:
        return True

    def describe(self) -> dict[str, Any]:
        told = {"composed of": len(self.weights), "weights": self.weights, "reliability": self.reliability}
        return self.model.describe() | told

    def config(self) -> dict[str, Any]:
        others = [
            usual if place is None else self.others[place]
            for place, usual in zip(self._apart, self.members.usual[1:], strict=True)
        ]
        told = {"weights": self.weights, "reliability": self.reliability}
        return {"model": self.model, "others": others} | told

    def _models(self) -> list[Any]:
        return [self.model, *(self.model if place is None else self.others[place] for place in self._apart)]

    def check_condition(self, condition: Mapping[str, Any], batch: int, device: torch.device) -> dict[str, Tensor]:
        return self.members.check(self._models(), condition, batch, device)

    def terms(
        self, x: Tensor, t: Tensor, memory: AnyMemory | None, condition: Mapping[str, Any]
    ) -> tuple[tuple[float, ...], list[Prediction]]:
        """Weights, which sum to 1, and answers `(B, *shape)`: the weighted sum of their eps is this model's eps."""
        models, told = self._models(), dict[tuple[Any, ...], int]()
        jobs: list[Job] = []
        weights: list[float] = []

        def add(key: tuple[Any, ...], weight: float, job: Job) -> None:
            if key not in told:
                told[key] = len(jobs)
                jobs.append(job)
                weights.append(0.0)
            weights[told[key]] += weight

        for k, (model, w, a) in enumerate(zip(models, self.weights, self.reliability, strict=True)):
            given = self.members.given(k, condition)
            guided = any(kind.guides for kind in model.conditions.values())
            if guided and w != 0:
                add(("given", k), w, (k, given, f"given {k}"))
            if not guided:
                w = 0.0
            # A network that appears several times has one empty answer: what its questions differ in is left out.
            key = ("empty", id(model)) if guided else ("given", k)
            empty = self.members.empty(model, k, condition, x) if guided else given
            add(key, a - w, (k, empty, f"empty {k}"))
        asked = [place for place, weight in enumerate(weights) if abs(weight) > 1e-12]
        found = answers(models, [jobs[place] for place in asked], x, t, memory)
        return tuple(weights[place] for place in asked), found

    def forward(self, x: Tensor, t: Tensor, *, memory: AnyMemory | None = None, **condition: Any) -> Prediction:
        return combined(*self.terms(x, t, memory, condition))

    def encode(self, data: Tensor, **condition: Any) -> Tensor:
        return self.model.encode(data, **self.members.given(0, condition))

    def decode(self, x: Tensor, **condition: Any) -> Tensor:
        return self.model.decode(x, **self.members.given(0, condition))
