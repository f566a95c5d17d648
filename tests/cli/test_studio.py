"""`fewstep studio`: what it refuses at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request

import pytest


def test_what_cannot_be_shown_is_named_at_once(fails, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "pip install 'fewstep[studio]'" in fails("studio")
    from fewstep.serving import studio

    monkeypatch.setattr(studio, "needed", lambda: None)
    assert "unknown model 'digit'" in fails("studio", "digit")
    (tmp_path / "empty").mkdir()
    assert "holds no model" in fails("studio", tmp_path / "empty")
    assert "a port is 0" in fails("studio", "digits", "--port", 99999)
    assert "--max-batch must be at least 1, got 0" in fails("studio", "digits", "--max-batch", 0)


@pytest.mark.slow
def test_it_says_where_it_is_and_ends_when_told():
    pytest.importorskip("gradio")
    command = [sys.executable, "-m", "fewstep", "studio", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("the studio of digits is at http://127.0.0.1:")
        address = line.split(" at ")[1].split(";")[0]
        with urllib.request.urlopen(address, timeout=60) as answer:
            assert answer.url == f"{address}/studio/" and b"fewstep studio: digits" in answer.read()
        with urllib.request.urlopen(f"{address}/v1/models", timeout=60) as answer:
            assert b'"id":"digits"' in answer.read()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM)
        assert process.stderr.read() == ""
    finally:
        process.kill()
