"""The forward process `x_t = alpha(t) x0 + sigma(t) eps`: coefficients in float64, for floats and tensors alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from fewstep.core.methods import find

Time = TypeVar("Time", float, Tensor)


class Process:
    """A Gaussian forward process; the concrete ones are frozen dataclasses in `fewstep/processes/`.

    Times are the process's own and run from `t_max` (noise) down to `t_min`; at `t_zero` the sample is clean
    (`alpha = 1, sigma = 0`). `log_snr` is `log(alpha / sigma)`, strictly decreasing in t.

    Every public function takes a float and returns a float, or takes a tensor of any shape and returns a float64
    tensor of that shape on the same device; gradients flow through.
    """

    name: ClassVar[str]
    t_min: float
    t_max: float
    t_zero: float

    @property
    def table_steps(self) -> int | None:
        """Number of steps of a process that was given as a table; None for a continuous one."""
        return None

    # What a process defines, on float64 tensors.
    def _alpha(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def _sigma(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def _dalpha(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def _dsigma(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def _time(self, log_snr: Tensor) -> Tensor:
        raise NotImplementedError

    def _log_snr(self, t: Tensor) -> Tensor:
        return self._alpha(t).log() - self._sigma(t).log()

    @cached_property
    def _known(self) -> dict[tuple[str, float], float]:
        return {}

    def _apply(self, name: str, t: Time) -> Time:
        if isinstance(t, Tensor):
            return getattr(self, name)(t.double())
        # Solvers evaluate the same few times over and over, so the values for floats are remembered.
        value = self._known.get((name, t))
        if value is None:
            if len(self._known) > 10_000:
                self._known.clear()
            value = self._known[name, t] = float(getattr(self, name)(torch.tensor(t, dtype=torch.float64)))
        return value

    def alpha(self, t: Time) -> Time:
        """Signal coefficient, in [0, 1]."""
        return self._apply("_alpha", t)

    def sigma(self, t: Time) -> Time:
        """Noise coefficient, at least 0."""
        return self._apply("_sigma", t)

    def dalpha(self, t: Time) -> Time:
        """Derivative of alpha in t."""
        return self._apply("_dalpha", t)

    def dsigma(self, t: Time) -> Time:
        """Derivative of sigma in t."""
        return self._apply("_dsigma", t)

    def log_snr(self, t: Time) -> Time:
        """`log(alpha / sigma)`: +inf where sigma is 0, -inf where alpha is 0."""
        return self._apply("_log_snr", t)

    def time(self, log_snr: Time) -> Time:
        """The time at which `log_snr(t)` has the given value: the inverse of `log_snr`."""
        return self._apply("_time", log_snr)

    def drift(self, t: Time) -> Time:
        """`f(t)` of the process as an SDE, `dx = f(t) x dt + g(t) dw`: `alpha' / alpha`. Infinite where alpha is 0."""
        return self.dalpha(t) / self.alpha(t)

    def diffusion2(self, t: Time) -> Time:
        """`g(t)^2` of the SDE, `2 sigma sigma' - 2 (alpha' / alpha) sigma^2` (Song et al., 2021, arXiv:2011.13456)."""
        return 2 * self.sigma(t) * (self.dsigma(t) - self.drift(t) * self.sigma(t))

    def start(self, normal: Callable[[int], Tensor]) -> Tensor:
        """The noise `eps` `(B, *shape)` that a run starts from; `normal(draw)` gives standard normals of the samples.

        Draw 0 itself for all processes whose noise is Gaussian.
        """
        return normal(0)

    def eps(self, normal: Callable[[], Tensor]) -> Tensor:
        """The noise `eps` of training samples, from standard normals `(B, *shape)`."""
        return normal()

    def config(self) -> dict[str, Any]:
        """JSON from which `process_from_config` rebuilds this process."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]  # the concrete ones are dataclasses
        values = {field.name: getattr(self, field.name) for field in fields}
        return {"process": self.name} | {  # lists for tuples, as JSON gives them back
            key: value.config() if isinstance(value, Process) else list(value) if isinstance(value, tuple) else value
            for key, value in values.items()
        }


def process_from_config(config: dict[str, Any]) -> Process:
    """The process of a configuration; `ValueError` for an unknown name or parameter."""
    values = {
        key: process_from_config(value)
        if isinstance(value, dict)
        else tuple(value)
        if isinstance(value, list)
        else value
        for key, value in config.items()
        if key != "process"
    }
    if "process" not in config:
        raise ValueError(f"a process configuration needs the key 'process', got {sorted(config)}")
    kind = find(config["process"], "process")
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]  # found by name: no type
    if extra := sorted(set(values) - known):
        raise ValueError(f"process {config['process']!r} has no parameter {extra[0]!r}; it has {sorted(known)}")
    return kind(**values)
