"""The transformer of next tokens and its drafting head; how they decode is in `tests/scale/test_speculative.py`."""

from __future__ import annotations

import pytest
import torch

from fewstep.networks.causal import CausalTransformer, DraftHead


def test_the_future_changes_nothing_before_it():
    torch.manual_seed(0)
    model = CausalTransformer(7, 5, 16, 2)
    tokens = torch.tensor([[1, 2, 3, 4, 5]])
    other = torch.tensor([[1, 2, 3, 6, 0]])
    torch.testing.assert_close(model(tokens)[0][:, :3], model(other)[0][:, :3])
    longer = torch.cat([torch.tensor([[6, 6]]), tokens], 1)
    torch.testing.assert_close(model(longer)[0][:, 2:], model(tokens)[0])
    assert not model(longer)[0][:, :2].any()


def test_the_head_is_trained_on_what_it_answers():
    torch.manual_seed(0)
    head = DraftHead(7, 4)
    tokens, features = torch.randint(7, (2, 6)), torch.randn(2, 6, 4)
    every = head.every(tokens, features, 2)
    assert every.shape == (2, 4, 2, 7)
    torch.testing.assert_close(every[:, 1, 0], head(tokens[:, :3], features[:, :2]))
    torch.testing.assert_close(every[:, 1, 1], head(tokens[:, :4], features[:, :2]))


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match="must be at least 1, got 0, 3, 4, 1"):
        CausalTransformer(0, 3, 4, 1)
