"""A model of latents beside the autoencoder that makes them of data, and the simplest one: principal components."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.memory import AnyMemory, ask
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction

METHODS = (
    Method(
        "latent",
        paper="High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022)",
        arxiv="2112.10752",
        claim="a model of latents whose samples are data: the decoded latents of its own samples, bit for bit",
        use="Latent",
    ),
    Method(
        "principal-components",
        kind="autoencoder",
        paper="On Lines and Planes of Closest Fit to Systems of Points in Space (Pearson, 1901)",
        claim="the linear autoencoder of the least squared error; what is Gaussian stays so in its latents",
        use="PrincipalComponents",
    ),
)


class Latent(Wrapper):
    """A model whose states are an autoencoder's latents; its data are what they decode to.

    Args:
        model: of latents `(B, *shape)`. autoencoder: a module with `encode` and `decode`, differentiable, and `shape`,
            that of one sample of data. value_range: of the data.

    Raises:
        ValueError: a model that has an autoencoder already, or whose shape is not that of the latents.
    """

    def __init__(self, model: Denoiser, autoencoder: nn.Module, value_range: tuple[float, float] | None = None):
        if model.facts.autoencoder is not None:
            raise ValueError("this model has an autoencoder already")
        made = tuple(autoencoder.encode(torch.zeros(1, *autoencoder.shape)).shape[1:])  # type: ignore[misc, operator]
        if made != model.shape:
            raise ValueError(f"the autoencoder's latents have the shape {made}, and the model's states {model.shape}")
        bounds = None if value_range is None else (float(value_range[0]), float(value_range[1]))
        super().__init__(model, value_range=bounds, data=None, data_std=None)
        self.autoencoder = autoencoder  # with its buffers, which go where the model goes

    def config(self) -> dict[str, Any]:
        return {"model": self.model, "autoencoder": self.autoencoder, "value_range": self.value_range}

    def encode(self, data: Tensor, **condition: Any) -> Tensor:
        return self.autoencoder.encode(data)  # type: ignore[union-attr, operator, no-any-return]

    def decode(self, x: Tensor, **condition: Any) -> Tensor:
        return self.autoencoder.decode(x)  # type: ignore[union-attr, operator, no-any-return]

    def forward(self, x: Tensor, t: Tensor, *, memory: AnyMemory | None = None, **condition: Any) -> Prediction:
        return ask(self.model, x, t, memory, condition)


class PrincipalComponents(nn.Module):
    """Latents `(B, K)` are the coordinates of data along their K directions of the largest variance, `(x - mean) B^T /
    scale`, and decode to the nearest data that they tell, `scale z B + mean`.

    Args:
        mean: `(*shape)` of the data. basis: `(K, D)`, orthonormal rows. scale: the deviation of a latent in the mean,
            one number, so that distances keep their proportions.
    """

    mean: Tensor
    basis: Tensor

    def __init__(self, mean: Tensor, basis: Tensor, scale: float = 1.0):
        super().__init__()
        if basis.ndim != 2 or basis.shape[1] != math.prod(mean.shape) or not scale > 0:
            raise ValueError(
                f"a basis (K, {math.prod(mean.shape)}) and a positive scale go with this mean, got"
                f" {tuple(basis.shape)} and {scale}"
            )
        self.shape, self.scale = tuple(mean.shape), float(scale)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("basis", basis, persistent=False)

    @classmethod
    def of(cls, data: Tensor, latents: int) -> PrincipalComponents:
        """Those of data `(B, *shape)`, so many; `ValueError` for more than data have."""
        flat = data.double().flatten(1)
        if not 1 <= latents <= min(flat.shape):
            raise ValueError(f"{tuple(flat.shape)} numbers have 1 to {min(flat.shape)} components, not {latents}")
        mean = flat.mean(0)
        _, values, basis = torch.linalg.svd(flat - mean, full_matrices=False)
        scale = float((values[:latents].square().mean() / len(flat)).sqrt())
        return cls(mean.reshape(data.shape[1:]), basis[:latents], scale)

    def config(self) -> dict[str, Any]:
        return {"mean": self.mean, "basis": self.basis, "scale": self.scale}

    def encode(self, data: Tensor) -> Tensor:
        """Latents `(B, K)` of data `(B, *shape)`."""
        return (data - self.mean.to(data)).flatten(1) @ self.basis.to(data).mT / self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Data `(B, *shape)` of latents `(B, K)`."""
        return (self.scale * latents @ self.basis.to(latents)).reshape(-1, *self.shape) + self.mean.to(latents)
