"""The folder of shards: whole or not there, one job's, one process's; nothing twice and nothing missing."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from fewstep.scale.manifest import Shards, differences, parts_of, read_manifest
from fewstep.scale.sampling import draw_shards
from fewstep.scale.shards import Done, Lost, Ready, Work, in_this_process

JOB = {"seed": 3, "plan": {"steps": 4}}


class Rows:
    """Sample i is (i, i + scale)."""

    def __init__(self, scale: float = 0.5) -> None:
        self.about = {"scale": scale}
        self.scale = scale

    def __call__(self, begin, end):
        rows = np.arange(begin, end, dtype=np.float32)
        return np.stack([rows, rows + np.float32(self.scale)], 1), {"calls": 1}


WORK = Work(f"{__name__}:Rows", {})
WANTED = torch.from_numpy(Rows()(0, 11)[0])


def draw(folder, executor=in_this_process, job=JOB, total=11, batch=2, batches=None, work=WORK, **options):
    return draw_shards(work, job, total, folder, executor, batch, batches, **options)


def stopping(after):
    """An executor that is interrupted after so many shards."""

    def run(work, shards):
        for number, event in enumerate(in_this_process(work, shards)):
            if number > after:
                raise KeyboardInterrupt
            yield event

    return run


def test_the_manifest_says_what_is_there(tmp_path):
    shards = draw(tmp_path / "s")
    found = read_manifest(tmp_path / "s")
    assert [(entry["begin"], entry["end"]) for entry in found["shards"]] == [
        (0, 2), (2, 4), (4, 6), (6, 8), (8, 10), (10, 11),
    ]  # fmt: skip
    assert found["job"].items() >= JOB.items() and found["about"] == {"scale": 0.5} and found["lost"] == []
    assert all(len(entry["sha256"]) == 64 and entry["calls"] == 1 for entry in found["shards"])
    assert shards.shape == (11, 2) and torch.equal(torch.cat(list(shards)), WANTED)
    files = {path.name for path in (tmp_path / "s").iterdir()}
    assert files == {"manifest.json", ".lock", *(f"{k:06d}.npy" for k in range(6))}
    shards.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("after", [0, 1, 4])
def test_what_was_stopped_goes_on_with_what_is_missing(tmp_path, after):
    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path / "s", stopping(after))
    assert len(read_manifest(tmp_path / "s")["shards"]) == after
    drawn, told = [], []

    def watched(work, shards):
        drawn.extend(shard.number for shard in shards)
        return in_this_process(work, shards)

    shards = draw(tmp_path / "s", watched, advance=told.append)
    assert drawn == list(range(after, 6)) and told == [after] + [1] * (6 - after)
    assert torch.equal(torch.cat(list(shards)), WANTED)


def test_what_is_damaged_or_gone_is_drawn_again(tmp_path):
    draw(tmp_path / "s")
    (tmp_path / "s" / "000001.npy").write_bytes(b"torn")
    (tmp_path / "s" / "000004.npy").unlink()
    drawn = []

    def watched(work, shards):
        drawn.extend(shard.number for shard in shards)
        return in_this_process(work, shards)

    assert torch.equal(torch.cat(list(draw(tmp_path / "s", watched))), WANTED) and drawn == [1, 4]


def test_a_lost_worker_is_listed(tmp_path):
    def losing(work, shards):
        yield Ready({"scale": 0.5}, "a")
        yield Lost(shards[2], "killed", "a")
        yield from in_this_process(work, shards)

    draw(tmp_path / "s", losing)
    assert read_manifest(tmp_path / "s")["lost"] == [{"shard": 2, "worker": "a", "why": "killed"}]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"job": JOB | {"seed": 4}}, "seed is 3 there and 4 here"),
        ({"job": JOB | {"plan": {"steps": 5}}}, "plan.steps is 4 there and 5 here"),
        ({"job": JOB | {"label": 1}}, "label is not given there and 1 here"),
        ({"total": 12}, "n is 11 there and 12 here"),
        ({"batch": 4}, "batch_size is 2 there and 4 here"),
        ({"batches": 2}, "batches of a shard is 1 there and 2 here"),
        ({"work": Work(f"{__name__}:Rows", {"scale": 0.25})}, "scale is 0.5 there and 0.25 here"),
    ],
)
def test_another_job_is_refused_by_what_differs(tmp_path, change, message):
    draw(tmp_path / "s")
    before = read_manifest(tmp_path / "s")
    with pytest.raises(ValueError, match=f"holds shards of another job: {message}. Ask for the same, or remove"):
        draw(tmp_path / "s", **change)
    assert read_manifest(tmp_path / "s") == before


def test_a_worker_unlike_the_first_is_refused(tmp_path):
    def mixed(work, shards):
        yield Ready({"scale": 0.5}, "a")
        yield Ready({"scale": 0.7}, "b")

    with pytest.raises(ValueError, match="scale is 0.5 there and 0.7 here"):
        draw(tmp_path / "s", mixed)


def test_nothing_twice_and_nothing_missing(tmp_path):
    def twice(work, shards):
        yield from in_this_process(work, shards)
        yield from list(in_this_process(work, shards))[1:]

    with pytest.raises(ValueError, match="shard 0 was drawn twice"):
        draw(tmp_path / "twice", twice)

    def short(work, shards):
        yield from list(in_this_process(work, shards))[:-2]

    with pytest.raises(ValueError, match="8 of 11 samples are there"):
        draw(tmp_path / "short", short)

    def hole(work, shards):
        yield from (e for e in in_this_process(work, shards) if not isinstance(e, Done) or e.shard.number != 2)

    with pytest.raises(ValueError, match="samples 4 to 5 are not there once"):
        draw(tmp_path / "hole", hole)

    def rows(work, shards):
        yield Done(shards[0], np.zeros((3, 2), np.float32), {}, "a")

    with pytest.raises(ValueError, match="shard 0 is of 2 float32 rows, got"):
        draw(tmp_path / "rows", rows)


def test_a_folder_of_anything_else_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match="is not empty"):
        draw(tmp_path / "mine")
    (tmp_path / "mine" / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a manifest of shards"):
        draw(tmp_path / "mine")
    with pytest.raises(ValueError, match="there is no"):
        read_manifest(tmp_path)


def test_a_changed_shard_is_not_read(tmp_path):
    shards = draw(tmp_path / "s")
    data = (tmp_path / "s" / "000003.npy").read_bytes()
    (tmp_path / "s" / "000003.npy").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match="000003.npy was changed"):
        list(shards)
    manifest = tmp_path / "s" / "manifest.json"
    facts = json.loads(manifest.read_text())
    facts["shards"][1]["begin"] = 1
    manifest.write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="is damaged: shard 1"):
        draw(tmp_path / "s")


def test_one_process_draws_at_a_time(tmp_path):
    shards = Shards(tmp_path / "s", JOB, 11, 2)
    code = (
        "import sys; from fewstep.scale.manifest import Shards\n"
        "try:\n with Shards(sys.argv[1], {'seed': 3, 'plan': {'steps': 4}}, 11, 2).locked(): print('mine')\n"
        "except ValueError as error: print(error)"
    )
    shards.folder.mkdir()
    with shards.locked():
        shards.agree({})  # a folder with a manifest
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "s")], capture_output=True, text=True)
    assert "another process is drawing the shards in" in done.stdout, done.stderr


def test_differences_are_said_in_words():
    assert differences({"a": 1, "b": {"c": [1], "d": None}}, {"a": 1, "b": {"c": [2]}, "e": "x"}) == [
        "b.c is [1] there and [2] here",
        'e is not given there and "x" here',
    ]
    assert differences({"a": "x" * 99}, {})[0] == f'a is "{"x" * 35} ... there and not given here'


def test_parts_of_samples_in_memory():
    assert [len(part) for part in parts_of(torch.zeros(5, 2), 2)] == [2, 2, 1]
