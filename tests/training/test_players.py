"""The one loop: AdamW as torch has it, turns, gradients that stay at home, and runs that go on in the same bits."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.training.checkpoint import checkpoints, load_checkpoint
from fewstep.training.ema import EMA
from fewstep.training.players import Moment, Player, cosine, optimise, restore, state


def pair() -> dict[str, Player]:
    """A generator with dropout and an average, and the critic that it plays against, which plays twice as often."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        makes = nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Dropout(0.3), nn.Linear(16, 2))
        judges = nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.BatchNorm1d(16), nn.Linear(16, 1))

    def judging(z: Tensor) -> Tensor:
        return F.softplus(-judges(z + 3)) + F.softplus(judges(makes(z).detach()))

    def making(z: Tensor) -> Tensor:
        return F.softplus(-judges(makes(z)))

    return {
        "judges": Player(judges, judging, lr=1e-2, clip=1.0),
        "makes": Player(makes, making, lr=cosine(1e-2, 40), every=2, average=EMA(makes, 0.9)),
    }


def normal(count: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, 2, generator=generator)


def test_one_player_is_torchs_adamw():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    data = torch.randn(50, 3, generator=generator)
    average = EMA(ours, 0.5)
    player = Player(
        ours,
        lambda x: ours(x).square().sum(1),
        lr=cosine(0.1, 20, warmup=4),
        betas=lambda step: (0.9 - 0.01 * step, 0.99),
        weight_decay=lambda parameter: 0.1 if parameter.ndim > 1 else 0.0,
        clip=0.5,
        average=average,
    )
    optimise({"model": player}, lambda count, generator: data, steps=20, batch=50)
    optimizer = torch.optim.AdamW([{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias]}])
    optimizer.param_groups[1]["weight_decay"] = 0.0
    expected = EMA(theirs, 0.5)
    for step in range(20):
        rate = 0.1 * (step + 1) / 4 if step < 4 else 0.05 * (1 + math.cos(math.pi * (step - 4) / 16))
        for group in optimizer.param_groups:
            group["lr"], group["betas"] = rate, (0.9 - 0.01 * step, 0.99)
        optimizer.zero_grad()
        theirs(data).square().sum(1).mean().backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        optimizer.step()
        expected.update(theirs)
    for name, value in theirs.state_dict().items():
        assert torch.allclose(ours.state_dict()[name], value, rtol=1e-5, atol=1e-7), name
        assert torch.allclose(average.average[name], expected.average[name], rtol=1e-5, atol=1e-7), name


def test_two_players_take_their_turns_and_learn_from_each_other():
    """One learns where the data are, the other to be where the first says; it never sees the data."""
    knows, follows = nn.Linear(1, 2), nn.Linear(2, 2)
    one = torch.ones(1, 1)
    players = {
        "knows": Player(knows, lambda z: (knows(one) - (z + 3)).square().sum(1), lr=3e-2),
        "follows": Player(follows, lambda z: (follows(z) - knows(one)).square().sum(1), lr=3e-2, every=3),
    }
    turns = []
    optimise(players, normal, steps=900, batch=64, watch=lambda moment: turns.append(tuple(moment.losses)))
    assert turns == [("knows",), ("knows",), ("knows", "follows")] * 300
    assert (follows(normal(500, torch.Generator().manual_seed(1))) - 3).abs().max() < 0.3


def test_a_gradient_reaches_its_own_player_alone():
    players = pair()
    before = {name: player.state() for name, player in players.items()}
    players["makes"].turn(0, normal(8, torch.Generator().manual_seed(0)))
    assert all(p.grad is None for player in players.values() for p in player.parameters)
    for name, value in players["judges"].module.named_parameters():
        assert torch.equal(value, before["judges"][f"module.{name}"])
    assert not torch.equal(players["makes"].module[0].weight, before["makes"]["module.0.weight"])


