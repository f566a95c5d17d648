"""Coordinates in which the noise of a process is ordinary, even where it is not in those of the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fewstep.core.methods import find


class Coordinates(nn.Module):
    """A one-to-one map between data `(B, *shape)` and the state of a process, also `(B, *shape)`.

    Correlated noise is white in whitened coordinates, multiplicative noise is added to the logarithm, noise that
    differs from pixel to pixel is even in units of its own strength. The process, and with it every solver, knows the
    state alone. `condition` is what the denoiser is conditioned on; a map may depend on it.
    """

    def config(self) -> dict[str, Any]:
        """JSON from which `coordinates_from_config` rebuilds this map: its method's name, and its arguments."""
        raise NotImplementedError

    def encode(self, data: Tensor, condition: Mapping[str, Any]) -> Tensor:
        """Data as the state of a sample without noise."""
        raise NotImplementedError

    def decode(self, x: Tensor, condition: Mapping[str, Any]) -> Tensor:
        """The inverse of `encode`, of noisy states too."""
        raise NotImplementedError

    def seen(self, x: Tensor, noise: Tensor, condition: Mapping[str, Any]) -> tuple[Tensor, Mapping[str, Any]]:
        """What the network receives at state x: the noisy data, and the condition unchanged."""
        return self.decode(x, condition), condition

    def answer(self, output: Tensor, condition: Mapping[str, Any]) -> Tensor:
        """The network's output in the coordinates of the state: taken to be in them."""
        return output

    def eps(self, x0: Tensor, eps: Tensor, t: Tensor, condition: Mapping[str, Any]) -> Tensor:
        """The noise of a training sample with state x0 at times t `(B,)`, made from standard normals."""
        return eps


def coordinates_from_config(config: Mapping[str, Any]) -> Coordinates:
    """The coordinates of a configuration; `ValueError` for an unknown name or argument."""
    rest = dict(config)
    kind = find(str(rest.pop("coordinates", "")), "coordinates")
    try:
        return kind(**rest)
    except TypeError as error:
        raise ValueError(f"coordinates {config['coordinates']!r}: {error}") from None
