"""Feature spaces in which samples are compared: pixels, a layer of the digits classifier, or any function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fewstep.core.errors import suggest
from fewstep.metrics.common import check_same_kind, check_same_shape, check_samples


@dataclass(frozen=True)
class Features:
    """A named map from samples (B, *shape) to vectors (B, F); `dim` is F, or None if it varies."""

    name: str
    function: Callable[[Tensor], Tensor]
    dim: int | None = None

    def __call__(self, x: Tensor, what: str = "samples", batch: int = 1024) -> Tensor:
        """Vectors (N, F), float64 on the CPU, of samples (N, *shape); the function sees `batch` at a time.

        Raises ValueError for samples or vectors that are not finite, fewer than two samples, and a function
        that does not return one vector per sample.
        """
        x = check_samples(x, what)
        with torch.no_grad():
            parts = [self._vectors(part, what) for part in x.split(batch)]
        return torch.cat(parts)

    def _vectors(self, x: Tensor, what: str) -> Tensor:
        y = self.function(x)
        if not isinstance(y, Tensor) or y.ndim != 2 or len(y) != len(x) or y.shape[1] == 0:
            got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(f"features {self.name!r} must give ({len(x)}, F) for {len(x)} samples, not {got}")
        if self.dim not in (None, y.shape[1]):
            raise ValueError(f"features {self.name!r} should have {self.dim} numbers a sample but gave {y.shape[1]}")
        y = y.cpu().double()  # the CPU first: not every device has float64, and both sets must be on one device
        if not torch.isfinite(y).all():
            raise ValueError(f"features {self.name!r} of {what} are not finite")
        return y


def _pixels(x: Tensor) -> Tensor:
    return x.flatten(1)


def _blocks(x: Tensor) -> Tensor:
    if x.ndim not in (4, 5):
        raise ValueError(f"the features 'blocks' are of pictures (B, C, H, W) or clips, not {tuple(x.shape)}")
    return functional.adaptive_avg_pool2d(x.flatten(1, -3), 8).flatten(1)


def _digits(x: Tensor) -> Tensor:
    from fewstep.metrics.digits_classifier import digits_classifier

    return digits_classifier(x.device).features(x)


_KNOWN = {
    f.name: f for f in (Features("pixels", _pixels), Features("blocks", _blocks), Features("digits", _digits, 64))
}


def find_features(features: str | Features | Callable[[Tensor], Tensor]) -> Features:
    """The features of that name, or a callable (B, *shape) -> (B, F) under its own name.

    The names: "pixels"; "blocks", pictures averaged down to 8x8; "digits", a layer of the digits classifier.
    Raises ValueError for an unknown name (with the close ones) and for anything that is not a function.
    """
    if isinstance(features, Features):
        return features
    if isinstance(features, str):
        if features not in _KNOWN:
            raise suggest("features", features, _KNOWN)
        return _KNOWN[features]
    if callable(features):
        return Features(getattr(features, "__name__", type(features).__name__), features)
    raise ValueError(f"features must be one of {', '.join(_KNOWN)}, or a function of samples, not {features!r}")


def feature_pair(samples: Tensor, real: Tensor, features: Features) -> tuple[Tensor, Tensor]:
    """The vectors of `samples` and of `real`, (N, F) and (M, F). ValueError if their shapes or ranges differ."""
    samples, real = check_samples(samples, "samples"), check_samples(real, "real")
    check_same_shape(samples, real)
    check_same_kind(samples, real)
    return features(samples), features(real, "real")
