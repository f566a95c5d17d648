"""The problems that universal plans are fitted to and judged by."""

from __future__ import annotations

import pytest
import torch

from fewstep.searching.zoo import finite, mixture, patches, zoo


@pytest.mark.parametrize(
    "size, components, power, tight, offset", [(3, 5, 1.0, 0.1, 0.0), (16, 2, 2.0, 0.5, 0.3), (8, 1, 0.5, 1.0, 0.1)]
)
def test_mixtures_have_a_mean_square_of_1_and_the_shares_that_were_asked(size, components, power, tight, offset):
    model = mixture(3, size, components, power, tight, offset)
    weights = model.log_weights.exp().double()
    means, inner = model.means.double(), model.variances.double()
    second = (weights @ means.square()).mean() + (weights @ inner).mean()
    assert float(second) == pytest.approx(1, abs=1e-4)
    assert float((weights @ means).square().mean()) == pytest.approx(offset, abs=1e-4)
    assert float((weights @ inner).mean()) == pytest.approx(tight * (1 - offset), abs=1e-4)
    assert model.data_std == 1.0


def test_a_finite_set_knows_its_standard_deviation():
    pictures = patches(20, 8, 0)
    assert pictures.shape == (20, 1, 8, 8) and float(pictures.std()) > 0.2
    assert finite(pictures).data_std == float(pictures.std())
    assert torch.equal(pictures, patches(20, 8, 0))


def test_names_are_unique_and_every_kind_is_there():
    species = zoo()
    assert len({one.name for one in species}) == len(species) > 40
    learned = {one.family for one in species if not one.judging}
    assert learned == {"mixtures", "uneven mixtures", "steep mixtures", "gaussians", "sets", "networks", "guided"}
    assert {one.family for one in species if one.judging} == {"mixtures", "sets", "networks", "guided"}


def test_small_ones_answer():
    for one in zoo():
        if one.family in ("mixtures", "gaussians") and "256" not in one.name:
            model = one.make()
            x = torch.randn(2, *model.shape)
            assert bool(torch.isfinite(model(x, torch.tensor(1.0)).x0).all())
