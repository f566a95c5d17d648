"""What guidance leads away from, as a condition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewstep.core.condition import Condition, condition_from_config
from fewstep.core.methods import Method

METHODS = (Method("negative", claim="what guidance leads away from: a condition of the same kind", use="Negative"),)


class Negative:
    """What guidance leads away from in place of a condition's empty value: a condition of the same kind.

    Args:
        of: that condition, or its configuration.
        usual: what is led away from where nothing is said; None is the condition's empty value.
    """

    guides: ClassVar[bool] = False

    def __init__(self, of: Condition | Mapping[str, Any], usual: Any = None):
        self.of = condition_from_config(of) if isinstance(of, Mapping) else of
        self.usual = usual

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Negative) and self.of == other.of  # `usual` says what is taken, not what can be

    def __hash__(self) -> int:
        return hash((Negative, self.of))

    def config(self) -> dict[str, Any]:
        usual = self.usual.tolist() if isinstance(self.usual, Tensor) else self.usual
        return {"kind": "negative", "of": self.of.config(), "usual": usual}

    def check(self, name: str, value: Any, batch: int, device: torch.device) -> Tensor:
        """As the condition itself; None is `usual`."""
        return self.of.check(name, self.usual if value is None else value, batch, device)
