"""Prompts as conditions."""

from __future__ import annotations

import pytest
import torch

from fewstep.conditions.prompt import Encoder, Prompt, complete

CPU = torch.device("cpu")


@pytest.fixture
def parts():
    asked: list[list[str | None]] = []

    def encode(prompts, device):
        asked.append(list(prompts))
        length = torch.tensor([[0.0 if p is None else 1.0 + len(p)] for p in prompts])
        return {"text": length[:, None].expand(-1, 5, 3), "pooled": length.expand(-1, 2)}

    encoder = Encoder(encode)
    return {"text": Prompt(encoder, "text", 3, 3), "pooled": Prompt(encoder, "pooled", 2, 2)}, asked


def test_prompts_are_encoded_together_and_once(parts):
    kinds, asked = parts
    rows = kinds["text"].check("text", ["ab", None, "ab"], 3, CPU)
    assert rows.shape == (3, 5, 3) and rows[:, 0, 0].tolist() == [3, 0, 3]
    assert kinds["pooled"].check("pooled", ["ab", "c", ""], 3, CPU)[:, 0].tolist() == [3, 2, 1]
    assert asked == [["ab", None], ["c", ""]]


def test_one_prompt_is_a_view_for_the_whole_batch(parts):
    rows = parts[0]["text"].check("text", "ab", 7, CPU)
    assert rows.shape == (7, 5, 3) and rows.stride(0) == 0


def test_old_prompts_are_forgotten(parts, monkeypatch):
    monkeypatch.setattr("fewstep.conditions.prompt.REMEMBERED", 3)
    kinds, asked = parts
    words = [str(i) * (i + 1) for i in range(5)]
    assert kinds["text"].check("text", words, 5, CPU)[:, 0, 0].tolist() == [2, 3, 4, 5, 6]
    kinds["text"].check("text", words[-1], 1, CPU)
    assert len(asked) == 1
    kinds["text"].check("text", words[0], 1, CPU)
    assert asked[1] == [words[0]]


def test_embeddings_pass_through(parts):
    kinds, asked = parts
    ready = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(kinds["text"].check("text", ready, 4, CPU), ready)
    assert torch.equal(kinds["text"].check("text", ready[0], 4, CPU), ready[:1].expand(4, 6, 3))
    assert not asked


def test_the_other_parts_follow_from_the_text(parts):
    kinds, _ = parts
    assert complete(kinds, {"text": "ab"}) == {"text": "ab", "pooled": "ab"}
    assert complete(kinds, {}) == {"text": None, "pooled": None}
    assert complete(kinds, {"text": "ab", "pooled": "c"})["pooled"] == "c"
    with pytest.raises(ValueError, match="text given as embeddings needs the pooled of the same prompt"):
        complete(kinds, {"text": torch.zeros(1, 5, 3)})


@pytest.mark.parametrize(
    "given,message",
    [
        (["a", "b"], "text must be one prompt or 3 of them, got 2"),
        (7, "text must be a prompt or a list of prompts, got 7"),
        ([], "text must be a prompt or a list of prompts"),
        (torch.zeros(3, 5, 4), r"text must be prompts or their embeddings \(B, tokens, 3\), got \(3, 5, 4\)"),
        (torch.zeros(2, 5, 3), "text must be one prompt or 3 of them, got 2"),
    ],
)
def test_bad_prompts(parts, given, message):
    with pytest.raises(ValueError, match=message):
        parts[0]["text"].check("text", given, 3, CPU)
