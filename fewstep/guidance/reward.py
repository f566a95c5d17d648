"""Rewards: what samples are steered to, given as a function or by name, and asked for all particles of a run."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fewstep.core.arguments import shown
from fewstep.core.methods import made
from fewstep.guidance.swarm import Swarm

# (samples as data (B, ...), **condition) to (B,); higher is better.
Reward = Callable[..., Tensor]


@dataclass(frozen=True)
class Named:
    """A reward of the registry with its options, which is called as every reward.

    A condition of the run fills in an option of its name that was not given (`label`); an option that is a list is one
    value for each sample.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        function = made("reward", self.name, 1, **self.options).func
        object.__setattr__(self, "_function", function)
        taken = list(inspect.signature(function).parameters)[1:]
        object.__setattr__(self, "_open", [name for name in taken if name not in self.options])

    def __call__(self, x: Tensor, **condition: Any) -> Tensor:
        told = {name: condition[name] for name in self._open if name in condition}  # type: ignore[attr-defined]
        return self._function(x, **self.options, **told)  # type: ignore[attr-defined]

    def repeated(self, samples: int, particles: int) -> Named:
        """For so many particles of each sample, one after another; `ValueError` for lists of another length."""
        options = dict(self.options)
        for name, value in options.items():
            if isinstance(value, list | tuple):
                if len(value) != samples:
                    raise ValueError(
                        f"{name} of the reward {self.name!r} must be one for all, or a list with one for each of the"
                        f" {samples} samples of a run, got {len(value)}"
                    )
                options[name] = [one for one in value for _ in range(particles)]
        return Named(self.name, options)


def reward(name: str, **options: Any) -> Named:
    """A reward by name: `reward("digit", label=3)`, `reward("soft-caption", text="a red circle")`.

    Raises:
        ValueError: an unknown name or option (the message lists close ones), or an option without a default missing.
    """
    return Named(name, options)


def asked(reward: Any) -> Reward:
    """A reward as a function, from one, a name, or a mapping of a name and options: `{"name": "digit", "label": 3}`.

    Raises:
        ValueError: anything else; as `reward`.
    """
    if isinstance(reward, str):
        return Named(reward)
    if isinstance(reward, Mapping):
        options = dict(reward)
        if not isinstance(name := options.pop("name", None), str):
            raise ValueError(f"a reward's mapping needs its name, {{'name': 'digit', ...}}, got {sorted(reward)}")
        return Named(name, options)
    if not callable(reward):
        raise ValueError(f"reward must be a function, a name or a mapping, got {shown(reward)}")
    return reward  # type: ignore[no-any-return]  # whatever is callable: what it returns is checked when it is asked


class Goal:
    """A reward, its strength, and the evaluations at which it is asked beforehand.

    Args:
        reward: `reward(x, **condition) -> (B,)` of samples as data; a name; or a mapping, a name and its options:
            `{"name": "digit", "label": 3}`. None for no reward, which is 0 everywhere.
        strength: the target is `p(x0) exp(strength reward(x0))`.
        when: `(first, last, every)`, numbers of evaluations from 1 on, both ends included; all, if None.

    Raises:
        ValueError: a reward of another kind or an unknown one, a strength that is not finite, another `when`.
    """

    def __init__(
        self, reward: Reward | str | Mapping[str, Any] | None, strength: float, when: Sequence[int] | None = None
    ):
        if not math.isfinite(strength):
            raise ValueError(f"the strength of a reward must be finite, got {strength!r}")
        if when is not None and not (len(when) == 3 and 1 <= when[0] <= when[1] and when[2] >= 1):
            raise ValueError(
                "when must be (first, last, every), numbers of evaluations from 1 on with first at most last, got"
                f" {tuple(when)}"
            )
        self.reward, self.strength, self.when = None if reward is None else asked(reward), float(strength), when

    def due(self, swarm: Swarm) -> bool:
        """Whether the reward is asked at this evaluation."""
        if self.reward is None or self.when is None:
            return self.reward is not None
        first, last, every = self.when
        return first <= swarm.number <= last and (swarm.number - first) % every == 0

    def guess(self, swarm: Swarm, x0: Tensor) -> Tensor:
        """`strength` times the reward `(R,)` of predictions x0, as data within the value range."""
        data = swarm.model.decode(x0, **swarm.condition)
        if swarm.model.value_range is not None:
            data = data.clamp(*swarm.model.value_range)
        return self.strength * self._ask(swarm, data)

    def last(self, swarm: Swarm, samples: Tensor) -> Tensor:
        """`strength` times the reward of the samples, as data; the rewards are kept as "reward"."""
        found = self._ask(swarm, swarm.model.decode(samples, **swarm.condition))
        swarm.kept["reward"] = found
        return self.strength * found

    def _ask(self, swarm: Swarm, data: Tensor) -> Tensor:
        if self.reward is None:
            return torch.zeros(len(data), dtype=torch.float64, device=data.device)
        function = self.reward
        if isinstance(function, Named):
            function = swarm.once("reward", function.repeated, swarm.samples, swarm.particles)
        found = function(data, **swarm.condition)
        if not isinstance(found, Tensor) or found.shape != (len(data),):
            got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else shown(found)
            raise ValueError(f"the reward must return one number for each sample, shape ({len(data)},), got {got}")
        # Where the network's own answer is not finite, the run names that.
        sound = data.detach().flatten(1).sum(1).isfinite()
        swarm.forbid(f"the reward is not finite at {swarm.place}", sound & ~found.detach().isfinite())
        return found.double()
