"""Weights, effective numbers and resampling by themselves: exact counts, and a chain of tokens whose law is a table."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from fewstep.guidance.particles import drawn, effective, log_mean, resampled, systematic

F64 = torch.float64


def test_the_effective_number():
    logs = torch.tensor([[0.0, 0.0, 0.0, 0.0], [5.0, 5.0, -math.inf, -math.inf], [1e4, 0.0, 0.0, 0.0]], dtype=F64)
    torch.testing.assert_close(effective(logs), torch.tensor([4.0, 2.0, 1.0], dtype=F64))
    assert torch.equal(log_mean(logs[:1] + 3), torch.tensor([3.0], dtype=F64))


def test_systematic_resampling_by_hand():
    logs = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=F64).log().expand(3, 4)
    # Quantiles u/4 ... (3 + u)/4 against the edges 0.5, 0.75, 0.875, 1.
    expected = torch.tensor([[0, 0, 1, 2], [0, 0, 1, 3], [0, 0, 1, 3]])
    assert torch.equal(systematic(logs, torch.tensor([0.0, 0.5, 0.99])), expected)
    certain = torch.tensor([[-math.inf, 0.0, -math.inf]], dtype=F64)
    assert systematic(certain, torch.tensor([1.0], dtype=F64)).tolist() == [[1, 1, 1]]
    assert drawn(certain, torch.tensor([0.0], dtype=F64)).tolist() == [1]


def test_children_are_k_w_on_average_and_within_one():
    logs = torch.randn(1, 7, generator=torch.Generator().manual_seed(0), dtype=F64).expand(4000, 7)
    u = (torch.arange(4000, dtype=F64) + 0.5) / 4000
    counts = torch.nn.functional.one_hot(systematic(logs, u), 7).sum(1).double()
    wanted = 7 * logs[0].softmax(0)
    assert float((counts - wanted).abs().max()) < 1
    torch.testing.assert_close(counts.mean(0), wanted, atol=1e-3, rtol=0)
    shares = torch.bincount(drawn(logs, u), minlength=7) / 4000
    torch.testing.assert_close(shares.double(), wanted / 7, atol=1e-3, rtol=0)


def test_only_groups_below_the_threshold_are_resampled():
    logs = torch.tensor([[0.0, 0.0], [10.0, 0.0]], dtype=F64)
    index, after, gained, which = resampled(logs, torch.full((2,), 0.5, dtype=F64), 0.75)
    assert index.tolist() == [[0, 1], [0, 0]] and which.tolist() == [False, True]
    assert torch.equal(after, torch.zeros(2, 2, dtype=F64)) and float(gained[0]) == 0
    assert float(gained[1]) == pytest.approx(math.log((math.exp(10) + 1) / 2))
    assert not resampled(logs, torch.zeros(2), 0.0)[3].any()


LENGTH, SYMBOLS = 5, 3
STATES = torch.tensor(list(itertools.product(range(SYMBOLS), repeat=LENGTH)))
POWERS = SYMBOLS ** torch.arange(LENGTH - 1, -1, -1)


def revealed(prior: Tensor, log_tilt: Tensor, n: int, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """n groups of k chains whose masks are lifted one by one from the left, by the exact conditionals of `prior`, and
    weighed by the tilt of the likeliest completion; the law of a drawn chain (243,), and log Z-hat (n,)."""
    shaped = prior.view([SYMBOLS] * LENGTH)
    tilt = log_tilt.view([SYMBOLS] * LENGTH)
    prefix = torch.zeros(n * k, dtype=torch.long)  # the number of the revealed part
    logs, total = torch.zeros(n, k, dtype=F64), torch.zeros(n, dtype=F64)
    before = torch.zeros(n * k, dtype=F64)
    for length in range(1, LENGTH + 1):
        joint = shaped.reshape(SYMBOLS**length, -1).sum(1).view(-1, SYMBOLS)  # of the prefix and its next symbol
        symbol = torch.multinomial(joint[prefix], 1, generator=generator).squeeze(1)
        prefix = prefix * SYMBOLS + symbol
        rest = shaped.view(SYMBOLS**length, -1)
        level = tilt.view(SYMBOLS**length, -1).gather(1, rest.argmax(1, keepdim=True)).squeeze(1)[prefix]
        logs, before = logs + (level - before).view(n, k), level
        index, logs, gained, _ = resampled(logs, torch.rand(n, generator=generator, dtype=F64), 0.5)
        flat = (index + k * torch.arange(n).unsqueeze(1)).flatten()
        prefix, before, total = prefix[flat], before[flat], total + gained
    law = torch.zeros(len(prior), dtype=F64).index_add(0, prefix, logs.softmax(1).flatten() / n)
    return law, total + log_mean(logs)


def test_a_masked_chain_comes_nearer_to_its_tilted_law_with_more_particles():
    generator = torch.Generator().manual_seed(0)
    prior = torch.randn(len(STATES), generator=generator, dtype=F64).softmax(0)
    log_tilt = 0.5 * torch.randn(SYMBOLS, generator=generator, dtype=F64)[STATES].sum(1)
    tilted = (prior.log() + log_tilt).softmax(0)
    assert torch.equal((STATES * POWERS).sum(1), torch.arange(SYMBOLS**LENGTH))
    distances = []
    for k in (1, 4, 16):
        law, log_z = revealed(prior, log_tilt, 25_000, k, generator)
        distances.append(0.5 * float((law - tilted).abs().sum()))
        z = (log_z - (prior * log_tilt.exp()).sum().log()).exp()
        assert abs(float(z.mean()) - 1) < 3 * float(z.std()) / len(z) ** 0.5, k
    assert distances[0] > 0.3 and all(b < 0.5 * a for a, b in itertools.pairwise(distances)), distances
    assert distances[-1] < 0.05, distances
