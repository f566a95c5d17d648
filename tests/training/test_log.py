from __future__ import annotations

import builtins
import json
import re

import pytest

from fewstep.training.log import Bar, Log, spoken_time


def lines(out):
    return [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]


def test_a_resumed_log_has_every_step_once(tmp_path):
    with Log(tmp_path, 0) as log:
        for step in (5, 10, 15, 20):
            log.write({"step": step, "loss": 1.0})
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 25, "lo')  # cut off by the death of the run
    with Log(tmp_path, 12) as log:
        assert lines(tmp_path) == [5, 10]
        for step in (15, 20):
            log.write({"step": step, "loss": 2.0})
            assert lines(tmp_path)[-1] == step  # at once, not when the run ends
    assert lines(tmp_path) == [5, 10, 15, 20]


def test_a_cut_off_line_at_the_checkpoint_is_dropped(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 5}\n{"step": 1')
    with Log(tmp_path, 50) as log:
        log.write({"step": 55})
    assert lines(tmp_path) == [5, 55]


def test_tensorboard_gets_the_numbers(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with Log(tmp_path, 0, tensorboard=True) as log:
        log.write({"step": 5, "loss": 1.5, "loss_by_noise_decile": [1, None]})
        log.write({"step": 10, "loss": 0.5})
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(5, 1.5), (10, 0.5)]


def test_tensorboard_missing_names_the_extra(tmp_path, monkeypatch):
    real = builtins.__import__

    def absent(name, *arguments, **named):
        if name.startswith("torch.utils.tensorboard"):
            raise ImportError(name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ValueError, match=r"pip install 'fewstep\[tensorboard\]'"):
        Log(tmp_path, 0, tensorboard=True)


@pytest.mark.parametrize(
    "seconds, words", [(0.123, "0.12 s"), (45.4, "45 s"), (90, "2 min"), (720, "12 min"), (12000, "3 h 20 min")]
)
def test_durations_in_words(seconds, words):
    assert spoken_time(seconds) == words


def test_a_line_says_what_the_record_has(capfd):
    with Bar(True, "distilling", 0, 20) as bar:
        bar.show({"step": 4, "loss": 0.5})
        bar.show({"step": 8, "loss": 0.25, "images_per_s": 119.6})
    assert capfd.readouterr().err == "step 4: loss 0.5000\nstep 8: loss 0.2500, 120 images/s\n"


@pytest.mark.parametrize("seconds, count", [(None, "7/20"), (60.0, "30/60 s")])
def test_the_bar_counts_steps_or_seconds(monkeypatch, capfd, seconds, count):
    monkeypatch.setenv("FORCE_COLOR", "1")  # to rich, a terminal
    monkeypatch.setenv("COLUMNS", "100")
    with Bar(True, "distilling", 3, 20, 10.0, seconds) as bar:
        bar.reach(7, 30.0)
        bar.show({"step": 7, "loss": 0.5})
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capfd.readouterr().err)
    assert "distilling" in plain and count in plain and "loss 0.5000" in plain
