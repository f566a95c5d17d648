from __future__ import annotations

import pytest
import torch

from fewstep.metrics.features import Features, feature_pair, find_features


def test_pixels_are_the_values_in_float64():
    x = torch.arange(2 * 3 * 5, dtype=torch.float32).reshape(2, 3, 5) / 7
    assert torch.equal(find_features("pixels")(x), x.reshape(2, 15).double())


def test_integers_are_samples_too():
    assert find_features("pixels")(torch.arange(6).reshape(2, 3)).dtype == torch.float64


def test_batches_do_not_show():
    seen = []

    def sums(x):
        seen.append(len(x))
        return x.sum((1, 2))[:, None]

    x = torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(0))
    features = find_features(sums)
    assert torch.equal(features(x, batch=3), x.sum((1, 2))[:, None].double())
    assert seen == [3, 3, 1] and features.name == "sums"


def test_digits_are_the_penultimate_layer():
    from fewstep.metrics.digits_classifier import digits_classifier

    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features = find_features("digits")
    vectors, model = features(x), digits_classifier()
    assert vectors.shape == (3, features.dim)
    torch.testing.assert_close(model.head(vectors.float()), model(x))


def test_no_gradient_is_kept():
    x = torch.randn(3, 4, requires_grad=True)
    assert not find_features("pixels")(x).requires_grad


def test_unknown_names_and_things():
    with pytest.raises(ValueError, match="unknown features 'digit': did you mean 'digits'"):
        find_features("digit")
    with pytest.raises(ValueError, match="pixels, blocks, digits"):
        find_features(3)


@pytest.mark.parametrize(
    "function, message",
    [
        (lambda x: x, r"must give \(4, F\) for 4 samples, not \(4, 2, 3\)"),
        (lambda x: x.sum().reshape(1, 1), r"not \(1, 1\)"),
        (lambda x: "no", "not str"),
        (lambda x: x[:, 0] / 0, "not finite"),
        (lambda x: x[:, :, 0], "should have 5 numbers a sample but gave 2"),
    ],
)
def test_functions_that_do_not_give_vectors(function, message):
    with pytest.raises(ValueError, match=message):
        Features("mine", function, 5 if "5 numbers" in message else None)(torch.ones(4, 2, 3))


@pytest.mark.parametrize(
    "x, message",
    [
        ([[1.0, 2.0]], "must be a tensor"),
        (torch.ones(4), "sample axis"),
        (torch.ones(4, 0), "at least one value"),
        (torch.ones(1, 3), "has 1 samples"),
        (torch.ones(2, 3, dtype=torch.complex64), "real numbers"),
        (torch.tensor([[1.0], [float("inf")]]), "in 1 of 2 samples"),
    ],
)
def test_samples_that_are_none(x, message):
    with pytest.raises(ValueError, match=message):
        find_features("pixels")(x)


def test_pairs_must_match():
    with pytest.raises(ValueError, match=r"samples are \(2, 3\) each but real are \(3, 2\)"):
        feature_pair(torch.ones(4, 2, 3), torch.ones(5, 3, 2), find_features("pixels"))
