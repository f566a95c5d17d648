from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fewstep.training import players
from fewstep.training import run as run_module
from fewstep.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from fewstep.training.players import Player, optimise
from fewstep.training.run import Course, newest, run

COURSE = Course(last=20, steps=20, batch=4, log_every=4, save_every=10, done="distilled", doing="distilling")


def alone(**changed):
    """What a run asks of an Accelerator."""
    facts = {"is_main_process": True, "num_processes": 1, "device": torch.device("cpu")}
    return SimpleNamespace(wait_for_everyone=lambda: None, **facts | changed)


class Two:
    """A student that follows noise's mean and a critic that follows the student, every second turn; nothing else."""

    def __init__(self, before=lambda step: None, accelerator=None):
        torch.manual_seed(0)
        self.step, self.accelerator, self.before = 0, accelerator or alone(), before
        student, critic = nn.Linear(2, 2), nn.Linear(2, 2)
        self.players = {
            "student": Player(student, lambda x: (student(x) - 1).square().mean(1), lr=0.05),
            "critic": Player(critic, lambda x: (critic(x) - student(x).detach()).square().mean(1), lr=0.05, every=2),
        }
        self.losses = []

    def run(self, last, watch):
        def watched(moment):
            self.step = moment.step + 1
            self.losses.append(float(moment.losses["student"].mean()))
            return watch()

        def draw(batch, generator):
            self.before(self.step)
            return torch.randn(batch, 2, generator=generator)

        optimise(self.players, draw, steps=last, batch=4, seed=5, first=self.step, watch=watched)

    def check_finite(self):
        if not all(map(math.isfinite, self.losses)):
            raise FloatingPointError(f"student: step {self.step}")

    def means(self):
        count = len(self.losses)
        return {"loss": sum(self.losses) / count if count else math.nan, "evaluations": 3 * 4 * self.step}

    def forget(self):
        self.losses = []

    def save(self, out, elapsed):
        self.check_finite()
        save_checkpoint(out, self.step, players.state(self.players), {"elapsed": elapsed, "losses": self.losses})

    def restore(self, path):
        tensors, facts = load_checkpoint(path)
        players.restore(self.players, tensors)
        self.step, self.losses = facts["step"], facts["losses"]
        return facts["elapsed"]

    def export(self, folder):
        folder.mkdir()
        (folder / "student.json").write_text(json.dumps(self.players["student"].module.bias.tolist()))


def log_of(out):
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return without_clock(records)


def without_clock(records):
    return [{k: v for k, v in record.items() if k not in ("elapsed", "images_per_s")} for record in records]


def assert_equal(one, other):
    one, other = players.state(one.players), players.state(other.players)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is told: `clock.now += 1`."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(run_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def interrupting(at):
    return lambda step: os.kill(os.getpid(), signal.SIGINT) if step == at else None


def test_two_players_are_interrupted_and_resumed_bit_for_bit(tmp_path, capfd):
    whole, parts = Two(), Two(interrupting(6))
    told = []
    assert run(whole, COURSE, tmp_path / "whole", export=whole.export, tell=told.append)[0]
    assert without_clock(told) == log_of(tmp_path / "whole")
    assert [(record["step"], record["evaluations"]) for record in told] == [(k, 12 * k) for k in range(4, 21, 4)]
    assert "step 20: loss " in (err := capfd.readouterr().err) and "distilled 20 of 20 steps; the model is in" in err
    assert run(parts, COURSE, tmp_path / "parts", export=parts.export)[0] is False
    assert parts.step == 7 and not (tmp_path / "parts" / "model").exists()
    assert "interrupted: step 7 is saved in" in capfd.readouterr().err
    again = Two()
    ended, loss = run(again, COURSE, tmp_path / "parts", resumed=newest(tmp_path / "parts", True), export=again.export)
    assert ended and loss == told[-1]["loss"]
    assert_equal(whole, again)
    assert log_of(tmp_path / "parts") == log_of(tmp_path / "whole")
    read = [(tmp_path / name / "model" / "student.json").read_text() for name in ("whole", "parts")]
    assert read[0] == read[1] and [path.name for path in checkpoints(tmp_path / "parts")][-1] == "step-00000020"


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    kept, bare, told = Two(), Two(), []
    run(kept, COURSE, tmp_path / "run", progress=False)
    ended, loss = run(bare, COURSE, tell=told.append)
    assert ended and loss == told[-1]["loss"] and without_clock(told) == log_of(tmp_path / "run")
    assert_equal(kept, bare)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert capfd.readouterr().err.endswith("distilled 20 of 20 steps\n")
    assert run(Two(interrupting(6)), COURSE)[0] is False
    assert capfd.readouterr().err.endswith("interrupted: step 7\n")


