"""A vector of standard normal numbers as an input of the network, beside the noise in its state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewstep.core.arguments import check_whole
from fewstep.core.methods import Method

METHODS = (
    Method(
        "latent",
        paper="Tackling the Generative Learning Trilemma with Denoising Diffusion GANs (Xiao et al., 2022)",
        arxiv="2112.07804",
        claim="a vector per sample, drawn anew at each evaluation of a plan; left out it is zero",
        use="Latent",
    ),
)


@dataclass(frozen=True)
class Latent:
    """A vector of `size` numbers per sample, zeros where none is given. Guidance does not change it.

    Raises:
        ValueError: a size below 1.
    """

    guides: ClassVar[bool] = False
    size: int

    def __post_init__(self) -> None:
        check_whole("size", self.size)

    def config(self) -> dict[str, Any]:
        return {"kind": "latent", "size": self.size}

    def check(self, name: str, value: Any, batch: int, device: torch.device) -> Tensor:
        """The vectors as `(batch, size)`, from None, a list or tensor of `size` numbers, or one of `batch` such.

        Raises:
            ValueError: another count of numbers, or one that is not finite.
        """
        if value is None:
            return torch.zeros(batch, self.size, device=device)
        try:
            numbers = value.detach() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float32)
        except (TypeError, ValueError):
            numbers = torch.empty(())
        if numbers.shape not in ((self.size,), (1, self.size), (batch, self.size)) or isinstance(value, str):
            found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise ValueError(f"{name} must be {self.size} numbers, or {batch} times as many, got {found}")
        if numbers.is_complex() or not bool(torch.isfinite(numbers).all()):
            raise ValueError(f"{name} must be finite numbers")
        exact = numbers.dtype if numbers.dtype == torch.float64 else torch.float32
        return numbers.to(device, exact).expand(batch, self.size)

    def of(self, draw: Tensor) -> Tensor:
        """The vectors `(B, size)` of draws `(B, *shape)`: the first numbers of each.

        Raises:
            ValueError: draws of fewer numbers.
        """
        flat = draw.flatten(1)
        if flat.shape[1] < self.size:
            raise ValueError(f"a latent of {self.size} numbers is drawn with a state of at least as many, got one of"
                             f" {flat.shape[1]}")  # fmt: skip
        return flat[:, : self.size]
