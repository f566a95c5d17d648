from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch

from fewstep.report.files import write_json, write_text


def test_text_is_utf8_as_it_is(tmp_path):
    path = write_text(tmp_path / "a.txt", "naïve\r\nσ\n")
    assert path.read_bytes() == "naïve\r\nσ\n".encode()
    write_text(path, "again")
    assert path.read_text() == "again" and os.listdir(tmp_path) == ["a.txt"]


def test_json_keeps_numbers_and_drops_what_json_lacks(tmp_path):
    obj = {
        "a": [1.5, float("nan"), float("inf"), -float("inf"), True, None],
        3: (np.float32(0.25), np.int64(7), torch.tensor(2.5), np.float64("nan")),
        "where": tmp_path,
    }
    path = write_json(tmp_path / "a.json", obj)
    assert json.loads(path.read_text()) == {
        "a": [1.5, None, None, None, True, None], "3": [0.25, 7, 2.5, None], "where": str(tmp_path),
    }  # fmt: skip


def test_what_is_no_json_touches_no_file(tmp_path):
    path = write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError, match="set does not go into JSON"):
        write_json(path, {"a": {1}})
    with pytest.raises(TypeError, match="key"):
        write_json(path, {(1, 2): 1})
    assert json.loads(path.read_text()) == {"a": 1} and os.listdir(tmp_path) == ["a.json"]
