"""One tensor per sample, such as the picture to restore."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewstep.core.arguments import check_kind
from fewstep.core.methods import Method
from fewstep.core.pictures import as_pictures

METHODS = (Method("picture", claim="one tensor per sample, all of one shape", use="Picture"),)


@dataclass(frozen=True)
class Picture:
    """One tensor per sample, such as the degraded picture to restore. It has no empty value."""

    guides: ClassVar[bool] = False
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        check_kind("shape", self.shape, Sequence[int])
        object.__setattr__(self, "shape", tuple(self.shape))  # a list, in a configuration

    def config(self) -> dict[str, Any]:
        return {"kind": "picture", "shape": list(self.shape)}

    def check(self, name: str, value: Any, batch: int, device: torch.device) -> Tensor:
        """The condition as `(batch, *shape)`; one of `shape` alone stands for the whole batch.

        Arrays, Pillow pictures, paths and lists of them will do (`fewstep.core.pictures.as_pictures`); bytes are taken
        to -1 to 1. `ValueError` for anything else, another shape or count.
        """
        wanted = ", ".join(map(str, self.shape))
        if value is None:
            raise ValueError(f"this model needs {name}, a tensor ({wanted}) or (B, {wanted})")
        rows = as_pictures(value, name, self.shape, None)
        if len(rows) not in (1, batch):
            raise ValueError(f"{name} must have shape ({wanted}) or ({batch}, {wanted}), got {tuple(rows.shape)}")
        return rows.expand(batch, *self.shape).to(device)


@dataclass(frozen=True)
class Encoded(Picture):
    """A picture of a shape that the network is given in other coordinates, in the shape `inside`; both are taken."""

    inside: tuple[int, ...] = ()

    def outside(self, value: Any) -> bool:
        """Whether a value is given and is not in the network's coordinates yet."""
        return value is not None and not (isinstance(value, Tensor) and tuple(value.shape[-3:]) == self.inside)

    def rows(self, name: str, value: Any) -> Tensor:
        """A value in pixels as `(1 or its own number, *shape)`; `ValueError` as `check`."""
        if value is None:
            return Picture.check(self, name, value, 1, torch.device("cpu"))  # which says that it is needed
        return as_pictures(value, name, self.shape, None)

    def check(self, name: str, value: Any, batch: int, device: torch.device) -> Tensor:
        """The condition as `(batch, *inside)`, from a value in these coordinates."""
        if self.outside(value) or value is None:
            return super().check(name, value, batch, device)
        return Picture(self.inside).check(name, value, batch, device)
