"""A process composed of others: each element of a sample follows the one of its band."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fewstep.core.bands import Bands
from fewstep.core.methods import Method
from fewstep.core.process import Process, process_from_config

METHODS = (
    Method(
        "per-element",
        claim="any scalar processes side by side, one for each band of a sample's elements",
        use="PerElement",
    ),
)


@dataclass(frozen=True)
class PerElement(Bands):
    """Scalar processes `parts` with one clock; element i of a sample of `shape` follows `parts[index[i]]`.

    `PerElement((VP(), VP(beta_max=10.0)), index=(0, 1, 1), shape=(3,))`. The first process is the clock.

    Raises:
        ValueError: processes whose clocks differ, and an index that does not fit the shape.
    """

    name = "per-element"
    parts: tuple[Process, ...]
    index: tuple[int, ...]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        # A configuration from JSON holds the parts' own configurations.
        made = tuple(process_from_config(part) if isinstance(part, dict) else part for part in self.parts)
        object.__setattr__(self, "parts", made)
        object.__setattr__(self, "index", tuple(self.index))
        object.__setattr__(self, "shape", tuple(self.shape))
        if not made:
            raise ValueError("per-element needs at least one process")
        ends = [(part.t_min, part.t_max, part.t_zero) for part in made]
        if any(end != ends[0] for end in ends):
            raise ValueError(f"the processes must share one clock: their (t_min, t_max, t_zero) are {ends}")
        self._check_index()

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return self.parts[0].t_min

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return self.parts[0].t_max

    @property
    def t_zero(self) -> float:  # type: ignore[override]
        return self.parts[0].t_zero

    @property
    def bands(self) -> tuple[Process, ...]:
        return self.parts

    def config(self) -> dict[str, Any]:
        return super().config() | {"parts": [part.config() for part in self.parts]}