def test_a_budget_ends_the_run_with_the_first_step_after_it(tmp_path, clock, capfd):
    def ticking(step):
        clock.now += 1.0

    course = replace(COURSE, last=10**9, steps=10**9, seconds=17.5)
    state, told = Two(ticking), []
    ended, loss = run(state, course, tmp_path / "run", tell=told.append)
    assert ended and state.step == 18 and loss == told[-1]["loss"]
    assert [record["step"] for record in told] == [4, 8, 12, 16, 18]  # the last one too
    assert [record["elapsed"] for record in told] == [4, 8, 12, 16, 18]
    assert told[-1]["images_per_s"] == 4 * 2 / 2  # two steps of four in two seconds
    err = capfd.readouterr().err
    assert "1e+03 ms per step, the 4 steps to go about 4 s" in err and err.endswith("distilled 18 steps\n")
    path = checkpoints(tmp_path / "run")[-1]
    assert path.name == "step-00000018"
    again = Two(ticking)
    assert run(again, course, tmp_path / "run", resumed=path) == (True, loss) and again.step == 18  # spent
    more = Two(ticking)
    run(more, replace(course, seconds=20.0), tmp_path / "run", resumed=path)
    assert more.step == 20


def test_what_a_hook_found_is_said(tmp_path, capfd):
    hooks = ((5, lambda: {"far": 0.5}), (3, lambda: None))
    run(Two(), replace(COURSE, hooks=hooks, spoken=lambda found: f"far {found['far']}"))
    said = [line for line in capfd.readouterr().err.splitlines() if "far" in line]
    assert said == [f"step {step}: far 0.5" for step in (5, 10, 15, 20)]


def test_who_is_told_may_end_the_run(tmp_path):
    state, seen = Two(), []

    def tell(record):
        seen.append(record)
        return record.get("collapsed")

    hooks = ((0, lambda: {"never": 1}), (5, lambda: {"collapsed": state.step >= 10}), (3, lambda: seen.append("hook")))
    ended, _ = run(state, replace(COURSE, hooks=hooks), tmp_path / "run", tell=tell, export=state.export)
    assert ended and state.step == 10 and (tmp_path / "run" / "model" / "student.json").exists()
    assert seen.count("hook") == 3 and {"step": 5, "collapsed": False} in log_of(tmp_path / "run")
    assert log_of(tmp_path / "run")[-1] == {"step": 10, "collapsed": True}
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000010"]


def test_all_processes_stop_after_the_same_step(tmp_path, capfd):
    """Another process is interrupted in step 6: this one hears of it in the next step that is logged."""
    step = []

    def reduce(flags, how):
        step.append(state.step)
        return flags + torch.tensor([state.step > 6, 0])

    state = Two(accelerator=alone(num_processes=2, reduce=reduce))
    assert run(state, COURSE, tmp_path / "run")[0] is False
    assert step == [4, 8] and state.step == 8 and "interrupted: step 8" in capfd.readouterr().err


def test_only_the_main_process_writes(tmp_path):
    told, asked = [], []
    for together in (False, True):
        state = Two(accelerator=alone(is_main_process=False))
        state.save = lambda out, elapsed: None  # of which every process has its part
        hooks = ((10, lambda: asked.append("hook")),)
        course = replace(COURSE, hooks=hooks, together=together)
        run(state, course, tmp_path / "run", tell=told.append, export=lambda folder: asked.append("export"))
        assert asked == ["hook", "hook", "export"] * together
    assert told == [] and list(tmp_path.iterdir()) == []


def test_an_export_that_fails_leaves_the_old_model(tmp_path):
    state = Two()
    run(state, replace(COURSE, last=8), tmp_path, export=state.export, progress=False)
    old = (tmp_path / "model" / "student.json").read_text()

    def torn(folder):
        state.export(folder)
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        run(state, replace(COURSE, last=12), tmp_path, export=torn, progress=False)
    assert (tmp_path / "model" / "student.json").read_text() == old
    run(state, COURSE, tmp_path, export=state.export, progress=False)
    assert (tmp_path / "model" / "student.json").read_text() != old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "log.jsonl", "model"]


def test_what_is_not_finite_is_neither_logged_nor_saved(tmp_path):
    def poison(step):
        if step == 6:
            nn.init.constant_(state.players["student"].module.bias, math.nan)

    state = Two(poison)
    with pytest.raises(FloatingPointError, match="student: step 8"):
        run(state, replace(COURSE, save_every=5), tmp_path / "run", export=state.export, progress=False)
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000005"]
    assert [record["step"] for record in log_of(tmp_path / "run")] == [4]


def test_a_run_has_an_accelerator_of_its_own_and_leaves_the_one_that_was_there():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    own = Accelerator(cpu=True)
    try:
        for precision, said in (("bf16", "bf16"), ("fp32", "no")):
            with run_module.accelerated(precision, "cpu") as accelerator:
                assert accelerator.mixed_precision == said
                accelerator.reduce(torch.ones(1))
            accelerator.reduce(torch.ones(1))  # as a state that outlives its run does
            assert own.mixed_precision == "no" and own.num_processes == 1
        with pytest.raises(ValueError, match="cannot train on 'meta'"), run_module.accelerated("fp32", "meta"):
            pass
        assert AcceleratorState().mixed_precision == "no" and own.device.type == "cpu"
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    with run_module.accelerated("bf16", "cpu") as accelerator:
        assert accelerator.mixed_precision == "bf16"
    assert not PartialState._shared_state


def test_a_group_of_processes_is_left_once(monkeypatch):
    left = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: not left)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: left.append(True))
    run_module._leave()
    run_module._leave()
    assert left == [True]
