"""Claims of speculative decoding: its law on a Markov chain, its calls and seconds on a transformer of characters.

The transformer learns the texts that come with Python's `help` (`pydoc_data.topics`), about a minute on one core; the
drafting head then learns its next tokens from its features. Prompts are stretches that neither has seen.
"""

from __future__ import annotations

import functools
import time

import torch
from scipy.stats import chi2
from torch import Tensor
from torch.nn import functional as F

from claims.claim import Claim, Outcome, Run, over_seeds, slow
from claims.trained import fresh
from fewstep.networks.causal import CausalTransformer, DraftHead
from fewstep.scale.speculative import speculate

STATES, ROWS, N = 5, 100, 200  # of the chain, and tokens of each row
LENGTH, WIDTH, DEPTH, BATCH, STEPS, AHEAD, HEAD_STEPS = 64, 128, 3, 32, 600, 4, 400
PROMPTS, PROMPT, NEW, K = 8, 32, 160, 4
SEEN = 0.9  # share of the texts that is learnt
ABOUT = (
    f"characters of Python's help, transformer of {DEPTH} layers of {WIDTH} ({STEPS} steps of {BATCH}), recurrent head"
    f" on its features ({HEAD_STEPS} steps); {PROMPTS} prompts, {NEW} tokens each, {K} proposals a call"
)


def _law(seed: int) -> Outcome:
    generator = torch.Generator().manual_seed(seed)
    chain, other = (torch.rand(STATES, STATES, generator=generator, dtype=torch.float64).softmax(1) for _ in range(2))
    found = speculate(
        lambda tokens: chain.log()[tokens], lambda tokens, _: other.log()[tokens[:, -1]],
        torch.zeros(ROWS, 1, dtype=torch.long), N, K, seed=seed,
    )  # fmt: skip
    pairs = found.tokens[:, :-1] * STATES + found.tokens[:, 1:]
    counts = torch.bincount(pairs.flatten(), minlength=STATES**2).view(STATES, STATES).double()
    expected = counts.sum(1, keepdim=True) * chain
    p = chi2.sf(float(((counts - expected) ** 2 / expected).sum()), STATES * (STATES - 1))
    told = f"{ROWS * N:,} tokens of a chain of {STATES} states, a draft of another chain"
    return Outcome(float(p), 0.001, "tolerance", told, "high", "p of a chi-square test of the transitions")


@functools.cache
def texts() -> tuple[Tensor, Tensor, int]:
    """Characters as whole numbers, those that are learnt and the others, and how many kinds there are."""
    from pydoc_data.topics import topics

    written = "\n".join(topics[name] for name in sorted(topics))
    kinds = sorted(set(written))
    of = {kind: k for k, kind in enumerate(kinds)}
    tokens = torch.tensor([of[kind] for kind in written])
    cut = int(SEEN * len(tokens))
    return tokens[:cut], tokens[cut:], len(kinds)


def _batch(tokens: Tensor, count: int, length: int, generator: torch.Generator) -> Tensor:
    first = torch.randint(len(tokens) - length, (count, 1), generator=generator)
    return tokens[first + torch.arange(length)]


@functools.cache
def trained(seed: int) -> tuple[CausalTransformer, DraftHead]:
    learnt, _, kinds = texts()
    generator = torch.Generator().manual_seed(seed)
    model: CausalTransformer = fresh(CausalTransformer, seed, kinds, LENGTH + K + 1, WIDTH, DEPTH)
    head: DraftHead = fresh(DraftHead, seed + 1, kinds, WIDTH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(STEPS):
        rows = _batch(learnt, BATCH, LENGTH + 1, generator)
        loss = F.cross_entropy(model(rows[:, :-1])[0].flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.requires_grad_(False)
    optimizer = torch.optim.AdamW(head.parameters(), lr=2e-3)
    for _ in range(HEAD_STEPS):
        rows = _batch(learnt, BATCH, LENGTH, generator)
        logits, features = model(rows)
        guessed = head.every(rows, features, AHEAD).log_softmax(-1)
        goals = torch.stack([logits[:, s : s + guessed.shape[1]] for s in range(1, AHEAD + 1)], 2).softmax(-1)
        loss = -(goals * guessed).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, head.requires_grad_(False)


@functools.cache
def decoded(seed: int, drafted: bool) -> tuple[float, float]:
    """Tokens a call of the target, and seconds for a thousand tokens."""
    model, head = trained(seed)
    prompts = _batch(texts()[1], PROMPTS, PROMPT, torch.Generator().manual_seed(seed + 100))
    calls, clock = 0, time.process_time()
    for prompt in prompts:
        calls += speculate(model, head if drafted else None, prompt[None], NEW, K, seed=seed).calls
    return PROMPTS * NEW / calls, 1000 * (time.process_time() - clock) / (PROMPTS * NEW)


def _beside_plain(which: int, better: str, unit: str) -> Run:
    def figures(seed: int) -> list[float]:
        return [decoded(seed, drafted)[which] for drafted in (True, False)]

    return over_seeds(figures, "plain decoding", ABOUT, better, unit)


CLAIMS: tuple[Claim, ...] = (
    Claim("speculative", "its tokens have the target's law, with a draft that is wrong", _law),
    slow("speculative", "a head on the target's features decides more than one token a call",
         _beside_plain(0, "high", "tokens a call")),
    slow("speculative", "the same tokens take less of the processor's time",
         _beside_plain(1, "low", "seconds a thousand tokens")),
)  # fmt: skip
