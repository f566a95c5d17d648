"""How wrong a model's x0 is: the covariance of `x0_hat - x0` at some noise levels, as restoration needs it."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.core.files import write
from fewstep.operators.covariance import Cosine, Covariance, Elements, Full, Same

FORMAT = "fewstep-calibration-1"
BASES = ("number", "elements", "cosine", "dense")


@dataclass(frozen=True)
class Calibration:
    """Mean squares of a model's error at log-SNRs, in one of four forms.

    Args:
        basis: "number", one for all elements; "elements", one for each; "cosine", one for each frequency of the
            cosine transform; "dense", all products.
        log_snr: `(L,)` rising, at least two. values: `(L,)`, `(L, *shape)`, `(L, *shape)` or `(L, d, d)`.
        process: the configuration of the model's.
    """

    basis: str
    log_snr: Tensor
    values: Tensor
    process: dict[str, Any]

    def __post_init__(self) -> None:
        if self.basis not in BASES:
            raise ValueError(f"the basis of a calibration is one of {', '.join(BASES)}, got {self.basis!r}")
        if self.log_snr.ndim != 1 or len(self.log_snr) < 2 or len(self.values) != len(self.log_snr):
            raise ValueError(
                f"a calibration has values for at least two noise levels, got {tuple(self.values.shape)} for"
                f" {tuple(self.log_snr.shape)}"
            )
        if not bool((self.log_snr.diff() > 0).all()) or not bool(torch.isfinite(self.values).all()):
            raise ValueError("a calibration's log-SNRs must rise, and its values be finite")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what it holds at a level."""
        return tuple(self.values.shape[1:])

    def covariance(self, log_snr: Tensor) -> Covariance:
        """C at log-SNRs `()` or `(B,)`.

        Between two levels the logarithms of variances are linear in the log-SNR, and matrices are linear. Below the
        first level C is what it is there; above the last it falls as `sigma^2 / alpha^2` does.
        """
        at = log_snr.reshape(-1).double().to(self.log_snr.device)
        first, last = self.log_snr[0], self.log_snr[-1]
        inside = at.clamp(float(first), float(last))
        upper = torch.searchsorted(self.log_snr, inside).clamp(1, len(self.log_snr) - 1)
        low, high = self.log_snr[upper - 1], self.log_snr[upper]
        share = ((inside - low) / (high - low)).reshape(-1, *[1] * (self.values.ndim - 1))
        a, b = self.values[upper - 1], self.values[upper]
        if self.basis == "dense":
            values = a + share * (b - a)
        else:
            tiny = torch.finfo(torch.float64).tiny
            values = torch.exp((1 - share) * a.clamp_min(tiny).log() + share * b.clamp_min(tiny).log())
        beyond = torch.exp(-2 * (at - last).clamp_min(0)).reshape(share.shape)
        values = values * beyond
        if self.basis == "number":
            return Same(values)
        if self.basis == "dense":
            return Full(values)
        return (Elements if self.basis == "elements" else Cosine)(values, batched=True)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as safetensors."""
        from safetensors.torch import save

        about = {"format": FORMAT, "basis": self.basis, "process": json.dumps(self.process)}
        tensors = {"log_snr": self.log_snr.contiguous(), "values": self.values.float().contiguous()}
        return write(os.fspath(path), save(tensors, metadata=about))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Calibration:
        """The calibration in a file; `ValueError` names the file if it holds none."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(os.fspath(path), "pt") as file:
                about = file.metadata() or {}
                if about.get("format") != FORMAT:
                    raise ValueError(f"format {about.get('format')!r}, expected {FORMAT!r}")
                values, log_snr = file.get_tensor("values").double(), file.get_tensor("log_snr").double()
                return Calibration(about["basis"], log_snr, values, json.loads(about["process"]))
        except (SafetensorError, ValueError, KeyError, OSError) as error:
            raise ValueError(f"{path} holds no calibration: {error}") from None

    def check(self, process: dict[str, Any], shape: tuple[int, ...]) -> None:
        """`ValueError` unless it is one of a model with this process and shape."""
        if process != self.process:
            raise ValueError("the calibration is of another process than the model's: fs.calibrate(model) makes one")
        d = math.prod(shape)
        wanted = {"number": (), "dense": (d, d)}.get(self.basis, shape)
        if self.shape != wanted:
            raise ValueError(
                f"the calibration is of a model of another shape: it holds {self.shape} at a level, not {wanted}"
            )
