"""ADS asks where an exact greedy choice would, reads nothing else, and restores what it asked for."""

from __future__ import annotations

import pytest
import torch
from restoration.problems import D, gaussian, half, mixture, normal

import fewstep as fs
from fewstep.restoration.ads import ADS, next_location

F64 = torch.float64


def test_on_a_gaussian_the_choices_are_those_of_greatest_variance():
    """Particles of the exact posterior given what was chosen so far."""
    model, noise, k = gaussian(), 0.05, 1500
    truth, chosen = model.sample(1, seed=3)[0], []
    for number in range(4):
        mask = torch.zeros(D, dtype=F64)
        mask[chosen] = 1
        law = model
        if chosen:
            a = fs.operators.Inpaint(mask).fit((D,))
            law = model.posterior(a, a.measure(truth[None], noise, seed=1), noise)
        variances = law.covariances()[0].diagonal() - 1e9 * mask
        found = next_location(law.sample(k, seed=number)[None], mask[None], torch.eye(D, dtype=F64), torch.tensor(0.0))
        assert float(variances[int(found)]) > 0.98 * float(variances.max())  # of equals, chance picks one
        chosen.append(int(found))


def test_whole_rows_are_weighed_by_what_is_common_in_them():
    """Two numbers that always agree say less than two that do not."""
    free, shared = normal(800, 2, seed=1), normal(800, 1, seed=2).expand(-1, 2)
    members = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]], dtype=F64)
    predicted = torch.cat([shared, free], 1)[None]
    assert int(next_location(predicted, torch.zeros(1, 4), members, torch.tensor(0.01))) == 1
    assert int(next_location(predicted, torch.tensor([[0.0, 0, 1, 0]]), members, torch.tensor(0.01))) == 0


def run(y, operator, n=8, **options):
    told = fs.restore(
        mixture(), y, operator, 0.05, method="ads", options={"particles": 8, **options}, n=n, nfe=12, dtype=F64,
        report=True,
    )  # fmt: skip
    return told.samples, told.report


def test_it_reads_what_it_asked_for_and_no_more():
    a = fs.operators.Identity().fit((D,))
    y = mixture().sample(2, seed=3)
    x, report = run(y, a, budget=3)
    masks = report["masks"]
    assert masks.sum(1).tolist() == [3, 3] and report["asked"].shape == (2, 3)
    assert torch.equal(torch.zeros_like(masks).scatter(1, report["asked"], 1.0), masks)
    hidden = torch.where(masks > 0, y, 9.0)
    assert torch.equal(run(hidden, a, budget=3)[0], x)
    asked = []

    def measure(mask):
        asked.append(mask)
        return torch.where(mask, y, torch.nan)

    assert torch.equal(run(torch.zeros_like(y), a, budget=3, measure=measure)[0], x)
    assert torch.equal(torch.stack(asked).sum(0).to(masks), masks)


def test_rows_columns_and_elements_that_hold_nothing():
    wide = fs.operators.Identity().fit((1, 3, 4))
    assert ADS(locations="rows").members(wide).shape == (12, 3)
    columns = ADS(locations="columns").members(wide)
    assert columns.shape == (12, 4) and columns[:, 1].nonzero().flatten().tolist() == [1, 5, 9]
    assert ADS().members(half()).shape == (D, 3)
    labels = torch.tensor([4, 4, -1, 7, 7, -1])
    assert ADS(locations=labels).members(fs.operators.Identity().fit((D,))).sum(0).tolist() == [2, 2]


def test_bad_input_is_said():
    with pytest.raises(ValueError, match="the budget must be at least 1 location"):
        ADS(budget=0)
    with pytest.raises(ValueError, match="at least 2 particles"):
        ADS(particles=1)
    a = fs.operators.Identity().fit((D,))
    with pytest.raises(ValueError, match="there is no location to measure"):
        ADS(locations=-torch.ones(D, dtype=torch.long)).members(a)
    with pytest.raises(ValueError, match="has no rows"):
        ADS(locations="rows").members(a)
    with pytest.raises(ValueError, match="cannot be drawn from 8 particles"):
        run(normal(1, D), a, n=9)
