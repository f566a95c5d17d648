"""The picture that a restorer sees: a measurement of the sample, brought to a shape that its network takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.conditions.picture import Picture
from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.core.noise import Noise
from fewstep.core.pictures import as_pictures
from fewstep.operators.noise import Gaussian, NoiseModel, Poisson, PoissonGaussian
from fewstep.operators.operator import LinearOperator, Operator
from fewstep.operators.spec import read_operator

METHODS = (
    Method(
        "degraded",
        claim="what was measured of a sample, by an operator and noise; measurements as they are will do",
        use="Degraded",
    ),
)

FORMS = ("measurement", "pinv", "upsampled")
LEVEL = 1 << 29  # the draw of a sample's noise level
LAWS = "a deviation, two ends of a range of them, 'poisson:PEAK' or 'camera:READ,SHOT'"


@dataclass(frozen=True)
class Degraded(Picture):
    """The condition `y` of a model that restores samples of a shape `data` from `operator(x) + noise`.

    Args:
        shape: of the picture; what follows from the others, by default.
        operator: in words, as on the command line; of several the first acts first.
        noise: a standard deviation in the data's own units; a range, from which each sample's is drawn evenly;
            "poisson:PEAK", counts for each unit of light; or "camera:READ,SHOT", whose variance is `READ^2 + SHOT
            light`. Light is counted from `low`, the data's darkness.
        picture: the form in which the network sees it: the "measurement" itself, the least squares answer "pinv", or
            "upsampled" to the data's size. By default the measurement where it has the data's shape, else pinv.

    Raises:
        ValueError: an operator, a noise or a form that is none, or that does not fit the data.
    """

    shape: tuple[int, ...] = ()
    data: tuple[int, ...] = ()
    operator: str | Sequence[str] = "identity"
    noise: float | str | Sequence[float] = 0.0
    picture: str | None = None
    low: float = -1.0

    def __post_init__(self) -> None:
        for name in ("data", "operator", "noise"):  # lists, in a configuration
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        self._law()
        operator = self.measure
        same = operator.out == self.data
        form = self.picture or ("measurement" if same else "pinv")
        if form not in FORMS:
            raise suggest("picture", form, FORMS)
        if form != "measurement" and same:
            raise ValueError(f"measurements by {operator} have the data's shape already: picture is 'measurement'")
        if form == "pinv" and not isinstance(operator, LinearOperator):
            raise ValueError(
                f"{operator} is not linear and has no pseudo-inverse: picture is 'measurement' or 'upsampled'"
            )
        if form == "upsampled" and len(operator.out) != 3:
            raise ValueError(f"measurements by {operator} are {operator.out}, no pictures to be made larger")
        object.__setattr__(self, "picture", form)
        shape = operator.out if form == "measurement" else (*operator.out[:1], *self.data[1:])
        shape = self.data if form == "pinv" else shape
        if self.shape and tuple(self.shape) != shape:
            raise ValueError(f"pictures of this measurement are {shape}, got {tuple(self.shape)}")
        object.__setattr__(self, "shape", shape)

    @cached_property
    def measure(self) -> Operator:
        """The operator, bound to the data."""
        return read_operator(self.operator).fit(self.data)

    def config(self) -> dict[str, Any]:
        plain = {name: list(value) if isinstance(value := getattr(self, name), tuple) else value
                 for name in ("data", "operator", "noise", "picture", "low")}  # fmt: skip
        return {"kind": "degraded", "shape": list(self.shape), **plain}

    def _law(self) -> NoiseModel:
        """The law of noise; of a range, its upper end's."""
        if isinstance(self.noise, str):
            return _named(self.noise, self.low)
        if isinstance(self.noise, int | float):
            return Gaussian(self.noise)
        if len(self.noise) != 2 or not 0 <= self.noise[0] <= self.noise[1]:
            raise ValueError(f"noise is {LAWS}, got {list(self.noise)}")
        return Gaussian(self.noise[1])

    def measured(self, x0: Tensor, seed: int, first: int = 0) -> Tensor:
        """Measurements `(B, *measured)` of samples number `first, first + 1, ...` under a seed, each with noise of its
        own."""
        clean = self.measure(x0)
        source = Noise(seed, first)
        if isinstance(self.noise, tuple):
            share = torch.special.ndtr(source.normal(LEVEL, (len(x0), 1), x0.device, torch.float64))
            level = (self.noise[0] + share * (self.noise[1] - self.noise[0])).to(clean)
            unit = Gaussian(1.0).draw(torch.zeros_like(clean), source)
            return self.measure.received(clean + level.reshape(-1, *[1] * (clean.ndim - 1)) * unit)
        return self.measure.received(self._law().draw(clean, source))

    def seen(self, y: Tensor) -> Tensor:
        """Pictures `(B, *shape)` of measurements."""
        if self.picture == "pinv":
            return self.measure.pinv(y)  # type: ignore[no-any-return, operator]
        if self.picture == "upsampled":
            return F.interpolate(y, self.data[1:], mode="bicubic", antialias=False)
        return y

    def degraded(self, x0: Tensor, seed: int, first: int = 0) -> Tensor:
        """Pictures of samples, as a training sees them."""
        return self.seen(self.measured(x0, seed, first))

    def check(self, name: str, value: Any, batch: int, device: torch.device) -> Tensor:
        """The picture as `(batch, *shape)`: of a measurement, or as it is given.

        `ValueError` as `Picture.check`, with both shapes.
        """
        out = self.measure.out
        if value is None or out == self.shape:
            return super().check(name, value, batch, device)
        own = tuple(value.shape) if isinstance(value, Tensor) else out
        if own[-len(self.shape) :] == self.shape:
            return super().check(name, value, batch, device)
        if own[-len(out) :] != out:
            raise ValueError(f"{name} must be measurements {out}, or pictures of them {self.shape}, got {own}")
        rows = as_pictures(value, name, out, None)
        if len(rows) not in (1, batch):
            raise ValueError(f"{name} must be one measurement for all or {batch} of them, got {len(rows)}")
        return self.seen(rows.to(device)).expand(batch, *self.shape)


def _named(noise: str, low: float) -> NoiseModel:
    kind, _, rest = noise.partition(":")
    wrong = ValueError(f"noise is {LAWS}, got {noise!r}")
    try:
        numbers = [float(part) for part in rest.split(",")]
    except ValueError:
        raise wrong from None
    if kind == "poisson" and len(numbers) == 1:
        return Poisson(numbers[0], low)
    if kind == "camera" and len(numbers) == 2:
        return PoissonGaussian(numbers[1], numbers[0], low)
    raise wrong
