"""Speculative decoding: a draft proposes tokens one by one, the target judges them all in one call.

A proposed token x is kept with probability min(1, p(x) / q(x)), p the target's law of it and q the draft's; the first
one that is not kept is drawn from (p - q)+ in its place, and behind k kept ones comes one more from the target. Every
token then has the target's own law, whatever the draft (Leviathan et al., section 2.3 and appendix A.1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.arguments import check_whole
from fewstep.core.methods import Method

METHODS = (
    Method(
        "speculative",
        kind="decoder",
        paper="Fast Inference from Transformers via Speculative Decoding (Leviathan et al., 2023)",
        arxiv="2211.17192",
        claim="more than one token a call of the target, in the target's own law",
        use="speculate",
    ),
)

# Tokens (B, L) to logits (B, L, V) of what follows each; or to these and the features (B, L, D) that they are read off.
Target = Callable[[Tensor], Tensor | tuple[Tensor, Tensor]]
# Tokens (B, L), of which the last may be its own proposals, and the target's features (B, M, D) of the first M that it
# has read, or None: to logits (B, V) of the next token.
Draft = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Speculated:
    """What was decoded.

    Args:
        tokens: (B, L + n) whole numbers, the prompt and n more. calls: of the target. proposed, accepted: tokens of the
            draft in all rows, and how many of those that were looked at were kept.
    """

    tokens: Tensor
    calls: int
    proposed: int
    accepted: int

    @property
    def acceptance(self) -> float:
        """The share of proposed tokens that were kept."""
        return self.accepted / max(1, self.proposed)


@torch.no_grad()
def speculate(target: Target, draft: Draft | None, prompt: Tensor, n: int, k: int = 4, *, seed: int = 0) -> Speculated:
    """`n` more tokens behind a prompt (B, L), in the law of the target, of which each call judges `k` proposals.

    Where the target tells its features the draft gets them, those of tokens that are decided. Rows go on together, by
    the fewest tokens that one of them has decided. Without a draft it is plain decoding, a call a token.

    Args:
        draft: of the same vocabulary as the target. seed: of the uniform numbers behind every choice.

    Raises:
        ValueError: a prompt that is not (B, L) whole numbers with L at least 1, n or k below 1, a draft of another
            vocabulary.
    """
    if prompt.ndim != 2 or prompt.shape[1] < 1 or prompt.is_floating_point() or prompt.dtype == torch.bool:
        raise ValueError(f"a prompt is (B, L) whole numbers, got shape {tuple(prompt.shape)} of {prompt.dtype}")
    check_whole("n", n, 1)
    check_whole("k", k, 1)
    generator = torch.Generator(prompt.device).manual_seed(seed)
    tokens, features = prompt.long(), None
    calls = proposed = accepted = vocabulary = 0
    end = prompt.shape[1] + n
    while tokens.shape[1] < end:
        known = tokens.shape[1]
        # The first call is of the prompt alone: the draft needs its features.
        several = 0 if draft is None or not calls else min(k, end - known - 1)
        laws: list[Tensor] = []
        for _ in range(several):
            assert draft is not None
            laws.append(draft(tokens, features).double().softmax(-1))
            if laws[-1].shape[-1] != vocabulary:
                raise ValueError(
                    f"the draft's vocabulary has {laws[-1].shape[-1]} tokens, the target's {vocabulary}: take another"
                )
            tokens = torch.cat([tokens, _chosen(laws[-1], generator)], 1)
        answer = target(tokens)
        calls += 1
        logits, features = answer if isinstance(answer, tuple) else (answer, None)
        p = logits[:, known - 1 :].double().softmax(-1)  # of the proposals, and of what comes behind them
        vocabulary = p.shape[-1]
        kept = _kept(tokens[:, known:], laws, p, generator)
        together = int(kept.min())  # the one number that the host must know: how long the sequence is
        proposed += len(tokens) * min(several, together + 1)
        accepted += int(kept.clamp(max=together + 1).sum())
        tokens = _decided(tokens, known, together, kept, laws, p, generator)
        features = None if features is None else features[:, : known + together]
    return Speculated(tokens, calls, proposed, accepted)


def _chosen(law: Tensor, generator: torch.Generator) -> Tensor:
    """A token (B, 1) of laws (B, V)."""
    return torch.multinomial(law, 1, generator=generator)


def _kept(proposals: Tensor, laws: list[Tensor], p: Tensor, generator: torch.Generator) -> Tensor:
    """How many of the proposals (B, k) are kept in each row, (B,)."""
    if not laws:
        return torch.zeros(len(p), dtype=torch.long, device=p.device)
    q = torch.stack(laws, 1).gather(2, proposals[..., None])[..., 0]
    of_target = p[:, :-1].gather(2, proposals[..., None])[..., 0]
    u = torch.rand(q.shape, generator=generator, dtype=q.dtype, device=q.device)
    return (u * q < of_target).long().cumprod(1).sum(1)


def _decided(
    tokens: Tensor, known: int, together: int, kept: Tensor, laws: list[Tensor], p: Tensor, generator: torch.Generator
) -> Tensor:
    """The tokens that all rows have decided: `together` proposals, and one more, which is a row's next proposal where
    it was kept, and else drawn: from (p - q)+ where it was not, from p where there was none."""
    law = p[:, together]
    if together < len(laws):
        rest = (law - laws[together]).clamp(min=0)
        # No rest: p is q up to rounding, and a proposal was turned down by that alone.
        law = torch.where(rest.sum(1, keepdim=True) > 0, rest, law)
    drawn = _chosen(law, generator)
    if together < len(laws):
        drawn = torch.where((kept > together)[:, None], tokens[:, known + together, None], drawn)
    return torch.cat([tokens[:, : known + together], drawn], 1)
