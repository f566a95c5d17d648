from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from fewstep.core.methods import find
from fewstep.training.draws import Draws


def test_rows_are_one_permutation_an_epoch_end_to_end():
    draws = Draws(7, 10)
    everything = draws.rows(0, 35)
    for epoch in range(3):
        assert sorted(everything[10 * epoch : 10 * epoch + 10].tolist()) == list(range(10))
    assert not torch.equal(everything[:10], everything[10:20])
    batches = [Draws(7, 10).rows(seen, 7) for seen in range(0, 35, 7)]
    assert torch.equal(torch.cat(batches), everything)  # the position is all there is to know
    assert not torch.equal(Draws(8, 10).rows(0, 35), everything)


def test_draws_come_from_the_seed_alone_and_leave_torch_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one, other = Draws(7, 10), Draws(7, 10)
    torch.rand(3)
    moved = torch.get_rng_state()
    for draw in (lambda d: d.normal(5, 2), lambda d: d.shares(6), lambda d: d.hidden(100, 0.3), lambda d: d.rows(3, 4)):
        assert torch.equal(draw(one), draw(other))
    assert torch.equal(torch.get_rng_state(), moved) and not torch.equal(state, moved)


def test_streams_differ_from_each_other_and_between_seeds():
    first = [
        torch.rand(8, generator=Draws(seed, 10).generators[name])
        for seed in (0, 1, 2)
        for name in Draws(0, 1).generators
    ]
    assert len({tuple(draw.tolist()) for draw in first}) == len(first)
    seeds = {Draws(seed, 1).step_seed(step, rank) for seed in (0, 1) for step in range(50) for rank in range(4)}
    assert len(seeds) == 400


def test_restored_generators_go_on():
    draws = Draws(3, 10)
    draws.normal(7)  # an odd number, so that a cached second normal would show
    draws.hidden(5, 0.5)
    state = draws.state()
    expected = draws.normal(9), draws.shares(4), draws.hidden(20, 0.5)
    again = Draws(99, 10)
    again.restore(state)
    for ours, theirs in zip(expected, (again.normal(9), again.shares(4), again.hidden(20, 0.5)), strict=True):
        assert torch.equal(ours, theirs)


def test_shares_are_fine_grained_and_hidden_is_a_share():
    draws = Draws(0, 10)
    shares = draws.shares(20000)
    assert shares.dtype == torch.float64 and abs(float(shares.mean()) - 0.5) < 0.01
    assert abs(float(draws.hidden(20000, 0.1).float().mean()) - 0.1) < 0.01
    assert not draws.hidden(1000, 0.0).any()


def test_rs2_takes_a_fresh_share_every_round():
    assert find("rs2", "training") is Draws
    draws = Draws(5, 20, share=0.25)
    rounds = draws.rows(0, 200).view(40, 5)
    assert all(len(set(taken.tolist())) == 5 for taken in rounds)
    assert len({tuple(sorted(taken.tolist())) for taken in rounds}) > 35  # fresh, and not pieces of one order
    assert any(set(a.tolist()) & set(b.tolist()) for a, b in pairwise(rounds))
    counts = torch.bincount(Draws(5, 20, share=0.25).rows(0, 20000), minlength=20)
    assert counts.min() > 850 and counts.max() < 1150  # all the data are seen, alike
    batches = [Draws(5, 20, share=0.25).rows(seen, 7) for seen in range(0, 196, 7)]
    assert torch.equal(torch.cat(batches), rounds.flatten()[:196])
    assert torch.equal(Draws(5, 20, share=1.0).rows(3, 50), Draws(5, 20).rows(3, 50))


def test_rs2_without_replacement_goes_through_all_before_it_repeats():
    draws = Draws(5, 23, share=0.2, replacement=False)  # rounds of 5, so 20 of 23 in a pass
    passes = draws.rows(0, 60).view(3, 20)
    assert all(len(set(taken.tolist())) == 20 for taken in passes)
    assert len({tuple(sorted(taken.tolist())) for taken in passes}) == 3
    assert len(Draws(1, 3, share=0.01).rows(0, 4)) == 4  # at least one sample a round
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            Draws(0, 10, share=share)
