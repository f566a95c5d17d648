"""What a denoiser may be conditioned on: each kind of condition knows its empty value and its checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from fewstep.core.methods import made


class Condition(Protocol):
    """A kind of condition: turns a caller's value into a tensor of `batch` rows, or raises `ValueError`.

    `guides`: whether it has an empty value from which guidance leads away, as captions and labels have.
    """

    guides: ClassVar[bool]

    def check(self, name: str, value: Any, batch: int, device: torch.device) -> Tensor: ...

    def config(self) -> dict[str, Any]:
        """JSON from which `condition_from_config` rebuilds it."""
        ...


def condition_from_config(config: Mapping[str, Any]) -> Condition:
    """The condition of a configuration; `ValueError` for an unknown kind or option."""
    options = dict(config)
    return made("condition", str(options.pop("kind", None)), **options)()
