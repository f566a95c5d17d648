from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from fewstep.training import checkpoint
from fewstep.training.checkpoint import (
    checkpoints,
    load_checkpoint,
    optimizer_tensors,
    part,
    restore_optimizer,
    save_checkpoint,
)


def save(out, step, value=1.0):
    return save_checkpoint(
        out, step, {"a.b": torch.full((2, 3), value), "c": torch.arange(5, dtype=torch.uint8)}, {"x": [1]}
    )


def test_round_trip(tmp_path):
    tensors, facts = load_checkpoint(save(tmp_path, 7))
    assert torch.equal(tensors["a.b"], torch.ones(2, 3)) and tensors["c"].tolist() == [0, 1, 2, 3, 4]
    assert facts["step"] == 7 and facts["x"] == [1]
    assert part(tensors, "a").keys() == {"b"}


def test_the_newest_two_stay_in_order_of_steps(tmp_path):
    for step in (5, 99_999_999, 100_000_000):  # one digit more than the padding
        save(tmp_path, step)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-99999999", "step-100000000"]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


@pytest.mark.parametrize("failing", ["_write", "os.replace", "dump_tensors"])
def test_a_failed_writing_leaves_the_last_checkpoint_alone(tmp_path, monkeypatch, failing):
    save(tmp_path, 1)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    target = os if failing == "os.replace" else checkpoint
    monkeypatch.setattr(target, failing.rpartition(".")[2], full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    load_checkpoint(checkpoints(tmp_path)[-1])


def test_what_a_killed_writing_left_is_no_checkpoint(tmp_path):
    save(tmp_path, 1)
    half = tmp_path / "checkpoints" / ".step-00000002"
    half.mkdir()
    (half / "state.safetensors").write_bytes(b"half")
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000001"]
    tensors, _ = load_checkpoint(save(tmp_path, 2, value=5.0))
    assert tensors["a.b"][0, 0] == 5 and not half.exists()


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
def test_damage_is_reported(tmp_path, name):
    path = save(tmp_path, 3)
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="step-00000003 is damaged .*: remove its folder to go on from the one before"):
        load_checkpoint(path)
    (path / name).unlink()
    with pytest.raises(ValueError, match="is damaged"):
        load_checkpoint(path)


def test_another_format_is_refused(tmp_path):
    path = save(tmp_path, 3)
    (path / "state.json").write_text('{"step": 3}')
    with pytest.raises(ValueError, match="no training checkpoint of this version"):
        load_checkpoint(path)


def test_optimiser_goes_on_as_if_never_stopped():
    def step(network, optimizer, seed):
        optimizer.zero_grad()
        network(torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))).square().sum().backward()
        optimizer.step()

    def make(network):
        return torch.optim.AdamW(network.parameters(), lr=0.1, fused=True)

    network = nn.Linear(3, 2)
    optimizer = make(network)
    step(network, optimizer, 0)
    saved = {name: value.clone() for name, value in optimizer_tensors(network, optimizer).items()}
    assert saved.keys() == {f"{name}/{key}" for name in ("weight", "bias") for key in ("step", "exp_avg", "exp_avg_sq")}
    other = nn.Linear(3, 2)
    other.load_state_dict(network.state_dict())
    again = make(other)
    restore_optimizer(other, again, saved)
    step(network, optimizer, 1)
    step(other, again, 1)
    assert torch.equal(network.weight, other.weight) and torch.equal(network.bias, other.bias)
    assert again.state[other.weight]["exp_avg"] is not saved["weight/exp_avg"]
