"""A discriminator of heads on a diffusion network's features, of samples that are diffused to a drawn level.

On a frozen teacher's features these are LADD's heads (Sauer et al., 2024, arXiv:2403.12015), on those of the fake
network, which then trains with them, DMD2's (Yin et al., 2024, arXiv:2405.14867, section 4.3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.distillation.features import Read, default_blocks

WIDTH = 64
LOSSES = ("non-saturating", "hinge")
Logits = Callable[[Tensor, Tensor, Mapping[str, Any]], Tensor]  # of states (B, *shape), times (B,), conditions: (B,)


class Head(nn.Module):
    """A logit of each sample from one block's output: a perceptron at each place, averaged over the places.

    size: of the output for one sample. Pictures (1, C, H, W) have their channels first, tokens (1, N, C) and vectors
    (1, C) last.
    """

    def __init__(self, size: Sequence[int]) -> None:
        super().__init__()
        self.pictures = len(size) == 4
        channels = size[1] if self.pictures else size[-1]
        self.norm = nn.LayerNorm(channels)
        self.first, self.last = nn.Linear(channels, WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        places = x.flatten(2).mT if self.pictures else x.reshape(len(x), -1, x.shape[-1])
        return self.last(F.silu(self.first(self.norm(places)))).mean(1)[:, 0]


class Discriminator(nn.Module):
    """Logits `(B,)` that diffused samples are real: the sum over the heads. Its parameters are those of its heads.

    Args:
        model: on whose network's features the heads stand; gradients reach its weights where they ask for them.
        shape: of a sample. features: names of blocks, by default the one in the middle. condition: of one sample, for
            the call that finds the sizes. seed: of the heads' first weights.

    Raises:
        ValueError: an unknown block, or a network that names none.
    """

    def __init__(
        self,
        model: Denoiser,
        shape: Sequence[int],
        features: Sequence[str] | None,
        condition: Mapping[str, Any],
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.read = Read(model, features or default_blocks(model))
        sizes = self.read.sizes(shape, condition)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.heads = nn.ModuleList(Head(size) for size in sizes.values())
        self.heads.to(model.device, model.dtype)

    def forward(self, x: Tensor, t: Tensor, condition: Mapping[str, Any]) -> Tensor:
        """Logits of noisy states x `(B, *shape)` at times t `(B,)`."""
        return self.each(x, t, condition).sum(0)

    def each(self, x: Tensor, t: Tensor, condition: Mapping[str, Any]) -> Tensor:
        """Those of each head, `(heads, B)`."""
        _, found = self.read(x, t, condition)
        return torch.stack([head(out) for head, out in zip(self.heads, found.values(), strict=True)])


def sides(name: str) -> tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The discriminator's loss of (real, made) logits and the student's loss of its own, both (B,) -> (B,).

    "non-saturating": softplus(-real) + softplus(made), and softplus(-made) (Goodfellow et al., 2014); "hinge":
    relu(1 - real) + relu(1 + made), and -made (Lim and Ye, 2017). `ValueError` for another name.
    """
    if name == "non-saturating":
        return (lambda real, made: F.softplus(-real) + F.softplus(made)), (lambda made: F.softplus(-made))
    if name == "hinge":
        return (lambda real, made: F.relu(1 - real) + F.relu(1 + made)), (lambda made: -made)
    raise suggest("adversarial loss", name, LOSSES)


def r1(logits: Logits, x: Tensor, t: Tensor, condition: Mapping[str, Any]) -> Tensor:
    """`|d logit / dx|^2` at real states, (B,), with its gradient (Mescheder et al., 2018, arXiv:1801.04406)."""
    x = x.detach().requires_grad_(True)
    # The fused kernels of attention have no second derivative.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        (slope,) = torch.autograd.grad(logits(x, t, condition).sum(), x, create_graph=True)
    return slope.square().flatten(1).sum(1)


def r1_difference(
    logits: Logits, x: Tensor, t: Tensor, condition: Mapping[str, Any], z: Tensor, h: float = 0.01
) -> Tensor:
    """`(logit(x + h z) - logit(x))^2 / h^2`, (B,), which over standard normal z has the mean `|d logit / dx|^2` for
    small h (Lin et al., 2025, arXiv:2501.08316): for networks without double derivatives."""
    return ((logits(x + h * z, t, condition) - logits(x, t, condition)) / h).square()
