"""Predictors of quality: the nearest captions by hand, and a transformer that learns what words say."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.serving.predictors import PREDICTORS, Learned, Nearest, words

F64 = torch.float64
CAPTIONS = [
    f"a {colour} {shape}" for colour in ("red", "green", "blue", "cyan") for shape in ("circle", "cross", "ring")
]
# Crosses are hard for the first option; colours say nothing.
QUALITY = torch.tensor([[0.1 if "cross" in caption else 0.9, 0.8] for caption in CAPTIONS], dtype=F64)


def test_words():
    assert words("A Red-ish circle, 2 of them!") == ["a", "red", "ish", "circle", "2", "of", "them"]


def test_the_nearest_by_hand():
    """Cosines of bags of words weighed by log(1 + N / n), written out."""
    captions = ["red circle", "red cross", "blue blue cross"]
    quality = torch.tensor([[0.0], [0.5], [1.0]], dtype=F64)
    one, two = math.log1p(3 / 1), math.log1p(3 / 2)  # of a word in one of three captions, and in two
    # red: two, circle: one, cross: two, blue: one, the second blue: one.
    asked = "a blue circle"
    lengths = [math.hypot(two, one), math.hypot(two, two), math.sqrt(two**2 + 2 * one**2), math.hypot(one, one)]
    cosines = [one * one / (lengths[3] * lengths[k]) if k != 1 else 0.0 for k in range(3)]
    assert cosines[0] > cosines[2] > cosines[1]
    for k, wanted in ((1, 0.0), (2, 0.5), (3, 0.5)):
        found = Nearest.fitted(captions, quality, k).predict([asked])
        torch.testing.assert_close(found, torch.tensor([[wanted]], dtype=F64))
    assert Nearest.fitted(CAPTIONS, QUALITY).k == 7


def test_captions_as_near_as_the_kth_count():
    captions, quality = ["a red circle", "a red cross", "a blue ring"], torch.tensor([[0.0], [1.0], [0.3]], dtype=F64)
    for order in ([0, 1, 2], [1, 0, 2]):
        made = Nearest.fitted([captions[k] for k in order], quality[order], 1)
        torch.testing.assert_close(made.predict(["red"]), torch.tensor([[0.5]], dtype=F64))


@pytest.mark.parametrize("name", PREDICTORS)
def test_it_tells_what_words_say(name):
    made = PREDICTORS[name].fitted(CAPTIONS, QUALITY, **({"k": 4} if name == "knn" else {"steps": 120}))
    found = made.predict(["a yellow cross", "a yellow circle"])  # a word that was never seen is passed over
    torch.testing.assert_close(found, torch.tensor([[0.1, 0.8], [0.9, 0.8]], dtype=F64), atol=0.05, rtol=0)


@pytest.mark.parametrize("name", PREDICTORS)
def test_without_a_known_word_the_mean_is_expected(name):
    made = PREDICTORS[name].fitted(CAPTIONS, QUALITY)
    found = made.predict(["", "une licorne", "?!"])
    torch.testing.assert_close(found, QUALITY.mean(0).expand(3, 2))
    assert made.predict([]).shape == (0, 2)
    long = made.predict(["a red circle " * 3000])
    assert long.shape == (1, 2) and bool(((long >= 0) & (long <= 1)).all())


@pytest.mark.parametrize("name", PREDICTORS)
def test_it_comes_back_bit_for_bit(name):
    made = PREDICTORS[name].fitted(CAPTIONS, QUALITY)
    state = torch.random.get_rng_state()
    again = PREDICTORS[name].restored(made.facts(), made.tensors())
    asked = [*CAPTIONS, "a yellow cross", ""]
    assert torch.equal(again.predict(asked), made.predict(asked))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_what_is_learned_follows_from_the_seed():
    state = torch.random.get_rng_state()
    first, same, other = (Learned.fitted(CAPTIONS, QUALITY, steps=5, seed=seed).predict(CAPTIONS) for seed in (1, 1, 2))
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)
    begun = Learned(["a"], 1, torch.tensor([0.25, 1.0]))
    torch.testing.assert_close(begun.predict(["a"]), torch.tensor([[0.25, 0.99]], dtype=F64), atol=1e-6, rtol=0)


def test_bad_settings():
    with pytest.raises(ValueError, match="k must be a whole number from 1 to 12, got 13"):
        Nearest.fitted(CAPTIONS, QUALITY, 13)
    with pytest.raises(ValueError, match="none of the captions has a word"):
        Learned.fitted(["", "?"], QUALITY[:2])
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1, got 0"):
        Learned.fitted(CAPTIONS, QUALITY, steps=0)
