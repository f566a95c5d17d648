"""Representation alignment: an early layer learns to see in the noisy picture what a teacher sees in the clean one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.metrics.features import find_features
from fewstep.training.objective import Step

METHODS = (
    Method(
        "repa",
        kind="term",
        paper="Representation Alignment for Generation: Training Diffusion Transformers Is Easier Than You Think"
        " (Yu et al., 2025)",
        arxiv="2410.06940",
        claim="hidden states that agree with a frozen teacher's view of the clean picture",
        use="Alignment",
    ),
)


def _tokens(features: Tensor, what: str) -> Tensor:
    """(B, F), (B, N, F) or (B, F, H, W) as (B, N, F)."""
    if features.ndim == 2:
        return features[:, None]
    if features.ndim == 3:
        return features
    if features.ndim == 4:
        return features.flatten(2).transpose(1, 2)
    raise ValueError(f"{what} must be (B, F), (B, N, F) or (B, F, H, W), got shape {tuple(features.shape)}")


class Alignment(nn.Module):
    """A `Term`: `-mean over tokens of cos(projector(hidden), teacher(x0))`, from -1 to 1 (Yu et al., eq. 8).

    The hidden state is the output of `network.blocks[block]` on the noisy samples, read by a hook from the forward
    pass of the loss itself, so none is repeated. The projector, three layers, trains with the network (it is in the
    objective's parameters) and is not part of the model. A factor of 0 leaves the term out.

    teacher: (B, *shape) clean samples to features (B, F), (B, N, F) or (B, F, H, W), taken without gradient: a frozen
    encoder, or the name of one of `fewstep.metrics.features`. If it has as many tokens as the block, they are
    compared one to one; if it has one, with the block's mean.

    Args:
        network: with `blocks` (`fewstep.networks.common`), that of the denoiser to train.
        example: clean samples (n, *shape), from which the widths are read; **condition: what else the network needs.
        width: of the projector's hidden layers; seed: of its first weights (torch's own generator is left as it was).

    Raises:
        ValueError: a name that is not a block's, features of other shapes, token counts that do not match.
    """

    def __init__(
        self,
        network: nn.Module,
        block: str,
        teacher: Callable[[Tensor], Tensor] | str,
        example: Tensor,
        width: int = 256,
        seed: int = 0,
        **condition: Any,
    ) -> None:
        super().__init__()
        blocks: dict[str, nn.Module] = network.blocks  # type: ignore[assignment]
        if block not in blocks:
            raise suggest("block", block, blocks)
        self.name = block
        # In tuples, so that neither the network nor the teacher is a part of this module.
        self._tapped = (blocks[block],)
        self._teacher = (find_features(teacher).function if isinstance(teacher, str) else teacher,)
        self._seen: list[Tensor] = []
        self._hook = blocks[block].register_forward_hook(self._listener())
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network(example, torch.zeros(len(example), device=example.device), **condition)
            hidden, wanted = self._pair(example)
            self.projector = nn.Sequential(
                nn.Linear(hidden.shape[2], width), nn.SiLU(),
                nn.Linear(width, width), nn.SiLU(),
                nn.Linear(width, wanted.shape[2]),
            ).to(example.device)  # fmt: skip

    def _listener(self) -> Callable[..., None]:
        seen, (tapped,) = self._seen, self._tapped

        def listen(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if module is tapped:  # a copy of the network has this hook as well, and is ignored
                seen[:] = [output]

        return listen

    def _pair(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        if not self._seen:
            raise ValueError(f"nothing has passed the block {self.name!r}: is this the network that was trained on?")
        hidden = _tokens(self._seen.pop(), "the block's output")
        with torch.no_grad():
            wanted = _tokens(self._teacher[0](x0), "the teacher's features")
        if wanted.shape[1] == 1:
            hidden = hidden.mean(1, keepdim=True)
        if hidden.shape[:2] != wanted.shape[:2]:
            raise ValueError(
                f"the block {self.name!r} has {hidden.shape[1]} tokens for {len(hidden)} samples,"
                f" the teacher {wanted.shape[1]} for {len(wanted)}"
            )
        return hidden, wanted

    def forward(self, step: Step) -> Tensor:
        hidden, wanted = self._pair(step.x0)
        projected = self.projector(hidden.to(next(self.projector.parameters()).dtype))
        return -F.cosine_similarity(projected, wanted.to(projected), dim=2).mean(1)

    def close(self) -> None:
        """Removes the hook from the network."""
        self._hook.remove()
        self._seen.clear()
