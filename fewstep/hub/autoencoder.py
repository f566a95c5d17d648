"""Pictures to latents and back, large ones tile by tile."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fewstep.core.methods import Method
from fewstep.core.sampler import is_finite
from fewstep.networks.surgery import InPlaceOf, replaced

METHODS = (
    Method(
        "autoencoder",
        kind="import",
        paper="High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022)",
        arxiv="2112.10752",
        claim="pictures to latents and back, in overlapping tiles where memory is short",
        use="Autoencoder",
    ),
)

# The share of a tile that overlaps its neighbour, as 1 / n, in diffusers' tiling of each class.
OVERLAP = {"AutoencoderKL": 4, "AutoencoderDC": 4, "AutoencoderTiny": 8}


class Autoencoder(nn.Module):
    """A diffusers autoencoder with its scaling: latents `(z - shift) scaling`, or `(z - mean) / std scaling`.

    What is encoded or decoded has a gradient where what it is made from asks for one. With tiles its memory is bounded
    as well: each tile is computed once more when its gradient is.

    One whose configuration says `force_upcast` overflows in float16: it computes in float32 then, whatever the rest of
    its model does.

    Args:
        vae: AutoencoderKL, AutoencoderTiny or AutoencoderDC. In float16, one that would overflow is copied, and left
            as it is.
        tile: side in pixels of the tiles in which larger pictures are encoded and decoded, one picture at a time, so
            that memory does not grow with them; None for whole pictures.

    Raises:
        ValueError: an autoencoder of another class, a tile whose overlaps would not be whole latents.
    """

    shift: Tensor
    spread: Tensor

    def __init__(self, vae: Any, tile: int | None = None):
        super().__init__()
        kind = type(vae).__name__
        if kind not in OVERLAP:
            raise ValueError(f"unsupported autoencoder {kind!r}; supported: {', '.join(sorted(OVERLAP))}")
        config = vae.config
        if overflows(config, next(vae.parameters()).dtype):
            vae = copy.deepcopy(vae).float()
        self.vae = vae
        self.factor = _factor(vae)
        self.channels: int = config.latent_channels
        self.pixel_channels: int = config.in_channels
        mean, std = config.get("latents_mean"), config.get("latents_std")
        self.scaling = float(config.scaling_factor)
        shift: Any = config.get("shift_factor") or 0.0
        if mean is not None and std is not None:
            shift, spread = (torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1) for values in (mean, std))
        else:
            shift, spread = torch.tensor(float(shift)), torch.tensor(1.0)
        self.register_buffer("shift", shift, persistent=False)
        self.register_buffer("spread", spread, persistent=False)
        self.tile = tile

    @property
    def tile(self) -> int | None:
        return self._tile

    @tile.setter
    def tile(self, tile: int | None) -> None:
        vae, kind = self.vae, type(self.vae).__name__
        if tile is not None:
            least = self.factor * OVERLAP[kind]
            if tile < 2 * least or tile % least:
                raise ValueError(f"tile must be a multiple of {least} pixels, at least {2 * least}, got {tile}")
            if kind == "AutoencoderDC":
                step = tile - tile // OVERLAP[kind]
                vae.enable_tiling(tile, tile, step, step)
            else:
                vae.tile_sample_min_size, vae.tile_latent_min_size = tile, tile // self.factor
                vae.tile_overlap_factor = 1 / OVERLAP[kind]
        vae.use_tiling = tile is not None
        self._tile = tile

    @property
    def dtype(self) -> torch.dtype:
        return next(self.vae.parameters()).dtype

    def _apply(self, fn: Any, recurse: bool = True) -> Autoencoder:
        """As every module, at the end in float32 where float16 would overflow: `model.half()` comes by here."""
        super()._apply(fn, recurse)
        if overflows(self.vae.config, self.dtype):
            self.vae.float()
        return self

    def encode(self, pictures: Tensor) -> Tensor:
        """Latents `(B, channels, H / factor, W / factor)` of pictures `(B, C, H, W)` in [-1, 1]: the mode of the
        posterior, where the autoencoder has one, not a draw from it.

        Raises:
            ValueError: another number of channels, sides that are not multiples of the factor, latents that are not
                finite.
        """
        if pictures.ndim != 4 or pictures.shape[1] != self.pixel_channels:
            raise ValueError(f"the autoencoder takes (B, {self.pixel_channels}, H, W), got {tuple(pictures.shape)}")
        if pictures.shape[2] % self.factor or pictures.shape[3] % self.factor:
            raise ValueError(
                f"the autoencoder takes sides that are multiples of {self.factor},"
                f" got {pictures.shape[2]} x {pictures.shape[3]}"
            )

        def part(vae: Any, x: Tensor) -> Tensor:
            answer = vae.encode(x.to(self.dtype), return_dict=False)[0]
            return answer if isinstance(answer, Tensor) else answer.mode()

        z = self._finite(self._each(part, "encoder", pictures), "latents", pictures).to(pictures.dtype)
        return (z - self.shift) / self.spread * self.scaling

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures `(B, C, H factor, W factor)` of latents `(B, channels, H, W)`.

        Raises:
            ValueError: another number of channels, pictures that are not finite.
        """
        if latents.ndim != 4 or latents.shape[1] != self.channels:
            raise ValueError(f"the autoencoder decodes (B, {self.channels}, H, W), got {tuple(latents.shape)}")
        z = latents * self.spread / self.scaling + self.shift
        pictures = self._each(lambda vae, x: vae.decode(x.to(self.dtype), return_dict=False)[0], "decoder", z)
        return self._finite(pictures, "pictures", latents).to(latents.dtype)

    def _finite(self, made: Tensor, what: str, given: Tensor) -> Tensor:
        """What was made, unless it is not finite: `ValueError`."""
        if is_finite(made.detach()):
            return made
        if not is_finite(given):
            raise ValueError("what the autoencoder was given is not finite")
        dtype = str(self.dtype).removeprefix("torch.")
        advice = "; model.autoencoder.to(torch.float32) lets it compute in float32" if dtype != "float32" else ""
        raise ValueError(f"the autoencoder's {what} are not finite: it overflows in {dtype}{advice}")

    def _each(self, function: Callable[[Any, Tensor], Tensor], name: str, x: Tensor) -> Tensor:
        """The function of the whole batch or, with tiles, of one picture at a time."""
        asked = torch.is_grad_enabled() and x.requires_grad
        with torch.set_grad_enabled(asked):  # weights ask for gradients too, and nobody wants theirs
            if self.tile is None:
                return function(self.vae, x)
            vae = replaced(self.vae, {name: _Again(getattr(self.vae, name))}) if asked else self.vae
            return torch.cat([function(vae, one) for one in x.split(1)])


class _Again(InPlaceOf):
    """A network that keeps nothing for its gradient: it is run once more when that is asked for."""

    def forward(self, x: Tensor, **given: Any) -> Any:
        return checkpoint(self.of, x, use_reentrant=False, **given)


def overflows(config: Any, dtype: torch.dtype) -> bool:
    """Whether an autoencoder of this configuration says that it overflows in the dtype, as `force_upcast` does of
    float16."""
    return dtype == torch.float16 and bool(config.get("force_upcast"))


def _factor(vae: Any) -> int:
    """Pixels per latent, in each direction: every block but one halves the sides."""
    config = vae.config
    blocks = next(
        config[name] for name in ("block_out_channels", "encoder_block_out_channels") if config.get(name) is not None
    )
    return 2 ** (len(blocks) - 1)
