"""Empty modules in the place of packages that a peer imports and that nothing needs."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.peers import standins  # noqa: E402

NAME = "no_such_package"


def test_whatever_is_imported_from_them_is_there(monkeypatch):
    monkeypatch.setattr(standins, "NAMES", (NAME, "torch"))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    assert standins.stand_in() == (NAME,)  # torch is installed
    try:
        part = importlib.import_module(f"{NAME}.inner.deeper")
        assert part.Something is not None and part.function(1, option=2) is not None

        class Own(part.Base):
            value = 3

        assert Own(1, a=2).value == 3
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == NAME]:
            del sys.modules[name]
    monkeypatch.undo()
    with pytest.raises(ImportError):
        importlib.import_module(NAME)
