"""Prompts as conditions."""

from __future__ import annotations

import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fewstep.conditions.prompt import Encoder, Measure, Prompt, complete

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


def test_threads_get_their_own_prompts_then_and_ever_after(monkeypatch):
    """From encoders that share something which is not made for threads, and more prompts than are remembered."""
    monkeypatch.setattr("fewstep.conditions.prompt.REMEMBERED", 5)
    held = []

    def encode(prompts, device):
        held[:] = prompts  # as a tokenizer holds how it pads
        time.sleep(1e-4)
        return {"text": torch.tensor([[float(len(prompt))] for prompt in held])}

    encoders = [Encoder(encode), Encoder(encode)]
    words = ["x" * length for length in range(1, 9)]

    def right(i):
        rows = encoders[i % 2]([words[i % 8], words[(i * 3) % 8]], CPU)["text"]
        return rows[:, 0].tolist() == [i % 8 + 1, (i * 3) % 8 + 1]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(right, range(200)))
    assert all(right(i) for i in range(16)) and len(encoders[0]._known) <= 5


def test_what_is_cut_off_is_said_once_per_prompt():
    def measure(prompt):
        return Measure(1, prompt[5:])

    encoder = Encoder(lambda prompts, device: {"text": torch.zeros(len(prompts), 1)}, measure)
    with pytest.warns(UserWarning, match="the prompt 'a long one' is longer than .* and 'g one' is cut off") as said:
        encoder(["a long one", "a", None, "a long one"], CPU)
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder(["a long one", "a"], CPU)


def test_prompts_of_one_call_are_encoded_in_as_many_windows_as_the_longest_takes():
    asked = []

    def encode(prompts, device, windows=1):
        asked.append((prompts, windows))
        return {"text": torch.tensor([[float(len(p))] * windows for p in prompts])}

    encoder = Encoder(encode, lambda prompt: Measure(-(-len(prompt) // 4)))
    assert encoder(["ab", "abcdefghi"], CPU)["text"].tolist() == [[2.0] * 3, [9.0] * 3]
    assert encoder(["ab"], CPU)["text"].tolist() == [[2.0]]
    assert encoder(["abcde", "ab"], CPU)["text"].tolist() == [[5.0] * 2, [2.0] * 2]
    encoder(["abcdefghi", "ab"], CPU)
    assert asked == [(["ab", "abcdefghi"], 3), (["ab"], 1), (["abcde", "ab"], 2)]


def test_what_is_remembered_from_inference_mode_serves_with_gradients():
    encoder = Encoder(lambda prompts, device: {"text": torch.ones(1, 2)})
    with torch.inference_mode():
        encoder(["a"], CPU)
    weight = torch.ones(2, requires_grad=True)
    (encoder(["a"], CPU)["text"] * weight).sum().backward()
    assert weight.grad.tolist() == [1.0, 1.0]
