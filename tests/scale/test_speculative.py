"""Speculative decoding: the target's law whatever the draft, and how many tokens a call decides."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chi2

from fewstep.networks.causal import CausalTransformer, DraftHead
from fewstep.scale.speculative import speculate

CHAIN = torch.tensor(
    [
        [0.05, 0.6, 0.1, 0.2, 0.05],
        [0.3, 0.1, 0.3, 0.1, 0.2],
        [0.2, 0.2, 0.2, 0.2, 0.2],
        [0.7, 0.05, 0.05, 0.1, 0.1],
        [0.02, 0.08, 0.5, 0.3, 0.1],
    ],
    dtype=torch.float64,
)
WRONG = CHAIN.flip(1)
DRAFTS = {"right": CHAIN, "wrong": WRONG, "half right": (CHAIN + WRONG) / 2}


def target(tokens):
    return CHAIN.log()[tokens]


def draft(chain):
    return lambda tokens, features: chain.log()[tokens[:, -1]]


@pytest.mark.parametrize("name", DRAFTS)
@pytest.mark.parametrize(("rows", "k"), [(100, 3), (1, 4)])
def test_tokens_have_the_targets_law_whatever_the_draft(name, rows, k):
    n = 20_000 // rows if rows > 1 else 1500
    found = speculate(target, draft(DRAFTS[name]), torch.zeros(rows, 1, dtype=torch.long), n, k, seed=3)
    assert found.tokens.shape == (rows, n + 1)
    pairs = found.tokens[:, :-1] * 5 + found.tokens[:, 1:]
    counts = torch.bincount(pairs.flatten(), minlength=25).view(5, 5).double()
    expected = counts.sum(1, keepdim=True) * CHAIN
    assert chi2.sf(float(((counts - expected) ** 2 / expected).sum()), 20) > 0.001
    if name == "right":
        assert found.accepted == found.proposed and found.acceptance == 1
        assert found.calls == 1 + -(-(n - 1) // (k + 1))
    else:  # the share of proposals that are kept is 1 - the total variation of both, in the chain's own law
        law = torch.linalg.matrix_power(CHAIN, 64)[0]
        share = float((law * torch.minimum(CHAIN, DRAFTS[name]).sum(1)).sum())
        if rows == 1:  # in a call, until the first that is not kept
            assert found.acceptance == pytest.approx(float(_looked(share, k)), abs=0.04)


def _looked(share, k):
    """Kept over proposed where what lies behind the first that is turned down counts as proposed."""
    kept = sum(share**i for i in range(1, k + 1))
    looked = sum(share**i for i in range(k))
    return kept / looked


def test_a_transformer_decodes_as_alone_and_its_head_reads_the_features_of_decided_tokens():
    torch.manual_seed(0)
    model, head = CausalTransformer(7, 12, 16, 1).double(), DraftHead(7, 16).double()
    seen = []

    def watched(tokens, features):
        seen.append((tokens.shape[1], features.shape[1]))
        torch.testing.assert_close(features, model(tokens[:, : features.shape[1]])[1])
        return head(tokens, features)

    prompt = torch.tensor([[1, 2, 3], [4, 5, 6]])
    found = speculate(model, watched, prompt, 6, 3, seed=1)
    assert found.tokens.shape == (2, 9) and torch.equal(found.tokens[:, :3], prompt)
    # Of all tokens but the last decided one, and the proposals behind it.
    assert all(0 < tokens - features <= 4 for tokens, features in seen) and seen[0] == (4, 3)
    plain = speculate(model, None, prompt, 6, seed=1)
    assert plain.calls == 6 and plain.proposed == 0 and plain.tokens.shape == (2, 9)


@pytest.mark.parametrize(
    ("prompt", "n", "k", "said"),
    [
        (torch.zeros(2), 3, 2, r"\(B, L\) whole numbers, got shape \(2,\) of torch.float32"),
        (torch.zeros(2, 0, dtype=torch.long), 3, 2, r"got shape \(2, 0\)"),
        (torch.zeros(1, 1, dtype=torch.long), 0, 2, "n must be"),
        (torch.zeros(1, 1, dtype=torch.long), 1, 0, "k must be"),
    ],
)
def test_what_is_wrong_is_named(prompt, n, k, said):
    with pytest.raises(ValueError, match=said):
        speculate(target, draft(CHAIN), prompt, n, k)


def test_a_draft_of_another_vocabulary_is_refused():
    with pytest.raises(ValueError, match="the draft's vocabulary has 4 tokens, the target's 5"):
        speculate(target, lambda tokens, _: torch.zeros(len(tokens), 4), torch.zeros(1, 1, dtype=torch.long), 4)
