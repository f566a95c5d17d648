"""The multiscale loss: errors averaged over coarser and coarser grids count as well."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from fewstep.core.methods import Method
from fewstep.training.objective import squared_error

METHODS = (
    Method(
        "multiscale",
        kind="distance",
        paper="simple diffusion: End-to-end diffusion for high resolution images (Hoogeboom et al., 2023)",
        arxiv="2301.11093",
        claim="adds the errors of coarser pictures, the more the coarser they are",
        use="multiscale",
    ),
)


def multiscale(error: Tensor, smallest: int = 32) -> Tensor:
    """`sum over s of w_s |D_s[error]|^2` (means over pixels): (B, C, H, W) to (B,), a `distance` of `Objective`.

    `D_s` averages blocks of pixels down to a shorter side s, for s = min(H, W), half of it, ... as long as s is at
    least `smallest` and the sides stay whole; `w_s` is proportional to 1 / s (Hoogeboom et al., section 3.3), here with
    sum one, so that an error that is equal in all pixels counts as in `squared_error`.

    Raises ValueError for errors that are not pictures and for a `smallest` below 1 or above the shorter side.
    """
    if error.ndim != 4:
        raise ValueError(f"the multiscale loss is for pictures (B, C, H, W), got shape {tuple(error.shape)}")
    height, width = error.shape[2:]
    if not 1 <= smallest <= min(height, width):
        raise ValueError(f"smallest must be 1 to {min(height, width)} for pictures of {height}x{width}, got {smallest}")
    total, weights, coarse = error.new_zeros(len(error)), 0.0, error
    while True:
        side = min(coarse.shape[2:])
        total, weights = total + squared_error(coarse) / side, weights + 1 / side
        if side // 2 < smallest or coarse.shape[2] % 2 or coarse.shape[3] % 2:
            return total / weights
        coarse = F.avg_pool2d(coarse, 2)