def test_the_norm_is_that_before_clipping_and_stale_gradients_are_forgotten():
    weight = nn.Linear(1, 1, bias=False)
    weight.weight.grad = torch.full((1, 1), 1e6)
    seen: list[Moment] = []
    player = Player(weight, lambda x: 3.0 * weight.weight.flatten(), lr=0.0, clip=0.1)
    optimise({"model": player}, lambda count, generator: None, steps=1, batch=1, watch=seen.append)
    assert float(seen[0].norms["model"]) == 3.0 and seen[0].step == 0


def test_a_seed_repeats_and_leaves_torchs_generator_alone():
    ends = []
    for start in (1, 2):
        torch.manual_seed(start)
        expected = torch.get_rng_state()
        players = pair()
        optimise(players, normal, steps=6, batch=8, seed=3)
        assert torch.equal(torch.get_rng_state(), expected)
        ends.append(state(players))
    assert ends[0].keys() == ends[1].keys() and all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    other = pair()
    optimise(other, normal, steps=6, batch=8, seed=4)
    assert not torch.equal(state(other)["makes.module.0.weight"], ends[0]["makes.module.0.weight"])


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from fewstep.training.checkpoint import save_checkpoint
from fewstep.training.players import optimise, state
from test_players import normal, pair
torch.set_num_threads({threads})
players = pair()
def watch(moment):
    if moment.step + 1 in (5, 11):
        save_checkpoint(Path(sys.argv[1]), moment.step + 1, state(players), {{}})
    if moment.step + 1 == 13:
        os.kill(os.getpid(), signal.SIGKILL)
optimise(players, normal, steps=20, batch=16, seed=1, watch=watch)
"""


@pytest.mark.slow
def test_two_players_killed_in_the_middle_go_on_in_the_same_bits(tmp_path):
    whole = pair()
    optimise(whole, normal, steps=20, batch=16, seed=1)
    script = KILLED.format(threads=torch.get_num_threads())
    here = Path(__file__).resolve()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here.parent), str(here.parents[2])])}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    tensors, facts = load_checkpoint(checkpoints(tmp_path)[-1])
    assert facts["step"] == 11
    again = pair()
    restore(again, tensors)
    optimise(again, normal, steps=20, batch=16, seed=1, first=11)
    expected, found = state(whole), state(again)
    assert expected.keys() == found.keys() and any("exp_avg" in name for name in found)
    for name in expected:
        assert torch.equal(expected[name], found[name]), name


def test_watching_ends_a_run_and_a_generator_goes_on():
    generator, drawn = torch.Generator().manual_seed(0), []
    players = pair()

    def draw(count: int, generator: torch.Generator) -> Tensor:
        drawn.append(normal(count, generator))
        return drawn[-1]

    optimise(players, draw, steps=9, batch=4, seed=generator, watch=lambda moment: moment.step == 2)
    assert torch.equal(torch.cat(drawn), torch.cat([normal(4, torch.Generator().manual_seed(0)), *drawn[1:]]))
    assert len(drawn) == 3 and not torch.equal(drawn[0], drawn[1])


def test_what_cannot_be_trained_is_refused():
    still = nn.Linear(1, 1).requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter to train asks for gradients"):
        Player(still, lambda x: x)
    with pytest.raises(ValueError, match="clip must be positive and every at least 1, got 0 and 1"):
        Player(nn.Linear(1, 1), lambda x: x, clip=0)
    players = pair()
    for arguments, message in (
        ({"steps": 0}, "steps and batch must be at least 1, got 0 and 4"),
        ({"steps": 2, "first": 3}, "first must be 0 to 2, got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            optimise(players, normal, batch=4, **arguments)
    with pytest.raises(ValueError, match="training needs a player"):
        optimise({}, normal, steps=1, batch=1)
    with pytest.raises(ValueError, match="no player 'judges', only makes"):
        restore(players, state({"makes": players["makes"]}))
    with pytest.raises(FloatingPointError, match="the loss of 'judges' was not finite"):
        optimise(players, lambda count, generator: torch.full((count, 2), torch.nan), steps=2, batch=4)
