"""The rewards that come with the library, on pictures whose reward is known."""

from __future__ import annotations

import pytest
import torch

from fewstep.data import shapes
from fewstep.data.digits import load
from fewstep.metrics.digits_classifier import digits_classifier
from fewstep.metrics.rewards import caption, digit, ink, likeness, reward, soft_caption, symmetry
from fewstep.metrics.shapes_reward import soft_scores
from fewstep.metrics.shapes_verifier import check


def test_pictures_by_hand():
    x = torch.tensor([[[1.0, -1.0]], [[0.0, 0.0]]])
    assert ink(x).tolist() == [0.5, 0.5] and symmetry(x).tolist() == [-4.0, 0.0]
    assert likeness(x, x[0]).tolist() == [0.0, -1.0]
    assert reward("likeness", template=x[0])(x, label=torch.zeros(2)).tolist() == [0.0, -1.0]


def test_the_log_probability_of_a_class():
    images, labels = (part[:64] for part in load("validation"))
    logs = digits_classifier()(images).log_softmax(1)
    found = digit(images, labels)
    torch.testing.assert_close(found, logs[torch.arange(64), labels])
    assert float(found.exp().mean()) > 0.9 > 0.2 > float(digit(images, (labels + 1) % 10).exp().mean())
    torch.testing.assert_close(digit(images, 3), logs[:, 3])
    torch.testing.assert_close(digit(images[:2], [3, 4]), logs[[0, 1], [3, 4]])
    assert digit(images[:2], 10).tolist() == [0.0, 0.0]  # the empty label: no class is asked for
    x = images[:4].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(digit(x, labels[:4]).sum(), x)
    assert float(gradient.abs().sum()) > 0
    with pytest.raises(ValueError, match="the reward 'digit' needs label=..., as an option or as the run's condition"):
        reward("digit")(images)


def test_captions():
    numbers = torch.arange(shapes.N_TRAIN, shapes.N_TRAIN + 6)
    images, asked = shapes.draw(numbers)[0], shapes.captions(numbers)
    assert caption(images, asked).tolist() == [1.0] * 6
    wrong = caption(images, asked[0])
    assert wrong[0] == 1 and float(wrong[1:].mean()) < 0.95
    verdict = check(images, [asked[0]] * 6)
    assert torch.equal(wrong[verdict.full], torch.ones(int(verdict.full.sum())))
    assert bool(((5 * wrong).round() == (5 * wrong)).all())
    torch.testing.assert_close(soft_caption(images, asked), soft_scores(images, asked))
    torch.testing.assert_close(soft_caption(images, asked[1]), soft_scores(images, [asked[1]] * 6))
    with pytest.raises(ValueError, match="captions"):
        soft_caption(images, asked[:2])


def test_captions_come_as_tokens_too():
    """As the condition of a run has them."""
    rows = torch.arange(3)
    x, tokens = shapes.draw(rows)
    texts = shapes.captions(rows)
    for name in ("caption", "soft-caption"):
        made = reward(name)
        assert torch.equal(made(x, text=tokens), reward(name, text=texts)(x))
        with pytest.raises(ValueError, match=f"the reward '{name}' needs text=..."):
            made(x)
